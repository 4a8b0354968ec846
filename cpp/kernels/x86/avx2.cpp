// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX2, FMA and F16C.
#include <float.h>
#include <immintrin.h>

#include "kernels/generic/block_matmul.inl"
#include "kernels/generic/float_kernels.inl"
#include "kernels/generic/float_matmul.inl"
#include "kernels/generic/input_matmul.inl"
#include "kernels/generic/outer_products.inl"
#include "kernels/levels.h"
#include "kernels/x86/avx2_blocks.inl"
#include "kernels/x86/avx2_inputs.inl"
#include "kernels/x86/avx2_peak.inl"
#include "kernels/x86/avx2_rounded.inl"
#include "kernels/x86/avx2_vectors.inl"

namespace rwkv_edge {

namespace {

// Lanes 0 and 1 of every four added, in the first two lanes, and lanes 2 and 3, in the others.
inline __m128i sum_pairs(__m256i v) {
    const __m128i w = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_add_epi32(w, _mm_shuffle_epi32(w, 0xb1));
}

int64_t rounded_bytes(int64_t cols) { return (RoundedRow::bytes(cols) + 63) / 64 * 64; }

void round_activations(const float* x, int64_t cols, void* to) {
    auto* block = (RoundedBlock*)to;
    auto* q16 = (__m256i*)(block + cols / kBlock);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < cols / kBlock; ++b, x += kBlock, ++block, q16 += 2) {
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
        _mm_storel_epi64((__m128i*)block->sums8, _mm_packs_epi32(_mm_slli_epi32(four, 3), four));
        __m128i total = _mm_add_epi32(first, second);
        total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
        block->scale = peak / 127.0f;
        block->scaled_sum = block->scale * (float)_mm_cvtsi128_si32(total);
        // packs works within 128-bit halves; a permutation puts their quarters back in order
        const auto in_order = [](__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xd8); };
        const __m256i low = in_order(_mm256_packs_epi32(n32[0], n32[1]));
        const __m256i high = in_order(_mm256_packs_epi32(n32[2], n32[3]));
        _mm256_storeu_si256(q16, low);
        _mm256_storeu_si256(q16 + 1, high);
        _mm256_storeu_si256((__m256i*)block->q, in_order(_mm256_packs_epi16(low, high)));
    }
}

ALWAYS_INLINE F32 add_products(F32 sum, F32 w, F32 x) {
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
    return sum;
}

int64_t float_peak(int64_t rounds) {
    const F32 w = set(0.5f), x = set(0.25f);
    F32 sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL_PEAK
        for (int s = 0; s < kPeakSums; ++s) sums[s] = add_products(sums[s], w, x);
    }
    return rounds * kPeakSums * 8 * 2;
}

}  // namespace

void avx2_wkv7(const Wkv7Args& args) { wkv7(args); }

void avx2_kernels(Kernels& table) {
    float_kernels(table);
    float_products(table);
    block_products<Avx2Kernel>(table);
    products_by_input<Widen>(table);
    table.rounded_bytes = rounded_bytes;
    table.round_activations = round_activations;
    table.outer_products = outer_products<UsualVectors, 4, 2>;
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
