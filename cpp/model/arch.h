// SPDX-License-Identifier: Apache-2.0
// What an RWKV version has to say; everything else (embedding, layer loop, head, state handling) is
// shared.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/ops.h"
#include "base/aligned.h"
#include "io/model_file.h"
#include "model/binder.h"

namespace rwkv_edge {

// Read from the metadata and range-checked.
struct Config {
    std::string arch;  // "rwkv7"
    int64_t n_layer = 0, n_embd = 0, n_ffn = 0, n_vocab = 0, head_size = 0;
    float norm_eps = 1e-5f;

    int64_t n_head() const { return n_embd / head_size; }
};

// Memory of a forward pass, kept from one to the next. A sublayer takes buffers in order and gives
// all back at its end.
class Scratch {
public:
    AlignedVector<float>& persistent() { return persistent_; }  // through all layers
    float* take(int64_t n) {
        if (used_ == buffers_.size()) buffers_.emplace_back();
        AlignedVector<float>& buffer = buffers_[used_++];
        if (buffer.size() < static_cast<std::size_t>(n)) buffer.resize(static_cast<std::size_t>(n));
        return buffer.data();
    }
    void reset() { used_ = 0; }

private:
    AlignedVector<float> persistent_;
    std::vector<AlignedVector<float>> buffers_;
    std::size_t used_ = 0;
};

// A chunk of tokens on its way through one layer.
struct Step {
    Ops& ops;
    Scratch& scratch;
    int64_t tokens;
    const float* x;   // [tokens, n_embd] the sublayer's input, normalised
    float* residual;  // [tokens, n_embd] to which the sublayer adds its output
    float* state;     // [layer_state_size] of this layer, of this session
    float* carry;     // [tokens, carry_width] from layer to layer
};

class Arch {
public:
    virtual ~Arch() = default;
    virtual int64_t layer_state_size() const = 0;  // floats
    virtual int64_t carry_width() const { return 0; }
    virtual void init_state(float* layer_state) const;  // of a new session; zeros unless overridden
    virtual void time_mix(int64_t layer, Step& step) const = 0;
    virtual void channel_mix(int64_t layer, Step& step) const = 0;
};

std::unique_ptr<Arch> make_rwkv7(const Config& config, Binder& binder);

}  // namespace rwkv_edge
