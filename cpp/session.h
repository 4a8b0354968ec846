// SPDX-License-Identifier: Apache-2.0
// One stream of tokens through a model: the recurrent state and the memory to advance it. Calls
// from several threads wait for each other.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "model/model.h"

namespace rwkv_edge {

class Session {
public:
    enum class Logits { None, Last, All };

    explicit Session(std::shared_ptr<const Model> model);

    const Model& model() const { return *model_; }

    // Feeds tokens. `logits` receives [n_vocab] of the last token, [tokens, n_vocab], or nothing.
    // Throws std::invalid_argument for an id outside the vocabulary, before anything has changed.
    void feed(std::span<const int32_t> ids, Logits mode, float* logits);

    // The state is one block of model().state_size() floats: layer after layer.
    void copy_state(std::span<float> to) const;
    void set_state(std::span<const float> state);
    void reset();
    std::unique_ptr<Session> fork() const;

private:
    void check_size(std::size_t size) const;

    std::shared_ptr<const Model> model_;
    mutable std::mutex mutex_;
    std::unique_ptr<Ops> ops_;
    Scratch scratch_;
    AlignedVector<float> state_;
};

}  // namespace rwkv_edge
