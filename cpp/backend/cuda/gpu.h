// SPDX-License-Identifier: Apache-2.0
// One GPU, or its emulation, as the backend sees it: memory, copies, launches, recordings. All work
// is done in the order in which it is asked for. gpu_cuda.cu speaks to CUDA, gpu_host.cpp runs
// everything on the CPU at once.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "base/system.h"

namespace rwkv_edge::cuda {

// Why this build finds no GPU here, in a sentence; empty where it finds one.
std::string why_no_gpu();
int gpu_count();
std::string gpu_name(int index);  // "NVIDIA H100 80GB HBM3"

class Gpu;

// Work that was recorded, to be done again.
class Recording {
public:
    struct Work;
    explicit Recording(std::unique_ptr<Work> work);
    ~Recording();
    Recording(Recording&&) noexcept;
    Recording& operator=(Recording&&) noexcept;

private:
    friend Gpu;
    std::unique_ptr<Work> work_;
};

// Errors of the device are std::runtime_error. After a fork all functions but `give_back` throw:
// CUDA does not survive it.
class Gpu {
public:
    explicit Gpu(int index);
    ~Gpu();
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;

    std::string name() const { return gpu_name(index_); }
    int index() const { return index_; }
    int64_t free_bytes();
    int64_t total_bytes();
    int64_t processors() const;  // that run blocks side by side
    // How many tokens go through the layers together at most.
    int64_t step_tokens() const;

    // At a multiple of 256; null where there is not so much.
    void* allocate(int64_t bytes);
    // The host's, from which and to which copies go in the background.
    void* allocate_pinned(int64_t bytes);
    void give_back(void* memory) noexcept;
    void give_back_pinned(void* memory) noexcept;

    void write(void* to, const void* pinned, int64_t bytes);  // in the background
    void read(void* pinned, const void* from, int64_t bytes);
    void copy(void* to, const void* from, int64_t bytes);
    void wait();  // until everything is done
    // A moment after all that was asked for so far; and waiting for it.
    int64_t mark();
    void wait_for(int64_t mark);

    // Until `end_recording` work is noted and not done. Nothing may be allocated meanwhile.
    void begin_recording();
    Recording end_recording();
    void drop_recording() noexcept;
    void replay(const Recording& recording);

    struct Device;  // of launch.h
    Device& device();

    bool forked() const { return process_ != process_id(); }
    void check_process() const;

private:
    int index_, process_;
    std::unique_ptr<Device> device_;
};

inline void Gpu::check_process() const {
    if (forked())
        throw std::runtime_error(
            "this process was forked from one that had a model on a GPU, and CUDA does not work "
            "after that: start processes with \"spawn\", or open the model after the fork");
}

}  // namespace rwkv_edge::cuda
