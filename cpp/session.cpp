// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// Up to so many tokens for each session a step is not interrupted: it takes little longer than one
// of one token, and a copy of every state to go back to would take longer still.
constexpr int64_t kFewTokens = 8;

void check_ids(std::span<const int32_t> ids, int64_t n_vocab) {
    for (std::size_t i = 0; i < ids.size(); ++i)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            throw std::invalid_argument(
                cat("token ", i, " is ", ids[i], ", expected 0 to ", n_vocab - 1));
}

void check_layers(std::span<const int64_t> layers, int64_t n_layer) {
    for (const int64_t layer : layers)
        if (layer < 0 || layer > n_layer)
            throw std::invalid_argument(cat("layer ", layer, ", expected 0 to ", n_layer));
}

// Gives sequences back what they remembered, unless everything succeeded.
class Undo {
public:
    Undo(Backend& backend, int64_t size) : backend_(backend), size_(size) {}
    ~Undo() {
        for (const auto& [memory, copy] : copies_) backend_.copy(memory, copy.get(), size_);
    }
    Undo(const Undo&) = delete;
    Undo& operator=(const Undo&) = delete;

    void keep(float* memory) {
        Memory copy = backend_.allocate(size_);
        backend_.copy(copy.get(), memory, size_);
        copies_.emplace_back(memory, std::move(copy));
    }
    void succeeded() { copies_.clear(); }

private:
    Backend& backend_;
    int64_t size_;
    std::vector<std::pair<float*, Memory>> copies_;
};

}  // namespace

Runner::Runner(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      ops_(model_->backend().make_ops()),
      shortlist_(model_->backend().make_shortlist(model_->config().n_vocab)),
      scratch_(model_->backend()) {}

void Runner::step(std::span<const Feed> feeds, std::span<float* const> logits, bool stay,
                  const std::function<void()>& between, const Tap& tap, const MatmulTap& products,
                  const Section* section) {
    const std::lock_guard lock(mutex_);
    TappedOps tapped(*ops_, products);
    Ops& ops = products ? static_cast<Ops&>(tapped) : *ops_;
    Backend& backend = model_->backend();
    const auto floats = [&](std::size_t i) { return feeds[i].n_logits * model_->config().n_vocab; };
    // Logits that go to one place, one after the other, need no memory on the way.
    float *begin = nullptr, *end = nullptr;
    bool scattered = false;
    for (std::size_t i = 0; i < feeds.size(); ++i) {
        if (floats(i) == 0) continue;
        if (begin == nullptr) begin = end = logits[i];
        scattered |= logits[i] != end;
        end += floats(i);
    }
    float* direct = begin == nullptr || scattered || stay ? nullptr : backend.direct(begin);
    const float* found = model_->forward(ops, scratch_, feeds, direct, between, tap, section);
    if (begin != nullptr && !products) settled_ = true;  // every verb, the head's product too
    // A section may end before the head.
    if (direct != nullptr || begin == nullptr || found == nullptr) return;
    const auto take = [&](float* to, int64_t n) {
        if (stay)
            backend.copy(to, found, n);
        else
            backend.read({to, static_cast<std::size_t>(n)}, found);
        found += n;
    };
    if (!scattered) return take(begin, end - begin);
    for (std::size_t i = 0; i < feeds.size(); ++i)
        if (floats(i) > 0) take(logits[i], floats(i));
}

bool Runner::can_fail() const {
    const std::lock_guard lock(mutex_);
    return !settled_;
}

void Runner::logits(const float* memory, float* to) {
    const std::lock_guard lock(mutex_);
    const float* found = model_->logits(*ops_, scratch_, memory);
    model_->backend().read({to, static_cast<std::size_t>(model_->config().n_vocab)}, found);
}

KeptLogits::KeptLogits(std::shared_ptr<Runner> runner, int64_t rows)
    : runner_(std::move(runner)),
      rows_(rows),
      memory_(runner_->model().backend().allocate(rows * n_vocab())) {}

const float* KeptLogits::at(int64_t row) const {
    if (row < 0 || row >= rows_)
        throw std::invalid_argument(cat("row ", row, " of logits, found ", rows_, " rows"));
    return memory_.get() + row * n_vocab();
}

void KeptLogits::copy(int64_t row, std::span<float> to) const {
    runner_->model().backend().read(to.first(static_cast<std::size_t>(n_vocab())), at(row));
}

std::vector<int32_t> KeptLogits::sample(std::span<const Choice> choices) const {
    std::vector<rwkv_edge::Choice> found;
    for (const auto& [sampler, row, allowed] : choices) {
        if (std::ranges::find(found, sampler, &rwkv_edge::Choice::sampler) != found.end())
            throw std::invalid_argument("a sampler occurs twice, expected different ones");
        found.push_back({sampler, at(row), allowed});
    }
    std::vector<int32_t> tokens(choices.size());
    const std::lock_guard lock(runner_->mutex_);
    rwkv_edge::sample(*runner_->shortlist_, found, tokens);
    return tokens;
}

Session::Session(std::shared_ptr<Runner> runner)
    : runner_(std::move(runner)), memory_(model().backend().allocate(model().memory_size())) {
    reset();
}

Session::Session(const Session& other)
    : runner_(other.runner_), memory_(model().backend().allocate(model().memory_size())) {
    rewind(other);
}

int64_t Session::rows(Logits mode, int64_t tokens) {
    if (mode == Logits::All) return tokens;
    return mode == Logits::Last && tokens > 0 ? 1 : 0;
}

void Session::feed(std::span<const int32_t> ids, Logits mode, float* logits,
                   const Progress& progress) {
    const Part part{this, ids, mode};
    feed_together({&part, 1}, logits, progress);
}

void Session::feed_together(std::span<const Part> parts, float* logits, const Progress& progress) {
    feed_parts(parts, logits, false, progress, {});
}

void Session::feed_together(std::span<const Part> parts, KeptLogits& logits,
                            const Progress& progress) {
    int64_t wanted = 0;
    for (const Part& part : parts) wanted += rows(part.mode, std::ssize(part.ids));
    if (wanted != logits.rows())
        throw std::invalid_argument(
            cat("room for ", logits.rows(), " rows of logits, expected ", wanted));
    feed_parts(parts, logits.data(), true, progress, {});
}

const TensorView& Session::matrix_named(const std::string& name) const {
    const TensorView* tensor = model().file().find_tensor(name);
    if (tensor == nullptr || tensor->shape.size() != 2)
        throw std::invalid_argument(
            cat(model().file().path(), ": no matrix '", name, "', expected one of the file's"));
    return *tensor;
}

int64_t Session::input_floats(std::span<const std::string> tensors, int64_t tokens) const {
    int64_t cols = 0;
    for (const std::string& name : tensors) cols += matrix_named(name).shape[1];
    return cols * tokens;
}

void Session::inputs(std::span<const int32_t> ids, std::span<const std::string> tensors, float* to,
                     const Progress& progress, const Section* section) {
    const int64_t n_layer = model().config().n_layer;
    if (section != nullptr &&
        (section->begin < 0 || section->begin > section->end || section->end > n_layer))
        throw std::invalid_argument(cat("layers ", section->begin, " to ", section->end,
                                        ", expected some of 0 to ", n_layer));
    const TensorView& head = matrix_named("output.weight");
    struct Wanted {
        const TensorView* tensor;
        float* to;
        int64_t left;
    };
    std::vector<Wanted> wanted;
    const int64_t tokens = std::ssize(ids);
    Part part{this, ids, Logits::None};
    for (const std::string& name : tensors) {
        const TensorView& tensor = matrix_named(name);
        wanted.push_back({&tensor, to, tokens});
        to += tokens * tensor.shape[1];
        if (&tensor == &head) part.mode = Logits::All;
    }
    Backend& backend = model().backend();
    std::vector<float> target, mix;
    const auto read = [&](std::vector<float>& values, const float* from, int64_t floats) {
        values.resize(static_cast<std::size_t>(floats));
        backend.read(values, from);
    };
    const auto tap = [&](const MatmulJob& job, int64_t step) {
        for (Wanted& w : wanted) {
            // A part of a matrix, or one that lies transposed, is another matrix.
            const bool whole = job.w.data == w.tensor->data.data() && !job.w.by_input &&
                               job.w.rows * job.w.cols == w.tensor->shape[0] * w.tensor->shape[1];
            if (!whole || w.left < step) continue;
            const int64_t cols = job.w.cols, floats = step * cols;
            float* rows = w.to;
            w.to += floats;
            w.left -= step;
            backend.read({rows, static_cast<std::size_t>(floats)}, job.x.x);
            if (job.x.to == nullptr) continue;
            read(target, job.x.to, floats);
            read(mix, job.x.mix, job.x.mix_per_token ? floats : cols);
            for (int64_t t = 0; t < step; ++t, rows += cols) {
                const float* to_row = target.data() + t * cols;
                const float* share = mix.data() + (job.x.mix_per_token ? t * cols : 0);
                for (int64_t i = 0; i < cols; ++i) rows[i] += (to_row[i] - rows[i]) * share[i];
            }
        }
        return job.w.data != head.data.data();  // nobody wants logits
    };
    std::vector<float> logits(
        static_cast<std::size_t>(rows(part.mode, tokens) * model().config().n_vocab));
    const std::unique_ptr<Session> before = fork();
    feed_parts({&part, 1}, logits.data(), false, progress, tap, section);
    for (const Wanted& w : wanted)
        if (w.left > 0) {
            rewind(*before);
            throw std::invalid_argument(cat(model().file().path(), ": no product on ",
                                            backend.name(), " reads the matrix '", w.tensor->name,
                                            "' as the file has it"));
        }
}

void Session::feed_parts(std::span<const Part> parts, float* logits, bool stay,
                         const Progress& progress, const MatmulTap& products,
                         const Section* section) {
    if (parts.empty()) return;
    Runner& runner = *parts[0].session->runner_;
    const Model& model = runner.model();
    const int64_t n_vocab = model.config().n_vocab, chunk = model.backend().chunk();

    int64_t left = 0;
    bool tapped = false;
    std::vector<Session*> sessions;
    std::vector<float*> rows;  // where the logits of each part go
    for (const Part& part : parts) {
        if (part.session->runner_.get() != &runner)
            throw std::invalid_argument("sessions of several models, expected those of one");
        check_ids(part.ids, n_vocab);
        check_layers(part.layers, model.config().n_layer);
        tapped |= !part.layers.empty();
        const int64_t tokens = std::ssize(part.ids);
        left += tokens;
        sessions.push_back(part.session);
        rows.push_back(logits);
        logits += Session::rows(part.mode, tokens) * n_vocab;
    }
    std::ranges::sort(sessions);  // so that no two calls wait for each other
    if (std::ranges::adjacent_find(sessions) != sessions.end())
        throw std::invalid_argument("a session occurs twice, expected different ones");
    std::vector<std::unique_lock<Lock>> locks;
    for (const Session* session : sessions) locks.emplace_back(session->mutex_);

    const bool interruptible = progress && left > kFewTokens * std::ssize(sessions);
    Undo undo(model.backend(), model.memory_size());
    if (interruptible || left > chunk || runner.can_fail())
        for (const Session* session : sessions) undo.keep(session->memory_.get());

    std::vector<int64_t> fed(parts.size(), 0);
    std::vector<Feed> feeds;
    std::vector<float*> to;
    // What of the residual stream of a step goes where.
    struct Rows {
        int64_t layers, first;
        std::span<float> to;
    };
    std::vector<Rows> hidden;
    const int64_t width = model.config().n_embd;
    for (int64_t done = 0; left > 0;) {
        feeds.clear();
        to.clear();
        hidden.clear();
        int64_t room = chunk;
        for (std::size_t i = 0; i < parts.size() && room > 0; ++i) {
            const Part& part = parts[i];
            const auto rest = part.ids.subspan(static_cast<std::size_t>(fed[i]));
            if (rest.empty()) continue;
            const int64_t n = std::min<int64_t>(room, std::ssize(rest));
            const int64_t wanted = part.mode == Logits::All                             ? n
                                   : part.mode == Logits::Last && n == std::ssize(rest) ? 1
                                                                                        : 0;
            feeds.push_back(
                {rest.first(static_cast<std::size_t>(n)), part.session->memory_.get(), wanted});
            to.push_back(rows[i]);
            rows[i] += wanted * n_vocab;
            for (std::size_t k = 0; k < part.layers.size(); ++k) {
                const int64_t row = static_cast<int64_t>(k) * std::ssize(part.ids) + fed[i];
                hidden.push_back(
                    {part.layers[k],
                     chunk - room,
                     {part.hidden + row * width, static_cast<std::size_t>(n * width)}});
            }
            fed[i] += n;
            room -= n;
        }
        std::function<void()> between;
        Tap tap;
        if (products) between = [] {};
        if (tapped) {
            between = [] {};
            tap = [&](int64_t layers, const float* residual) {
                for (const Rows& wanted : hidden)
                    if (wanted.layers == layers)
                        model.backend().read(wanted.to, residual + wanted.first * width);
            };
        }
        if (interruptible) between = [&] { progress(done); };
        Section rest{};
        const auto rows_of = [&](std::span<float> all, int64_t floats) {
            return all.subspan(static_cast<std::size_t>(done * floats),
                               static_cast<std::size_t>((chunk - room) * floats));
        };
        if (section != nullptr)
            rest = {section->begin, section->end, rows_of(section->residual, width),
                    rows_of(section->carry, model.carry_width())};
        runner.step(feeds, to, stay, between, tap, products, section == nullptr ? nullptr : &rest);
        done += chunk - room;
        left -= chunk - room;
    }
    for (const Part& part : parts) part.session->tokens_ += std::ssize(part.ids);
    undo.succeeded();
}

int64_t Session::tokens() const {
    const std::lock_guard lock(mutex_);
    return tokens_;
}

void Session::logits(float* to) const {
    const std::lock_guard lock(mutex_);
    if (tokens_ == 0)
        throw std::invalid_argument("no token was fed yet that logits could come after");
    runner_->logits(memory_.get(), to);
}

void Session::rewind(const Session& to) {
    if (&to == this) return;
    if (to.runner_ != runner_)
        throw std::invalid_argument("a session of another model, expected one of this");
    const std::scoped_lock lock(mutex_, to.mutex_);
    model().backend().copy(memory_.get(), to.memory_.get(), model().memory_size());
    tokens_ = to.tokens_;
}

void Session::copy_state(std::span<float> to) const {
    check_size("state", to.size(), model().state_size());
    const std::lock_guard lock(mutex_);
    model().backend().read(to, memory_.get());
}

void Session::copy_output(std::span<float> to) const {
    check_size("output", to.size(), model().config().n_embd);
    const std::lock_guard lock(mutex_);
    if (tokens_ == 0) throw std::invalid_argument("no token was fed yet that has an output");
    model().backend().read(to, memory_.get() + model().state_size());
}

void Session::set_state(std::span<const float> state, std::span<const float> output) {
    check_size("state", state.size(), model().state_size());
    if (!output.empty()) check_size("output", output.size(), model().config().n_embd);
    const std::lock_guard lock(mutex_);
    model().backend().write(memory_.get(), state);
    if (!output.empty()) model().backend().write(memory_.get() + model().state_size(), output);
    tokens_ = output.empty() ? 0 : 1;
}

void Session::reset() { set_state(model().initial_state()); }

void Session::check_size(const char* what, std::size_t size, int64_t expected) {
    if (size != static_cast<std::size_t>(expected))
        throw std::invalid_argument(
            cat("the ", what, " has ", size, " values, this model's has ", expected));
}

}  // namespace rwkv_edge
