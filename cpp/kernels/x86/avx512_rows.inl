// SPDX-License-Identifier: Apache-2.0
// Vectors of 512 bits, and some rows at a time: what the products of avx512.cpp share.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

using Ints = __m512i;
using Floats = __m512;
using Eight = __m256;  // floats of eight rows

ALWAYS_INLINE Floats join(Eight low, Eight high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
ALWAYS_INLINE void split(Floats v, Eight to[2]) {
    to[0] = _mm512_castps512_ps256(v);
    to[1] = _mm512_extractf32x8_ps(v, 1);
}

ALWAYS_INLINE __mmask16 first_lanes(int64_t n) {
    return (__mmask16)(n < 16 ? (1 << n) - 1 : 0xffff);
}

// A place in some rows, and how far ahead of it bytes are asked for.
template <int kRows>
struct SomeRows {
    const char* first[kRows];
    int64_t at, ahead;

    ALWAYS_INLINE const char* operator[](int r) const { return first[r] + at; }
};
using EightRows = SomeRows<8>;

// Rows r .. r + kRows - 1; past the end of the call's rows, the last one again.
template <int kRows>
inline SomeRows<kRows> rows_at(const MatmulArgs& a, int64_t r) {
    SomeRows<kRows> rows = {{}, 0, a.ahead / kRows};
    for (int i = 0; i < kRows; ++i)
        rows.first[i] = rows_from(a, smaller(r + i, a.row_end - 1)).first;
    return rows;
}

// How many rows a single token is multiplied with at a time. Four streams, asked for ahead, read
// as fast as memory gives; eight do not. More tokens need the eight lanes.
enum { kOneTokenRows = 4 };

// Asks for the next `bytes` of the rows. Every line of them is asked for, since the hardware alone
// fetches too late.
template <int kRows>
ALWAYS_INLINE void prefetch_ahead(const SomeRows<kRows>& rows, int64_t bytes) {
    UNROLL
    for (int r = 0; r < kRows; ++r)
        for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(rows[r] + rows.ahead + i, _MM_HINT_T0);
}

// All rows times at most kTokens tokens. They come kRows at a time, from as many streams
// (rows.inl): multiply(rows, sums) makes the sums of these rows with each token, in the first
// lanes.
template <int kRows, int kTokens, class Multiply>
ALWAYS_INLINE void few_tokens(const MatmulArgs& a, Multiply multiply) {
    const Runs runs = runs_of(a, kRows);
    Eight sums[kTokens];
    for (int64_t i = 0; i < runs.length; ++i) {
        SomeRows<kRows> rows = {{}, 0, a.ahead / kRows};
        for (int r = 0; r < kRows; ++r) rows.first[r] = runs[i](r);
        multiply(rows, sums);
        for (int64_t t = 0; t < a.tokens; ++t) {
            float y[8];
            _mm256_storeu_ps(y, sums[t]);
            for (int r = 0; r < kRows; ++r)
                a.y[t * a.y_stride + a.row_begin + r * runs.length + i] = y[r];
        }
    }
    for (int64_t r = a.row_begin + kRows * runs.length; r < a.row_end; r += kRows) {
        multiply(rows_at<kRows>(a, r), sums);
        for (int64_t t = 0; t < a.tokens; ++t)
            _mm256_mask_storeu_ps(a.y + t * a.y_stride + r,
                                  (__mmask8)first_lanes(smaller(kRows, a.row_end - r)), sums[t]);
    }
}

// The part of some rows that is multiplied next. It is asked for while many tokens are multiplied
// with the part before, a few lines at a time: many at once wait for each other.
struct NextPart {
    const char* first;
    int64_t rows, row_bytes, bytes;
    int64_t row = 0, at = 0;

    int64_t lines() const { return rows * (bytes / 64 + 1); }
    ALWAYS_INLINE void prefetch(int64_t n) {
        for (; n > 0 && at <= bytes; --n) {
            _mm_prefetch(first + row * row_bytes + at, _MM_HINT_T1);
            if (++row < rows) continue;
            row = 0;
            at += 64;
        }
    }
};

}  // namespace

}  // namespace rwkv_edge
