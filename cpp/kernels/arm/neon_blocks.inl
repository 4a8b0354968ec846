// SPDX-License-Identifier: Apache-2.0
// Products with block types.
//
// Codes are read along the rows: the products of 16 columns with the activations are added up
// within a vector, and the vectors of four rows are folded into one whose lanes are these rows. Few
// tokens use the codes as they come; with more tokens they go into a tile that all tokens
// share. Both add the same terms in the same order.
#pragma once

#include <arm_neon.h>

#include "kernels/arm/neon_layouts.inl"
#include "kernels/arm/neon_rounded.inl"
#include "kernels/generic/block_matmul.inl"
#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

// --- dots ---

// Lane r = the sum of v[r].
ALWAYS_INLINE int32x4_t fold(const int32x4_t v[4]) {
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

// Sums take in 16 columns of four rows in kSteps steps. What a step does to one row it does to all
// before it goes on: a small core runs instructions in the order written.
#ifdef __ARM_FEATURE_DOTPROD
// Products of the codes of a row: four to a lane of 32 bits.
template <int, int>
struct RowSums {
    enum { kSteps = 1 };
    int32x4_t sums[4];

    ALWAYS_INLINE void add(int half, int, const int8x16_t codes[4], int8x16_t x) {
        UNROLL
        for (int r = 0; r < 4; ++r)
            sums[r] = vdotq_s32(half == 0 ? vdupq_n_s32(0) : sums[r], codes[r], x);
    }
    ALWAYS_INLINE int32x4_t total() const { return fold(sums); }
};

// Products of 4 columns of four rows, whose lanes they are.
struct LaneSums {
    enum { kSteps = 4 };
    int32x4_t sum;

    ALWAYS_INLINE void add(int half, int four, const int8x16_t codes[4], int8x16_t x) {
        if (half == 0 && four == 0) sum = vdupq_n_s32(0);
        switch (four) {  // a constant once this is unrolled
            case 0: sum = vdotq_laneq_s32(sum, codes[0], x, 0); break;
            case 1: sum = vdotq_laneq_s32(sum, codes[1], x, 1); break;
            case 2: sum = vdotq_laneq_s32(sum, codes[2], x, 2); break;
            case 3: sum = vdotq_laneq_s32(sum, codes[3], x, 3); break;
        }
    }
    ALWAYS_INLINE int32x4_t total() const { return sum; }
};
#else
// The same in lanes of 16 bits, two products of each 16 columns; in 32 where codes up to kLargest
// times 127 leave no room for the next sum.
template <int kLargest, int kHalves>
struct RowSums {
    enum { kMost = 2 * kHalves * kLargest * 127, kFits = 2 * kMost <= 32767, kSteps = 1 };
    int16x8_t sums[4];
    int32x4_t wide[4];

    ALWAYS_INLINE void add(int half, int, const int8x16_t codes[4], int8x16_t x) {
        const bool first = half == 0 || !kFits;
        const int8x8_t low = vget_low_s8(x);
        UNROLL
        for (int r = 0; r < 4; ++r)
            sums[r] = first ? vmull_s8(vget_low_s8(codes[r]), low)
                            : vmlal_s8(sums[r], vget_low_s8(codes[r]), low);
        UNROLL
        for (int r = 0; r < 4; ++r) sums[r] = vmlal_high_s8(sums[r], codes[r], x);
        if (kFits) return;
        UNROLL
        for (int r = 0; r < 4; ++r)
            wide[r] = half == 0 ? vpaddlq_s16(sums[r]) : vpadalq_s16(wide[r], sums[r]);
    }
    ALWAYS_INLINE int32x4_t total() const {
        if (!kFits) return fold(wide);
        const int16x8_t a = vpaddq_s16(sums[0], sums[1]), b = vpaddq_s16(sums[2], sums[3]);
        if (4 * kMost <= 32767) return vpaddlq_s16(vpaddq_s16(a, b));
        return vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b));
    }
};
#endif

// What the dots of each 16 columns are multiplied with: nothing, but for Q6_K.
template <class Block>
struct Factors {
    ALWAYS_INLINE static Factors of(const typename Layout<Block>::Header&, int) { return {}; }
};
template <>
struct Factors<BlockQ6_K> {
    int32x4_t scales[2];

    ALWAYS_INLINE static Factors of(const Layout<BlockQ6_K>::Header& h, int i) {
        using L = Layout<BlockQ6_K>;
        return {{L::half_scale(h, 2 * i), L::half_scale(h, 2 * i + 1)}};
    }
};

// The halves of 32 columns that a sum takes in, before a factor comes.
template <class Block>
constexpr int kSpan = Layout<Block>::kHalfScales ? 1 : 2;

// The integer dots of four rows over 32 columns. With kHasZero the codes still hold that of zero.
template <class Block, class Sums, bool kHasZero>
struct Dot {
    Sums sums;
    int32x4_t total;

    ALWAYS_INLINE void add(int half, int step, const int8x16_t codes[4], int8x16_t x) {
        sums.add(half % kSpan<Block>, step, codes, x);
    }
    ALWAYS_INLINE void end(int half, const RoundedBlock& x, const Factors<Block>& factors) {
        if (half % kSpan<Block> != kSpan<Block> - 1) return;
        int32x4_t dots = sums.total();
        if constexpr (kHasZero) {
            int32x4_t sum = vld1q_dup_s32(kSpan<Block> == 1 && half == 0 ? &x.first_sum : &x.sum);
            if (kSpan<Block> == 1 && half == 1) sum = vsubq_s32(sum, vld1q_dup_s32(&x.first_sum));
            dots = vmlsq_s32(dots, sum, vdupq_n_s32(Layout<Block>::kZero));
        }
        if constexpr (Layout<Block>::kHalfScales)
            total = half == 0 ? vmulq_s32(dots, factors.scales[0])
                              : vmlaq_s32(total, dots, factors.scales[1]);
        else
            total = dots;
    }
};

// acc + d * scale * dot [+ m * scale * sum]
template <class Block>
ALWAYS_INLINE float32x4_t add_block(float32x4_t acc, int32x4_t dot, float32x4_t d, float32x4_t m,
                                    const RoundedBlock& x) {
    acc = vfmaq_f32(acc, vcvtq_f32_s32(dot), vmulq_n_f32(d, x.scale));
    if (Layout<Block>::kOffset) acc = vfmaq_n_f32(acc, m, x.scaled_sum);
    return acc;
}

ALWAYS_INLINE int8x16_t half_of(const RoundedBlock& x, int half) {
    return vld1q_s8(x.q + 16 * half);
}

// --- many tokens ---

// Codes of 16 columns as a tile has them: vector j is row j, or with dot products columns
// 4j .. 4j+3 of every row, which need no folding.
#ifdef __ARM_FEATURE_DOTPROD
constexpr int kTileGroups = 2;
template <class Block>
using TileSums = LaneSums;
ALWAYS_INLINE void arrange(const uint8x16_t rows[4], uint8x16_t vectors[4]) {
    transpose(rows, vectors);
}
#else
constexpr int kTileGroups = 1;
template <class Block>
using TileSums =
    RowSums<(Layout<Block>::kZero > 0 ? (int)Layout<Block>::kZero : (int)Layout<Block>::kLargest),
            kSpan<Block>>;
ALWAYS_INLINE void arrange(const uint8x16_t rows[4], uint8x16_t vectors[4]) {
    for (int r = 0; r < 4; ++r) vectors[r] = rows[r];
}
#endif

// 32 columns of four rows, unpacked, zero's code taken off.
template <class Block>
struct TileBlock {
    int8x16_t codes[2][4];
    float32x4_t d, m;
    Factors<Block> factors;

    ALWAYS_INLINE void put(int half, const int8x16_t (&rows)[4]) {
        uint8x16_t less_zero[4], vectors[4];
        UNROLL
        for (int r = 0; r < 4; ++r)
            less_zero[r] = vreinterpretq_u8_s8(vsubq_s8(rows[r], vdupq_n_s8(Layout<Block>::kZero)));
        arrange(less_zero, vectors);
        UNROLL
        for (int r = 0; r < 4; ++r) codes[half][r] = vreinterpretq_s8_u8(vectors[r]);
    }
};

// What block_matmul.inl asks for.
template <class BlockType>
struct NeonKernel : Neon {
    using Block = BlockType;
    using Layout = rwkv_edge::Layout<Block>;
    using Factors = rwkv_edge::Factors<Block>;
    using Tile = TileBlock<Block>;
    enum { kTileGroups = rwkv_edge::kTileGroups };

    // Rows times kTokens tokens, codes as they come.
    template <int kTokens>
    NEVER_INLINE static void few_tokens(Rows rows, const MatmulArgs& a, int64_t token,
                                        Lanes* sums) {
        constexpr int kGroup = Layout::kGroup;
        const int64_t blocks = a.cols / kBlock;
        const auto block = [&](int t, int64_t i) INLINE_LAMBDA -> const RoundedBlock& {
            return ((const RoundedBlock*)((const char*)a.x + (token + t) * a.x_stride))[i];
        };
        Lanes acc[kTokens];
        UNROLL
        for (int t = 0; t < kTokens; ++t) acc[t] = vdupq_n_f32(0.0f);
        for (int64_t i = 0; i < blocks; i += Layout::kBlocks) {
            const typename Layout::Header header = Layout::header(rows);
            UNROLL
            for (int group = 0; group < Layout::kBlocks / kGroup; ++group) {
                const int64_t first = i + group * kGroup;
                Dot<Block, RowSums<Layout::kLargest, kSpan<Block>>, Layout::kZero != 0>
                    dots[kGroup][kTokens];
                const auto add = [&](int b, int half, const int8x16_t(&codes)[4]) INLINE_LAMBDA {
                    const Factors factors = Factors::of(header, group * kGroup + b);
                    UNROLL
                    for (int t = 0; t < kTokens; ++t) {
                        const RoundedBlock& x = block(t, first + b);
                        dots[b][t].add(half, 0, codes, half_of(x, half));
                        dots[b][t].end(half, x, factors);
                    }
                };
                Layout::codes(rows, header, group, add);
                UNROLL
                for (int b = 0; b < kGroup; ++b) {
                    const Lanes d = Layout::scale(header, group * kGroup + b),
                                m = Layout::offset(header, group * kGroup + b);
                    UNROLL
                    for (int t = 0; t < kTokens; ++t)
                        acc[t] =
                            add_block<Block>(acc[t], dots[b][t].total, d, m, block(t, first + b));
                }
            }
            rows.first += sizeof(Block);
        }
        UNROLL
        for (int t = 0; t < kTokens; ++t) sums[t] = acc[t];
    }

    // Rows r .. r + 4 kGroups - 1 and kTokens tokens.
    template <int kGroups, int kTokens, class Store>
    static void tile_tokens(const Tile* tile, const MatmulArgs& a, int64_t token,
                            Store store_sums) {
        const int64_t blocks = a.cols / kBlock;
        const auto block = [&](int t, int64_t i) INLINE_LAMBDA -> const RoundedBlock& {
            return ((const RoundedBlock*)((const char*)a.x + (token + t) * a.x_stride))[i];
        };
        Lanes sums[kGroups][kTokens];
        UNROLL
        for (int g = 0; g < kGroups; ++g) UNROLL
        for (int t = 0; t < kTokens; ++t) sums[g][t] = vdupq_n_f32(0.0f);
        for (int64_t i = 0; i < blocks; ++i) {
            Dot<Block, TileSums<Block>, false> dots[kGroups][kTokens];
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int8x16_t q[kTokens];
                UNROLL
                for (int t = 0; t < kTokens; ++t) q[t] = half_of(block(t, i), half);
                UNROLL
                for (int g = 0; g < kGroups; ++g) {
                    const Tile& b = tile[g * blocks + i];
                    UNROLL
                    for (int step = 0; step < TileSums<Block>::kSteps; ++step) UNROLL
                    for (int t = 0; t < kTokens; ++t)
                        dots[g][t].add(half, step, b.codes[half], q[t]);
                    UNROLL
                    for (int t = 0; t < kTokens; ++t) dots[g][t].end(half, block(t, i), b.factors);
                }
            }
            UNROLL
            for (int t = 0; t < kTokens; ++t) UNROLL
            for (int g = 0; g < kGroups; ++g) {
                const Tile& b = tile[g * blocks + i];
                sums[g][t] = add_block<Block>(sums[g][t], dots[g][t].total, b.d, b.m, block(t, i));
            }
        }
        UNROLL
        for (int g = 0; g < kGroups; ++g) UNROLL
        for (int t = 0; t < kTokens; ++t) store_sums(g, token + t, sums[g][t]);
    }
};

}  // namespace

}  // namespace rwkv_edge
