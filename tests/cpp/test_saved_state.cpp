// SPDX-License-Identifier: Apache-2.0
// States in files. That Python writes the same bytes and reads these, test_c_states.py shows.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "base/error.h"
#include "base/system.h"
#include "check.h"
#include "io/fingerprint.h"
#include "saved_state.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

const std::string kMark(64, 'a'), kOther(64, 'b');

// A file of this test, removed at the end.
class Path {
public:
    Path()
        : path_(std::filesystem::temp_directory_path() / cat("rwkv-edge-state-", process_id())) {}
    ~Path() { std::filesystem::remove(path_); }
    std::string text() const { return path_.string(); }
    void put(const std::vector<std::byte>& bytes) const {
        std::ofstream(path_, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()),
                   static_cast<std::streamsize>(bytes.size()));
    }

private:
    std::filesystem::path path_;
};

std::shared_ptr<const Model> model_of(const std::string& version) {
    static const auto bytes = [] {
        std::map<std::string, std::vector<std::byte>> all;
        for (const std::string& each : kTinyVersions) all[each] = tiny_model(each, 3).bytes();
        return all;
    }();
    return Model::open(ModelFile::parse(bytes.at(version), "/models/tiny.gguf"),
                       make_backend("cpu", 1));
}

std::vector<float> random(int64_t n) {
    static std::mt19937 bits(7);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = normal(bits);
    return values;
}

// A saved state of the RWKV-7 model, in the form of version 1, which names the parts only.
GgufBytes old_state(const Model& model) {
    GgufBytes file;
    file.text("rwkv_edge.state.arch", "rwkv7");
    const uint64_t layers = 2;
    for (const StatePart& part : model.state_parts()) {
        std::vector<uint64_t> dims(part.shape.rbegin(), part.shape.rend());
        dims.push_back(layers);
        file.tensor(part.name, dims, random(part.size() * 2));
    }
    return file;
}

}  // namespace

TEST(what_is_saved_is_loaded) {
    const Path path;
    for (const std::string& version : kTinyVersions) {
        const auto model = model_of(version);
        SavedState saved{.state = random(model->state_size()), .output = random(64), .tokens = 9};
        save_state(path.text(), *model, kMark, saved);
        {  // Windows does not replace a file that is mapped
            const auto file = ModelFile::open(path.text());
            CHECK(file->text("rwkv_edge.state.arch") == model->config().arch);
            CHECK(file->text("rwkv_edge.state.model") == "tiny.gguf");
        }
        SavedState found = load_state(path.text(), *model, kMark);
        CHECK_CASE(found.state == saved.state && found.output == saved.output, version);
        CHECK_CASE(found.tokens == 9, version);
        saved.output.clear();
        saved.tokens.reset();
        save_state(path.text(), *model, kMark, saved);
        found = load_state(path.text(), *model, kMark);
        CHECK_CASE(found.state == saved.state && found.output.empty() && !found.tokens, version);
    }
}

TEST(a_state_belongs_to_its_model) {
    const Path path;
    const auto model = model_of("7");
    save_state(path.text(), *model, kMark, {.state = random(model->state_size())});
    CHECK_THROWS(FormatError, path.text() + ": a state of another model, or of the same in other",
                 load_state(path.text(), *model, kOther));
    CHECK(load_state(path.text(), *model, "").state.size() ==
          static_cast<std::size_t>(model->state_size()));
    CHECK_THROWS(FormatError, ": a state of rwkv7 does not fit /models/tiny.gguf, which is rwkv6",
                 load_state(path.text(), *model_of("6"), ""));
}

TEST(old_and_rounded_states_are_read) {
    const Path path;
    const auto model = model_of("7");
    GgufBytes file = old_state(*model);
    path.put(file.bytes());
    const SavedState exact = load_state(path.text(), *model, kMark);
    CHECK(exact.output.empty() && !exact.tokens);
    for (auto& tensor : file.tensors) tensor.type = Type::F16;
    path.put(file.bytes());
    const SavedState rounded = load_state(path.text(), *model, kMark);
    for (std::size_t i = 0; i < exact.state.size(); ++i)
        CHECK(std::abs(rounded.state[i] - exact.state[i]) <=
              std::max(std::abs(exact.state[i]) / 2048, 3.0e-8f));
}

TEST(a_tuned_state_is_laid_into_an_empty_one) {
    const Path path;
    for (const std::string version : {"5.2", "6", "7"}) {
        const auto model = model_of(version);
        GgufBytes file;
        file.text("rwkv_edge.state.arch", "time_state");
        const std::vector<float> x = random(2 * 2 * 32 * 32);  // [layer, head, value, key]
        file.tensor("time_state", {32, 32, 2, 2}, x);
        path.put(file.bytes());
        const SavedState found = load_state(path.text(), *model, kMark);
        CHECK(found.output.empty() && found.tokens == 0);
        std::size_t others = 0, at = 0;
        for (std::size_t layer = 0; layer < 2; ++layer)
            for (const StatePart& part : model->state_parts())
                for (std::size_t i = 0; i < static_cast<std::size_t>(part.size()); ++i, ++at) {
                    std::size_t from = i;
                    if (version != "7") from = i / 1024 * 1024 + i % 32 * 32 + i / 32 % 32;
                    if (part.name == "wkv")
                        CHECK(found.state[at] == x[layer * 2048 + from]);
                    else
                        others += found.state[at] != 0.0f;
                }
        CHECK_CASE(others == 0 && at == found.state.size(), version);
        CHECK_THROWS(FormatError, ": a tuned state, and /models/tiny.gguf is rwkv4, which has no",
                     load_state(path.text(), *model_of("4"), kMark));
        file.tensors.front().dims = {32, 64, 1, 2};
        path.put(file.bytes());
        CHECK_THROWS(
            FormatError,
            ": tensor time_state is f32 [2, 1, 64, 32], expected f32 or f16 [2, 2, 32, 32]",
            load_state(path.text(), *model, kMark));
    }
}

TEST(what_is_no_state_is_refused) {
    const Path path;
    const auto model = model_of("7");
    CHECK_THROWS(FileError, path.text() + ": ", load_state(path.text(), *model, kMark));
    const auto refused = [&](const std::string& message, auto change) {
        GgufBytes file = old_state(*model);
        change(file);
        path.put(file.bytes());
        CHECK_THROWS(FormatError, path.text() + ": " + message,
                     load_state(path.text(), *model, kMark));
    };
    const std::string keys = "rwkv_edge.state.";
    refused("not a saved state (key rwkv_edge.state.arch is missing)",
            [](GgufBytes& file) { file = tiny_model("7", 1); });
    refused("key rwkv_edge.state.arch is uint32, expected string",
            [&](GgufBytes& file) { file.key(keys + "arch", ValueType::U32, uint32_t{7}); });
    refused("a saved state of version 0, expected 1 to 2",
            [&](GgufBytes& file) { file.key(keys + "version", ValueType::U32, uint32_t{0}); });
    refused("key rwkv_edge.state.tokens is int32, expected uint64",
            [&](GgufBytes& file) { file.key(keys + "tokens", ValueType::I32, int32_t{4}); });
    refused("key rwkv_edge.state.tokens is above 2^63", [&](GgufBytes& file) {
        file.key(keys + "tokens", ValueType::U64, std::numeric_limits<uint64_t>::max());
    });
    for (const std::string& mark : {std::string(63, 'a'), std::string(64, 'A'), std::string()})
        refused(cat("key rwkv_edge.state.fingerprint has ", mark.size(), " bytes, expected 64 hex"),
                [&](GgufBytes& file) { file.text(keys + "fingerprint", mark); });
    refused("tensor wkv is missing, expected [2, 2, 32, 32] for /models/tiny.gguf",
            [](GgufBytes& file) { file.drop("wkv"); });
    refused("4 tensors, expected 3 parts of a state of rwkv7, and perhaps the output",
            [](GgufBytes& file) { file.tensor("more", {64}, random(64)); });
    refused("tensor att_shift is f32 [1, 64], expected f32 or f16 [2, 64]", [](GgufBytes& file) {
        file.at("att_shift").dims = {64, 1};
        file.at("att_shift").x.resize(64);
    });
    refused("tensor ffn_shift is q8_0 [2, 64], expected f32 or f16 [2, 64]",
            [](GgufBytes& file) { file.at("ffn_shift").type = Type::Q8_0; });
    refused("tensor wkv holds NaN or infinity",
            [](GgufBytes& file) { file.at("wkv").x.back() = INFINITY; });
    refused("tensor output is f32 [32], expected f32 [64]",
            [](GgufBytes& file) { file.tensor("output", {32}, random(32)); });
    refused("tensor output of a last token, and 0 tokens", [&](GgufBytes& file) {
        file.tensor("output", {64}, random(64));
        file.key(keys + "tokens", ValueType::U64, uint64_t{0});
    });
    path.put(std::vector<std::byte>(100));
    CHECK_THROWS(FormatError, ": not a GGUF file", load_state(path.text(), *model, kMark));
    GgufBytes later = old_state(*model);
    later.key(keys + "version", ValueType::U32, uint32_t{3});
    path.put(later.bytes());
    CHECK_THROWS(UnsupportedError, ": a saved state of version 3, expected 1 to 2; a later",
                 load_state(path.text(), *model, kMark));
}

TEST(only_a_state_is_replaced) {
    const Path path;
    const auto model = model_of("7");
    const SavedState saved{.state = random(model->state_size())};
    for (const std::vector<std::byte>& bytes :
         {old_state(*model).bytes(), std::vector<std::byte>()}) {
        path.put(bytes);
        save_state(path.text(), *model, kMark, saved);
        CHECK(load_state(path.text(), *model, kMark).state == saved.state);
    }
    for (const std::vector<std::byte>& bytes :
         {tiny_model("7", 1).bytes(), std::vector<std::byte>(10)}) {
        path.put(bytes);
        CHECK_THROWS(FileError, path.text() + ": the file is no saved state, and is not replaced",
                     save_state(path.text(), *model, kMark, saved));
        CHECK(std::filesystem::file_size(path.text()) == bytes.size());
    }
    SavedState wrong = saved;
    wrong.state.back() = NAN;
    CHECK_THROWS(std::invalid_argument, ": this state holds NaN or infinity",
                 save_state(path.text(), *model, kMark, wrong));
    CHECK_THROWS(FileError,
                 path.text() + "/a: ", save_state(path.text() + "/a", *model, kMark, saved));
}

// By Python's hashlib and repr, on every system; tests/python/test_states.py does that for others.
TEST(a_fingerprint_is_the_same_everywhere) {
    GgufBytes file;
    file.text("general.architecture", "own");
    file.text("own.text", "some");
    file.key("own.whole", ValueType::I32, int32_t{-12});
    int i = 0;
    for (const double value : {1e-5, 0.1, 64e-5, 3.0, 123456.75, 1e15, 1e16, 1.5e300, 5e-324,
                               0x1p-24, 0x1p-44, 0x1p-97, 0x1.fp122})
        file.key(cat("own.number", i++), ValueType::F64, value);
    file.key("own.single", ValueType::F32, 1e-5f);
    std::vector<float> small(4), large(4096);
    for (std::size_t at = 0; at < large.size(); ++at) large[at] = static_cast<float>(at);
    file.tensor("b", {64, 64}, large);
    file.tensor("a", {4}, small);
    CHECK(fingerprint(*ModelFile::parse(file.bytes(), "name")) ==
          "fc112a4ccf4915f9bc1da88f515aaddd35478c54c6f89d1127ac0adee90b2dfc");
}
