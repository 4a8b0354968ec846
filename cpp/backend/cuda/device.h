// SPDX-License-Identifier: Apache-2.0
// What device code is written in: under nvcc CUDA itself, elsewhere an emulator. Beyond CUDA's own
// words it is SHARED, DEVICE, and the functions below; nothing else in the tree asks for
// __CUDA_ARCH__.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>

#define SHARED(T, name, length) __shared__ T name[length]
#define SHARED_POINTER(T) T*
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

namespace rwkv_edge::cuda {

DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
// Halves as their bits.
DEVICE float half_value(uint16_t half) { return __half2float(__ushort_as_half(half)); }
DEVICE uint16_t half_of(float value) { return __half_as_ushort(__float2half_rn(value)); }

template <class T>
DEVICE T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}
DEVICE uint32_t ballot(bool mine) { return __ballot_sync(0xffffffffu, mine); }
DEVICE int bits_set(uint32_t word) { return __popc(word); }

// The integers in both halves of `v` (each below 1024), less `zero`, as two halves: a half of 1024
// and more has a last place of one.
DEVICE uint32_t integers_to_halves(uint32_t v, int zero) {
    const uint32_t offset = 0x64006400u + static_cast<uint32_t>(zero) * 0x00010001u;
    uint32_t d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(v | 0x64006400u), "r"(offset));
    return d;
}

// D += A B: 16 x 16 times 16 x 8, halves in and floats out, from the lanes' fragments.
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // Turing has half of it at a time
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// What is read only once need not stay in the caches.
DEVICE uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// Asks for what will be read soon; nothing waits for it.
DEVICE void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" : : "l"(from)); }

// From sm_90 on a kernel may begin before the one ahead of it has ended. Every kernel calls this
// before it touches anything but weights, and lets the next one begin.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace rwkv_edge::cuda
#else
#include "backend/cuda/emulator.h"
#endif

namespace rwkv_edge::cuda {

// e^x, its relative error below 2^-23; the same bits on every device. Stops at e^-87 and e^88.
DEVICE float exp_of(float x) {
    if (x != x) return x;
    const float bounded = fminf(fmaxf(x, -87.0f), 88.0f);
    const float n = rintf(bounded * 1.44269504f);
    float r = fmaf(n, -0.693359375f, bounded);  // exact: a short head of ln 2, then its tail
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return p * bits_float(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23);
}

DEVICE float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// A polynomial where 1 - 2 / (e^2x + 1) would cancel.
DEVICE float tanh_of(float x) {
    const float size = fabsf(x);
    if (size < 0.625f) {
        const float s = x * x;
        float p = -5.70498872745e-3f;
        p = fmaf(p, s, 2.06390887954e-2f);
        p = fmaf(p, s, -5.37397155531e-2f);
        p = fmaf(p, s, 1.33314422036e-1f);
        p = fmaf(p, s, -3.33332819422e-1f);
        return fmaf(p * s, x, x);
    }
    const float t = 1.0f - 2.0f / (exp_of(2.0f * size) + 1.0f);
    return x < 0.0f ? -t : t;
}

}  // namespace rwkv_edge::cuda
