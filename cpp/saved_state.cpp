// SPDX-License-Identifier: Apache-2.0
#include "saved_state.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/system.h"
#include "io/gguf_header.h"
#include "io/model_file.h"

namespace rwkv_edge {

namespace {

constexpr const char *kArch = "rwkv_edge.state.arch", *kVersion = "rwkv_edge.state.version",
                     *kFingerprint = "rwkv_edge.state.fingerprint",
                     *kModel = "rwkv_edge.state.model", *kTokens = "rwkv_edge.state.tokens",
                     *kOutput = "output", *kTuned = "time_state";
constexpr int64_t kNewest = 2;  // version

std::size_t count(int64_t values) { return static_cast<std::size_t>(values); }

std::filesystem::path path_of(const std::string& utf8) {
    return std::u8string(utf8.begin(), utf8.end());
}

std::string name_of(const std::string& utf8) {
    const std::u8string name = path_of(utf8).filename().u8string();
    return {name.begin(), name.end()};
}

std::string listed(std::span<const int64_t> shape) {
    std::string text;
    for (const int64_t size : shape) text += cat(text.empty() ? "" : ", ", size);
    return cat('[', text, ']');
}

std::vector<int64_t> with_layers(int64_t layers, const std::vector<int64_t>& shape) {
    std::vector<int64_t> all = {layers};
    all.insert(all.end(), shape.begin(), shape.end());
    return all;
}

bool finite(std::span<const float> values) {
    return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

// A part of all layers, where the state has layer after layer. `state` is [layers, layer_size].
template <class Copy>
void each_layer(int64_t layers, int64_t start, int64_t size, int64_t layer_size, Copy copy) {
    for (int64_t i = 0; i < layers; ++i) copy(count(i * layer_size + start), count(i * size));
}

class Reader {
public:
    Reader(const std::string& path, const Model& model)
        : path_(path),
          model_(model),
          layers_(model.config().n_layer),
          file_(ModelFile::open(path)) {}

    SavedState read(const std::string& fingerprint) {
        const std::string arch(text(kArch));
        if (arch.empty()) fail("not a saved state (key ", kArch, " is missing)");
        check_version();
        if (arch == kTuned) return tuned();
        if (arch != model_.config().arch)
            fail("a state of ", arch, " does not fit ", model_.file().path(), ", which is ",
                 model_.config().arch);
        SavedState saved{.state = std::vector<float>(count(model_.state_size()))};
        const std::vector<StatePart> parts = model_.state_parts();
        const int64_t layer_size = model_.state_size() / layers_;
        int64_t start = 0;
        for (const StatePart& part : parts) {
            const std::vector<float> values = values_of(part.name, part.shape);
            each_layer(layers_, start, part.size(), layer_size, [&](auto to, auto from) {
                std::copy_n(&values[from], part.size(), &saved.state[to]);
            });
            start += part.size();
        }
        const bool output = file_->find_tensor(kOutput) != nullptr;
        if (file_->tensors().size() != parts.size() + (output ? 1 : 0))
            fail(file_->tensors().size(), " tensors, expected ", parts.size(),
                 " parts of a state of ", arch, ", and perhaps the output of the last token");
        if (output) saved.output = last_output();
        saved.tokens = tokens();
        if (output && saved.tokens == 0) fail("tensor ", kOutput, " of a last token, and 0 tokens");
        check_model(fingerprint);
        return saved;
    }

private:
    template <class... Parts>
    [[noreturn]] void fail(const Parts&... parts) const {
        throw FormatError(cat(path_, ": ", parts...));
    }

    const MetaValue* value(const char* key, ValueType type) const {
        const MetaValue* found = file_->find(key);
        if (found != nullptr && found->type != type)
            fail("key ", key, " is ", value_type_name(found->type), ", expected ",
                 value_type_name(type));
        return found;
    }
    std::string_view text(const char* key) const {
        const MetaValue* found = value(key, ValueType::String);
        return found == nullptr ? std::string_view() : found->text();
    }

    void check_version() const {
        const MetaValue* found = value(kVersion, ValueType::U32);
        const int64_t version = found == nullptr ? 1 : found->integer();
        if (version == 0) fail("a saved state of version 0, expected 1 to ", kNewest);
        if (version > kNewest)
            throw UnsupportedError(cat(path_, ": a saved state of version ", version,
                                       ", expected 1 to ", kNewest,
                                       "; a later rwkv-edge may read it"));
    }

    std::optional<int64_t> tokens() const {
        const MetaValue* found = value(kTokens, ValueType::U64);
        if (found == nullptr) return std::nullopt;
        if (found->integer() < 0) fail("key ", kTokens, " is above 2^63");
        return found->integer();
    }

    void check_model(const std::string& wanted) const {
        const std::string_view found = text(kFingerprint);
        if (file_->find(kFingerprint) == nullptr) return;
        if (found.size() != 64 ||
            found.find_first_not_of("0123456789abcdef") != std::string_view::npos)
            fail("key ", kFingerprint, " has ", found.size(), " bytes, expected 64 hex digits");
        if (wanted.empty() || found == wanted) return;
        fail("a state of another model, or of the same in other types: '", text(kModel),
             "' with fingerprint ", found.substr(0, 16), ", expected ", model_.file().path(),
             " with ", wanted.substr(0, 16), "; any_model takes it nevertheless");
    }

    // [layers, shape], as floats.
    std::vector<float> values_of(const std::string& name, const std::vector<int64_t>& shape) const {
        const TensorView* tensor = file_->find_tensor(name);
        const std::vector<int64_t> expected = with_layers(layers_, shape);
        if (tensor == nullptr)
            fail("tensor ", name, " is missing, expected ", listed(expected), " for ",
                 model_.file().path());
        if ((tensor->type != Type::F32 && tensor->type != Type::F16) || tensor->shape != expected)
            fail("tensor ", name, " is ", type_info(tensor->type).name, ' ', listed(tensor->shape),
                 ", expected f32 or f16 ", listed(expected), " for ", model_.file().path());
        return floats_of(*tensor);
    }
    std::vector<float> last_output() const {
        const TensorView& tensor = *file_->find_tensor(kOutput);
        const std::vector<int64_t> expected = {model_.config().n_embd};
        if (tensor.type != Type::F32 || tensor.shape != expected)
            fail("tensor ", kOutput, " is ", type_info(tensor.type).name, ' ', listed(tensor.shape),
                 ", expected f32 ", listed(expected));
        return floats_of(tensor);
    }
    std::vector<float> floats_of(const TensorView& tensor) const {
        int64_t n = 1;
        for (const int64_t size : tensor.shape) n *= size;
        std::vector<std::byte> bytes(tensor.data.size());
        file_->read(tensor.data, bytes.data());
        std::vector<float> values(count(n));
        type_info(tensor.type).dequantize(bytes.data(), values.data(), n);
        if (!finite(values)) fail("tensor ", tensor.name, " holds NaN or infinity");
        return values;
    }

    // Made by training, to begin texts with: the heads' states, [value, key], in an empty state.
    SavedState tuned() const {
        const std::vector<StatePart> parts = model_.state_parts();
        int64_t start = 0;
        auto part = parts.begin();
        for (; part != parts.end() && part->name != "wkv"; ++part) start += part->size();
        if (part == parts.end())
            fail("a tuned state, and ", model_.file().path(), " is ", model_.config().arch,
                 ", which has no heads");
        const std::vector<float> values = values_of(kTuned, part->shape);
        const std::size_t n = count(part->shape.back());
        const bool key_first = model_.config().arch == "rwkv5" || model_.config().arch == "rwkv6";
        SavedState saved{.state = std::vector<float>(count(model_.state_size())), .tokens = 0};
        each_layer(layers_, start, part->size(), model_.state_size() / layers_,
                   [&](auto to, auto from) {
                       for (std::size_t i = 0; i < count(part->size()); ++i) {
                           const std::size_t head = i / (n * n), row = i / n % n, column = i % n;
                           saved.state[to + i] =
                               values[from + (key_first ? (head * n + column) * n + row : i)];
                       }
                   });
        return saved;
    }

    const std::string& path_;
    const Model& model_;
    int64_t layers_;
    std::shared_ptr<const ModelFile> file_;
};

// Whether nothing but a saved state is lost where `path` is written.
bool replaceable(const std::string& path) {
    try {
        return ModelFile::open(path)->find(kArch) != nullptr;
    } catch (const FileError& error) {
        if (error.code == ENOENT) return true;
        throw;
    } catch (const UnsupportedError&) {
        return false;
    } catch (const FormatError&) {
        std::error_code error;
        return std::filesystem::file_size(path_of(path), error) == 0;
    }
}

}  // namespace

void save_state(const std::string& path, const Model& model, const std::string& fingerprint,
                const SavedState& saved) {
    if (!finite(saved.state) || !finite(saved.output))
        throw std::invalid_argument(cat(path, ": this state holds NaN or infinity"));
    if (!replaceable(path))
        throw FileError(EEXIST, path, "the file is no saved state, and is not replaced");
    GgufHeader header;
    header.text(kArch, model.config().arch);
    header.number(kVersion, kNewest);
    header.text(kFingerprint, fingerprint);
    header.text(kModel, name_of(model.file().path()));
    if (saved.tokens) header.long_number(kTokens, static_cast<uint64_t>(*saved.tokens));

    const int64_t layers = model.config().n_layer, layer_size = model.state_size() / layers;
    std::vector<std::vector<float>> parts;
    int64_t start = 0;
    for (const StatePart& part : model.state_parts()) {
        std::vector<float>& values = parts.emplace_back(count(layers * part.size()));
        each_layer(layers, start, part.size(), layer_size, [&](auto from, auto to) {
            std::copy_n(&saved.state[from], part.size(), &values[to]);
        });
        header.tensor(part.name, Type::F32, with_layers(layers, part.shape),
                      std::as_bytes(std::span(values)));
        start += part.size();
    }
    if (!saved.output.empty())
        header.tensor(kOutput, Type::F32, {model.config().n_embd},
                      std::as_bytes(std::span(saved.output)));

    static constexpr std::array<std::byte, GgufHeader::kAlignment> kZeros{};
    const std::vector<std::byte> head = header.bytes();
    std::vector<std::span<const std::byte>> pieces;
    const auto add = [&](std::span<const std::byte> bytes) {
        pieces.push_back(bytes);
        pieces.push_back(std::span(kZeros).first(GgufHeader::padding(bytes.size())));
    };
    add(head);
    for (const std::span<const std::byte> tensor : header.tensors()) add(tensor);
    replace_file(path, pieces);
}

SavedState load_state(const std::string& path, const Model& model, const std::string& fingerprint) {
    return Reader(path, model).read(fingerprint);
}

}  // namespace rwkv_edge
