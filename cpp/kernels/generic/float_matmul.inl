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

// Four rows and kTokens tokens; 4 x 3 keep all registers busy. The first columns start the sums,
// which wait in memory from one call to the next. With kAhead, that many lines ahead are
// prefetched.
enum { kPanelRows = 4 };
template <int kTokens, int kAhead, class Weight>
NEVER_INLINE void panel_dots(const Weight* const* w, const char* x, int64_t x_stride, int64_t cols,
                             bool first, F32 (*sums)[kPanelRows]) {
    constexpr int64_t kLine = 64 / sizeof(Weight);
    const Weight* rows[kPanelRows];
    F32 s[kPanelRows][kTokens];
    UNROLL
    for (int r = 0; r < kPanelRows; ++r) rows[r] = w[r];
    UNROLL
    for (int r = 0; r < kPanelRows; ++r) UNROLL
    for (int t = 0; t < kTokens; ++t) s[r][t] = first ? set(0.0f) : sums[t][r];
    const auto add_products = [&](int64_t k) INLINE_LAMBDA {
        F32 xs[kTokens];
        UNROLL
        for (int t = 0; t < kTokens; ++t) xs[t] = load((const float*)(x + t * x_stride) + k);
        UNROLL
        for (int r = 0; r < kPanelRows; ++r) {
            const F32 row = load(rows[r] + k);
            UNROLL
            for (int t = 0; t < kTokens; ++t) s[r][t] = fma(row, xs[t], s[r][t]);
            // Else clang loads all rows first, and spills sums.
            UNROLL
            for (int t = 0; t < kTokens; ++t) pin(s[r][t]);
        }
    };
    int64_t k = 0;
    for (; k + kLine <= cols; k += kLine) {
        UNROLL
        for (int r = 0; r < kPanelRows && kAhead > 0; ++r) prefetch(rows[r] + k + kAhead * kLine);
        // twice: more, and compilers spill
        _Pragma("GCC unroll 2") for (int64_t i = 0; i < kLine; i += 8) add_products(k + i);
    }
    for (; k + 8 <= cols; k += 8) add_products(k);
    UNROLL
    for (int t = 0; t < kTokens; ++t) {
        UNROLL
        for (int r = 0; r < kPanelRows; ++r) sums[t][r] = s[r][t];
        if (k == cols) continue;
        const F32 xs = load_tail((const float*)(x + t * x_stride) + k, cols - k);
        UNROLL
        for (int r = 0; r < kPanelRows; ++r)
            sums[t][r] = fma(load_tail(w[r] + k, cols - k), xs, sums[t][r]);
    }
}

// dots.add<n>(t) for tokens t .. t + n - 1: three at a time, but no single one at the end of many.
template <class Dots>
inline void each_three(int64_t tokens, Dots dots) {
    int64_t t = 0;
    for (; tokens - t == 3 || tokens - t > 4; t += 3) dots.template add<3>(t);
    for (; tokens - t >= 2; t += 2) dots.template add<2>(t);
    if (t < tokens) dots.template add<1>(t);
}

// --- few tokens: the weights as they come ---

// Up to kDecodeRows rows side by side, as one token has them. What a few columns of them hold stays
// in the first cache while all tokens use it.
enum { kFewFloatTokens = 12, kFewColumns = 128 };

template <class Weight>
struct FewDots {
    const Weight* w[kPanelRows];
    const char* x;
    int64_t x_stride, cols;
    bool first;
    F32 (*sums)[kPanelRows];

    template <int kTokens>
    void add(int64_t t) const {
        constexpr int kAhead = 16;  // a KiB
        const char* from = x + t * x_stride;
        if (t == 0)
            panel_dots<kTokens, kAhead>(w, from, x_stride, cols, first, sums);
        else
            panel_dots<kTokens, 0>(w, from, x_stride, cols, first, sums + t);
    }
};

template <class Weight>
inline void few_float_rows(Rows rows, int n, const MatmulArgs& a, float* y, int64_t row_stride) {
    F32 sums[kDecodeRows / kPanelRows][kFewFloatTokens][kPanelRows];
    for (int64_t k = 0; k < a.cols; k += kFewColumns)
        for (int r = 0; r < n; r += kPanelRows) {
            FewDots<Weight> dots;
            for (int i = 0; i < kPanelRows; ++i)  // the last row again where there are too few
                dots.w[i] = (const Weight*)rows(r + i < n ? r + i : n - 1) + k;
            dots.x = (const char*)a.x + k * (int64_t)sizeof(float);
            dots.x_stride = a.x_stride;
            dots.cols = smaller(kFewColumns, a.cols - k);
            dots.first = k == 0;
            dots.sums = sums[r / kPanelRows];
            each_three(a.tokens, dots);
        }
    for (int64_t t = 0; t < a.tokens; ++t)
        for (int r = 0; r < n; r += kPanelRows) {
            float four[kPanelRows];
            sum8(sums[r / kPanelRows][t], four);
            for (int i = 0; i < kPanelRows && r + i < n; ++i)
                y[t * a.y_stride + (r + i) * row_stride] = four[i];
        }
}

template <class Weight>
inline void few_floats(const MatmulArgs& a) {
    const Runs runs = runs_of(a, kDecodeRows);
    for (int64_t i = 0; i < runs.length; ++i)
        few_float_rows<Weight>(runs[i], kDecodeRows, a, a.y + a.row_begin + i, runs.length);
    for (int64_t r = a.row_begin + kDecodeRows * runs.length; r < a.row_end; r += kDecodeRows)
        few_float_rows<Weight>(rows_from(a, r), (int)smaller(kDecodeRows, a.row_end - r), a,
                               a.y + r, 1);
}

// --- many tokens ---

// A panel of four rows by kColumns is widened (which is exact) and serves all tokens out of the
// first cache.
struct Panel {
    enum { kColumns = 1024, kTokens = 64 };
    float w[kPanelRows][kColumns];
    F32 sums[kTokens][kPanelRows];
};
static_assert(sizeof(Panel) <= kPanelScratch, "a panel fits the scratch");

template <class Weight>
inline void widen(const Weight* row, int64_t cols, float* out) {
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) store(out + k, load(row + k));
    if (k < cols) store(out + k, load_tail(row + k, cols - k));
}

// All tokens times a panel. Meanwhile `share` bytes of each row below are prefetched per step.
struct PanelDots {
    Panel& panel;
    const char* x;
    int64_t x_stride, cols;
    bool first;
    const char* below;
    int64_t row_bytes, share;

    template <int kTokens>
    void add(int64_t t) {
        for (int64_t r = 0; r < kPanelRows; ++r)
            for (int64_t at = 0; at < share; at += 64) prefetch_l2(below + r * row_bytes + at);
        below += share;
        const float* w[kPanelRows];
        for (int r = 0; r < kPanelRows; ++r) w[r] = panel.w[r];
        panel_dots<kTokens, 0>(w, x + t * x_stride, x_stride, cols, first, panel.sums + t);
    }
};

// `rows` rows from r on, `tokens` tokens from t0 on.
template <class Weight>
inline void panels(const MatmulArgs& a, int64_t r, int64_t rows, int64_t t0, int64_t tokens) {
    Panel& p = *(Panel*)a.scratch;
    for (int64_t k = 0; k < a.cols; k += Panel::kColumns) {
        const int64_t cols = smaller(Panel::kColumns, a.cols - k);
        const auto weights = [&](int64_t row) {
            return (const Weight*)((const char*)a.w + row * a.row_bytes) + k;
        };
        for (int64_t i = 0; i < kPanelRows; ++i)  // the last row again where there are too few
            widen(weights(r + smaller(i, rows - 1)), cols, p.w[i]);
        each_three(tokens,
                   PanelDots{p, (const char*)a.x + t0 * a.x_stride + k * (int64_t)sizeof(float),
                             a.x_stride, cols, k == 0, (const char*)weights(r + kPanelRows),
                             a.row_bytes, cols * (int64_t)sizeof(Weight) / (tokens / 3 + 1)});
    }
    for (int64_t t = 0; t < tokens; ++t) {
        float sums[kPanelRows];
        sum8(p.sums[t], sums);
        memcpy(a.y + (t0 + t) * a.y_stride + r, sums, (size_t)rows * sizeof(float));
    }
}

template <class Weight>
void matmul_float(const MatmulArgs& a) {
    if (a.tokens == 1) return decode_float<Weight>(a);
    if (a.tokens <= kFewFloatTokens) return few_floats<Weight>(a);
    for (int64_t r = a.row_begin; r < a.row_end; r += kPanelRows)
        for (int64_t t = 0; t < a.tokens; t += Panel::kTokens)
            panels<Weight>(a, r, smaller(kPanelRows, a.row_end - r), t,
                           smaller(Panel::kTokens, a.tokens - t));
}

void float_products(Kernels& table) {
    table.matmul[(int)Type::F32] = matmul_float<float>;
    table.matmul[(int)Type::F16] = matmul_float<Half>;
    table.matmul[(int)Type::BF16] = matmul_float<Bfloat16>;
}

}  // namespace

}  // namespace rwkv_edge
