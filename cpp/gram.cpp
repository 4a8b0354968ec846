// SPDX-License-Identifier: Apache-2.0
#include "gram.h"

#include <algorithm>

#include "base/aligned.h"

namespace rwkv_edge {

namespace {

constexpr int64_t kTile = kOuterLanes;  // of the sums: [kTile, kTile]

// Tile `i` of the columns of x: [tokens, kTile], zeros where there are no more columns.
void pack(const float* x, int64_t tokens, int64_t n, int64_t i, float* to) {
    const int64_t width = std::min(kTile, n - i * kTile);
    for (int64_t t = 0; t < tokens; ++t) {
        std::copy_n(x + t * n + i * kTile, width, to + t * kTile);
        std::fill(to + t * kTile + width, to + (t + 1) * kTile, 0.0f);
    }
}

}  // namespace

void add_outer_products(const float* x, int64_t tokens, int64_t n, float* sums,
                        const Kernels& kernels, ThreadPool& pool) {
    if (tokens == 0) return;
    const int64_t tiles = (n + kTile - 1) / kTile, size = tokens * kTile;
    AlignedVector<float> packed(static_cast<std::size_t>(tiles * size));
    AlignedVector<float> edges(static_cast<std::size_t>(pool.size() * kTile * kTile));
    pool.run(tiles, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) pack(x, tokens, n, i, packed.data() + i * size);
    });
    const auto tile = [&](int64_t i, int64_t j, float* edge) {
        const int64_t height = std::min(kTile, n - i * kTile),
                      width = std::min(kTile, n - j * kTile);
        float* y = sums + i * kTile * n + j * kTile;
        OuterArgs args{
            packed.data() + i * size, kTile, packed.data() + j * size, kTile, y, n, kTile, tokens};
        if (height == kTile && width == kTile) {
            kernels.outer_products(args);
            return;
        }
        for (int64_t r = 0; r < height; ++r) std::copy_n(y + r * n, width, edge + r * kTile);
        args.y = edge;
        args.y_stride = kTile;
        kernels.outer_products(args);
        for (int64_t r = 0; r < height; ++r) std::copy_n(edge + r * kTile, width, y + r * n);
    };
    // A row of tiles and the one that is as far from the end: all pairs have the same work.
    pool.run((tiles + 1) / 2, [&](int64_t begin, int64_t end, int worker) {
        float* edge = edges.data() + worker * kTile * kTile;
        for (int64_t pair = begin; pair < end; ++pair) {
            for (int64_t j = pair; j < tiles; ++j) tile(pair, j, edge);
            const int64_t other = tiles - 1 - pair;
            if (other == pair) continue;
            for (int64_t j = other; j < tiles; ++j) tile(other, j, edge);
        }
    });
}

}  // namespace rwkv_edge
