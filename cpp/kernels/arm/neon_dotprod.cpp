// SPDX-License-Identifier: Apache-2.0
// AArch64 with the dot products of ARMv8.2. Integer dots are exact, so the results are those of
// NEON to the bit. Everything but block products is NEON's.
#include "kernels/arm/neon_blocks.inl"
#include "kernels/arm/neon_peak.inl"
#include "kernels/generic/block_matmul.inl"
#include "kernels/levels.h"

namespace rwkv_edge {

void neon_dotprod_kernels(Kernels& table) {
    block_products<NeonKernel>(table);
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
