// SPDX-License-Identifier: Apache-2.0
// What a GPU gives at most: bytes read from its memory, and products of halves.
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"

namespace rwkv_edge::cuda {

namespace {

constexpr int kThreads = 256, kSums = 8;

__global__ void __launch_bounds__(kThreads) read_kernel(ReadArgs p) {
    wait_for_previous();
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    uint32_t mixed = 0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count;
         i += step) {
        const uint4 v = load_once(static_cast<const uint4*>(p.from) + i);
        mixed ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (mixed == p.unlikely) p.to[0] = 1.0f;  // so that the loads are needed
}

__global__ void __launch_bounds__(kThreads) multiply_kernel(MultiplyArgs p) {
    wait_for_previous();
    float sums[kSums][4] = {};
    const uint32_t a[4] = {threadIdx.x, 0, 0, 0};
    for (int i = 0; i < p.rounds; ++i)
#pragma unroll
        for (int s = 0; s < kSums; ++s) mma(sums[s], a, 0, 0);
    float total = 0.0f;
#pragma unroll
    for (int s = 0; s < kSums; ++s) total += sums[s][0];
    if (total != 0.0f) p.to[0] = total;
}

}  // namespace

void read_memory(Gpu& gpu, const ReadArgs& p, int64_t blocks) {
    launch(gpu, read_kernel, {blocks}, kThreads, p);
}

int64_t multiply(Gpu& gpu, const MultiplyArgs& p, int64_t blocks) {
    launch(gpu, multiply_kernel, {blocks}, kThreads, p);
    return blocks * (kThreads / 32) * p.rounds * kSums * (2 * 16 * 8 * 16);
}

}  // namespace rwkv_edge::cuda
