// SPDX-License-Identifier: Apache-2.0
// The emulated GPU. For tests the environment says what it is: RWKV_EDGE_EMULATED_GPUS how many
// there are (2; -1: no driver), RWKV_EDGE_EMULATED_MEMORY the bytes of each (1 GiB).
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

#include "backend/cuda/launch.h"
#include "base/error.h"
#include "base/system.h"

namespace rwkv_edge::cuda {

namespace {

int64_t setting(const char* name, int64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : std::atoll(text);
}

constexpr std::align_val_t kAlignment{256};
struct Release {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
};
using Block = std::unique_ptr<void, Release>;

// What was allocated.
std::mutex blocks_mutex;
std::map<void*, std::pair<Block, int64_t>>& blocks() {
    static std::map<void*, std::pair<Block, int64_t>> map;
    return map;
}

}  // namespace

std::string why_no_gpu() {
    const int64_t count = setting("RWKV_EDGE_EMULATED_GPUS", 2);
    if (count < 0) return "there is no NVIDIA driver here (CUDA driver version is insufficient)";
    return count == 0 ? "the NVIDIA driver finds no GPU here" : "";
}

int gpu_count() {
    const int64_t count = setting("RWKV_EDGE_EMULATED_GPUS", 2);
    return count < 0 ? 0 : static_cast<int>(count);
}

std::string gpu_name(int) { return "emulated GPU"; }

Recording::Recording(std::unique_ptr<Work> work) : work_(std::move(work)) {}
Recording::~Recording() = default;
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;

Gpu::Gpu(int index) : index_(index), process_(process_id()), device_(std::make_unique<Device>()) {
    device_->limit = setting("RWKV_EDGE_EMULATED_MEMORY", int64_t{1} << 30);
}
Gpu::~Gpu() = default;

Gpu::Device& Gpu::device() {
    check_process();
    return *device_;
}

int64_t Gpu::free_bytes() {
    const std::lock_guard lock(blocks_mutex);
    return device().limit - device_->used;
}
int64_t Gpu::total_bytes() { return device().limit; }
int64_t Gpu::processors() const { return 1; }
// Short, so that tests cross its end.
int64_t Gpu::step_tokens() const { return 64; }

void* Gpu::allocate(int64_t bytes) {
    if (device().recording != nullptr) throw std::logic_error("allocated while recording");
    const std::lock_guard lock(blocks_mutex);
    if (bytes > device_->limit - device_->used) return nullptr;
    Block block(::operator new(static_cast<std::size_t>(bytes), kAlignment));
    std::memset(block.get(), 0xff, static_cast<std::size_t>(bytes));  // NaN
    void* memory = block.get();
    blocks()[memory] = {std::move(block), bytes};
    device_->used += bytes;
    return memory;
}

void Gpu::give_back(void* memory) noexcept {
    if (forked()) return;
    const std::lock_guard lock(blocks_mutex);
    const auto found = blocks().find(memory);
    if (found == blocks().end()) return;
    device_->used -= found->second.second;
    blocks().erase(found);
}

void* Gpu::allocate_pinned(int64_t bytes) {
    return ::operator new(static_cast<std::size_t>(bytes), kAlignment);
}
void Gpu::give_back_pinned(void* memory) noexcept { ::operator delete(memory, kAlignment); }

void Gpu::copy(void* to, const void* from, int64_t bytes) {
    device().run([=] { std::memmove(to, from, static_cast<std::size_t>(bytes)); });
}
void Gpu::write(void* to, const void* pinned, int64_t bytes) { copy(to, pinned, bytes); }
void Gpu::read(void* pinned, const void* from, int64_t bytes) { copy(pinned, from, bytes); }
void Gpu::wait() { device(); }
int64_t Gpu::mark() { return device(), 0; }
void Gpu::wait_for(int64_t) {}

void Gpu::begin_recording() { device().recording = std::make_unique<Recording::Work>(); }
Recording Gpu::end_recording() { return Recording(std::move(device().recording)); }
void Gpu::drop_recording() noexcept { device_->recording.reset(); }
void Gpu::replay(const Recording& recording) {
    device();
    for (const auto& step : recording.work_->steps) step();
}

}  // namespace rwkv_edge::cuda
