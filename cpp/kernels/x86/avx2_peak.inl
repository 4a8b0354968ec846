// SPDX-License-Identifier: Apache-2.0
// The peak of products of codes: their arithmetic on registers alone. Written in assembly, because
// a compiler sees that nothing comes of it.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/generic/inlining.inl"
#include "kernels/x86/avx2_vectors.inl"

namespace rwkv_edge {

namespace {

// Sums in flight, so that none waits for itself; with the operands they fill the registers.
enum { kPeakSums = 12 };
#define UNROLL_PEAK _Pragma("GCC unroll 12")

#if HAS_VNNI
ALWAYS_INLINE __m256i add_products(__m256i sum, __m256i codes, __m256i x, __m256i) {
#ifdef __AVXVNNI__
    asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
#else
    asm volatile("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
#endif
    return sum;
}
#else
ALWAYS_INLINE __m256i add_products(__m256i sum, __m256i codes, __m256i x, __m256i ones) {
    __m256i products;
    asm volatile(
        "vpmaddubsw %3, %2, %1\n\t"
        "vpmaddwd %4, %1, %1\n\t"
        "vpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(products)
        : "x"(codes), "x"(x), "x"(ones));
    return sum;
}
#endif

int64_t int8_peak(int64_t rounds) {
    const __m256i codes = _mm256_set1_epi8(15), x = _mm256_set1_epi8(-127);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL_PEAK
        for (int s = 0; s < kPeakSums; ++s) sums[s] = add_products(sums[s], codes, x, ones);
    }
    return rounds * kPeakSums * 32 * 2;
}

}  // namespace

}  // namespace rwkv_edge
