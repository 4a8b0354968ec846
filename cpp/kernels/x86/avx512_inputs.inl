// SPDX-License-Identifier: Apache-2.0
// As avx2_inputs.inl, in 512 bits. The values that four bits can mean fit a vector, d * code + m
// for each code, and a permutation looks them up; it heeds the low four bits of an index only.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/generic/input_matmul.inl"
#include "kernels/x86/avx512_layouts.inl"
#include "kernels/x86/avx512_rows.inl"

namespace rwkv_edge {

namespace {

struct WideVectors {
    using V = Floats;
    static constexpr int kLanes = 16;
    ALWAYS_INLINE static V load(const float* p) { return _mm512_loadu_ps(p); }
    ALWAYS_INLINE static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
    ALWAYS_INLINE static V set(float v) { return _mm512_set1_ps(v); }
    ALWAYS_INLINE static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
};

// 16 bytes, each in a lane.
ALWAYS_INLINE Ints wide_bytes_at(const char* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
// What the codes from `first` on mean: d * code + m, or without an m. A zero's sign may differ from
// AVX2's, which no sum shows: none is -0.
ALWAYS_INLINE Floats codes_from(float first) {
    const Floats codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_ps(codes, _mm512_set1_ps(first));
}
ALWAYS_INLINE Floats values(Floats d, Floats m, float first) {
    return _mm512_fmadd_ps(d, codes_from(first), m);
}
ALWAYS_INLINE Floats values(Floats d, float first) { return _mm512_mul_ps(d, codes_from(first)); }

template <class Weight>
struct WideWiden;

template <class Weight>
struct WideFloats {
    using Isa = WideVectors;
    static constexpr int kColumns = kBlock, kGroup = 1, kBytes = kBlock * (int)sizeof(Weight);
    struct Header {};
    ALWAYS_INLINE static Header header(const char*) { return {}; }
};
template <>
struct WideWiden<float> : WideFloats<float> {
    ALWAYS_INLINE static void columns(const char* at, const Header&, int, Floats out[2]) {
        for (int v = 0; v < 2; ++v) out[v] = _mm512_loadu_ps((const float*)at + 16 * v);
    }
};
template <>
struct WideWiden<Half> : WideFloats<Half> {
    ALWAYS_INLINE static void columns(const char* at, const Header&, int, Floats out[2]) {
        for (int v = 0; v < 2; ++v)
            out[v] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(at + 32 * v)));
    }
};
template <>
struct WideWiden<Bfloat16> : WideFloats<Bfloat16> {
    ALWAYS_INLINE static void columns(const char* at, const Header&, int, Floats out[2]) {
        for (int v = 0; v < 2; ++v) {
            const __m256i bits = _mm256_loadu_si256((const __m256i*)(at + 32 * v));
            out[v] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        }
    }
};

// Of blocks of 32 columns eight share a header, where a row has eight more: their d, or d and m,
// are brought together by few permutations, and wait in memory for their columns.
template <class Block, int kBlocks, bool kHasOffset>
struct WideBlocks {
    using Isa = WideVectors;
    static constexpr int kColumns = kBlocks * kBlock, kGroup = 1,
                         kBytes = kBlocks * (int)sizeof(Block);
    struct Header {
        float d[8], m[8];
    };
    // So many blocks have their first four bytes in 64.
    static constexpr int kTogether = 60 / (int)sizeof(Block) + 1;
    static constexpr auto kFirstWords =
        table<uint16_t>([](int i) { return i % kTogether * (int)sizeof(Block) / 2; });
    static constexpr auto kSecondWords =
        table<uint16_t>([](int i) { return i % kTogether * (int)sizeof(Block) / 2 + 1; });

    ALWAYS_INLINE static Header header(const char* block) {
        Ints d = _mm512_setzero_si512(), m = d;
        UNROLL
        for (int b = 0; b < kBlocks; b += kTogether) {
            const int n = kBlocks - b < kTogether ? kBlocks - b : kTogether;
            const __mmask32 ours = (__mmask32)(((1u << n) - 1) << b);
            const __mmask32 words =  // up to the last block's second
                (__mmask32)((uint64_t{1} << ((n - 1) * (int)sizeof(Block) / 2 + 2)) - 1);
            const Ints from = _mm512_maskz_loadu_epi16(words, block + b * (int)sizeof(Block));
            d = _mm512_mask_permutexvar_epi16(d, ours, kFirstWords, from);
            if (kHasOffset) m = _mm512_mask_permutexvar_epi16(m, ours, kSecondWords, from);
        }
        Header h;
        _mm256_storeu_ps(h.d, _mm256_cvtph_ps(_mm512_castsi512_si128(d)));
        if (kHasOffset) _mm256_storeu_ps(h.m, _mm256_cvtph_ps(_mm512_castsi512_si128(m)));
        return h;
    }
};

template <int kBlocks>
struct WideQ8_0 : WideBlocks<BlockQ8_0, kBlocks, false> {
    using Header = typename WideBlocks<BlockQ8_0, kBlocks, false>::Header;
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[2]) {
        const char* q = block + i * (int)sizeof(BlockQ8_0) + offsetof(BlockQ8_0, q);
        for (int v = 0; v < 2; ++v) {
            const __m128i bytes = _mm_loadu_si128((const __m128i*)(q + 16 * v));
            out[v] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)),
                                   _mm512_set1_ps(h.d[i]));
        }
    }
};
template <>
struct WideWiden<BlockQ8_0> : WideQ8_0<1> {
    using Longer = WideQ8_0<8>;
};

// With nibbles and perhaps a fifth bit; with a zero of that code, or an m.
template <class Block, int kZero, bool kFifth, int kBlocks>
struct WideNibbles : WideBlocks<Block, kBlocks, kZero == 0> {
    using Header = typename WideBlocks<Block, kBlocks, kZero == 0>::Header;
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[2]) {
        block += i * (int)sizeof(Block);
        const auto values_from = [&](int first) INLINE_LAMBDA {
            const Floats d = _mm512_set1_ps(h.d[i]);
            if (kZero == 0) return values(d, _mm512_set1_ps(h.m[i]), (float)first);
            return values(d, (float)(first - kZero));
        };
        const Ints q = wide_bytes_at(block + offsetof(Block, q)), up = _mm512_srli_epi32(q, 4);
        const Floats low = values_from(0);
        out[0] = _mm512_permutexvar_ps(q, low);
        out[1] = _mm512_permutexvar_ps(up, low);
        if constexpr (kFifth) {
            uint32_t bits;
            memcpy(&bits, block + offsetof(Block, qh), sizeof bits);
            const Floats high = values_from(16);
            out[0] = _mm512_mask_permutexvar_ps(out[0], (__mmask16)bits, q, high);
            out[1] = _mm512_mask_permutexvar_ps(out[1], (__mmask16)(bits >> 16), up, high);
        }
    }
};
template <>
struct WideWiden<BlockQ4_0> : WideNibbles<BlockQ4_0, 8, false, 1> {
    using Longer = WideNibbles<BlockQ4_0, 8, false, 8>;
};
template <>
struct WideWiden<BlockQ4_1> : WideNibbles<BlockQ4_1, 0, false, 1> {
    using Longer = WideNibbles<BlockQ4_1, 0, false, 8>;
};
template <>
struct WideWiden<BlockQ5_0> : WideNibbles<BlockQ5_0, 16, true, 1> {
    using Longer = WideNibbles<BlockQ5_0, 16, true, 8>;
};
template <>
struct WideWiden<BlockQ5_1> : WideNibbles<BlockQ5_1, 0, true, 1> {
    using Longer = WideNibbles<BlockQ5_1, 0, true, 8>;
};

// Super-blocks: d and m of each 32 columns, or of each 16, wait in memory.
template <class Block>
struct WideSuper {
    using Isa = WideVectors;
    static constexpr int kColumns = kSuperBlock, kGroup = 2, kBytes = (int)sizeof(Block);
    struct Header {
        float both[16];  // d, then m
        ALWAYS_INLINE float d(int i) const { return both[i]; }
        ALWAYS_INLINE float m(int i) const { return both[8 + i]; }
    };
    // The first 16 bytes are d, dmin, and the scales, as dwords s0, s1, s2. The first four scales
    // and minima are six bits of s0 and s1; of the last four, four bits are in s2 and two in s0 and
    // s1.
    ALWAYS_INLINE static Header header(const char* block) {
        static_assert(offsetof(Block, dmin) == 2 && offsetof(Block, scales) == 4);
        const __m128i s = _mm_loadu_si128((const __m128i*)block);
        const __m128i first = _mm_and_si128(s, _mm_set1_epi8(63));
        const __m128i upper = _mm_and_si128(_mm_srli_epi16(s, 2), _mm_set1_epi8(0x30));
        const __m128i nibbles =
            _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi32(s, 0xff), _mm_setr_epi32(0, 0, 4, 0)),
                          _mm_set1_epi8(15));
        const __m128i last = _mm_or_si128(nibbles, upper);
        const __m128i bytes = _mm_permutex2var_epi32(first, _mm_setr_epi32(1, 5, 2, 6), last);
        const __m256i two = _mm256_broadcastsi128_si256(s);
        const __m256i d_then_dmin = _mm256_shuffle_epi8(
            two, _mm256_setr_epi16(0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x302,
                                   0x302, 0x302, 0x302, 0x302, 0x302, 0x302, 0x302));
        const Floats scaled = _mm512_mul_ps(_mm512_cvtph_ps(d_then_dmin),
                                            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
        Header h;
        const Floats sign = _mm512_castsi512_ps(_mm512_maskz_set1_epi32(0xff00, INT32_MIN));
        _mm512_storeu_ps(h.both, _mm512_xor_ps(scaled, sign));
        return h;
    }
};

template <>
struct WideWiden<BlockQ4_K> : WideSuper<BlockQ4_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[4]) {
        const char* q = block + offsetof(BlockQ4_K, q) + 32 * i;
        const Floats low = values(_mm512_set1_ps(h.d(2 * i)), _mm512_set1_ps(h.m(2 * i)), 0);
        const Floats high =
            values(_mm512_set1_ps(h.d(2 * i + 1)), _mm512_set1_ps(h.m(2 * i + 1)), 0);
        for (int v = 0; v < 2; ++v) {
            const Ints codes = wide_bytes_at(q + 16 * v);
            out[v] = _mm512_permutexvar_ps(codes, low);
            out[v + 2] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), high);
        }
    }
};

template <>
struct WideWiden<BlockQ5_K> : WideSuper<BlockQ5_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[4]) {
        const char *q = block + offsetof(BlockQ5_K, q) + 32 * i,
                   *qh = block + offsetof(BlockQ5_K, qh);
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const Floats d = _mm512_set1_ps(h.d(2 * i + half)),
                         m = _mm512_set1_ps(h.m(2 * i + half));
            const Floats low = values(d, m, 0), high = values(d, m, 16);
            const __m128i own_bit = _mm_set1_epi8((char)(1 << (2 * i + half)));
            for (int v = 0; v < 2; ++v) {
                Ints codes = wide_bytes_at(q + 16 * v);
                if (half == 1) codes = _mm512_srli_epi32(codes, 4);
                const __m128i bytes = _mm_loadu_si128((const __m128i*)(qh + 16 * v));
                out[2 * half + v] =
                    _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(codes, low),
                                               _mm_test_epi8_mask(bytes, own_bit), codes, high);
            }
        }
    }
};

template <>
struct WideWiden<BlockQ6_K> {
    using Isa = WideVectors;
    static constexpr int kColumns = kSuperBlock, kGroup = 4, kBytes = (int)sizeof(BlockQ6_K);
    struct Header {
        float d[16], m[16];
    };
    ALWAYS_INLINE static Header header(const char* block) {
        int16_t d;
        memcpy(&d, block + offsetof(BlockQ6_K, d), sizeof d);
        const char* scales = block + offsetof(BlockQ6_K, scales);
        const Ints wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)scales));
        const Floats scaled =
            _mm512_mul_ps(_mm512_cvtph_ps(_mm256_set1_epi16(d)), _mm512_cvtepi32_ps(wide));
        Header h;
        _mm512_storeu_ps(h.d, scaled);
        _mm512_storeu_ps(h.m, _mm512_mul_ps(scaled, _mm512_set1_ps(-32.0f)));
        return h;
    }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[8]) {
        const char *ql = block + 64 * i, *qh = block + offsetof(BlockQ6_K, qh) + 32 * i;
        const Ints nibble = _mm512_set1_epi32(15), upper = _mm512_set1_epi32(0x30);
        UNROLL
        for (int v = 0; v < 2; ++v) {
            const Ints bits = wide_bytes_at(qh + 16 * v);
            UNROLL
            for (int run = 0; run < 4; ++run) {
                Ints low = wide_bytes_at(ql + 32 * (run % 2) + 16 * v);
                if (run >= 2) low = _mm512_srli_epi32(low, 4);
                const Ints up = run < 2 ? _mm512_slli_epi32(bits, (unsigned)(4 - 2 * run))
                                        : _mm512_srli_epi32(bits, (unsigned)(2 * run - 4));
                const Ints high = _mm512_and_si512(up, upper);
                // low & 15 | high
                const Ints codes = _mm512_ternarylogic_epi32(low, nibble, high, 0xea);
                const int at = 2 * (4 * i + run) + v;
                out[2 * run + v] = _mm512_fmadd_ps(
                    _mm512_cvtepi32_ps(codes), _mm512_set1_ps(h.d[at]), _mm512_set1_ps(h.m[at]));
            }
        }
    }
};

}  // namespace

}  // namespace rwkv_edge
