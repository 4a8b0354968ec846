// SPDX-License-Identifier: Apache-2.0
#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "base/error.h"

namespace rwkv_edge {

namespace {

void check_range(const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high))
        throw std::invalid_argument(cat(name, " is ", value, ", expected ", low, " to ", high));
}

// What the loops over a vocabulary go through at once, so that compilers make vectors of it.
constexpr std::size_t kLanes = 32;

// Where e^x is as good as nothing, and still a normal number.
constexpr float kLeastExponent = -87.0f;
inline float exponent(float x) { return x > kLeastExponent ? x : kLeastExponent; }

// e^x for kLeastExponent <= x <= 0, to 2^-23 of itself: 2^n e^r with |r| <= ln 2 / 2 and the
// polynomial of Cephes' expf.
inline float exp_of(float x) {
    constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number
    const float shifted = x * kLog2e + kRound;
    const float n = shifted - kRound;
    const float r = (x - n * kLn2High) - n * kLn2Low;
    float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = (p * r + 8.3334519073e-3f) * r + 4.1665795894e-2f;
    p = (p * r + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    p = (p * r + 1.0f) * r + 1.0f;
    return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000);
}

// The sum of e^(x - top).
double sum_of_exp(std::span<const float> values, float top) {
    float x[kLanes], sums[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= values.size(); i += kLanes) {
        for (std::size_t j = 0; j < kLanes; ++j) x[j] = exponent(values[i + j] - top);
        for (std::size_t j = 0; j < kLanes; ++j) sums[j] += exp_of(x[j]);
    }
    for (; i < values.size(); ++i) sums[0] += exp_of(exponent(values[i] - top));
    return std::accumulate(sums, sums + kLanes, 0.0);
}

// The largest value, or NaN where there is one.
float largest(std::span<const float> values) {
    float best[kLanes];
    uint32_t most[kLanes] = {};  // of the bits without the sign: infinity's are below those of NaN
    std::fill_n(best, kLanes, -std::numeric_limits<float>::infinity());
    const auto look = [&](float value, std::size_t j) {
        best[j] = value > best[j] ? value : best[j];
        most[j] = std::max(most[j], std::bit_cast<uint32_t>(value) & 0x7fffffff);
    };
    std::size_t i = 0;
    for (; i + kLanes <= values.size(); i += kLanes)
        for (std::size_t j = 0; j < kLanes; ++j) look(values[i + j], j);
    for (; i < values.size(); ++i) look(values[i], 0);
    if (*std::max_element(most, most + kLanes) > 0x7f800000) return NAN;
    return *std::max_element(best, best + kLanes);
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

void Sampler::adjust(std::span<const float> logits) {
    logits_.assign(logits.begin(), logits.end());
    const auto change = [&](int32_t token, auto&& to) {
        const auto i = static_cast<std::size_t>(token);
        if (i < logits_.size()) logits_[i] = to(logits_[i]);
    };
    for (const auto& [token, count] : occurrences_) {
        const double penalty = options_.presence_penalty + count * options_.frequency_penalty;
        change(token, [&](float logit) { return logit - static_cast<float>(penalty); });
    }
    for (const int32_t token : options_.banned)
        change(token, [](float) { return -std::numeric_limits<float>::infinity(); });
}

int32_t Sampler::sample(std::span<const float> logits) {
    adjust(logits);
    const float top = largest(logits_);
    if (!std::isfinite(top))
        throw std::invalid_argument(
            "the logits have no finite maximum: the weights or the state hold NaN or infinity. "
            "Was the model's file changed while it was open?");
    if (options_.temperature == 0.0 || options_.top_k == 1 || options_.top_p == 0.0)
        return static_cast<int32_t>(std::find(logits_.begin(), logits_.end(), top) -
                                    logits_.begin());

    choose_candidates(top);
    // p^(1 / T) in the log domain, relative to the best
    const auto weight = [&](const Candidate& c) {
        return std::exp(static_cast<double>(c.logit - top) / options_.temperature);
    };
    double total = 0.0;
    for (const Candidate& candidate : candidates_) total += weight(candidate);
    double left = uniform() * total;
    for (const Candidate& candidate : candidates_) {
        left -= weight(candidate);
        if (left < 0.0) return candidate.token;
    }
    return candidates_[0].token;  // rounding ate the last bit
}

// Leaves the candidates that top_p and top_k leave, best first where either is on.
void Sampler::choose_candidates(float top) {
    const bool has_top_p = options_.top_p < 1.0;
    double enough = 0.0;
    float least = -std::numeric_limits<float>::infinity();
    if (has_top_p) {
        const double total = sum_of_exp(logits_, top);
        enough = options_.top_p * total;
        // All tokens below this together have less than 1 - top_p: most need not be sorted. The
        // last term is for rounding.
        const double share = (total - enough) / static_cast<double>(logits_.size());
        least = top + static_cast<float>(std::log(share)) - 0.01f;
    }
    candidates_.clear();
    for (std::size_t i = 0; i < logits_.size(); ++i)
        if (logits_[i] >= least && logits_[i] > -std::numeric_limits<float>::infinity())
            candidates_.push_back({logits_[i], static_cast<int32_t>(i)});
    const std::size_t n = candidates_.size();
    const std::size_t most =
        options_.top_k > 0 ? std::min(n, static_cast<std::size_t>(options_.top_k)) : n;
    if (!has_top_p && most == n) return;

    // Equal logits in the order of their ids, so that nothing depends on the sort.
    const auto worse = [](const Candidate& a, const Candidate& b) {
        return a.logit != b.logit ? a.logit < b.logit : a.token > b.token;
    };
    // A heap yields the best few without sorting all.
    std::make_heap(candidates_.begin(), candidates_.end(), worse);
    auto end = candidates_.end();
    double mass = 0.0;
    for (std::size_t kept = 0; kept < most; ++kept) {
        const float next = candidates_[0].logit;
        // The nucleus ends where the sum reaches top_p, but never between equals.
        if (has_top_p && mass >= enough && next < end->logit) break;
        std::pop_heap(candidates_.begin(), end--, worse);
        mass += static_cast<double>(exp_of(exponent(next - top)));
    }
    candidates_.erase(candidates_.begin(), end);
    std::reverse(candidates_.begin(), candidates_.end());
}

void Sampler::accept(int32_t token, double weight) {
    if (options_.presence_penalty == 0.0 && options_.frequency_penalty == 0.0) return;
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
