// SPDX-License-Identifier: Apache-2.0
// Where a model lives: a device with its weights, its states and the memory of its steps. A pointer
// that a backend gives may be one of another address space. Only the backend follows it; everybody
// else may add to it and hand it back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "backend/ops.h"

namespace rwkv_edge {

class Backend;

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

protected:
    friend GiveBack;
    virtual void give_back(float* memory) noexcept = 0;
};

inline void GiveBack::operator()(float* memory) const { backend->give_back(memory); }

// threads = 0 means one per CPU that this process may use, at most 8: decoding is bound by memory.
// Throws std::invalid_argument, and std::system_error where threads do not start.
std::shared_ptr<Backend> make_cpu_backend(int threads);

}  // namespace rwkv_edge
