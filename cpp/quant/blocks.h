// SPDX-License-Identifier: Apache-2.0
// The weight blocks as they lie in a GGUF file: bit layouts are ggml's (ggml-common.h),
// little-endian. C subset without the standard library: kernel files include this (see
// ARCHITECTURE.md, "ISA files").
#pragma once

#include <stdint.h>
#include <string.h>

namespace rwkv_edge {

// ggml's type ids; never renumbered.
enum class Type : uint32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
};
enum : int { kTypeSlots = 31 };  // length of a table indexed by Type

enum : int { kBlock = 32, kSuperBlock = 256 };

struct Half {  // IEEE binary16
    uint16_t bits;
};
struct Bfloat16 {  // the upper half of a float
    uint16_t bits;
};

// Nibbles: value i of a block is the low half of byte i for i < 16, the high half of byte i - 16
// above. The fifth bit of value i is bit i of qh.
struct BlockQ4_0 {  // w = d * (q - 8)
    uint16_t d;
    uint8_t q[16];
};
struct BlockQ4_1 {  // w = d * q + m
    uint16_t d, m;
    uint8_t q[16];
};
struct BlockQ5_0 {  // w = d * (q - 16)
    uint16_t d;
    uint8_t qh[4];
    uint8_t q[16];
};
struct BlockQ5_1 {  // w = d * q + m
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t q[16];
};
struct BlockQ8_0 {  // w = d * q
    uint16_t d;
    int8_t q[32];
};
// Super-blocks of 256. Two-bit codes: value i has bits 2r, 2r+1 of byte i / 128 * 32 + i % 32,
// where r = i % 128 / 32. These two have 16 sub-blocks of 16.
struct BlockQ2_K {       // w = d * scale * q - dmin * min
    uint8_t scales[16];  // low half: scale, high half: min
    uint8_t q[64];
    uint16_t d, dmin;
};
struct BlockQ3_K {   // w = d * (scale - 32) * (q - 4)
    uint8_t qh[32];  // the third bit of value i is bit i / 32 of byte i % 32
    uint8_t q[64];
    uint8_t scales[12];  // 6 bits each
    uint16_t d;
};
// 8 sub-blocks of 32 with a 6-bit scale and minimum each, packed in 12 bytes.
struct BlockQ4_K {  // w = d * scale * q - dmin * min
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t q[128];
};
struct BlockQ5_K {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t q[128];
};
struct BlockQ6_K {  // 16 sub-blocks of 16, w = d * scale * (q - 32)
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20, "ggml layout");
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24, "ggml layout");
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ2_K) == 84, "ggml layout");
static_assert(sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144, "ggml layout");
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210, "ggml layout");

static inline float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// IEEE binary16 to binary32, exact. A subnormal half is an integer multiple of 2^-24.
static inline float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 0x1f, mantissa = h & 0x3ff;
    if (exponent == 0) {
        const float magnitude = (float)mantissa * 0x1p-24f;
        return bits_to_float(sign | float_to_bits(magnitude));
    }
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | mantissa << 13);
    return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline float bfloat16_to_float(uint16_t h) { return bits_to_float((uint32_t)h << 16); }

}  // namespace rwkv_edge
