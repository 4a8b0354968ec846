// SPDX-License-Identifier: Apache-2.0
// RWKV-6 "Finch": arXiv:2404.05892, and BlinkDL's RWKV_v6_demo.py.
#include <algorithm>
#include <array>

#include "base/error.h"
#include "model/arch.h"

namespace rwkv_edge {

namespace {

constexpr char kMixes[] = {'w', 'k', 'v', 'r', 'g'};  // their order in all files
enum Mix { kW, kK, kV, kR, kG, kMixCount };

class TimeMix6 final : public Sublayer {
public:
    TimeMix6(const Config& config, Binder& binder, int64_t head_size)
        : Sublayer(wkv_state(config, binder, head_size)),
          n_embd_(config.n_embd),
          n_head_(config.n_embd / head_size),
          head_size_(head_size) {
        const auto scales = read_output_scales(config, binder.file());
        for (int64_t i = 0; i < config.n_layer; ++i) {
            layers_.push_back(bind(binder, i));
            layers_.back().output_scale = scales[static_cast<std::size_t>(i)];
        }
    }

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const int64_t tokens = s.tokens, n = n_embd_;
        const auto vector = [&] { return s.scratch.take(tokens * n); };

        const std::array<float*, kMixCount> x = mixed(l, s);
        float *r = vector(), *k = vector(), *v = vector(), *g = vector(), *w = vector();
        float* w1 = s.scratch.take(tokens * l.decay_inner.rows);
        const MatmulJob projections[] = {
            {.w = l.receptance, .x = x[kR], .y = r},
            {.w = l.key, .x = x[kK], .y = k},
            {.w = l.value, .x = x[kV], .y = v},
            {.w = l.gate, .x = x[kG], .y = g, .activate = Activate::Silu},
            {.w = l.decay_inner, .x = x[kW], .y = w1, .activate = Activate::Tanh},
        };
        s.ops.matmul(projections, tokens);
        // w = exp(-exp(time_decay + tanh(x_w D1) D2))
        const MatmulJob decay{
            .w = l.decay_outer, .x = w1, .y = w, .activate = Activate::Decay6, .bias = l.decay};
        s.ops.matmul({&decay, 1}, tokens);

        float* y = vector();
        s.ops.wkv6({s.state + n, r, w, k, v, y, n_head_, head_size_, true}, tokens);
        s.ops.bonus(r, k, l.first, v, n_head_, tokens, n, y);
        s.ops.norm(y, l.group_norm, n_head_, kGroupNormEps, tokens, n, y);
        s.ops.mul(y, g, tokens, n, y);
        const MatmulJob output{
            .w = l.output, .x = y, .y = vector(), .residual = s.residual, .scale = l.output_scale};
        s.ops.matmul({&output, 1}, tokens);
    }

private:
    struct Layer {
        const float* mix_x;                          // [n_embd]
        std::array<const float*, kMixCount> mix;     // [n_embd] each
        std::array<Tensor, kMixCount> inner, outer;  // of the mixes, which depend on the token
        Tensor decay_inner, decay_outer;             // D1, D2
        const float *decay, *first;                  // time_decay, u
        Tensor receptance, key, value, gate, output;
        Norm group_norm;
        float output_scale;
    };

    // x_j = x + (previous - x) o (mix_j + tanh(z A_j) B_j), z = x + (previous - x) o mix_x
    std::array<float*, kMixCount> mixed(const Layer& l, Step& s) const {
        const int64_t tokens = s.tokens, n = n_embd_;
        const Shifted shifted(s, n);
        const float* z = shifted.to_previous(l.mix_x);

        MatmulJob inner[kMixCount], outer[kMixCount];
        for (std::size_t j = 0; j < kMixCount; ++j) {
            float* narrow = s.scratch.take(tokens * l.inner[j].rows);
            inner[j] = {.w = l.inner[j], .x = z, .y = narrow, .activate = Activate::Tanh};
            outer[j] = {
                .w = l.outer[j], .x = narrow, .y = s.scratch.take(tokens * n), .bias = l.mix[j]};
        }
        s.ops.matmul(inner, tokens);
        s.ops.matmul(outer, tokens);
        std::array<float*, kMixCount> x;
        for (std::size_t j = 0; j < kMixCount; ++j) {
            x[j] = outer[j].y;
            s.ops.lerp(s.x, shifted.previous(), x[j], true, tokens, n, x[j]);
        }
        return x;
    }

    Layer bind(Binder& binder, int64_t index) const {
        const std::string prefix = cat("blk.", index, ".time_mix_");
        const auto square = [&](const char* name) {
            return binder.matrix(prefix + name, {n_embd_, n_embd_});
        };
        Layer l{};
        l.mix_x = binder.vector(prefix + "lerp_x.weight", {n_embd_});
        bind_mixes(binder, prefix, l);
        const int64_t rank = binder.rows_of(prefix + "decay_w1.weight", n_embd_);
        l.decay_inner = binder.matrix(prefix + "decay_w1.weight", {rank, n_embd_});
        l.decay_outer = binder.matrix(prefix + "decay_w2.weight", {n_embd_, rank});
        l.decay = binder.vector(prefix + "decay.weight", {n_embd_});
        l.first = binder.vector(prefix + "first.weight", {n_head_, head_size_});
        l.receptance = square("receptance.weight");
        l.key = square("key.weight");
        l.value = square("value.weight");
        l.gate = square("gate.weight");
        l.output = square("output.weight");
        l.group_norm = binder.norm(prefix + "ln", n_embd_);
        return l;
    }

    // Older files of llama.cpp hold the mixes one by one.
    void bind_mixes(Binder& binder, const std::string& prefix, Layer& l) const {
        const std::string fused = prefix + "lerp_fused.weight";
        const float* all = binder.has(fused) ? binder.vector(fused, {kMixCount, n_embd_}) : nullptr;
        const int64_t rows = binder.rows_of(prefix + "w1.weight", n_embd_);
        const int64_t rank = std::max<int64_t>(rows / kMixCount, 1);
        const Tensor inner = binder.matrix(prefix + "w1.weight", {kMixCount * rank, n_embd_});
        const Tensor outer = binder.matrix(prefix + "w2.weight", {kMixCount, n_embd_, rank});
        for (int j = 0; j < kMixCount; ++j) {
            const auto i = static_cast<std::size_t>(j);
            l.mix[i] = all != nullptr
                           ? all + j * n_embd_
                           : binder.vector(cat(prefix, "lerp_", kMixes[j], ".weight"), {n_embd_});
            l.inner[i] = inner.part(j, kMixCount);
            l.outer[i] = outer.part(j, kMixCount);
        }
    }

    int64_t n_embd_, n_head_, head_size_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Sublayer> make_time_mix6(const Config& config, Binder& binder) {
    return std::make_unique<TimeMix6>(config, binder, read_head_size(config, binder.file()));
}

}  // namespace rwkv_edge
