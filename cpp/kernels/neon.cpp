// SPDX-License-Identifier: Apache-2.0
// AArch64 as every such CPU has it (ARMv8.0).
#define LEVEL_KERNELS neon_kernels
#include "kernels/neon.inl"
