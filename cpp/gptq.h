// SPDX-License-Identifier: Apache-2.0
// Quantization that knows how inputs go together: GPTQ (arXiv:2210.17323) on grids that are fixed
// first, then coordinate descent (after QuantEase, arXiv:2309.01885) with the scales refitted.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "quant/blocks.h"

namespace rwkv_edge {

// Quantizes weights W [rows, cols] to `out`, blocks of a type that has a block_form, such that
//   tr (W - Q) (H + damp * mean(diag H) * I) (W - Q)^T
// is small; H is hessian [cols, cols], the mean of x x^T over inputs x. The bytes do not depend on
// the number of threads. Needs 4 cols^2 bytes for a factor of H, and up to some 160 MB, or 9 bytes
// a weight where that is less.
//
// Throws std::invalid_argument for a hessian with values that are not finite, that is not
// symmetric, whose diagonal is negative or zero, and where it is not positive definite with damp.
void quantize_with_hessian(Type type, const float* weights, int64_t rows, int64_t cols,
                           const float* hessian, float damp, uint8_t* out, const Kernels& kernels,
                           ThreadPool& pool);

}  // namespace rwkv_edge
