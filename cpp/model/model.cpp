// SPDX-License-Identifier: Apache-2.0
#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace rwkv_edge {

namespace {

using MakeSublayer = std::unique_ptr<Sublayer> (*)(const Config&, Binder&);

// One line per RWKV version.
struct Version {
    const char* arch;
    MakeSublayer time_mix, channel_mix;
};
constexpr Version kVersions[] = {
    {"rwkv4", make_time_mix4, make_channel_mix4},   {"rwkv5", make_time_mix5, make_channel_mix4},
    {"rwkv6", make_time_mix6, make_channel_mix6},   {"rwkv7", make_time_mix7, make_channel_mix7},
    {"rwkv7a", make_time_mix7, make_channel_mix7a},
};

const Version& find_version(const ModelFile& file) {
    const std::string_view arch = file.text("general.architecture");
    for (const Version& version : kVersions)
        if (arch == version.arch) return version;
    std::string known;
    for (const Version& version : kVersions) known += cat(known.empty() ? "" : ", ", version.arch);
    throw UnsupportedError(
        cat(file.path(), ": architecture '", arch, "', expected one of ", known));
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

// A step between its begin and its end.
class Recorded {
public:
    Recorded(Ops& ops, const Plan& plan) : ops_(&ops), done_(!ops.begin(plan)) {}
    ~Recorded() {
        if (!done_) ops_->abandon();
    }
    Recorded(const Recorded&) = delete;
    Recorded& operator=(const Recorded&) = delete;
    bool done() const { return done_; }
    void end() {
        ops_->end();
        done_ = true;
    }

private:
    Ops* ops_;
    bool done_;
};

Config read_config(const ModelFile& file, const char* arch) {
    const auto key = [arch](const char* name) { return cat(arch, ".", name); };
    Config c;
    c.arch = arch;
    c.n_layer = file.integer(key("block_count"), 1, 1024);
    c.n_embd = file.integer(key("embedding_length"), 32, 1 << 16);
    c.n_ffn = file.integer(key("feed_forward_length"), 32, 1 << 20);
    c.norm_eps = read_norm_eps(file, key("attention.layer_norm_epsilon"));
    for (const auto& [name, value] :
         {std::pair{"embedding_length", c.n_embd}, std::pair{"feed_forward_length", c.n_ffn}})
        if (value % kBlock != 0)
            throw FormatError(cat(file.path(), ": key '", key(name), "' is ", value,
                                  ", expected a multiple of ", kBlock));
    return c;
}

}  // namespace

int64_t StatePart::size() const {
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    return n;
}

Sublayer::Sublayer(std::vector<StatePart> parts) : parts_(std::move(parts)) {
    for (const StatePart& part : parts_) state_size_ += part.size();
}

void Sublayer::append_initial(int64_t layer, std::vector<float>& state) const {
    for (const StatePart& part : parts_) {
        const std::vector<float> values =
            part.learnt.empty()
                ? std::vector<float>(static_cast<std::size_t>(part.size()), part.initial)
                : part.learnt[static_cast<std::size_t>(layer)];
        state.insert(state.end(), values.begin(), values.end());
    }
}

int64_t read_head_size(const Config& config, const ModelFile& file) {
    const std::string key = config.arch + ".wkv.head_size";
    const int64_t size = file.integer(key, 8, 1024);
    if (size % 8 != 0)
        throw FormatError(
            cat(file.path(), ": key '", key, "' is ", size, ", expected a multiple of 8"));
    if (config.n_embd % size != 0)
        throw FormatError(cat(file.path(), ": key '", key, "' is ", size,
                              ", expected a divisor of the width ", config.n_embd));
    return size;
}

std::vector<StatePart> wkv_state(const Config& config, Binder& binder, int64_t head_size) {
    StatePart wkv{"wkv", {config.n_embd / head_size, head_size, head_size}, 0.0f, {}};
    const auto name = [](int64_t layer) { return cat("blk.", layer, ".time_mix_state.weight"); };
    if (binder.has(name(0)))
        for (int64_t i = 0; i < config.n_layer; ++i)
            wkv.learnt.push_back(binder.host_vector(name(i), wkv.shape));
    return {{"att_shift", {config.n_embd}, 0.0f, {}}, std::move(wkv)};
}

std::vector<float> read_output_scales(const Config& config, const ModelFile& file) {
    const std::string key = config.arch + ".rescale_every_n_layers";
    const int64_t every = file.find(key) == nullptr ? 0 : file.integer(key, 0, 1024);
    // beyond 2^60 no file is sane, and float soon overflows
    if (every > 0 && config.n_layer / every > 60)
        throw FormatError(cat(file.path(), ": key '", key, "' is ", every,
                              ", expected 0 or at least ", config.n_layer / 60 + 1, " for ",
                              config.n_layer, " layers"));
    std::vector<float> scales;
    for (int64_t i = 0; i < config.n_layer; ++i)
        scales.push_back(every == 0 ? 1.0f : std::ldexp(1.0f, static_cast<int>(i / every)));
    return scales;
}

Model::Model(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend)
    : file_(std::move(file)), backend_(std::move(backend)) {
    const Version& version = find_version(*file_);
    config_ = read_config(*file_, version.arch);
    Binder binder(*file_, *backend_);
    const int64_t n = config_.n_embd;
    config_.n_vocab = binder.rows_of("token_embd.weight", n);
    embedding_ = binder.table("token_embd.weight", {config_.n_vocab, n});
    head_ = binder.matrix("output.weight", {config_.n_vocab, n});
    input_norm_ = binder.norm("token_embd_norm", n);
    output_norm_ = binder.norm("output_norm", n);
    for (int64_t i = 0; i < config_.n_layer; ++i)
        layer_norms_.push_back({binder.norm(cat("blk.", i, ".attn_norm"), n),
                                binder.norm(cat("blk.", i, ".attn_norm_2"), n)});
    time_mix_ = version.time_mix(config_, binder);
    channel_mix_ = version.channel_mix(config_, binder);
    binder.finish();
}

std::shared_ptr<const Model> Model::open(std::shared_ptr<const ModelFile> file,
                                         std::shared_ptr<Backend> backend) {
    if (const std::shared_ptr<Backend> rehearsal = backend->rehearsal()) {
        const Model model(file, rehearsal);
        const std::unique_ptr<Ops> ops = rehearsal->make_ops();
        Scratch scratch(*rehearsal);
        const std::vector<int32_t> ids(static_cast<std::size_t>(rehearsal->chunk()), 0);
        const Feed feed{ids, nullptr, 1};
        model.forward(*ops, scratch, {&feed, 1});
        const std::unique_ptr<Shortlist> shortlist =
            rehearsal->make_shortlist(model.config().n_vocab);
        const auto bytes = static_cast<int64_t>(sizeof(float)) * model.memory_size();
        backend->prepare(*file, *rehearsal, bytes);
    }
    auto model = std::make_shared<const Model>(std::move(file), backend);
    backend->settle();
    return model;
}

std::vector<StatePart> Model::state_parts() const {
    std::vector<StatePart> parts = time_mix_->state_parts();
    for (const StatePart& part : channel_mix_->state_parts()) parts.push_back(part);
    return parts;
}

int64_t Model::state_size() const {
    return config_.n_layer * (time_mix_->state_size() + channel_mix_->state_size());
}

std::vector<float> Model::initial_state() const {
    std::vector<float> state;
    for (int64_t i = 0; i < config_.n_layer; ++i)
        for (const Sublayer* half : {time_mix_.get(), channel_mix_.get()})
            half->append_initial(i, state);
    return state;
}

const float* Model::forward(Ops& ops, Scratch& scratch, std::span<const Feed> feeds, float* logits,
                            const std::function<void()>& between, const Tap& tap,
                            const Section* section) const {
    const int64_t n = config_.n_embd;
    std::vector<int32_t> ids, outputs, last;
    std::vector<Run> runs;
    for (const Feed& feed : feeds) {
        runs.push_back({std::ssize(ids), std::ssize(feed.ids), feed.memory});
        ids.insert(ids.end(), feed.ids.begin(), feed.ids.end());
        for (int64_t i = feed.n_logits; i > 0; --i)
            outputs.push_back(static_cast<int32_t>(std::ssize(ids) - i));
    }
    const int64_t tokens = std::ssize(ids), n_logits = std::ssize(outputs);
    int64_t row = 0;
    for (std::size_t i = 0; i < feeds.size(); ++i) {
        row += feeds[i].n_logits;
        last.push_back(static_cast<int32_t>(feeds[i].n_logits > 0 ? row - 1 : std::ssize(outputs)));
        if (feeds[i].n_logits == 0)
            outputs.push_back(static_cast<int32_t>(runs[i].begin + runs[i].tokens - 1));
    }

    scratch.give_back(0);
    float *embedded = scratch.take(n), *x = scratch.take(n), *output = scratch.take(n);
    float* carry = scratch.take(time_mix_->carry_width());
    // taken by every step, so that what follows finds the same buffers in each
    float* room = scratch.take(config_.n_vocab, logits == nullptr ? n_logits : 0);
    if (logits == nullptr) logits = room;
    const std::size_t taken = scratch.used();

    Recorded recorded(ops, {.ids = ids,
                            .outputs = outputs,
                            .last = last,
                            .runs = runs,
                            .n_logits = n_logits,
                            .memory = scratch.changes(),
                            .whole = !between && !tap});
    if (recorded.done()) return n_logits == 0 ? nullptr : logits;
    ops.embed(embedding_, ids.data(), tokens, x);
    ops.norm(x, input_norm_, config_.norm_eps, tokens, n, embedded);
    const int64_t begin = section == nullptr ? 0 : section->begin;
    const int64_t end = section == nullptr ? config_.n_layer : section->end;
    if (begin == 0) {
        ops.copy(embedded, tokens * n, x);
    } else {
        backend_->write(x, section->residual);
        backend_->write(carry, section->carry);
    }
    if (tap) tap(begin, x);
    Step step{.ops = ops,
              .scratch = scratch,
              .tokens = tokens,
              .ids = ids.data(),
              .embedded = embedded,
              .residual = x,
              .norm = {},
              .norm_eps = config_.norm_eps,
              .state = {runs, begin * (time_mix_->state_size() + channel_mix_->state_size())},
              .carry = carry};
    const auto run = [&](const Sublayer& half, int64_t layer, const Norm& norm) {
        if (between) between();
        step.norm = norm;
        scratch.give_back(taken);
        half.run(layer, step);
        step.state.offset += half.state_size();
    };
    for (int64_t i = begin; i < end; ++i) {
        const LayerNorms& norms = layer_norms_[static_cast<std::size_t>(i)];
        run(*time_mix_, i, norms.time_mix);
        run(*channel_mix_, i, norms.channel_mix);
        if (tap) tap(i + 1, x);
    }
    if (section != nullptr) {
        backend_->read(section->residual, x);
        if (begin == 0) backend_->read(section->carry, carry);
    }
    if (end < config_.n_layer) {
        recorded.end();
        return nullptr;
    }

    const int64_t rows = std::ssize(outputs);
    ops.embed({x, Type::F32, tokens, n}, outputs.data(), rows, embedded);
    ops.norm(embedded, output_norm_, config_.norm_eps, rows, n, output);
    ops.keep(output, last.data(), n, {runs, state_size()});
    head(ops, output, n_logits, logits);
    recorded.end();
    return n_logits == 0 ? nullptr : logits;
}

const float* Model::logits(Ops& ops, Scratch& scratch, const float* memory) const {
    scratch.give_back(0);
    float* found = scratch.take(config_.n_vocab, 1);
    head(ops, memory + state_size(), 1, found);
    return found;
}

void Model::head(Ops& ops, const float* outputs, int64_t rows, float* logits) const {
    if (rows == 0) return;
    const MatmulJob head{.w = head_, .x = {outputs}, .y = logits};
    ops.matmul({&head, 1}, rows);
}

}  // namespace rwkv_edge
