// SPDX-License-Identifier: Apache-2.0
// The kernels for x86-64 with AVX2, FMA and F16C, and what newer levels add; each level's file
// compiles them with its own flags and names its LEVEL_KERNELS.
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stddef.h>

#include "kernels/levels.h"

namespace rwkv_edge {

namespace {

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
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// sum8 of four vectors.
inline void sum8(const F32 v[4], float* sums) {
    __m128 a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(sums, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
}

inline void fetch(const void* line) { _mm_prefetch((const char*)line, _MM_HINT_T0); }
inline void fetch_later(const void* line) { _mm_prefetch((const char*)line, _MM_HINT_T1); }

using Lanes = F32;
constexpr int kLanes = 8, kTileGroups = 2;

#include "kernels/float_kernels.inl"
#include "kernels/float_matmul.inl"

// --- matmul: block types ---

// A point that neither a value nor other PINs may pass.
#define PIN(vector) asm volatile("" : "+x"(vector))

#include "kernels/avx2_blocks.inl"

// Lanes 0 and 1 of every four added, in the first two lanes, and lanes 2 and 3, in the others.
inline __m128i sum_pairs(__m256i v) {
    const __m128i w = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_add_epi32(w, _mm_shuffle_epi32(w, 0xb1));
}

void quantize_activation(const float* x, int64_t n, const ActivationArrays& to) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < n / kBlock; ++b, x += kBlock) {
        F32 v[4];
        __m256i peak8 = _mm256_setzero_si256();  // compared as integers, see scalar.cpp
        for (int i = 0; i < 4; ++i) {
            v[i] = load(x + 8 * i);
            peak8 = _mm256_max_epu32(peak8, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        __m128i peak4 =
            _mm_max_epu32(_mm256_castsi256_si128(peak8), _mm256_extracti128_si256(peak8, 1));
        peak4 = _mm_max_epu32(peak4, _mm_shuffle_epi32(peak4, 0x4e));
        peak4 = _mm_max_epu32(peak4, _mm_shuffle_epi32(peak4, 0xb1));
        const float peak = bits_to_float((uint32_t)_mm_cvtsi128_si32(peak4));
        const F32 inverse = set(peak > 1e-30f && peak <= FLT_MAX ? 127.0f / peak : 0.0f);
        __m256i n32[4];
        for (int i = 0; i < 4; ++i) {
            // where the inverse is 0, so is the code, also of a NaN
            const F32 scaled =
                _mm256_and_ps(mul(v[i], inverse), _mm256_cmp_ps(inverse, set(0.0f), _CMP_NEQ_OQ));
            n32[i] = _mm256_cvtps_epi32(scaled);
        }
        // the four sums, and their total in the first lane
        const __m128i first = sum_pairs(_mm256_add_epi32(n32[0], n32[1]));
        const __m128i second = sum_pairs(_mm256_add_epi32(n32[2], n32[3]));
        const __m128i four = _mm_castps_si128(
            _mm_shuffle_ps(_mm_castsi128_ps(first), _mm_castsi128_ps(second), 0x88));
        _mm_storel_epi64((__m128i*)(to.sums8 + 4 * b),
                         _mm_packs_epi32(_mm_slli_epi32(four, 3), four));
        __m128i total = _mm_add_epi32(first, second);
        total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
        to.scale[b] = peak / 127.0f;
        to.scaled_sum[b] = to.scale[b] * (float)_mm_cvtsi128_si32(total);
        // packs works within 128-bit halves; a permutation puts their quarters back in order
        const auto in_order = [](__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xd8); };
        const __m256i low = in_order(_mm256_packs_epi32(n32[0], n32[1]));
        const __m256i high = in_order(_mm256_packs_epi32(n32[2], n32[3]));
        auto* wide = (__m256i*)(to.wide + b * kBlock);
        _mm256_storeu_si256(wide, low);
        _mm256_storeu_si256(wide + 1, high);
        _mm256_storeu_si256((__m256i*)(to.q + b * kBlock), in_order(_mm256_packs_epi16(low, high)));
    }
}

#include "kernels/avx2_peak.inl"

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
