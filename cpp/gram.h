// SPDX-License-Identifier: Apache-2.0
// Sums of outer products: what quantization wants to know of the inputs of a matrix.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace rwkv_edge {

// sums[i, j] += sum over t of x[t, i] * x[t, j] for all i <= j; of the others, which are the same,
// some. x is [tokens, n], sums is [n, n]. Each sum is one chain over the tokens, so the bits do not
// depend on the number of threads, nor on the calls that the tokens come in. Takes 4 * n * tokens
// bytes.
void add_outer_products(const float* x, int64_t tokens, int64_t n, float* sums,
                        const Kernels& kernels, ThreadPool& pool);

}  // namespace rwkv_edge
