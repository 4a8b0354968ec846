// SPDX-License-Identifier: Apache-2.0
// AArch64 with the dot products of ARMv8.2.
#define LEVEL_KERNELS neon_dotprod_kernels
#include "kernels/neon.inl"
