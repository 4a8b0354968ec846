// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX2, FMA and F16C.
#include <float.h>
#include <immintrin.h>
#include <math.h>

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

// ((0+4)+(2+6)) + ((1+5)+(3+7)), the order of kernels.h
inline float sum8(F32 v) {
    const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
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

template <class Weight, int kRows, int kTokens>
inline void dot_float(const Weight* const* rows, const float* x, int64_t cols, float* y,
                      int64_t y_stride, int64_t row_stride = 1) {
    F32 sums[kRows][kTokens];
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) sums[r][t] = set(0.0f);
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) {
        F32 xs[kTokens];
        for (int t = 0; t < kTokens; ++t) xs[t] = load(x + t * cols + k);
        for (int r = 0; r < kRows; ++r) {
            const F32 w = load(rows[r] + k);
            for (int t = 0; t < kTokens; ++t) sums[r][t] = fma(w, xs[t], sums[r][t]);
        }
    }
    if (k < cols) {
        for (int r = 0; r < kRows; ++r)
            for (int t = 0; t < kTokens; ++t)
                sums[r][t] = fma(load_tail(rows[r] + k, cols - k),
                                 load_tail(x + t * cols + k, cols - k), sums[r][t]);
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) y[t * y_stride + r * row_stride] = sum8(sums[r][t]);
}

// All tokens for kRows rows: three tokens at a time keep 4 x 3 sums in registers.
template <class Weight, int kRows>
inline void rows_float(const Weight* const* rows, const MatmulArgs& a, float* y) {
    int64_t t = 0;
    for (; t + 3 <= a.tokens; t += 3)
        dot_float<Weight, kRows, 3>(rows, a.x.x + t * a.cols, a.cols, y + t * a.y_stride,
                                    a.y_stride);
    for (; t < a.tokens; ++t)
        dot_float<Weight, kRows, 1>(rows, a.x.x + t * a.cols, a.cols, y + t * a.y_stride,
                                    a.y_stride);
}

inline const float* widen(const float* row, int64_t, float*) { return row; }

template <class Weight>
inline const float* widen(const Weight* row, int64_t cols, float* out) {
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) store(out + k, load(row + k));
    float tail[8];
    store(tail, load_tail(row + k, cols - k));
    memcpy(out + k, tail, (size_t)(cols - k) * sizeof(float));
    return out;
}

template <class Weight>
void matmul_float(const MatmulArgs& a) {
    const auto row = [&a](int64_t r) {
        return (const Weight*)((const char*)a.w + r * a.row_bytes);
    };
    int64_t r = a.row_begin;
    if (a.tokens == 1) {
        const Runs runs = eight_runs(a);
        for (int64_t i = 0; i < runs.length; ++i) {
            const Weight* rows[8];
            for (int lane = 0; lane < 8; ++lane) rows[lane] = (const Weight*)runs.row(lane, i);
            dot_float<Weight, 8, 1>(rows, a.x.x, a.cols, a.y + r + i, 0, runs.length);
        }
        r += 8 * runs.length;
    }
    for (; r + 4 <= a.row_end; r += 4) {
        const Weight* rows[4] = {row(r), row(r + 1), row(r + 2), row(r + 3)};
        if (a.tokens < 3) {
            rows_float<Weight, 4>(rows, a, a.y + r);
        } else {  // widening is exact: convert once for all tokens
            const float* wide[4];
            for (int i = 0; i < 4; ++i)
                wide[i] = widen(rows[i], a.cols, (float*)a.scratch + i * a.cols);
            rows_float<float, 4>(wide, a, a.y + r);
        }
    }
    for (; r < a.row_end; ++r) {
        const Weight* rows[1] = {row(r)};
        rows_float<Weight, 1>(rows, a, a.y + r);
    }
}

// --- matmul: block types ---
//
// Lanes are rows. Eight rows of a block become eight vectors, vector j holding in lane r the codes
// 4j .. 4j+3 of row r; multiplied with the broadcast activations 4j .. 4j+3 they give the integer
// dots of eight rows at once. A decode step uses the vectors in place; with more tokens they are
// unpacked once into a tile that all tokens share.

inline __m256i load_pair(const void* low, const void* high) {
    const __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)low));
    return _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i*)high), 1);
}

// Rows r and r + 4 in the halves of in[r], four dwords each -> out[j], lane r = dword j of row r.
inline void transpose(const __m256i in[4], __m256i out[4]) {
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
    const __m256i c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

// The half at byte `at` of eight blocks, as floats.
template <class Block>
inline F32 halves(const Block* const* b, size_t at) {
    const auto bits = [b, at](int r) {
        uint16_t half;
        memcpy(&half, (const char*)b[r] + at, sizeof half);
        return (int)half;
    };
    __m128i low = _mm_cvtsi32_si128(bits(0)), high = _mm_cvtsi32_si128(bits(4));
    low = _mm_insert_epi16(low, bits(1), 1);
    high = _mm_insert_epi16(high, bits(5), 1);
    low = _mm_insert_epi16(low, bits(2), 2);
    high = _mm_insert_epi16(high, bits(6), 2);
    low = _mm_insert_epi16(low, bits(3), 3);
    high = _mm_insert_epi16(high, bits(7), 3);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
}

template <class Block>
inline void nibble_codes(const Block* const* b, __m256i codes[8]) {
    __m256i in[4], bytes[4];
    for (int r = 0; r < 4; ++r) in[r] = load_pair(b[r]->q, b[r + 4]->q);
    transpose(in, bytes);
    const __m256i low = _mm256_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
        codes[j] = _mm256_and_si256(bytes[j], low);
        codes[j + 4] = _mm256_and_si256(_mm256_srli_epi16(bytes[j], 4), low);
    }
}

// Puts bit 4j + i of a row's qh as bit 4 into byte i of vector j.
template <class Block>
inline void add_fifth_bits(const Block* const* b, __m256i codes[8]) {
    int32_t words[8];
    for (int r = 0; r < 8; ++r) memcpy(&words[r], b[r]->qh, 4);
    const __m256i qh = _mm256_setr_epi32(words[0], words[1], words[2], words[3], words[4], words[5],
                                         words[6], words[7]);
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0,
                                            0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i bit[2] = {_mm256_set1_epi32(0x08040201), _mm256_set1_epi32((int32_t)0x80402010u)};
    for (int j = 0; j < 8; ++j) {
        const __m256i byte =
            _mm256_shuffle_epi8(qh, _mm256_add_epi8(spread, _mm256_set1_epi8((char)(j / 2))));
        const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit[j % 2]), bit[j % 2]);
        codes[j] = _mm256_or_si256(codes[j], _mm256_and_si256(is_set, _mm256_set1_epi8(16)));
    }
}

// What the types differ in: their codes, log2 of the code that means zero (or none), whether the
// codes are signed, whether a block has an offset m, and how many products of a vector an i16 can
// add up before it could overflow (codes of 15 times 127, two per i16: 3810 x 8 < 2^15; codes of
// 31: 7874 x 4 < 2^15).
template <class Block>
struct Traits;
template <>
struct Traits<BlockQ4_0> {
    enum { kZeroShift = 3, kSigned = 0, kOffset = 0, kAdds = 8 };
    static void codes(const BlockQ4_0* const* b, __m256i c[8]) { nibble_codes(b, c); }
};
template <>
struct Traits<BlockQ4_1> {
    enum { kZeroShift = 0, kSigned = 0, kOffset = 1, kAdds = 8 };
    static void codes(const BlockQ4_1* const* b, __m256i c[8]) { nibble_codes(b, c); }
};
template <>
struct Traits<BlockQ5_0> {
    enum { kZeroShift = 4, kSigned = 0, kOffset = 0, kAdds = 4 };
    static void codes(const BlockQ5_0* const* b, __m256i c[8]) {
        nibble_codes(b, c);
        add_fifth_bits(b, c);
    }
};
template <>
struct Traits<BlockQ5_1> {
    enum { kZeroShift = 0, kSigned = 0, kOffset = 1, kAdds = 4 };
    static void codes(const BlockQ5_1* const* b, __m256i c[8]) {
        nibble_codes(b, c);
        add_fifth_bits(b, c);
    }
};
template <>
struct Traits<BlockQ8_0> {
    enum { kZeroShift = 0, kSigned = 1, kOffset = 0, kAdds = 1 };
    static void codes(const BlockQ8_0* const* b, __m256i c[8]) {
        for (int half = 0; half < 2; ++half) {
            __m256i in[4];
            for (int r = 0; r < 4; ++r)
                in[r] = load_pair(b[r]->q + half * 16, b[r + 4]->q + half * 16);
            transpose(in, c + half * 4);
        }
    }
};

template <class Block>
inline F32 block_scale(const Block* const* b) {
    return halves(b, 0);
}

template <class Block>
inline F32 block_offset(const Block* const* b) {
    return halves(b, 2);
}

inline __m256i broadcast4(const int8_t* q) {
    int32_t four;
    memcpy(&four, q, 4);
    return _mm256_set1_epi32(four);
}

// Products of codes and activations, pairs added: u8 x i8, or i8 x i8 by moving the code's sign
// over.
template <class Block>
inline __m256i products(__m256i codes, __m256i q) {
    if (Traits<Block>::kSigned)
        return _mm256_maddubs_epi16(_mm256_sign_epi8(codes, codes), _mm256_sign_epi8(q, codes));
    return _mm256_maddubs_epi16(codes, q);
}

// The integer dots of eight rows with one token's block: lane r is row r.
template <class Block>
inline __m256i dot8(const __m256i* codes, const int8_t* q) {
    enum { kAdds = Traits<Block>::kAdds };
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    for (int j = 0; j < 8; j += kAdds) {
        __m256i sum = products<Block>(codes[j], broadcast4(q + 4 * j));
        for (int i = 1; i < kAdds; ++i)
            sum = _mm256_add_epi16(sum, products<Block>(codes[j + i], broadcast4(q + 4 * (j + i))));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(sum, ones));
    }
    return total;
}

// acc + d * scale * (dot - zero * sum) [+ m * scale * sum]
template <class Block>
inline F32 add_block(F32 acc, __m256i dot, F32 d, F32 m, float scale, int32_t sum) {
    if (Traits<Block>::kZeroShift != 0)
        dot = _mm256_sub_epi32(
            dot, _mm256_slli_epi32(_mm256_set1_epi32(sum), Traits<Block>::kZeroShift));
    acc = fma(_mm256_cvtepi32_ps(dot), mul(d, set(scale)), acc);
    if (Traits<Block>::kOffset) acc = fma(m, set(scale * (float)sum), acc);
    return acc;
}

// Row-wise dots for one token: for signed codes cheaper than the transposed form.
inline __m256i dot8_rows(const BlockQ8_0* const* b, const int8_t* q) {
    const __m256i x = _mm256_loadu_si256((const __m256i*)q), ones = _mm256_set1_epi16(1);
    __m256i s[8];
    for (int r = 0; r < 8; ++r) {
        const __m256i w = _mm256_loadu_si256((const __m256i*)b[r]->q);
        s[r] = _mm256_madd_epi16(products<BlockQ8_0>(w, x), ones);
    }
    const __m256i low =
        _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    const __m256i high =
        _mm256_hadd_epi32(_mm256_hadd_epi32(s[4], s[5]), _mm256_hadd_epi32(s[6], s[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                            _mm256_permute2x128_si256(low, high, 0x31));
}

template <class Block>
inline __m256i dot8_rows(const Block* const* b, const int8_t* q) {
    __m256i codes[8];
    Traits<Block>::codes(b, codes);
    return dot8<Block>(codes, q);
}

// Stores the lanes of rows [0, n).
inline void store_rows(float* y, F32 v, int64_t n) {
    if (n >= 8) return store(y, v);
    float lanes[8];
    store(lanes, v);
    memcpy(y, lanes, (size_t)n * sizeof(float));
}

template <class Block>
inline F32 one_token(const Block* const* rows, const MatmulArgs& a) {
    F32 acc = set(0.0f);
    const Block* b[8];
    for (int r = 0; r < 8; ++r) b[r] = rows[r];
    for (int64_t i = 0; i < a.cols / kBlock; ++i) {
        const __m256i dot = dot8_rows(b, a.x.q + i * kBlock);
        const F32 m = Traits<Block>::kOffset ? block_offset(b) : set(0.0f);
        acc = add_block<Block>(acc, dot, block_scale(b), m, a.x.scale[i], a.x.sum[i]);
        for (int r = 0; r < 8; ++r) ++b[r];
    }
    return acc;
}

struct TileBlock {
    __m256i codes[8];
    F32 d, m;
};

template <class Block>
inline void fill_tile(const Block* const* rows, int64_t blocks, TileBlock* tile) {
    const Block* b[8];
    for (int r = 0; r < 8; ++r) b[r] = rows[r];
    for (int64_t i = 0; i < blocks; ++i) {
        Traits<Block>::codes(b, tile[i].codes);
        tile[i].d = block_scale(b);
        tile[i].m = Traits<Block>::kOffset ? block_offset(b) : set(0.0f);
        for (int r = 0; r < 8; ++r) ++b[r];
    }
}

template <class Block, int kTokens>
inline void tile_tokens(const TileBlock* tile, const MatmulArgs& a, int64_t token, float* y,
                        int64_t rows) {
    const int64_t blocks = a.cols / kBlock;
    F32 acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = set(0.0f);
    for (int64_t i = 0; i < blocks; ++i) {
        for (int t = 0; t < kTokens; ++t) {
            const int64_t at = (token + t) * blocks + i;
            const __m256i dot = dot8<Block>(tile[i].codes, a.x.q + at * kBlock);
            acc[t] =
                add_block<Block>(acc[t], dot, tile[i].d, tile[i].m, a.x.scale[at], a.x.sum[at]);
        }
    }
    for (int t = 0; t < kTokens; ++t) store_rows(y + (token + t) * a.y_stride, acc[t], rows);
}

// One token: all rows that fill the eight runs. Returns the first row that is left over.
template <class Block>
inline int64_t decode_blocks(const MatmulArgs& a) {
    const Runs runs = eight_runs(a);
    for (int64_t i = 0; i < runs.length; ++i) {
        const Block* rows[8];
        for (int lane = 0; lane < 8; ++lane) rows[lane] = (const Block*)runs.row(lane, i);
        float y[8];
        store(y, one_token(rows, a));
        for (int lane = 0; lane < 8; ++lane) a.y[a.row_begin + lane * runs.length + i] = y[lane];
    }
    return a.row_begin + 8 * runs.length;
}

template <class Block>
void matmul_blocks(const MatmulArgs& a) {
    static_assert(sizeof(TileBlock) <= 8 * kBlock * 4, "a tile fits the scratch");
    TileBlock* tile = (TileBlock*)a.scratch;
    int64_t r = a.tokens == 1 ? decode_blocks<Block>(a) : a.row_begin;
    for (; r < a.row_end; r += 8) {
        const int64_t left = a.row_end - r;
        const Block* rows[8];  // lanes beyond the last row repeat it and are not stored
        for (int i = 0; i < 8; ++i)
            rows[i] = (const Block*)((const char*)a.w + (r + smaller(i, left - 1)) * a.row_bytes);
        fill_tile(rows, a.cols / kBlock, tile);
        int64_t t = 0;
        for (; t + 4 <= a.tokens; t += 4) tile_tokens<Block, 4>(tile, a, t, a.y + r, left);
        for (; t < a.tokens; ++t) tile_tokens<Block, 1>(tile, a, t, a.y + r, left);
    }
}

void quantize_activation(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < n / kBlock; ++b, x += kBlock, q += kBlock) {
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
        __m256i total =
            _mm256_add_epi32(_mm256_add_epi32(n32[0], n32[1]), _mm256_add_epi32(n32[2], n32[3]));
        total = _mm256_hadd_epi32(total, total);
        total = _mm256_hadd_epi32(total, total);
        sum[b] = _mm256_extract_epi32(total, 0) + _mm256_extract_epi32(total, 4);
        scale[b] = peak / 127.0f;
        // packs works within 128-bit halves; the permutation puts the dwords back in order
        const __m256i n8 = _mm256_packs_epi16(_mm256_packs_epi32(n32[0], n32[1]),
                                              _mm256_packs_epi32(n32[2], n32[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i*)q, _mm256_permutevar8x32_epi32(n8, order));
    }
}

}  // namespace

void avx2_kernels(Kernels& table) {
    float_kernels(table);
    table.matmul[(int)Type::F32] = matmul_float<float>;
    table.matmul[(int)Type::F16] = matmul_float<Half>;
    table.matmul[(int)Type::BF16] = matmul_float<Bfloat16>;
    table.matmul[(int)Type::Q8_0] = matmul_blocks<BlockQ8_0>;
    table.matmul[(int)Type::Q4_0] = matmul_blocks<BlockQ4_0>;
    table.matmul[(int)Type::Q4_1] = matmul_blocks<BlockQ4_1>;
    table.matmul[(int)Type::Q5_0] = matmul_blocks<BlockQ5_0>;
    table.matmul[(int)Type::Q5_1] = matmul_blocks<BlockQ5_1>;
    table.quantize_activation = quantize_activation;
}

}  // namespace rwkv_edge
