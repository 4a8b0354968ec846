// SPDX-License-Identifier: Apache-2.0
// In the place of cuda.cpp where a build has no CUDA.
#include "backend/backend.h"
#include "base/error.h"

namespace rwkv_edge {

std::string why_no_cuda() {
    return "this build of rwkv-edge has no CUDA: `pip install . "
           "-Ccmake.define.RWKV_EDGE_CUDA=ON`, with nvcc, makes one that has";
}

std::vector<std::string> cuda_devices() { return {}; }

std::shared_ptr<Backend> make_cuda_backend(int index) {
    throw UnsupportedError(cat("device 'cuda:", index, "': ", why_no_cuda()));
}

DeviceLimits cuda_limits(int index) {
    make_cuda_backend(index);
    return {};
}

}  // namespace rwkv_edge
