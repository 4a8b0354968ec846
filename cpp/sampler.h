// SPDX-License-Identifier: Apache-2.0
// Chooses the next token. The rules are those of the `rwkv` package (sample_logits and generate),
// without its traps: top_p = 1 is off, small temperatures do not underflow, ties do not depend on a
// sort.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace rwkv_edge {

struct SamplerOptions {
    double temperature = 1.0;  // 0: the most likely token
    int64_t top_k = 0;         // 0: off
    double top_p = 0.5;        // measured before the temperature is applied; 1: off
    double presence_penalty = 0.0;
    double frequency_penalty = 0.0;
    double penalty_decay = 0.996;  // per token
    uint64_t seed = 0;
    std::vector<int32_t> banned = {};  // never chosen
};

class Sampler {
public:
    // Throws std::invalid_argument for an option out of range.
    explicit Sampler(const SamplerOptions& options);

    // The next token for logits [n_vocab], penalties applied. Throws std::invalid_argument if there
    // is no largest logit (NaN, or all -infinity).
    int32_t sample(std::span<const float> logits);
    // Records a token that was chosen: all earlier occurrences decay, then this one counts
    // `weight`. A token of weight 0 is subject to the presence penalty only.
    void accept(int32_t token, double weight = 1.0);
    // Forgets all occurrences; the random sequence goes on.
    void reset() { occurrences_.clear(); }

private:
    struct Candidate {
        float logit;
        int32_t token;
    };
    // Takes the logits over, without what is banned and with the penalties.
    void adjust(std::span<const float> logits);
    void choose_candidates(float top);
    double uniform();

    SamplerOptions options_;
    uint64_t random_;
    std::unordered_map<int32_t, double> occurrences_;
    std::vector<float> logits_;
    std::vector<Candidate> candidates_;
};

}  // namespace rwkv_edge
