// SPDX-License-Identifier: Apache-2.0
// The weights of every type as floats, for matrices by input. All but the one addition of an offset
// is exact: w = d * code + m, where m is -zero * d for the types whose codes have a zero.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/input_matmul.inl"
#include "kernels/x86/avx2_vectors.inl"
#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

// In all lanes.
ALWAYS_INLINE F32 half_at(const char* p) {
    int16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm256_cvtph_ps(_mm_set1_epi16(bits));
}

// Eight bytes, each in a lane.
ALWAYS_INLINE __m256i bytes_at(const char* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
ALWAYS_INLINE __m256i bytes_of(uint32_t low, uint32_t high) {
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)((uint64_t)high << 32 | low)));
}
ALWAYS_INLINE __m256i with_mask(__m256i v, int mask) {
    return _mm256_and_si256(v, _mm256_set1_epi32(mask));
}
ALWAYS_INLINE __m256i shifted_down(__m256i v, int n) {
    return _mm256_srl_epi32(v, _mm_cvtsi32_si128(n));
}

ALWAYS_INLINE F32 weights(__m256i codes, F32 d, F32 m) {
    return fma(_mm256_cvtepi32_ps(codes), d, m);
}

template <class Weight>
struct Widen;

template <class Weight>
struct WidenFloats {
    using Isa = UsualVectors;
    static constexpr int kColumns = kBlock, kGroup = 1, kBytes = (int)(kBlock * sizeof(Weight));
    struct Header {};
    ALWAYS_INLINE static Header header(const char*) { return {}; }
    ALWAYS_INLINE static void columns(const char* at, const Header&, int, F32 out[4]) {
        UNROLL
        for (int v = 0; v < 4; ++v) out[v] = load((const Weight*)at + 8 * v);
    }
};
template <>
struct Widen<float> : WidenFloats<float> {};
template <>
struct Widen<Half> : WidenFloats<Half> {};
template <>
struct Widen<Bfloat16> : WidenFloats<Bfloat16> {};

// Blocks of 32 columns.
template <class Block>
struct WidenBlock {
    using Isa = UsualVectors;
    static constexpr int kColumns = kBlock, kGroup = 1, kBytes = (int)(sizeof(Block));
    struct Header {
        F32 d, m;
    };
    // With a zero of that code, or with an m of its own.
    template <int kZero>
    ALWAYS_INLINE static Header header_of(const char* block) {
        const F32 d = half_at(block);
        return {d, kZero == 0 ? half_at(block + 2) : mul(d, set(-(float)kZero))};
    }
    // Calls use(v, codes) for each vector of four bits.
    template <class Use>
    ALWAYS_INLINE static void nibbles(const char* q, Use use) {
        UNROLL
        for (int v = 0; v < 2; ++v) {
            const __m256i bytes = bytes_at(q + 8 * v);
            use(v, with_mask(bytes, 15));
            use(v + 2, _mm256_srli_epi32(bytes, 4));
        }
    }
};

template <>
struct Widen<BlockQ8_0> : WidenBlock<BlockQ8_0> {
    ALWAYS_INLINE static Header header(const char* block) { return {half_at(block), set(0.0f)}; }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int, F32 out[4]) {
        const char* q = block + offsetof(BlockQ8_0, q);
        UNROLL
        for (int v = 0; v < 4; ++v) {
            const __m128i bytes = _mm_loadl_epi64((const __m128i*)(q + 8 * v));
            out[v] = mul(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), h.d);
        }
    }
};

template <class Block, int kZero>
struct WidenNibbles : WidenBlock<Block> {
    using Header = typename WidenBlock<Block>::Header;
    ALWAYS_INLINE static Header header(const char* block) {
        return WidenBlock<Block>::template header_of<kZero>(block);
    }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int, F32 out[4]) {
        WidenBlock<Block>::nibbles(block + offsetof(Block, q),
                                   [&](int v, __m256i codes)
                                       INLINE_LAMBDA { out[v] = weights(codes, h.d, h.m); });
    }
};
template <>
struct Widen<BlockQ4_0> : WidenNibbles<BlockQ4_0, 8> {};
template <>
struct Widen<BlockQ4_1> : WidenNibbles<BlockQ4_1, 0> {};

// The fifth bit of column 8 v + i is bit 8 v + i of qh.
template <class Block, int kZero>
struct WidenFifthBits : WidenNibbles<Block, kZero> {
    using Header = typename WidenBlock<Block>::Header;
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int, F32 out[4]) {
        int32_t bits;
        memcpy(&bits, block + offsetof(Block, qh), sizeof bits);
        const __m256i qh = _mm256_set1_epi32(bits), up = _mm256_slli_epi32(qh, 4);
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        WidenBlock<Block>::nibbles(block + offsetof(Block, q), [&](int v,
                                                                   __m256i codes) INLINE_LAMBDA {
            const __m256i down = _mm256_add_epi32(lane, _mm256_set1_epi32(8 * v - 4));
            const __m256i bit = v == 0 ? _mm256_srlv_epi32(up, lane) : _mm256_srlv_epi32(qh, down);
            codes = _mm256_or_si256(codes, with_mask(bit, 16));
            out[v] = weights(codes, h.d, h.m);
        });
    }
};
template <>
struct Widen<BlockQ5_0> : WidenFifthBits<BlockQ5_0, 16> {};
template <>
struct Widen<BlockQ5_1> : WidenFifthBits<BlockQ5_1, 0> {};

// Super-blocks: d and m of each 32 columns, or of each 16, wait in memory.
template <class Block>
struct WidenScales {
    using Isa = UsualVectors;
    static constexpr int kColumns = kSuperBlock, kGroup = 1, kBytes = (int)(sizeof(Block));
    struct Header {
        float d[8], m[8];
    };
    ALWAYS_INLINE static Header header(const char* block) {
        uint32_t s[3];
        memcpy(s, block + offsetof(Block, scales), sizeof s);
        const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
        const __m256i scales = bytes_of(s[0] & six, (s[2] & four) | (s[0] >> 2 & two));
        const __m256i mins = bytes_of(s[1] & six, (s[2] >> 4 & four) | (s[1] >> 2 & two));
        const F32 d = half_at(block + offsetof(Block, d));
        const F32 dmin = half_at(block + offsetof(Block, dmin));
        Header h;
        store(h.d, mul(d, _mm256_cvtepi32_ps(scales)));
        store(h.m, mul(sub(set(0.0f), dmin), _mm256_cvtepi32_ps(mins)));
        return h;
    }
    // Four bits of the i-th 32 columns, eight from 8 v on.
    ALWAYS_INLINE static __m256i nibbles(const char* block, int i, int v) {
        const __m256i bytes = bytes_at(block + offsetof(Block, q) + 32 * (i / 2) + 8 * v);
        return with_mask(shifted_down(bytes, 4 * (i % 2)), 15);
    }
};

template <>
struct Widen<BlockQ4_K> : WidenScales<BlockQ4_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, F32 out[4]) {
        const F32 d = set(h.d[i]), m = set(h.m[i]);
        UNROLL
        for (int v = 0; v < 4; ++v) out[v] = weights(nibbles(block, i, v), d, m);
    }
};

template <>
struct Widen<BlockQ5_K> : WidenScales<BlockQ5_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, F32 out[4]) {
        const F32 d = set(h.d[i]), m = set(h.m[i]);
        UNROLL
        for (int v = 0; v < 4; ++v) {
            const __m256i qh = bytes_at(block + offsetof(BlockQ5_K, qh) + 8 * v);
            const __m256i bit = with_mask(shifted_down(_mm256_slli_epi32(qh, 4), i), 16);
            out[v] = weights(_mm256_or_si256(nibbles(block, i, v), bit), d, m);
        }
    }
};

template <>
struct Widen<BlockQ6_K> {
    using Isa = UsualVectors;
    static constexpr int kColumns = kSuperBlock, kGroup = 1, kBytes = (int)(sizeof(BlockQ6_K));
    struct Header {
        float d[16], m[16];
    };
    ALWAYS_INLINE static Header header(const char* block) {
        const F32 d = half_at(block + offsetof(BlockQ6_K, d));
        Header h;
        UNROLL
        for (int v = 0; v < 2; ++v) {
            const char* scales = block + offsetof(BlockQ6_K, scales) + 8 * v;
            const __m128i bytes = _mm_loadl_epi64((const __m128i*)scales);
            const F32 scaled = mul(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
            store(h.d + 8 * v, scaled);
            store(h.m + 8 * v, mul(scaled, set(-32.0f)));
        }
        return h;
    }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, F32 out[4]) {
        const int half = i / 4, run = i % 4;
        const char* ql = block + 64 * half + 32 * (run % 2);
        const char* qh = block + offsetof(BlockQ6_K, qh) + 32 * half;
        UNROLL
        for (int v = 0; v < 4; ++v) {
            const __m256i low = with_mask(shifted_down(bytes_at(ql + 8 * v), run / 2 * 4), 15);
            const __m256i up = _mm256_slli_epi32(bytes_at(qh + 8 * v), 4);
            const __m256i high = with_mask(shifted_down(up, 2 * run), 0x30);
            out[v] = weights(_mm256_or_si256(low, high), set(h.d[2 * i + v / 2]),
                             set(h.m[2 * i + v / 2]));
        }
    }
};

}  // namespace

}  // namespace rwkv_edge
