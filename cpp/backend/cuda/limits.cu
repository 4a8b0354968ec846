// SPDX-License-Identifier: Apache-2.0
// What a GPU gives at most: the walls that writing (memory) and reading (products) run into.
#include <algorithm>
#include <chrono>
#include <memory>

#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "base/error.h"

namespace rwkv_edge::cuda {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kThreads = 256, kBlocksEach = 8;  // of blocks, for each processor
constexpr int kLoads = 4;                       // on their way together, of a thread
constexpr int kSums = 8;                        // of products, independent of each other
constexpr int kPasses = 10;
constexpr int32_t kMostTimes = 1 << 20;
constexpr std::chrono::milliseconds kPass{10};  // at least, so that launches count for nothing
// Of the memory: far more than the caches hold.
constexpr int64_t kShareRead = 32;

struct Read {
    const uint4* from;
    int64_t count;
    uint32_t* to;  // of each thread, so that no load can be left out
};

__global__ void __launch_bounds__(kThreads) read_kernel(Read p) {
    wait_for_previous();
    const int64_t own = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    uint32_t sum = 0;
    for (int64_t i = own; i < p.count; i += kLoads * stride) {
        uint4 words[kLoads];
#pragma unroll
        for (int j = 0; j < kLoads; ++j)
            words[j] =
                i + j * stride < p.count ? load_once(p.from + i + j * stride) : uint4{0, 0, 0, 0};
#pragma unroll
        for (int j = 0; j < kLoads; ++j) sum ^= words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
    }
    p.to[own] = sum;
}

struct Multiply {
    int32_t rounds;
    float* to;  // of each thread
};

__global__ void __launch_bounds__(kThreads) multiply_kernel(Multiply p) {
    wait_for_previous();
    const uint32_t lane = threadIdx.x % 32;
    // halves between 1/2 and 1, all different: what is multiplied decides how fast a card may run
    const uint32_t a[4] = {0x38013987u + lane, 0x3a4f38d2u - lane, 0x392b3b0cu + lane,
                           0x3a2039f1u - lane};
    const uint32_t b0 = 0x3b21389au - lane, b1 = 0x38ee3a5du + lane;
    float sums[kSums][4] = {};
    for (int r = 0; r < p.rounds; ++r)
#pragma unroll
        for (int s = 0; s < kSums; ++s) mma(sums[s], a, b0, b1);
    float total = 0.0f;
#pragma unroll
    for (int s = 0; s < kSums; ++s) total += sums[s][0] + sums[s][1] + sums[s][2] + sums[s][3];
    p.to[static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x] = total;
}

// How often a second something is done, in the best of some passes; work(times) asks for it.
template <class Work>
double best_rate(Gpu& gpu, const Work& work) {
    const auto seconds_of = [&](int32_t times) {
        const auto start = Clock::now();
        work(times);
        gpu.wait();
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    int32_t times = 1;
    while (times < kMostTimes && seconds_of(times) < std::chrono::duration<double>(kPass).count())
        times *= 2;
    double best = 0.0;
    for (int i = 0; i < kPasses; ++i)
        best = std::max(best, static_cast<double>(times) / seconds_of(times));
    return best;
}

}  // namespace

DeviceLimits limits_of(Gpu& gpu) {
    const int64_t blocks = gpu.processors() * kBlocksEach, threads = blocks * kThreads;
    const int64_t count = std::min(gpu.total_bytes() / kShareRead, gpu.free_bytes() / 2) /
                          static_cast<int64_t>(sizeof(uint4));
    const auto give_back = [&](void* memory) { gpu.give_back(memory); };
    const auto allocate = [&](int64_t bytes) {
        std::unique_ptr<void, decltype(give_back)> memory(gpu.allocate(std::max<int64_t>(bytes, 1)),
                                                          give_back);
        if (memory == nullptr)
            throw NoMemory(cat("cuda:", gpu.index(), " ", gpu.name(), ": no memory left for the ",
                               bytes >> 20, " MiB that measuring its speed takes"));
        return memory;
    };
    const auto words = allocate(count * static_cast<int64_t>(sizeof(uint4)));
    const auto results = allocate(threads * static_cast<int64_t>(sizeof(float)));
    const Read read{static_cast<const uint4*>(words.get()), count,
                    static_cast<uint32_t*>(results.get())};
    const double reads = best_rate(gpu, [&](int32_t times) {
        for (; times > 0; --times) launch(gpu, read_kernel, {.x = blocks}, kThreads, read);
    });
    const double rounds = best_rate(gpu, [&](int32_t times) {
        const Multiply multiply{times, static_cast<float*>(results.get())};
        launch(gpu, multiply_kernel, {.x = blocks}, kThreads, multiply);
    });
    const double operations = 2.0 * 16 * 16 * 8 * kSums;  // of a warp in a round
    return {reads * static_cast<double>(count) * sizeof(uint4) / 1e9,
            rounds * operations * static_cast<double>(threads / 32) / 1e9};
}

}  // namespace rwkv_edge::cuda
