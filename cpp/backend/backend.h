// SPDX-License-Identifier: Apache-2.0
// Where a model lives: a device with its weights, its states and the memory of its steps. A pointer
// that a backend gives may be one of another address space. Only the backend follows it; everybody
// else may add to it and hand it back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/ops.h"
#include "backend/shortlist.h"

namespace rwkv_edge {

class Backend;
class ModelFile;

struct GiveBack {
    Backend* backend = nullptr;
    void operator()(float* memory) const;
};
// Floats of a backend, which must outlive them.
using Memory = std::unique_ptr<float[], GiveBack>;

class Backend {
public:
    virtual ~Backend() = default;

    virtual std::string name() const = 0;  // "cpu avx2"
    virtual int threads() const = 0;       // of the host, that carry out verbs

    // A backend that only counts what a model on this one takes, or null where there is no need to
    // know. `prepare` then gets it, and the file, before the first weight is placed; `settle` comes
    // after the last one. `state` is what a session takes, in bytes.
    virtual std::shared_ptr<Backend> rehearsal() { return nullptr; }
    virtual void prepare(const ModelFile&, const Backend& /*rehearsal*/, int64_t /*state*/) {}
    virtual void settle() {}

    // Weights for as long as the backend lives, from where the file has them: of products, of
    // look-ups by token, and vectors of any type as floats. On the CPU they stay where they are.
    virtual Tensor matrix(const Tensor& in_file) = 0;
    virtual Tensor table(const Tensor& in_file) = 0;
    virtual const float* vector(const Tensor& in_file) = 0;

    // Memory of undefined content. Throws std::bad_alloc.
    virtual Memory allocate(int64_t floats) = 0;
    // Between the host's memory and the backend's, after the verbs called before.
    virtual void write(float* to, std::span<const float> from) = 0;
    virtual void read(std::span<float> to, const float* from) = 0;
    virtual void copy(float* to, const float* from, int64_t floats) = 0;
    // The host's memory as verbs may write it, or null where only `read` can bring results there.
    virtual float* direct(float* host) = 0;

    // How many tokens go through the layers together at most: enough to reuse each weight, few
    // enough for the caches.
    virtual int64_t chunk() const = 0;
    virtual std::unique_ptr<Ops> make_ops() = 0;
    // Null where logits are the host's, and a sampler needs no help. It uses the backend, which
    // must outlive it.
    virtual std::unique_ptr<Shortlist> make_shortlist(int64_t /*n_vocab*/) { return nullptr; }

protected:
    friend GiveBack;
    virtual void give_back(float* memory) noexcept = 0;
};

inline void GiveBack::operator()(float* memory) const { backend->give_back(memory); }

// threads = 0 means one per CPU that this process may use, at most 8: decoding is bound by memory.
// Throws std::invalid_argument, and std::system_error where threads do not start.
std::shared_ptr<Backend> make_cpu_backend(int threads);

// GPU `index`. Throws UnsupportedError where why_no_cuda() says why, std::invalid_argument for an
// index that is no GPU's.
std::shared_ptr<Backend> make_cuda_backend(int index);
// What a device gives at most, in 1e9 a second: bytes read from its memory, and operations, two per
// product, of the arithmetic that its products are made of.
struct DeviceLimits {
    double bandwidth_gb, gops;
};
// Throws what make_cuda_backend throws, and NoMemory.
DeviceLimits cuda_limits(int index);
// Why no model runs on a GPU here, in a sentence; empty where one can.
std::string why_no_cuda();
// Of the GPUs here, by index: "NVIDIA H100 80GB HBM3".
std::vector<std::string> cuda_devices();

// By the name of a device: "cpu", "cuda", "cuda:1". Throws what the two above throw, and
// std::invalid_argument for another name.
std::shared_ptr<Backend> make_backend(const std::string& device, int threads);
// The same for "cuda" and "cuda:1".
DeviceLimits gpu_limits(const std::string& device);

}  // namespace rwkv_edge
