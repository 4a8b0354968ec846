// SPDX-License-Identifier: Apache-2.0
// Chooses the next token. The rules are those of the `rwkv` package (sample_logits and generate),
// without its traps: top_p = 1 is off, small temperatures do not underflow, ties do not depend on a
// sort.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend/shortlist.h"

namespace rwkv_edge {

// Biases, penalties and bans change the logits. Then typical_p cuts, then top_p, top_k and min_p,
// by the probabilities that are left before the temperature is applied.
struct SamplerOptions {
    double temperature = 1.0;  // 0: the most likely token
    int64_t top_k = 0;         // 0: off
    double top_p = 0.5;        // 1: off
    double min_p = 0.0;        // of the largest probability; 0: off
    double typical_p = 1.0;    // "Locally typical sampling", Meister et al. 2022; 1: off
    double presence_penalty = 0.0;
    double frequency_penalty = 0.0;
    double penalty_decay = 0.996;  // per token
    int64_t penalty_window = 0;    // of how many last tokens occurrences count; 0: all
    uint64_t seed = 0;
    std::vector<std::pair<int32_t, double>> logit_bias = {};  // added
    std::vector<int32_t> banned = {};                         // never chosen
    std::vector<int32_t> forced = {};  // the first choices, whatever the logits say
};

struct Choice;

class Sampler {
public:
    // Throws std::invalid_argument for an option out of range.
    explicit Sampler(const SamplerOptions& options);

    // The next token for logits [n_vocab]. Where `allowed` is given, only tokens whose bit is set:
    // bit i % 8 of byte i / 8. Throws std::invalid_argument if there is no largest logit (NaN or
    // infinity) or no token is left.
    int32_t sample(std::span<const float> logits,
                   std::optional<std::span<const uint8_t>> allowed = {});
    // Records a token that was chosen: all earlier occurrences decay, then this one counts
    // `weight`. A token of weight 0 is subject to the presence penalty only.
    void accept(int32_t token, double weight = 1.0);
    // With this seed another sampler goes on in the random sequence where this one is.
    uint64_t seed() const { return random_; }

private:
    struct Occurrences {
        double count = 0.0;
        int64_t times = 0;
    };
    friend void sample(Shortlist& shortlist, std::span<const Choice> choices,
                       std::span<int32_t> tokens);
    std::optional<int32_t> next_forced(std::size_t n_vocab,
                                       std::optional<std::span<const uint8_t>> allowed);
    void list_changes(std::size_t n_vocab);
    void adjust(std::span<const float> logits, std::optional<std::span<const uint8_t>> allowed);
    std::optional<std::size_t> greedy(float top) const;
    bool needs_sums() const;
    float bound(float top, std::size_t n_vocab) const;
    float cut(float top);
    int32_t draw(float top);
    template <class Keep>
    void keep_if(Keep&& keep);
    double uniform();

    SamplerOptions options_;
    uint64_t random_;
    std::size_t forced_ = 0;  // of options_.forced, those chosen
    std::unordered_map<int32_t, Occurrences> occurrences_;
    std::deque<std::pair<int32_t, double>> window_;  // the last tokens and what is left of each
    // Scratch memory. Candidates are in the order of their ids, so that nothing depends on a sort.
    std::vector<LogitChange> changes_;
    double total_ = 0.0, products_ = 0.0;  // of e^(x - top) and (x - top) e^(x - top), before cuts
    std::vector<float> logits_, best_, candidates_, weights_, keys_;
    std::vector<double> sums_;
    std::vector<int32_t> ids_;
};

// Logits of a model on a device, and who chooses from them.
struct Choice {
    Sampler* sampler;
    const float* logits;  // [n_vocab], the device's
    std::optional<std::span<const uint8_t>> allowed = {};
};
// The tokens that Sampler::sample would choose from copies of these logits: the device leaves a few
// candidates of each. Samplers are different ones. Throws what it throws.
void sample(Shortlist& shortlist, std::span<const Choice> choices, std::span<int32_t> tokens);

struct Logprob {
    int32_t token;
    double logprob;  // ln p at temperature 1
};

// Of the `top` likeliest tokens, best first and equal ones by id, for logits [n_vocab]; and before
// them of `token`. Throws std::invalid_argument for a token outside the vocabulary, and as
// Sampler::sample does.
std::vector<Logprob> logprobs(std::span<const float> logits, int32_t token, int64_t top);

}  // namespace rwkv_edge
