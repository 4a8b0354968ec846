// SPDX-License-Identifier: Apache-2.0
// RWKV-4 "Dove": arXiv:2305.13048, and BlinkDL's RWKV_in_150_lines.py. Its channel mix served two
// more versions.
#include "base/error.h"
#include "model/arch.h"

namespace rwkv_edge {

namespace {

class TimeMix4 final : public Sublayer {
public:
    // A state begins with the smallest exponent, not with zeros: e^p stands before empty sums.
    TimeMix4(const Config& config, Binder& binder)
        : Sublayer({{"att_shift", {config.n_embd}, 0.0f, {}},
                    {"aa", {config.n_embd}, 0.0f, {}},
                    {"bb", {config.n_embd}, 0.0f, {}},
                    {"pp", {config.n_embd}, -1e30f, {}}}),
          n_embd_(config.n_embd) {
        for (int64_t i = 0; i < config.n_layer; ++i) layers_.push_back(bind(binder, i));
    }

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const int64_t n = n_embd_;
        const auto vector = [&] { return s.scratch.take(n); };

        const Shifted x(s, n);
        float *r = vector(), *k = vector(), *v = vector(), *y = vector();
        const MatmulJob projections[] = {
            {.w = l.receptance, .x = x.to_current(l.mix_r), .y = r, .activate = Activate::Sigmoid},
            {.w = l.key, .x = x.to_current(l.mix_k), .y = k},
            {.w = l.value, .x = x.to_current(l.mix_v), .y = v},
        };
        s.ops.matmul(projections, s.tokens);

        s.ops.wkv4({.state = s.state + n,
                    .w = l.decay,
                    .u = l.first,
                    .r = r,
                    .k = k,
                    .v = v,
                    .y = y,
                    .n = n});
        const MatmulJob output{.w = l.output, .x = {y}, .y = vector(), .residual = s.residual};
        s.ops.matmul({&output, 1}, s.tokens);
    }

private:
    struct Layer {
        const float *mix_k, *mix_v, *mix_r;  // [n_embd] each: the share of the current token
        const float *decay, *first;          // w = -exp(time_decay), u
        Tensor receptance, key, value, output;
    };

    Layer bind(Binder& binder, int64_t index) const {
        const std::string prefix = cat("blk.", index, ".time_mix_");
        const auto vector = [&](const char* name) {
            return binder.vector(prefix + name, {n_embd_});
        };
        const auto square = [&](const char* name) {
            return binder.matrix(prefix + name, {n_embd_, n_embd_});
        };
        const float* mix = binder.vector(prefix + "lerp_fused.weight", {3, n_embd_});
        return {mix,
                mix + n_embd_,
                mix + 2 * n_embd_,
                vector("decay.weight"),
                vector("first.weight"),
                square("receptance.weight"),
                square("key.weight"),
                square("value.weight"),
                square("output.weight")};
    }

    int64_t n_embd_;
    std::vector<Layer> layers_;
};

// sigmoid(R x_r) o (V relu(K x_k)^2). Until version 5 mixes are the share of the current token,
// from 6 on that of the previous one.
class GatedChannelMix final : public Sublayer {
public:
    // `scales` multiply each layer's value matrix.
    GatedChannelMix(const Config& config, Binder& binder, bool mix_previous,
                    const std::vector<float>& scales)
        : Sublayer({{"ffn_shift", {config.n_embd}, 0.0f, {}}}),
          n_embd_(config.n_embd),
          n_ffn_(config.n_ffn),
          mix_previous_(mix_previous) {
        for (int64_t i = 0; i < config.n_layer; ++i) {
            const std::string prefix = cat("blk.", i, ".channel_mix_");
            layers_.push_back({binder.vector(prefix + "lerp_k.weight", {n_embd_}),
                               binder.vector(prefix + "lerp_r.weight", {n_embd_}),
                               binder.matrix(prefix + "receptance.weight", {n_embd_, n_embd_}),
                               binder.matrix(prefix + "key.weight", {n_ffn_, n_embd_}),
                               binder.matrix_either_way(prefix + "value", n_embd_, n_ffn_),
                               scales[static_cast<std::size_t>(i)]});
        }
    }

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const int64_t n = n_embd_;
        const auto vector = [&] { return s.scratch.take(n); };

        const Shifted x(s, n);
        const auto mixed = [&](const float* mix) {
            return mix_previous_ ? x.to_previous(mix) : x.to_current(mix);
        };
        float *r = vector(), *hidden = s.scratch.take(n_ffn_);
        const MatmulJob inputs[] = {
            {.w = l.receptance, .x = mixed(l.mix_r), .y = r, .activate = Activate::Sigmoid},
            {.w = l.key, .x = mixed(l.mix_k), .y = hidden, .activate = Activate::Relu2},
        };
        s.ops.matmul(inputs, s.tokens);
        const MatmulJob value{.w = l.value,
                              .x = {hidden},
                              .y = vector(),
                              .gate = r,
                              .residual = s.residual,
                              .scale = l.value_scale};
        s.ops.matmul({&value, 1}, s.tokens);
    }

private:
    struct Layer {
        const float *mix_k, *mix_r;
        Tensor receptance, key, value;
        float value_scale;
    };

    int64_t n_embd_, n_ffn_;
    bool mix_previous_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Sublayer> make_time_mix4(const Config& config, Binder& binder) {
    return std::make_unique<TimeMix4>(config, binder);
}

std::unique_ptr<Sublayer> make_channel_mix4(const Config& config, Binder& binder) {
    return std::make_unique<GatedChannelMix>(
        config, binder, false, std::vector<float>(static_cast<std::size_t>(config.n_layer), 1.0f));
}

std::unique_ptr<Sublayer> make_channel_mix6(const Config& config, Binder& binder) {
    return std::make_unique<GatedChannelMix>(config, binder, true,
                                             read_output_scales(config, binder.file()));
}

}  // namespace rwkv_edge
