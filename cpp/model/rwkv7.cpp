// SPDX-License-Identifier: Apache-2.0
// RWKV-7 "Goose": arXiv:2503.14456, and BlinkDL's rwkv_v7_numpy.py. Capital letters of the paper's
// matrices are matmuls here; "x o y" is the product of elements.
#include "base/error.h"
#include "model/arch.h"

namespace rwkv_edge {

namespace {

constexpr float kGroupNormEps = 64e-5f;

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
    const float* ffn_mix_k;
    Tensor ffn_key, ffn_value;
};

class Rwkv7 final : public Arch {
public:
    Rwkv7(const Config& config, Binder& binder)
        : n_embd_(config.n_embd),
          n_ffn_(config.n_ffn),
          n_head_(config.n_head()),
          head_size_(config.head_size) {
        for (int64_t i = 0; i < config.n_layer; ++i) layers_.push_back(bind(binder, i));
    }

    // att_shift [n_embd], S [n_head, value, key], ffn_shift [n_embd]
    int64_t layer_state_size() const override { return n_embd_ * (head_size_ + 2); }
    int64_t carry_width() const override { return n_embd_; }  // the first layer's v

    void time_mix(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        Ops& ops = s.ops;
        const int64_t tokens = s.tokens, n = n_embd_;
        const auto vector = [&] { return s.scratch.take(tokens * n); };

        float* previous = vector();
        ops.token_shift(s.x, s.state, tokens, n, previous);
        const auto mixed = [&](const float* mix) {
            float* y = vector();
            ops.lerp(s.x, previous, mix, false, tokens, n, y);
            return y;
        };
        const float *x_r = mixed(l.mix_r), *x_w = mixed(l.mix_w), *x_k = mixed(l.mix_k);
        const float *x_v = mixed(l.mix_v), *x_a = mixed(l.mix_a), *x_g = mixed(l.mix_g);

        const bool first = index == 0;
        float *r = vector(), *k = vector(), *v = first ? s.carry : vector();
        const auto inner = [&](const Lora& lora) {
            return s.scratch.take(tokens * lora.inner.rows);
        };
        float *w1 = inner(l.decay), *a1 = inner(l.in_context_rate), *g1 = inner(l.gate);
        float* v1 = first ? nullptr : inner(l.value_mix);
        const MatmulJob projections[] = {
            {l.receptance, x_r, r},
            {l.key, x_k, k},
            {l.value, x_v, v},
            {l.decay.inner, x_w, w1, Activate::Tanh},
            {l.in_context_rate.inner, x_a, a1},
            {l.gate.inner, x_g, g1, Activate::Sigmoid},
            {l.value_mix.inner, x_v, v1},
        };
        ops.matmul({projections, first ? 6u : 7u}, tokens);

        float *w = vector(), *a = vector(), *g = vector(), *v_mix = vector();
        const MatmulJob outers[] = {
            {l.decay.outer, w1, w, Activate::Decay7, l.decay.bias},
            {l.in_context_rate.outer, a1, a, Activate::Sigmoid, l.in_context_rate.bias},
            {l.gate.outer, g1, g},
            {l.value_mix.outer, v1, v_mix, Activate::Sigmoid, l.value_mix.bias},
        };
        ops.matmul({outers, first ? 3u : 4u}, tokens);

        // kk = k o k_k, of length 1 in each head;  k <- k o (1 + (a - 1) o k_a);  v <- v + (v_first
        // - v) o mix
        float *kk = vector(), *k_a = vector();
        ops.l2_normalize(k, l.k_k, n_head_, tokens, n, kk);
        ops.mul(k, a, tokens, n, k_a);
        ops.lerp(k, k_a, l.k_a, false, tokens, n, k);
        if (!first) ops.lerp(v, s.carry, v_mix, true, tokens, n, v);

        float* y = vector();
        ops.wkv7({s.state + n, r, w, k, v, kk, a, y, n_head_, head_size_}, tokens);
        ops.norm(y, l.group_norm, n_head_, kGroupNormEps, tokens, n, y);
        ops.bonus(r, k, l.r_k, v, n_head_, tokens, n, y);
        ops.mul(y, g, tokens, n, y);
        const MatmulJob output{l.output, y, vector(), Activate::None, nullptr, s.residual};
        ops.matmul({&output, 1}, tokens);
    }

    // V relu(K x)^2
    void channel_mix(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const int64_t tokens = s.tokens, n = n_embd_;
        float* shift = s.state + n + n * head_size_;
        float *previous = s.scratch.take(tokens * n), *x_k = s.scratch.take(tokens * n);
        s.ops.token_shift(s.x, shift, tokens, n, previous);
        s.ops.lerp(s.x, previous, l.ffn_mix_k, false, tokens, n, x_k);

        float* hidden = s.scratch.take(tokens * n_ffn_);
        const MatmulJob key{l.ffn_key, x_k, hidden, Activate::Relu2};
        s.ops.matmul({&key, 1}, tokens);
        const MatmulJob value{l.ffn_value,    hidden,  s.scratch.take(tokens * n),
                              Activate::None, nullptr, s.residual};
        s.ops.matmul({&value, 1}, tokens);
    }

private:
    Layer bind(Binder& binder, int64_t index) const {
        const std::string block = cat("blk.", index, ".");
        const auto vector = [&](const char* name) { return binder.vector(block + name, n_embd_); };
        const auto square = [&](const char* name) {
            return binder.matrix(block + name, n_embd_, n_embd_);
        };
        const auto lora = [&](const char* letter, bool has_bias) {
            const std::string name = cat(block, "time_mix_", letter);
            const int64_t rank = binder.rows_of(name + "1.weight", n_embd_);
            return Lora{binder.matrix(name + "1.weight", rank, n_embd_),
                        binder.matrix(name + "2.weight", n_embd_, rank),
                        has_bias ? binder.vector(name + "0.weight", n_embd_) : nullptr};
        };
        Layer l{};
        const float* mixes = binder.vector(block + "time_mix_lerp_fused.weight", 6 * n_embd_, 6);
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
            for (const char* name : {"v0", "v1", "v2"})
                binder.ignore(cat(block, "time_mix_", name, ".weight"));
        }
        l.k_k = vector("time_mix_k_k.weight");
        l.k_a = vector("time_mix_k_a.weight");
        l.r_k = binder.vector(block + "time_mix_r_k.weight", n_embd_, n_head_);
        l.receptance = square("time_mix_receptance.weight");
        l.key = square("time_mix_key.weight");
        l.value = square("time_mix_value.weight");
        l.output = square("time_mix_output.weight");
        l.group_norm = {vector("time_mix_ln.weight"), vector("time_mix_ln.bias")};
        l.ffn_mix_k = vector("channel_mix_lerp_k.weight");
        l.ffn_key = binder.matrix(block + "channel_mix_key.weight", n_ffn_, n_embd_);
        l.ffn_value = binder.matrix(block + "channel_mix_value.weight", n_embd_, n_ffn_);
        return l;
    }

    int64_t n_embd_, n_ffn_, n_head_, head_size_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Arch> make_rwkv7(const Config& config, Binder& binder) {
    return std::make_unique<Rwkv7>(config, binder);
}

}  // namespace rwkv_edge
