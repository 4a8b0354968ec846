// SPDX-License-Identifier: Apache-2.0
#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// One line per RWKV version.
struct Version {
    const char* arch;
    std::unique_ptr<Arch> (*make)(const Config&, Binder&);
};
constexpr Version kVersions[] = {
    {"rwkv7", make_rwkv7},
};

const Version& find_version(const ModelFile& file) {
    const std::string_view arch = file.text("general.architecture");
    for (const Version& version : kVersions)
        if (arch == version.arch) return version;
    throw UnsupportedError(cat(file.path(), ": architecture '", arch, "', expected rwkv7"));
}

float read_norm_eps(const ModelFile& file, const std::string& key) {
    const MetaValue* value = file.find(key);
    if (value == nullptr) throw FormatError(cat(file.path(), ": key '", key, "' is missing"));
    const bool is_float = value->type == ValueType::F32 || value->type == ValueType::F64;
    const double eps = is_float ? value->number() : 0.0;
    if (!is_float || !(eps > 0.0 && eps < 1.0))
        throw FormatError(cat(file.path(), ": key '", key, "' is ",
                              is_float ? cat(eps) : value_type_name(value->type),
                              ", expected a float between 0 and 1"));
    return static_cast<float>(eps);
}

Config read_config(const ModelFile& file, const char* arch) {
    const auto key = [arch](const char* name) { return cat(arch, ".", name); };
    Config c;
    c.arch = arch;
    c.n_layer = file.integer(key("block_count"), 1, 1024);
    c.n_embd = file.integer(key("embedding_length"), 32, 1 << 16);
    c.n_ffn = file.integer(key("feed_forward_length"), 32, 1 << 20);
    c.head_size = file.integer(key("wkv.head_size"), 8, 1024);
    c.norm_eps = read_norm_eps(file, key("attention.layer_norm_epsilon"));
    const auto check_multiple = [&](const char* name, int64_t value, int64_t of) {
        if (value % of != 0)
            throw FormatError(cat(file.path(), ": key '", key(name), "' is ", value,
                                  ", expected a multiple of ", of));
    };
    check_multiple("wkv.head_size", c.head_size, 8);
    check_multiple("embedding_length", c.n_embd, 32);
    check_multiple("embedding_length", c.n_embd, c.head_size);
    check_multiple("feed_forward_length", c.n_ffn, 32);
    return c;
}

int count_threads(int wanted) {
    if (wanted < 0 || wanted > 1024)
        throw std::invalid_argument(cat("threads is ", wanted, ", expected 0 (automatic) to 1024"));
    if (wanted > 0) return wanted;
    return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 8);
}

}  // namespace

void Arch::init_state(float* layer_state) const {
    std::fill_n(layer_state, layer_state_size(), 0.0f);
}

Model::Model(std::shared_ptr<const ModelFile> file, int threads) : file_(std::move(file)) {
    const Version& version = find_version(*file_);
    config_ = read_config(*file_, version.arch);
    Binder binder(*file_);
    config_.n_vocab = binder.rows_of("token_embd.weight", config_.n_embd);
    embedding_ = binder.matrix("token_embd.weight", config_.n_vocab, config_.n_embd);
    head_ = binder.matrix("output.weight", config_.n_vocab, config_.n_embd);
    const auto norm = [&](const std::string& name) {
        return Norm{binder.vector(name + ".weight", config_.n_embd),
                    binder.vector(name + ".bias", config_.n_embd)};
    };
    input_norm_ = norm("token_embd_norm");
    output_norm_ = norm("output_norm");
    for (int64_t i = 0; i < config_.n_layer; ++i)
        layer_norms_.push_back(
            {norm(cat("blk.", i, ".attn_norm")), norm(cat("blk.", i, ".attn_norm_2"))});
    arch_ = version.make(config_, binder);
    binder.finish();
    owned_ = binder.take_owned();
    pool_ = std::make_shared<ThreadPool>(count_threads(threads));
}

void Model::init_state(float* state) const {
    for (int64_t i = 0; i < config_.n_layer; ++i)
        arch_->init_state(state + i * arch_->layer_state_size());
}

void Model::forward(Ops& ops, Scratch& scratch, std::span<const int32_t> ids, float* state,
                    float* logits, int64_t n_logits) const {
    const auto tokens = static_cast<int64_t>(ids.size());
    const int64_t n = config_.n_embd;
    const auto normed = [&](const float* in, const Norm& norm, int64_t count, float* out) {
        ops.norm(in, norm, 1, config_.norm_eps, count, n, out);
    };
    AlignedVector<float>& memory = scratch.persistent();
    memory.resize(static_cast<std::size_t>(tokens * (2 * n + arch_->carry_width())));
    float *x = memory.data(), *input = x + tokens * n, *carry = input + tokens * n;

    ops.embed(embedding_, ids.data(), tokens, x);
    normed(x, input_norm_, tokens, x);
    for (int64_t i = 0; i < config_.n_layer; ++i) {
        Step step{ops, scratch, tokens, input, x, state + i * arch_->layer_state_size(), carry};
        const LayerNorms& norms = layer_norms_[static_cast<std::size_t>(i)];
        normed(x, norms.time_mix, tokens, input);
        scratch.reset();
        arch_->time_mix(i, step);
        normed(x, norms.channel_mix, tokens, input);
        scratch.reset();
        arch_->channel_mix(i, step);
    }
    if (logits == nullptr) return;
    normed(x + (tokens - n_logits) * n, output_norm_, n_logits, input);
    const MatmulJob head{head_, input, logits};
    ops.matmul({&head, 1}, n_logits);
}

}  // namespace rwkv_edge
