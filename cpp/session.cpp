// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <algorithm>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// Tokens that go through the layers together: enough to reuse each weight, few enough for the
// caches.
constexpr std::size_t kChunk = 64;

}  // namespace

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      ops_(model_->make_ops()),
      state_(static_cast<std::size_t>(model_->state_size())) {
    model_->init_state(state_.data());
}

void Session::feed(std::span<const int32_t> ids, Logits mode, float* logits) {
    const int64_t n_vocab = model_->config().n_vocab;
    for (std::size_t i = 0; i < ids.size(); ++i)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            throw std::invalid_argument(
                cat("token ", i, " is ", ids[i], ", expected 0 to ", n_vocab - 1));
    const std::lock_guard lock(mutex_);
    for (std::size_t begin = 0; begin < ids.size(); begin += kChunk) {
        const auto chunk = ids.subspan(begin, std::min(kChunk, ids.size() - begin));
        const bool last = begin + chunk.size() == ids.size();
        const bool all = mode == Logits::All;
        const bool wanted = all || (mode == Logits::Last && last);
        model_->forward(*ops_, scratch_, chunk, state_.data(), wanted ? logits : nullptr,
                        all ? static_cast<int64_t>(chunk.size()) : 1);
        if (all) logits += static_cast<int64_t>(chunk.size()) * n_vocab;
    }
}

void Session::copy_state(std::span<float> to) const {
    check_size(to.size());
    const std::lock_guard lock(mutex_);
    std::copy(state_.begin(), state_.end(), to.begin());
}

void Session::set_state(std::span<const float> state) {
    check_size(state.size());
    const std::lock_guard lock(mutex_);
    std::copy(state.begin(), state.end(), state_.begin());
}

void Session::check_size(std::size_t size) const {
    if (size != state_.size())
        throw std::invalid_argument(
            cat("the state has ", size, " values, this model's has ", state_.size()));
}

void Session::reset() {
    const std::lock_guard lock(mutex_);
    model_->init_state(state_.data());
}

std::unique_ptr<Session> Session::fork() const {
    auto copy = std::make_unique<Session>(model_);
    copy_state(copy->state_);
    return copy;
}

}  // namespace rwkv_edge
