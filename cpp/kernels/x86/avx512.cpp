// SPDX-License-Identifier: Apache-2.0
// x86-64 with AVX-512 F, BW, VL, DQ and VNNI: all products and the recurrence of RWKV-7 in vectors
// of 512 bits, with the results of AVX2 to the bit. Everything else is AVX2's.
#include <immintrin.h>

#include "kernels/generic/outer_products.inl"
#include "kernels/levels.h"
#include "kernels/x86/avx512_blocks.inl"
#include "kernels/x86/avx512_floats.inl"
#include "kernels/x86/avx512_inputs.inl"
#include "kernels/x86/avx512_recurrences.inl"
#include "kernels/x86/avx512_rounded.inl"

namespace rwkv_edge {

namespace {

// --- peaks: what products are made of, on registers alone ---
//
// Written in assembly, because a compiler sees that nothing comes of it.

// Sums in flight, so that none waits for itself.
enum { kPeakSums = 12 };

int64_t float_peak(int64_t rounds) {
    const Floats w = _mm512_set1_ps(0.5f), x = _mm512_set1_ps(0.25f);
    Floats sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL
        for (int s = 0; s < kPeakSums; ++s)
            asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sums[s]) : "v"(w), "v"(x));
    }
    return rounds * kPeakSums * 16 * 2;
}

int64_t int8_peak(int64_t rounds) {
    const Ints codes = bytes(15), x = bytes(-127);
    Ints sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL
        for (int s = 0; s < kPeakSums; ++s)
            asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[s]) : "v"(codes), "v"(x));
    }
    return rounds * kPeakSums * 64 * 2;
}

}  // namespace

void avx512_kernels(Kernels& table) {
    float_products(table);
    block_products(table);
    products_by_input<WideWiden>(table);
    table.wkv7 = wkv7;
    table.outer_products = outer_products<WideVectors, 8, 2>;
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
    table.rounded_bytes = rounded_bytes;
    table.round_activations = round_activations;
}

}  // namespace rwkv_edge
