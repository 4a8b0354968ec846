// SPDX-License-Identifier: Apache-2.0
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "base/error.h"

namespace rwkv_edge {

namespace {

void check_range(const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high))
        throw std::invalid_argument(cat(name, " is ", value, ", expected ", low, " to ", high));
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
    check_range("temperature", options.temperature, 0.0, 1000.0);
    check_range("top_p", options.top_p, 0.0, 1.0);
    check_range("presence_penalty", options.presence_penalty, -1000.0, 1000.0);
    check_range("frequency_penalty", options.frequency_penalty, -1000.0, 1000.0);
    check_range("penalty_decay", options.penalty_decay, 0.0, 1.0);
    if (options.top_k < 0)
        throw std::invalid_argument(cat("top_k is ", options.top_k, ", expected 0 (off) or more"));
}

void Sampler::penalise(std::span<const float> logits) {
    logits_.assign(logits.begin(), logits.end());
    for (const auto& [token, count] : occurrences_) {
        if (static_cast<std::size_t>(token) >= logits_.size()) continue;
        const double penalty = options_.presence_penalty + count * options_.frequency_penalty;
        logits_[static_cast<std::size_t>(token)] -= static_cast<float>(penalty);
    }
}

int32_t Sampler::sample(std::span<const float> logits) {
    penalise(logits);
    const auto best = std::max_element(logits_.begin(), logits_.end());
    const bool has_nan =
        std::any_of(logits_.begin(), logits_.end(), [](float l) { return std::isnan(l); });
    if (has_nan || best == logits_.end() || std::isinf(*best))
        throw std::invalid_argument(
            "the logits have no finite maximum: the weights or the state hold NaN or infinity");
    const auto greedy = static_cast<int32_t>(best - logits_.begin());
    if (options_.temperature == 0.0 || options_.top_k == 1 || options_.top_p == 0.0) return greedy;

    const float top = *best;
    const std::size_t count = nucleus();
    // p^(1 / T) in the log domain, relative to the best
    const auto weight = [&](const Candidate& c) {
        return std::exp(static_cast<double>(c.logit - top) / options_.temperature);
    };
    double total = 0.0;
    for (std::size_t i = 0; i < count; ++i) total += weight(candidates_[i]);
    double left = uniform() * total;
    for (std::size_t i = 0; i < count; ++i) {
        left -= weight(candidates_[i]);
        if (left < 0.0) return candidates_[i].token;
    }
    return candidates_[0].token;  // rounding ate the last bit
}

// Puts the candidates that top_p and top_k leave at the front, best first; returns their number.
std::size_t Sampler::nucleus() {
    candidates_.clear();
    for (std::size_t i = 0; i < logits_.size(); ++i)
        candidates_.push_back({logits_[i], static_cast<int32_t>(i)});
    const std::size_t n = candidates_.size();
    const bool has_top_p = options_.top_p < 1.0;
    const std::size_t most =
        options_.top_k > 0 ? std::min(n, static_cast<std::size_t>(options_.top_k)) : n;
    if (!has_top_p && most == n) return n;

    // Equal logits in the order of their ids, so that nothing depends on the sort.
    const auto worse = [](const Candidate& a, const Candidate& b) {
        return a.logit != b.logit ? a.logit < b.logit : a.token > b.token;
    };
    double total = 0.0;
    const double top = static_cast<double>(*std::max_element(logits_.begin(), logits_.end()));
    if (has_top_p)
        for (const float logit : logits_) total += std::exp(static_cast<double>(logit) - top);

    // A heap yields the best few without sorting a whole vocabulary.
    std::make_heap(candidates_.begin(), candidates_.end(), worse);
    std::vector<Candidate> kept;
    double mass = 0.0;
    while (kept.size() < most) {
        std::pop_heap(candidates_.begin(),
                      candidates_.end() - static_cast<std::ptrdiff_t>(kept.size()), worse);
        const Candidate next = candidates_[n - 1 - kept.size()];
        // The nucleus ends where the sum reaches top_p, but never between equals.
        if (has_top_p && mass >= options_.top_p * total && next.logit < kept.back().logit) break;
        kept.push_back(next);
        mass += std::exp(static_cast<double>(next.logit) - top);
    }
    std::copy(kept.begin(), kept.end(), candidates_.begin());
    return kept.size();
}

void Sampler::accept(int32_t token, double weight) {
    for (auto& [_, count] : occurrences_) count *= options_.penalty_decay;
    occurrences_[token] += weight;
}

// splitmix64 (Steele, Lea, Flood 2014), the top 53 bits as a fraction
double Sampler::uniform() {
    random_ += 0x9e3779b97f4a7c15;
    uint64_t z = random_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace rwkv_edge
