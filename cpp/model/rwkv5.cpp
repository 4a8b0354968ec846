// SPDX-License-Identifier: Apache-2.0
// RWKV-5 "Eagle": arXiv:2404.05892, and BlinkDL's RWKV_v5_demo.py. The recurrence is that of
// RWKV-6 with a decay that does not depend on the token. Version 5.0 has no gate, and before 5.2
// all channels of a head decay alike: files hold the decay of every channel.
#include "base/error.h"
#include "model/arch.h"

namespace rwkv_edge {

namespace {

class TimeMix5 final : public Sublayer {
public:
    TimeMix5(const Config& config, Binder& binder, int64_t head_size)
        : Sublayer(wkv_state(config, binder, head_size)),
          n_embd_(config.n_embd),
          n_head_(config.n_embd / head_size),
          head_size_(head_size),
          has_gate_(binder.has("blk.0.time_mix_gate.weight")) {
        for (int64_t i = 0; i < config.n_layer; ++i) layers_.push_back(bind(binder, i));
    }

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const int64_t n = n_embd_;
        const auto vector = [&] { return s.scratch.take(n); };

        const Shifted x(s, n);
        float *r = vector(), *k = vector(), *v = vector(), *g = vector(), *y = vector();
        const MatmulJob projections[] = {
            {.w = l.receptance, .x = x.to_current(l.mix_r), .y = r},
            {.w = l.key, .x = x.to_current(l.mix_k), .y = k},
            {.w = l.value, .x = x.to_current(l.mix_v), .y = v},
            {.w = l.gate, .x = x.to_current(l.mix_g), .y = g, .activate = Activate::Silu},
        };
        s.ops.matmul({projections, has_gate_ ? 4u : 3u}, s.tokens);

        s.ops.wkv6({.state = s.state + n,
                    .r = r,
                    .w = l.decay,
                    .k = k,
                    .v = v,
                    .u = l.first,
                    .g = has_gate_ ? g : nullptr,
                    .norm = l.group_norm,
                    .eps = kGroupNormEps,
                    .y = y,
                    .heads = n_head_,
                    .size = head_size_,
                    .w_per_token = false});
        const MatmulJob output{.w = l.output, .x = {y}, .y = vector(), .residual = s.residual};
        s.ops.matmul({&output, 1}, s.tokens);
    }

private:
    struct Layer {
        const float *mix_k, *mix_v, *mix_r, *mix_g;   // the share of the current token
        const float *decay, *first;                   // w = exp(-exp(time_decay)), u
        Tensor receptance, key, value, gate, output;  // gate and mix_g from version 5.1 on
        Norm group_norm;
    };

    Layer bind(Binder& binder, int64_t index) const {
        const std::string prefix = cat("blk.", index, ".time_mix_");
        const auto square = [&](const char* name) {
            return binder.matrix(prefix + name, {n_embd_, n_embd_});
        };
        const int64_t mixes = has_gate_ ? 4 : 3;
        const float* mix = binder.vector(prefix + "lerp_fused.weight", {mixes, n_embd_});
        return {mix,
                mix + n_embd_,
                mix + 2 * n_embd_,
                has_gate_ ? mix + 3 * n_embd_ : nullptr,
                binder.vector(prefix + "decay.weight", {n_head_, head_size_}),
                binder.vector(prefix + "first.weight", {n_head_, head_size_}),
                square("receptance.weight"),
                square("key.weight"),
                square("value.weight"),
                has_gate_ ? square("gate.weight") : Tensor{},
                square("output.weight"),
                binder.norm(prefix + "ln", n_embd_)};
    }

    int64_t n_embd_, n_head_, head_size_;
    bool has_gate_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Sublayer> make_time_mix5(const Config& config, Binder& binder) {
    return std::make_unique<TimeMix5>(config, binder, read_head_size(config, binder.file()));
}

}  // namespace rwkv_edge
