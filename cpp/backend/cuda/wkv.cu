// SPDX-License-Identifier: Apache-2.0
// The recurrences with what stands around them. A block takes one head of one sequence through all
// its tokens. Heads of 64 keep their state in registers; those of other sizes leave it in memory.
// kernels/kernels.h has the equations.
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/sums.h"

namespace rwkv_edge::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kUsualHead = 64, kLargestHead = 1024;

__global__ void __launch_bounds__(kThreads) wkv4_kernel(Wkv4Args p) {
    wait_for_previous();
    const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
    if (c >= p.n) return;
    const DeviceRun run = p.runs[blockIdx.y];
    float* state = run.state + p.offset + c;
    const int64_t n = p.n;
    float a = state[0], b = state[n], e = state[2 * n];
    const float w = p.w[c], u = p.u[c];
    const int64_t begin = run.begin * n + c;
    for (int64_t at = begin; at < begin + run.tokens * n; at += n) {
        const float k = p.k[at], v = p.v[at];
        float q = fmaxf(e, u + k), past = exp_of(e - q), now = exp_of(u + k - q);
        p.y[at] = p.r[at] * (fmaf(past, a, now * v) / fmaf(past, b, now));
        q = fmaxf(e + w, k);
        past = exp_of(e - q + w);  // what rounding takes from q stays in a and b
        now = exp_of(k - q);
        a = fmaf(past, a, now * v);
        b = fmaf(past, b, now);
        e = q;
    }
    state[0] = a;
    state[n] = b;
    state[2 * n] = e;
}

// The norm of a head, by one warp: size values in shared memory.
DEVICE Statistics head_statistics(SHARED_POINTER(float) y, int size, float eps, int lane) {
    float sum = 0.0f, square = 0.0f;
    for (int j = lane; j < size; j += 32) sum += y[j];
    const float mean = warp_sum(sum) / static_cast<float>(size);
    for (int j = lane; j < size; j += 32) {
        const float off = y[j] - mean;
        square = fmaf(off, off, square);
    }
    return {mean, 1.0f / sqrtf(warp_sum(square) / static_cast<float>(size) + eps)};
}

// S is [key, value]. A thread has a quarter of the keys of a value: lanes j, j + 8, j + 16, j + 24
// share value j of the warp's eight.
template <int kSize>
__global__ void __launch_bounds__(kThreads, 1) wkv6_kernel(Wkv6Args p) {
    constexpr int kMost = kSize > 0 ? kSize : kLargestHead;
    constexpr int kKeys = kSize > 0 ? kSize / 4 : 1;
    SHARED(float, s_r, kMost);
    SHARED(float, s_w, kMost);
    SHARED(float, s_k, kMost);
    SHARED(float, s_y, kMost);
    SHARED(float, s_bonus, 1);
    wait_for_previous();
    const int size = kSize > 0 ? kSize : p.size, keys = size / 4;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int part = lane / 8, first_value = warp * 8 + lane % 8;
    const DeviceRun run = p.runs[blockIdx.y];
    const int head = static_cast<int>(blockIdx.x) * size;
    const int64_t n = static_cast<int64_t>(p.heads) * size;
    float* state = run.state + p.offset + static_cast<int64_t>(head) * size;
    float* own = state + static_cast<int64_t>(part) * keys * size;
    [[maybe_unused]] float s[kKeys];
    if constexpr (kSize > 0) {
#pragma unroll
        for (int i = 0; i < kKeys; ++i) s[i] = own[i * kSize + first_value];
    }
    for (int64_t t = run.begin; t < run.begin + run.tokens; ++t) {
        const int64_t at = t * n + head;
        const float* w = p.w + (p.w_per_token ? at : head);
        for (int j = thread; j < size; j += kThreads) {
            s_r[j] = p.r[at + j];
            s_w[j] = w[j];
            s_k[j] = p.k[at + j];
        }
        if (warp == 0) {
            float bonus = 0.0f;
            for (int j = lane; j < size; j += 32)
                bonus = fmaf(p.r[at + j] * p.k[at + j], p.u[head + j], bonus);
            bonus = warp_sum(bonus);
            if (lane == 0) s_bonus[0] = bonus;
        }
        __syncthreads();
        for (int j = first_value; j < size; j += 8 * kWarps) {  // a warp's eight are all in or out
            const float v = p.v[at + j];
            float y = 0.0f;
            if constexpr (kSize > 0) {
#pragma unroll
                for (int i = 0; i < kKeys; ++i) {
                    const int key = part * kKeys + i;
                    y = fmaf(s_r[key], s[i], y);
                    s[i] = fmaf(s_w[key], s[i], s_k[key] * v);
                }
            } else {
#pragma unroll 2
                for (int i = 0; i < keys; ++i) {
                    const int key = part * keys + i;
                    float* cell = own + static_cast<int64_t>(i) * size + j;
                    y = fmaf(s_r[key], *cell, y);
                    *cell = fmaf(s_w[key], *cell, s_k[key] * v);
                }
            }
            y += shuffle_xor(y, 8);
            y += shuffle_xor(y, 16);
            if (part == 0) s_y[j] = fmaf(s_bonus[0], v, y);
        }
        __syncthreads();
        if (warp == 0) {
            const Statistics norm = head_statistics(s_y, size, p.eps, lane);
            for (int j = lane; j < size; j += 32) {
                float y = normed(s_y[j], norm, p.norm.weight[head + j], p.norm.bias[head + j]);
                if (p.g != nullptr) y *= p.g[at + j];
                p.y[at + j] = y;
            }
        }
        __syncthreads();
    }
    if constexpr (kSize > 0) {
#pragma unroll
        for (int i = 0; i < kKeys; ++i) own[i * kSize + first_value] = s[i];
    }
}

// S is [value, key]. Eight lanes share a row: a thread has an eighth of its keys, and every 32nd
// row.
template <int kSize>
__global__ void __launch_bounds__(kThreads, 1) wkv7_kernel(Wkv7Args p) {
    constexpr int kMost = kSize > 0 ? kSize : kLargestHead;
    constexpr int kRows = kSize > 0 ? kSize / 32 : 1, kKeys = kSize > 0 ? kSize / 8 : 1;
    SHARED(float, s_r, kMost);
    SHARED(float, s_w, kMost);
    SHARED(float, s_k, kMost);
    SHARED(float, s_v, kMost);
    SHARED(float, s_kk, kMost);   // of length one
    SHARED(float, s_kka, kMost);  // times a
    SHARED(float, s_y, kMost);
    SHARED(float, s_bonus, 1);
    wait_for_previous();
    const int size = kSize > 0 ? kSize : p.size, keys = size / 8;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int part = lane % 8, first_row = thread / 8;
    const DeviceRun run = p.runs[blockIdx.y];
    const int head = static_cast<int>(blockIdx.x) * size;
    const int64_t n = static_cast<int64_t>(p.heads) * size;
    float* state = run.state + p.offset + static_cast<int64_t>(head) * size;
    [[maybe_unused]] float s[kRows][kKeys];
    if constexpr (kSize > 0) {
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int j = 0; j < kKeys; ++j)
                s[i][j] = state[(first_row + 32 * i) * kSize + part * kKeys + j];
    }
    for (int64_t t = run.begin; t < run.begin + run.tokens; ++t) {
        const int64_t at = t * n + head;
        for (int j = thread; j < size; j += kThreads) {
            s_r[j] = p.r[at + j];
            s_w[j] = p.w[at + j];
            const float v = p.v[at + j];
            s_v[j] = p.first_v == nullptr ? v : lerp_of(v, p.first_v[at + j], p.v_mix[at + j]);
        }
        if (warp == 1) {
            float square = 0.0f, bonus = 0.0f;
            for (int j = lane; j < size; j += 32) {
                const float k = p.k[at + j], kk = k * p.k_k[head + j];
                square = fmaf(kk, kk, square);
                const float changed = lerp_of(k, k * p.a[at + j], p.k_a[head + j]);
                bonus = fmaf(p.r[at + j] * changed, p.r_k[head + j], bonus);
                s_k[j] = changed;
            }
            square = warp_sum(square);
            bonus = warp_sum(bonus);
            const float scale = 1.0f / fmaxf(sqrtf(square), 1e-12f);
            for (int j = lane; j < size; j += 32) {
                const float kk = p.k[at + j] * p.k_k[head + j] * scale;
                s_kk[j] = kk;
                s_kka[j] = kk * p.a[at + j];
            }
            if (lane == 0) s_bonus[0] = bonus;
        }
        __syncthreads();
        if constexpr (kSize > 0) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                const int row = first_row + 32 * i;
                float removed = 0.0f, y = 0.0f;
#pragma unroll
                for (int j = 0; j < kKeys; ++j)
                    removed = fmaf(s[i][j], s_kk[part * kKeys + j], removed);
                removed += shuffle_xor(removed, 1);
                removed += shuffle_xor(removed, 2);
                removed += shuffle_xor(removed, 4);
                const float v = s_v[row];
#pragma unroll
                for (int j = 0; j < kKeys; ++j) {
                    const int key = part * kKeys + j;
                    s[i][j] = fmaf(s[i][j], s_w[key], fmaf(-removed, s_kka[key], v * s_k[key]));
                    y = fmaf(s[i][j], s_r[key], y);
                }
                y += shuffle_xor(y, 1);
                y += shuffle_xor(y, 2);
                y += shuffle_xor(y, 4);
                if (part == 0) s_y[row] = y;
            }
        } else {
            for (int row = first_row; row < size; row += 32) {  // a warp's four are all in or out
                float* cells = state + static_cast<int64_t>(row) * size + part * keys;
                float removed = 0.0f, y = 0.0f;
                for (int j = 0; j < keys; ++j)
                    removed = fmaf(cells[j], s_kk[part * keys + j], removed);
                removed += shuffle_xor(removed, 1);
                removed += shuffle_xor(removed, 2);
                removed += shuffle_xor(removed, 4);
                const float v = s_v[row];
                for (int j = 0; j < keys; ++j) {
                    const int key = part * keys + j;
                    cells[j] = fmaf(cells[j], s_w[key], fmaf(-removed, s_kka[key], v * s_k[key]));
                    y = fmaf(cells[j], s_r[key], y);
                }
                y += shuffle_xor(y, 1);
                y += shuffle_xor(y, 2);
                y += shuffle_xor(y, 4);
                if (part == 0) s_y[row] = y;
            }
        }
        __syncthreads();
        if (warp == 0) {
            const Statistics norm = head_statistics(s_y, size, p.eps, lane);
            const float bonus = s_bonus[0];
            for (int j = lane; j < size; j += 32) {
                const float y =
                    normed(s_y[j], norm, p.norm.weight[head + j], p.norm.bias[head + j]);
                p.y[at + j] = fmaf(bonus, s_v[j], y) * p.g[at + j];
            }
        }
        __syncthreads();
    }
    if constexpr (kSize > 0) {
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int j = 0; j < kKeys; ++j)
                state[(first_row + 32 * i) * kSize + part * kKeys + j] = s[i][j];
    }
}

}  // namespace

void wkv4(Gpu& gpu, const Wkv4Args& p) {
    launch(gpu, wkv4_kernel, {(p.n + kThreads - 1) / kThreads, p.run_count}, kThreads, p);
}

void wkv6(Gpu& gpu, const Wkv6Args& p) {
    launch(gpu, p.size == kUsualHead ? wkv6_kernel<kUsualHead> : wkv6_kernel<0>,
           {p.heads, p.run_count}, kThreads, p);
}

void wkv7(Gpu& gpu, const Wkv7Args& p) {
    launch(gpu, p.size == kUsualHead ? wkv7_kernel<kUsualHead> : wkv7_kernel<0>,
           {p.heads, p.run_count}, kThreads, p);
}

}  // namespace rwkv_edge::cuda
