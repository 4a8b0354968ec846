// SPDX-License-Identifier: Apache-2.0
// The kernels for AArch64, and what newer levels add; each level's file compiles them with its own
// flags and names its LEVEL_KERNELS.
#include <arm_neon.h>
#include <float.h>
#include <math.h>
#include <stddef.h>

#include "kernels/levels.h"

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

inline void fetch(const void* line) { __builtin_prefetch(line); }
inline void fetch_later(const void* line) { __builtin_prefetch(line, 0, 2); }

// Four rows: the smallest cores fetch ahead in four streams.
using Lanes = float32x4_t;
constexpr int kLanes = 4;
inline void store(float* p, Lanes v) { vst1q_f32(p, v); }

// What the shared loops are by hand, in instructions, a load of 16 bytes being one. Decoding
// floats: 32 multiply, 32 widen halves, the rest loads and fetches ahead. Prompts: 4 rows by 3
// tokens from the panel. wkv4: eight exponentials of 18 and 58 others; wkv6 and wkv7: 24 and 42 of
// arithmetic. Norms go over their elements in two or three passes.
//                   units neon neon_dotprod
//   f32  decode     128   94   94
//   f16  decode     128   99   99
//   bf16 decode     128   99   99
//   f32  prompt     128   54   54
//   f16  prompt     128   54   54
//   bf16 prompt     128   54   54
//   wkv4 recurrence 8     202  202
//   wkv6 recurrence 32    46   46
//   wkv7 recurrence 32    84   84
//   add          vector 8  11  11
//   mul          vector 8  11  11
//   lerp         vector 8  15  15
//   relu2        vector 8  11  11
//   layer_norm   vector 8  34  34
//   l2_normalize vector 8  23  23
//   bonus        vector 8  26  26
//   sigmoid      vector 8  49  49
//   silu         vector 8  51  51
//   tanh         vector 8  55  55
//   decay6       vector 8  83  83
//   decay7       vector 8  87  87
//   quantize_activation vector 32 99 99
#include "kernels/float_kernels.inl"
#include "kernels/float_matmul.inl"

// --- matmul: block types ---

#include "kernels/neon_blocks.inl"

void quantize_activation(const float* x, int64_t n, const ActivationArrays& to) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    for (int64_t b = 0; b < n / kBlock; ++b, x += kBlock) {
        float32x4_t v[8];
        uint32x4_t peak4 = vdupq_n_u32(0);  // compared as integers, see scalar.cpp
        for (int i = 0; i < 8; ++i) {
            v[i] = vld1q_f32(x + 4 * i);
            peak4 = vmaxq_u32(peak4, vandq_u32(vreinterpretq_u32_f32(v[i]), magnitude));
        }
        const float peak = bits_to_float(vmaxvq_u32(peak4));
        const bool usable = peak > 1e-30f && peak <= FLT_MAX;
        const float inverse = usable ? 127.0f / peak : 0.0f;
        // where the inverse is 0, so is the code, also of a NaN
        const int32x4_t mask = vdupq_n_s32(usable ? -1 : 0);
        const auto code = [&](int k) {
            return vandq_s32(vcvtnq_s32_f32(vmulq_n_f32(v[k], inverse)), mask);
        };
        int16x8_t n16[4];
        for (int i = 0; i < 4; ++i) {
            n16[i] = vmovn_high_s32(vmovn_s32(code(2 * i)), code(2 * i + 1));
            vst1q_s16(to.wide + b * kBlock + 8 * i, n16[i]);
            vst1_s8(to.q + b * kBlock + 8 * i, vmovn_s16(n16[i]));
        }
        // of each half of the block, by pair of columns
        const int32x4_t pairs =
            vreinterpretq_s32_s16(vpaddq_s16(vaddq_s16(n16[0], n16[1]), vaddq_s16(n16[2], n16[3])));
        const int16x4_t four =
            vadd_s16(vreinterpret_s16_s32(vget_low_s32(vuzp1q_s32(pairs, pairs))),
                     vreinterpret_s16_s32(vget_low_s32(vuzp2q_s32(pairs, pairs))));
        vst1_s16(to.sums8 + 4 * b, vshl_n_s16(four, 3));
        to.scale[b] = peak / 127.0f;
        to.scaled_sum[b] = to.scale[b] * (float)vaddlv_s16(four);
    }
}

#include "kernels/neon_peak.inl"

}  // namespace

void LEVEL_KERNELS(Kernels& table) {
    float_kernels(table);
    float_products(table);
    block_products(table);
    table.quantize_activation = quantize_activation;
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
