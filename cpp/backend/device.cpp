// SPDX-License-Identifier: Apache-2.0
#include <charconv>

#include "backend/backend.h"
#include "base/error.h"

namespace rwkv_edge {

std::shared_ptr<Backend> make_backend(const std::string& device, int threads) {
    if (device == "cpu") return make_cpu_backend(threads);
    if (device == "cuda") return make_cuda_backend(0);
    const std::string prefix = "cuda:";
    int index = 0;
    const char* end = device.data() + device.size();
    const auto number = device.starts_with(prefix)
                            ? std::from_chars(device.data() + prefix.size(), end, index)
                            : std::from_chars_result{nullptr, std::errc::invalid_argument};
    if (number.ec != std::errc() || number.ptr != end || index < 0)
        throw std::invalid_argument(
            cat("device '", device, "', expected 'cpu', 'cuda' or 'cuda:1' for the second GPU"));
    return make_cuda_backend(index);
}

}  // namespace rwkv_edge
