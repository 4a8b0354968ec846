// SPDX-License-Identifier: Apache-2.0
// A row of rounded activations, as neon.cpp makes it and the block kernels of its family read it.
#pragma once

#include <stdint.h>

#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

struct RoundedBlock {
    int8_t q[kBlock];
    float scale, scaled_sum;  // the latter is scale times the sum of q
    int32_t sum, first_sum;   // of q, and over the first half
};
static_assert(sizeof(RoundedBlock) == 48, "no gaps");

}  // namespace

}  // namespace rwkv_edge
