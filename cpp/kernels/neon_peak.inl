// SPDX-License-Identifier: Apache-2.0
// The peaks of this level, for neon.inl: what products are made of, on registers alone. Written in
// assembly, because a compiler sees that nothing comes of it.

enum { kPeakSums = 16 };  // in flight, so that none waits for itself
#define UNROLL_PEAK _Pragma("GCC unroll 16")

int64_t float_peak(int64_t rounds) {
    const float32x4_t w = vdupq_n_f32(0.5f), x = vdupq_n_f32(0.25f);
    float32x4_t sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL_PEAK
        for (int s = 0; s < kPeakSums; ++s)
            asm volatile("fmla %0.4s, %1.4s, %2.4s" : "+w"(sums[s]) : "w"(w), "w"(x));
    }
    return rounds * kPeakSums * 4 * 2;
}

// 16 products and their sums.
ALWAYS_INLINE void add_products(int32x4_t& sum, int8x16_t codes, int8x16_t x) {
#ifdef __ARM_FEATURE_DOTPROD
    asm volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(x));
#else
    int16x8_t products;
    asm volatile(
        "smull %1.8h, %2.8b, %3.8b\n\t"
        "smlal2 %1.8h, %2.16b, %3.16b\n\t"
        "sadalp %0.4s, %1.8h"
        : "+w"(sum), "=&w"(products)
        : "w"(codes), "w"(x));
#endif
}

int64_t int8_peak(int64_t rounds) {
    const int8x16_t codes = vdupq_n_s8(15), x = vdupq_n_s8(-127);
    int32x4_t sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL_PEAK
        for (int s = 0; s < kPeakSums; ++s) add_products(sums[s], codes, x);
    }
    return rounds * kPeakSums * 16 * 2;
}
