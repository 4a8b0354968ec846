// SPDX-License-Identifier: Apache-2.0
// As avx2_inputs.inl, in 512 bits. The values that four bits can mean fit a vector, d * code + m
// for each code, and a permutation looks them up; it heeds the low four bits of an index only.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/generic/input_matmul.inl"
#include "kernels/x86/avx2_inputs.inl"
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

// In all lanes.
ALWAYS_INLINE Floats wide_half_at(const char* p) {
    int16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm512_cvtph_ps(_mm256_set1_epi16(bits));
}

// 16 bytes, each in a lane.
ALWAYS_INLINE Ints wide_bytes_at(const char* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
ALWAYS_INLINE Ints wide_shifted_down(Ints v, int n) {
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(n));
}

// What the codes from `first` on mean.
ALWAYS_INLINE Floats values(Floats d, Floats m, float first) {
    const Floats codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_fmadd_ps(d, _mm512_add_ps(codes, _mm512_set1_ps(first)), m);
}

template <class Weight>
struct WideWiden;

template <class Weight>
struct WideFloats {
    using Isa = WideVectors;
    static constexpr int kColumns = kBlock, kBytes = kBlock * (int)sizeof(Weight);
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

template <>
struct WideWiden<BlockQ8_0> {
    using Isa = WideVectors;
    static constexpr int kColumns = kBlock, kBytes = (int)sizeof(BlockQ8_0);
    using Header = Floats;
    ALWAYS_INLINE static Header header(const char* block) { return wide_half_at(block); }
    ALWAYS_INLINE static void columns(const char* block, const Header& d, int, Floats out[2]) {
        const char* q = block + offsetof(BlockQ8_0, q);
        for (int v = 0; v < 2; ++v) {
            const __m128i bytes = _mm_loadu_si128((const __m128i*)(q + 16 * v));
            out[v] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), d);
        }
    }
};

// Blocks of 32 columns with nibbles and perhaps a fifth bit; with a zero of that code, or an m.
template <class Block, int kZero, bool kFifth>
struct WideNibbles {
    using Isa = WideVectors;
    static constexpr int kColumns = kBlock, kBytes = (int)sizeof(Block);
    struct Header {
        Floats low, high;  // what the codes mean, without a fifth bit and with it
    };
    ALWAYS_INLINE static Header header(const char* block) {
        const Floats d = wide_half_at(block);
        const Floats m =
            kZero == 0 ? wide_half_at(block + 2) : _mm512_mul_ps(d, _mm512_set1_ps(-(float)kZero));
        return {values(d, m, 0), kFifth ? values(d, m, 16) : m};
    }
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int, Floats out[2]) {
        const Ints q = wide_bytes_at(block + offsetof(Block, q)), up = _mm512_srli_epi32(q, 4);
        out[0] = _mm512_permutexvar_ps(q, h.low);
        out[1] = _mm512_permutexvar_ps(up, h.low);
        if constexpr (kFifth) {
            uint32_t bits;
            memcpy(&bits, block + offsetof(Block, qh), sizeof bits);
            out[0] = _mm512_mask_permutexvar_ps(out[0], (__mmask16)bits, q, h.high);
            out[1] = _mm512_mask_permutexvar_ps(out[1], (__mmask16)(bits >> 16), up, h.high);
        }
    }
};
template <>
struct WideWiden<BlockQ4_0> : WideNibbles<BlockQ4_0, 8, false> {};
template <>
struct WideWiden<BlockQ4_1> : WideNibbles<BlockQ4_1, 0, false> {};
template <>
struct WideWiden<BlockQ5_0> : WideNibbles<BlockQ5_0, 16, true> {};
template <>
struct WideWiden<BlockQ5_1> : WideNibbles<BlockQ5_1, 0, true> {};

// Super-blocks: the scales as with AVX2.
template <class Block>
struct WideSuper {
    using Isa = WideVectors;
    static constexpr int kColumns = kSuperBlock, kBytes = (int)sizeof(Block);
    using Header = typename Widen<Block>::Header;
    ALWAYS_INLINE static Header header(const char* block) { return Widen<Block>::header(block); }
};

template <>
struct WideWiden<BlockQ4_K> : WideSuper<BlockQ4_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[2]) {
        const Floats low = values(_mm512_set1_ps(h.d[i]), _mm512_set1_ps(h.m[i]), 0);
        const char* q = block + offsetof(BlockQ4_K, q) + 32 * (i / 2);
        for (int v = 0; v < 2; ++v)
            out[v] = _mm512_permutexvar_ps(
                wide_shifted_down(wide_bytes_at(q + 16 * v), 4 * (i % 2)), low);
    }
};

template <>
struct WideWiden<BlockQ5_K> : WideSuper<BlockQ5_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[2]) {
        const Floats d = _mm512_set1_ps(h.d[i]), m = _mm512_set1_ps(h.m[i]);
        const Floats low = values(d, m, 0), high = values(d, m, 16);
        const char* q = block + offsetof(BlockQ5_K, q) + 32 * (i / 2);
        const __m128i own_bit = _mm_set1_epi8((char)(1 << i));
        for (int v = 0; v < 2; ++v) {
            const Ints codes = wide_shifted_down(wide_bytes_at(q + 16 * v), 4 * (i % 2));
            const char* qh = block + offsetof(BlockQ5_K, qh) + 16 * v;
            const __mmask16 bits = _mm_test_epi8_mask(_mm_loadu_si128((const __m128i*)qh), own_bit);
            out[v] =
                _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(codes, low), bits, codes, high);
        }
    }
};

template <>
struct WideWiden<BlockQ6_K> : WideSuper<BlockQ6_K> {
    ALWAYS_INLINE static void columns(const char* block, const Header& h, int i, Floats out[2]) {
        const int half = i / 4, run = i % 4;
        const char* ql = block + 64 * half + 32 * (run % 2);
        const char* qh = block + offsetof(BlockQ6_K, qh) + 32 * half;
        for (int v = 0; v < 2; ++v) {
            const Ints low = wide_shifted_down(wide_bytes_at(ql + 16 * v), run / 2 * 4);
            const Ints up = _mm512_slli_epi32(wide_bytes_at(qh + 16 * v), 4);
            const Ints high =
                _mm512_and_si512(wide_shifted_down(up, 2 * run), _mm512_set1_epi32(0x30));
            const Ints codes =  // low & 15 | high
                _mm512_ternarylogic_epi32(low, _mm512_set1_epi32(15), high, 0xea);
            out[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(h.d[2 * i + v]),
                                     _mm512_set1_ps(h.m[2 * i + v]));
        }
    }
};

}  // namespace

}  // namespace rwkv_edge
