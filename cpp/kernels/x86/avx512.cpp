// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX-512 F, BW, VL, DQ, VNNI and VBMI, in vectors of 512 bits: the products.
#include <float.h>
#include <immintrin.h>
#include <stddef.h>

#include "kernels/levels.h"

namespace rwkv_edge {

namespace {

#define ALWAYS_INLINE __attribute__((always_inline)) inline
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

using Ints = __m512i;
using Floats = __m512;
using Eight = __m256;  // floats of eight rows

constexpr int kLanes = 8;
#include "kernels/rows.inl"

// A mask of the first n lanes.
ALWAYS_INLINE __mmask16 first_lanes(int64_t n) { return (__mmask16)(n < 16 ? (1 << n) - 1 : 0xffff); }

ALWAYS_INLINE Floats join(Eight low, Eight high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

// A place in eight rows.
struct EightRows {
    const char* first[8];
    int64_t at;

    ALWAYS_INLINE const char* operator[](int r) const { return first[r] + at; }
};

// Up to eight rows from r on; the last one again where there are too few.
inline EightRows neighbours(const MatmulArgs& a, int64_t r, int64_t end) {
    EightRows rows = {};
    for (int i = 0; i < 8; ++i)
        rows.first[i] = (const char*)a.w + smaller(r + i, end - 1) * a.row_bytes;
    return rows;
}

// All rows, eight at a time as memory likes it (rows.inl), times few tokens: multiply(rows, sums) makes the
// sums of eight rows with each token.
template <int kTokens, class Multiply>
ALWAYS_INLINE void few_rows(const MatmulArgs& a, Multiply multiply) {
    const Runs runs = apart(runs_of(a));
    Eight sums[kTokens];
    for (int64_t i = 0; i < runs.length; ++i) {
        EightRows rows = {};
        for (int r = 0; r < 8; ++r) rows.first[r] = (const char*)runs.row(r, i);
        multiply(rows, sums);
        for (int64_t t = 0; t < a.tokens; ++t) {
            float y[8];
            _mm256_storeu_ps(y, sums[t]);
            for (int r = 0; r < 8; ++r)
                a.y[t * a.y_stride + a.row_begin + r * runs.length + i] = y[r];
        }
    }
    for (int64_t r = a.row_begin + 8 * runs.length; r < a.row_end; r += 8) {
        multiply(neighbours(a, r, a.row_end), sums);
        for (int64_t t = 0; t < a.tokens; ++t)
            _mm256_mask_storeu_ps(a.y + t * a.y_stride + r, (__mmask8)first_lanes(a.row_end - r),
                                  sums[t]);
    }
}

// What many tokens need next, `bytes` of some rows: asked for while they are multiplied, a share with
// each part of them.
struct NextRows {
    const char* first;
    int64_t rows, row_bytes, bytes;

    ALWAYS_INLINE void fetch(int64_t part, int64_t parts) const {
        const int64_t lines = bytes / 64 + 1;
        for (int64_t at = part * lines / parts * 64; at < (part + 1) * lines / parts * 64; at += 64)
            for (int64_t r = 0; r < rows; ++r)
                _mm_prefetch(first + r * row_bytes + at, _MM_HINT_T1);
    }
};

// One token's activations, rounded to 8 bits in blocks of 32: x[k] ~ scale * q[k].
struct BlockSums {
    float scale, scaled_sum;  // the second is scale times the sum of q
    int32_t minus_sums[3];    // minus the sum of q: of 16 columns, of the next 16, of all
};
struct Rounded {
    int8_t* q;          // [cols]
    BlockSums* blocks;  // [cols / 32]
};

int64_t rounded_bytes(int64_t cols) { return cols + cols / kBlock * (int64_t)sizeof(BlockSums); }

ALWAYS_INLINE Rounded rounded(void* row, int64_t cols) {
    return {(int8_t*)row, (BlockSums*)((char*)row + cols)};
}
ALWAYS_INLINE Rounded rounded(const MatmulArgs& a, int64_t token) {
    return rounded((char*)a.x + token * a.x_stride, a.cols);
}

void round_activations(const float* x, int64_t cols, void* to) {
    const Rounded row = rounded(to, cols);
    for (int64_t b = 0; b < cols / kBlock; ++b, x += kBlock) {
        const Floats v[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
        // compared as integers, see scalar.cpp
        const Ints magnitude = _mm512_set1_epi32(0x7fffffff);
        const uint32_t peak_bits = _mm512_reduce_max_epu32(
            _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v[0]), magnitude),
                             _mm512_and_si512(_mm512_castps_si512(v[1]), magnitude)));
        const float peak = bits_to_float(peak_bits);
        const bool usable = peak > 1e-30f && peak <= FLT_MAX;
        const Floats inverse = _mm512_set1_ps(usable ? 127.0f / peak : 0.0f);
        const __mmask16 all = usable ? 0xffff : 0;
        int32_t sums[2];
        for (int i = 0; i < 2; ++i) {
            const Ints n = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(all, v[i], inverse));
            sums[i] = _mm512_reduce_add_epi32(n);
            _mm_storeu_si128((__m128i*)(row.q + b * kBlock + 16 * i), _mm512_cvtepi32_epi8(n));
        }
        const float scale = peak / 127.0f;
        row.blocks[b] = {scale, scale * (float)(sums[0] + sums[1]), {-sums[0], -sums[1], -sums[0] - sums[1]}};
    }
}

#include "kernels/x86/avx512_floats.inl"
#include "kernels/x86/avx512_layouts.inl"
#include "kernels/x86/avx512_blocks.inl"

// --- peaks: what products are made of, on registers alone ---
//
// Written in assembly, because a compiler sees that nothing comes of it.

// Sums in flight, so that none waits for itself.
enum { kPeakSums = 12 };

int64_t float_peak(int64_t rounds) {
    const Floats w = _mm512_set1_ps(0.5f), x = _mm512_set1_ps(0.25f);
    Floats sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL
        for (int s = 0; s < kPeakSums; ++s)
            asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sums[s]) : "v"(w), "v"(x));
    }
    return rounds * kPeakSums * 16 * 2;
}

int64_t int8_peak(int64_t rounds) {
    const Ints codes = bytes(15), x = bytes(-127);
    Ints sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL
        for (int s = 0; s < kPeakSums; ++s)
            asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[s]) : "v"(codes), "v"(x));
    }
    return rounds * kPeakSums * 64 * 2;
}

}  // namespace

void avx512_kernels(Kernels& table) {
    float_products(table);
    block_products(table);
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
    table.rounded_bytes = rounded_bytes;
    table.round_activations = round_activations;
}

}  // namespace rwkv_edge
