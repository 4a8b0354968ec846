// SPDX-License-Identifier: Apache-2.0
// RWKV-7a: RWKV-7 whose channel mix is changed by an embedding of the token in every layer
// ("DeepEmbed"; BlinkDL's rwkv_v7a_demo.py). The embeddings are the largest part of the file, and
// of each only the rows of tokens that occur are ever read.
#include "base/error.h"
#include "model/arch.h"

namespace rwkv_edge {

namespace {

constexpr int64_t kSide = 32;  // an embedding is a matrix of this many rows and columns

// V (relu(K x_k)^2 o (S2 M_token S1 x + s0)), where M_token = s_emb[token] + s_emb_x e, and e is
// what went into the first layer.
class ChannelMix7a final : public Sublayer {
public:
    ChannelMix7a(const Config& config, Binder& binder)
        : Sublayer({{"ffn_shift", {config.n_embd}, 0.0f, {}}}),
          n_embd_(config.n_embd),
          n_ffn_(config.n_ffn) {
        for (int64_t i = 0; i < config.n_layer; ++i) {
            const std::string prefix = cat("blk.", i, ".channel_mix_");
            const auto matrix = [&](const char* name, int64_t rows, int64_t cols) {
                return binder.matrix(prefix + name, {rows, cols});
            };
            layers_.push_back(
                {binder.vector(prefix + "lerp_k.weight", {n_embd_}),
                 matrix("key.weight", n_ffn_, n_embd_),
                 binder.matrix_either_way(prefix + "value", n_embd_, n_ffn_),
                 binder.table(prefix + "s_emb.weight", {config.n_vocab, kSide * kSide}),
                 matrix("s_emb_x.weight", kSide * kSide, n_embd_),
                 matrix("s1.weight", kSide, n_embd_), matrix("s2.weight", n_ffn_, kSide),
                 binder.vector(prefix + "s0.weight", {n_ffn_})});
        }
    }

    void run(int64_t index, Step& s) const override {
        const Layer& l = layers_[static_cast<std::size_t>(index)];
        const auto take = [&](int64_t width) { return s.scratch.take(width); };

        const Shifted x(s, n_embd_);

        float *square = take(kSide * kSide), *narrow = take(kSide), *changed = take(kSide);
        s.ops.embed(l.table, s.ids, s.tokens, square);
        const MatmulJob inner[] = {
            {.w = l.table_x, .x = {s.embedded}, .y = take(kSide * kSide), .residual = square},
            {.w = l.inner, .x = {x.x()}, .y = narrow},
        };
        s.ops.matmul(inner, s.tokens);
        s.ops.matmul_per_token(narrow, square, kSide, kSide, s.tokens, changed);

        float *gate = take(n_ffn_), *hidden = take(n_ffn_);
        const MatmulJob outer{.w = l.outer, .x = {changed}, .y = gate, .bias = l.bias};
        s.ops.matmul({&outer, 1}, s.tokens);
        const MatmulJob key{.w = l.key,
                            .x = x.to_previous(l.mix_k),
                            .y = hidden,
                            .activate = Activate::Relu2,
                            .gate = gate};
        s.ops.matmul({&key, 1}, s.tokens);
        const MatmulJob value{
            .w = l.value, .x = {hidden}, .y = take(n_embd_), .residual = s.residual};
        s.ops.matmul({&value, 1}, s.tokens);
    }

private:
    struct Layer {
        const float* mix_k;
        Tensor key, value;
        Tensor table, table_x;  // s_emb, s_emb_x
        Tensor inner, outer;    // S1, S2
        const float* bias;      // s0
    };

    int64_t n_embd_, n_ffn_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Sublayer> make_channel_mix7a(const Config& config, Binder& binder) {
    return std::make_unique<ChannelMix7a>(config, binder);
}

}  // namespace rwkv_edge
