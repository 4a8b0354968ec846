// SPDX-License-Identifier: Apache-2.0
// Products with block types.
//
// Lanes are rows. The codes of 32 columns of eight rows are eight vectors, vector j holding in lane
// r the codes 4j .. 4j+3 of row r; multiplied with the broadcast activations 4j .. 4j+3 they give
// the integer dots of eight rows at once. Few tokens use the vectors as they come; with more
// tokens they go into a tile that all tokens share. Both add the same terms in the same order.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/kernels.h"
#include "kernels/x86/avx2_layouts.inl"
#include "kernels/x86/avx2_rounded.inl"
#include "kernels/x86/avx2_vectors.inl"

namespace rwkv_edge {

namespace {

// --- dots ---

// Pairs of products added, in i16.
ALWAYS_INLINE __m256i products(__m256i codes, __m256i x) { return _mm256_maddubs_epi16(codes, x); }

// The dots of four bytes, in i32 and added to a total.
enum { kAddsDots = HAS_VNNI };
#if HAS_VNNI
ALWAYS_INLINE __m256i add_dots(__m256i total, __m256i codes, __m256i x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(total, codes, x);
#else
    return _mm256_dpbusd_epi32(total, codes, x);
#endif
}
#else
ALWAYS_INLINE __m256i add_dots(__m256i total, __m256i codes, __m256i x) {
    const __m256i ones = _mm256_set1_epi16(1);
    return _mm256_add_epi32(total, _mm256_madd_epi16(products(codes, x), ones));
}
#endif

// What the dots of each 16 columns are multiplied with: ones, but for Q6_K.
template <class Block>
struct Factors {
    ALWAYS_INLINE static Factors of(const typename Layout<Block>::Header&, int) { return {}; }
    ALWAYS_INLINE __m256i half(int) const { return _mm256_set1_epi16(1); }
};
template <>
struct Factors<BlockQ6_K> {
    __m256i scales[2];

    ALWAYS_INLINE static Factors of(const Layout<BlockQ6_K>::Header& h, int i) {
        using L = Layout<BlockQ6_K>;
        return {{L::scale_pair(h, 2 * i), L::scale_pair(h, 2 * i + 1)}};
    }
    ALWAYS_INLINE __m256i half(int i) const { return scales[i]; }
};

ALWAYS_INLINE __m256i broadcast(const void* four_bytes) {
    int32_t four;
    memcpy(&four, four_bytes, sizeof four);
    return _mm256_set1_epi32(four);
}

// Zero times the activations of half a block, as the products of its codes add up: taken from these
// in i16, so that their sums stay small.
template <class Block>
ALWAYS_INLINE __m256i zero_products(const RoundedBlock& x, int half) {
    enum { kTimes = Layout<Block>::kZero / 8 };
    const __m256i sums = broadcast(x.sums8 + 2 * half);
    if (kTimes == 2) return _mm256_add_epi16(sums, sums);
    return kTimes == 4 ? _mm256_slli_epi16(sums, 2) : sums;
}

// What vector j of a block is multiplied with. Where a half begins, `zero` is zero times its
// activations. Both are read once for all rows: clang reads memory again behind a PIN.
struct Input {
    __m256i x, zero;
};

// The integer dots of eight rows over 32 columns, vector after vector; those that are added up in
// i16 may come mixed with others, but each kAdds in order.
template <class Block>
struct Dot {
    enum { kAdds = rwkv_edge::kAdds<Layout<Block>> };
    enum { kAtOnce = kAddsDots && !Layout<Block>::kHalfScales };  // in i32, without i16
    __m256i sums[8 / kAdds], total;

    ALWAYS_INLINE static Input input(const RoundedBlock& x, int j) {
        Input in = {broadcast(x.q + 4 * j), _mm256_setzero_si256()};
        if (Layout<Block>::kZero == 0 || j % 4 != 0) return in;
        if (kAtOnce) {
            const __m256i eighths = _mm256_set1_epi16(Layout<Block>::kZero / 8);
            in.zero = _mm256_madd_epi16(broadcast(x.sums8 + 2 * (j / 4)), eighths);
        } else {
            in.zero = zero_products<Block>(x, j / 4);
        }
        return in;
    }
    ALWAYS_INLINE static Input input(const RoundedRow& x, int64_t i, int j) {
        return input(x.block[i], j);
    }

    // Takes in vector j.
    ALWAYS_INLINE void add(int j, __m256i codes, Input in, const Factors<Block>& factors) {
        const bool zero = Layout<Block>::kZero != 0 && j % 4 == 0;
        if (kAtOnce) {
            // Two sums, so that half as many products wait for each other.
            __m256i& part = j < 4 ? total : sums[0];
            part = add_dots(j % 4 == 0 ? _mm256_setzero_si256() : part, codes, in.x);
            if (zero) part = _mm256_sub_epi32(part, in.zero);
            if (j == 7) total = _mm256_add_epi32(total, part);
            return;
        }
        __m256i product = products(codes, in.x);
        if (zero) product = _mm256_sub_epi16(product, in.zero);
        __m256i& sum = sums[j / kAdds];
        sum = j % kAdds == 0 ? product : _mm256_add_epi16(sum, product);
        PIN(sum);
        if (j % kAdds != kAdds - 1) return;
        const __m256i dots = _mm256_madd_epi16(sum, factors.half(j / 4));
        total = j < kAdds ? dots : _mm256_add_epi32(total, dots);
    }
};

#if !HAS_VNNI
// The dots of two i16, in i32 and added to a total.
ALWAYS_INLINE __m256i add_dots_i16(__m256i total, __m256i codes, __m256i x) {
    return _mm256_add_epi32(total, _mm256_madd_epi16(codes, x));
}

// Signed bytes have no product of their own: they are multiplied as i16, two columns at a time.
template <>
struct Dot<BlockQ8_0> {
    __m256i total;

    ALWAYS_INLINE static Input input(const RoundedRow& x, int64_t i, int j) {
        return {broadcast(x.q16 + i * kBlock + 2 * j), _mm256_setzero_si256()};
    }

    ALWAYS_INLINE void add(int j, __m256i codes, Input in, const Factors<BlockQ8_0>&) {
        const __m256i dots = _mm256_madd_epi16(codes, in.x);
        total = j == 0 ? dots : _mm256_add_epi32(total, dots);
        PIN(total);
    }
};
#endif

// acc + d * scale * dot [+ m * scale * sum]
template <class Block>
ALWAYS_INLINE F32 add_block(F32 acc, __m256i dot, F32 d, F32 m, const RoundedBlock& x) {
    acc = fma(_mm256_cvtepi32_ps(dot), mul(d, set(x.scale)), acc);
    if (Layout<Block>::kOffset) acc = fma(m, set(x.scaled_sum), acc);
    return acc;
}

// --- few tokens ---

// Rounded activations of some tokens.
struct Tokens {
    const char* first;
    int64_t stride;

    ALWAYS_INLINE const RoundedBlock& block(int t, int64_t i) const {
        return ((const RoundedBlock*)(first + t * stride))[i];
    }
};

// The hardware fetches too late in eight streams, and in blocks that are not read from front to
// back. So a line of each row is prefetched when its turn comes: a part of a long block with each
// group, or with each short block some of the rows.
template <class Block>
ALWAYS_INLINE void prefetch_ahead(Rows rows, int64_t i, int group) {
    using L = Layout<Block>;
    constexpr size_t kAhead = 512;
    if (L::kBlocks > 1) {
        constexpr size_t kPart = sizeof(Block) * L::kGroup / L::kBlocks;
        UNROLL
        for (int r = 0; r < 8; ++r) UNROLL
        for (size_t at = 0; at < kPart; at += 64)
            prefetch(rows(r) + kAhead + (size_t)group * kPart + at);
    } else {
        constexpr int kBlocksPerLine = sizeof(Block) <= 18 ? 4 : 2, kRows = 8 / kBlocksPerLine;
        const char* first = rows((int)(i % kBlocksPerLine) * kRows) + kAhead;
        UNROLL
        for (int r = 0; r < kRows; ++r) prefetch(first + r * rows.stride);
    }
}

// Adds the products of eight rows with some tokens from block `i` on, where the rows begin.
template <class Block, int kTokens>
ALWAYS_INLINE void add_blocks(F32* acc, Rows rows, int64_t i, int64_t blocks, Tokens x) {
    using L = Layout<Block>;
    for (; i < blocks; i += L::kBlocks) {
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int group = 0; group < L::kBlocks / L::kGroup; ++group) {
            prefetch_ahead<Block>(rows, i, group);
            Dot<Block> dots[L::kGroup][kTokens];
            Factors<Block> factors[L::kGroup];
            UNROLL
            for (int b = 0; b < L::kGroup; ++b)
                factors[b] = Factors<Block>::of(header, group * L::kGroup + b);
            const int64_t first = i + group * L::kGroup;
            L::codes(rows, header, group, [&](int b, int j, __m256i codes) INLINE_LAMBDA {
                UNROLL
                for (int t = 0; t < kTokens; ++t)
                    dots[b][t].add(j, codes, Dot<Block>::input(x.block(t, first + b), j),
                                   factors[b]);
            });
            UNROLL
            for (int b = 0; b < L::kGroup; ++b) {
                const int at = group * L::kGroup + b;
                const F32 d = L::scale(header, at), m = L::offset(header, at);
                UNROLL
                for (int t = 0; t < kTokens; ++t)
                    acc[t] =
                        add_block<Block>(acc[t], dots[b][t].total, d, m, x.block(t, first + b));
            }
        }
        rows.first += sizeof(Block);
    }
}

template <class Block, int kTokens>
struct FewTokens {
    ALWAYS_INLINE static void add(F32* acc, Rows rows, int64_t blocks, Tokens x) {
        add_blocks<Block, kTokens>(acc, rows, 0, blocks, x);
    }
};

// With four bits, what limits is that the chain from a load to its sum is longer than a CPU can
// look ahead. So bytes are loaded two blocks before their products and transposed one before; PIN
// keeps the order.
template <class Block, int kTokens>
struct FewTokensOfNibbles {
    ALWAYS_INLINE static void add(F32* acc, Rows rows, int64_t blocks, Tokens x) {
        using L = Layout<Block>;
        const int64_t last = blocks - 2, size = sizeof(Block);
        int64_t i = 0;
        if (last > 0) {
            __m256i bytes[4], loaded[4];
            dwords(rows, offsetof(Block, q), bytes);
            load_pairs(rows + size, offsetof(Block, q), loaded);
            ScaleOffset now = L::header(rows);
            for (; i < last; ++i) {
                prefetch_ahead<Block>(rows, i, 0);
                ScaleOffset next = L::header(rows + size);
                PIN(next.d);
                Dot<Block> dots[kTokens];
                L::codes_of(bytes, [&](int, int j, __m256i codes) INLINE_LAMBDA {
                    UNROLL
                    for (int t = 0; t < kTokens; ++t)
                        dots[t].add(j, codes, Dot<Block>::input(x.block(t, i), j), {});
                });
                transpose(loaded, bytes);
                for (int j = 0; j < 4; ++j) PIN(bytes[j]);
                rows.first += size;
                load_pairs(rows + size, offsetof(Block, q), loaded);
                for (int j = 0; j < 4; ++j) PIN(loaded[j]);
                UNROLL
                for (int t = 0; t < kTokens; ++t)
                    acc[t] = add_block<Block>(acc[t], dots[t].total, now.d, now.m, x.block(t, i));
                now = next;
            }
        }
        add_blocks<Block, kTokens>(acc, rows, i, blocks, x);
    }
};
template <int kTokens>
struct FewTokens<BlockQ4_0, kTokens> : FewTokensOfNibbles<BlockQ4_0, kTokens> {};
template <int kTokens>
struct FewTokens<BlockQ4_1, kTokens> : FewTokensOfNibbles<BlockQ4_1, kTokens> {};

// Eight vectors whose lanes are to be added -> lane r = the sum of v[r].
ALWAYS_INLINE __m256i add_lanes(const __m256i v[8]) {
    __m256i fours[2];
    UNROLL
    for (int i = 0; i < 2; ++i) {
        const __m256i* w = v + 4 * i;
        const __m256i a =
            _mm256_add_epi32(_mm256_unpacklo_epi32(w[0], w[1]), _mm256_unpackhi_epi32(w[0], w[1]));
        const __m256i b =
            _mm256_add_epi32(_mm256_unpacklo_epi32(w[2], w[3]), _mm256_unpackhi_epi32(w[2], w[3]));
        fours[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    }
    return _mm256_add_epi32(_mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                            _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
}

// The dots of 32 signed bytes.
#if HAS_VNNI
// They become codes by adding 128, and what that adds to the dots goes off again.
ALWAYS_INLINE __m256i dots_of_bytes(__m256i w, __m256i q) {
    const __m256i codes = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return add_dots(_mm256_setzero_si256(), codes, q);
}
ALWAYS_INLINE __m256i without_added(__m256i total, const RoundedBlock& x) {
    using D = Dot<BlockQ8_0>;
    return _mm256_sub_epi32(total, _mm256_add_epi32(D::input(x, 0).zero, D::input(x, 4).zero));
}
#else
// Their sign goes over to the activations.
ALWAYS_INLINE __m256i dots_of_bytes(__m256i w, __m256i q) {
    return add_dots(_mm256_setzero_si256(), _mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
}
ALWAYS_INLINE __m256i without_added(__m256i total, const RoundedBlock&) { return total; }
#endif

// For one token bytes are read along the rows, which is cheaper than transposing them.
template <>
struct FewTokens<BlockQ8_0, 1> {
    ALWAYS_INLINE static void add(F32* acc, Rows rows, int64_t blocks, Tokens x) {
        for (int64_t i = 0; i < blocks; ++i) {
            prefetch_ahead<BlockQ8_0>(rows, i, 0);
            const RoundedBlock& xb = x.block(0, i);
            const __m256i q = _mm256_loadu_si256((const __m256i*)xb.q);
            __m256i dots[8];
            UNROLL
            for (int r = 0; r < 8; ++r)
                dots[r] = dots_of_bytes(
                    _mm256_loadu_si256((const __m256i*)(rows(r) + offsetof(BlockQ8_0, q))), q);
            const F32 d = halves(rows, 0);
            *acc = add_block<BlockQ8_0>(*acc, without_added(add_lanes(dots), xb), d, d, xb);
            rows.first += sizeof(BlockQ8_0);
        }
    }
};

#if !HAS_VNNI
// Here, too, the sign goes over to the activations.
template <int kTokens>
struct FewTokens<BlockQ8_0, kTokens> {
    ALWAYS_INLINE static void add(F32* acc, Rows rows, int64_t blocks, Tokens x) {
        for (int64_t i = 0; i < blocks; ++i) {
            prefetch_ahead<BlockQ8_0>(rows, i, 0);
            __m256i totals[kTokens];
            UNROLL
            for (int t = 0; t < kTokens; ++t) totals[t] = _mm256_setzero_si256();
            UNROLL
            for (int half = 0; half < 2; ++half) {
                __m256i w[4];
                dwords(rows, offsetof(BlockQ8_0, q) + (size_t)(16 * half), w);
                UNROLL
                for (int j = 0; j < 4; ++j) {
                    const __m256i magnitudes = _mm256_abs_epi8(w[j]);
                    UNROLL
                    for (int t = 0; t < kTokens; ++t) {
                        const __m256i q = broadcast(x.block(t, i).q + 16 * half + 4 * j);
                        totals[t] = add_dots(totals[t], magnitudes, _mm256_sign_epi8(q, w[j]));
                        PIN(totals[t]);
                    }
                }
            }
            const F32 d = halves(rows, 0);
            UNROLL
            for (int t = 0; t < kTokens; ++t)
                acc[t] = add_block<BlockQ8_0>(acc[t], totals[t], d, d, x.block(t, i));
            rows.first += sizeof(BlockQ8_0);
        }
    }
};
#endif

// --- many tokens ---

// 32 columns of eight rows, unpacked.
template <class Block>
struct TileBlock {
    __m256i codes[Layout<Block>::kVectors];
    F32 d, m;
    Factors<Block> factors;

    ALWAYS_INLINE void put(int j, __m256i vector) { codes[j] = vector; }
};

// What block_matmul.inl asks for.
template <class BlockType>
struct Avx2Kernel : Avx2 {
    using Block = BlockType;
    using Layout = rwkv_edge::Layout<Block>;
    using Factors = rwkv_edge::Factors<Block>;
    using Tile = TileBlock<Block>;
    enum { kTileGroups = 2 };

    // Rows times kTokens tokens, codes as they come.
    template <int kTokens>
    NEVER_INLINE static void few_tokens(Rows rows, const MatmulArgs& a, int64_t token,
                                        Lanes* sums) {
        UNROLL
        for (int t = 0; t < kTokens; ++t) sums[t] = set(0.0f);
        const Tokens x = {(const char*)a.x + token * a.x_stride, a.x_stride};
        FewTokens<Block, kTokens>::add(sums, rows, a.cols / kBlock, x);
    }

    // Rows r .. r + 8 kGroups - 1 and kTokens tokens: each broadcast of activations serves kGroups
    // vectors of codes.
    template <int kGroups, int kTokens, class Store>
    static void tile_tokens(const Tile* tile, const MatmulArgs& a, int64_t token,
                            Store store_sums) {
        const int64_t blocks = a.cols / kBlock;
        const char* const first = (const char*)a.x + token * a.x_stride;
        const int64_t stride = a.x_stride, cols = a.cols;
        const auto row = [=](int t) INLINE_LAMBDA { return RoundedRow(first + t * stride, cols); };
        F32 sums[kGroups][kTokens];
        UNROLL
        for (int g = 0; g < kGroups; ++g) UNROLL
        for (int t = 0; t < kTokens; ++t) sums[g][t] = set(0.0f);
        for (int64_t i = 0; i < blocks; ++i) {
            Dot<Block> dots[kGroups][kTokens];
            UNROLL
            for (int j = 0; j < Layout::kVectors; ++j) {
                __m256i codes[kGroups];
                UNROLL
                for (int g = 0; g < kGroups; ++g) codes[g] = tile[g * blocks + i].codes[j];
                UNROLL
                for (int t = 0; t < kTokens; ++t) {
                    const Input in = Dot<Block>::input(row(t), i, j);
                    UNROLL
                    for (int g = 0; g < kGroups; ++g)
                        dots[g][t].add(j, codes[g], in, tile[g * blocks + i].factors);
                }
            }
            UNROLL
            for (int t = 0; t < kTokens; ++t) {
                UNROLL
                for (int g = 0; g < kGroups; ++g) {
                    const Tile& b = tile[g * blocks + i];
                    sums[g][t] =
                        add_block<Block>(sums[g][t], dots[g][t].total, b.d, b.m, row(t).block[i]);
                }
            }
        }
        UNROLL
        for (int g = 0; g < kGroups; ++g) UNROLL
        for (int t = 0; t < kTokens; ++t) store_sums(g, token + t, sums[g][t]);
    }
};

}  // namespace

}  // namespace rwkv_edge
