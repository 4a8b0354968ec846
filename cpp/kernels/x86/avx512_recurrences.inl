// SPDX-License-Identifier: Apache-2.0
// The recurrence of RWKV-7 in 512 bits, with the results of AVX2 to the bit.
#pragma once

#include <immintrin.h>

#include "kernels/x86/avx512_floats.inl"

namespace rwkv_edge {

namespace {

// The sum of each half in all of its lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
ALWAYS_INLINE Floats sum_halves(Floats v) {
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    return _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
}

// Four rows of a head of 64, for all tokens: they stay in registers from one token to the next.
// A vector holds eight columns of two rows.
struct FourRowsOf64 {
    enum { kPairs = 2, kVectors = 8, kSize = 8 * kVectors };
    Floats s[kPairs][kVectors];

    ALWAYS_INLINE FourRowsOf64(const float* rows) {
        UNROLL
        for (int p = 0; p < kPairs; ++p) UNROLL
        for (int j = 0; j < kVectors; ++j) {
            const float* row = rows + 2 * p * kSize + 8 * j;
            s[p][j] = load_pair(row, row + kSize);
        }
    }
    ALWAYS_INLINE void store(float* rows) const {
        UNROLL
        for (int p = 0; p < kPairs; ++p) UNROLL
        for (int j = 0; j < kVectors; ++j) {
            Eight halves[2];
            split(s[p][j], halves);
            float* row = rows + 2 * p * kSize + 8 * j;
            _mm256_storeu_ps(row, halves[0]);
            _mm256_storeu_ps(row + kSize, halves[1]);
        }
    }

    // One token, whose values begin at `at`, for the rows from i on.
    ALWAYS_INLINE void step(const Wkv7Args& args, int64_t at, int64_t i) {
        const float *r = args.r + at, *w = args.w + at, *k = args.k + at, *v = args.v + at + i;
        const float *kk = args.kk + at, *a = args.a + at;
        Floats remove[kPairs], value[kPairs], out[kPairs];
        UNROLL
        for (Floats& sums : remove) sums = _mm512_setzero_ps();
        UNROLL
        for (int j = 0; j < kVectors; ++j) {
            const Floats key = load_twice(kk + 8 * j);
            UNROLL
            for (int p = 0; p < kPairs; ++p) remove[p] = _mm512_fmadd_ps(s[p][j], key, remove[p]);
        }
        UNROLL
        for (int p = 0; p < kPairs; ++p) {
            remove[p] = _mm512_xor_ps(sum_halves(remove[p]), _mm512_set1_ps(-0.0f));
            value[p] = join(_mm256_set1_ps(v[2 * p]), _mm256_set1_ps(v[2 * p + 1]));
            out[p] = _mm512_setzero_ps();
        }
        UNROLL
        for (int j = 0; j < kVectors; ++j) {
            const Eight replace = _mm256_mul_ps(load_eight(kk + 8 * j), load_eight(a + 8 * j));
            const Floats both = _mm512_broadcast_f32x8(replace), wj = load_twice(w + 8 * j);
            const Floats kj = load_twice(k + 8 * j), rj = load_twice(r + 8 * j);
            UNROLL
            for (int p = 0; p < kPairs; ++p) {
                const Floats kept = _mm512_fmadd_ps(s[p][j], wj, _mm512_mul_ps(remove[p], both));
                s[p][j] = _mm512_fmadd_ps(value[p], kj, kept);
                out[p] = _mm512_fmadd_ps(s[p][j], rj, out[p]);
            }
        }
        UNROLL
        for (int p = 0; p < kPairs; ++p) {
            Eight halves[2];
            split(sum_halves(out[p]), halves);
            args.y[at + i + 2 * p] = _mm256_cvtss_f32(halves[0]);
            args.y[at + i + 2 * p + 1] = _mm256_cvtss_f32(halves[1]);
        }
    }
};

void wkv7(const Wkv7Args& args) {
    if (args.size != FourRowsOf64::kSize) return avx2_wkv7(args);
    const Wkv7Args p = args;  // what is stored cannot change it
    for (int64_t i = 0; i < p.size; i += 4) {
        FourRowsOf64 rows(p.state + i * p.size);
        for (int64_t t = 0; t < p.tokens; ++t) rows.step(p, t * p.stride, i);
        rows.store(p.state + i * p.size);
    }
}

}  // namespace

}  // namespace rwkv_edge
