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
        const int64_t n = n_embd_;
        const auto vector = [&] { return s.scratch.take(n); };

        const Shifted x(s, n);
        const std::array<const float*, kMixCount> mix = mixes(l, s, x);
        const auto mixed = [&](Mix j) { return x.to_previous(mix[j], true); };
        float *r = vector(), *k = vector(), *v = vector(), *g = vector(), *w = vector();
        float* w1 = s.scratch.take(l.decay_inner.rows);
        const MatmulJob projections[] = {
            {.w = l.receptance, .x = mixed(kR), .y = r},
            {.w = l.key, .x = mixed(kK), .y = k},
            {.w = l.value, .x = mixed(kV), .y = v},
            {.w = l.gate, .x = mixed(kG), .y = g, .activate = Activate::Silu},
            {.w = l.decay_inner, .x = mixed(kW), .y = w1, .activate = Activate::Tanh},
        };
        s.ops.matmul(projections, s.tokens);
        // w = exp(-exp(time_decay + tanh(x_w D1) D2))
        const MatmulJob decay{
            .w = l.decay_outer, .x = {w1}, .y = w, .activate = Activate::Decay6, .bias = l.decay};
        s.ops.matmul({&decay, 1}, s.tokens);

        float* y = vector();
        s.ops.wkv6({.state = s.state + n,
                    .r = r,
                    .w = w,
                    .k = k,
                    .v = v,
                    .u = l.first,
                    .g = g,
                    .norm = l.group_norm,
                    .eps = kGroupNormEps,
                    .y = y,
                    .heads = n_head_,
                    .size = head_size_,
                    .w_per_token = true});
        const MatmulJob output{.w = l.output,
                               .x = {y},
                               .y = vector(),
                               .residual = s.residual,
                               .scale = l.output_scale};
        s.ops.matmul({&output, 1}, s.tokens);
    }

private:
    struct Layer {
        const float* mix_x;                       // [n_embd]
        std::array<const float*, kMixCount> mix;  // [n_embd] each
        std::vector<Tensor> inner, outer;         // A_j, B_j of the mixes
        Tensor decay_inner, decay_outer;          // D1, D2
        const float *decay, *first;               // time_decay, u
        Tensor receptance, key, value, gate, output;
        Norm group_norm;
        float output_scale;
    };

    // Of x_j = x + (previous - x) o mix_j, by token: mix_j + tanh(z A_j) B_j, where z = x +
    // (previous - x) o mix_x.
    std::array<const float*, kMixCount> mixes(const Layer& l, Step& s, const Shifted& x) const {
        MatmulJob inner[kMixCount], outer[kMixCount];
        std::array<const float*, kMixCount> mix;
        for (std::size_t j = 0; j < kMixCount; ++j) {
            float *narrow = s.scratch.take(l.inner[j].rows), *y = s.scratch.take(n_embd_);
            inner[j] = {.w = l.inner[j],
                        .x = x.to_previous(l.mix_x),
                        .y = narrow,
                        .activate = Activate::Tanh};
            outer[j] = {.w = l.outer[j], .x = {narrow}, .y = y, .bias = l.mix[j]};
            mix[j] = y;
        }
        s.ops.matmul(inner, s.tokens);
        s.ops.matmul(outer, s.tokens);
        return mix;
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
        l.inner = binder.matrices(prefix + "w1.weight", {kMixCount * rank, n_embd_}, kMixCount);
        l.outer = binder.matrices(prefix + "w2.weight", {kMixCount, n_embd_, rank}, kMixCount);
        for (int j = 0; j < kMixCount; ++j) {
            const auto i = static_cast<std::size_t>(j);
            l.mix[i] = all != nullptr
                           ? all + j * n_embd_
                           : binder.vector(cat(prefix, "lerp_", kMixes[j], ".weight"), {n_embd_});
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
