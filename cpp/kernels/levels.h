// SPDX-License-Identifier: Apache-2.0
// What each ISA file offers to dispatch.cpp.
#pragma once

#include "kernels/kernels.h"

namespace rwkv_edge {

void scalar_kernels(Kernels& table);
void avx2_kernels(Kernels& table);
void avxvnni_kernels(Kernels& table);
void avxvnni_evex_kernels(Kernels& table);
void avx512_kernels(Kernels& table);
void neon_kernels(Kernels& table);
void neon_dotprod_kernels(Kernels& table);

// For the head sizes that avx512 has no form of.
void avx2_wkv7(const Wkv7Args& args);

}  // namespace rwkv_edge
