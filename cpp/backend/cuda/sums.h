// SPDX-License-Identifier: Apache-2.0
// Device code: sums over a block of threads, the norms made of them, and what follows a product.
#pragma once

#include "backend/cuda/device.h"
#include "backend/cuda/kernels.h"

namespace rwkv_edge::cuda {

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) v += shuffle_xor(v, lanes);
    return v;
}

// Of all threads of a block of kWarps warps; every one gets it. `partial` is [kWarps].
template <int kWarps>
DEVICE float block_sum(float v, SHARED_POINTER(float) partial) {
    v = warp_sum(v);
    __syncthreads();  // `partial` may still be read from the last time
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial[w];
    return total;
}

struct Statistics {
    float mean, scale;
};
// Of a row of n floats, by a block of kWarps warps.
template <int kWarps>
DEVICE Statistics statistics_of(const float* x, int n, float eps, SHARED_POINTER(float) partial) {
    float sum = 0.0f, square = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += 32 * kWarps) sum += x[i];
    const float mean = block_sum<kWarps>(sum, partial) / static_cast<float>(n);
    for (int i = static_cast<int>(threadIdx.x); i < n; i += 32 * kWarps)
        square = fmaf(x[i] - mean, x[i] - mean, square);
    square = block_sum<kWarps>(square, partial) / static_cast<float>(n);
    return {mean, 1.0f / sqrtf(square + eps)};
}

DEVICE float normed(float x, const Statistics& s, float weight, float bias) {
    return fmaf((x - s.mean) * s.scale, weight, bias);
}

DEVICE float lerp_of(float x, float to, float mix) { return fmaf(to - x, mix, x); }

DEVICE float activated(Activate function, float x) {
    switch (function) {
        case Activate::None: return x;
        case Activate::Tanh: return tanh_of(x);
        case Activate::Sigmoid: return sigmoid_of(x);
        case Activate::Silu: return x * sigmoid_of(x);
        case Activate::Relu2: return x > 0.0f ? x * x : 0.0f;
        case Activate::Decay6: return exp_of(-exp_of(x));
        case Activate::Decay7: return exp_of(-0.60653065971263342f * sigmoid_of(x));
    }
    return x;
}

// What follows a product: output `row` of `rows`, at `at` in [tokens, rows].
DEVICE void finish(const Finish& p, float v, int row, int64_t at) {
    if (p.scale != 1.0f) v *= p.scale;
    if (p.bias != nullptr) v += p.bias[row];
    v = activated(p.activate, v);
    if (p.gate != nullptr) v *= p.gate[at];
    p.y[at] = v;
    if (p.residual != nullptr) p.residual[at] += v;
}

}  // namespace rwkv_edge::cuda
