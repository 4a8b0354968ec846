// SPDX-License-Identifier: Apache-2.0
// Products with block types in 512 bits.
//
// Few tokens: codes are multiplied along the rows, as they come. A vector of dots holds those of
// four columns in a lane; additions across eight rows put the dots of a block into eight lanes.
// Many tokens: the codes of 16 rows are transposed into a tile, so that lanes are rows, and a tile
// serves all tokens. Both add the same terms in the same order: that of AVX2.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "kernels/x86/avx512_layouts.inl"
#include "kernels/x86/avx512_rounded.inl"
#include "kernels/x86/avx512_rows.inl"

namespace rwkv_edge {

namespace {

ALWAYS_INLINE Ints add_dots(Ints sums, Ints codes, Ints q) {
    return _mm512_dpbusd_epi32(sums, codes, q);
}

// Parts of rows that end before a step does, in a copy with zeros behind them.
template <class Block>
struct Padded {
    char row[8][4 * sizeof(Block)];

    // `low` blocks of the first four rows, `high` of the others.
    EightRows copy(const EightRows& rows, int64_t low, int64_t high) {
        EightRows copies = {};
        memset(row, 0, sizeof row);
        for (int r = 0; r < 8; ++r) {
            memcpy(row[r], rows[r], (size_t)(r < 4 ? low : high) * sizeof(Block));
            copies.first[r] = row[r];
        }
        return copies;
    }
};

// --- few tokens ---

enum { kFewTokens = 7 };

// What a step is multiplied with: the activations of one token, the first 16 of each block and the
// others, and where dots begin: at minus zero times the sum of those that they multiply.
struct StepInput {
    Ints q[2], start[2];
};

// Lanes of 128 bits: the even ones of a and b, and the odd ones.
ALWAYS_INLINE void sort_lanes(Ints a, Ints b, Ints to[2]) {
    to[0] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), b);
    to[1] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15), b);
}

template <class Block>
ALWAYS_INLINE StepInput step_input(Ints first, Ints last) {
    using L = Layout<Block>;
    StepInput x;
    sort_lanes(first, last, x.q);
    const Ints none = _mm512_setzero_si512(), zero = bytes(L::kZero);
    const Ints sums[2] = {add_dots(none, zero, x.q[0]), add_dots(none, zero, x.q[1])};
    const Ints all = L::kFactors ? sums[0] : _mm512_add_epi32(sums[0], sums[1]);
    x.start[0] = _mm512_sub_epi32(none, all);
    x.start[1] = _mm512_sub_epi32(none, sums[1]);
    return x;
}

// [token][step]; past the end of a row, zeros.
template <class Block>
inline const StepInput* step_inputs(const MatmulArgs& a) {
    StepInput* to = (StepInput*)a.scratch;
    for (int64_t t = 0; t < a.tokens; ++t) {
        const int8_t* q = RoundedRow(a, t).q;
        int64_t k = 0;
        for (; k + 128 <= a.cols; k += 128)
            *to++ = step_input<Block>(load(q + k), load(q + k + 64));
        if (k == a.cols) continue;
        char last[128] = {};
        memcpy(last, q + k, (size_t)(a.cols - k));
        *to++ = step_input<Block>(load(last), load(last + 64));
    }
    return (const StepInput*)a.scratch;
}

// Codes in the order of a StepInput.
template <class Block>
ALWAYS_INLINE void sort_codes(Step& s) {
    using L = Layout<Block>;
    UNROLL
    for (int r = 0; r < 8; ++r) {
        Ints first = s.codes[0][r], last = s.codes[1][r];
        if (L::kNibbles) {
            last = high_nibbles(first);
            first = low_nibbles(first);
        }
        Ints sorted[2] = {first, last};
        if (L::kOrder == kInOrder) sort_lanes(first, last, sorted);
        if (L::kOrder == kPairs) {
            sorted[0] =
                _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), last);
            sorted[1] = _mm512_permutex2var_epi64(
                first, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), last);
        }
        s.codes[0][r] = sorted[0];
        s.codes[1][r] = sorted[1];
    }
}

// Lanes of 128 bits: the sums over lane i of four vectors side by side in lane i.
ALWAYS_INLINE Ints sum_lanes(const Ints v[4]) {
    const auto halves = [](Ints a, Ints b) INLINE_LAMBDA {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const Ints a = halves(v[0], v[1]), b = halves(v[2], v[3]);
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// The sums over lane i of eight vectors: in to[i / 2], those of lane 0 or 2 and then of 1 or 3.
ALWAYS_INLINE void sum_rows(const Ints v[8], Ints to[2]) {
    const Ints low = sum_lanes(v), high = sum_lanes(v + 4);
    to[0] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    to[1] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
}

// The dots of a step with one token, of every 32 columns. The first four rows are multiplied with
// `low`, the others with `high`.
template <class Block>
ALWAYS_INLINE void step_dots(const Step& s, const StepInput& low, const StepInput& high,
                             Eight dots[4]) {
    using L = Layout<Block>;
    const auto input = [&](int r) INLINE_LAMBDA -> const StepInput& { return r < 4 ? low : high; };
    const auto start = [&](int r, int half) INLINE_LAMBDA {
        return L::kZero == 0 ? _mm512_setzero_si512() : input(r).start[half];
    };
    Ints v[8], sums[2];
    UNROLL
    for (int r = 0; r < 8; ++r) {
        v[r] = add_dots(start(r, 0), s.codes[0][r], input(r).q[0]);
        if (!L::kFactors) v[r] = add_dots(v[r], s.codes[1][r], input(r).q[1]);
    }
    sum_rows(v, sums);
    if (L::kFactors) {
        UNROLL
        for (int r = 0; r < 8; ++r) v[r] = add_dots(start(r, 1), s.codes[1][r], input(r).q[1]);
        Ints others[2];
        sum_rows(v, others);
        UNROLL
        for (int i = 0; i < 2; ++i)
            sums[i] = _mm512_add_epi32(_mm512_mullo_epi32(sums[i], s.factors[i][0]),
                                       _mm512_mullo_epi32(others[i], s.factors[i][1]));
    }
    split(_mm512_cvtepi32_ps(sums[0]), dots);
    split(_mm512_cvtepi32_ps(sums[1]), dots + 2);
}

// Adds the products of the first `blocks` times 32 columns of a step.
template <class Block>
ALWAYS_INLINE Eight add_step(Eight acc, const Step& s, const StepInput& x,
                             const RoundedBlock* block, int64_t blocks) {
    Eight dots[4];
    step_dots<Block>(s, x, x, dots);
    UNROLL
    for (int b = 0; b < 4; ++b) {
        if (b >= blocks) break;
        acc = _mm256_fmadd_ps(dots[b], _mm256_mul_ps(s.d[b], _mm256_set1_ps(block[b].scale)), acc);
        if (Layout<Block>::kOffset)
            acc = _mm256_fmadd_ps(s.m[b], _mm256_set1_ps(block[b].scaled_sum), acc);
    }
    return acc;
}

// Two steps of four rows: the second is in the last four lanes.
template <class Block>
ALWAYS_INLINE __m128 add_two_steps(__m128 acc, const Step& s, const StepInput& first,
                                   const StepInput& second, const RoundedBlock* block,
                                   int64_t blocks) {
    Eight dots[4], d[4], m[4];
    step_dots<Block>(s, first, second, dots);
    const auto both = [](float low, float high) INLINE_LAMBDA {
        return _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low));
    };
    UNROLL
    for (int b = 0; b < 4; ++b) {
        const RoundedBlock& low = block[b < blocks ? b : 0];
        const RoundedBlock& high = block[4 + b < blocks ? 4 + b : 0];
        d[b] = _mm256_mul_ps(s.d[b], both(low.scale, high.scale));
        m[b] = both(low.scaled_sum, high.scaled_sum);
    }
    UNROLL
    for (int half = 0; half < 2; ++half) UNROLL
    for (int b = 0; b < 4; ++b) {
        if (4 * half + b >= blocks) break;
        const auto part = [half](Eight v) INLINE_LAMBDA {
            return half == 0 ? _mm256_castps256_ps128(v) : _mm256_extractf128_ps(v, 1);
        };
        acc = _mm_fmadd_ps(part(dots[b]), part(d[b]), acc);
        if (Layout<Block>::kOffset) acc = _mm_fmadd_ps(part(s.m[b]), part(m[b]), acc);
    }
    return acc;
}

// The products of four rows with one token, for blocks of 32 columns.
template <class Block>
inline Eight one_token(const SomeRows<kOneTokenRows>& rows, const StepInput* x,
                       const MatmulArgs& a) {
    using L = Layout<Block>;
    const RoundedBlock* block = RoundedRow(a, 0).block;
    const int64_t blocks = a.cols / kBlock;
    EightRows places = {};
    for (int r = 0; r < 8; ++r) places.first[r] = rows[r % 4] + r / 4 * L::kBytes;
    __m128 acc = _mm_setzero_ps();
    Step s;
    int64_t i = 0;
    for (; i + 8 <= blocks; i += 8) {
        prefetch_ahead(
            SomeRows<kOneTokenRows>{{rows.first[0], rows.first[1], rows.first[2], rows.first[3]},
                                    places.at,
                                    rows.ahead},
            2 * L::kBytes);
        L::unpack({}, places, 0, s);
        sort_codes<Block>(s);
        acc = add_two_steps<Block>(acc, s, x[i / 4], x[i / 4 + 1], block + i, 8);
        places.at += 2 * L::kBytes;
    }
    if (i < blocks) {
        Padded<Block> padded;
        const int64_t n = blocks - i;
        L::unpack({}, padded.copy(places, smaller(n, 4), n > 4 ? n - 4 : 0), 0, s);
        sort_codes<Block>(s);
        acc = add_two_steps<Block>(acc, s, x[i / 4], x[(blocks - 1) / 4], block + i, n);
    }
    return _mm256_zextps128_ps256(acc);
}

// The products of eight rows. kTokens is 1 or 2; or it is kFewTokens, for as many as there are.
template <class Block, int kTokens>
inline void few_tokens(EightRows rows, const StepInput* x, const MatmulArgs& a, Eight* sums) {
    using L = Layout<Block>;
    const int64_t tokens = kTokens < kFewTokens ? kTokens : a.tokens, blocks = a.cols / kBlock;
    const int64_t steps = (blocks + 3) / 4;
    Eight acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_setzero_ps();
    int64_t i = 0;
    const auto add = [&](Step& s, int64_t n) INLINE_LAMBDA {
        sort_codes<Block>(s);
        for (int64_t t = 0; t < tokens; ++t)
            acc[t] =
                add_step<Block>(acc[t], s, x[t * steps + i / 4], RoundedRow(a, t).block + i, n);
        i += 4;
    };
    while (i + 4 * L::kSteps <= blocks) {
        prefetch_ahead(rows, L::kBytes);
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int step = 0; step < L::kSteps; ++step) {
            Step s;
            L::unpack(header, rows, step, s);
            add(s, 4);
        }
        rows.at += L::kBytes;
    }
    if constexpr (L::kSteps == 1) {
        if (i < blocks) {
            Padded<Block> padded;
            Step s;
            L::unpack({}, padded.copy(rows, blocks - i, blocks - i), 0, s);
            add(s, blocks - i);
        }
    }
    for (int t = 0; t < tokens; ++t) sums[t] = acc[t];
}

// --- many tokens ---

// 32 columns of 16 rows.
struct TileBlock {
    Ints codes[8];  // of columns 4j .. 4j+3 of every row
    Floats d, m;
    Ints factors[2];
};

// 512 columns of 32 rows fit the first cache. The sums wait in memory from one tile to the next.
struct Tile {
    enum { kBlocks = 16, kTokens = 64 };
    TileBlock block[kBlocks][2];  // [block][rows / 16]
    Floats sums[kTokens][2];
};
static_assert(sizeof(Tile) <= kPanelScratch, "a tile fits the scratch");

// Dword j of v[r] becomes dword r of v[j].
ALWAYS_INLINE void transpose(Ints v[16]) {
    UNROLL
    for (int i = 0; i < 16; i += 4) {  // of four rows: lane l of v[i + j] holds dwords 4l + j
        const Ints a = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        const Ints b = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        const Ints c = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]);
        const Ints d = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
        v[i] = _mm512_unpacklo_epi64(a, c);
        v[i + 1] = _mm512_unpackhi_epi64(a, c);
        v[i + 2] = _mm512_unpacklo_epi64(b, d);
        v[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    UNROLL
    for (int j = 0; j < 4; ++j) {  // lane l of v[4i + j] goes to lane i of v[4l + j]
        const Ints a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x44);
        const Ints b = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x44);
        const Ints c = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xee);
        const Ints d = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xee);
        v[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        v[8 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        v[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

// Where dword i of half h of a step belongs.
struct Place {
    int block, vector;
};
template <class Block>
constexpr Place place(int h, int i) {
    const Order order = Layout<Block>::kOrder;
    const int lane = i / 4;
    if (order == kHalves) return {lane, 4 * h + i % 4};
    return {order == kInOrder ? 2 * h + lane / 2 : lane / 2 * 2 + h, i % 8};
}

// 128 columns of 16 rows, from two steps of eight; the first n blocks are wanted.
template <class Block>
ALWAYS_INLINE void fill_blocks(const Step (&s)[2], TileBlock (*to)[2], int64_t n) {
    using L = Layout<Block>;
    const auto put = [&](int h, int i, Ints codes) INLINE_LAMBDA {
        const Place p = place<Block>(h, i);
        if (p.block < n) to[p.block]->codes[p.vector] = codes;
    };
    UNROLL
    for (int h = 0; h < (L::kNibbles ? 1 : 2); ++h) {
        Ints v[16];
        UNROLL
        for (int r = 0; r < 16; ++r) v[r] = s[r / 8].codes[h][r % 8];
        transpose(v);
        UNROLL
        for (int i = 0; i < 16; ++i) {
            put(h, i, L::kNibbles ? low_nibbles(v[i]) : v[i]);
            if (L::kNibbles) put(1, i, high_nibbles(v[i]));
        }
    }
    UNROLL
    for (int b = 0; b < 4; ++b) {
        if (b >= n) break;
        to[b]->d = join(s[0].d[b], s[1].d[b]);
        if (L::kOffset) to[b]->m = join(s[0].m[b], s[1].m[b]);
        UNROLL
        for (int h = 0; h < 2 * L::kFactors; ++h) {
            const Ints low = s[0].factors[b / 2][h], high = s[1].factors[b / 2][h];
            to[b]->factors[h] = b % 2 == 0 ? _mm512_shuffle_i64x2(low, high, 0x44)
                                           : _mm512_shuffle_i64x2(low, high, 0xee);
        }
    }
}

// `blocks` times 32 columns of 16 rows.
template <class Block>
inline void fill_tile(EightRows low, EightRows high, int64_t blocks, TileBlock (*to)[2]) {
    using L = Layout<Block>;
    Step s[2];
    int64_t i = 0;
    while (i + 4 * L::kSteps <= blocks) {
        const typename L::Header headers[2] = {L::header(low), L::header(high)};
        UNROLL
        for (int step = 0; step < L::kSteps; ++step, i += 4) {
            L::unpack(headers[0], low, step, s[0]);
            L::unpack(headers[1], high, step, s[1]);
            fill_blocks<Block>(s, to + i, 4);
        }
        low.at += L::kBytes;
        high.at += L::kBytes;
    }
    if constexpr (L::kSteps == 1) {
        if (i == blocks) return;
        Padded<Block> padded[2];
        L::unpack({}, padded[0].copy(low, blocks - i, blocks - i), 0, s[0]);
        L::unpack({}, padded[1].copy(high, blocks - i, blocks - i), 0, s[1]);
        fill_blocks<Block>(s, to + i, blocks - i);
    }
}

ALWAYS_INLINE Ints broadcast(const int8_t* four) {
    int32_t dword;
    memcpy(&dword, four, sizeof dword);
    return _mm512_set1_epi32(dword);
}

// kTokens tokens from t on times kGroups times 16 rows: `blocks` blocks, from `first` of a row on.
template <class Block, int kGroups, int kTokens>
inline void tile_tokens(Tile& tile, const MatmulArgs& a, int64_t first, int64_t blocks, int64_t t0,
                        int64_t t, NextPart& next, int64_t lines) {
    using L = Layout<Block>;
    const int8_t* q[kTokens];
    const RoundedBlock* x[kTokens];
    Floats acc[kTokens][kGroups];
    // every token and group of rows
    const auto each = [](auto use) INLINE_LAMBDA {
        UNROLL
        for (int i = 0; i < kTokens; ++i) UNROLL
        for (int g = 0; g < kGroups; ++g) use(i, g);
    };
    UNROLL
    for (int i = 0; i < kTokens; ++i) {
        const RoundedRow row(a, t0 + t + i);
        q[i] = row.q + first * kBlock;
        x[i] = row.block + first;
    }
    each([&](int i, int g)
             INLINE_LAMBDA { acc[i][g] = first == 0 ? _mm512_setzero_ps() : tile.sums[t + i][g]; });
    for (int64_t n = 0; n < blocks; ++n) {
        next.prefetch(lines);
        const TileBlock* b = tile.block[n];
        // vectors [from, to) of the block; where dots begin is the member `sum` of minus_sums
        const auto dots = [&](int from, int to, int sum, Ints(&v)[kTokens][kGroups]) INLINE_LAMBDA {
            each([&](int i, int g) INLINE_LAMBDA {
                v[i][g] = _mm512_setzero_si512();
                if (L::kZero != 0)
                    v[i][g] = _mm512_slli_epi32(_mm512_set1_epi32(x[i][n].minus_sums[sum]),
                                                (unsigned)__builtin_ctz(L::kZero));
            });
            UNROLL
            for (int j = from; j < to; ++j) {
                UNROLL
                for (int i = 0; i < kTokens; ++i) {
                    const Ints xj = broadcast(q[i] + n * kBlock + 4 * j);
                    UNROLL
                    for (int g = 0; g < kGroups; ++g)
                        v[i][g] = add_dots(v[i][g], b[g].codes[j], xj);
                }
            }
        };
        Ints all[kTokens][kGroups];
        if (L::kFactors) {
            Ints others[kTokens][kGroups];
            dots(0, 4, 0, all);
            each([&](int i, int g)
                     INLINE_LAMBDA { all[i][g] = _mm512_mullo_epi32(all[i][g], b[g].factors[0]); });
            dots(4, 8, 1, others);
            each([&](int i, int g) INLINE_LAMBDA {
                all[i][g] =
                    _mm512_add_epi32(all[i][g], _mm512_mullo_epi32(others[i][g], b[g].factors[1]));
            });
        } else {
            dots(0, 8, 2, all);
        }
        each([&](int i, int g) INLINE_LAMBDA {
            const Floats d = _mm512_mul_ps(b[g].d, _mm512_set1_ps(x[i][n].scale));
            acc[i][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all[i][g]), d, acc[i][g]);
            if (L::kOffset)
                acc[i][g] = _mm512_fmadd_ps(b[g].m, _mm512_set1_ps(x[i][n].scaled_sum), acc[i][g]);
        });
    }
    each([&](int i, int g) INLINE_LAMBDA { tile.sums[t + i][g] = acc[i][g]; });
}

// 16 kGroups rows from r on, and `tokens` tokens from t0 on.
template <class Block, int kGroups>
inline void tile_rows(const MatmulArgs& a, int64_t r, int64_t t0, int64_t tokens) {
    using L = Layout<Block>;
    Tile& tile = *(Tile*)a.scratch;
    const int64_t blocks = a.cols / kBlock;
    const auto bytes = [](int64_t n) { return n * L::kBytes / (4 * L::kSteps); };
    for (int64_t first = 0; first < blocks; first += Tile::kBlocks) {
        const int64_t n = smaller(Tile::kBlocks, blocks - first);
        for (int g = 0; g < kGroups; ++g) {
            EightRows low = rows_at<8>(a, r + 16 * g), high = rows_at<8>(a, r + 16 * g + 8);
            low.at = high.at = bytes(first);
            fill_tile<Block>(low, high, n, (TileBlock(*)[2]) & tile.block[0][g]);
        }
        const bool last = first + n == blocks;  // next are the rows below
        NextPart next = {
            rows_from(a, last ? r + 16 * kGroups : r).first + (last ? 0 : bytes(first + n)),
            16 * kGroups, a.row_bytes, bytes(n)};
        const int64_t lines = next.lines() / ((tokens + 3) / 4 * n) + 1;
        int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) {
            tile_tokens<Block, kGroups, 4>(tile, a, first, n, t0, t, next, lines);
        }
        for (; t < tokens; ++t)
            tile_tokens<Block, kGroups, 1>(tile, a, first, n, t0, t, next, lines);
    }
    for (int64_t t = 0; t < tokens; ++t)
        for (int g = 0; g < kGroups; ++g)
            _mm512_mask_storeu_ps(a.y + (t0 + t) * a.y_stride + r + 16 * g,
                                  first_lanes(a.row_end - r - 16 * g), tile.sums[t][g]);
}

template <class Block>
void matmul_blocks(const MatmulArgs& a) {
    if (a.tokens <= kFewTokens) {
        const StepInput* x = step_inputs<Block>(a);
        if constexpr (Layout<Block>::kSteps == 1) {
            if (a.tokens == 1)
                return few_tokens<kOneTokenRows, 1>(
                    a, [&](const SomeRows<kOneTokenRows>& rows, Eight* sums)
                           INLINE_LAMBDA { *sums = one_token<Block>(rows, x, a); });
        }
        const auto few = [&]<int kTokens>() {
            few_tokens<8, kTokens>(a, [&](const EightRows& rows, Eight* sums) INLINE_LAMBDA {
                few_tokens<Block, kTokens>(rows, x, a, sums);
            });
        };
        return a.tokens == 1   ? few.template operator()<1>()
               : a.tokens == 2 ? few.template operator()<2>()
               : a.tokens == 4 ? few.template operator()<4>()
                               : few.template operator()<kFewTokens>();
    }
    for (int64_t t = 0; t < a.tokens; t += Tile::kTokens) {
        const int64_t tokens = smaller(Tile::kTokens, a.tokens - t);
        int64_t r = a.row_begin;
        for (; r + 16 < a.row_end; r += 32) tile_rows<Block, 2>(a, r, t, tokens);
        if (r < a.row_end) tile_rows<Block, 1>(a, r, t, tokens);
    }
}

void block_products(Kernels& table) {
    table.matmul[(int)Type::Q8_0] = matmul_blocks<BlockQ8_0>;
    table.matmul[(int)Type::Q4_0] = matmul_blocks<BlockQ4_0>;
    table.matmul[(int)Type::Q4_1] = matmul_blocks<BlockQ4_1>;
    table.matmul[(int)Type::Q5_0] = matmul_blocks<BlockQ5_0>;
    table.matmul[(int)Type::Q5_1] = matmul_blocks<BlockQ5_1>;
    table.matmul[(int)Type::Q4_K] = matmul_blocks<BlockQ4_K>;
    table.matmul[(int)Type::Q5_K] = matmul_blocks<BlockQ5_K>;
    table.matmul[(int)Type::Q6_K] = matmul_blocks<BlockQ6_K>;
}

}  // namespace

}  // namespace rwkv_edge
