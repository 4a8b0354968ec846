// SPDX-License-Identifier: Apache-2.0
// Products with block types: which rows and tokens come next. The arithmetic is that of a Kernel,
// which an instruction set defines for each block type.
#pragma once

#include <string.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

template <class A, class B>
concept Same = __is_same(A, B);

// What a Layout says of a block type of kBlocks times 32 columns. UseCodes and Lanes are the
// instruction set's: what takes codes as it likes to have them, and a vector of floats, one per
// row.
template <class L, class Isa>
concept BlockLayout = requires(Rows rows, const typename L::Header& header,
                               typename Isa::Lanes& lanes, typename Isa::UseCodes use) {
    // read once per block
    { L::header(rows) } -> Same<typename L::Header>;
    // calls use(i, part, codes) for each 32 columns i of a group, part after part
    L::codes(rows, header, 0, use);
    // d and m of the i-th 32 columns, whose values are d * code + m
    lanes = L::scale(header, 0);
    lanes = L::offset(header, 0);
    requires L::kBlocks == 1 || L::kBlocks == kSuperBlock / kBlock;
    // how many times 32 columns come out of the same bytes
    requires L::kBlocks % L::kGroup == 0;
    // the code that means zero, or 0; the sums of activations are multiples of 8 for its sake
    requires L::kZero % 8 == 0;
    // whether m is added to every value
    requires L::kOffset == 0 || L::kOffset == 1;
    // whether each 16 columns have a scale of their own
    requires L::kHalfScales == 0 || L::kHalfScales == 1;
};

// What an instruction set defines for a block type.
template <class K>
concept BlockKernel = requires(Rows rows, const MatmulArgs& args, const typename K::Tile* tile,
                               typename K::Lanes* sums) {
    // kLanes rows times some tokens from a first one on, with codes as they come
    K::template few_tokens<1>(rows, args, 0, sums);
    K::store(args.y, sums[0]);
    // 32 columns of kLanes rows, unpacked; kTileGroups of these stand side by side
    requires(K::kTileGroups * sizeof(typename K::Tile) <= kBlock * (size_t)kMatmulScratch);
    requires BlockLayout<typename K::Layout, K>;
};

template <class K>
inline void fill_tile(Rows rows, int64_t blocks, typename K::Tile* tile) {
    using L = typename K::Layout;
    for (int64_t i = 0; i < blocks; i += L::kBlocks) {
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int group = 0; group < L::kBlocks / L::kGroup; ++group) {
            typename K::Tile* to = tile + i + group * L::kGroup;
            L::codes(rows, header, group, [&](int b, int part, const auto& codes) INLINE_LAMBDA {
                to[b].put(part, codes);
            });
            UNROLL
            for (int b = 0; b < L::kGroup; ++b) {
                const int at = group * L::kGroup + b;
                to[b].d = L::scale(header, at);
                if (L::kOffset) to[b].m = L::offset(header, at);
                to[b].factors = K::Factors::of(header, at);
            }
        }
        rows.first += sizeof(typename K::Block);
    }
}

// store_sums(g, token, sums) puts the sums of kLanes rows where they belong.
template <class K, int kGroups, class Store>
inline void all_tokens(const typename K::Tile* tile, const MatmulArgs& a, Store store_sums) {
    int64_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) K::template tile_tokens<kGroups, 4>(tile, a, t, store_sums);
    for (; t < a.tokens; ++t) K::template tile_tokens<kGroups, 1>(tile, a, t, store_sums);
}

// --- rows ---

// The last rows of a matrix, fewer than kLanes: with those before them if there are enough, else
// one at a time. Calls use(rows, lane, r, n): lanes from `lane` on are the n rows from r on.
template <int kLanes, class Use>
inline void last_rows(const MatmulArgs& a, int64_t r, Use use) {
    if (r == a.row_end) return;
    if (a.row_end >= kLanes) {
        const int64_t first = a.row_end - kLanes;
        return use(rows_from(a, first), (int)(r - first), r, a.row_end - r);
    }
    for (; r < a.row_end; ++r) use(Rows{rows_from(a, r).first, 0}, 0, r, 1);
}

template <class K>
inline void store_lanes(typename K::Lanes v, int lane, int64_t n, float* y) {
    float lanes[K::kLanes];
    K::store(lanes, v);
    memcpy(y, lanes + lane, (size_t)n * sizeof(float));
}

// kLanes rows times all tokens of a call, some at a time.
template <class K, class Store>
ALWAYS_INLINE void times_few(Rows rows, const MatmulArgs& a, Store store_sums) {
    typename K::Lanes sums[4];
    for (int64_t t = 0; t < a.tokens; t += 4) {
        const int n = (int)smaller(4, a.tokens - t);
        if (n == 1) K::template few_tokens<1>(rows, a, t, sums);
        if (n == 2) K::template few_tokens<2>(rows, a, t, sums);
        if (n == 3) K::template few_tokens<3>(rows, a, t, sums);
        if (n == 4) K::template few_tokens<4>(rows, a, t, sums);
        for (int i = 0; i < n; ++i) store_sums(t + i, sums[i]);
    }
}

template <class K>
NEVER_INLINE void few_blocks(const MatmulArgs& a) {
    const Runs runs = runs_of(a, K::kLanes);
    for (int64_t i = 0; i < runs.length; ++i)
        times_few<K>(runs[i], a, [&](int64_t t, typename K::Lanes sums) {
            float lanes[K::kLanes];
            K::store(lanes, sums);
            float* y = a.y + t * a.y_stride + a.row_begin + i;
            for (int lane = 0; lane < K::kLanes; ++lane) y[lane * runs.length] = lanes[lane];
        });
    int64_t next = a.row_begin + K::kLanes * runs.length;
    for (; next + K::kLanes <= a.row_end; next += K::kLanes)
        times_few<K>(rows_from(a, next), a, [&](int64_t t, typename K::Lanes sums) {
            K::store(a.y + t * a.y_stride + next, sums);
        });
    last_rows<K::kLanes>(a, next, [&](Rows rows, int lane, int64_t r, int64_t n) {
        times_few<K>(rows, a, [&](int64_t t, typename K::Lanes sums) {
            store_lanes<K>(sums, lane, n, a.y + t * a.y_stride + r);
        });
    });
}

// Up to here codes as they come are faster than a tile, which is filled once for all tokens.
enum { kFewTokens = 16 };

template <BlockKernel K>
void matmul_blocks(const MatmulArgs& a) {
    constexpr int kLanes = K::kLanes, kTileGroups = K::kTileGroups;
    if (a.tokens <= kFewTokens) return few_blocks<K>(a);
    const int64_t blocks = a.cols / kBlock;
    auto* tile = (typename K::Tile*)a.scratch;
    int64_t r = a.row_begin;
    for (; r + kTileGroups * kLanes <= a.row_end; r += kTileGroups * kLanes) {
        UNROLL
        for (int g = 0; g < kTileGroups; ++g)
            fill_tile<K>(rows_from(a, r + g * kLanes), blocks, tile + g * blocks);
        all_tokens<K, kTileGroups>(tile, a, [&](int g, int64_t t, typename K::Lanes sums) {
            K::store(a.y + t * a.y_stride + r + kLanes * g, sums);
        });
    }
    for (; r + kLanes <= a.row_end; r += kLanes) {
        fill_tile<K>(rows_from(a, r), blocks, tile);
        all_tokens<K, 1>(tile, a, [&](int, int64_t t, typename K::Lanes sums) {
            K::store(a.y + t * a.y_stride + r, sums);
        });
    }
    last_rows<kLanes>(a, r, [&](Rows last, int lane, int64_t row, int64_t n) {
        fill_tile<K>(last, blocks, tile);
        all_tokens<K, 1>(tile, a, [&](int, int64_t t, typename K::Lanes sums) {
            store_lanes<K>(sums, lane, n, a.y + t * a.y_stride + row);
        });
    });
}

template <template <class> class Kernel>
void block_products(Kernels& table) {
    table.matmul[(int)Type::Q8_0] = matmul_blocks<Kernel<BlockQ8_0>>;
    table.matmul[(int)Type::Q4_0] = matmul_blocks<Kernel<BlockQ4_0>>;
    table.matmul[(int)Type::Q4_1] = matmul_blocks<Kernel<BlockQ4_1>>;
    table.matmul[(int)Type::Q5_0] = matmul_blocks<Kernel<BlockQ5_0>>;
    table.matmul[(int)Type::Q5_1] = matmul_blocks<Kernel<BlockQ5_1>>;
    table.matmul[(int)Type::Q4_K] = matmul_blocks<Kernel<BlockQ4_K>>;
    table.matmul[(int)Type::Q5_K] = matmul_blocks<Kernel<BlockQ5_K>>;
    table.matmul[(int)Type::Q6_K] = matmul_blocks<Kernel<BlockQ6_K>>;
}

}  // namespace

}  // namespace rwkv_edge
