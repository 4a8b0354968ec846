// SPDX-License-Identifier: Apache-2.0
// The weights of every type as floats, for matrices by input. All but the one addition of an offset
// is exact: w = d * code + m, where m is -zero * d for the types whose codes have a zero.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <string.h>

#include "kernels/arm/neon_layouts.inl"
#include "kernels/arm/neon_vectors.inl"
#include "kernels/generic/inlining.inl"
#include "kernels/generic/input_matmul.inl"
#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

ALWAYS_INLINE float half_at(const char* p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return vgetq_lane_f32(halves_to_floats(vdup_n_u16(bits)), 0);
}

// d * code + m of 16 codes.
ALWAYS_INLINE void weights(uint8x16_t codes, float d, float m, F32 out[2]) {
    const uint16x8_t eights[2] = {vmovl_u8(vget_low_u8(codes)), vmovl_high_u8(codes)};
    const float32x4_t ms = vdupq_n_f32(m);
    UNROLL
    for (int v = 0; v < 2; ++v) {
        const float32x4_t low = vcvtq_f32_u32(vmovl_u16(vget_low_u16(eights[v])));
        const float32x4_t high = vcvtq_f32_u32(vmovl_high_u16(eights[v]));
        out[v] = {vfmaq_n_f32(ms, low, d), vfmaq_n_f32(ms, high, d)};
    }
}

template <class Weight>
struct Widen;

template <class Weight>
struct WidenFloats {
    using Isa = UsualVectors;
    static constexpr int kColumns = kBlock, kGroup = 1, kBytes = kBlock * (int)sizeof(Weight);
    struct Header {};
    ALWAYS_INLINE static Header header(const char*) { return {}; }
    ALWAYS_INLINE static void columns(const char* at, const Header&, int, F32 out[4]) {
        UNROLL
        for (int v = 0; v < 4; ++v) out[v] = load((const Weight*)at + 8 * v);
    }
};
template <>
struct Widen<float> : WidenFloats<float> {};
template <>
struct Widen<Half> : WidenFloats<Half> {};
template <>
struct Widen<Bfloat16> : WidenFloats<Bfloat16> {};

template <>
struct Widen<BlockQ8_0> {
    using Isa = UsualVectors;
    static constexpr int kColumns = kBlock, kGroup = 1, kBytes = (int)sizeof(BlockQ8_0);
    using Header = float;
    ALWAYS_INLINE static Header header(const char* block) { return half_at(block); }
    ALWAYS_INLINE static void columns(const char* block, const Header& d, int, F32 out[4]) {
        const auto* q = (const int8_t*)block + offsetof(BlockQ8_0, q);
        UNROLL
        for (int v = 0; v < 4; ++v) {
            const int16x8_t codes = vmovl_s8(vld1_s8(q + 8 * v));
            const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes)));
            const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(codes));
            out[v] = {vmulq_n_f32(low, d), vmulq_n_f32(high, d)};
        }
    }
};

// Blocks of 32 columns with nibbles and perhaps a fifth bit; with a zero of that code, or an m.
template <class Block, int kZero, bool kFifth>
struct WidenNibbles {
    using Isa = UsualVectors;
    static constexpr int kColumns = kBlock, kGroup = 1, kBytes = (int)sizeof(Block);
    struct Header {
        float d, m;
    };
    ALWAYS_INLINE static Header header(const char* block) {
        const float d = half_at(block);
        return {d, kZero == 0 ? half_at(block + 2) : -(float)kZero * d};
    }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int, F32 out[4]) {
        const uint8x16_t bytes = load_bytes(block + offsetof(Block, q));
        uint8x16_t codes[2] = {low_nibbles(bytes), high_nibbles(bytes)};
        if constexpr (kFifth) {
            const auto* qh = (const uint8_t*)block + offsetof(Block, qh);
            const uint8x16_t own_bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const uint8x16_t eight_times =
                    vcombine_u8(vld1_dup_u8(qh + 2 * half), vld1_dup_u8(qh + 2 * half + 1));
                codes[half] = with_bits(codes[half], vtstq_u8(eight_times, own_bit), 0x10);
            }
        }
        weights(codes[0], h.d, h.m, out);
        weights(codes[1], h.d, h.m, out + 2);
    }
};
template <>
struct Widen<BlockQ4_0> : WidenNibbles<BlockQ4_0, 8, false> {};
template <>
struct Widen<BlockQ4_1> : WidenNibbles<BlockQ4_1, 0, false> {};
template <>
struct Widen<BlockQ5_0> : WidenNibbles<BlockQ5_0, 16, true> {};
template <>
struct Widen<BlockQ5_1> : WidenNibbles<BlockQ5_1, 0, true> {};

// Super-blocks: d and m of each 32 columns, or of each 16, wait in memory.
template <class Block>
struct WidenScales {
    using Isa = UsualVectors;
    static constexpr int kColumns = kSuperBlock, kGroup = 2, kBytes = (int)sizeof(Block);
    struct Header {
        float d[8], m[8];
    };
    ALWAYS_INLINE static Header header(const char* block) {
        uint32_t s[3];
        memcpy(s, block + offsetof(Block, scales), sizeof s);
        const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
        const uint32_t scales[2] = {s[0] & six, (s[2] & four) | (s[0] >> 2 & two)};
        const uint32_t mins[2] = {s[1] & six, (s[2] >> 4 & four) | (s[1] >> 2 & two)};
        const float d = half_at(block + offsetof(Block, d));
        const float dmin = half_at(block + offsetof(Block, dmin));
        Header h;
        put(scales, d, h.d);
        put(mins, -dmin, h.m);
        return h;
    }
    // Eight bytes times d.
    ALWAYS_INLINE static void put(const uint32_t bytes[2], float d, float* to) {
        const uint16x8_t wide = vmovl_u8(vcreate_u8((uint64_t)bytes[1] << 32 | bytes[0]));
        vst1q_f32(to, vmulq_n_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), d));
        vst1q_f32(to + 4, vmulq_n_f32(vcvtq_f32_u32(vmovl_high_u16(wide)), d));
    }
};

template <>
struct Widen<BlockQ4_K> : WidenScales<BlockQ4_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, F32 out[8]) {
        const char* q = block + offsetof(BlockQ4_K, q) + 32 * i;
        UNROLL
        for (int v = 0; v < 2; ++v) {
            const uint8x16_t bytes = load_bytes(q + 16 * v);
            weights(low_nibbles(bytes), h.d[2 * i], h.m[2 * i], out + 2 * v);
            weights(high_nibbles(bytes), h.d[2 * i + 1], h.m[2 * i + 1], out + 4 + 2 * v);
        }
    }
};

template <>
struct Widen<BlockQ5_K> : WidenScales<BlockQ5_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, F32 out[8]) {
        const char* q = block + offsetof(BlockQ5_K, q) + 32 * i;
        UNROLL
        for (int v = 0; v < 2; ++v) {
            const uint8x16_t bytes = load_bytes(q + 16 * v);
            const uint8x16_t qh = load_bytes(block + offsetof(BlockQ5_K, qh) + 16 * v);
            weights(with_bits(low_nibbles(bytes), shift(qh, 4 - 2 * i), 0x10), h.d[2 * i],
                    h.m[2 * i], out + 2 * v);
            weights(with_bits(high_nibbles(bytes), shift(qh, 3 - 2 * i), 0x10), h.d[2 * i + 1],
                    h.m[2 * i + 1], out + 4 + 2 * v);
        }
    }
};

template <>
struct Widen<BlockQ6_K> {
    using Isa = UsualVectors;
    static constexpr int kColumns = kSuperBlock, kGroup = 1, kBytes = (int)sizeof(BlockQ6_K);
    struct Header {
        float d[16], m[16];
    };
    ALWAYS_INLINE static Header header(const char* block) {
        const float d = half_at(block + offsetof(BlockQ6_K, d));
        const int8x16_t scales = vld1q_s8((const int8_t*)block + offsetof(BlockQ6_K, scales));
        const int16x8_t eights[2] = {vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales)};
        Header h;
        UNROLL
        for (int v = 0; v < 4; ++v) {
            const int16x8_t e = eights[v / 2];
            const int32x4_t four = v % 2 == 0 ? vmovl_s16(vget_low_s16(e)) : vmovl_high_s16(e);
            const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(four), d);
            vst1q_f32(h.d + 4 * v, scaled);
            vst1q_f32(h.m + 4 * v, vmulq_n_f32(scaled, -32.0f));
        }
        return h;
    }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, F32 out[4]) {
        const int half = i / 4, run = i % 4;
        const char* ql = block + 64 * half + 32 * (run % 2);
        const char* qh = block + offsetof(BlockQ6_K, qh) + 32 * half;
        UNROLL
        for (int v = 0; v < 2; ++v) {
            const uint8x16_t low = low_nibbles(shift(load_bytes(ql + 16 * v), run / 2 * -4));
            const uint8x16_t high = shift(load_bytes(qh + 16 * v), 4 - 2 * run);
            weights(with_bits(low, high, 0x30), h.d[2 * i + v], h.m[2 * i + v], out + 2 * v);
        }
    }
};

}  // namespace

}  // namespace rwkv_edge
