// SPDX-License-Identifier: Apache-2.0
// Device code: the weights of a row as a file has it (quant/blocks.h), one at a time.
#pragma once

#include "backend/cuda/device.h"
#include "quant/blocks.h"

namespace rwkv_edge::cuda {

// w = d * (factor * code) - m, where factor is 1 or, in Q6_K, an integer of 16 columns; as float
// types have it, code is 1 and d the weight.
struct Weight {
    float d, m;
    int code, factor;
};

DEVICE float value_of(const Weight& w) { return w.d * static_cast<float>(w.factor * w.code) - w.m; }

DEVICE int nibble_of(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
DEVICE int fifth_bit_of(const uint8_t* qh, int i) { return (qh[i / 8] >> (i % 8) & 1) << 4; }
DEVICE int two_bits_of(const uint8_t* q, int i) {
    return q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

// Scale and minimum of sub-block j of Q4_K and Q5_K.
struct ScaleMin {
    int scale, min;
};
DEVICE ScaleMin scale_min_of(const uint8_t* s, int j) {
    if (j < 4) return {s[j] & 63, s[j + 4] & 63};
    return {(s[j + 4] & 15) | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4};
}

DEVICE Weight weight_of(const float* row, int64_t k) { return {row[k], 0.0f, 1, 1}; }
DEVICE Weight weight_of(const Half* row, int64_t k) {
    return {half_value(row[k].bits), 0.0f, 1, 1};
}
DEVICE Weight weight_of(const Bfloat16* row, int64_t k) {
    return {bits_float(static_cast<uint32_t>(row[k].bits) << 16), 0.0f, 1, 1};
}
DEVICE Weight weight_of(const BlockQ8_0* row, int64_t k) {
    const BlockQ8_0& b = row[k / kBlock];
    return {half_value(b.d), 0.0f, b.q[k % kBlock], 1};
}
DEVICE Weight weight_of(const BlockQ4_0* row, int64_t k) {
    const BlockQ4_0& b = row[k / kBlock];
    return {half_value(b.d), 0.0f, nibble_of(b.q, static_cast<int>(k % kBlock)) - 8, 1};
}
DEVICE Weight weight_of(const BlockQ4_1* row, int64_t k) {
    const BlockQ4_1& b = row[k / kBlock];
    return {half_value(b.d), -half_value(b.m), nibble_of(b.q, static_cast<int>(k % kBlock)), 1};
}
DEVICE Weight weight_of(const BlockQ5_0* row, int64_t k) {
    const BlockQ5_0& b = row[k / kBlock];
    const int i = static_cast<int>(k % kBlock);
    return {half_value(b.d), 0.0f, (nibble_of(b.q, i) | fifth_bit_of(b.qh, i)) - 16, 1};
}
DEVICE Weight weight_of(const BlockQ5_1* row, int64_t k) {
    const BlockQ5_1& b = row[k / kBlock];
    const int i = static_cast<int>(k % kBlock);
    return {half_value(b.d), -half_value(b.m), nibble_of(b.q, i) | fifth_bit_of(b.qh, i), 1};
}
DEVICE Weight weight_of(const BlockQ2_K* row, int64_t k) {
    const BlockQ2_K& b = row[k / kSuperBlock];
    const int i = static_cast<int>(k % kSuperBlock), packed = b.scales[i / 16];
    return {half_value(b.d) * static_cast<float>(packed & 15),
            half_value(b.dmin) * static_cast<float>(packed >> 4), two_bits_of(b.q, i), 1};
}
DEVICE Weight weight_of(const BlockQ3_K* row, int64_t k) {
    const BlockQ3_K& b = row[k / kSuperBlock];
    const int i = static_cast<int>(k % kSuperBlock), j = i / 16;
    const int low = j < 8 ? b.scales[j] & 15 : b.scales[j - 8] >> 4;
    const int scale = (low | (b.scales[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
    const int third = (b.qh[i % 32] >> (i / 32) & 1) << 2;
    return {half_value(b.d) * static_cast<float>(scale), 0.0f, (two_bits_of(b.q, i) | third) - 4,
            1};
}
DEVICE Weight weight_of(const BlockQ4_K* row, int64_t k) {
    const BlockQ4_K& b = row[k / kSuperBlock];
    const int i = static_cast<int>(k % kSuperBlock);
    const ScaleMin s = scale_min_of(b.scales, i / 32);
    return {half_value(b.d) * static_cast<float>(s.scale),
            half_value(b.dmin) * static_cast<float>(s.min),
            b.q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15, 1};
}
DEVICE Weight weight_of(const BlockQ5_K* row, int64_t k) {
    const BlockQ5_K& b = row[k / kSuperBlock];
    const int i = static_cast<int>(k % kSuperBlock);
    const ScaleMin s = scale_min_of(b.scales, i / 32);
    const int low = b.q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
    return {half_value(b.d) * static_cast<float>(s.scale),
            half_value(b.dmin) * static_cast<float>(s.min),
            low | (b.qh[i % 32] >> (i / 32) & 1) << 4, 1};
}
DEVICE Weight weight_of(const BlockQ6_K* row, int64_t k) {
    const BlockQ6_K& b = row[k / kSuperBlock];
    const int i = static_cast<int>(k % kSuperBlock);
    const int half = i / 128, run = i % 128 / 32, at = i % 32;
    const int low = b.ql[half * 64 + run % 2 * 32 + at] >> (run / 2 * 4) & 15;
    const int high = b.qh[half * 32 + at] >> (run * 2) & 3;
    return {half_value(b.d), 0.0f, (low | high << 4) - 32, b.scales[i / 16]};
}

// body(row) with the row as what it is made of.
template <class Body>
DEVICE void with_type(Type type, const void* row, Body&& body) {
    switch (type) {
        case Type::F32: return body(static_cast<const float*>(row));
        case Type::F16: return body(static_cast<const Half*>(row));
        case Type::BF16: return body(static_cast<const Bfloat16*>(row));
        case Type::Q8_0: return body(static_cast<const BlockQ8_0*>(row));
        case Type::Q4_0: return body(static_cast<const BlockQ4_0*>(row));
        case Type::Q4_1: return body(static_cast<const BlockQ4_1*>(row));
        case Type::Q5_0: return body(static_cast<const BlockQ5_0*>(row));
        case Type::Q5_1: return body(static_cast<const BlockQ5_1*>(row));
        case Type::Q2_K: return body(static_cast<const BlockQ2_K*>(row));
        case Type::Q3_K: return body(static_cast<const BlockQ3_K*>(row));
        case Type::Q4_K: return body(static_cast<const BlockQ4_K*>(row));
        case Type::Q5_K: return body(static_cast<const BlockQ5_K*>(row));
        case Type::Q6_K: return body(static_cast<const BlockQ6_K*>(row));
    }
}

}  // namespace rwkv_edge::cuda
