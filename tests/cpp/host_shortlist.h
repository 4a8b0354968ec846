// SPDX-License-Identifier: Apache-2.0
// A Shortlist in plain loops, as its declaration says, over logits of the host: what the sampler
// does with one is tested where no GPU is. It has little room, so that all ways are taken.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "backend/shortlist.h"

namespace rwkv_edge {

class HostShortlist final : public Shortlist {
public:
    using Reach = std::function<const float*(const float*)>;
    // `reach` gives the host's address for one of the caller's.
    explicit HostShortlist(
        int64_t n_vocab, Reach reach = [](const float* logits) { return logits; })
        : n_vocab_(static_cast<std::size_t>(n_vocab)), reach_(std::move(reach)) {}

    int64_t n_vocab() const override { return static_cast<int64_t>(n_vocab_); }
    int64_t most_rows() const override { return 3; }
    int64_t most_changes() const override { return 8; }

    void survey(std::span<const Row> rows) override {
        found_.clear();
        for (const Row& row : rows) {
            Found& found = found_.emplace_back();
            const float* from = reach_(row.logits);
            found.logits.assign(from, from + n_vocab_);
            for (const auto& [token, add] : row.changes) {
                float& logit = found.logits[static_cast<std::size_t>(token)];
                logit = add == -kInfinity ? add : logit + add;
            }
            for (std::size_t i = 0; row.allowed && i < n_vocab_; ++i)
                if (i / 8 >= row.allowed->size() || ((*row.allowed)[i / 8] >> i % 8 & 1) == 0)
                    found.logits[i] = -kInfinity;
            look(found);
        }
    }
    Survey surveyed(std::size_t row) const override {
        const Found& found = found_[row];
        return {found.best, found.first, found.sums, found.products};
    }

    void gather(std::span<const float> least) override {
        for (std::size_t row = 0; row < found_.size(); ++row) {
            Found& found = found_[row];
            found.values.clear();
            found.tokens.clear();
            for (std::size_t i = 0; i < n_vocab_; ++i)
                if (found.logits[i] >= least[row] && found.logits[i] > -kInfinity) {
                    found.values.push_back(found.logits[i]);
                    found.tokens.push_back(static_cast<int32_t>(i));
                }
        }
    }
    Candidates gathered(std::size_t row) const override {
        const Found& found = found_[row];
        constexpr std::size_t kMost = 200;
        if (found.values.size() > kMost) return {{}, {}, false};
        return {found.values, found.tokens, true};
    }

    // The host's, which only `copy` may follow.
    const float* changed(std::size_t row) const override { return found_[row].logits.data(); }
    void copy(std::span<float> to, const float* from) override {
        const bool ours = std::ranges::any_of(
            found_, [&](const Found& found) { return found.logits.data() == from; });
        std::copy_n(ours ? from : reach_(from), n_vocab_, to.begin());
    }

private:
    static constexpr float kInfinity = std::numeric_limits<float>::infinity();

    struct Found {
        std::vector<float> logits, best, sums, products, values;
        std::vector<int32_t> first, tokens;
    };

    static float folded(float* lanes) {
        for (int j = 0; j < 16; ++j)
            lanes[j] = (lanes[j] + lanes[j + 16]) + (lanes[j + 32] + lanes[j + 48]);
        for (const int half : {8, 4, 2, 1})
            for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
        return lanes[0];
    }

    static void look(Found& found) {
        std::vector<float> filled = found.logits;
        filled.resize((filled.size() + kLogitBlock - 1) / kLogitBlock * kLogitBlock, -kInfinity);
        float top = -kInfinity;
        for (std::size_t begin = 0; begin < filled.size(); begin += kLogitBlock) {
            std::size_t best = begin;
            for (std::size_t i = begin; i < begin + kLogitBlock; ++i) {
                const float here = filled[i], most = filled[best];
                if (here > most || (here != here && most == most)) best = i;
            }
            found.best.push_back(filled[best]);
            found.first.push_back(static_cast<int32_t>(best));
            top = std::max(top, filled[best]);
        }
        for (std::size_t begin = 0; begin < filled.size(); begin += kLogitBlock * kSumBlocks) {
            float sums[kLogitBlock] = {}, products[kLogitBlock] = {};
            const std::size_t end = std::min(filled.size(), begin + kLogitBlock * kSumBlocks);
            for (std::size_t i = begin; i < end; ++i) {
                const float power = exponent_of(filled[i], top, 1.0f);
                const float weight = logit_weight(power), product = weight * power;
                sums[i % kLogitBlock] += weight;
                products[i % kLogitBlock] += product;
            }
            found.sums.push_back(folded(sums));
            found.products.push_back(folded(products));
        }
    }

    std::size_t n_vocab_;
    Reach reach_;
    std::vector<Found> found_;
};

}  // namespace rwkv_edge
