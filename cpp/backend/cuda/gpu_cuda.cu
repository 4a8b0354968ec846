// SPDX-License-Identifier: Apache-2.0
// The GPU through CUDA's runtime, which is linked statically and looks for the driver itself: the
// program starts without one.
#include <algorithm>

#include "backend/cuda/launch.h"
#include "base/error.h"

namespace rwkv_edge::cuda {

namespace {

// The oldest cards that the kernels are compiled for.
constexpr int kLeastMajor = 7, kLeastMinor = 5;
constexpr int64_t kStepTokens = 512;

}  // namespace

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
        throw std::runtime_error(cat("CUDA: ", what, ": ", cudaGetErrorString(error)));
}

std::string why_no_gpu() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0;
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
            return "there is no NVIDIA driver here";
        return cat("the NVIDIA driver here is for CUDA ", driver / 1000, ".", driver % 1000 / 10,
                   ", and this build needs one for CUDA ", CUDART_VERSION / 1000, ".0 or later");
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
        return "the NVIDIA driver finds no GPU here";
    return error == cudaSuccess ? "" : cat("CUDA does not start: ", cudaGetErrorString(error));
}

int gpu_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string gpu_name(int index) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "asking for a GPU's name");
    return properties.name;
}

struct Recording::Work {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    ~Work() {
        if (ready != nullptr) cudaGraphExecDestroy(ready);
        if (graph != nullptr) cudaGraphDestroy(graph);
    }
};
Recording::Recording(std::unique_ptr<Work> work) : work_(std::move(work)) {}
Recording::~Recording() = default;
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;

Gpu::Gpu(int index) : index_(index), process_(process_id()), device_(std::make_unique<Device>()) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "asking what a GPU can do");
    if (properties.major < kLeastMajor ||
        (properties.major == kLeastMajor && properties.minor < kLeastMinor))
        throw UnsupportedError(
            cat("GPU ", index, ", ", properties.name, ", has compute capability ", properties.major,
                ".", properties.minor, ", expected ", kLeastMajor, ".", kLeastMinor, " or later"));
    device_->overlaps = properties.major >= 9;
    check(cudaSetDevice(index), "choosing a GPU");
    check(cudaStreamCreateWithFlags(&device_->stream, cudaStreamNonBlocking), "a stream");
    for (cudaEvent_t& event : device_->events)
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
}

Gpu::~Gpu() {
    if (forked()) return;
    cudaSetDevice(index_);
    cudaStreamSynchronize(device_->stream);
    for (cudaEvent_t event : device_->events) cudaEventDestroy(event);
    cudaStreamDestroy(device_->stream);
}

// The device that a thread speaks to is its own affair.
Gpu::Device& Gpu::device() {
    check_process();
    check(cudaSetDevice(index_), "choosing a GPU");
    return *device_;
}

int64_t Gpu::free_bytes() {
    device();
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return static_cast<int64_t>(free);
}
int64_t Gpu::total_bytes() {
    device();
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return static_cast<int64_t>(total);
}
int64_t Gpu::processors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index_),
          "asking what a GPU can do");
    return count;
}
int64_t Gpu::step_tokens() const { return kStepTokens; }

void* Gpu::allocate(int64_t bytes) {
    device();
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // it would come back at the next launch
        return nullptr;
    }
    check(error, "allocating memory");
    return memory;
}
void* Gpu::allocate_pinned(int64_t bytes) {
    device();
    void* memory = nullptr;
    const cudaError_t error = cudaMallocHost(&memory, static_cast<std::size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        throw NoMemory(cat("no memory left of the host for ", bytes, " bytes that a GPU can read"));
    }
    check(error, "allocating memory of the host");
    return memory;
}
void Gpu::give_back(void* memory) noexcept {
    if (forked()) return;
    cudaSetDevice(index_);
    cudaFree(memory);
}
void Gpu::give_back_pinned(void* memory) noexcept {
    if (forked()) return;
    cudaFreeHost(memory);
}

void Gpu::write(void* to, const void* pinned, int64_t bytes) {
    check(cudaMemcpyAsync(to, pinned, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice,
                          device().stream),
          "copying to the GPU");
}
void Gpu::read(void* pinned, const void* from, int64_t bytes) {
    check(cudaMemcpyAsync(pinned, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost,
                          device().stream),
          "copying from the GPU");
}
void Gpu::copy(void* to, const void* from, int64_t bytes) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                          device().stream),
          "copying on the GPU");
}
void Gpu::wait() { check(cudaStreamSynchronize(device().stream), "a kernel"); }

// The events take turns; an older mark is behind a newer one.
int64_t Gpu::mark() {
    Device& d = device();
    const int64_t mark = d.marks++;
    check(cudaEventRecord(d.events[mark % std::size(d.events)], d.stream), "an event");
    return mark;
}
void Gpu::wait_for(int64_t mark) {
    Device& d = device();
    check(cudaEventSynchronize(d.events[mark % std::size(d.events)]), "a kernel");
}

void Gpu::begin_recording() {
    check(cudaStreamBeginCapture(device().stream, cudaStreamCaptureModeThreadLocal),
          "beginning a recording");
}
Recording Gpu::end_recording() {
    auto work = std::make_unique<Recording::Work>();
    check(cudaStreamEndCapture(device().stream, &work->graph), "ending a recording");
    check(cudaGraphInstantiate(&work->ready, work->graph, 0), "making a graph");
    return Recording(std::move(work));
}
void Gpu::drop_recording() noexcept {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(device_->stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
}
void Gpu::replay(const Recording& recording) {
    check(cudaGraphLaunch(recording.work_->ready, device().stream), "a recording");
}

}  // namespace rwkv_edge::cuda
