// SPDX-License-Identifier: Apache-2.0
#include "quant/codecs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant/blocks.h"

namespace rwkv_edge {

uint16_t float_to_half(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00;  // NaN
    } else if (magnitude >= 0x477ff000) {
        half = 0x7c00;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000) {
        // Below 2^-14 a half counts units of 2^-24; nearbyint rounds half to even.
        half = static_cast<uint32_t>(std::nearbyint(bits_to_float(magnitude) * 0x1p24f));
    } else {
        half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    return static_cast<uint16_t>(sign | half);
}

uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

namespace {

struct Extremes {
    float low, high;  // smallest and largest value
    float peak;       // the value of largest magnitude, with its sign; the first one of equals
};

Extremes extremes(const float* x) {
    Extremes e{x[0], x[0], 0.0f};
    for (int i = 0; i < kBlock; ++i) {
        e.low = std::min(e.low, x[i]);
        e.high = std::max(e.high, x[i]);
        if (std::fabs(x[i]) > std::fabs(e.peak)) e.peak = x[i];
    }
    return e;
}

// A scale below the normal range becomes 0 as a half anyway.
float inverse(float d) {
    return std::fabs(d) >= std::numeric_limits<float>::min() ? 1.0f / d : 0.0f;
}

// `shifted` is the scaled value plus a half, so cutting it off rounds to nearest.
uint8_t code(float shifted, int top) {
    return static_cast<uint8_t>(std::min(top, static_cast<int>(shifted)));
}

void put_nibbles(const uint8_t* codes, uint8_t* q) {
    for (int i = 0; i < 16; ++i)
        q[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

void put_fifth_bits(const uint8_t* codes, uint8_t* qh) {
    std::memset(qh, 0, 4);
    for (int i = 0; i < kBlock; ++i) qh[i / 8] |= static_cast<uint8_t>((codes[i] >> 4) << i % 8);
}

int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }

int fifth_bit(const uint8_t* qh, int i) { return (qh[i / 8] >> i % 8 & 1) << 4; }

// Symmetric types: d puts the peak on code 0, so that the range [-half, half) is used to its end.
uint16_t symmetric_codes(const float* x, int half, uint8_t* codes) {
    const float d = extremes(x).peak / static_cast<float>(-half);
    const float id = inverse(d);
    for (int i = 0; i < kBlock; ++i)
        codes[i] = code(x[i] * id + (static_cast<float>(half) + 0.5f), 2 * half - 1);
    return float_to_half(d);
}

// Asymmetric types: the lowest value is code 0, the highest is `top`.
void asymmetric_codes(const float* x, int top, uint8_t* codes, uint16_t& d_out, uint16_t& m_out) {
    const Extremes e = extremes(x);
    const float d = (e.high - e.low) / static_cast<float>(top);
    const float id = inverse(d);
    for (int i = 0; i < kBlock; ++i) codes[i] = code((x[i] - e.low) * id + 0.5f, top);
    d_out = float_to_half(d);
    m_out = float_to_half(e.low);
}

// Calls encode(block, x of that block) for all blocks of a row.
template <class Block, class Encode>
void encode_blocks(const float* x, void* out, int64_t n, Encode&& encode) {
    Block* blocks = static_cast<Block*>(out);
    for (int64_t b = 0; b < n / kBlock; ++b) encode(blocks[b], x + b * kBlock);
}

template <class Block, class Decode>
void decode_blocks(const void* in, float* y, int64_t n, int len, Decode&& decode) {
    const Block* blocks = static_cast<const Block*>(in);
    for (int64_t b = 0; b < n / len; ++b) decode(blocks[b], y + b * len);
}

// The low two bits of value i of a Q2_K or Q3_K super-block.
int two_bits(const uint8_t* q, int i) { return q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3; }

// The scale of sub-block j of a Q3_K super-block: four bits lie in the first eight bytes, two in
// the last four.
int signed_scale(const uint8_t* s, int j) {
    const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    const int high = s[8 + j % 4] >> j / 4 * 2 & 3;
    return (low | high << 4) - 32;
}

// The 6-bit scale and minimum of sub-block j of a Q4_K or Q5_K super-block.
struct ScaleMin {
    float scale, min;
};
ScaleMin scale_min(const uint8_t* s, int j, float d, float dmin) {
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    const int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    return {d * static_cast<float>(scale), dmin * static_cast<float>(min)};
}

}  // namespace

void quantize_f32(const float* x, void* out, int64_t n) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
}

void quantize_f16(const float* x, void* out, int64_t n) {
    uint16_t* y = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < n; ++i) y[i] = float_to_half(x[i]);
}

void quantize_bf16(const float* x, void* out, int64_t n) {
    uint16_t* y = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < n; ++i) y[i] = float_to_bfloat16(x[i]);
}

void quantize_q8_0(const float* x, void* out, int64_t n) {
    encode_blocks<BlockQ8_0>(x, out, n, [](BlockQ8_0& b, const float* v) {
        const float d = std::fabs(extremes(v).peak) / 127.0f;
        const float id = inverse(d);
        b.d = float_to_half(d);
        for (int i = 0; i < kBlock; ++i) b.q[i] = static_cast<int8_t>(std::round(v[i] * id));
    });
}

void quantize_q4_0(const float* x, void* out, int64_t n) {
    encode_blocks<BlockQ4_0>(x, out, n, [](BlockQ4_0& b, const float* v) {
        uint8_t codes[kBlock];
        b.d = symmetric_codes(v, 8, codes);
        put_nibbles(codes, b.q);
    });
}

void quantize_q4_1(const float* x, void* out, int64_t n) {
    encode_blocks<BlockQ4_1>(x, out, n, [](BlockQ4_1& b, const float* v) {
        uint8_t codes[kBlock];
        asymmetric_codes(v, 15, codes, b.d, b.m);
        put_nibbles(codes, b.q);
    });
}

void quantize_q5_0(const float* x, void* out, int64_t n) {
    encode_blocks<BlockQ5_0>(x, out, n, [](BlockQ5_0& b, const float* v) {
        uint8_t codes[kBlock];
        b.d = symmetric_codes(v, 16, codes);
        put_nibbles(codes, b.q);
        put_fifth_bits(codes, b.qh);
    });
}

void quantize_q5_1(const float* x, void* out, int64_t n) {
    encode_blocks<BlockQ5_1>(x, out, n, [](BlockQ5_1& b, const float* v) {
        uint8_t codes[kBlock];
        asymmetric_codes(v, 31, codes, b.d, b.m);
        put_nibbles(codes, b.q);
        put_fifth_bits(codes, b.qh);
    });
}

void dequantize_f32(const void* in, float* y, int64_t n) {
    std::memcpy(y, in, static_cast<size_t>(n) * sizeof(float));
}

void dequantize_f16(const void* in, float* y, int64_t n) {
    const uint16_t* x = static_cast<const uint16_t*>(in);
    for (int64_t i = 0; i < n; ++i) y[i] = half_to_float(x[i]);
}

void dequantize_bf16(const void* in, float* y, int64_t n) {
    const uint16_t* x = static_cast<const uint16_t*>(in);
    for (int64_t i = 0; i < n; ++i) y[i] = bfloat16_to_float(x[i]);
}

void dequantize_q8_0(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ8_0>(in, y, n, kBlock, [](const BlockQ8_0& b, float* v) {
        const float d = half_to_float(b.d);
        for (int i = 0; i < kBlock; ++i) v[i] = d * static_cast<float>(b.q[i]);
    });
}

void dequantize_q4_0(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ4_0>(in, y, n, kBlock, [](const BlockQ4_0& b, float* v) {
        const float d = half_to_float(b.d);
        for (int i = 0; i < kBlock; ++i) v[i] = d * static_cast<float>(nibble(b.q, i) - 8);
    });
}

void dequantize_q4_1(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ4_1>(in, y, n, kBlock, [](const BlockQ4_1& b, float* v) {
        const float d = half_to_float(b.d), m = half_to_float(b.m);
        for (int i = 0; i < kBlock; ++i) v[i] = d * static_cast<float>(nibble(b.q, i)) + m;
    });
}

void dequantize_q5_0(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ5_0>(in, y, n, kBlock, [](const BlockQ5_0& b, float* v) {
        const float d = half_to_float(b.d);
        for (int i = 0; i < kBlock; ++i)
            v[i] = d * static_cast<float>((nibble(b.q, i) | fifth_bit(b.qh, i)) - 16);
    });
}

void dequantize_q5_1(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ5_1>(in, y, n, kBlock, [](const BlockQ5_1& b, float* v) {
        const float d = half_to_float(b.d), m = half_to_float(b.m);
        for (int i = 0; i < kBlock; ++i)
            v[i] = d * static_cast<float>(nibble(b.q, i) | fifth_bit(b.qh, i)) + m;
    });
}

void dequantize_q2_k(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ2_K>(in, y, n, kSuperBlock, [](const BlockQ2_K& b, float* v) {
        const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
        for (int i = 0; i < kSuperBlock; ++i) {
            const int packed = b.scales[i / 16];
            const float scale = d * static_cast<float>(packed & 15);
            const float min = dmin * static_cast<float>(packed >> 4);
            v[i] = scale * static_cast<float>(two_bits(b.q, i)) - min;
        }
    });
}

void dequantize_q3_k(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ3_K>(in, y, n, kSuperBlock, [](const BlockQ3_K& b, float* v) {
        const float d = half_to_float(b.d);
        for (int i = 0; i < kSuperBlock; ++i) {
            const float scale = d * static_cast<float>(signed_scale(b.scales, i / 16));
            const int third = (b.qh[i % 32] >> i / 32 & 1) << 2;
            v[i] = scale * static_cast<float>((two_bits(b.q, i) | third) - 4);
        }
    });
}

void dequantize_q4_k(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ4_K>(in, y, n, kSuperBlock, [](const BlockQ4_K& b, float* v) {
        const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
        for (int j = 0; j < 8; ++j) {  // sub-blocks 2i and 2i+1 share 32 bytes: low and high halves
            const ScaleMin s = scale_min(b.scales, j, d, dmin);
            for (int i = 0; i < 32; ++i) {
                const int q = b.q[j / 2 * 32 + i] >> j % 2 * 4 & 15;
                v[j * 32 + i] = s.scale * static_cast<float>(q) - s.min;
            }
        }
    });
}

void dequantize_q5_k(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ5_K>(in, y, n, kSuperBlock, [](const BlockQ5_K& b, float* v) {
        const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
        for (int j = 0; j < 8; ++j) {  // as Q4_K; the fifth bit of sub-block j is bit j of qh[i]
            const ScaleMin s = scale_min(b.scales, j, d, dmin);
            for (int i = 0; i < 32; ++i) {
                const int low = b.q[j / 2 * 32 + i] >> j % 2 * 4 & 15;
                const int q = low | (b.qh[i] >> j & 1) << 4;
                v[j * 32 + i] = s.scale * static_cast<float>(q) - s.min;
            }
        }
    });
}

void dequantize_q6_k(const void* in, float* y, int64_t n) {
    decode_blocks<BlockQ6_K>(in, y, n, kSuperBlock, [](const BlockQ6_K& b, float* v) {
        const float d = half_to_float(b.d);
        for (int i = 0; i < kSuperBlock; ++i) {
            // Each half of 128 values is four runs of 32: runs 0, 1 are the low nibbles of 64
            // bytes, runs 2, 3 the high ones; the top two bits of run r are bits 2r, 2r+1 of 32
            // bytes.
            const int half = i / 128, run = i % 128 / 32, at = i % 32;
            const int low = b.ql[half * 64 + run % 2 * 32 + at] >> run / 2 * 4 & 15;
            const int high = b.qh[half * 32 + at] >> run * 2 & 3;
            const float scale = d * static_cast<float>(b.scales[i / 16]);
            v[i] = scale * static_cast<float>((low | high << 4) - 32);
        }
    });
}

}  // namespace rwkv_edge
