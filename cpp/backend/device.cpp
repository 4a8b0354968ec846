// SPDX-License-Identifier: Apache-2.0
#include <charconv>

#include "backend/backend.h"
#include "base/error.h"

namespace rwkv_edge {

namespace {

constexpr int kCpu = -1;

// The index of a GPU, or kCpu.
int index_of(const std::string& device) {
    if (device == "cpu") return kCpu;
    if (device == "cuda") return 0;
    const std::string prefix = "cuda:";
    int index = 0;
    const char* end = device.data() + device.size();
    const auto number = device.starts_with(prefix)
                            ? std::from_chars(device.data() + prefix.size(), end, index)
                            : std::from_chars_result{nullptr, std::errc::invalid_argument};
    if (number.ec != std::errc() || number.ptr != end || index < 0)
        throw std::invalid_argument(
            cat("device '", device, "', expected 'cpu', 'cuda' or 'cuda:1' for the second GPU"));
    return index;
}

}  // namespace

std::shared_ptr<Backend> make_backend(const std::string& device, int threads) {
    const int index = index_of(device);
    return index == kCpu ? make_cpu_backend(threads) : make_cuda_backend(index);
}

DeviceLimits gpu_limits(const std::string& device) {
    const int index = index_of(device);
    if (index == kCpu) throw std::invalid_argument("device 'cpu', expected 'cuda' or 'cuda:1'");
    return cuda_limits(index);
}

}  // namespace rwkv_edge
