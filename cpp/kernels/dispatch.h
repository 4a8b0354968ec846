// SPDX-License-Identifier: Apache-2.0
// Chooses the kernel table for this CPU, once per process.
#pragma once

#include <span>

#include "kernels/kernels.h"

namespace rwkv_edge {

// The best proven level this CPU runs, or the one named by RWKV_EDGE_ISA. Throws UnsupportedError
// when that variable names no level of this build or one that this CPU lacks.
const Kernels& kernels();

// The table for steps of at most kFewestTokens: that of kernels(), but for products with block
// types where this CPU is faster with those of lower levels. All of these take activations in one
// form, and the table has the functions that make it. The bits are the same.
enum { kFewestTokens = 4 };
const Kernels& few_tokens_kernels();

// Every level that this CPU runs, scalar first: tests and benches walk this.
std::span<const Kernels> available_kernels();

}  // namespace rwkv_edge
