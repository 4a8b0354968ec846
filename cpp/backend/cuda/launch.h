// SPDX-License-Identifier: Apache-2.0
// Launching kernels, for the files that hold them. A kernel takes one structure, by value.
#pragma once

#include "backend/cuda/device.h"
#include "backend/cuda/gpu.h"

#ifndef __CUDACC__
#include <functional>
#include <vector>
#endif

namespace rwkv_edge::cuda {

struct Grid {
    int64_t x = 1, y = 1, z = 1;
};

#ifdef __CUDACC__

struct Gpu::Device {
    cudaStream_t stream = nullptr;
    bool overlaps = false;  // a kernel may begin before the one ahead of it has ended
    cudaEvent_t events[8] = {};
    int64_t marks = 0;
};

void check(cudaError_t error, const char* what);

template <class Args>
void launch(Gpu& gpu, void (*kernel)(Args), const Grid& grid, int threads, const Args& args) {
    Gpu::Device& device = gpu.device();
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                      static_cast<unsigned>(grid.z)};
    config.blockDim = {static_cast<unsigned>(threads), 1, 1};
    config.stream = device.stream;
    config.attrs = &overlap;
    config.numAttrs = device.overlaps ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, args), "a launch");
}

#else

struct Recording::Work {
    std::vector<std::function<void()> > steps;
};

struct Gpu::Device {
    int64_t limit = 0, used = 0;
    std::unique_ptr<Recording::Work> recording;

    template <class Work>
    void run(const Work& work) {
        if (recording != nullptr)
            recording->steps.emplace_back(work);
        else
            work();
    }
};

template <class Args>
void launch(Gpu& gpu, void (*kernel)(Args), const Grid& grid, int threads, const Args& args) {
    gpu.device().run([=] {
        const auto body = [&] { kernel(args); };
        emulator::launch({static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                          static_cast<unsigned>(grid.z)},
                         static_cast<unsigned>(threads), std::cref(body));
    });
}

#endif

}  // namespace rwkv_edge::cuda
