// SPDX-License-Identifier: Apache-2.0
// One product for the tests of the active kernel level: weights, activations, a guarded output, the
// answer in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "kernels/dispatch.h"
#include "quant/codecs.h"
#include "quant/types.h"

namespace rwkv_edge {

using Random = std::mt19937;

inline int random_int(Random& rng, int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
}

inline bool is_plain(Type type) {
    return type == Type::F32 || type == Type::F16 || type == Type::BF16;
}

inline bool is_super(Type type) { return type_info(type).block_len == kSuperBlock; }

inline bool same_bits(float a, float b) { return float_to_bits(a) == float_to_bits(b); }

// Floats with a guard of 64 bytes on both sides, starting 4 bytes past a cache line.
class Guarded {
public:
    explicit Guarded(int64_t n) : all_(static_cast<size_t>(n) + 2 * kGuard, kCanary) {}
    float* data() { return all_.data() + kGuard; }
    float& operator[](int64_t i) { return data()[i]; }
    bool intact() const {
        for (size_t i = 0; i < kGuard; ++i)
            if (!same_bits(all_[i], kCanary) || !same_bits(all_[all_.size() - 1 - i], kCanary))
                return false;
        return true;
    }
    static constexpr float kCanary = -12345.678f;

private:
    static constexpr size_t kGuard = 17;
    std::vector<float> all_;
};

// What round_activations must make of x, in blocks of 32: x[k] ~ scale[k / 32] * q[k].
struct RoundedReference {
    std::vector<float> scale;
    std::vector<int> q;

    explicit RoundedReference(const std::vector<float>& x) {
        for (size_t begin = 0; begin < x.size(); begin += kBlock) {
            float peak = 0;
            for (size_t i = begin; i < begin + kBlock; ++i) peak = std::max(peak, std::fabs(x[i]));
            scale.push_back(peak / 127);
            for (size_t i = begin; i < begin + kBlock; ++i)
                q.push_back(peak > 1e-30f ? static_cast<int>(std::nearbyint(x[i] * (127 / peak)))
                                          : 0);
        }
    }
};

struct MatmulCase {
    Type type;
    int64_t rows, cols, tokens;
    std::vector<uint8_t> weights;  // the first `shift` bytes are no part of them
    int64_t shift;
    std::vector<float> x;
    std::vector<double> input;                // what the weights are multiplied with
    AlignedVector<uint8_t> rounded, scratch;  // x as the level rounds it, for block types
    int64_t x_stride;

    MatmulCase(Type kind, int64_t n_rows, int64_t n_cols, int64_t n_tokens)
        : type(kind),
          rows(n_rows),
          cols(n_cols),
          tokens(n_tokens),
          shift(kind == Type::F32 ? 4 : 2) {
        scratch.resize(static_cast<size_t>(matmul_scratch_bytes(cols)));
        weights.resize(static_cast<size_t>(shift + rows * row_bytes()));
        x.resize(static_cast<size_t>(tokens * cols));
        x_stride = is_plain(type) ? cols * 4 : kernels().rounded_bytes(cols);
        if (!is_plain(type)) rounded.resize(static_cast<size_t>(tokens * x_stride));
    }

    int64_t row_bytes() const { return type_bytes(type, cols); }
    uint8_t* row(int64_t r) { return weights.data() + shift + r * row_bytes(); }
    std::string name() const {
        return std::string(type_info(type).name) + " " + std::to_string(rows) + "x" +
               std::to_string(cols) + ", " + std::to_string(tokens) + " tokens";
    }

    // Small integers and power-of-two scales: every sum is exact, whatever its order.
    void fill_exactly(Random& rng) {
        std::vector<float> values(static_cast<size_t>(cols));
        for (int64_t r = 0; r < rows; ++r) {
            for (float& v : values) v = static_cast<float>(random_int(rng, -7, 7));
            if (is_plain(type)) {
                type_info(type).quantize(values.data(), row(r), cols);
                continue;
            }
            fill_with_bytes(rng, r);
            for (int64_t b = 0; b < blocks(); ++b) {
                // Q6_K has no room for more: its codes have 6 bits, and its scales 8
                const int least = type == Type::Q6_K ? -1 : -3;
                set_half(r, b, scale_at(), std::ldexp(1.0f, random_int(rng, least, 0)));
                set_half(r, b, minimum_at(), 0.125f * static_cast<float>(random_int(rng, -40, 40)));
            }
        }
        for (float& v : x) v = static_cast<float>(random_int(rng, -7, 7));
        if (!is_plain(type)) {  // a peak of 127 steps of 1/4 in each block
            for (float& v : x) v *= 0.25f;
            for (size_t i = 0; i < x.size(); i += kBlock)
                x[i + static_cast<size_t>(random_int(rng, 0, kBlock - 1))] =
                    random_int(rng, 0, 1) == 0 ? 31.75f : -31.75f;
        }
        round();
    }

    // Normal values everywhere; the weights take the type's rounding, or are any that it can hold.
    void fill_normally(Random& rng) {
        std::normal_distribution<float> normal;
        std::vector<float> values(static_cast<size_t>(cols));
        for (int64_t r = 0; r < rows; ++r) {
            for (float& v : values) v = normal(rng);
            if (!is_super(type)) {
                type_info(type).quantize(values.data(), row(r), cols);
                continue;
            }
            fill_with_bytes(rng, r);
            for (int64_t b = 0; b < blocks(); ++b) {
                set_half(r, b, scale_at(), 0.001f * normal(rng));
                set_half(r, b, minimum_at(), 0.001f * normal(rng));
            }
        }
        for (float& v : x) v = normal(rng);
        round();
    }

    // After a change of x.
    void round() {
        input.assign(x.begin(), x.end());
        if (is_plain(type)) return;
        const RoundedReference right(x);
        for (size_t i = 0; i < x.size(); ++i)
            input[i] = double{right.scale[i / kBlock]} * right.q[i];
        for (int64_t t = 0; t < tokens; ++t)
            kernels().round_activations(&x[static_cast<size_t>(t * cols)], cols,
                                        rounded.data() + t * x_stride);
    }

    struct Answer {
        double value;      // sum of w * x
        double magnitude;  // at least the sum of |w * x|, where w = d * q + m counts as two terms
    };
    Answer answer(int64_t r, int64_t t) {
        std::vector<float> w(static_cast<size_t>(cols));
        type_info(type).dequantize(row(r), w.data(), cols);
        Answer out{0, 0};
        for (int64_t k = 0; k < cols; ++k) {
            const double weight = w[static_cast<size_t>(k)];
            const double factor = input[static_cast<size_t>(t * cols + k)];
            out.value += weight * factor;
            out.magnitude += (std::fabs(weight) + 2 * largest_minimum(r, k)) * std::fabs(factor);
        }
        return out;
    }

    MatmulArgs args(float* y, int64_t y_stride) {
        const void* from = is_plain(type) ? static_cast<const void*>(x.data()) : rounded.data();
        return {
            weights.data() + shift, row_bytes(), cols, 0, rows, from, x_stride, tokens, y, y_stride,
            scratch.data(),         1024};
    }

    // Where the float16 scale of a block lies, and what is subtracted; -1 if nothing is.
    int64_t scale_at() const { return type == Type::Q6_K ? 208 : 0; }
    int64_t minimum_at() const {
        const bool has =
            type == Type::Q4_1 || type == Type::Q5_1 || type == Type::Q4_K || type == Type::Q5_K;
        return has ? 2 : -1;
    }
    int64_t blocks() const { return cols / type_info(type).block_len; }
    uint8_t* block(int64_t r, int64_t b) { return row(r) + b * type_info(type).block_bytes; }
    void set_half(int64_t r, int64_t b, int64_t at, float value) {
        const uint16_t half = float_to_half(value);
        if (at >= 0) std::memcpy(block(r, b) + at, &half, sizeof half);
    }

private:
    double largest_minimum(int64_t r, int64_t k) {
        if (minimum_at() < 0) return 0;
        uint16_t m;
        std::memcpy(&m, block(r, k / type_info(type).block_len) + minimum_at(), sizeof m);
        return std::fabs(half_to_float(m)) * (is_super(type) ? 63 : 1);
    }
    void fill_with_bytes(Random& rng, int64_t r) {
        for (int64_t i = 0; i < row_bytes(); ++i)
            row(r)[i] = static_cast<uint8_t>(random_int(rng, 0, 255));
    }
};

}  // namespace rwkv_edge
