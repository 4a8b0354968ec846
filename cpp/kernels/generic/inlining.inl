// SPDX-License-Identifier: Apache-2.0
// The inner loops are meant to be unrolled and inlined whole, and sums to be formed in the order
// written: left alone, compilers hoist products until they spill.
#pragma once

#define ALWAYS_INLINE __attribute__((always_inline)) inline
#define NEVER_INLINE __attribute__((noinline))
#define INLINE_LAMBDA __attribute__((always_inline))
// Keeps an address as it is: clang makes it anew from its base and stride in every step.
#define KEEP(address) asm("" : "+r"(address))
#define UNROLL _Pragma("GCC unroll 16")
