// SPDX-License-Identifier: Apache-2.0
// Products with block types: which rows and tokens come next. The ISA file that ends in this
// defines, for each block type:
//   Lanes, kLanes     a vector of floats, one per row
//   spread(args)      the activations of one token as a decode step wants them
//   one_token(rows, x, args)   kLanes rows times one token; x is from spread
//   TileBlock         32 columns of kLanes rows; put(part, codes) takes what its Layout gives
//   kTileGroups       how many of these stand side by side
//   tile_tokens<Block, groups, tokens>(tile, args, token, store)

template <class Block>
inline void fill_tile(Rows rows, int64_t blocks, TileBlock<Block>* tile) {
    using L = Layout<Block>;
    for (int64_t i = 0; i < blocks; i += L::kBlocks) {
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int group = 0; group < L::kBlocks / L::kGroup; ++group) {
            TileBlock<Block>* to = tile + i + group * L::kGroup;
            L::codes(rows, header, group, [&](int b, int part, const auto& codes) INLINE_LAMBDA {
                to[b].put(part, codes);
            });
            UNROLL
            for (int b = 0; b < L::kGroup; ++b) {
                const int at = group * L::kGroup + b;
                to[b].d = L::scale(header, at);
                if (L::kOffset) to[b].m = L::offset(header, at);
                to[b].factors = Factors<Block>::of(header, at);
            }
        }
        rows.first += sizeof(Block);
    }
}

template <class Block, int kGroups, class Store>
inline void all_tokens(const TileBlock<Block>* tile, const MatmulArgs& a, Store store_sums) {
    int64_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) tile_tokens<Block, kGroups, 4>(tile, a, t, store_sums);
    for (; t < a.tokens; ++t) tile_tokens<Block, kGroups, 1>(tile, a, t, store_sums);
}

// --- rows ---

// The last rows of a matrix, fewer than kLanes: with those before them if there are enough, else
// one at a time. Calls use(rows, lane, r, n): lanes from `lane` on are the n rows from r on.
template <class Use>
inline void last_rows(const MatmulArgs& a, int64_t r, Use use) {
    if (r == a.row_end) return;
    const char* w = (const char*)a.w;
    if (a.row_end >= kLanes) {
        const int64_t first = a.row_end - kLanes;
        return use(Rows{w + first * a.row_bytes, a.row_bytes}, (int)(r - first), r, a.row_end - r);
    }
    for (; r < a.row_end; ++r) use(Rows{w + r * a.row_bytes, 0}, 0, r, 1);
}

inline void store_lanes(Lanes v, int lane, int64_t n, float* y) {
    float lanes[kLanes];
    store(lanes, v);
    memcpy(y, lanes + lane, (size_t)n * sizeof(float));
}

template <class Block>
inline void decode_blocks(const MatmulArgs& a) {
    const auto* x = spread<Block>(a);
    const Runs runs = apart(runs_of(a));
    for (int64_t i = 0; i < runs.length; ++i) {
        float y[kLanes];
        store(y, one_token<Block>({(const char*)runs.row(0, i), runs.length * a.row_bytes}, x, a));
        for (int lane = 0; lane < kLanes; ++lane)
            a.y[a.row_begin + lane * runs.length + i] = y[lane];
    }
    int64_t next = a.row_begin + kLanes * runs.length;
    for (; next + kLanes <= a.row_end; next += kLanes)
        store(a.y + next,
              one_token<Block>({(const char*)a.w + next * a.row_bytes, a.row_bytes}, x, a));
    last_rows(a, next, [&](Rows rows, int lane, int64_t r, int64_t n) {
        store_lanes(one_token<Block>(rows, x, a), lane, n, a.y + r);
    });
}

template <class Block>
void matmul_blocks(const MatmulArgs& a) {
    constexpr size_t kRoom = kMatmulScratch;
    static_assert(kTileGroups * sizeof(TileBlock<Block>) <= kRoom * kBlock, "it fits the scratch");
    if (a.tokens == 1) return decode_blocks<Block>(a);
    const int64_t blocks = a.cols / kBlock;
    auto* tile = (TileBlock<Block>*)a.scratch;
    int64_t r = a.row_begin;
    const auto rows = [&](int64_t row) {
        return Rows{(const char*)a.w + row * a.row_bytes, a.row_bytes};
    };
    for (; r + kTileGroups * kLanes <= a.row_end; r += kTileGroups * kLanes) {
        UNROLL
        for (int g = 0; g < kTileGroups; ++g)
            fill_tile(rows(r + g * kLanes), blocks, tile + g * blocks);
        all_tokens<Block, kTileGroups>(tile, a, [&](int g, int64_t t, Lanes sums) {
            store(a.y + t * a.y_stride + r + kLanes * g, sums);
        });
    }
    for (; r + kLanes <= a.row_end; r += kLanes) {
        fill_tile(rows(r), blocks, tile);
        all_tokens<Block, 1>(
            tile, a, [&](int, int64_t t, Lanes sums) { store(a.y + t * a.y_stride + r, sums); });
    }
    last_rows(a, r, [&](Rows last, int lane, int64_t row, int64_t n) {
        fill_tile(last, blocks, tile);
        all_tokens<Block, 1>(tile, a, [&](int, int64_t t, Lanes sums) {
            store_lanes(sums, lane, n, a.y + t * a.y_stride + row);
        });
    });
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
