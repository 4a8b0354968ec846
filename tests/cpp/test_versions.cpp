// SPDX-License-Identifier: Apache-2.0
// What a file of each version must hold: every tensor, of the right shape, and nothing else; the
// forms that say the same; the states that sessions begin with.
#include "base/error.h"
#include "check.h"
#include "quant/codecs.h"
#include "session.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

using Floats = std::vector<float>;

// Owns the bytes that its model lies in.
struct Opened {
    explicit Opened(const GgufBytes& file) : bytes(file.bytes()), runner(open_model(bytes, 1)) {}

    Floats logits() const {
        const int32_t ids[] = {1, 39, 7, 7, 0, 22, 3};
        Floats out(std::size(ids) * 40);
        Session(runner).feed(ids, Session::Logits::All, out.data());
        return out;
    }

    std::vector<std::byte> bytes;
    std::shared_ptr<Runner> runner;
};

// With every tensor that its version can have.
GgufBytes full_model(const std::string& version) {
    return tiny_model(
        version, 1,
        {.width = 32, .head_size = 16, .ffn = 32, .vocab = 8, .rank = 4, .state = version != "4"});
}

// The one tensor of a version that, when it goes, makes the rest look like another version.
std::string blamed(const std::string& version, const std::string& dropped) {
    if (version == "5.2" && dropped == "blk.0.time_mix_gate.weight")
        return "blk.0.time_mix_lerp_fused.weight";  // 5.0 has three mixes
    if (version == "6" && dropped.ends_with("time_mix_lerp_fused.weight"))
        return dropped.substr(0, 6) + "time_mix_lerp_w.weight";  // older files have five
    if (dropped == "blk.0.time_mix_state.weight") return "blk.1.time_mix_state.weight";
    return dropped;
}

void fill_zero(Floats& x, std::size_t from, std::size_t n) {
    std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(from), n, 0.0f);
}

}  // namespace

TEST(every_tensor_must_be_there) {
    for (const std::string& version : kTinyVersions) {
        const GgufBytes whole = full_model(version);
        for (const GgufBytes::Tensor& tensor : whole.tensors) {
            GgufBytes file = whole;
            file.drop(tensor.name);
            CHECK_THROWS(FormatError, "tiny.gguf: tensor '" + blamed(version, tensor.name) + "' ",
                         Opened(file));
        }
    }
}

TEST(every_tensor_has_its_shape) {
    for (const std::string& version : kTinyVersions) {
        const GgufBytes whole = full_model(version);
        for (const GgufBytes::Tensor& tensor : whole.tensors) {
            GgufBytes wide = whole;
            GgufBytes::Tensor& wider = wide.at(tensor.name);
            wider.x.resize(wider.x.size() / wider.dims[0] * (wider.dims[0] + 1));
            wider.dims[0] += 1;
            CHECK_THROWS(FormatError, "tiny.gguf: tensor '" + tensor.name + "' has shape [",
                         Opened(wide));
            GgufBytes tall = whole;  // a dimension more, which is not of size 1
            GgufBytes::Tensor& taller = tall.at(tensor.name);
            taller.x.resize(2 * taller.x.size());
            taller.dims.back() *= 2;
            CHECK_THROWS(FormatError, "has shape [", Opened(tall));
        }
    }
}

// A column of n numbers is no row of n numbers once they are packed in blocks.
TEST(blocks_lie_along_the_columns) {
    for (const auto& [version, name] : {std::pair{"6", "decay_w2"}, std::pair{"7", "a2"}}) {
        GgufBytes file = tiny_model(version, 1, {.rank = 1});
        GgufBytes::Tensor& column = file.at(std::string("blk.1.time_mix_") + name + ".weight");
        CHECK((column.dims == std::vector<uint64_t>{1, 64}));
        column.dims = {64};
        (void)Opened(file);  // floats may lie either way
        column.type = Type::Q8_0;
        CHECK_THROWS(FormatError, "tensor '" + column.name + "' has shape [64], expected [64, 1]",
                     Opened(file));
    }
}

// Halves are widened exactly and summed in the order of floats.
TEST(a_file_of_halves_is_one_of_the_same_floats) {
    for (const std::string& version : kTinyVersions)
        for (const Type type : {Type::F16, Type::BF16}) {
            GgufBytes halves = tiny_model(version, 1, {.state = version != "4"});
            for (GgufBytes::Tensor& tensor : halves.tensors) tensor.type = type;
            GgufBytes floats = halves;
            for (GgufBytes::Tensor& tensor : floats.tensors) {
                tensor.type = Type::F32;
                for (float& x : tensor.x)
                    x = type == Type::F16 ? half_to_float(float_to_half(x))
                                          : bfloat16_to_float(float_to_bfloat16(x));
            }
            CHECK_CASE(Opened(halves).logits() == Opened(floats).logits(), version);
        }
}

TEST(no_tensor_may_be_left_over) {
    for (const std::string& version : kTinyVersions)
        for (const char* name : {"blk.2.attn_norm.weight", "blk.0.time_mix_x.weight"}) {
            GgufBytes file = tiny_model(version, 1);
            file.tensor(name, {64}, Floats(64));
            CHECK_THROWS(FormatError, std::string("'") + name + "' [64] is not part of",
                         Opened(file));
        }
}

TEST(a_file_of_one_version_is_none_of_another) {
    for (const std::string& version : kTinyVersions)
        for (const char* arch : {"rwkv4", "rwkv5", "rwkv6", "rwkv7", "rwkv7a"}) {
            if (std::string("rwkv") + (version[0] == '5' ? "5" : version) == arch) continue;
            GgufBytes file = tiny_model(version, 1);
            const std::string prefix = std::string(arch) + ".";
            file.text("general.architecture", arch);
            for (const auto& [name, value] :
                 {std::pair{"block_count", 2u}, std::pair{"embedding_length", 64u},
                  std::pair{"feed_forward_length", 96u}, std::pair{"wkv.head_size", 32u}})
                file.key(prefix + name, ValueType::U32, value);
            file.key(prefix + "attention.layer_norm_epsilon", ValueType::F32, 1e-5f);
            CHECK_THROWS(FormatError, "tiny.gguf: tensor 'blk.0.", Opened(file));
        }
}

TEST(an_unknown_version_is_named_beside_the_known_ones) {
    GgufBytes file = tiny_model("7", 1);
    file.text("general.architecture", "rwkv8");
    CHECK_THROWS(UnsupportedError, "architecture 'rwkv8', expected one of rwkv4, rwkv5",
                 Opened(file));
}

TEST(the_head_size_must_divide_the_width) {
    for (const char* version : {"5", "6", "7", "7a"}) {
        const std::string key = std::string("rwkv") + version + ".wkv.head_size";
        GgufBytes file = tiny_model(version[0] == '5' ? "5.2" : version, 1);
        for (const auto& [size, expected] :
             {std::pair{20u, "a multiple of 8"}, std::pair{24u, "a divisor of the width 64"},
              std::pair{0u, "8 to 1024"}, std::pair{128u, "a divisor of the width 64"}}) {
            file.key(key, ValueType::U32, size);
            CHECK_THROWS(FormatError, "key '" + key + "' is " + std::to_string(size), Opened(file));
            CHECK_THROWS(FormatError, expected, Opened(file));
        }
    }
}

TEST(a_first_layer_may_carry_dummy_value_mixes) {
    for (const char* version : {"7", "7a"}) {
        GgufBytes file = tiny_model(version, 1);
        const Floats expected = Opened(file).logits();
        for (const char* name : {"v0", "v1", "v2"})  // of any shape: llama.cpp copies a0, a1, a2
            file.tensor(std::string("blk.0.time_mix_") + name + ".weight", {3}, Floats(3));
        CHECK(Opened(file).logits() == expected);
    }
}

TEST(mixes_of_version_6_may_lie_apart) {
    GgufBytes file = tiny_model("6", 1);
    const Floats expected = Opened(file).logits();
    for (const char* block : {"blk.0.", "blk.1."}) {
        const std::string mix = std::string(block) + "time_mix_lerp_";
        const Floats fused = file.at(mix + "fused.weight").x;
        file.drop(mix + "fused.weight");
        auto from = fused.begin();
        for (const char* letter : {"w", "k", "v", "r", "g"}) {
            file.tensor(mix + letter + ".weight", {1, 1, 64}, Floats(from, from + 64));
            from += 64;
        }
    }
    CHECK(Opened(file).logits() == expected);
    file.drop("blk.1.time_mix_lerp_v.weight");
    CHECK_THROWS(FormatError, "'blk.1.time_mix_lerp_v.weight' is missing", Opened(file));
}

// Powers of two: the undone division changes no bit.
TEST(divided_outputs_of_version_6_are_multiplied_back) {
    const GgufBytes plain = tiny_model("6", 1, {.layers = 5});
    const Floats expected = Opened(plain).logits();
    for (uint32_t every : {1u, 2u, 3u, 6u}) {
        GgufBytes file = plain;
        file.key("rwkv6.rescale_every_n_layers", ValueType::U32, every);
        for (uint32_t i = 0; i < 5; ++i)
            for (const char* name : {".time_mix_output.weight", ".channel_mix_value.weight"})
                for (float& w : file.at("blk." + std::to_string(i) + name).x)
                    w = std::ldexp(w, -static_cast<int>(i / every));
        CHECK(Opened(file).logits() == expected);
    }
    GgufBytes file = plain;
    file.key("rwkv6.rescale_every_n_layers", ValueType::U32, 0u);
    CHECK(Opened(file).logits() == expected);
}

TEST(a_rescale_key_that_makes_no_sense_is_refused) {
    GgufBytes file = tiny_model("6", 1);
    const std::string key = "rwkv6.rescale_every_n_layers";
    file.key(key, ValueType::I32, int32_t{-1});
    CHECK_THROWS(FormatError, "key '" + key + "' is -1, expected 0 to", Opened(file));
    file.key(key, ValueType::F32, 2.0f);
    CHECK_THROWS(FormatError, "key '" + key + "' is of type float32", Opened(file));
    file = tiny_model("6", 1, {.width = 32, .layers = 61, .ffn = 32, .rank = 1});
    file.key(key, ValueType::U32, 1u);  // 2^60 is too much
    CHECK_THROWS(FormatError, "key '" + key + "' is 1, expected 0 or at least 2", Opened(file));
}

TEST(parts_of_a_state_and_what_they_begin_with) {
    for (const std::string& version : kTinyVersions) {
        const Opened opened(tiny_model(version, 1));
        std::vector<std::string> names;
        std::size_t size = 0;
        for (const StatePart& part : opened.runner->model().state_parts()) {
            names.push_back(part.name);
            size += static_cast<std::size_t>(part.size());
            CHECK((part.shape == (part.name == "wkv" ? std::vector<int64_t>{2, 32, 32}
                                                     : std::vector<int64_t>{64})));
        }
        const bool is_4 = version == "4";
        CHECK((names == (is_4 ? std::vector<std::string>{"att_shift", "aa", "bb", "pp", "ffn_shift"}
                              : std::vector<std::string>{"att_shift", "wkv", "ffn_shift"})));
        CHECK(size == (is_4 ? 5 * 64 : 2 * 64 + 64 * 32));
        Floats fresh = state_of(Session(opened.runner));
        CHECK(fresh.size() == 2 * size);
        for (std::size_t layer = 0; is_4 && layer < 2; ++layer) {
            const std::size_t pp = layer * size + 3 * 64;
            CHECK(fresh[pp] == -1e30f && fresh[pp + 63] == -1e30f);
            fill_zero(fresh, pp, 64);
        }
        CHECK_CASE(fresh == Floats(fresh.size(), 0.0f), version);
    }
}

TEST(sessions_begin_with_the_state_of_the_file) {
    for (const std::string& version : kTinyVersions) {
        if (version == "4") continue;
        GgufBytes file = tiny_model(version, 1, {.state = true});
        const Opened learnt(file);
        Session session(learnt.runner);
        Floats state = state_of(session);
        const std::size_t matrices = 64 * 32, size = matrices + 2 * 64;
        for (std::size_t layer = 0; layer < 2; ++layer) {
            const std::string name = "blk." + std::to_string(layer) + ".time_mix_state.weight";
            const Floats& right = file.at(name).x;
            CHECK(std::equal(right.begin(), right.end(),
                             state.begin() + static_cast<std::ptrdiff_t>(layer * size + 64)));
            fill_zero(state, layer * size + 64, matrices);
            file.drop(name);
        }
        CHECK(state == Floats(state.size(), 0.0f));  // the rest begins with zeros

        // A model without that state, given it, says the same; left alone, something else.
        const Opened plain(file);
        const int32_t ids[] = {1, 39, 7};
        Floats expected(40), given(40), without(40);
        Session resumed(plain.runner), fresh(plain.runner);
        resumed.set_state(state_of(session));
        session.feed(ids, Session::Logits::Last, expected.data());
        resumed.feed(ids, Session::Logits::Last, given.data());
        fresh.feed(ids, Session::Logits::Last, without.data());
        CHECK_CASE(given == expected && without != expected, version);
        session.reset();
        session.feed(ids, Session::Logits::Last, given.data());
        CHECK_CASE(given == expected, version);
    }
}
