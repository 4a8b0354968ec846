// SPDX-License-Identifier: Apache-2.0
// Products with block types, for avx512.cpp.

// --- few tokens ---
//
// Codes are multiplied along the rows, as they come, eight rows at a time: their dots lie four to
// 16 columns, which additions across the rows sum up, so that the eight rows end in the lanes of
// one vector.

enum { kStepColumns = 128, kFewTokens = 8 };

// The rounded activations of a step of one token, in the order of the codes, and where dots begin:
// at minus zero times the sum of what they multiply.
struct StepInput {
    Ints q[2], starts[2];
};

ALWAYS_INLINE Ints dot(Ints sums, Ints codes, Ints q) { return _mm512_dpbusd_epi32(sums, codes, q); }

template <class Block>
ALWAYS_INLINE StepInput step_input(Ints first, Ints second) {
    using L = Layout<Block>;
    StepInput to;
    to.q[0] = first;
    to.q[1] = second;
    if (L::kOrder == kHalves) {
        const Ints even = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
        const Ints odd = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
        to.q[0] = _mm512_permutex2var_epi64(first, even, second);
        to.q[1] = _mm512_permutex2var_epi64(first, odd, second);
    }
    if (L::kOrder == kPairs) {
        to.q[0] = _mm512_shuffle_i64x2(first, second, 0x44);
        to.q[1] = _mm512_shuffle_i64x2(first, second, 0xee);
    }
    const Ints zero = _mm512_setzero_si512(), times = bytes((char)L::kZero);
    Ints sums = dot(zero, times, to.q[0]);
    if (L::kOrder == kHalves) sums = dot(sums, times, to.q[1]);
    to.starts[0] = _mm512_sub_epi32(zero, sums);
    to.starts[1] = _mm512_sub_epi32(zero, dot(zero, times, to.q[1]));
    return to;
}

// [token][step]
template <class Block>
inline const StepInput* step_inputs(const MatmulArgs& a) {
    StepInput* to = (StepInput*)a.scratch;
    for (int64_t t = 0; t < a.tokens; ++t) {
        const int8_t* q = rounded(a, t).q;
        int64_t k = 0;
        for (; k + kStepColumns <= a.cols; k += kStepColumns)
            *to++ = step_input<Block>(load512(q + k), load512(q + k + 64));
        if (k == a.cols) continue;
        const uint64_t one = 1;
        const int64_t n = a.cols - k;  // 32, 64 or 96
        const Ints first = _mm512_maskz_loadu_epi8(n < 64 ? (one << n) - 1 : ~0ull, q + k);
        const Ints second =
            _mm512_maskz_loadu_epi8(n > 64 ? (one << (n - 64)) - 1 : 0, q + k + 64);
        *to++ = step_input<Block>(first, second);
    }
    return (const StepInput*)a.scratch;
}

// The sums over 128-bit lanes: lane i of the result holds those of lane i of four vectors.
ALWAYS_INLINE Ints sum_lanes(const Ints v[4]) {
    const Ints a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const Ints b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// The integer dots of a step with one token, as floats: of every 32 columns, of eight rows.
template <class Block>
ALWAYS_INLINE void step_dots(const Step& s, const StepInput& x, Eight dots[4]) {
    using L = Layout<Block>;
    Ints v[8];
    if constexpr (L::kOrder == kHalves) {
        UNROLL
        for (int r = 0; r < 8; ++r)
            v[r] = dot(dot(L::kZero == 0 ? _mm512_setzero_si512() : x.starts[0], s.codes[0][r], x.q[0]),
                       s.codes[1][r], x.q[1]);
        const Ints low = sum_lanes(v), high = sum_lanes(v + 4);
        const Ints first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        const Ints last = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        split(_mm512_cvtepi32_ps(_mm512_permutex2var_epi64(low, first, high)), &dots[0], &dots[1]);
        split(_mm512_cvtepi32_ps(_mm512_permutex2var_epi64(low, last, high)), &dots[2], &dots[3]);
    } else {
        const Ints even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        const Ints odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        UNROLL
        for (int half = 0; half < 2; ++half) {
            UNROLL
            for (int r = 0; r < 8; ++r)
                v[r] = dot(L::kZero == 0 ? _mm512_setzero_si512() : x.starts[half], s.codes[half][r],
                           x.q[half]);
            const Ints low = sum_lanes(v), high = sum_lanes(v + 4);
            Ints e = _mm512_permutex2var_epi64(low, even, high);
            Ints o = _mm512_permutex2var_epi64(low, odd, high);
            if (L::kFactors) {
                e = _mm512_mullo_epi32(e, s.factors[2 * half]);
                o = _mm512_mullo_epi32(o, s.factors[2 * half + 1]);
            }
            const Floats sums = _mm512_cvtepi32_ps(_mm512_add_epi32(e, o));
            if (L::kOrder == kPairs)
                split(sums, &dots[half], &dots[half + 2]);
            else
                split(sums, &dots[2 * half], &dots[2 * half + 1]);
        }
    }
}

// Adds the terms of `blocks` times 32 columns.
template <class Block>
ALWAYS_INLINE Eight add_step(Eight acc, const Step& s, const StepInput& x, const BlockSums* sums,
                             int64_t blocks) {
    Eight dots[4];
    step_dots<Block>(s, x, dots);
    UNROLL
    for (int b = 0; b < 4; ++b) {
        if (b >= blocks) break;
        acc = _mm256_fmadd_ps(dots[b], _mm256_mul_ps(s.d[b], _mm256_set1_ps(sums[b].scale)), acc);
        if (Layout<Block>::kOffset)
            acc = _mm256_fmadd_ps(s.m[b], _mm256_set1_ps(sums[b].scaled_sum), acc);
    }
    return acc;
}

template <class Block>
ALWAYS_INLINE void fetch_ahead(const EightRows& rows) {
    constexpr int kBytes = Layout<Block>::kBlocks == 1 ? 4 * sizeof(Block) : sizeof(Block);
    UNROLL
    for (int r = 0; r < 8; ++r)
        for (int at = 0; at < kBytes - 24; at += 64)
            _mm_prefetch(rows[r] + Layout<Block>::kAhead + at, _MM_HINT_T0);
}

// sums[t] = the products of eight rows with token t; kTokens is 1 or any number up to kFewTokens.
template <class Block, int kTokens>
inline void few_tokens(EightRows rows, const StepInput* x, const MatmulArgs& a, Eight* sums) {
    using L = Layout<Block>;
    enum { kSteps = L::kBlocks == 1 ? 1 : 2 };  // that share a header
    const int64_t tokens = kTokens == 1 ? 1 : a.tokens, blocks = a.cols / kBlock;
    const int64_t steps = (blocks + 3) / 4;
    Eight acc[kTokens];
    for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_setzero_ps();
    const auto add = [&](const Step& s, int64_t i, int64_t n) INLINE_LAMBDA {
        for (int64_t t = 0; t < tokens; ++t)
            acc[t] = add_step<Block>(acc[t], s, x[t * steps + i], rounded(a, t).blocks + 4 * i, n);
    };
    int64_t i = 0;
    for (; 4 * i + 4 * kSteps <= blocks; i += kSteps) {
        fetch_ahead<Block>(rows);
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int half = 0; half < kSteps; ++half) {
            Step s;
            L::unpack(header, rows, half, s);
            add(s, i + half, 4);
        }
        rows.at += (kSteps == 1 ? 4 : 1) * (int64_t)sizeof(Block);
    }
    if constexpr (kSteps == 1) {
        if (4 * i < blocks) {
            char padded[8][4 * sizeof(Block)] = {};
            EightRows last = {};
            for (int r = 0; r < 8; ++r) {
                memcpy(padded[r], rows[r], (size_t)(blocks - 4 * i) * sizeof(Block));
                last.first[r] = padded[r];
            }
            Step s;
            L::unpack({}, last, 0, s);
            add(s, i, blocks - 4 * i);
        }
    }
    for (int t = 0; t < tokens; ++t) sums[t] = acc[t];
}

// --- many tokens ---
//
// Lanes are 16 rows. A tile of kTileColumns columns of 32 rows is unpacked and serves all tokens out of the
// first cache. The sums wait in memory from one tile to the next.

enum { kTileColumns = 512, kTileBlocks = kTileColumns / kBlock, kTileTokens = 64 };

// 32 columns of 16 rows.
struct TileBlock {
    Ints codes[8];  // of columns 4j .. 4j+3 of every row
    Floats d, m;
    Ints factors[2];
};

struct Tile {
    TileBlock blocks[kTileBlocks][2];  // [block][rows / 16]
    Floats sums[kTileTokens][2];
};

// v[r] dword j -> v[j] dword r.
ALWAYS_INLINE void transpose(Ints v[16]) {
    Ints w[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    // now lane l of v[4g + j] is to hold the dwords 4l + j of rows 4g .. 4g+3
    UNROLL
    for (int g = 0; g < 16; g += 4) {
        v[g] = _mm512_unpacklo_epi64(w[g], w[g + 2]);
        v[g + 1] = _mm512_unpackhi_epi64(w[g], w[g + 2]);
        v[g + 2] = _mm512_unpacklo_epi64(w[g + 1], w[g + 3]);
        v[g + 3] = _mm512_unpackhi_epi64(w[g + 1], w[g + 3]);
    }
    // a transposition of 4 x 4 lanes for each j
    UNROLL
    for (int j = 0; j < 4; ++j) {
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

// Four blocks of 16 rows, from two steps of eight.
template <class Block>
ALWAYS_INLINE void fill_step(const Step& first, const Step& last, TileBlock (*to)[2], int64_t blocks) {
    using L = Layout<Block>;
    UNROLL
    for (int half = 0; half < 2; ++half) {
        Ints v[16];
        UNROLL
        for (int r = 0; r < 8; ++r) {
            v[r] = first.codes[half][r];
            v[8 + r] = last.codes[half][r];
        }
        transpose(v);
        UNROLL
        for (int i = 0; i < 16; ++i) {
            const int b = L::kOrder == kHalves ? i / 4 : L::kOrder == kPairs ? i / 8 * 2 + half : half * 2 + i / 8;
            const int j = L::kOrder == kHalves ? half * 4 + i % 4 : i % 8;
            if (b < blocks) to[b]->codes[j] = v[i];
        }
    }
    UNROLL
    for (int b = 0; b < 4; ++b) {
        if (b >= blocks) break;
        to[b]->d = join(first.d[b], last.d[b]);
        if (L::kOffset) to[b]->m = join(first.m[b], last.m[b]);
        if (L::kFactors) {
            UNROLL
            for (int i = 0; i < 2; ++i) {
                // the first block of a pair of vectors is in their first halves
                const Ints low = first.factors[b / 2 * 2 + i], high = last.factors[b / 2 * 2 + i];
                to[b]->factors[i] = _mm512_shuffle_i64x2(low, high, b % 2 == 0 ? 0x44 : 0xee);
            }
        }
    }
}

// `blocks` blocks of 16 rows.
template <class Block>
inline void fill_tile(EightRows first, EightRows last, int64_t blocks, TileBlock (*to)[2]) {
    using L = Layout<Block>;
    enum { kSteps = L::kBlocks == 1 ? 1 : 2 };
    int64_t i = 0;
    for (; i + 4 * kSteps <= blocks; i += 4 * kSteps) {
        const typename L::Header first_header = L::header(first), last_header = L::header(last);
        UNROLL
        for (int half = 0; half < kSteps; ++half) {
            Step low, high;
            L::unpack(first_header, first, half, low);
            L::unpack(last_header, last, half, high);
            fill_step<Block>(low, high, to + i + 4 * half, 4);
        }
        first.at += (kSteps == 1 ? 4 : 1) * (int64_t)sizeof(Block);
        last.at += (kSteps == 1 ? 4 : 1) * (int64_t)sizeof(Block);
    }
    if constexpr (kSteps == 1) {
        if (i < blocks) {
            char padded[16][4 * sizeof(Block)] = {};
            for (int r = 0; r < 8; ++r) {
                memcpy(padded[r], first[r], (size_t)(blocks - i) * sizeof(Block));
                memcpy(padded[8 + r], last[r], (size_t)(blocks - i) * sizeof(Block));
                first.first[r] = padded[r];
                last.first[r] = padded[8 + r];
            }
            first.at = last.at = 0;
            Step low, high;
            L::unpack({}, first, 0, low);
            L::unpack({}, last, 0, high);
            fill_step<Block>(low, high, to + i, blocks - i);
        }
    }
}

ALWAYS_INLINE Ints broadcast(const void* four_bytes) {
    int32_t four;
    memcpy(&four, four_bytes, sizeof four);
    return _mm512_set1_epi32(four);
}

// kTokens tokens from t on times a tile of kGroups times 16 rows: `blocks` blocks, from `first` of x on.
template <class Block, int kGroups, int kTokens>
inline void tile_tokens(const Tile& tile, const MatmulArgs& a, int64_t t0, int64_t first, int64_t blocks,
                        Floats (*sums)[2]) {
    using L = Layout<Block>;
    constexpr int kShift = L::kZero == 8 ? 3 : L::kZero == 16 ? 4 : L::kZero == 32 ? 5 : 7;
    Rounded x[kTokens];
    Floats acc[kTokens][kGroups];
    UNROLL
    for (int t = 0; t < kTokens; ++t) {
        x[t] = rounded(a, t0 + t);
        UNROLL
        for (int g = 0; g < kGroups; ++g) acc[t][g] = first == 0 ? _mm512_setzero_ps() : sums[t][g];
    }
    for (int64_t i = 0; i < blocks; ++i) {
        const TileBlock* b = tile.blocks[i];
        const int64_t at = first + i;
        Ints dots[kTokens][kGroups];
        const auto start = [&](int32_t minus_sum) INLINE_LAMBDA {
            return L::kZero == 0 ? _mm512_setzero_si512() : _mm512_slli_epi32(_mm512_set1_epi32(minus_sum), kShift);
        };
        const auto add_columns = [&](int from, int to) INLINE_LAMBDA {
            UNROLL
            for (int j = from; j < to; ++j) {
                UNROLL
                for (int t = 0; t < kTokens; ++t) {
                    const Ints q = broadcast(x[t].q + at * kBlock + 4 * j);
                    UNROLL
                    for (int g = 0; g < kGroups; ++g) dots[t][g] = dot(dots[t][g], b[g].codes[j], q);
                }
            }
        };
        if constexpr (L::kFactors) {
            Ints halves[kTokens][kGroups];
            UNROLL
            for (int half = 0; half < 2; ++half) {
                UNROLL
                for (int t = 0; t < kTokens; ++t)
                    for (int g = 0; g < kGroups; ++g)
                        dots[t][g] = start(x[t].blocks[at].minus_sums[half]);
                add_columns(4 * half, 4 * half + 4);
                UNROLL
                for (int t = 0; t < kTokens; ++t)
                    for (int g = 0; g < kGroups; ++g) {
                        dots[t][g] = _mm512_mullo_epi32(dots[t][g], b[g].factors[half]);
                        if (half == 0) halves[t][g] = dots[t][g];
                        else dots[t][g] = _mm512_add_epi32(dots[t][g], halves[t][g]);
                    }
            }
        } else {
            UNROLL
            for (int t = 0; t < kTokens; ++t)
                for (int g = 0; g < kGroups; ++g) dots[t][g] = start(x[t].blocks[at].minus_sums[2]);
            add_columns(0, 8);
        }
        UNROLL
        for (int t = 0; t < kTokens; ++t) {
            UNROLL
            for (int g = 0; g < kGroups; ++g) {
                const Floats d = _mm512_mul_ps(b[g].d, _mm512_set1_ps(x[t].blocks[at].scale));
                acc[t][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][g]), d, acc[t][g]);
                if (L::kOffset)
                    acc[t][g] = _mm512_fmadd_ps(b[g].m, _mm512_set1_ps(x[t].blocks[at].scaled_sum), acc[t][g]);
            }
        }
    }
    UNROLL
    for (int t = 0; t < kTokens; ++t) UNROLL
    for (int g = 0; g < kGroups; ++g) sums[t][g] = acc[t][g];
}

// 16 kGroups rows from r on.
template <class Block, int kGroups>
inline void tile_rows(const MatmulArgs& a, int64_t r, int64_t t0, int64_t tokens) {
    Tile& tile = *(Tile*)a.scratch;
    const int64_t blocks = a.cols / kBlock;
    const auto bytes = [](int64_t n) { return n / Layout<Block>::kBlocks * (int64_t)sizeof(Block); };
    for (int64_t first = 0; first < blocks; first += kTileBlocks) {
        const int64_t n = smaller(kTileBlocks, blocks - first);
        for (int g = 0; g < kGroups; ++g) {
            EightRows low = neighbours(a, r + 16 * g, a.row_end), high = neighbours(a, r + 16 * g + 8, a.row_end);
            low.at += bytes(first);
            high.at += bytes(first);
            fill_tile<Block>(low, high, n, (TileBlock(*)[2])&tile.blocks[0][g]);
        }
        // the next tile of these rows, or the first of those below
        const bool last = first + n == blocks;
        const NextRows next = {(const char*)a.w + (last ? r + 16 * kGroups : r) * a.row_bytes +
                                   (last ? 0 : bytes(first + n)),
                               16 * kGroups, a.row_bytes, bytes(n)};
        int64_t t = 0;
        for (; t + 4 <= tokens; t += 4) {
            next.fetch(t / 4, (tokens + 3) / 4);
            tile_tokens<Block, kGroups, 4>(tile, a, t0 + t, first, n, tile.sums + t);
        }
        for (; t < tokens; ++t) tile_tokens<Block, kGroups, 1>(tile, a, t0 + t, first, n, tile.sums + t);
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
        const auto few = [&]<int kTokens> {
            few_rows<kTokens>(a, [&](const EightRows& rows, Eight* sums) INLINE_LAMBDA {
                few_tokens<Block, kTokens>(rows, x, a, sums);
            });
        };
        return a.tokens == 1 ? few.template operator()<1>() : few.template operator()<kFewTokens>();
    }
    for (int64_t t = 0; t < a.tokens; t += kTileTokens) {
        const int64_t n = smaller(kTileTokens, a.tokens - t);
        int64_t r = a.row_begin;
        for (; r + 16 < a.row_end; r += 32) tile_rows<Block, 2>(a, r, t, n);
        if (r < a.row_end) tile_rows<Block, 1>(a, r, t, n);
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
