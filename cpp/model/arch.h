// SPDX-License-Identifier: Apache-2.0
// What an RWKV version has to say: a time mix and a channel mix. Everything else (embedding, layer
// loop, head, state handling) is shared.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "io/model_file.h"
#include "model/binder.h"

namespace rwkv_edge {

// Read from the metadata and range-checked.
struct Config {
    std::string arch;  // "rwkv7"
    int64_t n_layer = 0, n_embd = 0, n_ffn = 0, n_vocab = 0;
    float norm_eps = 1e-5f;
};

// The memory of steps, with room for chunk() tokens from the first on, so that no address changes
// between two steps. Buffers are taken in order and given back from the last.
class Scratch {
public:
    explicit Scratch(Backend& backend) : backend_(backend) {}

    // [chunk, width]
    float* take(int64_t width) { return take(width, backend_.chunk()); }
    float* take(int64_t width, int64_t rows) {
        if (used_ == buffers_.size()) buffers_.emplace_back();
        Buffer& buffer = buffers_[used_++];
        if (buffer.floats < width * rows) {
            ++changes_;
            buffer.memory = backend_.allocate(width * rows);
            buffer.floats = width * rows;
        }
        return buffer.memory.get();
    }
    std::size_t used() const { return used_; }
    void give_back(std::size_t used) { used_ = used; }
    int64_t changes() const { return changes_; }  // of addresses, so far

private:
    struct Buffer {
        Memory memory;
        int64_t floats = 0;
    };
    Backend& backend_;
    std::vector<Buffer> buffers_;
    std::size_t used_ = 0;
    int64_t changes_ = 0;
};

// A step on its way through one sublayer.
struct Step {
    Ops& ops;
    Scratch& scratch;
    int64_t tokens;
    const int32_t* ids;
    const float* embedded;  // [tokens, n_embd] what went into the first layer
    float* residual;        // [tokens, n_embd] what the sublayer reads, and adds its output to
    Norm norm;              // of what it reads
    float norm_eps;
    States state;  // of this sublayer in this layer
    float* carry;  // [tokens, carry_width] of the time mix, from layer to layer
};

// Token shift: a sublayer's normalised input beside that of the token before, and mixes of the two.
// Its state begins with the last input.
class Shifted {
public:
    Shifted(Step& step, int64_t n) : x_(step.scratch.take(n)), previous_(step.scratch.take(n)) {
        step.ops.shift({step.residual, step.norm, step.norm_eps, step.state, x_, previous_, n},
                       step.tokens);
    }
    const float* x() const { return x_; }  // [tokens, n]
    // x + (previous - x) o mix: RWKV-6 and 7. RWKV-6 has mixes that depend on the token.
    Input to_previous(const float* mix, bool per_token = false) const {
        return {x_, previous_, mix, per_token};
    }
    // previous + (x - previous) o mix: RWKV-4 and 5
    Input to_current(const float* mix) const { return {previous_, x_, mix}; }

private:
    float *x_, *previous_;
};

// An array that a sublayer remembers from token to token.
struct StatePart {
    std::string name;
    std::vector<int64_t> shape;
    float initial = 0.0f;
    std::vector<std::vector<float>> learnt;  // initial values by layer, if the file has them

    int64_t size() const;
};

// One half of every layer: a time mix or a channel mix.
class Sublayer {
public:
    explicit Sublayer(std::vector<StatePart> parts);
    virtual ~Sublayer() = default;
    virtual void run(int64_t layer, Step& step) const = 0;
    virtual int64_t carry_width() const { return 0; }

    void append_initial(int64_t layer, std::vector<float>& state) const;
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
