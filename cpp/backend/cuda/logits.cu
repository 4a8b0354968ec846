// SPDX-License-Identifier: Apache-2.0
// Kernels that shorten the vocabulary to candidates. A warp has a block of 64 logits: lane l
// numbers l and l + 32. Each block of threads picks its row from the arguments, which
// __grid_constant__ lets it do without a copy of them.
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/sums.h"

namespace rwkv_edge::cuda {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
static_assert(kLogitBlock == 64);

DEVICE float minus_infinity() { return bits_float(0xff800000u); }

// Lanes below this one.
DEVICE uint32_t lanes_before() { return (1u << threadIdx.x % 32) - 1; }

// Logit i of a row, after its changes.
DEVICE float changed(const SurveyRow& row, int i) {
    float v = row.logits[i];
    int low = 0, high = row.change_count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (row.changes[middle].token < i)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < row.change_count && row.changes[low].token == i; ++low) {
        const float add = row.changes[low].add;
        v = add == minus_infinity() ? add : v + add;
    }
    if (row.allowed != nullptr && (row.allowed[i / 8] >> i % 8 & 1) == 0) v = minus_infinity();
    return v;
}

__global__ void __launch_bounds__(kThreads) survey_kernel(const __grid_constant__ SurveyArgs p) {
    wait_for_previous();
    const int lane = static_cast<int>(threadIdx.x % 32), blocks = (p.n + 63) / 64;
    const int block = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
    if (block >= blocks) return;
    const SurveyRow& row = p.rows[blockIdx.y];
    const int i = 64 * block + lane;
    const float low = i < p.n ? changed(row, i) : minus_infinity();
    const float high = i + 32 < p.n ? changed(row, i + 32) : minus_infinity();
    float* values = p.values + (static_cast<int64_t>(blockIdx.y) * blocks + block) * 64;
    values[lane] = low;
    values[lane + 32] = high;
    float best = low > high ? low : high;
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = shuffle_xor(best, lanes);
        best = best > other ? best : other;
    }
    const uint32_t nan = ballot(low != low || high != high);
    const uint32_t has_low = ballot(low == best), has_high = ballot(high == best);
    float* bests = p.best + blockIdx.y * p.stride;
    auto* firsts = reinterpret_cast<int32_t*>(bests + blocks);
    if (lane == 0) bests[block] = nan == 0 ? best : bits_float(0x7fc00000u);
    const uint32_t has = has_low != 0 ? has_low : has_high;
    if ((has >> lane & 1) != 0 && (has & lanes_before()) == 0)
        firsts[block] = has_low != 0 ? i : i + 32;
}

// The sum of what 64 threads have, in the order that the sampler's `folded` has.
DEVICE float folded(float mine, SHARED_POINTER(float) lanes) {
    lanes[threadIdx.x] = mine;
    __syncthreads();
    const unsigned j = threadIdx.x % 16;
    float sum = (lanes[j] + lanes[j + 16]) + (lanes[j + 32] + lanes[j + 48]);
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
    __syncthreads();
    return sum;
}

__global__ void __launch_bounds__(kLogitBlock) weigh_kernel(const __grid_constant__ SurveyArgs p) {
    SHARED(float, lanes, kLogitBlock);
    wait_for_previous();
    const int thread = static_cast<int>(threadIdx.x), blocks = (p.n + 63) / 64;
    const int groups = static_cast<int>(gridDim.x);
    float* bests = p.best + blockIdx.y * p.stride;
    float top = minus_infinity();
    for (int block = thread; block < blocks; block += kLogitBlock)
        top = top > bests[block] ? top : bests[block];
    lanes[thread] = top;
    __syncthreads();
    for (int i = 0; i < kLogitBlock; ++i) {
        const float other = lanes[i];
        top = top > other ? top : other;
    }
    __syncthreads();

    const float* values = p.values + static_cast<int64_t>(blockIdx.y) * blocks * 64;
    const int begin = static_cast<int>(blockIdx.x) * kSumBlocks;
    float sum = 0.0f, products = 0.0f;
    for (int block = begin; block < begin + kSumBlocks && block < blocks; ++block) {
        const float power = exponent_of(values[64 * block + thread], top, 1.0f);
        const float weight = logit_weight(power);
        sum += weight;
        products += weight * power;
    }
    sum = folded(sum, lanes);
    products = folded(products, lanes);
    if (thread != 0) return;
    float* sums = bests + 2 * static_cast<int64_t>(blocks);
    sums[blockIdx.x] = sum;
    sums[groups + static_cast<int>(blockIdx.x)] = products;
}

__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ GatherArgs p) {
    wait_for_previous();
    const int lane = static_cast<int>(threadIdx.x % 32), blocks = (p.n + 63) / 64;
    const int block = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
    if (block >= blocks) return;
    const float least = p.least[blockIdx.y];
    const float* values = p.values + (static_cast<int64_t>(blockIdx.y) * blocks + block) * 64;
    const int count =
        bits_set(ballot(values[lane] >= least)) + bits_set(ballot(values[lane + 32] >= least));
    if (lane == 0) p.counts[blockIdx.y * p.stride + block] = count;
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherArgs p) {
    wait_for_previous();
    const int lane = static_cast<int>(threadIdx.x % 32), blocks = (p.n + 63) / 64;
    const int block = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
    int32_t* counts = p.counts + blockIdx.y * p.stride;
    if (block >= blocks || counts[block] == 0) return;
    int at = 0;
    for (int other = lane; other < block; other += 32) at += counts[other];
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) at += shuffle_xor(at, lanes);

    const float least = p.least[blockIdx.y];
    const float* values = p.values + (static_cast<int64_t>(blockIdx.y) * blocks + block) * 64;
    auto* logits = reinterpret_cast<float*>(counts + blocks);
    int32_t* tokens = counts + blocks + kMostFound;
#pragma unroll
    for (int half = 0; half < 64; half += 32) {
        const float value = values[lane + half];
        const uint32_t found = ballot(value >= least);
        const int place = at + bits_set(found & lanes_before());
        if (value >= least && place < kMostFound) {
            logits[place] = value;
            tokens[place] = 64 * block + lane + half;
        }
        at += bits_set(found);
    }
}

int64_t warps_of(int64_t blocks) { return (blocks + kWarps - 1) / kWarps; }

}  // namespace

void survey(Gpu& gpu, const SurveyArgs& p) {
    launch(gpu, survey_kernel, {warps_of(blocks_of_logits(p.n)), p.row_count}, kThreads, p);
    launch(gpu, weigh_kernel, {groups_of_logits(p.n), p.row_count}, kLogitBlock, p);
}

void gather(Gpu& gpu, const GatherArgs& p) {
    const Grid grid{warps_of(blocks_of_logits(p.n)), p.row_count};
    launch(gpu, count_kernel, grid, kThreads, p);
    launch(gpu, gather_kernel, grid, kThreads, p);
}

}  // namespace rwkv_edge::cuda
