// SPDX-License-Identifier: Apache-2.0
// AArch64 as every such CPU has it (ARMv8.0).
#include <arm_neon.h>
#include <float.h>

#include "kernels/arm/neon_blocks.inl"
#include "kernels/arm/neon_inputs.inl"
#include "kernels/arm/neon_peak.inl"
#include "kernels/arm/neon_rounded.inl"
#include "kernels/generic/block_matmul.inl"
#include "kernels/generic/float_kernels.inl"
#include "kernels/generic/float_matmul.inl"
#include "kernels/generic/input_matmul.inl"
#include "kernels/generic/outer_products.inl"
#include "kernels/levels.h"

namespace rwkv_edge {

namespace {

int64_t rounded_bytes(int64_t cols) {
    return (cols / kBlock * (int64_t)sizeof(RoundedBlock) + 63) / 64 * 64;
}

void round_activations(const float* x, int64_t cols, void* to) {
    auto* block = (RoundedBlock*)to;
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    for (int64_t b = 0; b < cols / kBlock; ++b, x += kBlock, ++block) {
        float32x4_t v[8];
        uint32x4_t peak4 = vdupq_n_u32(0);  // compared as integers, see scalar.cpp
        for (int i = 0; i < 8; ++i) {
            v[i] = vld1q_f32(x + 4 * i);
            peak4 = vmaxq_u32(peak4, vandq_u32(vreinterpretq_u32_f32(v[i]), magnitude));
        }
        const float peak = bits_to_float(vmaxvq_u32(peak4));
        const bool usable = peak > 1e-30f && peak <= FLT_MAX;
        const float inverse = usable ? 127.0f / peak : 0.0f;
        // where the inverse is 0, so is the code, also of a NaN
        const int32x4_t mask = vdupq_n_s32(usable ? -1 : 0);
        const auto code = [&](int k) {
            return vandq_s32(vcvtnq_s32_f32(vmulq_n_f32(v[k], inverse)), mask);
        };
        int16x8_t n16[4];
        for (int i = 0; i < 4; ++i) {
            n16[i] = vmovn_high_s32(vmovn_s32(code(2 * i)), code(2 * i + 1));
            vst1_s8(block->q + 8 * i, vmovn_s16(n16[i]));
        }
        const int16x8_t first = vaddq_s16(n16[0], n16[1]);
        block->first_sum = vaddlvq_s16(first);
        block->sum = vaddlvq_s16(vaddq_s16(first, vaddq_s16(n16[2], n16[3])));
        block->scale = peak / 127.0f;
        block->scaled_sum = block->scale * (float)block->sum;
    }
}

int64_t float_peak(int64_t rounds) {
    const float32x4_t w = vdupq_n_f32(0.5f), x = vdupq_n_f32(0.25f);
    float32x4_t sums[kPeakSums] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL_PEAK
        for (int s = 0; s < kPeakSums; ++s)
            asm volatile("fmla %0.4s, %1.4s, %2.4s" : "+w"(sums[s]) : "w"(w), "w"(x));
    }
    return rounds * kPeakSums * 4 * 2;
}

}  // namespace

void neon_kernels(Kernels& table) {
    float_kernels(table);
    float_products(table);
    block_products<NeonKernel>(table);
    products_by_input<Widen>(table);
    table.rounded_bytes = rounded_bytes;
    table.round_activations = round_activations;
    table.outer_products = outer_products<UsualVectors, 4, 2>;
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
