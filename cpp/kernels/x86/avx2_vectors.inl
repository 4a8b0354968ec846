// SPDX-License-Identifier: Apache-2.0
// The vector verbs of vectors.inl with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/generic/inlining.inl"
#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

// Whether one instruction multiplies bytes and adds four products to a sum, in AVX-VNNI's encoding
// or in that of AVX-512.
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif

// A point that neither a value nor other PINs may pass.
#define PIN(vector) asm volatile("" : "+v"(vector))

using F32 = __m256;

inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
inline F32 set(float v) { return _mm256_set1_ps(v); }
inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 negative_fma(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a, b, c); }
ALWAYS_INLINE void pin(F32& v) { PIN(v); }
inline F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 round_(F32 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline F32 pow2(F32 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

inline __m128 fold(F32 v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

// ((0+4)+(2+6)) + ((1+5)+(3+7)), the order of kernels.h
inline float sum8(F32 v) {
    const __m128 fours = fold(v);
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
}

inline F32 load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline F32 load(const Bfloat16* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

// sum8 of four vectors.
inline void sum8(const F32 v[4], float* sums) {
    __m128 a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(sums, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
}

// Inlined at once: GCC takes a function that only prefetches for one without an effect, and drops
// its calls.
ALWAYS_INLINE void prefetch(const void* line) { _mm_prefetch((const char*)line, _MM_HINT_T0); }
ALWAYS_INLINE void prefetch_l2(const void* line) { _mm_prefetch((const char*)line, _MM_HINT_T1); }

constexpr int kDecodeRows = 8;

}  // namespace

}  // namespace rwkv_edge
