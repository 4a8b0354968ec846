// SPDX-License-Identifier: Apache-2.0
// What an RWKV version has to say: a time mix and a channel mix. Everything else (embedding, layer
// loop, head, state handling) is shared.
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
    int64_t n_layer = 0, n_embd = 0, n_ffn = 0, n_vocab = 0;
    float norm_eps = 1e-5f;
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

// A chunk of tokens on its way through one sublayer.
struct Step {
    Ops& ops;
    Scratch& scratch;
    int64_t tokens;
    const int32_t* ids;
    const float* embedded;  // [tokens, n_embd] what went into the first layer
    const float* x;         // [tokens, n_embd] the sublayer's input, normalised
    float* residual;        // [tokens, n_embd] to which the sublayer adds its output
    float* state;           // [state_size] of this sublayer in this layer, of this session
    float* carry;           // [tokens, carry_width] of the time mix, from layer to layer
};

// Token shift: a sublayer's input beside that of the token before, and mixes of the two. Its state
// begins with the last input.
class Shifted {
public:
    Shifted(Step& step, int64_t n)
        : step_(step), n_(n), previous_(step.scratch.take(step.tokens * n)) {
        step.ops.token_shift(step.x, step.state, step.tokens, n, previous_);
    }
    const float* previous() const { return previous_; }  // [tokens, n]
    // x + (previous - x) o mix: RWKV-6 and 7
    float* to_previous(const float* mix) const { return mixed(step_.x, previous_, mix); }
    // previous + (x - previous) o mix: RWKV-4 and 5
    float* to_current(const float* mix) const { return mixed(previous_, step_.x, mix); }

private:
    float* mixed(const float* from, const float* to, const float* mix) const {
        float* y = step_.scratch.take(step_.tokens * n_);
        step_.ops.lerp(from, to, mix, false, step_.tokens, n_, y);
        return y;
    }

    Step& step_;
    int64_t n_;
    float* previous_;
};

// An array that a sublayer remembers from token to token.
struct StatePart {
    std::string name;
    std::vector<int64_t> shape;
    float initial = 0.0f;
    std::vector<const float*> learnt;  // the initial values of each layer, if the file has them

    int64_t size() const;
};

// One half of every layer: a time mix or a channel mix.
class Sublayer {
public:
    explicit Sublayer(std::vector<StatePart> parts);
    virtual ~Sublayer() = default;
    virtual void run(int64_t layer, Step& step) const = 0;
    virtual int64_t carry_width() const { return 0; }

    void init_state(int64_t layer, float* state) const;
    const std::vector<StatePart>& state_parts() const { return parts_; }  // one after another
    int64_t state_size() const { return state_size_; }                    // floats

private:
    std::vector<StatePart> parts_;
    int64_t state_size_ = 0;
};

// Of the norm of each head, RWKV-5 to 7: trainers normalise y / 8 with eps 1e-5, which is y with
// 64e-5.
constexpr float kGroupNormEps = 64e-5f;

// wkv.head_size, checked to divide the width.
int64_t read_head_size(const Config& config, const ModelFile& file);

// att_shift and the heads' matrices "wkv", with their initial values if the file has some.
std::vector<StatePart> wkv_state(const Config& config, Binder& binder, int64_t head_size);

// llama.cpp's RWKV-6 files hold the matrices that write to the residual stream divided by 2^(layer
// / n), against overflow in float16; these are the factors that undo it, exactly.
std::vector<float> read_output_scales(const Config& config, const ModelFile& file);

std::unique_ptr<Sublayer> make_time_mix4(const Config& config, Binder& binder);
std::unique_ptr<Sublayer> make_time_mix5(const Config& config, Binder& binder);
std::unique_ptr<Sublayer> make_time_mix6(const Config& config, Binder& binder);
std::unique_ptr<Sublayer> make_time_mix7(const Config& config, Binder& binder);
std::unique_ptr<Sublayer> make_channel_mix4(const Config& config, Binder& binder);  // and 5
std::unique_ptr<Sublayer> make_channel_mix6(const Config& config, Binder& binder);
std::unique_ptr<Sublayer> make_channel_mix7(const Config& config, Binder& binder);
std::unique_ptr<Sublayer> make_channel_mix7a(const Config& config, Binder& binder);

}  // namespace rwkv_edge
