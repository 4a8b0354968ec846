// SPDX-License-Identifier: Apache-2.0
// What a logit weighs when a token is chosen. Products and sums are not fused, so the CPU's levels
// and the GPU give the same bits. C subset without the standard library: kernel files include this.
#pragma once

#include <stdint.h>

namespace rwkv_edge {

// Where e^x is as good as nothing, and still a normal number.
constexpr float kLeastExponent = -87.0f;
// What e is raised to.
static constexpr float exponent_of(float logit, float top, float factor) {
    const float x = (logit - top) * factor;
    return x > kLeastExponent ? x : kLeastExponent;
}

// e^x for kLeastExponent <= x <= 0, to 2^-23 of itself: 2^n e^r with |r| <= ln 2 / 2 and the
// polynomial of Cephes' expf.
constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number
static constexpr float logit_weight(float x) {
    const float shifted = x * kLog2e + kRound;
    const float n = shifted - kRound;
    const float r = (x - n * kLn2High) - n * kLn2Low;
    float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = (p * r + 8.3334519073e-3f) * r + 4.1665795894e-2f;
    p = (p * r + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    p = (p * r + 1.0f) * r + 1.0f;
    const uint32_t scale = (__builtin_bit_cast(uint32_t, shifted) << 23) + 0x3f800000;
    return p * __builtin_bit_cast(float, scale);
}

}  // namespace rwkv_edge
