// SPDX-License-Identifier: Apache-2.0
// The peak of products of codes: their arithmetic on registers alone. Written in assembly, because
// a compiler sees that nothing comes of it.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

#include "kernels/generic/inlining.inl"

namespace rwkv_edge {

namespace {

enum { kPeakSums = 16 };  // in flight, so that none waits for itself
#define UNROLL_PEAK _Pragma("GCC unroll 16")

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

}  // namespace

}  // namespace rwkv_edge
