// SPDX-License-Identifier: Apache-2.0
// Products with matrices by input: the kernels of the active level, the verb that shares them among
// threads, and whole models whose ffn.value lies so. ctest runs this once per level.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

const std::vector<int> kPercents = {0, 50, 88, 100};

// A matrix [inputs, outputs] and the inputs of some tokens, `percent` of them zero.
struct Case {
    MatmulCase weights;  // its rows are the inputs
    int64_t inputs, outputs, tokens;
    std::vector<float> x;
    std::vector<ActiveInput> active;
    std::vector<int64_t> counts;
    AlignedVector<std::byte> scratch;

    Case(Type type, int64_t n_in, int64_t n_out, int64_t n_tokens, int percent, Random& rng,
         bool exact = false)
        : weights(type, n_in, n_out, 1),
          inputs(n_in),
          outputs(n_out),
          tokens(n_tokens),
          x(static_cast<size_t>(n_tokens * n_in)),
          active(x.size()),
          counts(static_cast<size_t>(n_tokens)),
          scratch(kInputScratch) {
        if (exact)
            weights.fill_exactly(rng);
        else
            weights.fill_normally(rng);
        std::normal_distribution<float> normal;
        for (float& v : x) {
            if (random_int(rng, 0, 99) < percent) continue;
            v = exact ? static_cast<float>(random_int(rng, 1, 7)) : normal(rng);
        }
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t i = 0; i < inputs; ++i)
                if (at(t, i) != 0.0f)
                    active[static_cast<size_t>(t * inputs + counts[static_cast<size_t>(t)]++)] = {
                        static_cast<int32_t>(i), at(t, i)};
    }

    float at(int64_t t, int64_t i) const { return x[static_cast<size_t>(t * inputs + i)]; }
    std::string name() const { return weights.name() + ", " + std::to_string(tokens) + " tokens"; }
    InputMatmulArgs args(float* y, int64_t y_stride) {
        return {weights.row(0), weights.row_bytes(), 0,      outputs, active.data(),
                inputs,         counts.data(),       tokens, y,       y_stride,
                scratch.data()};
    }
    std::vector<float> dequantised() {
        std::vector<float> w(static_cast<size_t>(inputs * outputs));
        for (int64_t i = 0; i < inputs; ++i)
            type_info(weights.type)
                .dequantize(weights.row(i), &w[static_cast<size_t>(i * outputs)], outputs);
        return w;
    }
};

std::vector<Type> kernel_types() {
    std::vector<Type> types;
    for (const TypeInfo& info : all_types())
        if (kernels().input_matmul[static_cast<int>(info.type)] != nullptr)
            types.push_back(info.type);
    return types;
}

void multiply(const InputMatmulArgs& args, Type type) {
    kernels().input_matmul[static_cast<int>(type)](args);
}

std::vector<int64_t> widths(Type type) {
    if (is_super(type)) return {256, 768};
    return {32, 96, 128, 416};
}

// y must be the sum of x w: a chain of n products has n + 1 roundings at most.
template <class Weight>
void check_sums(const Case& c, const Weight& w, const float* y, const std::string& name) {
    for (int64_t t = 0; t < c.tokens; ++t)
        for (int64_t o = 0; o < c.outputs; ++o) {
            double right = 0, magnitude = 0;
            int64_t n = 0;
            for (int64_t i = 0; i < c.inputs; ++i) {
                const double term = double{c.at(t, i)} * w[static_cast<size_t>(i * c.outputs + o)];
                right += term;
                magnitude += std::fabs(term);
                n += c.at(t, i) != 0.0f;
            }
            const double bound = 1.01 * static_cast<double>(n + 1) * 0x1p-24 * magnitude;
            CHECK_CASE(std::fabs(y[t * c.outputs + o] - right) <= bound, name);
        }
}

}  // namespace

TEST(every_type_with_a_product_has_one_by_input) {
    for (const TypeInfo& info : all_types()) {
        const auto slot = static_cast<int>(info.type);
        CHECK_CASE((kernels().input_matmul[slot] == nullptr) == (kernels().matmul[slot] == nullptr),
                   info.name);
    }
}

TEST(exact_inputs_give_the_exact_answer) {
    Random rng(1);
    for (Type type : kernel_types())
        for (int64_t outputs : widths(type))
            for (int64_t tokens : {1, 2, 7, 64})
                for (int percent : kPercents) {
                    Case c(type, 75, outputs, tokens, percent, rng, true);
                    Guarded y(tokens * outputs);
                    std::fill_n(y.data(), tokens * outputs, 1.0f);
                    multiply(c.args(y.data(), outputs), type);
                    CHECK_CASE(y.intact(), c.name());
                    const std::vector<float> w = c.dequantised();
                    for (int64_t i = 0; i < tokens * outputs; ++i) {
                        double right = 1;  // it adds to what is there
                        for (int64_t r = 0; r < c.inputs; ++r)
                            right += double{c.at(i / outputs, r)} *
                                     w[static_cast<size_t>(r * outputs + i % outputs)];
                        CHECK_CASE(y[i] == static_cast<float>(right), c.name());
                    }
                }
}

TEST(rounding_errors_stay_within_their_bound) {
    Random rng(2);
    for (Type type : kernel_types())
        for (int64_t tokens : {1, 2, 7, 64})
            for (int percent : kPercents) {
                Case c(type, 200, is_super(type) ? 256 : 96, tokens, percent, rng);
                std::vector<float> y(static_cast<size_t>(tokens * c.outputs));
                multiply(c.args(y.data(), c.outputs), type);
                check_sums(c, c.dequantised(), y.data(), c.name());
            }
}

// The weights are those of the codec, so a type gives the bits of the same floats.
TEST(every_type_gives_the_bits_of_its_floats) {
    Random rng(3);
    for (Type type : kernel_types())
        for (int64_t tokens : {1, 7}) {
            Case c(type, 333, is_super(type) ? 512 : 160, tokens, 60, rng);
            const std::vector<float> w = c.dequantised();
            std::vector<float> y(static_cast<size_t>(tokens * c.outputs)), right = y;
            multiply(c.args(y.data(), c.outputs), type);
            InputMatmulArgs floats = c.args(right.data(), c.outputs);
            floats.w = w.data();
            floats.row_bytes = c.outputs * static_cast<int64_t>(sizeof(float));
            multiply(floats, Type::F32);
            for (size_t i = 0; i < y.size(); ++i) CHECK_CASE(same_bits(y[i], right[i]), c.name());
        }
}

TEST(cuts_in_columns_and_tokens_change_no_bit) {
    Random rng(4);
    for (Type type : kernel_types())
        for (int percent : kPercents) {
            const int64_t least = std::max<int64_t>(32, type_info(type).block_len);
            Case c(type, 150, 9 * least, 70, percent, rng);
            Guarded whole(c.tokens * c.outputs), parts(c.tokens * c.outputs);
            std::fill_n(whole.data(), c.tokens * c.outputs, 0.0f);
            std::fill_n(parts.data(), c.tokens * c.outputs, 0.0f);
            multiply(c.args(whole.data(), c.outputs), type);
            const InputMatmulArgs all = c.args(parts.data(), c.outputs);
            InputMatmulArgs args = all;
            for (int64_t t = 0; t < c.tokens; t += args.tokens) {
                args.tokens = std::min<int64_t>(t % 3 + 1, c.tokens - t);
                args.inputs = all.inputs + t * c.inputs;
                args.counts = all.counts + t;
                args.y = parts.data() + t * c.outputs;
                for (args.col_begin = 0; args.col_begin < c.outputs;
                     args.col_begin = args.col_end) {
                    args.col_end = std::min(args.col_begin * 2 + least, c.outputs);
                    multiply(args, type);
                }
            }
            CHECK_CASE(parts.intact(), c.name());
            for (int64_t i = 0; i < c.tokens * c.outputs; ++i)
                CHECK_CASE(same_bits(parts[i], whole[i]), c.name());
        }
}

TEST(only_the_columns_asked_for_are_written) {
    Random rng(5);
    for (Type type : kernel_types())
        for (int64_t tokens : {1, 5}) {
            const int64_t least = std::max<int64_t>(32, type_info(type).block_len);
            Case c(type, 40, 3 * least, tokens, 50, rng);
            const int64_t stride = c.outputs + 5;
            Guarded y(tokens * stride);
            InputMatmulArgs args = c.args(y.data(), stride);
            args.col_begin = least;
            args.col_end = 2 * least;
            multiply(args, type);
            CHECK_CASE(y.intact(), c.name());
            for (int64_t i = 0; i < tokens * stride; ++i) {
                const bool ours = i % stride >= least && i % stride < 2 * least;
                CHECK_CASE(ours || same_bits(y[i], Guarded::kCanary), c.name());
            }
        }
}

// All types, those without a kernel too; threads, and tokens in company or alone.
TEST(the_verb_gives_the_sums_on_any_number_of_threads) {
    Random rng(6);
    for (const TypeInfo& info : all_types())
        for (int percent : kPercents) {
            Case c(info.type, 416, 768, 7, percent, rng);
            for (int64_t i = 0; i < c.inputs; ++i)  // the scales of types that only we read
                for (int64_t b = 0; b < c.weights.blocks(); ++b) {
                    if (info.type == Type::Q2_K) c.weights.set_half(i, b, 82, 0.01f);
                    if (info.type == Type::Q2_K) c.weights.set_half(i, b, 80, 0.02f);
                    if (info.type == Type::Q3_K) c.weights.set_half(i, b, 108, 0.02f);
                }
            c.x[5] = -0.0f;  // a zero as well
            Tensor w{c.weights.row(0), info.type, c.inputs, c.outputs, true};
            std::vector<float> first;
            for (int threads : {1, 2, 3}) {
                const auto backend = make_cpu_backend(threads);
                const auto ops = backend->make_ops();
                std::vector<float> y(static_cast<size_t>(c.tokens * c.outputs)), alone = y;
                const MatmulJob job{.w = w, .x = {c.x.data()}, .y = y.data()};
                ops->matmul({&job, 1}, c.tokens);
                for (int64_t t = 0; t < c.tokens; ++t) {
                    const MatmulJob one{.w = w,
                                        .x = {c.x.data() + t * c.inputs},
                                        .y = alone.data() + t * c.outputs};
                    ops->matmul({&one, 1}, 1);
                }
                CHECK_CASE(y == alone, c.name());
                if (first.empty()) first = y;
                CHECK_CASE(y == first, c.name());
            }
            check_sums(c, c.dequantised(), first.data(), c.name());
        }
}

// What follows a product is the same as ever; here beside one of the usual kind.
TEST(the_verb_finishes_and_shares_a_region) {
    Random rng(7);
    Case c(Type::F32, 64, 160, 3, 50, rng);
    const std::vector<float> w = c.dequantised();
    std::vector<float> transposed(w.size());
    for (int64_t i = 0; i < c.inputs; ++i)
        for (int64_t o = 0; o < c.outputs; ++o)
            transposed[static_cast<size_t>(o * c.inputs + i)] =
                w[static_cast<size_t>(i * c.outputs + o)];
    const size_t n = static_cast<size_t>(c.tokens * c.outputs);
    std::vector<float> bias(static_cast<size_t>(c.outputs), 0.25f), gate(n, 3.0f);
    std::vector<float> y[2] = {std::vector<float>(n), std::vector<float>(n)};
    std::vector<float> residual[2] = {std::vector<float>(n, 1.0f), std::vector<float>(n, 1.0f)};
    const auto backend = make_cpu_backend(2);
    MatmulJob jobs[2];
    for (size_t i = 0; i < 2; ++i)
        jobs[i] = {.w = i == 0 ? Tensor{transposed.data(), Type::F32, c.outputs, c.inputs}
                               : Tensor{w.data(), Type::F32, c.inputs, c.outputs, true},
                   .x = {c.x.data()},
                   .y = y[i].data(),
                   .activate = Activate::Sigmoid,
                   .bias = bias.data(),
                   .gate = gate.data(),
                   .residual = residual[i].data(),
                   .scale = 0.5f};
    backend->make_ops()->matmul(jobs, c.tokens);
    for (size_t i = 0; i < n; ++i) {
        CHECK(std::fabs(residual[0][i] - residual[1][i]) < 1e-5);
        CHECK(residual[1][i] != 1.0f);
    }
}

TEST(an_input_that_is_no_number_is_not_taken_for_zero) {
    Random rng(8);
    Case c(Type::Q8_0, 64, 32, 1, 100, rng);
    c.x[40] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> y(32);
    const MatmulJob job{
        .w = {c.weights.row(0), Type::Q8_0, 64, 32, true}, .x = {c.x.data()}, .y = y.data()};
    make_cpu_backend(1)->make_ops()->matmul({&job, 1}, 1);
    for (float v : y) CHECK(std::isnan(v));
}

// --- models ---

namespace {

// ffn.value of every layer transposed, as `convert --sparse-ffn` writes it.
GgufBytes by_input(GgufBytes file) {
    for (GgufBytes::Tensor& tensor : file.tensors) {
        const size_t end = tensor.name.find("channel_mix_value.weight");
        if (end == std::string::npos) continue;
        tensor.name = tensor.name.substr(0, end) + "channel_mix_value_t.weight";
        const size_t cols = tensor.dims[0], rows = tensor.dims[1];
        const std::vector<float> x = tensor.x;
        for (size_t i = 0; i < x.size(); ++i) tensor.x[i % cols * rows + i / cols] = x[i];
        std::swap(tensor.dims[0], tensor.dims[1]);
    }
    return file;
}

std::vector<float> logits_of(const std::vector<std::byte>& bytes, int threads, size_t chunk) {
    Session session(open_model(bytes, threads));
    std::vector<int32_t> ids(70);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7 % 40);
    std::vector<float> logits(ids.size() * 40);
    for (size_t at = 0; at < ids.size(); at += chunk)
        session.feed(std::span(ids).subspan(at, std::min(chunk, ids.size() - at)),
                     Session::Logits::All, logits.data() + at * 40);
    return logits;
}

}  // namespace

// With floats nothing differs but the order of sums of 96 terms. The bound is what that can do to
// one layer's output, 97 roundings of the sum of magnitudes, and what two layers and the head,
// whose gains are about one, make of it: a factor of ten is kept for them.
TEST(a_model_by_input_is_the_model) {
    for (const std::string& version : kTinyVersions) {
        const GgufBytes file = tiny_model(version, 1);
        const std::vector<std::byte> usual = file.bytes(), sparse = by_input(file).bytes();
        const std::vector<float> right = logits_of(usual, 1, 70), found = logits_of(sparse, 1, 70);
        float largest = 0.0f;
        for (float v : right) largest = std::max(largest, std::fabs(v));
        for (size_t i = 0; i < right.size(); ++i)
            CHECK_CASE(std::fabs(found[i] - right[i]) < 10 * 97 * 0x1p-24f * largest, version);
        for (int threads : {1, 3})
            for (size_t chunk : {1u, 7u, 64u})
                CHECK_CASE(logits_of(sparse, threads, chunk) == found, version);
    }
}

TEST(both_forms_at_once_and_wrong_shapes_are_refused) {
    for (const std::string& version : kTinyVersions) {
        const GgufBytes usual = tiny_model(version, 1), sparse = by_input(usual);
        const std::string name = "blk.1.channel_mix_value";
        GgufBytes both = usual;
        both.tensors.push_back(by_input(usual).at(name + "_t.weight"));
        std::vector<std::byte> bytes = both.bytes();
        CHECK_THROWS(FormatError,
                     "tiny.gguf: tensors '" + name + ".weight' and '" + name +
                         "_t.weight' are the same matrix",
                     open_model(bytes, 1));
        GgufBytes turned = sparse;
        std::swap(turned.at(name + "_t.weight").dims[0], turned.at(name + "_t.weight").dims[1]);
        bytes = turned.bytes();
        CHECK_THROWS(FormatError,
                     "tensor '" + name + "_t.weight' has shape [64, 96], expected [96, 64]",
                     open_model(bytes, 1));
        GgufBytes one = usual;  // one layer so, the other so
        one.drop(name + ".weight");
        one.tensors.push_back(by_input(usual).at(name + "_t.weight"));
        bytes = one.bytes();
        (void)open_model(bytes, 1);
    }
}
