// SPDX-License-Identifier: Apache-2.0
// Sequences of tokens on their way through a model. A session is what one sequence remembers; a
// runner is what all sessions of a model share to advance.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/tapped_ops.h"
#include "base/lock.h"
#include "model/model.h"
#include "sampler.h"

namespace rwkv_edge {

// Runs steps of a model, one after the other, with the scratch memory and the verbs for them.
class Runner {
public:
    explicit Runner(std::shared_ptr<const Model> model);

    const Model& model() const { return *model_; }
    // Whether tokens can be chosen from logits that stay where the model lives.
    bool keeps_logits() const { return shortlist_ != nullptr; }

private:
    friend class KeptLogits;
    friend class Session;
    // One step. `logits[i]` receives [n_logits, n_vocab] of feed i: the host's memory, or, if they
    // stay, the backend's.
    void step(std::span<const Feed> feeds, std::span<float* const> logits, bool stay,
              const std::function<void()>& between, const Tap& tap, const MatmulTap& products,
              const Section* section);
    // Whether a step can still fail for want of memory.
    bool can_fail() const;
    void logits(const float* memory, float* to);

    std::shared_ptr<const Model> model_;
    mutable Lock mutex_;
    std::unique_ptr<Ops> ops_;
    std::unique_ptr<Shortlist> shortlist_;
    Scratch scratch_;
    bool settled_ = false;
};

// Logits that stay where the model lives: [rows, n_vocab].
class KeptLogits {
public:
    // For a runner that keeps them. Throws std::bad_alloc.
    KeptLogits(std::shared_ptr<Runner> runner, int64_t rows);

    int64_t rows() const { return rows_; }
    int64_t n_vocab() const { return runner_->model().config().n_vocab; }
    float* data() { return memory_.get(); }
    // Of a row: [n_vocab]. Throws std::invalid_argument for one that is not there.
    void copy(int64_t row, std::span<float> to) const;

    struct Choice {
        Sampler* sampler;
        int64_t row;
        std::optional<std::span<const uint8_t>> allowed = {};
    };
    // A token for each choice: what its sampler would sample from a copy of the row. Throws what
    // that throws, and std::invalid_argument for a row that is not there or a sampler that occurs
    // twice.
    std::vector<int32_t> sample(std::span<const Choice> choices) const;

private:
    const float* at(int64_t row) const;

    std::shared_ptr<Runner> runner_;
    int64_t rows_;
    Memory memory_;
};

// Calls from several threads wait for each other. In a forked process they throw
// std::runtime_error if another thread was inside one at the fork.
class Session {
public:
    enum class Logits { None, Last, All };
    // How many rows of logits, [n_vocab] each, a feed of so many tokens gives.
    static int64_t rows(Logits mode, int64_t tokens);
    // Called now and then while tokens are read, with how many were read in whole steps. May throw.
    using Progress = std::function<void(int64_t tokens)>;

    // At the model's initial state.
    explicit Session(std::shared_ptr<Runner> runner);
    // Where another session stands: to go on beside it, or to rewind to.
    Session(const Session& other);
    Session& operator=(const Session&) = delete;

    const Model& model() const { return runner_->model(); }
    const std::shared_ptr<Runner>& runner() const { return runner_; }

    // Feeds tokens. `logits` receives [n_vocab] of the last token, [tokens, n_vocab], or nothing.
    // Throws std::invalid_argument for an id outside the vocabulary, std::bad_alloc, and what
    // `progress` throws; the session is then where it was.
    void feed(std::span<const int32_t> ids, Logits mode, float* logits,
              const Progress& progress = {});

    // The same for several sessions of one runner, which share the steps; each gets what it would
    // get alone, to the bit. `logits` receives what each part wants, one after the other.
    // `hidden` receives the residual stream, [layers, tokens, n_embd]: after each token, when so
    // many layers have run. Throws std::invalid_argument for a number of layers that the model
    // lacks.
    struct Part {
        Session* session;
        std::span<const int32_t> ids;
        Logits mode;
        std::span<const int64_t> layers = {};
        float* hidden = nullptr;
    };
    static void feed_together(std::span<const Part> parts, float* logits,
                              const Progress& progress = {});
    // The same, and the logits stay.
    static void feed_together(std::span<const Part> parts, KeptLogits& logits,
                              const Progress& progress = {});

    // Feeds tokens as `feed` does, and gives what matrices multiply on the way: of each of
    // `tensors`, names in the model's file, [tokens, its inputs], one after the other. Throws
    // std::invalid_argument for a tensor that the file lacks, and for one that no product reads as
    // the file has it. With a `section` no other layers run, and their states stay as they are; an
    // exception may leave its memory half written. Throws std::invalid_argument for layers that the
    // model lacks.
    int64_t input_floats(std::span<const std::string> tensors, int64_t tokens) const;
    void inputs(std::span<const int32_t> ids, std::span<const std::string> tensors, float* to,
                const Progress& progress = {}, const Section* section = nullptr);

    // How many tokens were fed since the session was reset or its state was set.
    int64_t tokens() const;
    // The logits after the last of them: [n_vocab]. Throws std::invalid_argument if there is none.
    void logits(float* to) const;

    std::unique_ptr<Session> fork() const { return std::make_unique<Session>(*this); }
    // Goes to where another session of this runner stands.
    void rewind(const Session& to);

    // The state is one block of model().state_size() floats: layer after layer.
    void copy_state(std::span<float> to) const;
    // The last token's output, [n_embd]. Throws std::invalid_argument if there is none.
    void copy_output(std::span<float> to) const;
    // With the output of the last token, that one counts as fed: there are logits after it.
    void set_state(std::span<const float> state, std::span<const float> output = {});
    void reset();

private:
    static void feed_parts(std::span<const Part> parts, float* logits, bool stay,
                           const Progress& progress, const MatmulTap& products,
                           const Section* section = nullptr);
    const TensorView& matrix_named(const std::string& name) const;
    static void check_size(const char* what, std::size_t size, int64_t expected);

    std::shared_ptr<Runner> runner_;
    mutable Lock mutex_;
    Memory memory_;  // [model().memory_size()]
    int64_t tokens_ = 0;
};

}  // namespace rwkv_edge
