// SPDX-License-Identifier: Apache-2.0
// RWKV-7 "Goose": arXiv:2503.14456, and BlinkDL's rwkv_v7_numpy.py. Capital letters of the paper's
// matrices are matmuls here; "x o y" is the product of elements.
#include "base/error.h"
#include "model/arch.h"

namespace rwkv_edge {

namespace {

class TimeMix7 final : public Sublayer {
public:
    TimeMix7(const Config& config, Binder& binder, int64_t head_size)
        : Sublayer(wkv_state(config, binder, head_size)),
          n_embd_(config.n_embd),
          n_head_(config.n_embd / head_size),
          head_size_(head_size) {
        for (int64_t i = 0; i < config.n_layer; ++i) layers_.push_back(bind(binder, i));
    }

    int64_t carry_width() const override { return n_embd_; }  // the first layer's v

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const int64_t n = n_embd_;
        const auto vector = [&] { return s.scratch.take(n); };
        const auto inner = [&](const Lora& lora) { return s.scratch.take(lora.inner.rows); };

        const Shifted x(s, n);
        const Input x_r = x.to_previous(l.mix_r), x_w = x.to_previous(l.mix_w),
                    x_k = x.to_previous(l.mix_k), x_v = x.to_previous(l.mix_v),
                    x_a = x.to_previous(l.mix_a), x_g = x.to_previous(l.mix_g);

        const bool first = index == 0;
        float *r = vector(), *k = vector(), *v = first ? s.carry : vector();
        float *w1 = inner(l.decay), *a1 = inner(l.in_context_rate), *g1 = inner(l.gate);
        float* v1 = first ? nullptr : inner(l.value_mix);
        const MatmulJob projections[] = {
            {.w = l.receptance, .x = x_r, .y = r},
            {.w = l.key, .x = x_k, .y = k},
            {.w = l.value, .x = x_v, .y = v},
            {.w = l.decay.inner, .x = x_w, .y = w1, .activate = Activate::Tanh},
            {.w = l.in_context_rate.inner, .x = x_a, .y = a1},
            {.w = l.gate.inner, .x = x_g, .y = g1, .activate = Activate::Sigmoid},
            {.w = l.value_mix.inner, .x = x_v, .y = v1},
        };
        s.ops.matmul({projections, first ? 6u : 7u}, s.tokens);

        float *w = vector(), *a = vector(), *g = vector(), *v_mix = first ? nullptr : vector();
        const MatmulJob outers[] = {
            {.w = l.decay.outer,
             .x = {w1},
             .y = w,
             .activate = Activate::Decay7,
             .bias = l.decay.bias},
            {.w = l.in_context_rate.outer,
             .x = {a1},
             .y = a,
             .activate = Activate::Sigmoid,
             .bias = l.in_context_rate.bias},
            {.w = l.gate.outer, .x = {g1}, .y = g},
            {.w = l.value_mix.outer,
             .x = {v1},
             .y = v_mix,
             .activate = Activate::Sigmoid,
             .bias = l.value_mix.bias},
        };
        s.ops.matmul({outers, first ? 3u : 4u}, s.tokens);

        float* y = vector();
        s.ops.wkv7({.state = s.state + n,
                    .r = r,
                    .w = w,
                    .a = a,
                    .g = g,
                    .k = k,
                    .v = v,
                    .first_v = first ? nullptr : s.carry,
                    .v_mix = v_mix,
                    .k_k = l.k_k,
                    .k_a = l.k_a,
                    .r_k = l.r_k,
                    .norm = l.group_norm,
                    .eps = kGroupNormEps,
                    .y = y,
                    .heads = n_head_,
                    .size = head_size_});
        const MatmulJob output{.w = l.output, .x = {y}, .y = vector(), .residual = s.residual};
        s.ops.matmul({&output, 1}, s.tokens);
    }

private:
    // f(x) = outer(activate(inner x)) + bias, the paper's "loramlp"
    struct Lora {
        Tensor inner, outer;
        const float* bias;
    };

    struct Layer {
        const float *mix_r, *mix_w, *mix_k, *mix_v, *mix_a, *mix_g;  // [n_embd] each
        Lora decay, in_context_rate, value_mix, gate;  // w, a, v, g; value_mix not in layer 0
        const float *k_k, *k_a, *r_k;
        Tensor receptance, key, value, output;
        Norm group_norm;
    };

    Layer bind(Binder& binder, int64_t index) const {
        const std::string prefix = cat("blk.", index, ".time_mix_");
        const auto vector = [&](const char* name) {
            return binder.vector(prefix + name, {n_embd_});
        };
        const auto square = [&](const char* name) {
            return binder.matrix(prefix + name, {n_embd_, n_embd_});
        };
        const auto lora = [&](const char* letter, bool has_bias) {
            const std::string name = prefix + letter;
            const int64_t rank = binder.rows_of(name + "1.weight", n_embd_);
            return Lora{binder.matrix(name + "1.weight", {rank, n_embd_}),
                        binder.matrix(name + "2.weight", {n_embd_, rank}),
                        has_bias ? binder.vector(name + "0.weight", {n_embd_}) : nullptr};
        };
        Layer l{};
        const float* mixes = binder.vector(prefix + "lerp_fused.weight", {6, n_embd_});
        const float** order[] = {&l.mix_r, &l.mix_w, &l.mix_k, &l.mix_v, &l.mix_a, &l.mix_g};
        for (const float** mix : order) {
            *mix = mixes;
            mixes += n_embd_;
        }
        l.decay = lora("w", true);
        l.in_context_rate = lora("a", true);
        l.gate = lora("g", false);
        if (index > 0) {
            l.value_mix = lora("v", true);
        } else {  // the first layer mixes with nothing; files carry dummies
            for (const char* name : {"v0", "v1", "v2"}) binder.ignore(cat(prefix, name, ".weight"));
        }
        l.k_k = vector("k_k.weight");
        l.k_a = vector("k_a.weight");
        l.r_k = binder.vector(prefix + "r_k.weight", {n_head_, head_size_});
        l.receptance = square("receptance.weight");
        l.key = square("key.weight");
        l.value = square("value.weight");
        l.output = square("output.weight");
        l.group_norm = binder.norm(prefix + "ln", n_embd_);
        return l;
    }

    int64_t n_embd_, n_head_, head_size_;
    std::vector<Layer> layers_;
};

// V relu(K x_k)^2
class ChannelMix7 final : public Sublayer {
public:
    ChannelMix7(const Config& config, Binder& binder)
        : Sublayer({{"ffn_shift", {config.n_embd}, 0.0f, {}}}),
          n_embd_(config.n_embd),
          n_ffn_(config.n_ffn) {
        for (int64_t i = 0; i < config.n_layer; ++i) {
            const std::string prefix = cat("blk.", i, ".channel_mix_");
            layers_.push_back({binder.vector(prefix + "lerp_k.weight", {n_embd_}),
                               binder.matrix(prefix + "key.weight", {n_ffn_, n_embd_}),
                               binder.matrix_either_way(prefix + "value", n_embd_, n_ffn_)});
        }
    }

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const Input x_k = Shifted(s, n_embd_).to_previous(l.mix_k);

        float *hidden = s.scratch.take(n_ffn_), *y = s.scratch.take(n_embd_);
        const MatmulJob key{.w = l.key, .x = x_k, .y = hidden, .activate = Activate::Relu2};
        s.ops.matmul({&key, 1}, s.tokens);
        const MatmulJob value{.w = l.value, .x = {hidden}, .y = y, .residual = s.residual};
        s.ops.matmul({&value, 1}, s.tokens);
    }

private:
    struct Layer {
        const float* mix_k;
        Tensor key, value;
    };

    int64_t n_embd_, n_ffn_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Sublayer> make_time_mix7(const Config& config, Binder& binder) {
    return std::make_unique<TimeMix7>(config, binder, read_head_size(config, binder.file()));
}

std::unique_ptr<Sublayer> make_channel_mix7(const Config& config, Binder& binder) {
    return std::make_unique<ChannelMix7>(config, binder);
}

}  // namespace rwkv_edge
