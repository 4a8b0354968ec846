// SPDX-License-Identifier: Apache-2.0
// Products on tensor-core fragments, for every number of tokens (kernels.h says what they compute).
// A warp goes through a part of k with 16 rows and some tiles of four tokens. Up to 16 tokens the
// warps of a block share 16 rows and take a part of k each; with more tokens each has rows of its
// own and takes the parts one after the other. The sums are the same.
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/sums.h"
#include "backend/cuda/weights.h"

namespace rwkv_edge::cuda {

namespace {

constexpr int kManyTiles = 8;  // of tokens, in a block of many tokens
constexpr float kLow = 0x1p-11f, kInput = 0x1p4f;
constexpr uint32_t kOnes = 0x3c003c00;  // two halves

// --- inputs ---

constexpr int kPrepareThreads = 256;

__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(Prepare p) {
    wait_for_previous();
    const PreparedInput in = p.inputs[blockIdx.z];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kPrepareThreads + threadIdx.x;
    const int lane = static_cast<int>(i % 32), half = static_cast<int>(i / 32 % 2);
    const int64_t tile = i / 64;
    if (tile >= in.tiles) return;
    const int column = lane / 4, token = static_cast<int>(blockIdx.y) * kTileTokens + column / 2;
    const int64_t first = tile * kTileCols + half * 32 + lane % 4 * 2;
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        words[w] = 0;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int64_t k = first + w * 8 + e;
            if (token >= p.tokens || k >= in.cols) continue;
            const int64_t at = static_cast<int64_t>(token) * in.cols + k;
            float x = in.input.x[at];
            if (in.input.to != nullptr)
                x = lerp_of(x, in.input.to[at], in.input.mix[in.input.mix_per_token ? at : k]);
            x *= 1.0f / kInput;
            uint16_t value = half_of(x);
            if (column % 2 == 1) value = half_of((x - half_value(value)) * (1.0f / kLow));
            words[w] |= static_cast<uint32_t>(value) << (16 * e);
        }
    }
    uint4* to = static_cast<uint4*>(in.to);
    to[((blockIdx.y * static_cast<int64_t>(in.tiles) + tile) * 2 + half) * 32 + lane] =
        uint4{words[0], words[1], words[2], words[3]};
}

// --- weights, fragment by fragment ---

constexpr bool has_minima(Layout l) {
    return l == Layout::Q4_1 || l == Layout::Q5_1 || l == Layout::Q4_K || l == Layout::Q5_K;
}
constexpr bool is_float(Layout l) { return l == Layout::Floats || l == Layout::Halves; }
constexpr int zero_of(Layout l) {  // the code that means zero
    return l == Layout::Q8_0   ? 128
           : l == Layout::Q4_0 ? 8
           : l == Layout::Q5_0 ? 16
           : l == Layout::Q6_K ? 32
                               : 0;
}
constexpr int64_t bytes_of_codes(Layout l) {  // of a tile
    return l == Layout::Floats ? 4096 : l == Layout::Halves ? 2048 : l == Layout::Q8_0 ? 1024 : 512;
}
// Steps of 16 columns that share a scale.
constexpr int steps_of(Layout l) { return l == Layout::Q6_K ? 1 : 2; }

DEVICE float low_half(uint32_t w) { return half_value(static_cast<uint16_t>(w)); }
DEVICE float high_half(uint32_t w) { return half_value(static_cast<uint16_t>(w >> 16)); }

// What a lane has of a tile.
template <Layout kLayout>
struct Tile {
    static constexpr int kLoads = kLayout == Layout::Floats   ? 8
                                  : kLayout == Layout::Halves ? 4
                                  : kLayout == Layout::Q8_0   ? 2
                                                              : 1;
    uint4 codes[kLoads];
    uint2 high;    // Q5: one word
    uint2 scales;  // of rows g and g + 8
    uint2 minima;  // of super-blocks d and dmin
    float scale;   // of float types

    DEVICE_MEMBER void load(const Weights& w, int64_t tile, int64_t row_tile, int in_row,
                            int lane) {
        const uint4* codes_of = static_cast<const uint4*>(w.codes) + tile * kLoads * 32 + lane;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) codes[i] = load_once(codes_of + i * 32);
        if constexpr (is_float(kLayout)) {
            scale = static_cast<const float*>(w.scales)[tile];
            return;
        }
        if constexpr (kLayout == Layout::Q5_0 || kLayout == Layout::Q5_1 || kLayout == Layout::Q5_K)
            high.x = static_cast<const uint32_t*>(w.high)[tile * 32 + lane];
        if constexpr (kLayout == Layout::Q6_K)
            high = static_cast<const uint2*>(w.high)[tile * 32 + lane];
        scales = static_cast<const uint2*>(w.scales)[tile * 8 + lane / 4];
        if constexpr (kLayout == Layout::Q4_1 || kLayout == Layout::Q5_1)
            minima = static_cast<const uint2*>(w.minima)[tile * 8 + lane / 4];
        if constexpr (kLayout == Layout::Q4_K || kLayout == Layout::Q5_K || kLayout == Layout::Q6_K)
            minima = static_cast<const uint2*>(
                w.minima)[(row_tile * (w.tiles / 4) + in_row / 4) * 8 + lane / 4];
    }

    // The A fragment of step s; of F32 `part` 1 is what the halves of part 0 lack.
    DEVICE_MEMBER void fragment(int s, int part, uint32_t (&a)[4]) const {
        if constexpr (is_float(kLayout)) {
            const uint4& c = codes[kLayout == Layout::Floats ? 2 * s + part : s];
            a[0] = c.x;
            a[1] = c.y;
            a[2] = c.z;
            a[3] = c.w;
        } else if constexpr (kLayout == Layout::Q8_0) {
            const uint4& c = codes[s / 2];
            const uint32_t words[2] = {s % 2 == 0 ? c.x : c.z, s % 2 == 0 ? c.y : c.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t pair = words[e / 2] >> (16 * (e % 2));
                a[e] = integers_to_halves((pair & 0xff) | (pair & 0xff00) << 8, 128);
            }
        } else {
            const uint32_t word = s == 0   ? codes[0].x
                                  : s == 1 ? codes[0].y
                                  : s == 2 ? codes[0].z
                                           : codes[0].w;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                uint32_t code = word >> (4 * e) & 0x000f000f;
                if constexpr (kLayout == Layout::Q6_K)
                    code |= ((s < 2 ? high.x : high.y) >> (s % 2 * 8 + 2 * e) & 0x00030003) << 4;
                else if constexpr (kLayout != Layout::Q4_0 && kLayout != Layout::Q4_1 &&
                                   kLayout != Layout::Q4_K)
                    code |= (high.x >> (4 * s + e) & 0x00010001) << 4;
                a[e] = integers_to_halves(code, zero_of(kLayout));
            }
        }
    }

    // Scale and minimum of steps 2b and 2b + 1 (of Q6_K: of step b) for row g or g + 8.
    DEVICE_MEMBER float scale_of(int b, int row) const {
        const uint32_t own = row == 0 ? scales.x : scales.y;
        if constexpr (is_float(kLayout)) return scale;
        if constexpr (kLayout == Layout::Q6_K)
            return low_half(row == 0 ? minima.x : minima.y) *
                   static_cast<float>(static_cast<int8_t>(own >> (8 * b)));
        if constexpr (kLayout == Layout::Q4_K || kLayout == Layout::Q5_K)
            return low_half(row == 0 ? minima.x : minima.y) *
                   static_cast<float>(own >> (8 * b) & 0xff);
        return b == 0 ? low_half(own) : high_half(own);
    }
    DEVICE_MEMBER float minimum_of(int b, int row) const {
        const uint32_t own = row == 0 ? minima.x : minima.y;
        if constexpr (kLayout == Layout::Q4_K || kLayout == Layout::Q5_K)
            return -(high_half(own) *
                     static_cast<float>((row == 0 ? scales.x : scales.y) >> (16 + 8 * b) & 0xff));
        return b == 0 ? low_half(own) : high_half(own);
    }
};

// sums += the products of tiles [first, last) of a row of tiles with kTiles tiles of tokens.
template <Layout kLayout, int kTiles>
DEVICE void accumulate(const Weights& w, const uint4* x, int64_t row_tile, int first, int last,
                       int lane, float (&sums)[kTiles][4]) {
    for (int i = first; i < last; ++i) {
        Tile<kLayout> tile;
        tile.load(w, row_tile * w.tiles + i, row_tile, i, lane);
        const uint4* inputs = x + static_cast<int64_t>(i) * 64 + lane;
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            uint32_t a[2][4];
            tile.fragment(2 * b, 0, a[0]);
            tile.fragment(2 * b + 1, 0, a[1]);
            [[maybe_unused]] uint32_t rest[2][4];
            if constexpr (kLayout == Layout::Floats) {
                tile.fragment(2 * b, 1, rest[0]);
                tile.fragment(2 * b + 1, 1, rest[1]);
            }
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                const uint4 in = inputs[static_cast<int64_t>(t) * w.tiles * 64 + b * 32];
                float (&sum)[4] = sums[t];
                if constexpr (steps_of(kLayout) == 1) {
#pragma unroll
                    for (int s = 0; s < 2; ++s) {
                        float dots[4] = {};
                        mma(dots, a[s], s == 0 ? in.x : in.z, s == 0 ? in.y : in.w);
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            sum[e] = fmaf(tile.scale_of(2 * b + s, e / 2), dots[e], sum[e]);
                    }
                } else {
                    float dots[4] = {};
                    mma(dots, a[0], in.x, in.y);
                    mma(dots, a[1], in.z, in.w);
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        sum[e] = fmaf(tile.scale_of(b, e / 2), dots[e], sum[e]);
                }
                if constexpr (kLayout == Layout::Floats) {
                    float dots[4] = {};
                    mma(dots, rest[0], in.x, in.y);
                    mma(dots, rest[1], in.z, in.w);
#pragma unroll
                    for (int e = 0; e < 4; ++e) sum[e] = fmaf(tile.scale * kLow, dots[e], sum[e]);
                }
                if constexpr (has_minima(kLayout)) {
                    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
                    float dots[4] = {};
                    mma(dots, ones, in.x, in.y);
                    mma(dots, ones, in.z, in.w);
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        sum[e] = fmaf(tile.minimum_of(b, e / 2), dots[e], sum[e]);
                }
            }
        }
    }
}

// Part `part` of k: rows g and g + 8 of token q of each tile, high and low parts of inputs
// together.
template <Layout kLayout, int kTiles>
DEVICE void part_of_layout(const Weights& w, const uint4* x, int64_t row_tile, int part, int lane,
                           float (&sums)[kTiles][2]) {
    float both[kTiles][4] = {};
    accumulate<kLayout, kTiles>(w, x, row_tile, w.tiles * part / w.splits,
                                w.tiles * (part + 1) / w.splits, lane, both);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        sums[t][0] = fmaf(both[t][1], kLow, both[t][0]);
        sums[t][1] = fmaf(both[t][3], kLow, both[t][2]);
    }
}

template <int kTiles>
DEVICE void part_of(const Weights& w, const uint4* x, int64_t row_tile, int part, int lane,
                    float (&sums)[kTiles][2]) {
    switch (w.layout) {
        case Layout::Floats:
            return part_of_layout<Layout::Floats>(w, x, row_tile, part, lane, sums);
        case Layout::Halves:
            return part_of_layout<Layout::Halves>(w, x, row_tile, part, lane, sums);
        case Layout::Q8_0: return part_of_layout<Layout::Q8_0>(w, x, row_tile, part, lane, sums);
        case Layout::Q4_0: return part_of_layout<Layout::Q4_0>(w, x, row_tile, part, lane, sums);
        case Layout::Q4_1: return part_of_layout<Layout::Q4_1>(w, x, row_tile, part, lane, sums);
        case Layout::Q5_0: return part_of_layout<Layout::Q5_0>(w, x, row_tile, part, lane, sums);
        case Layout::Q5_1: return part_of_layout<Layout::Q5_1>(w, x, row_tile, part, lane, sums);
        case Layout::Q4_K: return part_of_layout<Layout::Q4_K>(w, x, row_tile, part, lane, sums);
        case Layout::Q5_K: return part_of_layout<Layout::Q5_K>(w, x, row_tile, part, lane, sums);
        case Layout::Q6_K: return part_of_layout<Layout::Q6_K>(w, x, row_tile, part, lane, sums);
    }
}

// Weights wait for no kernel: those that part `part` begins with are asked for ahead of the inputs.
DEVICE void prefetch_part(const Weights& w, int64_t row_tile, int part, int lane) {
    constexpr int kLine = 128;  // so 4 KiB, a line for each lane
    const int64_t bytes = bytes_of_codes(w.layout);
    const int64_t first = row_tile * w.tiles + w.tiles * part / w.splits;
    const int64_t end = row_tile * w.tiles + w.tiles * (part + 1) / w.splits;
    const int64_t at = first * bytes + lane * kLine;
    if (at < end * bytes) prefetch(static_cast<const char*>(w.codes) + at);
}

// The job that a block works for; `block` becomes its number among the job's.
DEVICE int job_of(const Products& p, int& block) {
    int job = 0;
    while (block >= p.jobs[job].end) ++job;
    if (job > 0) block -= p.jobs[job - 1].end;
    return job;
}

// Up to 4 * kTiles tokens: a block has one row of tiles, a warp one part of k.
template <int kTiles>
__global__ void __launch_bounds__(32 * kMostSplits) few_kernel(Products p) {
    SHARED(float, parts, kMostSplits * kTileRows * kTileTokens * kTiles);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    int row_tile = static_cast<int>(blockIdx.x);
    const Product& job = p.jobs[job_of(p, row_tile)];
    if (warp < job.w.splits) prefetch_part(job.w, row_tile, warp, lane);
    wait_for_previous();
    if (warp < job.w.splits) {
        float sums[kTiles][2] = {};
        part_of<kTiles>(job.w, static_cast<const uint4*>(job.x), row_tile, warp, lane, sums);
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                parts[((warp * kTiles + t) * kTileTokens + lane % 4) * kTileRows + lane / 4 +
                      8 * e] = sums[t][e];
    }
    __syncthreads();
    for (int i = thread; i < kTileRows * kTileTokens * kTiles; i += static_cast<int>(blockDim.x)) {
        const int row = row_tile * kTileRows + i % kTileRows, token = i / kTileRows;
        if (row >= job.rows || token >= p.tokens) continue;
        float total = parts[i];
        for (int part = 1; part < job.w.splits; ++part)
            total += parts[part * kTileRows * kTileTokens * kTiles + i];
        finish(job.finish, total * kInput, row, static_cast<int64_t>(token) * job.rows + row);
    }
}

// More: a warp has a row of tiles and takes the parts of k in turn.
__global__ void __launch_bounds__(32 * kMostSplits) many_kernel(Products p) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    int block = static_cast<int>(blockIdx.x);
    const Product& job = p.jobs[job_of(p, block)];
    const int row_tile = block * kMostSplits + warp;
    wait_for_previous();
    if (row_tile * kTileRows >= job.rows) return;
    const int64_t first_tile = static_cast<int64_t>(blockIdx.y) * kManyTiles;
    const uint4* x = static_cast<const uint4*>(job.x) + first_tile * job.w.tiles * 64;
    float totals[kManyTiles][2] = {};
    part_of<kManyTiles>(job.w, x, row_tile, 0, lane, totals);
    for (int part = 1; part < job.w.splits; ++part) {
        float sums[kManyTiles][2] = {};
        part_of<kManyTiles>(job.w, x, row_tile, part, lane, sums);
#pragma unroll
        for (int t = 0; t < kManyTiles; ++t)
#pragma unroll
            for (int e = 0; e < 2; ++e) totals[t][e] += sums[t][e];
    }
#pragma unroll
    for (int t = 0; t < kManyTiles; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int row = row_tile * kTileRows + lane / 4 + 8 * e;
            const int64_t token = (first_tile + t) * kTileTokens + lane % 4;
            if (row < job.rows && token < p.tokens)
                finish(job.finish, totals[t][e] * kInput, row, token * job.rows + row);
        }
}

// --- by input ---

constexpr int kInputOutputs = 64, kInputTokens = 4, kInputParts = 8;

template <class Block>
DEVICE void input_parts(const InputProduct& p, const Block* w, float (&sums)[kInputTokens][2],
                        int first, int last, int token, int tokens, int column, int lane) {
    for (int group = first; group < last; group += 32) {
        const int own = group + lane;
        float x[kInputTokens];
        bool any = false;
#pragma unroll
        for (int t = 0; t < kInputTokens; ++t) {
            x[t] = t < tokens && own < last ? p.x[static_cast<int64_t>(token + t) * p.inputs + own]
                                            : 0.0f;
            any = any || x[t] != 0.0f;
        }
        uint32_t active = ballot(any);
        for (int i = 0; active != 0; ++i, active >>= 1) {
            if ((active & 1) == 0) continue;
            const int64_t row = group + i;
            const Block* weights = reinterpret_cast<const Block*>(reinterpret_cast<const char*>(w) +
                                                                  row * p.row_bytes);
            const float w0 = column < p.outputs ? value_of(weight_of(weights, column)) : 0.0f;
            const float w1 =
                column + 1 < p.outputs ? value_of(weight_of(weights, column + 1)) : 0.0f;
#pragma unroll
            for (int t = 0; t < kInputTokens; ++t) {
                if (t >= tokens) continue;
                const float one = p.x[static_cast<int64_t>(token + t) * p.inputs + row];
                if (one == 0.0f) continue;  // not even -0 would change
                sums[t][0] = fmaf(one, w0, sums[t][0]);
                sums[t][1] = fmaf(one, w1, sums[t][1]);
            }
        }
    }
}

__global__ void __launch_bounds__(32 * kInputParts) input_kernel(InputProduct p) {
    SHARED(float, parts, kInputParts * kInputTokens * kInputOutputs);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int column = static_cast<int>(blockIdx.x) * kInputOutputs + 2 * lane;
    const int token = static_cast<int>(blockIdx.y) * kInputTokens;
    const int tokens = p.tokens - token < kInputTokens ? p.tokens - token : kInputTokens;
    const int groups = (p.inputs + 31) / 32;
    const int first = groups * warp / kInputParts * 32;
    const int end = groups * (warp + 1) / kInputParts * 32;
    const int last = end < p.inputs ? end : p.inputs;
    wait_for_previous();
    float sums[kInputTokens][2] = {};
    with_type(p.type, p.w, [&](const auto* w) {
        input_parts(p, w, sums, first, last, token, tokens, column, lane);
    });
#pragma unroll
    for (int t = 0; t < kInputTokens; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e)
            parts[(warp * kInputTokens + t) * kInputOutputs + 2 * lane + e] = sums[t][e];
    __syncthreads();
    for (int i = thread; i < kInputTokens * kInputOutputs; i += 32 * kInputParts) {
        const int t = i / kInputOutputs;
        const int output = static_cast<int>(blockIdx.x) * kInputOutputs + i % kInputOutputs;
        if (t >= tokens || output >= p.outputs) continue;
        float total = parts[i];
        for (int part = 1; part < kInputParts; ++part)
            total += parts[part * kInputTokens * kInputOutputs + i];
        finish(p.finish, total, output, static_cast<int64_t>(token + t) * p.outputs + output);
    }
}

// --- into their places ---

// One warp a tile.
template <class Block>
DEVICE void repack_tile(const Repack& p, const Block* all, int row_tile, int in_row, int lane) {
    const Weights& w = p.to;
    const int64_t tile = (p.first + row_tile) * w.tiles + in_row;
    const auto weight_at = [&](int row, int column) {
        const int r = row_tile * kTileRows + row, k = in_row * kTileCols + column;
        if (r >= p.count || k >= p.cols) return Weight{0.0f, 0.0f, 0, 0};
        return weight_of(
            reinterpret_cast<const Block*>(reinterpret_cast<const char*>(all) + r * p.row_bytes),
            k);
    };
    // Element h of register e of step s.
    const auto element = [&](int s, int e, int h) {
        return weight_at(lane / 4 + 8 * (e % 2), 16 * s + 2 * (lane % 4) + 8 * (e / 2) + h);
    };
    if (is_float(w.layout)) {
        float largest = 0.0f;
#pragma unroll 1
        for (int s = 0; s < 4; ++s)
#pragma unroll 1
            for (int i = 0; i < 8; ++i)
                largest = fmaxf(largest, fabsf(value_of(element(s, i / 2, i % 2))));
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2)
            largest = fmaxf(largest, shuffle_xor(largest, lanes));
        // A power of two that brings the largest into [2^14, 2^15); halves remain as they are.
        float up = 1.0f, down = 1.0f;
        if (p.type != Type::F16 && largest > 0.0f && largest < 0x1p127f) {
            int exponent = static_cast<int>(float_bits(largest) >> 23) - 127 - 14;
            exponent = exponent < -126 ? -126 : exponent;
            down = bits_float(static_cast<uint32_t>(127 + exponent) << 23);
            up = 1.0f / down;
        }
        const int parts = w.layout == Layout::Floats ? 2 : 1;
        uint32_t* to =
            static_cast<uint32_t*>(const_cast<void*>(w.codes)) + (tile * 4 * parts * 32 + lane) * 4;
#pragma unroll 1
        for (int s = 0; s < 4; ++s)
#pragma unroll 1
            for (int part = 0; part < parts; ++part)
#pragma unroll 1
                for (int e = 0; e < 4; ++e) {
                    uint32_t word = 0;
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const float x = value_of(element(s, e, h)) * up;
                        uint16_t half = half_of(x);
                        if (part == 1) half = half_of((x - half_value(half)) * (1.0f / kLow));
                        word |= static_cast<uint32_t>(half) << (16 * h);
                    }
                    to[(s * parts + part) * 128 + e] = word;
                }
        if (lane == 0) static_cast<float*>(const_cast<void*>(w.scales))[tile] = down;
        return;
    }
    const int zero = zero_of(w.layout);
    uint32_t* codes = static_cast<uint32_t*>(const_cast<void*>(w.codes));
    uint32_t fifth = 0, two[2] = {};
#pragma unroll 1
    for (int s = 0; s < 4; ++s) {
        uint32_t nibbles = 0, bytes[2] = {}, bits = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int e = i / 2, h = i % 2;
            const uint32_t code = static_cast<uint32_t>(element(s, e, h).code + zero);
            nibbles |= (code & 15) << (4 * e + 16 * h);
            bytes[e / 2] |= (code & 255) << (16 * (e % 2) + 8 * h);
            fifth |= (code >> 4 & 1) << (4 * s + e + 16 * h);
            bits |= (code >> 4 & 3) << (2 * e + 16 * h);
        }
        (s < 2 ? two[0] : two[1]) |= bits << (s % 2 * 8);
        if (w.layout == Layout::Q8_0) {
            uint32_t* to = codes + ((tile * 2 + s / 2) * 32 + lane) * 4 + s % 2 * 2;
            to[0] = bytes[0];
            to[1] = bytes[1];
        } else {
            codes[(tile * 32 + lane) * 4 + s] = nibbles;
        }
    }
    if (w.layout == Layout::Q6_K)
        static_cast<uint2*>(const_cast<void*>(w.high))[tile * 32 + lane] = uint2{two[0], two[1]};
    else if (w.high != nullptr)
        static_cast<uint32_t*>(const_cast<void*>(w.high))[tile * 32 + lane] = fifth;
}

// The scales of a row of a tile, as the file has them.
struct Scales {
    uint32_t scales, minima;
};
template <class Block>
DEVICE Scales scales_of(const Block* blocks, int k, int cols) {  // q8_0, q4_0, q5_0
    const Block* b = blocks + k / kBlock;
    return {b[0].d | (k + kBlock < cols ? static_cast<uint32_t>(b[1].d) << 16 : 0), 0};
}
template <class Block>
DEVICE Scales two_halves_of(const Block* blocks, int k, int cols) {
    const Block* b = blocks + k / kBlock;
    const bool more = k + kBlock < cols;
    return {b[0].d | (more ? static_cast<uint32_t>(b[1].d) << 16 : 0),
            b[0].m | (more ? static_cast<uint32_t>(b[1].m) << 16 : 0)};
}
DEVICE Scales scales_of(const BlockQ4_1* b, int k, int cols) { return two_halves_of(b, k, cols); }
DEVICE Scales scales_of(const BlockQ5_1* b, int k, int cols) { return two_halves_of(b, k, cols); }
template <class Block>
DEVICE Scales of_super_block(const Block* blocks, int k) {
    const Block& b = blocks[k / kSuperBlock];
    const int j = k % kSuperBlock / kBlock;
    const ScaleMin s0 = scale_min_of(b.scales, j), s1 = scale_min_of(b.scales, j + 1);
    return {static_cast<uint32_t>(s0.scale | s1.scale << 8 | s0.min << 16 | s1.min << 24),
            b.d | static_cast<uint32_t>(b.dmin) << 16};
}
DEVICE Scales scales_of(const BlockQ4_K* b, int k, int) { return of_super_block(b, k); }
DEVICE Scales scales_of(const BlockQ5_K* b, int k, int) { return of_super_block(b, k); }
DEVICE Scales scales_of(const BlockQ6_K* blocks, int k, int) {
    const BlockQ6_K& b = blocks[k / kSuperBlock];
    uint32_t scales = 0;
    for (int i = 0; i < 4; ++i)
        scales |= static_cast<uint32_t>(static_cast<uint8_t>(b.scales[k % kSuperBlock / 16 + i]))
                  << (8 * i);
    return {scales, b.d};
}
// Float types, and those that become floats.
DEVICE Scales scales_of(const float*, int, int) { return {}; }
DEVICE Scales scales_of(const Half*, int, int) { return {}; }
DEVICE Scales scales_of(const Bfloat16*, int, int) { return {}; }
DEVICE Scales scales_of(const BlockQ2_K*, int, int) { return {}; }
DEVICE Scales scales_of(const BlockQ3_K*, int, int) { return {}; }

template <class Block>
DEVICE void repack_scales(const Repack& p, const Block* all, int row_tile, int in_row, int lane) {
    const Weights& w = p.to;
    if (is_float(w.layout) || lane >= kTileRows) return;
    const int64_t tile = (p.first + row_tile) * w.tiles + in_row;
    const int r = row_tile * kTileRows + lane;
    Scales s{};
    if (r < p.count)
        s = scales_of(
            reinterpret_cast<const Block*>(reinterpret_cast<const char*>(all) + r * p.row_bytes),
            in_row * kTileCols, p.cols);
    const int place = lane % 8 * 2 + lane / 8;
    static_cast<uint32_t*>(const_cast<void*>(w.scales))[tile * 16 + place] = s.scales;
    if (w.minima == nullptr) return;
    uint32_t* minima = static_cast<uint32_t*>(const_cast<void*>(w.minima));
    if (w.layout == Layout::Q4_1 || w.layout == Layout::Q5_1)
        minima[tile * 16 + place] = s.minima;
    else if (in_row % 4 == 0)
        minima[(tile / 4) * 16 + place] = s.minima;
}

constexpr int kRepackThreads = 128;

__global__ void __launch_bounds__(kRepackThreads) repack_kernel(Repack p) {
    wait_for_previous();
    const int tile = static_cast<int>(blockIdx.x * (kRepackThreads / 32) + threadIdx.x / 32);
    if (tile >= p.to.tiles) return;
    const int lane = static_cast<int>(threadIdx.x % 32), row_tile = static_cast<int>(blockIdx.y);
    with_type(p.type, p.rows, [&](const auto* rows) {
        repack_tile(p, rows, row_tile, tile, lane);
        repack_scales(p, rows, row_tile, tile, lane);
    });
}

}  // namespace

Layout layout_of(Type type) {
    switch (type) {
        case Type::F16:
        case Type::BF16: return Layout::Halves;
        case Type::Q8_0: return Layout::Q8_0;
        case Type::Q4_0: return Layout::Q4_0;
        case Type::Q4_1: return Layout::Q4_1;
        case Type::Q5_0: return Layout::Q5_0;
        case Type::Q5_1: return Layout::Q5_1;
        case Type::Q4_K: return Layout::Q4_K;
        case Type::Q5_K: return Layout::Q5_K;
        case Type::Q6_K: return Layout::Q6_K;
        default: return Layout::Floats;
    }
}

LayoutBytes bytes_of(Layout layout, int64_t tiles) {
    LayoutBytes bytes{tiles * bytes_of_codes(layout), 0, tiles * (is_float(layout) ? 4 : 64), 0};
    if (layout == Layout::Q5_0 || layout == Layout::Q5_1 || layout == Layout::Q5_K)
        bytes.high = tiles * 128;
    if (layout == Layout::Q6_K) bytes.high = tiles * 256;
    if (layout == Layout::Q4_1 || layout == Layout::Q5_1) bytes.minima = tiles * 64;
    if (layout == Layout::Q4_K || layout == Layout::Q5_K || layout == Layout::Q6_K)
        bytes.minima = tiles * 16;
    return bytes;
}

void repack(Gpu& gpu, const Repack& p) {
    const int64_t row_tiles = (p.count + kTileRows - 1) / kTileRows;
    launch(gpu, repack_kernel,
           {(p.to.tiles + kRepackThreads / 32 - 1) / (kRepackThreads / 32), row_tiles},
           kRepackThreads, p);
}

void prepare(Gpu& gpu, const Prepare& p) {
    launch(gpu, prepare_kernel,
           {(p.most_tiles * 64 + kPrepareThreads - 1) / kPrepareThreads,
            (p.tokens + kTileTokens - 1) / kTileTokens, p.count},
           kPrepareThreads, p);
}

void matmul(Gpu& gpu, Products p) {
    const bool many = p.tokens > 4 * kTileTokens;
    int32_t blocks = 0, splits = 1;
    for (int32_t i = 0; i < p.count; ++i) {
        const int32_t row_tiles = (p.jobs[i].rows + kTileRows - 1) / kTileRows;
        blocks += many ? (row_tiles + kMostSplits - 1) / kMostSplits : row_tiles;
        p.jobs[i].end = blocks;
        if (splits < p.jobs[i].w.splits) splits = p.jobs[i].w.splits;
    }
    const int tiles = (p.tokens + kTileTokens - 1) / kTileTokens;
    if (many)
        launch(gpu, many_kernel, {blocks, (tiles + kManyTiles - 1) / kManyTiles}, 32 * kMostSplits,
               p);
    else
        launch(gpu,
               tiles == 1   ? few_kernel<1>
               : tiles == 2 ? few_kernel<2>
                            : few_kernel<4>,
               {blocks}, 32 * splits, p);
}

void matmul_by_input(Gpu& gpu, const InputProduct& p) {
    launch(gpu, input_kernel,
           {(p.outputs + kInputOutputs - 1) / kInputOutputs,
            (p.tokens + kInputTokens - 1) / kInputTokens},
           32 * kInputParts, p);
}

}  // namespace rwkv_edge::cuda
