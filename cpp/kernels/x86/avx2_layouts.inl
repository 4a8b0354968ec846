// SPDX-License-Identifier: Apache-2.0
// How the block types lie in memory: their codes as vectors whose lanes are rows, vector j holding
// in lane r the codes 4j .. 4j+3 of row r.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/generic/block_matmul.inl"
#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "kernels/x86/avx2_vectors.inl"
#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

// 16 bytes at `at` of rows r and r + 4 in the halves of in[r].
ALWAYS_INLINE void load_pairs(Rows rows, size_t at, __m256i in[4]) {
    UNROLL
    for (int r = 0; r < 4; ++r) {
        const __m128i low = _mm_loadu_si128((const __m128i*)(rows(r) + at));
        const __m128i high = _mm_loadu_si128((const __m128i*)(rows(r + 4) + at));
        in[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
}

// ... -> out[j], lane r = dword j of row r.
ALWAYS_INLINE void transpose(const __m256i in[4], __m256i out[4]) {
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
    const __m256i c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

ALWAYS_INLINE void dwords(Rows rows, size_t at, __m256i out[4]) {
    __m256i in[4];
    load_pairs(rows, at, in);
    transpose(in, out);
}

// The half at byte `at` of every row.
ALWAYS_INLINE F32 halves(Rows rows, size_t at) {
    const auto half = [&](int r) {
        uint16_t bits;
        memcpy(&bits, rows(r) + at, sizeof bits);
        return (int)bits;
    };
    __m128i low = _mm_cvtsi32_si128(half(0)), high = _mm_cvtsi32_si128(half(4));
    low = _mm_insert_epi16(low, half(1), 1);
    high = _mm_insert_epi16(high, half(5), 1);
    low = _mm_insert_epi16(low, half(2), 2);
    high = _mm_insert_epi16(high, half(6), 2);
    low = _mm_insert_epi16(low, half(3), 3);
    high = _mm_insert_epi16(high, half(7), 3);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
}

// The dword at byte `at` of every row.
ALWAYS_INLINE __m256i dword(Rows rows, size_t at) {
    int32_t v[8];
    UNROLL
    for (int r = 0; r < 8; ++r) memcpy(&v[r], rows(r) + at, 4);
    return _mm256_setr_epi32(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
}

// The two dwords from byte `at` on of every row.
struct DwordPair {
    __m256i first, second;
};
ALWAYS_INLINE DwordPair dword_pair(Rows rows, size_t at) {
    const auto two = [&](int r) {
        const __m128 low = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)(rows(r) + at)));
        return _mm_loadh_pi(low, (const __m64*)(rows(r + 1) + at));
    };
    const F32 a = _mm256_insertf128_ps(_mm256_castps128_ps256(two(0)), two(4), 1);
    const F32 b = _mm256_insertf128_ps(_mm256_castps128_ps256(two(2)), two(6), 1);
    return {_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)),
            _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd))};
}

// What the values of 32 columns are: d * code + m.
struct ScaleOffset {
    F32 d, m;
};

// From two halves in every lane.
ALWAYS_INLINE ScaleOffset two_halves(__m256i v) {
    const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
    const __m256i packed = _mm256_packus_epi32(low, _mm256_srli_epi32(v, 16));
    const __m256i sorted = _mm256_permute4x64_epi64(packed, 0xd8);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(sorted)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(sorted, 1))};
}

ALWAYS_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
ALWAYS_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

// Bits `from` and up of every byte to bit 4 and up, under a mask.
ALWAYS_INLINE __m256i to_bit4(__m256i v, int from, char mask) {
    v = from <= 4 ? _mm256_slli_epi16(v, 4 - from) : _mm256_srli_epi16(v, from - 4);
    return _mm256_and_si256(v, _mm256_set1_epi8(mask));
}

ALWAYS_INLINE F32 byte_as_float(__m256i v, int byte) {
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(v, 8 * byte), _mm256_set1_epi32(255)));
}

// Signed bytes a and b of every dword, as i16.
ALWAYS_INLINE __m256i byte_pair(__m256i v, int a, int b) {
    const auto at = [&](int lane) {
        return (4 * lane + b) << 24 | (4 * lane + a) << 8 | 0x00800080;
    };
    const __m256i high_bytes =
        _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(0), at(1), at(2), at(3));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, high_bytes), 8);
}

// --- the types ---
//
// A Layout says how a block of a type makes its codes: BlockLayout (block_matmul.inl) and, with
// AVX2,
//   kLargest  the largest magnitude of a code less zero
//   kVectors  how many vectors of codes 32 columns are

// What a type has unless it says otherwise.
struct UsualLayout {
    enum { kVectors = 8, kHalfScales = 0 };
};

struct Avx2 {
    using Lanes = F32;
    enum { kLanes = 8 };
    struct UseCodes {
        void operator()(int i, int j, __m256i codes) const;
    };
    ALWAYS_INLINE static void store(float* p, Lanes v) { rwkv_edge::store(p, v); }
};
template <class L>
concept Avx2Layout = BlockLayout<L, Avx2> && requires {
    requires L::kVectors == 8 || L::kVectors == 16;
    requires L::kLargest > 0 && L::kLargest <= 128;
};

// How many products of a vector of codes an i16 can add up: each adds two codes times 127.
template <class L>
constexpr int kAdds = 2 * L::kLargest * 127 * 8 < 1 << 15 ? 8 : 4;

// Types of one block of 32 whose codes are nibbles, and perhaps a fifth bit.
template <class Block>
struct Layout;

template <class Block>
struct NibbleLayout : UsualLayout {
    enum { kBlocks = 1, kGroup = 1 };
    template <class Header, class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int, Use use) {
        __m256i bytes[4];
        dwords(at, offsetof(Block, q), bytes);
        codes_of(bytes, use);
    }
    // From the block's bytes, transposed.
    template <class Use>
    ALWAYS_INLINE static void codes_of(const __m256i bytes[4], Use use) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
            use(0, j, low_nibbles(bytes[j]));
            use(0, j + 4, high_nibbles(bytes[j]));
        }
    }
};

// d alone, or d and m, before everything else in the block.
struct ScaleOnly {
    using Header = ScaleOffset;
    ALWAYS_INLINE static Header header(Rows at) { return {halves(at, 0), set(0.0f)}; }
    ALWAYS_INLINE static F32 scale(const Header& h, int) { return h.d; }
    ALWAYS_INLINE static F32 offset(const Header& h, int) { return h.m; }
};
struct ScaleAndOffset : ScaleOnly {
    ALWAYS_INLINE static Header header(Rows at) { return two_halves(dword(at, 0)); }
};

// Before the nibbles, d or d and m, and then the fifth bits: that of value 4j + i, bit 4j + i of a
// row's qh, goes to bit 4 of byte i of vector j.
template <class Block>
struct FifthBitLayout : NibbleLayout<Block> {
    struct Header {
        ScaleOffset scale;
        __m256i qh;
    };
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header& h, int group, Use use) {
        const __m256i up =
            _mm256_slli_epi32(h.qh, 4);  // now each nibble of qh is one on top of a byte
        const __m256i byte0 = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12,
                                               0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        const __m256i own_bit = _mm256_set1_epi32((int32_t)0x80402010u);
        NibbleLayout<Block>::codes(at, h, group, [&](int, int j, __m256i codes) INLINE_LAMBDA {
            const __m256i byte = _mm256_shuffle_epi8(
                j % 2 == 0 ? up : h.qh, _mm256_add_epi8(byte0, _mm256_set1_epi8((char)(j / 2))));
            const __m256i bit = _mm256_and_si256(byte, own_bit);
            use(0, j, _mm256_or_si256(codes, _mm256_min_epu8(bit, _mm256_set1_epi8(16))));
        });
    }
    ALWAYS_INLINE static F32 scale(const Header& h, int) { return h.scale.d; }
    ALWAYS_INLINE static F32 offset(const Header& h, int) { return h.scale.m; }
};

template <>
struct Layout<BlockQ4_0> : NibbleLayout<BlockQ4_0>, ScaleOnly {
    enum { kLargest = 8, kZero = 8, kOffset = 0 };
};
template <>
struct Layout<BlockQ4_1> : NibbleLayout<BlockQ4_1>, ScaleAndOffset {
    enum { kLargest = 15, kZero = 0, kOffset = 1 };
};
template <>
struct Layout<BlockQ5_0> : FifthBitLayout<BlockQ5_0> {
    enum { kLargest = 16, kZero = 16, kOffset = 0 };
    ALWAYS_INLINE static Header header(Rows at) {
        const DwordPair v = dword_pair(at, 0);  // qh lies astride
        const __m256i qh =
            _mm256_or_si256(_mm256_srli_epi32(v.first, 16), _mm256_slli_epi32(v.second, 16));
        return {{two_halves(v.first).d, set(0.0f)}, qh};
    }
};
template <>
struct Layout<BlockQ5_1> : FifthBitLayout<BlockQ5_1> {
    enum { kLargest = 31, kZero = 0, kOffset = 1 };
    ALWAYS_INLINE static Header header(Rows at) {
        const DwordPair v = dword_pair(at, 0);
        return {two_halves(v.first), v.second};
    }
};

// d, dmin and the six-bit scales and minima of Q4_K and Q5_K: the first 16 bytes.
struct ScalesK {
    ScaleOffset d;
    __m256i scales[2], mins[2];  // four bytes each per row
};

ALWAYS_INLINE ScalesK scales_k(Rows at) {
    __m256i w[4];
    dwords(at, 0, w);
    const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15),
                  top = _mm256_set1_epi8(0x30);
    return {two_halves(w[0]),
            {_mm256_and_si256(w[1], six),
             _mm256_or_si256(_mm256_and_si256(w[3], four),
                             _mm256_and_si256(_mm256_srli_epi16(w[1], 2), top))},
            {_mm256_and_si256(w[2], six),
             _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(w[3], 4), four),
                             _mm256_and_si256(_mm256_srli_epi16(w[2], 2), top))}};
}

ALWAYS_INLINE F32 scale_k(const ScalesK& h, int i) {
    return mul(h.d.d, byte_as_float(h.scales[i / 4], i % 4));
}
ALWAYS_INLINE F32 offset_k(const ScalesK& h, int i) {
    return sub(set(0.0f), mul(h.d.m, byte_as_float(h.mins[i / 4], i % 4)));
}

template <>
struct Layout<BlockQ4_K> : UsualLayout {
    enum { kBlocks = 8, kGroup = 2, kLargest = 15, kZero = 0, kOffset = 1 };
    using Header = ScalesK;
    ALWAYS_INLINE static Header header(Rows at) { return scales_k(at); }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            __m256i bytes[4];
            dwords(at, offsetof(BlockQ4_K, q) + (size_t)(32 * group + 16 * half), bytes);
            UNROLL
            for (int j = 0; j < 4; ++j) {
                use(0, 4 * half + j, low_nibbles(bytes[j]));
                use(1, 4 * half + j, high_nibbles(bytes[j]));
            }
        }
    }
    ALWAYS_INLINE static F32 scale(const Header& h, int i) { return scale_k(h, i); }
    ALWAYS_INLINE static F32 offset(const Header& h, int i) { return offset_k(h, i); }
};

template <>
struct Layout<BlockQ5_K> : UsualLayout {
    enum { kBlocks = 8, kGroup = 2, kLargest = 31, kZero = 0, kOffset = 1 };
    struct Header {
        ScalesK k;
        __m256i qh[8];
    };
    ALWAYS_INLINE static Header header(Rows at) {
        Header h;
        h.k = scales_k(at);
        dwords(at, offsetof(BlockQ5_K, qh), h.qh);
        dwords(at, offsetof(BlockQ5_K, qh) + 16, h.qh + 4);
        return h;
    }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header& h, int group, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            __m256i bytes[4];
            dwords(at, offsetof(BlockQ5_K, q) + (size_t)(32 * group + 16 * half), bytes);
            UNROLL
            for (int j = 0; j < 4; ++j) {
                const __m256i qh = h.qh[4 * half + j];
                use(0, 4 * half + j,
                    _mm256_or_si256(low_nibbles(bytes[j]), to_bit4(qh, 2 * group, 0x10)));
                use(1, 4 * half + j,
                    _mm256_or_si256(high_nibbles(bytes[j]), to_bit4(qh, 2 * group + 1, 0x10)));
            }
        }
    }
    ALWAYS_INLINE static F32 scale(const Header& h, int i) { return scale_k(h.k, i); }
    ALWAYS_INLINE static F32 offset(const Header& h, int i) { return offset_k(h.k, i); }
};

template <>
struct Layout<BlockQ6_K> : UsualLayout {
    enum { kBlocks = 8, kGroup = 4, kLargest = 32, kZero = 32, kOffset = 0, kHalfScales = 1 };
    struct Header {
        F32 d;
        __m256i scales[4];  // four bytes each per row, two per 32 columns
    };
    ALWAYS_INLINE static Header header(Rows at) {
        Header h;
        h.d = halves(at, offsetof(BlockQ6_K, d));
        dwords(at, offsetof(BlockQ6_K, scales), h.scales);
        return h;
    }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            __m256i qh[4];
            dwords(at, offsetof(BlockQ6_K, qh) + (size_t)(32 * group + 16 * half), qh);
            UNROLL
            for (int run = 0; run < 2; ++run) {
                __m256i bytes[4];
                dwords(at, (size_t)(64 * group + 32 * run + 16 * half), bytes);
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const int j = 4 * half + i;
                    use(run, j,
                        _mm256_or_si256(low_nibbles(bytes[i]), to_bit4(qh[i], 2 * run, 0x30)));
                    use(run + 2, j,
                        _mm256_or_si256(high_nibbles(bytes[i]), to_bit4(qh[i], 2 * run + 4, 0x30)));
                }
            }
        }
    }
    ALWAYS_INLINE static F32 scale(const Header& h, int) { return h.d; }
    ALWAYS_INLINE static F32 offset(const Header&, int) { return set(0.0f); }
    // The scale of columns 16 i .. 16 i + 15, as a pair of i16.
    ALWAYS_INLINE static __m256i scale_pair(const Header& h, int i) {
        return byte_pair(h.scales[i / 4], i % 4, i % 4);
    }
};

template <>
struct Layout<BlockQ8_0> : UsualLayout, ScaleOnly {
#if HAS_VNNI
    // Dots take unsigned codes: 128 more.
    enum { kBlocks = 1, kGroup = 1, kLargest = 128, kZero = 128, kOffset = 0 };
#else
    // Codes are widened to i16: vector j holds columns 2j and 2j + 1.
    enum { kBlocks = 1, kGroup = 1, kVectors = 16, kLargest = 128, kZero = 0, kOffset = 0 };
#endif
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            __m256i bytes[4];
            dwords(at, offsetof(BlockQ8_0, q) + (size_t)(16 * half), bytes);
            UNROLL
            for (int j = 0; j < 4; ++j) {
#if HAS_VNNI
                use(0, 4 * half + j, _mm256_xor_si256(bytes[j], _mm256_set1_epi8((char)0x80)));
#else
                use(0, 8 * half + 2 * j, byte_pair(bytes[j], 0, 1));
                use(0, 8 * half + 2 * j + 1, byte_pair(bytes[j], 2, 3));
#endif
            }
        }
    }
};

static_assert(Avx2Layout<Layout<BlockQ8_0>> && Avx2Layout<Layout<BlockQ4_0>> &&
              Avx2Layout<Layout<BlockQ4_1>> && Avx2Layout<Layout<BlockQ5_0>> &&
              Avx2Layout<Layout<BlockQ5_1>> && Avx2Layout<Layout<BlockQ4_K>> &&
              Avx2Layout<Layout<BlockQ5_K>> && Avx2Layout<Layout<BlockQ6_K>>);
// codes of 32 times 127, two per product
static_assert(kAdds<Layout<BlockQ5_0>> == 8 && kAdds<Layout<BlockQ6_K>> == 4);

}  // namespace

}  // namespace rwkv_edge
