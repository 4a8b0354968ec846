// SPDX-License-Identifier: Apache-2.0
// Encoders that search: the scales of a block are those of the smallest weighted squared error that
// a search finds, not those of the block's extremes.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "quant/blocks.h"

namespace rwkv_edge {

// What the blocks of a type are made of. A value is d * scale * (code - zero) - dmin * min, with a
// scale and a min for each sub-block. Where a type has no integer scales (mins), they are 1.
struct BlockForm {
    int block, sub;             // values of a block and of a sub-block
    int top, zero;              // codes are 0 ... top
    int scale_low, scale_high;  // equal: no integer scales
    bool has_min;
    int min_high;  // 1: no integer mins

    int subs() const { return block / sub; }
};

// A block before it is packed.
struct OpenBlock {
    float d, dmin;  // values of halves
    int scale[kSuperBlock / 16], min[kSuperBlock / 16];
    uint8_t codes[kSuperBlock];
};

float to_half_value(float x);  // the nearest that is finite
// 1 / scale; 0 for a scale whose inverse overflows, which stands for nothing.
float inverse_scale(float scale);

// Null for types without codes, for q8_0, which round to nearest suits, and for q2_k.
const BlockForm* block_form(Type type);

// The weights of the squared errors of `cols` values of a row; importance [cols], or null. With it
// they are the importance itself. Without it they are, for q4_k and q5_k, |x| plus the root mean
// square of 32 values, as in llama.cpp; for q3_k and q6_k x^2, as there, plus the mean square of
// the block, with which models are better and the error that is weighted with x^2 is still below
// llama.cpp's; and 1 for others. No weight is less than a thousandth of its block's mean: what no
// statistics saw still counts.
void error_weights(Type type, const float* x, const float* importance, int64_t cols,
                   float* weights);

// Finds a block for x and weights, [form.block] both. The result is finite where |x| <= 65504.
void search_block(const BlockForm& form, const float* x, const float* weights, OpenBlock& block);

// The block of a type in ggml's layout.
void pack_block(Type type, const OpenBlock& block, void* to);

// Rows [rows, cols] of whole blocks, shared by threads.
void search_rows(Type type, const float* x, const float* importance, int64_t rows, int64_t cols,
                 uint8_t* to, ThreadPool& pool);

}  // namespace rwkv_edge
