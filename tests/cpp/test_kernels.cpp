// SPDX-License-Identifier: Apache-2.0
// The vector kernels of the active level; products are in test_matmul.cpp. ctest runs this once per
// level.
#include <algorithm>
#include <functional>

#include "check.h"
#include "kernels/dispatch.h"
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

TEST(quantized_activations_are_the_nearest) {
    Random rng(6);
    for (int64_t n : {32, 96, 768, 2560}) {
        Floats x = normals(rng, n);
        if (n > 32) std::fill(x.begin(), x.begin() + 32, 0.0f);
        x[static_cast<size_t>(n) - 1] = -9.0f;  // the peak may be negative
        const auto size = static_cast<size_t>(n);
        std::vector<int8_t> q(size + 2, 99);
        Floats scale(size / 32 + 2, 99.0f);
        Floats scaled_sum(size / 32 + 2, 99.0f);
        std::vector<int16_t> sums8(size / 8 + 2, 99);
        std::vector<int16_t> wide(size + 2, 99);
        kernels().quantize_activation(x.data(), n,
                                      {&q[1], &wide[1], &scale[1], &sums8[1], &scaled_sum[1]});
        CHECK(wide[0] == 99 && wide[size + 1] == 99);
        CHECK(q[0] == 99 && q[size + 1] == 99);
        CHECK(scale[0] == 99.0f && scale[size / 32 + 1] == 99.0f);
        CHECK(sums8[0] == 99 && sums8[size / 8 + 1] == 99);
        CHECK(scaled_sum[0] == 99.0f && scaled_sum[size / 32 + 1] == 99.0f);
        for (size_t b = 0; b < size / 32; ++b) {
            float peak = 0;
            for (size_t i = 0; i < 32; ++i) peak = std::max(peak, std::fabs(x[b * 32 + i]));
            CHECK(scale[b + 1] == peak / 127.0f);
            const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
            int total[4] = {};
            for (size_t i = 0; i < 32; ++i) {
                const int code = q[1 + b * 32 + i];
                CHECK(code == static_cast<int>(std::nearbyint(x[b * 32 + i] * inverse)));
                CHECK(code >= -127 && wide[1 + b * 32 + i] == code);
                total[i / 16 * 2 + i / 2 % 2] += code;
            }
            for (size_t i = 0; i < 4; ++i) CHECK(sums8[1 + 4 * b + i] == 8 * total[i]);
            const int sum = total[0] + total[1] + total[2] + total[3];
            CHECK(scaled_sum[b + 1] == scale[b + 1] * static_cast<float>(sum));
        }
    }
}

TEST(no_number_in_an_activation_reaches_the_scale) {
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        for (size_t at = 0; at < 32; ++at) {
            Floats x(64, 1.0f);
            x[at] = bad;
            std::vector<int8_t> q(64);
            Floats scale(2), scaled_sum(2);
            std::vector<int16_t> sums8(8);
            std::vector<int16_t> wide(64);
            kernels().quantize_activation(
                x.data(), 64,
                {q.data(), wide.data(), scale.data(), sums8.data(), scaled_sum.data()});
            CHECK(!std::isfinite(scale[0]) && !std::isfinite(scaled_sum[0]));
            CHECK(scale[1] == 1.0f / 127.0f && q[63] == 127 && sums8[7] == 8 * 8 * 127);
            for (size_t i = 0; i < 32; ++i) CHECK(q[i] >= -127);
        }
    }
}

TEST(halves_of_an_activation_step_go_to_even) {
    Floats x(32, 0.0f);
    x[0] = 127.0f;
    for (int i = 1; i < 32; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i - 16) + 0.5f;
    std::vector<int8_t> q(32);
    float scale, scaled_sum;
    int16_t sums8[4], wide[32];
    kernels().quantize_activation(x.data(), 32, {q.data(), wide, &scale, sums8, &scaled_sum});
    for (size_t i = 0; i < 32; ++i) CHECK(q[i] == static_cast<int>(std::nearbyint(x[i])));
}
