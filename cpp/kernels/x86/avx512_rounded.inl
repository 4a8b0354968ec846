// SPDX-License-Identifier: Apache-2.0
// A row of rounded activations, for the block kernels of avx512.cpp.
#pragma once

#include <float.h>
#include <immintrin.h>
#include <stdint.h>

#include "kernels/x86/avx512_rows.inl"

namespace rwkv_edge {

namespace {

struct RoundedBlock {
    float scale, scaled_sum;  // the latter is scale times the sum of q
    int32_t minus_sums[3];    // minus the sum of q: of 16 columns, of the other 16, of all
};

struct RoundedRow {
    int8_t* q;            // [cols]
    RoundedBlock* block;  // [cols / 32]

    ALWAYS_INLINE RoundedRow(void* row, int64_t cols)
        : q((int8_t*)row), block((RoundedBlock*)(q + cols)) {}
    ALWAYS_INLINE RoundedRow(const MatmulArgs& a, int64_t token)
        : RoundedRow((char*)a.x + token * a.x_stride, a.cols) {}
};

int64_t rounded_bytes(int64_t cols) {
    const int64_t bytes = cols + cols / kBlock * (int64_t)sizeof(RoundedBlock);
    return (bytes + 63) / 64 * 64;
}

void round_activations(const float* x, int64_t cols, void* to) {
    const RoundedRow row(to, cols);
    const Ints magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < cols / kBlock; ++b, x += kBlock) {
        const Floats v[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
        // compared as integers, see scalar.cpp
        const float peak = bits_to_float(_mm512_reduce_max_epu32(
            _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v[0]), magnitude),
                             _mm512_and_si512(_mm512_castps_si512(v[1]), magnitude))));
        const bool usable = peak > 1e-30f && peak <= FLT_MAX;
        const Floats inverse = _mm512_set1_ps(usable ? 127.0f / peak : 0.0f);
        const __mmask16 all = usable ? 0xffff : 0;  // else the codes are 0, also of a NaN
        int32_t sums[2];
        for (int i = 0; i < 2; ++i) {
            const Ints q = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(all, v[i], inverse));
            sums[i] = _mm512_reduce_add_epi32(q);
            _mm_storeu_si128((__m128i*)(row.q + b * kBlock + 16 * i), _mm512_cvtepi32_epi8(q));
        }
        const float scale = peak / 127.0f;
        const int32_t sum = sums[0] + sums[1];
        row.block[b] = {scale, scale * (float)sum, {-sums[0], -sums[1], -sum}};
    }
}

}  // namespace

}  // namespace rwkv_edge
