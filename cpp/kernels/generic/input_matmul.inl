// SPDX-License-Identifier: Apache-2.0
// Products with matrices by input, written once for all types. Lanes are outputs, and each output
// is one chain of fused multiply-adds, so vectors of any width give the same bits.
//
// How weights become floats is said by the Widen of their type, which a level defines:
//   Isa                  the vectors: V of kLanes floats; load, store, set, fma
//   kColumns, kBytes     of a block; of the float types, of 32 weights
//   header(block)        what its columns share
//   kGroup               how many times 32 columns come out of the same bytes
//   columns(block, header, i, out)   its i-th group of these
//   Longer               optional: the same for several blocks at once
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/generic/vectors.inl"
#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

// The vectors of vectors.inl.
struct UsualVectors {
    using V = F32;
    static constexpr int kLanes = 8;
    ALWAYS_INLINE static V load(const float* p) { return rwkv_edge::load(p); }
    ALWAYS_INLINE static void store(float* p, V v) { rwkv_edge::store(p, v); }
    ALWAYS_INLINE static V set(float v) { return rwkv_edge::set(v); }
    ALWAYS_INLINE static V fma(V a, V b, V c) { return rwkv_edge::fma(a, b, c); }
};

// --- one token ---

// Rows that are worked on side by side, and those to be fetched meanwhile.
template <int kRows>
struct InputRows {
    const char *now[kRows], *later[kRows];
    float x[kRows];
};

template <class Widen, int kRows>
ALWAYS_INLINE void add_block(const InputRows<kRows>& rows, int64_t at, float* y) {
    using Isa = typename Widen::Isa;
    constexpr int kTogether = Widen::kGroup * kBlock, kVectors = kTogether / Isa::kLanes;
    // The lines of a row that begin in this block.
    int64_t line = (at + 63) / 64 * 64;
    UNROLL
    for (int l = 0; l < (Widen::kBytes + 63) / 64; ++l, line += 64) {
        if (line >= at + Widen::kBytes) break;
        UNROLL
        for (int r = 0; r < kRows; ++r) prefetch(rows.later[r] + line);
    }
    typename Widen::Header headers[kRows];
    UNROLL
    for (int r = 0; r < kRows; ++r) headers[r] = Widen::header(rows.now[r] + at);
    for (int i = 0; i < Widen::kColumns / kTogether; ++i, y += kTogether) {
        typename Isa::V sums[kVectors];
        UNROLL
        for (int v = 0; v < kVectors; ++v) sums[v] = Isa::load(y + v * Isa::kLanes);
        UNROLL
        for (int r = 0; r < kRows; ++r) {
            typename Isa::V w[kVectors];
            Widen::columns(rows.now[r] + at, headers[r], i, w);
            const typename Isa::V x = Isa::set(rows.x[r]);
            UNROLL
            for (int v = 0; v < kVectors; ++v) sums[v] = Isa::fma(x, w[v], sums[v]);
        }
        UNROLL
        for (int v = 0; v < kVectors; ++v) Isa::store(y + v * Isa::kLanes, sums[v]);
    }
}

// Active rows [i, i + kRows) of a token.
template <class Widen, int kRows>
inline void add_rows(const InputMatmulArgs& a, int64_t i) {
    constexpr int kAhead = 2 * kRows;
    InputRows<kRows> rows;
    for (int r = 0; r < kRows; ++r) {
        const auto row = [&](int64_t at) {
            return (const char*)a.w + a.inputs[smaller(at, a.counts[0] - 1)].row * a.row_bytes;
        };
        rows.now[r] = row(i + r);
        rows.later[r] = row(i + r + kAhead);
        rows.x[r] = a.inputs[i + r].x;
    }
    int64_t c = a.col_begin;
    if constexpr (requires { typename Widen::Longer; }) {
        using Longer = typename Widen::Longer;
        for (; c + Longer::kColumns <= a.col_end; c += Longer::kColumns)
            add_block<Longer, kRows>(rows, c / Widen::kColumns * Widen::kBytes, a.y + c);
    }
    for (; c < a.col_end; c += Widen::kColumns)
        add_block<Widen, kRows>(rows, c / Widen::kColumns * Widen::kBytes, a.y + c);
}

template <class Widen>
inline void decode_by_input(const InputMatmulArgs& a) {
    constexpr int kRows = 8;
    int64_t i = 0;
    for (; i + kRows <= a.counts[0]; i += kRows) add_rows<Widen, kRows>(a, i);
    for (; i < a.counts[0]; ++i) add_rows<Widen, 1>(a, i);
}

// --- many tokens ---

// Some rows of some columns as floats, which serve all tokens out of the first cache.
struct InputPanel {
    enum { kRows = 32, kColumns = 128, kTokens = 64 };
    float w[kRows][kColumns];
    // Where in the active inputs of each token this panel's begin and end, and the next one's end.
    int64_t begin[kTokens], end[kTokens], next_end[kTokens];
};
static_assert(sizeof(InputPanel) <= kInputScratch, "a panel fits the scratch");

// Finds where the active inputs of the panel from `row` on end, which begin where this panel's end.
// Returns the rows that some token needs, as bits, and asks for them.
template <class Widen>
inline uint32_t look_ahead(const InputMatmulArgs& a, int64_t t0, int64_t tokens, int64_t row,
                           InputPanel& p) {
    uint32_t needed = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        const ActiveInput* inputs = a.inputs + (t0 + t) * a.inputs_stride;
        int64_t i = p.end[t];
        for (; i < a.counts[t0 + t] && inputs[i].row < row + InputPanel::kRows; ++i)
            needed |= 1u << (inputs[i].row - row);
        p.next_end[t] = i;
    }
    const int64_t begin = a.col_begin / Widen::kColumns * Widen::kBytes,
                  end = a.col_end / Widen::kColumns * Widen::kBytes;
    for (int r = 0; r < InputPanel::kRows; ++r)
        for (int64_t at = begin; at < end && (needed >> r & 1) != 0; at += 64)
            prefetch_l2((const char*)a.w + (row + r) * a.row_bytes + at);
    return needed;
}

// `cols` columns of a row from c on.
template <class Widen>
inline void widen_row(const char* row, int64_t c, int64_t cols, float* to) {
    using Isa = typename Widen::Isa;
    constexpr int kTogether = Widen::kGroup * kBlock, kVectors = kTogether / Isa::kLanes;
    typename Widen::Header header = {};
    for (int64_t i = c; i < c + cols; i += kTogether, to += kTogether) {
        const char* block = row + i / Widen::kColumns * Widen::kBytes;
        if (i == c || i % Widen::kColumns == 0) header = Widen::header(block);
        typename Isa::V w[kVectors];
        Widen::columns(block, header, (int)(i % Widen::kColumns / kTogether), w);
        UNROLL
        for (int v = 0; v < kVectors; ++v) Isa::store(to + v * Isa::kLanes, w[v]);
    }
}

// A token's products with the rows of a panel from `row` on, for kVectors vectors of columns.
template <class Isa, int kVectors>
inline void add_panel(const InputPanel& p, int64_t at, int64_t row, const ActiveInput* input,
                      const ActiveInput* end, float* y) {
    typename Isa::V sums[kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[v] = Isa::load(y + v * Isa::kLanes);
    for (; input < end; ++input) {
        const typename Isa::V x = Isa::set(input->x);
        const float* weights = p.w[input->row - row] + at;
        UNROLL
        for (int v = 0; v < kVectors; ++v)
            sums[v] = Isa::fma(x, Isa::load(weights + v * Isa::kLanes), sums[v]);
    }
    UNROLL
    for (int v = 0; v < kVectors; ++v) Isa::store(y + v * Isa::kLanes, sums[v]);
}

// All rows times `tokens` tokens from t0 on. Rows are read once and whole: the pages of a large
// matrix are more than a CPU remembers. So it is the sums that come again with every panel.
template <class Widen>
inline void panels_by_input(const InputMatmulArgs& a, int64_t t0, int64_t tokens) {
    using Isa = typename Widen::Isa;
    constexpr int kSums = 8, kFewSums = kBlock / Isa::kLanes;
    InputPanel& p = *(InputPanel*)a.scratch;
    int64_t rows = 0;  // up to the last one that any token needs
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t n = a.counts[t0 + t];
        const int64_t last = n == 0 ? 0 : a.inputs[(t0 + t) * a.inputs_stride + n - 1].row + 1;
        rows = last > rows ? last : rows;
        p.end[t] = 0;
    }
    uint32_t needed = look_ahead<Widen>(a, t0, tokens, 0, p);
    for (int64_t r = 0; r < rows; r += InputPanel::kRows) {
        memcpy(p.begin, p.end, sizeof p.end);
        memcpy(p.end, p.next_end, sizeof p.end);
        const uint32_t now = needed;
        needed = look_ahead<Widen>(a, t0, tokens, r + InputPanel::kRows, p);
        for (int64_t c = a.col_begin; c < a.col_end; c += InputPanel::kColumns) {
            const int64_t cols = smaller(InputPanel::kColumns, a.col_end - c);
            for (int i = 0; i < InputPanel::kRows; ++i)
                if ((now >> i & 1) != 0)
                    widen_row<Widen>((const char*)a.w + (r + i) * a.row_bytes, c, cols, p.w[i]);
            for (int64_t t = 0; t < tokens; ++t) {
                const ActiveInput* inputs = a.inputs + (t0 + t) * a.inputs_stride;
                const ActiveInput *begin = inputs + p.begin[t], *end = inputs + p.end[t];
                float* y = a.y + (t0 + t) * a.y_stride + c;
                int64_t at = 0;
                for (; at + kSums * Isa::kLanes <= cols; at += kSums * Isa::kLanes)
                    add_panel<Isa, kSums>(p, at, r, begin, end, y + at);
                for (; at < cols; at += kBlock)
                    add_panel<Isa, kFewSums>(p, at, r, begin, end, y + at);
            }
        }
    }
}

template <class Widen>
void matmul_by_input(const InputMatmulArgs& a) {
    if (a.tokens == 1) return decode_by_input<Widen>(a);
    for (int64_t t = 0; t < a.tokens; t += InputPanel::kTokens)
        panels_by_input<Widen>(a, t, smaller(InputPanel::kTokens, a.tokens - t));
}

template <template <class> class Widen>
void products_by_input(Kernels& table) {
    table.input_matmul[(int)Type::F32] = matmul_by_input<Widen<float>>;
    table.input_matmul[(int)Type::F16] = matmul_by_input<Widen<Half>>;
    table.input_matmul[(int)Type::BF16] = matmul_by_input<Widen<Bfloat16>>;
    table.input_matmul[(int)Type::Q8_0] = matmul_by_input<Widen<BlockQ8_0>>;
    table.input_matmul[(int)Type::Q4_0] = matmul_by_input<Widen<BlockQ4_0>>;
    table.input_matmul[(int)Type::Q4_1] = matmul_by_input<Widen<BlockQ4_1>>;
    table.input_matmul[(int)Type::Q5_0] = matmul_by_input<Widen<BlockQ5_0>>;
    table.input_matmul[(int)Type::Q5_1] = matmul_by_input<Widen<BlockQ5_1>>;
    table.input_matmul[(int)Type::Q4_K] = matmul_by_input<Widen<BlockQ4_K>>;
    table.input_matmul[(int)Type::Q5_K] = matmul_by_input<Widen<BlockQ5_K>>;
    table.input_matmul[(int)Type::Q6_K] = matmul_by_input<Widen<BlockQ6_K>>;
}

}  // namespace

}  // namespace rwkv_edge
