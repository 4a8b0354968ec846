// SPDX-License-Identifier: Apache-2.0
// One product for the kernel tests: weights, activations, a guarded output, the answer in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "kernels/kernels.h"
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

struct MatmulCase {
    Type type;
    int64_t rows, cols, tokens;
    std::vector<uint8_t> weights;  // the first `shift` bytes are no part of them
    int64_t shift;
    std::vector<float> x, scale, scaled_sum;
    std::vector<int8_t> q;
    std::vector<int16_t> wide, sums8;
    AlignedVector<uint8_t> scratch;

    MatmulCase(Type kind, int64_t n_rows, int64_t n_cols, int64_t n_tokens)
        : type(kind),
          rows(n_rows),
          cols(n_cols),
          tokens(n_tokens),
          shift(kind == Type::F32 ? 4 : 2) {
        const auto values = static_cast<size_t>(tokens * cols);
        scratch.resize(static_cast<size_t>(matmul_scratch_bytes(cols)));
        weights.resize(static_cast<size_t>(shift + rows * row_bytes()));
        x.resize(values);
        q.resize(values);
        scale.resize(values / kBlock);
        wide.resize(values);
        sums8.resize(values / 8);
        scaled_sum.resize(values / kBlock);
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
                set_half(r, b, scale_at(), std::ldexp(1.0f, random_int(rng, -3, 0)));
                set_half(r, b, minimum_at(), 0.125f * static_cast<float>(random_int(rng, -40, 40)));
            }
        }
        for (size_t i = 0; i < x.size(); ++i) {
            q[i] = static_cast<int8_t>(random_int(rng, -7, 7));
            x[i] = static_cast<float>(q[i]);
        }
        for (float& s : scale) s = 0.25f;
        add_up();
    }

    // Normal values everywhere; the weights take the type's rounding, or are any that it can hold.
    void fill_normally(Random& rng, const Kernels& kernels) {
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
        if (!is_plain(type))
            kernels.quantize_activation(
                x.data(), tokens * cols,
                {q.data(), wide.data(), scale.data(), sums8.data(), scaled_sum.data()});
    }

    void add_up() {
        for (size_t b = 0; b < scaled_sum.size(); ++b) {
            int total[4] = {};
            for (size_t i = 0; i < kBlock; ++i) {
                const int8_t code = q[b * kBlock + i];
                wide[b * kBlock + i] = code;
                total[i / 16 * 2 + i / 2 % 2] += code;
            }
            for (size_t i = 0; i < 4; ++i) sums8[4 * b + i] = static_cast<int16_t>(8 * total[i]);
            scaled_sum[b] =
                scale[b] * static_cast<float>(total[0] + total[1] + total[2] + total[3]);
        }
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
            const auto at = static_cast<size_t>(t * cols + k);
            const double input = is_plain(type) ? x[at] : double{scale[at / kBlock]} * q[at];
            const double weight = w[static_cast<size_t>(k)];
            out.value += weight * input;
            out.magnitude += (std::fabs(weight) + 2 * largest_minimum(r, k)) * std::fabs(input);
        }
        return out;
    }

    MatmulArgs args(float* y, int64_t y_stride) {
        return {weights.data() + shift,
                row_bytes(),
                cols,
                0,
                rows,
                {x.data(), q.data(), wide.data(), scale.data(), sums8.data(), scaled_sum.data()},
                tokens,
                y,
                y_stride,
                scratch.data()};
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
