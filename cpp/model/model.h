// SPDX-License-Identifier: Apache-2.0
// A model: its file, its weights in place, its threads. Immutable after loading; any number of
// sessions share it.
#pragma once

#include <memory>

#include "base/thread_pool.h"
#include "model/arch.h"

namespace rwkv_edge {

class Model {
public:
    // threads = 0 means one per CPU that this process may use, at most 8: decoding is bound by
    // memory. Throws FormatError, UnsupportedError, std::invalid_argument.
    Model(std::shared_ptr<const ModelFile> file, int threads);

    const Config& config() const { return config_; }
    const ModelFile& file() const { return *file_; }
    int threads() const { return pool_->size(); }
    int64_t state_size() const;                  // floats
    std::vector<StatePart> state_parts() const;  // of one layer; a state is layer after layer
    void init_state(float* state) const;
    std::unique_ptr<Ops> make_ops() const { return make_cpu_ops(pool_); }

    // Runs a chunk of tokens through all layers and updates `state`. If `logits` is not null,
    // writes [n_logits, n_vocab] for the last n_logits tokens.
    void forward(Ops& ops, Scratch& scratch, std::span<const int32_t> ids, float* state,
                 float* logits, int64_t n_logits) const;

private:
    std::shared_ptr<const ModelFile> file_;
    Config config_;
    std::shared_ptr<ThreadPool> pool_;
    std::unique_ptr<Sublayer> time_mix_, channel_mix_;
    std::deque<AlignedVector<float>> owned_;  // vectors that were not F32 in the file
    Tensor embedding_, head_;
    Norm input_norm_{}, output_norm_{};
    struct LayerNorms {
        Norm time_mix, channel_mix;
    };
    std::vector<LayerNorms> layer_norms_;
};

}  // namespace rwkv_edge
