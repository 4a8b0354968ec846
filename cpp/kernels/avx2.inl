// SPDX-License-Identifier: Apache-2.0
// The kernels for x86-64 with AVX2, FMA and F16C, and what newer levels add; each level's file
// compiles them with its own flags and names its LEVEL_KERNELS.
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stddef.h>

#include "kernels/levels.h"

namespace rwkv_edge {

namespace {

using F32 = __m256;

inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
inline F32 set(float v) { return _mm256_set1_ps(v); }
inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 negative_fma(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a, b, c); }
inline F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 round_(F32 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline F32 pow2(F32 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

inline __m128 fold(F32 v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

// ((0+4)+(2+6)) + ((1+5)+(3+7)), the order of kernels.h
inline float sum8(F32 v) {
    const __m128 fours = fold(v);
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
}

#include "kernels/float_kernels.inl"

// A decode step is as fast as memory, and the hardware fetches ahead where reads run on without
// end. So its eight rows are not neighbours: the rows of a call are cut into eight runs, and lane i
// takes the rows of run i one after the other, which lie in one piece.
struct Runs {
    const char* first;
    int64_t row_bytes, length;  // of a run, in rows

    const void* row(int lane, int64_t i) const { return first + (lane * length + i) * row_bytes; }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline Runs eight_runs(const MatmulArgs& a) {
    return {(const char*)a.w + a.row_begin * a.row_bytes, a.row_bytes,
            (a.row_end - a.row_begin) / 8};
}

// Runs that begin at the same place in a page share one set of the first cache, which their current
// lines then fill: blocks, of which a line holds several, are dropped between two reads. One row
// less moves the runs apart.
inline Runs apart(Runs runs) {
    const bool together = runs.length * runs.row_bytes % 4096 == 0 && runs.length > 1;
    return {runs.first, runs.row_bytes, runs.length - together};
}

// --- matmul: float types. One eight-lane sum per (row, token), several in flight. ---

struct Half {
    uint16_t bits;
};
struct Bfloat16 {
    uint16_t bits;
};
inline F32 load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline F32 load(const Bfloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

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
        for (int r = 0; r < kRows; ++r)
            _mm_prefetch((const char*)(rows[r] + k + kAhead), _MM_HINT_T0);
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
inline void dot_rows(Runs runs, int64_t i, const MatmulArgs& a, float* y) {
    const Weight* rows[kRows];
    for (int lane = 0; lane < kRows; ++lane) rows[lane] = (const Weight*)runs.row(lane, i);
    dot_float<Weight, kRows>(rows, a.x.x, a.cols, y, runs.length);
}

template <class Weight>
inline void decode_float(const MatmulArgs& a) {
    const Runs runs = apart(eight_runs(a));
    for (int64_t i = 0; i < runs.length; ++i)
        dot_rows<Weight, 8>(runs, i, a, a.y + a.row_begin + i);
    int64_t r = a.row_begin + 8 * runs.length;
    const auto neighbours = [&] {
        return Runs{(const char*)a.w + r * a.row_bytes, a.row_bytes, 1};
    };
    for (; r + 8 <= a.row_end; r += 8) dot_rows<Weight, 8>(neighbours(), 0, a, a.y + r);
    for (; r < a.row_end; ++r) dot_rows<Weight, 1>(neighbours(), 0, a, a.y + r);
}

// With more tokens, a panel of four rows by kColumns is widened (which is exact) and serves all
// tokens out of the first cache. The sums wait in memory from one panel to the next.
struct Panel {
    enum { kRows = 4, kColumns = 1024, kTokens = 64 };
    float w[kRows][kColumns];
    F32 sums[kTokens][kRows];
};
static_assert(sizeof(Panel) <= kPanelScratch, "a panel fits the scratch");

template <class Weight>
inline void widen(const Weight* row, int64_t cols, float* out) {
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) store(out + k, load(row + k));
    if (k < cols) store(out + k, load_tail(row + k, cols - k));
}

// 4 rows x 3 tokens keep all registers busy. The first panel starts the sums.
template <int kTokens>
inline void panel_dots(const float (*w)[Panel::kColumns], const float* x, int64_t x_stride,
                       int64_t cols, bool first, F32 (*sums)[Panel::kRows]) {
    F32 s[4][kTokens];
    for (int r = 0; r < 4; ++r)
        for (int t = 0; t < kTokens; ++t) s[r][t] = first ? set(0.0f) : sums[t][r];
    const auto step = [&](int64_t k, const F32* xs) {
        for (int r = 0; r < Panel::kRows; ++r) {
            const F32 row = load(w[r] + k);
            for (int t = 0; t < kTokens; ++t) s[r][t] = fma(row, xs[t], s[r][t]);
        }
    };
    F32 xs[kTokens];
    int64_t k = 0;
    _Pragma("GCC unroll 2") for (; k + 8 <= cols; k += 8) {
        for (int t = 0; t < kTokens; ++t) xs[t] = load(x + t * x_stride + k);
        step(k, xs);
    }
    if (k < cols) {
        for (int t = 0; t < kTokens; ++t) xs[t] = load_tail(x + t * x_stride + k, cols - k);
        step(k, xs);
    }
    for (int r = 0; r < 4; ++r)
        for (int t = 0; t < kTokens; ++t) sums[t][r] = s[r][t];
}

// sum8 of four vectors.
inline __m128 sum8(const F32 v[4]) {
    __m128 a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
}

// Asks for `n` bytes of each row of a panel that is not needed yet.
inline void fetch_rows(const char* first, int64_t row_bytes, int64_t n) {
    for (int64_t r = 0; r < Panel::kRows; ++r)
        for (int64_t at = 0; at < n; at += 64)
            _mm_prefetch(first + r * row_bytes + at, _MM_HINT_T1);
}

// `rows` rows from r on, `tokens` tokens from t0 on. Meanwhile the rows below are fetched.
template <class Weight>
inline void panels(const MatmulArgs& a, int64_t r, int64_t rows, int64_t t0, int64_t tokens) {
    Panel& p = *(Panel*)a.scratch;
    for (int64_t k = 0; k < a.cols; k += Panel::kColumns) {
        const int64_t cols = smaller(Panel::kColumns, a.cols - k);
        const auto weights = [&](int64_t row) {
            return (const Weight*)((const char*)a.w + row * a.row_bytes) + k;
        };
        for (int64_t i = 0; i < Panel::kRows; ++i)  // the last row again where there are too few
            widen(weights(r + smaller(i, rows - 1)), cols, p.w[i]);
        const auto* below = (const char*)weights(r + Panel::kRows);
        const int64_t share = cols * (int64_t)sizeof(Weight) / (tokens / 3 + 1);
        const float* x = a.x.x + t0 * a.cols + k;
        int64_t t = 0;
        for (; t + 3 <= tokens; t += 3, below += share) {
            fetch_rows(below, a.row_bytes, share);
            panel_dots<3>(p.w, x + t * a.cols, a.cols, cols, k == 0, p.sums + t);
        }
        for (; t + 2 <= tokens; t += 2)
            panel_dots<2>(p.w, x + t * a.cols, a.cols, cols, k == 0, p.sums + t);
        for (; t < tokens; ++t)
            panel_dots<1>(p.w, x + t * a.cols, a.cols, cols, k == 0, p.sums + t);
    }
    for (int64_t t = 0; t < tokens; ++t) {
        float sums[Panel::kRows];
        _mm_storeu_ps(sums, sum8(p.sums[t]));
        memcpy(a.y + (t0 + t) * a.y_stride + r, sums, (size_t)rows * sizeof(float));
    }
}

template <class Weight>
void matmul_float(const MatmulArgs& a) {
    if (a.tokens == 1) return decode_float<Weight>(a);
    for (int64_t r = a.row_begin; r < a.row_end; r += Panel::kRows)
        for (int64_t t = 0; t < a.tokens; t += Panel::kTokens)
            panels<Weight>(a, r, smaller(Panel::kRows, a.row_end - r), t,
                           smaller(Panel::kTokens, a.tokens - t));
}

// --- matmul: block types ---

// The inner loops are meant to be unrolled and inlined whole, and sums to be formed in the order
// written: left alone, compilers hoist products until they spill. PIN is a point that neither a
// value nor other PINs may pass.
#define ALWAYS_INLINE __attribute__((always_inline)) inline
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define PIN(vector) asm volatile("" : "+x"(vector))

#include "kernels/avx2_blocks.inl"

// Lanes 0 and 1 of every four added, in the first two lanes, and lanes 2 and 3, in the others.
inline __m128i sum_pairs(__m256i v) {
    const __m128i w = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_add_epi32(w, _mm_shuffle_epi32(w, 0xb1));
}

void quantize_activation(const float* x, int64_t n, const ActivationArrays& to) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < n / kBlock; ++b, x += kBlock) {
        F32 v[4];
        __m256i peak8 = _mm256_setzero_si256();  // compared as integers, see scalar.cpp
        for (int i = 0; i < 4; ++i) {
            v[i] = load(x + 8 * i);
            peak8 = _mm256_max_epu32(peak8, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        __m128i peak4 =
            _mm_max_epu32(_mm256_castsi256_si128(peak8), _mm256_extracti128_si256(peak8, 1));
        peak4 = _mm_max_epu32(peak4, _mm_shuffle_epi32(peak4, 0x4e));
        peak4 = _mm_max_epu32(peak4, _mm_shuffle_epi32(peak4, 0xb1));
        const float peak = bits_to_float((uint32_t)_mm_cvtsi128_si32(peak4));
        const F32 inverse = set(peak > 1e-30f && peak <= FLT_MAX ? 127.0f / peak : 0.0f);
        __m256i n32[4];
        for (int i = 0; i < 4; ++i) {
            // where the inverse is 0, so is the code, also of a NaN
            const F32 scaled =
                _mm256_and_ps(mul(v[i], inverse), _mm256_cmp_ps(inverse, set(0.0f), _CMP_NEQ_OQ));
            n32[i] = _mm256_cvtps_epi32(scaled);
        }
        // the four sums, and their total in the first lane
        const __m128i first = sum_pairs(_mm256_add_epi32(n32[0], n32[1]));
        const __m128i second = sum_pairs(_mm256_add_epi32(n32[2], n32[3]));
        const __m128i four = _mm_castps_si128(
            _mm_shuffle_ps(_mm_castsi128_ps(first), _mm_castsi128_ps(second), 0x88));
        _mm_storel_epi64((__m128i*)(to.sums8 + 4 * b),
                         _mm_packs_epi32(_mm_slli_epi32(four, 3), four));
        __m128i total = _mm_add_epi32(first, second);
        total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
        to.scale[b] = peak / 127.0f;
        to.scaled_sum[b] = to.scale[b] * (float)_mm_cvtsi128_si32(total);
        // packs works within 128-bit halves; a permutation puts their quarters back in order
        const auto in_order = [](__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xd8); };
        const __m256i low = in_order(_mm256_packs_epi32(n32[0], n32[1]));
        const __m256i high = in_order(_mm256_packs_epi32(n32[2], n32[3]));
        auto* wide = (__m256i*)(to.wide + b * kBlock);
        _mm256_storeu_si256(wide, low);
        _mm256_storeu_si256(wide + 1, high);
        _mm256_storeu_si256((__m256i*)(to.q + b * kBlock), in_order(_mm256_packs_epi16(low, high)));
    }
}

#include "kernels/avx2_peak.inl"

}  // namespace

void LEVEL_KERNELS(Kernels& table) {
    float_kernels(table);
    table.matmul[(int)Type::F32] = matmul_float<float>;
    table.matmul[(int)Type::F16] = matmul_float<Half>;
    table.matmul[(int)Type::BF16] = matmul_float<Bfloat16>;
    table.matmul[(int)Type::Q8_0] = matmul_blocks<BlockQ8_0>;
    table.matmul[(int)Type::Q4_0] = matmul_blocks<BlockQ4_0>;
    table.matmul[(int)Type::Q4_1] = matmul_blocks<BlockQ4_1>;
    table.matmul[(int)Type::Q5_0] = matmul_blocks<BlockQ5_0>;
    table.matmul[(int)Type::Q5_1] = matmul_blocks<BlockQ5_1>;
    table.matmul[(int)Type::Q4_K] = matmul_blocks<BlockQ4_K>;
    table.matmul[(int)Type::Q5_K] = matmul_blocks<BlockQ5_K>;
    table.matmul[(int)Type::Q6_K] = matmul_blocks<BlockQ6_K>;
    table.quantize_activation = quantize_activation;
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
