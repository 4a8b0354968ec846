// SPDX-License-Identifier: Apache-2.0
// Products with float types, written once over F32 (see vectors.inl). One eight-lane sum per (row,
// token), several in flight.
#pragma once

#include <string.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/generic/vectors.inl"
#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

// The last elements of a row, zero-padded to eight.
template <class Weight>
inline F32 load_tail(const Weight* p, int64_t n) {
    Weight padded[8] = {};
    memcpy(padded, p, (size_t)n * sizeof(Weight));
    return load(padded);
}

// One token and kRows rows, straight from the weights. With that many streams the hardware fetches
// too late, so lines are asked for a little ahead.
template <class Weight, int kRows>
inline void dot_float(const Weight* const* rows, const float* x, int64_t cols, float* y,
                      int64_t row_stride) {
    constexpr int64_t kLine = 64 / sizeof(Weight), kAhead = 4 * kLine;
    F32 sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = set(0.0f);
    const auto add_products = [&](int64_t k) {
        const F32 xs = load(x + k);
        for (int r = 0; r < kRows; ++r) sums[r] = fma(load(rows[r] + k), xs, sums[r]);
    };
    int64_t k = 0;
    for (; k + kLine <= cols; k += kLine) {
        for (int r = 0; r < kRows; ++r) prefetch(rows[r] + k + kAhead);
        for (int64_t i = 0; i < kLine; i += 8) add_products(k + i);
    }
    for (; k + 8 <= cols; k += 8) add_products(k);
    if (k < cols) {
        const F32 xs = load_tail(x + k, cols - k);
        for (int r = 0; r < kRows; ++r)
            sums[r] = fma(load_tail(rows[r] + k, cols - k), xs, sums[r]);
    }
    for (int r = 0; r < kRows; ++r) y[r * row_stride] = sum8(sums[r]);
}

template <class Weight, int kRows>
inline void dot_rows(Rows rows, const MatmulArgs& a, float* y, int64_t row_stride) {
    const Weight* weights[kRows];
    for (int lane = 0; lane < kRows; ++lane) weights[lane] = (const Weight*)rows(lane);
    dot_float<Weight, kRows>(weights, (const float*)a.x, a.cols, y, row_stride);
}

template <class Weight>
inline void decode_float(const MatmulArgs& a) {
    const Runs runs = runs_of(a, kDecodeRows);
    for (int64_t i = 0; i < runs.length; ++i)
        dot_rows<Weight, kDecodeRows>(runs[i], a, a.y + a.row_begin + i, runs.length);
    int64_t r = a.row_begin + kDecodeRows * runs.length;
    for (; r + kDecodeRows <= a.row_end; r += kDecodeRows)
        dot_rows<Weight, kDecodeRows>(rows_from(a, r), a, a.y + r, 1);
    for (; r < a.row_end; ++r) dot_rows<Weight, 1>(rows_from(a, r), a, a.y + r, 1);
}

// With more tokens, a panel of four rows by kColumns is widened (which is exact) and serves all
// tokens out of the first cache. The sums wait in memory from one panel to the next.
struct Panel {
    enum { kRows = 4, kColumns = 1024, kTokens = 64 };
    float w[kRows][kColumns];
    F32 sums[kTokens][kRows];
};
static_assert(sizeof(Panel) <= kPanelScratch, "a panel fits the scratch");

template <class Weight>
inline void widen(const Weight* row, int64_t cols, float* out) {
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) store(out + k, load(row + k));
    if (k < cols) store(out + k, load_tail(row + k, cols - k));
}

// 4 rows x 3 tokens keep all registers busy. The first panel starts the sums.
template <int kTokens>
inline void panel_dots(const float (*w)[Panel::kColumns], const char* x, int64_t x_stride,
                       int64_t cols, bool first, F32 (*sums)[Panel::kRows]) {
    F32 s[Panel::kRows][kTokens];
    UNROLL
    for (int r = 0; r < Panel::kRows; ++r) UNROLL
    for (int t = 0; t < kTokens; ++t) s[r][t] = first ? set(0.0f) : sums[t][r];
    int64_t k = 0;
    _Pragma("GCC unroll 2") for (; k + 8 <= cols; k += 8) {
        F32 xs[kTokens];
        UNROLL
        for (int t = 0; t < kTokens; ++t) xs[t] = load((const float*)(x + t * x_stride) + k);
        UNROLL
        for (int r = 0; r < Panel::kRows; ++r) {
            const F32 row = load(w[r] + k);
            UNROLL
            for (int t = 0; t < kTokens; ++t) s[r][t] = fma(row, xs[t], s[r][t]);
        }
    }
    UNROLL
    for (int t = 0; t < kTokens; ++t) {
        UNROLL
        for (int r = 0; r < Panel::kRows; ++r) sums[t][r] = s[r][t];
        if (k == cols) continue;
        const F32 xs = load_tail((const float*)(x + t * x_stride) + k, cols - k);
        UNROLL
        for (int r = 0; r < Panel::kRows; ++r) sums[t][r] = fma(load(w[r] + k), xs, sums[t][r]);
    }
}

// `n` bytes of each row of a panel that is not needed yet.
inline void prefetch_rows(const char* first, int64_t row_bytes, int64_t n) {
    for (int64_t r = 0; r < Panel::kRows; ++r)
        for (int64_t at = 0; at < n; at += 64) prefetch_l2(first + r * row_bytes + at);
}

// `rows` rows from r on, `tokens` tokens from t0 on. Meanwhile the rows below are prefetched.
template <class Weight>
inline void panels(const MatmulArgs& a, int64_t r, int64_t rows, int64_t t0, int64_t tokens) {
    Panel& p = *(Panel*)a.scratch;
    for (int64_t k = 0; k < a.cols; k += Panel::kColumns) {
        const int64_t cols = smaller(Panel::kColumns, a.cols - k);
        const auto weights = [&](int64_t row) {
            return (const Weight*)((const char*)a.w + row * a.row_bytes) + k;
        };
        for (int64_t i = 0; i < Panel::kRows; ++i)  // the last row again where there are too few
            widen(weights(r + smaller(i, rows - 1)), cols, p.w[i]);
        const auto* below = (const char*)weights(r + Panel::kRows);
        const int64_t share = cols * (int64_t)sizeof(Weight) / (tokens / 3 + 1);
        const char* x = (const char*)a.x + t0 * a.x_stride + k * (int64_t)sizeof(float);
        int64_t t = 0;
        for (; t + 3 <= tokens; t += 3, below += share) {
            prefetch_rows(below, a.row_bytes, share);
            panel_dots<3>(p.w, x + t * a.x_stride, a.x_stride, cols, k == 0, p.sums + t);
        }
        for (; t + 2 <= tokens; t += 2)
            panel_dots<2>(p.w, x + t * a.x_stride, a.x_stride, cols, k == 0, p.sums + t);
        for (; t < tokens; ++t)
            panel_dots<1>(p.w, x + t * a.x_stride, a.x_stride, cols, k == 0, p.sums + t);
    }
    for (int64_t t = 0; t < tokens; ++t) {
        float sums[Panel::kRows];
        sum8(p.sums[t], sums);
        memcpy(a.y + (t0 + t) * a.y_stride + r, sums, (size_t)rows * sizeof(float));
    }
}

template <class Weight>
void matmul_float(const MatmulArgs& a) {
    if (a.tokens == 1) return decode_float<Weight>(a);
    for (int64_t r = a.row_begin; r < a.row_end; r += Panel::kRows)
        for (int64_t t = 0; t < a.tokens; t += Panel::kTokens)
            panels<Weight>(a, r, smaller(Panel::kRows, a.row_end - r), t,
                           smaller(Panel::kTokens, a.tokens - t));
}

void float_products(Kernels& table) {
    table.matmul[(int)Type::F32] = matmul_float<float>;
    table.matmul[(int)Type::F16] = matmul_float<Half>;
    table.matmul[(int)Type::BF16] = matmul_float<Bfloat16>;
}

}  // namespace

}  // namespace rwkv_edge
