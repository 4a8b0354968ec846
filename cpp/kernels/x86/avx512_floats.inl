// SPDX-License-Identifier: Apache-2.0
// Products with float types in 512 bits. A vector holds eight columns of two rows, and is
// multiplied with the same eight activations twice: each half is one of the eight-lane sums of
// kernels.h.
#pragma once

#include <immintrin.h>

#include "kernels/x86/avx512_rows.inl"

namespace rwkv_edge {

namespace {

// Eight columns of a row; with a mask, its columns, and zeros.
ALWAYS_INLINE __m256 load_eight(const float* p) { return _mm256_loadu_ps(p); }
ALWAYS_INLINE __m256 load_eight(const float* p, __mmask8 mask) {
    return _mm256_maskz_loadu_ps(mask, p);
}
ALWAYS_INLINE __m128i load_bits(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
ALWAYS_INLINE __m128i load_bits(const void* p, __mmask8 mask) {
    return _mm_maskz_loadu_epi16(mask, p);
}
template <class... Mask>
ALWAYS_INLINE __m256 load_eight(const Half* p, Mask... mask) {
    return _mm256_cvtph_ps(load_bits(p, mask...));
}
template <class... Mask>
ALWAYS_INLINE __m256 load_eight(const Bfloat16* p, Mask... mask) {
    const __m256i wide = _mm256_cvtepu16_epi32(load_bits(p, mask...));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// Eight columns of two rows.
template <class... Mask>
ALWAYS_INLINE Floats load_pair(const float* a, const float* b, Mask... mask) {
    return join(load_eight(a, mask...), load_eight(b, mask...));
}
template <class... Mask>
ALWAYS_INLINE __m256i pair_bits(const void* a, const void* b, Mask... mask) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_bits(a, mask...)),
                                   load_bits(b, mask...), 1);
}
template <class... Mask>
ALWAYS_INLINE Floats load_pair(const Half* a, const Half* b, Mask... mask) {
    return _mm512_cvtph_ps(pair_bits(a, b, mask...));
}
template <class... Mask>
ALWAYS_INLINE Floats load_pair(const Bfloat16* a, const Bfloat16* b, Mask... mask) {
    const Ints wide = _mm512_cvtepu16_epi32(pair_bits(a, b, mask...));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Eight activations, twice.
template <class... Mask>
ALWAYS_INLINE Floats load_twice(const float* x, Mask... mask) {
    return _mm512_broadcast_f32x8(load_eight(x, mask...));
}

// Four vectors of sums -> those of eight rows, added up as kernels.h says:
// ((0+4)+(2+6)) + ((1+5)+(3+7)).
ALWAYS_INLINE Eight sum_pairs(const Floats v[4]) {
    Floats fours[2];
    UNROLL
    for (int i = 0; i < 2; ++i)
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
    // a 128-bit lane of `fours` is a row; one of `twos` is a row of the first, and one of the
    // second
    const Floats twos = _mm512_add_ps(_mm512_shuffle_ps(fours[0], fours[1], 0x44),
                                      _mm512_shuffle_ps(fours[0], fours[1], 0xee));
    const Floats ones =
        _mm512_add_ps(_mm512_shuffle_ps(twos, twos, 0x88), _mm512_shuffle_ps(twos, twos, 0xdd));
    const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, ones));
}

ALWAYS_INLINE const float* activations(const MatmulArgs& a, int64_t token) {
    return (const float*)((const char*)a.x + token * a.x_stride);
}

// --- few tokens: some rows straight from the weights ---

// Calls columns(k) for every eight columns, columns(k, mask) for fewer, and asks for weights ahead.
template <class Weight, int kRows, class Columns>
ALWAYS_INLINE void each_eight(SomeRows<kRows> rows, int64_t cols, Columns columns) {
    constexpr int64_t kLine = 64 / sizeof(Weight);
    int64_t k = 0;
    for (; k + kLine <= cols; k += kLine, rows.at += 64) {
        prefetch_ahead(rows, 64);
        UNROLL
        for (int64_t i = 0; i < kLine; i += 8) columns(k + i);
    }
    for (; k + 8 <= cols; k += 8) columns(k);
    if (k < cols) columns(k, (__mmask8)first_lanes(cols - k));
}

// One token has no use for wider vectors: a row after the other is cheaper to load.
template <class Weight>
inline Eight one_token(const SomeRows<kOneTokenRows>& rows, const float* x, int64_t cols) {
    Eight acc[kOneTokenRows];
    UNROLL
    for (Eight& sums : acc) sums = _mm256_setzero_ps();
    each_eight<Weight>(rows, cols, [&](int64_t k, auto... mask) INLINE_LAMBDA {
        const Eight xs = load_eight(x + k, mask...);
        UNROLL
        for (int r = 0; r < kOneTokenRows; ++r)
            acc[r] = _mm256_fmadd_ps(load_eight((const Weight*)rows[r] + k, mask...), xs, acc[r]);
    });
    const Floats none = _mm512_setzero_ps();
    const Floats pairs[4] = {join(acc[0], acc[1]), join(acc[2], acc[3]), none, none};
    return sum_pairs(pairs);
}

// kTokens tokens from t0 on.
template <class Weight, int kTokens>
inline void some_tokens(const EightRows& rows, const MatmulArgs& a, int64_t t0, Eight* sums) {
    Floats acc[kTokens][4];
    const float* x[kTokens];
    UNROLL
    for (int t = 0; t < kTokens; ++t) {
        x[t] = activations(a, t0 + t);
        UNROLL
        for (int p = 0; p < 4; ++p) acc[t][p] = _mm512_setzero_ps();
    }
    each_eight<Weight>(rows, a.cols, [&](int64_t k, auto... mask) INLINE_LAMBDA {
        Floats w[4];
        UNROLL
        for (int p = 0; p < 4; ++p)
            w[p] = load_pair((const Weight*)rows[2 * p] + k, (const Weight*)rows[2 * p + 1] + k,
                             mask...);
        UNROLL
        for (int t = 0; t < kTokens; ++t) {
            const Floats xs = load_twice(x[t] + k, mask...);
            UNROLL
            for (int p = 0; p < 4; ++p) acc[t][p] = _mm512_fmadd_ps(w[p], xs, acc[t][p]);
        }
    });
    UNROLL
    for (int t = 0; t < kTokens; ++t) sums[t0 + t] = sum_pairs(acc[t]);
}

// --- many tokens ---
//
// A panel of 16 rows by 512 columns is widened (which is exact) and serves all tokens out of the
// first cache. The sums wait in memory from one panel to the next.

struct Panel {
    enum { kGroups = 2, kRows = 8 * kGroups, kColumns = 512, kTokens = 64 };
    Floats w[kGroups][kColumns / 8][4];
    Floats sums[kGroups][kTokens][4];
};

template <class Weight>
inline void widen(const EightRows& rows, int64_t cols, Floats (*to)[4]) {
    const auto columns = [&](int64_t k, auto... mask) INLINE_LAMBDA {
        UNROLL
        for (int p = 0; p < 4; ++p)
            to[k / 8][p] = load_pair((const Weight*)rows[2 * p] + k,
                                     (const Weight*)rows[2 * p + 1] + k, mask...);
    };
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) columns(k);
    if (k < cols) columns(k, (__mmask8)first_lanes(cols - k));
}

// Eight rows of a panel and kTokens tokens, whose columns begin at x.
template <int kTokens>
inline void panel_dots(const Floats (*w)[4], const float* x, int64_t x_stride, int64_t cols,
                       bool first, Floats (*sums)[4]) {
    Floats acc[kTokens][4];
    UNROLL
    for (int t = 0; t < kTokens; ++t) UNROLL
    for (int p = 0; p < 4; ++p) acc[t][p] = first ? _mm512_setzero_ps() : sums[t][p];
    const auto add_columns = [&](int64_t k, auto... mask) INLINE_LAMBDA {
        UNROLL
        for (int t = 0; t < kTokens; ++t) {
            const Floats xs =
                load_twice((const float*)((const char*)x + t * x_stride) + k, mask...);
            UNROLL
            for (int p = 0; p < 4; ++p) acc[t][p] = _mm512_fmadd_ps(w[k / 8][p], xs, acc[t][p]);
        }
    };
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) add_columns(k);
    if (k < cols) add_columns(k, (__mmask8)first_lanes(cols - k));
    UNROLL
    for (int t = 0; t < kTokens; ++t) UNROLL
    for (int p = 0; p < 4; ++p) sums[t][p] = acc[t][p];
}

// Up to 16 rows from r on, `tokens` tokens from t0 on.
template <class Weight>
inline void panel_rows(const MatmulArgs& a, int64_t r, int64_t t0, int64_t tokens) {
    Panel& panel = *(Panel*)a.scratch;
    const int groups = a.row_end - r > 8 ? 2 : 1;
    for (int64_t k = 0; k < a.cols; k += Panel::kColumns) {
        const int64_t cols = smaller(Panel::kColumns, a.cols - k);
        for (int g = 0; g < groups; ++g) {
            EightRows rows = rows_at<8>(a, r + 8 * g);
            rows.at = k * (int64_t)sizeof(Weight);
            widen<Weight>(rows, cols, panel.w[g]);
        }
        // the next panel of these rows, or the first of those below
        const bool last = k + cols == a.cols;
        NextPart next = {rows_from(a, last ? r + Panel::kRows : r).first +
                             (last ? 0 : k + cols) * (int64_t)sizeof(Weight),
                         Panel::kRows, a.row_bytes, cols * (int64_t)sizeof(Weight)};
        const auto dots = [&]<int kTokens>(int64_t t) {
            next.prefetch(kTokens * next.lines() / tokens + 1);
            const float* x = activations(a, t0 + t) + k;
            for (int g = 0; g < groups; ++g)
                panel_dots<kTokens>(panel.w[g], x, a.x_stride, cols, k == 0, panel.sums[g] + t);
        };
        int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) dots.template operator()<4>(t);
        for (; t < tokens; ++t) dots.template operator()<1>(t);
    }
    for (int64_t t = 0; t < tokens; ++t)
        for (int g = 0; g < groups; ++g)
            _mm256_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + r + 8 * g,
                                  (__mmask8)first_lanes(a.row_end - r - 8 * g),
                                  sum_pairs(panel.sums[g][t]));
}

template <class Weight>
void matmul_float(const MatmulArgs& a) {
    if (a.tokens == 1)
        return few_tokens<kOneTokenRows, 1>(
            a, [&](const SomeRows<kOneTokenRows>& rows, Eight* sums)
                   INLINE_LAMBDA { *sums = one_token<Weight>(rows, (const float*)a.x, a.cols); });
    if (a.tokens <= 8)
        return few_tokens<8, 8>(a, [&](const EightRows& rows, Eight* sums) {
            int64_t t = 0;
            for (; t + 4 <= a.tokens; t += 4) some_tokens<Weight, 4>(rows, a, t, sums);
            if (t + 2 <= a.tokens) some_tokens<Weight, 2>(rows, a, t, sums);
            if (a.tokens % 2 == 1) some_tokens<Weight, 1>(rows, a, a.tokens - 1, sums);
        });
    for (int64_t t = 0; t < a.tokens; t += Panel::kTokens)
        for (int64_t r = a.row_begin; r < a.row_end; r += Panel::kRows)
            panel_rows<Weight>(a, r, t, smaller(Panel::kTokens, a.tokens - t));
}

void float_products(Kernels& table) {
    table.matmul[(int)Type::F32] = matmul_float<float>;
    table.matmul[(int)Type::F16] = matmul_float<Half>;
    table.matmul[(int)Type::BF16] = matmul_float<Bfloat16>;
}

}  // namespace

}  // namespace rwkv_edge
