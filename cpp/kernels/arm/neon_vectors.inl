// SPDX-License-Identifier: Apache-2.0
// The vector verbs of vectors.inl with NEON.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

#include "kernels/generic/inlining.inl"
#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

struct F32 {
    float32x4_t low, high;
};

inline F32 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, F32 v) {
    vst1q_f32(p, v.low);
    vst1q_f32(p + 4, v.high);
}
inline F32 set(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
inline F32 add(F32 a, F32 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline F32 sub(F32 a, F32 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline F32 mul(F32 a, F32 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline F32 div(F32 a, F32 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline F32 fma(F32 a, F32 b, F32 c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline F32 negative_fma(F32 a, F32 b, F32 c) {
    return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
ALWAYS_INLINE void pin(F32& v) { asm volatile("" : "+w"(v.low), "+w"(v.high)); }
inline F32 min(F32 a, F32 b) { return {vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)}; }
inline F32 max(F32 a, F32 b) { return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)}; }
inline F32 round_(F32 a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }

inline float32x4_t pow2(float32x4_t n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
}
inline F32 pow2(F32 n) { return {pow2(n.low), pow2(n.high)}; }

inline float32x4_t fold(F32 v) { return vaddq_f32(v.low, v.high); }

// ((0+4)+(2+6)) + ((1+5)+(3+7)), the order of kernels.h
inline float sum8(F32 v) {
    const float32x4_t fours = fold(v);
    return vaddv_f32(vadd_f32(vget_low_f32(fours), vget_high_f32(fours)));
}

inline F32 load(const Half* p) {
    const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
    return {vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
}
inline F32 load(const Bfloat16* p) {
    const uint16x8_t v = vld1q_u16(&p->bits);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(v, 16))};
}

inline float32x4_t low_pairs(float32x4_t a, float32x4_t b) {
    return vcombine_f32(vget_low_f32(a), vget_low_f32(b));
}
inline float32x4_t high_pairs(float32x4_t a, float32x4_t b) {
    return vcombine_f32(vget_high_f32(a), vget_high_f32(b));
}

// sum8 of four vectors.
inline void sum8(const F32 v[4], float* sums) {
    const float32x4_t a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    const float32x4_t ab = vaddq_f32(low_pairs(a, b), high_pairs(a, b));
    const float32x4_t cd = vaddq_f32(low_pairs(c, d), high_pairs(c, d));
    vst1q_f32(sums, vpaddq_f32(ab, cd));
}

// Inlined at once: GCC takes a function that only prefetches for one without an effect, and drops
// its calls.
ALWAYS_INLINE void prefetch(const void* line) { __builtin_prefetch(line); }
ALWAYS_INLINE void prefetch_l2(const void* line) { __builtin_prefetch(line, 0, 2); }

constexpr int kDecodeRows = 4;  // the smallest cores fetch ahead in four streams

}  // namespace

}  // namespace rwkv_edge
