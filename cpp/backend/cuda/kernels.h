// SPDX-License-Identifier: Apache-2.0
// The kernels as the host calls them: one structure each, one function that launches it. All
// pointers are the device's.
//
// Products multiply halves in the tensor cores and add up in floats.
//   Inputs     x = 16 (high + low / 2^11), two halves: to 2^-22 of its size where that is above
//              2^-10, to 2^-32 below. Beyond 2^20 it is infinite or NaN, and so is the result.
//   Weights    integers of blocks as they are, exact; each block's scale multiplies its sum. Float
//              types are halves and a power of two for each tile of 16 x 64; of F32 two halves.
//   Sums       cut into splits(cols) parts of k, whatever the number of tokens: tiles of 64
//              columns in order, blocks of a tile in order; then the parts in order.
// So a result depends on its own row and its own token only. The tensor cores' own sums of 16
// products are the hardware's business.
#pragma once

#include <stdint.h>

#include "backend/backend.h"
#include "backend/cuda/gpu.h"

namespace rwkv_edge::cuda {

enum : int { kTileRows = 16, kTileCols = 64, kTileTokens = 4, kMostSplits = 8 };

// --- weights ---

// How a matrix lies on the device. Tile i of a row of tiles covers columns 64 i to 64 i + 63. In a
// tile lane 4g + q of a warp has of step s (16 columns) the weights of rows g and g + 8, columns 16
// s + 2q, + 1, + 8 and + 9: an A fragment of mma m16n8k16.
//   codes    nibbles [tile][lane] of 16 bytes; bytes, plus 128, [tile][2][lane]; halves
//            [tile][step][lane], of F32 [tile][step][2][lane]
//   high     the fifth bits [tile][lane] of 4 bytes, or bits five and six [tile][lane] of 8
//   scales   [tile][g][2], 4 bytes for each of rows g and g + 8: two halves, one for each block;
//            of super-blocks 2 scales and 2 minima, or 4 scales, as bytes; of float types [tile]
//   minima   as the scales; of super-blocks d and dmin as two halves, [super-block][g][2]
enum class Layout : int32_t { Floats, Halves, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };

struct Weights {
    const void *codes, *high, *scales, *minima;
    Layout layout;
    int32_t tiles;  // in a row
    int32_t splits;
};
// Bytes of the parts of a matrix of so many tiles in all. A super-block is four tiles.
struct LayoutBytes {
    int64_t codes, high, scales, minima;
};
Layout layout_of(Type type);
LayoutBytes bytes_of(Layout layout, int64_t tiles);

// Rows of a file, up to 16 of them for each row of tiles from `first` on, into their place.
struct Repack {
    const void* rows;
    int64_t row_bytes;
    Type type;
    int32_t count, cols;
    int64_t first;  // row of tiles
    Weights to;
};
void repack(Gpu& gpu, const Repack& args);

// --- products ---

// Inputs as B fragments: [tile of 4 tokens][tile of 64 columns][2][lane] of 16 bytes. Column 2t of
// a fragment is `high` of token t, column 2t + 1 `low`.
struct PreparedInput {
    Input input;
    void* to;
    int32_t cols, tiles;
};
enum : int { kMostInputs = 8 };
struct Prepare {
    PreparedInput inputs[kMostInputs];
    int32_t count, tokens, most_tiles;
};
void prepare(Gpu& gpu, const Prepare& args);
inline int64_t prepared_bytes(int64_t cols, int64_t tokens) {
    return (cols + kTileCols - 1) / kTileCols * ((tokens + kTileTokens - 1) / kTileTokens) * 1024;
}

// Where a product goes, and what it becomes on the way, as MatmulJob says it.
struct Finish {
    float* y;
    const float *bias, *gate;
    float* residual;
    float scale;
    Activate activate;
};

struct Product {
    Weights w;
    const void* x;  // prepared
    Finish finish;
    int32_t rows;
    int32_t end;  // of its blocks, among those of all
};
enum : int { kMostProducts = 8 };
struct Products {
    Product jobs[kMostProducts];
    int32_t count, tokens;
};
void matmul(Gpu& gpu, Products args);

// A product by input, from rows as a file has them. Inputs are cut into eight parts; in each, those
// that are not zero are added in order, and then the parts.
struct InputProduct {
    const void* w;
    int64_t row_bytes;
    Type type;
    const float* x;
    Finish finish;
    int32_t inputs, outputs, tokens;
};
void matmul_by_input(Gpu& gpu, const InputProduct& args);

// y[t] = x[t] m[t], a matrix for each token.
struct TokenProduct {
    const float *x, *m;
    float* y;
    int32_t rows, cols, tokens;
};
void matmul_per_token(Gpu& gpu, const TokenProduct& args);

// --- the rest ---

struct DeviceRun {
    int32_t begin, tokens;
    float* state;
};

struct Embed {
    const void* table;
    int64_t row_bytes;
    Type type;
    const int32_t* ids;
    float* y;
    int32_t tokens, cols;
};
void embed(Gpu& gpu, const Embed& args);

struct NormArgs {
    const float* x;
    Norm norm;
    float eps;
    float* y;
    int32_t tokens, n;
};
void norm(Gpu& gpu, const NormArgs& args);

struct ShiftArgs {
    const float* x;
    Norm norm;
    float eps;
    const DeviceRun* runs;
    const int32_t* run_of;  // [tokens]
    int64_t offset;         // of `last` in a state
    float *y, *previous;
    int32_t tokens, n, run_count;
};
void shift(Gpu& gpu, const ShiftArgs& args);

// state[offset ...] of every run = row rows[run] of x.
struct KeepArgs {
    const float* x;
    const int32_t* rows;
    const DeviceRun* runs;
    int64_t offset;
    int32_t n, run_count;
};
void keep(Gpu& gpu, const KeepArgs& args);

struct Wkv4Args {
    const DeviceRun* runs;
    int64_t offset;
    const float *w, *u, *r, *k, *v;
    float* y;
    int32_t n, run_count;
};
void wkv4(Gpu& gpu, const Wkv4Args& args);

struct Wkv6Args {
    const DeviceRun* runs;
    int64_t offset;
    const float *r, *w, *k, *v, *u, *g;
    Norm norm;
    float eps;
    float* y;
    int32_t heads, size, run_count;
    bool w_per_token;
};
void wkv6(Gpu& gpu, const Wkv6Args& args);

struct Wkv7Args {
    const DeviceRun* runs;
    int64_t offset;
    const float *r, *w, *a, *g, *k, *v, *first_v, *v_mix, *k_k, *k_a, *r_k;
    Norm norm;
    float eps;
    float* y;
    int32_t heads, size, run_count;
};
void wkv7(Gpu& gpu, const Wkv7Args& args);

// --- logits to choose from ---

enum : int { kMostRows = 16, kMostChanges = 4096, kMostFound = 4096 };

inline int64_t blocks_of_logits(int64_t n) { return (n + kLogitBlock - 1) / kLogitBlock; }
inline int64_t groups_of_logits(int64_t n) {
    return (blocks_of_logits(n) + kSumBlocks - 1) / kSumBlocks;
}

// What Shortlist says, for some rows of n logits. All arrays are [rows, ..].
struct SurveyRow {
    const float* logits;
    const LogitChange* changes;
    const uint8_t* allowed;  // or null
    int32_t change_count;
};
struct SurveyArgs {
    SurveyRow rows[kMostRows];
    float* values;   // [blocks, 64]: the logits after their changes
    float* best;     // [blocks], and so are the first tokens; [groups] the sums and the products;
    int64_t stride;  // so many floats from row to row
    int32_t row_count, n;
};
void survey(Gpu& gpu, const SurveyArgs& args);

struct GatherArgs {
    float least[kMostRows];
    const float* values;  // [blocks, 64]
    int32_t* counts;      // [blocks] of candidates; then [kMostFound] their logits and tokens
    int64_t stride;       // so many numbers from row to row
    int32_t row_count, n;
};
void gather(Gpu& gpu, const GatherArgs& args);

// Takes a quarter of a second. Throws NoMemory.
DeviceLimits limits_of(Gpu& gpu);

}  // namespace rwkv_edge::cuda
