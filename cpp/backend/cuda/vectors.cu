// SPDX-License-Identifier: Apache-2.0
// Kernels that make no large products: look-ups, norms, the token shift.
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/sums.h"
#include "backend/cuda/weights.h"

namespace rwkv_edge::cuda {

namespace {

constexpr int kThreads = 256;
// Rows of norms up to so long are summed by fewer warps: what their width is decides, so that bits
// depend on nothing else.
constexpr int kShortRow = 256, kWarps = 8, kShortWarps = 2;

int64_t blocks_of(int64_t n, int64_t in_each) { return (n + in_each - 1) / in_each; }

__global__ void __launch_bounds__(kThreads) embed_kernel(Embed p) {
    wait_for_previous();
    const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
    if (c >= p.cols) return;
    const int64_t t = blockIdx.y;
    const void* row = static_cast<const char*>(p.table) + p.ids[t] * p.row_bytes;
    with_type(p.type, row,
              [&](const auto* weights) { p.y[t * p.cols + c] = value_of(weight_of(weights, c)); });
}

// Every block makes the sums of the whole row and writes its share of it, so that no kernel waits
// for one block.
template <int kWarps>
__global__ void __launch_bounds__(32 * kWarps) norm_kernel(NormArgs p) {
    SHARED(float, partial, kWarps);
    wait_for_previous();
    const float* x = p.x + static_cast<int64_t>(blockIdx.y) * p.n;
    const Statistics s = statistics_of<kWarps>(x, p.n, p.eps, partial);
    const int c = static_cast<int>(blockIdx.x * 32 * kWarps + threadIdx.x);
    if (c < p.n)
        p.y[static_cast<int64_t>(blockIdx.y) * p.n + c] =
            normed(x[c], s, p.norm.weight[c], p.norm.bias[c]);
}

template <int kWarps>
__global__ void __launch_bounds__(32 * kWarps) shift_kernel(ShiftArgs p) {
    SHARED(float, partial, kWarps);
    wait_for_previous();
    const int64_t t = blockIdx.y;
    const float* x = p.x + t * p.n;
    const DeviceRun run = p.runs[p.run_of[t]];
    const bool first = t == run.begin;
    const Statistics s = statistics_of<kWarps>(x, p.n, p.eps, partial);
    Statistics before{};
    if (!first) before = statistics_of<kWarps>(x - p.n, p.n, p.eps, partial);
    const int c = static_cast<int>(blockIdx.x * 32 * kWarps + threadIdx.x);
    if (c >= p.n) return;
    const float weight = p.norm.weight[c], bias = p.norm.bias[c];
    const float y = normed(x[c], s, weight, bias);
    float* last = run.state + p.offset + c;
    p.y[t * p.n + c] = y;
    p.previous[t * p.n + c] = first ? *last : normed(x[c - p.n], before, weight, bias);
    if (run.tokens == 1) *last = y;
}

// Of runs of more than one token the last y: other blocks read the state in shift_kernel.
__global__ void __launch_bounds__(kThreads) shift_last_kernel(ShiftArgs p) {
    wait_for_previous();
    const DeviceRun run = p.runs[blockIdx.y];
    const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
    if (c >= p.n || run.tokens == 1) return;
    run.state[p.offset + c] = p.y[static_cast<int64_t>(run.begin + run.tokens - 1) * p.n + c];
}

__global__ void __launch_bounds__(kThreads) keep_kernel(KeepArgs p) {
    wait_for_previous();
    const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
    if (c < p.n)
        p.runs[blockIdx.y].state[p.offset + c] =
            p.x[static_cast<int64_t>(p.rows[blockIdx.y]) * p.n + c];
}

__global__ void __launch_bounds__(kThreads) token_product_kernel(TokenProduct p) {
    wait_for_previous();
    const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
    if (c >= p.cols) return;
    const int64_t t = blockIdx.y;
    const float *x = p.x + t * p.rows, *m = p.m + t * p.rows * p.cols + c;
    float sum = 0.0f;
    for (int i = 0; i < p.rows; ++i) sum = fmaf(x[i], m[static_cast<int64_t>(i) * p.cols], sum);
    p.y[t * p.cols + c] = sum;
}

}  // namespace

void embed(Gpu& gpu, const Embed& p) {
    launch(gpu, embed_kernel, {blocks_of(p.cols, kThreads), p.tokens}, kThreads, p);
}

void norm(Gpu& gpu, const NormArgs& p) {
    const int threads = 32 * (p.n <= kShortRow ? kShortWarps : kWarps);
    launch(gpu, p.n <= kShortRow ? norm_kernel<kShortWarps> : norm_kernel<kWarps>,
           {blocks_of(p.n, threads), p.tokens}, threads, p);
}

void shift(Gpu& gpu, const ShiftArgs& p) {
    const int threads = 32 * (p.n <= kShortRow ? kShortWarps : kWarps);
    launch(gpu, p.n <= kShortRow ? shift_kernel<kShortWarps> : shift_kernel<kWarps>,
           {blocks_of(p.n, threads), p.tokens}, threads, p);
    if (p.tokens > p.run_count)
        launch(gpu, shift_last_kernel, {blocks_of(p.n, kThreads), p.run_count}, kThreads, p);
}

void keep(Gpu& gpu, const KeepArgs& p) {
    launch(gpu, keep_kernel, {blocks_of(p.n, kThreads), p.run_count}, kThreads, p);
}

void matmul_per_token(Gpu& gpu, const TokenProduct& p) {
    launch(gpu, token_product_kernel, {blocks_of(p.cols, kThreads), p.tokens}, kThreads, p);
}

}  // namespace rwkv_edge::cuda
