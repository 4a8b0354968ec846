// SPDX-License-Identifier: Apache-2.0
// Tokens are chosen from logits that stay on a device: it shortens the vocabulary to candidates,
// and the sampler finishes on them. What logits weigh is computed alike by both (logit_weight.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/logit_weight.h"

namespace rwkv_edge {

// A vocabulary is looked at in blocks of so many logits, the last one filled up with -infinity.
// Sums are made of groups of so many blocks.
constexpr int kLogitBlock = 64, kSumBlocks = 16;

// A logit becomes the sum with `add`; with -infinity it becomes that, whatever it was.
struct LogitChange {
    int32_t token;
    float add;
};

// Works on some rows of logits, [n_vocab] each, at once. `survey` comes first, then `gather` as
// often as wanted; what they return is valid until the next call.
class Shortlist {
public:
    virtual ~Shortlist() = default;

    virtual int64_t n_vocab() const = 0;
    virtual int64_t most_rows() const = 0;
    virtual int64_t most_changes() const = 0;  // of a row

    struct Row {
        const float* logits;                   // the device's
        std::span<const LogitChange> changes;  // by token; those of one token in order
        // Where given, only tokens whose bit is set stay: bit i % 8 of byte i / 8.
        std::optional<std::span<const uint8_t>> allowed;
    };
    // Of a row, after its changes.
    struct Survey {
        std::span<const float> best;            // of each block; NaN where it holds a NaN
        std::span<const int32_t> first;         // the first token of the block that has it
        std::span<const float> sums, products;  // of each group: of weights at the largest logit,
                                                // e^x, and of x e^x, lane after lane, then `folded`
    };
    virtual void survey(std::span<const Row> rows) = 0;
    virtual Survey surveyed(std::size_t row) const = 0;

    struct Candidates {
        std::span<const float> logits;  // that reach a row's least, in the order of their tokens
        std::span<const int32_t> tokens;
        bool all;  // false: there are too many, and these are none
    };
    // least[i] for row i; infinity: of this row none are wanted.
    virtual void gather(std::span<const float> least) = 0;
    virtual Candidates gathered(std::size_t row) const = 0;

    // The logits of a row, after its changes, as `copy` takes them.
    virtual const float* changed(std::size_t row) const = 0;
    virtual void copy(std::span<float> to, const float* from) = 0;
};

}  // namespace rwkv_edge
