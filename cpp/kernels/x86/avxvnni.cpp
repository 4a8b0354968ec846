// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX-VNNI: where AVX2 multiplies, adds pairs and adds, one instruction. Integer dots
// are exact, so the results are those of AVX2 to the bit. Everything but block products is AVX2's.
// CPUs with AVX-512 have these instructions in another encoding: avxvnni_evex.cpp.
#include "kernels/generic/block_matmul.inl"
#include "kernels/levels.h"
#include "kernels/x86/avx2_blocks.inl"
#include "kernels/x86/avx2_peak.inl"

namespace rwkv_edge {

void avxvnni_kernels(Kernels& table) {
    block_products<Avx2Kernel>(table);
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
