// SPDX-License-Identifier: Apache-2.0
// A model: its file, and its weights on a backend. Immutable after loading.
#pragma once

#include <functional>
#include <memory>

#include "model/arch.h"

namespace rwkv_edge {

// What one sequence feeds in a step.
struct Feed {
    std::span<const int32_t> ids;  // at least one
    float* memory;                 // [memory_size] of the backend, updated in place
    int64_t n_logits;              // logits are wanted after the last n_logits tokens
};

// Looks into a step: called with how many layers have run, from 0 to all, and the residual stream,
// [tokens, n_embd] on the backend, as it then is.
using Tap = std::function<void(int64_t layers, const float* residual)>;

// The layers from `begin` to before `end`, for those who keep what lies between two layers. With
// end = n_layer the head runs too. The memory is the host's.
struct Section {
    int64_t begin, end;
    // [tokens, n_embd] what layer `begin` reads, if not 0; then what `end` reads
    std::span<float> residual;
    std::span<float> carry;  // [tokens, carry_width] what layer 0 leaves to all later ones
};

class Model {
public:
    // Throws FormatError, UnsupportedError, std::invalid_argument; and NoMemory, before any weight
    // is placed, where the backend has less than the model needs.
    static std::shared_ptr<const Model> open(std::shared_ptr<const ModelFile> file,
                                             std::shared_ptr<Backend> backend);
    // Without that precaution.
    Model(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend);

    const Config& config() const { return config_; }
    const ModelFile& file() const { return *file_; }
    Backend& backend() const { return *backend_; }

    std::vector<StatePart> state_parts() const;  // of one layer; a state is layer after layer
    int64_t state_size() const;                  // floats
    std::vector<float> initial_state() const;
    // What a sequence keeps from step to step: its state, and the last token's output, [n_embd],
    // from which the head makes logits.
    int64_t memory_size() const { return state_size() + config_.n_embd; }
    int64_t carry_width() const { return time_mix_->carry_width(); }

    // Runs a step of up to chunk() tokens through all layers. Returns the logits, [n, n_vocab] on
    // the backend, feed by feed; null where none is wanted. They are in `logits`, or where that is
    // null in scratch memory, valid until the next step.
    // `between` is called now and then and may throw, which leaves the step half done. A `tap`
    // needs a `between`, which says that the step is not one thing to the backend; so does a
    // `section`, beside which no layer runs.
    const float* forward(Ops& ops, Scratch& scratch, std::span<const Feed> feeds,
                         float* logits = nullptr, const std::function<void()>& between = {},
                         const Tap& tap = {}, const Section* section = nullptr) const;
    // The logits that the last step of a sequence would have given, [n_vocab].
    const float* logits(Ops& ops, Scratch& scratch, const float* memory) const;

private:
    void head(Ops& ops, const float* outputs, int64_t rows, float* logits) const;

    std::shared_ptr<const ModelFile> file_;
    std::shared_ptr<Backend> backend_;
    Config config_;
    std::unique_ptr<Sublayer> time_mix_, channel_mix_;
    Tensor embedding_, head_;
    Norm input_norm_{}, output_norm_{};
    struct LayerNorms {
        Norm time_mix, channel_mix;
    };
    std::vector<LayerNorms> layer_norms_;
};

}  // namespace rwkv_edge
