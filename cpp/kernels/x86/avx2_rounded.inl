// SPDX-License-Identifier: Apache-2.0
// A row of rounded activations, as avx2.cpp makes it and the block kernels of its family read it.
#pragma once

#include <stdint.h>

#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

struct RoundedBlock {
    int8_t q[kBlock];
    float scale, scaled_sum;  // the latter is scale times the sum of q
    // What maddubs gives for codes that are all 8. For half h of the block, sums8[2h + p] is 8
    // times the sum over i = 0..3 of q[16h + 4i + 2p] + q[16h + 4i + 2p + 1].
    int16_t sums8[4];
};
static_assert(sizeof(RoundedBlock) == 48, "no gaps");

// First the blocks; behind them q again in 16 bits, for weights whose codes are signed bytes.
struct RoundedRow {
    const RoundedBlock* block;
    const int16_t* q16;

    RoundedRow(const void* row, int64_t cols)
        : block((const RoundedBlock*)row), q16((const int16_t*)(block + cols / kBlock)) {}
    static int64_t bytes(int64_t cols) {
        return cols / kBlock * (int64_t)(sizeof(RoundedBlock) + kBlock * sizeof(int16_t));
    }
};

}  // namespace

}  // namespace rwkv_edge
