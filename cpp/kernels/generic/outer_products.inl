// SPDX-License-Identifier: Apache-2.0
// Sums of outer products, kOuterLanes wide. Lanes are columns of y, and each y is one chain of
// fused multiply-adds, so vectors of any width give the same bits.
#pragma once

#include <stdint.h>

#include "kernels/generic/inlining.inl"
#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

// kRows x kVectors sums stay in registers over all of k. Isa is that of input_matmul.inl.
template <class Isa, int kRows, int kVectors>
void outer_products(const OuterArgs& args) {
    static_assert(8 % kRows == 0 && kOuterLanes % (kVectors * Isa::kLanes) == 0);
    for (int64_t i = 0; i < args.rows; i += kRows) {
        for (int l = 0; l < kOuterLanes; l += kVectors * Isa::kLanes) {
            const float* a = args.a + i;
            const float* b = args.b + l;
            float* y = args.y + i * args.y_stride + l;
            typename Isa::V sums[kRows][kVectors];
            UNROLL
            for (int r = 0; r < kRows; ++r) UNROLL
            for (int v = 0; v < kVectors; ++v)
                sums[r][v] = Isa::load(y + r * args.y_stride + v * Isa::kLanes);
            for (int64_t k = 0; k < args.depth; ++k, a += args.a_stride, b += args.b_stride) {
                typename Isa::V bs[kVectors];
                UNROLL
                for (int v = 0; v < kVectors; ++v) bs[v] = Isa::load(b + v * Isa::kLanes);
                UNROLL
                for (int r = 0; r < kRows; ++r) {
                    const typename Isa::V factor = Isa::set(a[r]);
                    UNROLL
                    for (int v = 0; v < kVectors; ++v)
                        sums[r][v] = Isa::fma(factor, bs[v], sums[r][v]);
                }
            }
            UNROLL
            for (int r = 0; r < kRows; ++r) UNROLL
            for (int v = 0; v < kVectors; ++v)
                Isa::store(y + r * args.y_stride + v * Isa::kLanes, sums[r][v]);
        }
    }
}

}  // namespace

}  // namespace rwkv_edge
