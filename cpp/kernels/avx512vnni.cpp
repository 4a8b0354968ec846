// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX-512 VNNI, in vectors of 256 bits: where avx2.inl multiplies, adds pairs and adds,
// one instruction. Integer dots are exact, so the results are those of AVX2 to the bit.
#define LEVEL_KERNELS avx512vnni_kernels
#include "kernels/avx2.inl"
