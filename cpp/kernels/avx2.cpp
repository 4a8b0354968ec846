// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX2, FMA and F16C.
#define LEVEL_KERNELS avx2_kernels
#include "kernels/avx2.inl"
