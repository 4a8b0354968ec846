// SPDX-License-Identifier: Apache-2.0
#include "io/ggmf.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <utility>

#include "base/error.h"
#include "io/byte_reader.h"
#include "io/gguf_header.h"
#include "quant/types.h"

namespace rwkv_edge {

namespace {

constexpr uint32_t kGgmfMagic = 0x67676d66;
constexpr uint32_t kNameBytes = 256;

// ggml's type for one of these files; -1 where rwkv.cpp no longer reads it either.
int64_t ggml_type(uint32_t type) {
    constexpr int kIds[] = {0, 1, 2, 3, -1, -1, -1, 6, 7, 8, -1, 10, 11, 12, 13, 14};
    return type < std::size(kIds) ? kIds[type] : -1;
}

struct Found {
    Type type;
    std::vector<int64_t> shape;  // slowest first
    std::span<const std::byte> data;
    bool used = false;

    int64_t values() const {
        int64_t n = 1;
        for (const int64_t size : shape) n *= size;
        return n;
    }
};

// What the assembled file lives on.
struct Owned {
    explicit Owned(const std::string& path) : map(path) {}
    MappedFile map;
    std::vector<std::byte> header;
    std::list<std::vector<float>> made;
};

// BlinkDL's names, as rwkv.cpp's converter leaves them, to GGUF's. Its own names of versions are
// one off, so the keys decide.
class GgmfParser {
public:
    explicit GgmfParser(const std::string& path)
        : path_(path), owned_(std::make_shared<Owned>(path)), reader_(owned_->map.bytes(), path) {}

    std::shared_ptr<const ModelFile> parse() {
        read_all();
        version_ = has("blocks.0.att.r_k")           ? 7
                   : has("blocks.0.att.time_maa_x")  ? 6
                   : has("blocks.0.att.ln_x.weight") ? 5
                                                     : 4;
        put_keys();
        move("token_embd.weight", "emb.weight");
        norm("token_embd_norm", "blocks.0.ln0");
        for (int64_t i = 0; i < layers_; ++i) {
            source_ = cat("blocks.", i, ".");
            target_ = cat("blk.", i, ".");
            norm(target_ + "attn_norm", source_ + "ln1");
            norm(target_ + "attn_norm_2", source_ + "ln2");
            time_mix(i);
            channel_mix();
        }
        norm("output_norm", "ln_out");
        move("output.weight", "head.weight");
        for (const auto& [name, tensor] : tensors_)
            if (!tensor.used) fail("tensor '", name, "' has no place in RWKV-", version_);
        owned_->header = header_.bytes();
        return ModelFile::assemble(owned_->header, header_.tensors(), path_, owned_);
    }

private:
    template <class... Parts>
    [[noreturn]] void fail(const Parts&... parts) const {
        throw FormatError(cat(path_, ": ", parts...));
    }

    void read_all() {
        const auto number = [&](const char* what) { return reader_.read<uint32_t>(what); };
        if (number("the magic of rwkv.cpp") != kGgmfMagic) fail("not a file of rwkv.cpp");
        const uint32_t version = number("the version");
        if (version != 100 && version != 101)
            throw UnsupportedError(
                cat(path_, ": rwkv.cpp file version ", version, ", expected 100 or 101"));
        const int64_t vocab = number("the header"), width = number("the header");
        const int64_t layers = number("the header");
        number("the header");  // a type, which each tensor has
        while (reader_.remaining() > 0) {
            if (tensors_.size() == kMaxTensors) fail("more than ", kMaxTensors, " tensors");
            read_tensor(version);
        }
        const Found& embedding = at("emb.weight");
        if (embedding.shape != std::vector<int64_t>{vocab, width})
            fail("tensor 'emb.weight', expected [", vocab, ", ", width, "] as the header says");
        width_ = width;
        while (has(cat("blocks.", layers_, ".ln1.weight"))) ++layers_;
        if (layers_ != layers)
            fail("tensors of ", layers_, " layers, the header says ", layers,
                 "; is the download complete?");
    }

    void read_tensor(uint32_t version) {
        const std::size_t start = reader_.position();
        const auto dims = reader_.read<uint32_t>("the header of a tensor");
        const auto length = reader_.read<uint32_t>("the header of a tensor");
        const auto type_id = reader_.read<uint32_t>("the header of a tensor");
        if (dims < 1 || dims > 3 || length < 1 || length > kNameBytes)
            fail("the tensor at byte ", start, " has ", dims, " dimensions and a name of ", length,
                 " bytes, expected 1 to 3 and 1 to ", kNameBytes);
        Found found{};
        int64_t values = 1;
        for (uint32_t d = 0; d < dims; ++d) {
            const int64_t size = reader_.read<int32_t>("the shape of a tensor");
            if (size < 1 || values > (int64_t{1} << 56) / size)
                fail("the tensor at byte ", start, " has a dimension of ", size);
            found.shape.insert(found.shape.begin(), size);
            values *= size;
        }
        const auto text = reader_.take(length, "the name of a tensor");
        const std::string name(reinterpret_cast<const char*>(text.data()), text.size());
        const int64_t ggml = ggml_type(type_id);
        const TypeInfo* info = ggml < 0 ? nullptr : find_type(static_cast<uint32_t>(ggml));
        if (info == nullptr)
            throw UnsupportedError(cat(path_, ": tensor '", name, "' is of type ", type_id,
                                       ", which is not read; quantize the FP16 file again"));
        if (version == 100 && info->type != Type::F32 && info->type != Type::F16)
            throw UnsupportedError(cat(path_, ": tensor '", name, "' is ", info->name,
                                       " of file version 100, whose blocks had another layout; "
                                       "quantize the FP16 file again"));
        if (found.shape.back() % info->block_len != 0)
            fail("tensor '", name, "' has rows of ", found.shape.back(),
                 " values, expected a multiple of ", info->block_len, " for ", info->name);
        found.type = info->type;
        found.data = reader_.take(static_cast<uint64_t>(type_bytes(info->type, values)),
                                  cat("tensor '", name, "'"));
        if (!tensors_.emplace(name, found).second) fail("tensor '", name, "' appears twice");
    }

    void put_keys() {
        const std::string arch = cat("rwkv", version_);
        header_.text("general.architecture", arch);
        header_.number(arch + ".embedding_length", width_);
        header_.number(arch + ".block_count", layers_);
        header_.number(arch + ".feed_forward_length", at("blocks.0.ffn.key.weight").shape.front());
        header_.real(arch + ".attention.layer_norm_epsilon", 1e-5f);
        if (version_ == 4) return;
        heads_ = version_ == 7   ? heads_of("blocks.0.att.r_k")
                 : version_ == 6 ? heads_of("blocks.0.att.time_faaaa")
                                 : at("blocks.0.att.time_decay").shape.front();
        if (width_ % heads_ != 0)
            fail(heads_, " heads, expected a divisor of ", width_, ", the columns of emb.weight");
        header_.number(arch + ".wkv.head_size", width_ / heads_);
    }

    // Of [heads, values of a head]; more dimensions are of size 1.
    int64_t heads_of(const std::string& name) {
        std::vector<int64_t> shape = at(name).shape;
        while (shape.size() > 2 && shape.back() == 1) shape.pop_back();
        while (shape.size() > 2 && shape.front() == 1) shape.erase(shape.begin());
        if (shape.size() != 2)
            fail("tensor '", name, "' has ", shape.size(),
                 " dimensions, expected 2: heads, and values of a head");
        if (shape[0] * shape[1] != width_)
            fail("tensor '", name, "' has ", shape[0], " heads of ", shape[1], " values, expected ",
                 width_, " values, the columns of emb.weight");
        return shape[0];
    }

    void time_mix(int64_t layer) {
        const std::string source = source_ + "att.", target = target_ + "time_mix_";
        const auto lerp = [&](std::string_view letters, const std::string& prefix) {
            std::vector<std::string> names;
            for (const char letter : letters) names.push_back(source + prefix + letter);
            fuse(target + "lerp_fused.weight", names);
        };
        for (const char* name : {"receptance", "key", "value", "output"})
            move(target + name + ".weight", source + name + ".weight");
        if (version_ > 4) norm(target + "ln", source + "ln_x");
        if (has(source + "time_state"))
            initial_state(target + "state.weight", source + "time_state");
        const bool gate = has(source + "gate.weight");
        if (gate) move(target + "gate.weight", source + "gate.weight");
        if (version_ == 4) {
            lerp("kvr", "time_mix_");
            move(target + "first.weight", source + "time_first", {width_});
            move(target + "decay.weight", source + "time_decay", {width_});
        } else if (version_ == 5) {
            lerp(gate ? "kvrg" : "kvr", "time_mix_");
            per_channel(target + "decay.weight", source + "time_decay");
            per_channel(target + "first.weight",
                        source + (has(source + "time_faaaa") ? "time_faaaa" : "time_first"));
        } else if (version_ == 6) {
            lerp("wkvrg", "time_maa_");
            move(target + "lerp_x.weight", source + "time_maa_x", {width_});
            move(target + "first.weight", source + "time_faaaa", {heads_, width_ / heads_});
            move(target + "decay.weight", source + "time_decay", {width_});
            low_rank(target + "w1.weight", source + "time_maa_w1");
            low_rank(target + "w2.weight", source + "time_maa_w2");
            low_rank(target + "decay_w1.weight", source + "time_decay_w1");
            low_rank(target + "decay_w2.weight", source + "time_decay_w2");
        } else {
            if (has(source + "x_rwkvag"))
                move(target + "lerp_fused.weight", source + "x_rwkvag", {6, 1, 1, width_});
            else
                lerp("rwkvag", "x_");
            for (const char* name : {"k_k", "k_a", "r_k"})
                move(target + name + ".weight", source + name, {width_});
            for (const char letter : std::string("wavg")) {
                const std::string from = source + letter, to = target + letter;
                if (letter == 'v' && layer == 0) {  // never used
                    for (const char* part : {"0", "1", "2"}) skip(from + part);
                    continue;
                }
                if (letter != 'g') move(to + "0.weight", from + "0", {width_});
                for (const char* part : {"1", "2"}) move(to + part + ".weight", from + part);
            }
        }
    }

    void channel_mix() {
        const std::string source = source_ + "ffn.", target = target_ + "channel_mix_";
        const std::string lerp = version_ == 7 ? "x_" : version_ == 6 ? "time_maa_" : "time_mix_";
        move(target + "lerp_k.weight", source + lerp + "k", {width_});
        move(target + "key.weight", source + "key.weight");
        move(target + "value.weight", source + "value.weight");
        if (version_ == 7) return;
        move(target + "lerp_r.weight", source + lerp + "r", {width_});
        move(target + "receptance.weight", source + "receptance.weight");
    }

    bool has(const std::string& name) const { return tensors_.contains(name); }
    Found& at(const std::string& name) {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) fail("no tensor '", name, "'; is the download complete?");
        return found->second;
    }
    void skip(const std::string& name) {
        if (has(name)) at(name).used = true;
    }

    // A tensor as it is, perhaps in another shape of as many values.
    void move(const std::string& to, const std::string& from, std::vector<int64_t> shape = {}) {
        Found& found = at(from);
        found.used = true;
        if (shape.empty()) shape = found.shape;
        int64_t values = 1;
        for (const int64_t size : shape) values *= size;
        const TypeInfo& info = type_info(found.type);
        if (values != found.values() || shape.back() % info.block_len != 0)
            fail("tensor '", from, "' has ", found.values(), " values, expected ", values);
        header_.tensor(to, found.type, shape, found.data);
    }
    // Of RWKV-6, where rwkv.cpp quantizes these too: as floats, as every other way to open gives.
    void low_rank(const std::string& to, const std::string& from) {
        const Found& found = at(from);
        if (found.type == Type::F32 || found.type == Type::F16) return move(to, from);
        put(to, found.shape, values_of(from));
    }
    void norm(const std::string& to, const std::string& from) {
        for (const char* part : {".weight", ".bias"}) move(to + part, from + part, {width_});
    }

    std::vector<float> values_of(const std::string& name) {
        Found& found = at(name);
        found.used = true;
        // Blocks lie anywhere in these files.
        const std::vector<std::byte> aligned(found.data.begin(), found.data.end());
        std::vector<float> values(static_cast<std::size_t>(found.values()));
        type_info(found.type).dequantize(aligned.data(), values.data(), found.values());
        return values;
    }
    void put(const std::string& to, const std::vector<int64_t>& shape, std::vector<float> values) {
        const std::vector<float>& kept = owned_->made.emplace_back(std::move(values));
        header_.tensor(to, Type::F32, shape, std::as_bytes(std::span(kept)));
    }
    // Vectors of the token shift, one after the other.
    void fuse(const std::string& to, const std::vector<std::string>& names) {
        std::vector<float> all;
        for (const std::string& name : names) {
            const std::vector<float> values = values_of(name);
            if (std::ssize(values) != width_)
                fail("tensor '", name, "' has ", values.size(), " values, expected ", width_);
            all.insert(all.end(), values.begin(), values.end());
        }
        put(to, {static_cast<int64_t>(names.size()), 1, 1, width_}, std::move(all));
    }
    // A state that was merged into the model: [heads, value, key], and in GGUF [heads, key, value]
    // before RWKV-7.
    void initial_state(const std::string& to, const std::string& name) {
        const int64_t size = width_ / heads_;
        if (version_ == 7) return move(to, name, {heads_, size, size});
        const std::vector<float> values = values_of(name);
        if (std::ssize(values) != width_ * size)
            fail("tensor '", name, "' has ", values.size(), " values, expected ", width_ * size);
        std::vector<float> turned(values.size());
        const auto n = static_cast<std::size_t>(size);
        for (std::size_t i = 0; i < turned.size(); ++i) {
            const std::size_t head = i / (n * n), row = i / n % n, column = i % n;
            turned[i] = values[(head * n + column) * n + row];
        }
        put(to, {heads_, size, size}, std::move(turned));
    }
    // One value per channel, where the file may have one per head.
    void per_channel(const std::string& to, const std::string& name) {
        std::vector<float> values = values_of(name);
        if (std::ssize(values) == heads_ && heads_ != width_) {
            std::vector<float> all;
            for (const float value : values)
                all.insert(all.end(), static_cast<std::size_t>(width_ / heads_), value);
            values = std::move(all);
        }
        if (std::ssize(values) != width_)
            fail("tensor '", name, "' has ", values.size(), " values, expected ", width_, " or ",
                 heads_);
        put(to, {width_}, std::move(values));
    }

    std::string path_;
    std::shared_ptr<Owned> owned_;
    ByteReader reader_;
    std::map<std::string, Found> tensors_;  // ordered, as a file may choose names with equal hashes
    GgufHeader header_;
    int version_ = 0;
    int64_t width_ = 0, layers_ = 0, heads_ = 1;
    std::string source_, target_;
};

}  // namespace

std::shared_ptr<const ModelFile> open_ggmf(const std::string& path) {
    return GgmfParser(path).parse();
}

}  // namespace rwkv_edge
