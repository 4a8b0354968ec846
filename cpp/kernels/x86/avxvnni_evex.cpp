// SPDX-License-Identifier: Apache-2.0
// The level avxvnni in the encoding of AVX-512, with 256 bits and its 32 registers.
#include "kernels/generic/block_matmul.inl"
#include "kernels/levels.h"
#include "kernels/x86/avx2_blocks.inl"
#include "kernels/x86/avx2_peak.inl"

namespace rwkv_edge {

void avxvnni_evex_kernels(Kernels& table) {
    block_products<Avx2Kernel>(table);
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
