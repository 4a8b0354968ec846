// SPDX-License-Identifier: Apache-2.0
// Chooses the kernel table for this CPU, once per process.
#pragma once

#include <span>

#include "kernels/kernels.h"

namespace rwkv_edge {

// The best proven level this CPU runs, or the one named by RWKV_EDGE_ISA. Throws UnsupportedError
// when that variable names no level of this build or one that this CPU lacks.
const Kernels& kernels();

// The same for at most kFewestTokens. Products with blocks may be those of a lower level, with the
// functions that make their activations, where this CPU is faster so; the bits are the same.
enum { kFewestTokens = 3 };
const Kernels& few_tokens_kernels();

// Every level that this CPU runs, scalar first: tests and benches walk this.
std::span<const Kernels> available_kernels();

}  // namespace rwkv_edge
