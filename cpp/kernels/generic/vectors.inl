// SPDX-License-Identifier: Apache-2.0
// The vectors of the instruction set that a level is compiled for. Its file defines
//   F32           eight floats
//   load, store   F32 from and to floats; load also from Half and Bfloat16
//   set, add, sub, mul, div, min, max
//   fma, negative_fma   a * b + c, c - a * b
//   pin           a point that neither a value nor other pins may pass
//   round_, pow2        2^n of a rounded n
//   sum8          the sum of one F32 in the order of kernels.h; of four at once
//   prefetch, prefetch_l2   the line at an address into the first or second cache
//   kDecodeRows   how many rows of floats a decode step takes side by side
#pragma once

#if defined(__aarch64__)
#include "kernels/arm/neon_vectors.inl"
#else
#include "kernels/x86/avx2_vectors.inl"
#endif
