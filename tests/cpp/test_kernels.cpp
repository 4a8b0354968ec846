// SPDX-License-Identifier: Apache-2.0
// The vector kernels of the active level; products are in test_matmul.cpp. ctest runs this once per
// level.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "check.h"
#include "kernels/dispatch.h"
#include "kernels/logit_weight.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

using Floats = std::vector<float>;

// Vectors of the model: multiples of eight, as the width and the head size are.
const std::vector<int64_t> kLengths = {8, 16, 24, 32, 64, 72, 104, 768, 2560};

Floats integers(Random& rng, int64_t n, int limit = 7) {
    Floats out(static_cast<size_t>(n));
    for (float& v : out) v = static_cast<float>(random_int(rng, -limit, limit));
    return out;
}

Floats normals(Random& rng, int64_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    Floats out(static_cast<size_t>(n));
    for (float& v : out) v = normal(rng);
    return out;
}

Guarded guarded(const Floats& values) {
    Guarded out(static_cast<int64_t>(values.size()));
    std::copy(values.begin(), values.end(), out.data());
    return out;
}

// `kernel` works on y in place; every element must come out as `right` says, to the bit.
void check_exact(const Floats& input, const std::function<void(float*)>& kernel,
                 const std::function<float(size_t)>& right) {
    Guarded y = guarded(input);
    kernel(y.data());
    CHECK(y.intact());
    for (size_t i = 0; i < input.size(); ++i)
        CHECK_CASE(y[static_cast<int64_t>(i)] == right(i), std::to_string(input.size()));
}

// Rows of weights of which each but one is 0, that one being 1: what the products with them are,
// the other side is. Of a block type without an offset, d = 1 everywhere.
std::vector<BlockQ8_0> one_hot(size_t n) {
    std::vector<BlockQ8_0> rows(n * n / kBlock, BlockQ8_0{float_to_half(1.0f), {}});
    for (size_t k = 0; k < n; ++k) rows[(k * n + k) / kBlock].q[k % kBlock] = 1;
    return rows;
}

// Rows of which each adds up one block: d = 0 and m = 1 there.
std::vector<BlockQ4_1> block_sums(size_t blocks) {
    std::vector<BlockQ4_1> rows(blocks * blocks, BlockQ4_1{});
    for (size_t b = 0; b < blocks; ++b) rows[b * blocks + b].m = float_to_half(1.0f);
    return rows;
}

// One token, rounded into a row with a guard on both sides, times rows of blocks.
struct Products {
    Floats y;
    bool intact;
};
template <class Block>
Products products_of_rounded(Type type, const std::vector<Block>& w, const Floats& x) {
    constexpr size_t kGuard = 64;
    const auto cols = static_cast<int64_t>(x.size());
    const int64_t bytes = kernels().rounded_bytes(cols);
    CHECK(bytes % 64 == 0);
    AlignedVector<uint8_t> row(static_cast<size_t>(bytes) + 2 * kGuard, 0x5a);
    kernels().round_activations(x.data(), cols, row.data() + kGuard);
    AlignedVector<uint8_t> scratch(static_cast<size_t>(matmul_scratch_bytes(cols)));
    const size_t rows = w.size() / (x.size() / kBlock);
    Products out{Floats(rows), true};
    kernels().matmul[static_cast<int>(type)](
        {w.data(), type_bytes(type, cols), cols, 0, static_cast<int64_t>(rows), row.data() + kGuard,
         bytes, 1, out.y.data(), static_cast<int64_t>(rows), scratch.data(), kernels().ahead});
    for (size_t i = 0; i < kGuard; ++i)
        out.intact = out.intact && row[i] == 0x5a && row[row.size() - 1 - i] == 0x5a;
    return out;
}

// Every value and every sum that the level makes of x must be those of the reference, to the bit.
void check_rounding(const Floats& x) {
    const RoundedReference right(x);
    const Products values = products_of_rounded(Type::Q8_0, one_hot(x.size()), x);
    const Products sums = products_of_rounded(Type::Q4_1, block_sums(right.scale.size()), x);
    CHECK(values.intact && sums.intact);
    for (size_t k = 0; k < x.size(); ++k)
        CHECK(values.y[k] == right.scale[k / kBlock] * static_cast<float>(right.q[k]));
    for (size_t b = 0; b < right.scale.size(); ++b) {
        const auto first = right.q.begin() + static_cast<int64_t>(b * kBlock);
        CHECK(sums.y[b] ==
              right.scale[b] * static_cast<float>(std::accumulate(first, first + kBlock, 0)));
    }
}

double sigmoid64(double x) { return 1 / (1 + std::exp(-x)); }

struct Activation64 {
    const char* name;
    void (*kernel)(float* x, int64_t n);
    double (*right)(double x);
    double (*roundings)(double x);  // the relative error it may have, in units of 2^-24
};

std::vector<Activation64> activations() {
    const auto four = [](double) { return 4.0; };
    return {{"sigmoid", kernels().sigmoid, sigmoid64, four},
            {"silu", kernels().silu, [](double x) { return x * sigmoid64(x); },
             [](double) { return 5.0; }},
            {"tanh", kernels().tanh, [](double x) { return std::tanh(x); }, four},
            // An error of the inner exp is one of the outer exponent.
            {"decay6", kernels().decay6, [](double x) { return std::exp(-std::exp(x)); },
             [](double x) { return 4 + 4 * std::exp(x); }},
            {"decay7", kernels().decay7,
             [](double x) { return std::exp(-std::exp(-0.5) * sigmoid64(x)); }, four}};
}

}  // namespace

TEST(elementwise_kernels_are_exact) {
    Random rng(1);
    const Kernels& k = kernels();
    for (int64_t n : kLengths) {
        const Floats x = integers(rng, n), z = integers(rng, n), mix = integers(rng, n);
        check_exact(
            z, [&](float* y) { k.add(x.data(), n, y); }, [&](size_t i) { return z[i] + x[i]; });
        // These may work in place.
        check_exact(
            x, [&](float* y) { k.mul(y, z.data(), n, y); }, [&](size_t i) { return x[i] * z[i]; });
        check_exact(
            x, [&](float* y) { k.lerp(y, z.data(), mix.data(), n, y); },
            [&](size_t i) { return x[i] + (z[i] - x[i]) * mix[i]; });
    }
}

TEST(relu2_is_exact_for_any_length) {
    Random rng(7);
    for (int64_t n = 1; n <= 41; ++n) {
        const Floats z = integers(rng, n);
        check_exact(
            z, [&](float* y) { kernels().relu2(y, n); },
            [&](size_t i) { return z[i] > 0 ? z[i] * z[i] : 0.0f; });
    }
}

TEST(bonus_is_exact) {
    Random rng(2);
    for (int64_t n : kLengths) {
        const Floats r = integers(rng, n), k = integers(rng, n), u = integers(rng, n);
        const Floats v = integers(rng, n), y = integers(rng, n);
        float total = 0;
        for (size_t i = 0; i < r.size(); ++i) total += r[i] * k[i] * u[i];
        check_exact(
            y, [&](float* out) { kernels().bonus(r.data(), k.data(), u.data(), v.data(), n, out); },
            [&](size_t i) { return y[i] + total * v[i]; });
    }
}

// a * b + c, rounded once; mingw's std::fma rounds twice. The sum is rounded to odd in double, from
// where a second rounding does no harm.
float fused_sum(float a, float b, float c) {
    const double product = static_cast<double>(a) * static_cast<double>(b);  // exact
    const double sum = product + static_cast<double>(c), from = sum - product;
    const double lost = (product - (sum - from)) + (static_cast<double>(c) - from);
    const bool even = std::bit_cast<uint64_t>(sum) % 2 == 0;
    if (lost == 0 || !even) return static_cast<float>(sum);
    return static_cast<float>(std::nextafter(sum, lost > 0 ? HUGE_VAL : -HUGE_VAL));
}

TEST(outer_products_are_chains_in_order) {
    Random rng(12);
    const bool fused = kernels().isa != std::string("scalar");
    for (int64_t rows : {8, 24, 128})
        for (int64_t depth : {0, 1, 7, 130}) {
            const int64_t a_stride = rows + 3, b_stride = kOuterLanes + 1, stride = kOuterLanes + 5;
            const Floats a = normals(rng, depth * a_stride + 1),
                         b = normals(rng, depth * b_stride + 1);
            Floats y = normals(rng, rows * stride), expected = y;
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t l = 0; l < kOuterLanes; ++l)
                    for (int64_t k = 0; k < depth; ++k) {
                        float& sum = expected[static_cast<size_t>(i * stride + l)];
                        const float factor = a[static_cast<size_t>(k * a_stride + i)];
                        const float x = b[static_cast<size_t>(k * b_stride + l)];
                        // volatile: a compiler may not fuse what the scalar level does not.
                        volatile float product = factor * x;
                        sum = fused ? fused_sum(factor, x, sum) : sum + product;
                    }
            kernels().outer_products(
                {a.data(), a_stride, b.data(), b_stride, y.data(), stride, rows, depth});
            CHECK(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0);
        }
}

TEST(activations_keep_their_relative_error) {
    for (const Activation64& f : activations()) {
        Floats x;
        for (double v = -80; v <= 80; v += 0.00731) x.push_back(static_cast<float>(v));
        for (int e = -126; e <= 6; ++e) {
            x.push_back(std::ldexp(1.0f, e));
            x.push_back(-std::ldexp(1.37f, e));
        }
        Guarded y = guarded(x);
        f.kernel(y.data(), static_cast<int64_t>(x.size()));
        CHECK(y.intact());
        for (size_t i = 0; i < x.size(); ++i) {
            const double right = f.right(x[i]);
            const double error = std::fabs(y[static_cast<int64_t>(i)] - right);
            // decay6 may stop at e^-87.
            const double least = std::string(f.name) == "decay6" ? std::exp(-86.99) : 0x1p-149;
            CHECK_CASE(error <= f.roundings(x[i]) * 0x1p-24 * std::fabs(right) + least,
                       std::string(f.name) + " of " + std::to_string(x[i]));
        }
    }
}

TEST(activations_reach_their_limits_and_keep_nan) {
    const float inf = INFINITY;
    for (const Activation64& f : activations()) {
        const Floats x = {0.0f, 200.0f, -200.0f, 1e30f, -1e30f, inf, -inf, NAN, -0.0f};
        Floats y = x;
        f.kernel(y.data(), static_cast<int64_t>(y.size()));
        CHECK_CASE(std::fabs(y[0] - f.right(0)) <= 0x1p-22 && y[0] == y[8], f.name);
        for (size_t i = 1; i <= 6; ++i) {
            const double right = f.right(x[i]);
            if (std::isnan(right)) continue;  // silu of -infinity: -infinity times 0
            const bool close = std::fabs(y[i] - right) <= 0x1p-22 * std::max(1.0, std::fabs(right));
            CHECK_CASE(y[i] == right || close, f.name);
        }
        CHECK_CASE(std::isnan(y[7]), f.name);
    }
}

// An element's value may not depend on its place: chunks of a prompt fall differently.
TEST(activations_do_not_depend_on_the_position) {
    Random rng(3);
    for (const Activation64& f : activations()) {
        const Floats x = normals(rng, 41, 4.0f);
        Floats whole = x;
        f.kernel(whole.data(), 41);
        for (size_t i = 0; i < x.size(); ++i) {
            float one = x[i];
            f.kernel(&one, 1);
            CHECK_CASE(same_bits(one, whole[i]), f.name);
        }
    }
}

// Whoever weighs them gets these bits, so that the same token is chosen.
TEST(weights_of_logits_are_as_specified) {
    Random rng(12);
    const float top = 3.5f;
    std::uniform_real_distribution<float> below(0.0f, 90.0f);
    Floats logits(1 << 16);
    for (float& logit : logits) logit = top - below(rng);
    logits[0] = top;
    logits[1] = -INFINITY;
    for (const float factor : {1.0f, 1.0f / 0.7f, 1e30f}) {
        Floats powers(logits.size()), weights(logits.size());
        kernels().weigh_logits(logits.data(), std::ssize(logits), top, factor, powers.data(),
                               weights.data());
        CHECK(weights[0] == 1.0f);
        for (size_t i = 0; i < logits.size(); ++i) {
            CHECK(same_bits(powers[i], exponent_of(logits[i], top, factor)));
            CHECK(same_bits(weights[i], logit_weight(powers[i])));
            const double right = std::exp(static_cast<double>(powers[i]));
            CHECK(std::fabs(static_cast<double>(weights[i]) - right) <= 0x1p-23 * right);
        }
    }
}

TEST(layer_norm_is_within_its_bound) {
    Random rng(4);
    for (int64_t n : kLengths) {
        const Floats x = normals(rng, n, 3.0f), weight = normals(rng, n), bias = normals(rng, n);
        double mean = 0, variance = 0, largest = 0;
        for (float v : x) mean += v / static_cast<double>(n);
        for (float v : x) variance += (v - mean) * (v - mean) / static_cast<double>(n);
        for (float v : x) largest = std::max<double>(largest, std::fabs(v));
        const double scale = 1 / std::sqrt(variance + 1e-5);
        Guarded y = guarded(x);  // in place
        kernels().layer_norm(y.data(), weight.data(), bias.data(), n, 1e-5f, y.data());
        CHECK(y.intact());
        for (size_t i = 0; i < x.size(); ++i) {
            const double right = (x[i] - mean) * scale * weight[i] + bias[i];
            const double steps = static_cast<double>(n) / 8 + 8 + 8;
            const double bound =
                steps * 0x1p-24 * (2 * largest * scale * std::fabs(weight[i]) + std::fabs(bias[i]));
            CHECK_CASE(std::fabs(y[static_cast<int64_t>(i)] - right) <= bound, std::to_string(n));
        }
    }
}

TEST(l2_normalize_is_within_its_bound) {
    Random rng(5);
    for (int64_t n : kLengths) {
        const Floats x = normals(rng, n, 3.0f), weight = normals(rng, n);
        double square = 0;
        for (size_t i = 0; i < x.size(); ++i) square += std::pow(double{x[i]} * weight[i], 2);
        Guarded y(n);
        kernels().l2_normalize(x.data(), weight.data(), n, y.data());
        CHECK(y.intact());
        for (size_t i = 0; i < x.size(); ++i) {
            const double right = double{x[i]} * weight[i] / std::sqrt(square);
            const double bound = (static_cast<double>(n) / 8 + 8 + 4) * 0x1p-24 * std::fabs(right);
            CHECK_CASE(std::fabs(y[static_cast<int64_t>(i)] - right) <= bound, std::to_string(n));
        }
    }
    const Floats zeros(64, 0.0f), ones(64, 1.0f);
    Floats y(64, 1.0f);
    kernels().l2_normalize(zeros.data(), ones.data(), 64, y.data());
    for (float v : y) CHECK(v == 0.0f);
}

TEST(rounded_activations_are_the_nearest) {
    Random rng(6);
    for (int64_t n : {32, 96, 768, 2560}) {
        Floats x = normals(rng, n);
        if (n > 32) std::fill(x.begin(), x.begin() + 32, 0.0f);
        x[static_cast<size_t>(n) - 1] = -9.0f;  // the peak may be negative
        check_rounding(x);
    }
    for (float peak : {1e30f, 1.5e-30f, 0.9e-30f, 1e-42f}) {  // from below 1e-30 on, as good as 0
        Floats x = normals(rng, 32, 0.1f * peak);
        x[7] = peak;
        check_rounding(x);
    }
}

TEST(halves_of_an_activation_step_go_to_even) {
    Floats x(32, 0.0f);
    x[0] = 127.0f;
    for (int i = 1; i < 32; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i - 16) + 0.5f;
    check_rounding(x);
    const Floats values = products_of_rounded(Type::Q8_0, one_hot(32), x).y;
    CHECK(values[16] == 0.0f && values[17] == 2.0f && values[18] == 2.0f && values[15] == -0.0f);
}

// Whatever the weights: 0 times a scale that is no number is none either.
TEST(no_number_in_an_activation_reaches_every_result) {
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        for (size_t at = 0; at < 32; ++at) {
            Floats x(64, 1.0f);
            x[at] = bad;
            for (float v : products_of_rounded(Type::Q8_0, one_hot(64), x).y)
                CHECK(!std::isfinite(v));
        }
    }
}
