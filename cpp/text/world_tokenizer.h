// SPDX-License-Identifier: Apache-2.0
// The RWKV World tokenizer: greedy longest match over bytes; any bytes survive a round trip.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv_edge {

// Immutable once built; any number of threads may share one.
class WorldTokenizer {
public:
    // tokens[id] holds the bytes of a token, or nothing where the id is unused. Id 0 is the end of
    // a document, whatever stands there. Of two ids with the same bytes the lower one encodes.
    explicit WorldTokenizer(const std::vector<std::optional<std::string>>& tokens);

    // From the arrays of a GGUF file, whose tokens are written as Python writes bytes. `types` are
    // ggml's token types, or empty where the file has none. Errors begin with `path`.
    static WorldTokenizer from_gguf(std::span<const std::string_view> tokens,
                                    std::span<const int32_t> types, const std::string& path);

    // Throws std::invalid_argument where the vocabulary lacks a byte that the text needs.
    std::vector<int32_t> encode(std::string_view text) const;

    // Nothing for id 0 and for unused ids; throws std::invalid_argument for an id out of range.
    std::string_view token_bytes(int64_t id) const;
    // The ids without bytes, but for 0.
    std::vector<int32_t> without_text() const;

    int32_t n_vocab() const { return static_cast<int32_t>(starts_.size() - 1); }

private:
    static constexpr int32_t kNone = -1;

    WorldTokenizer() = default;
    std::string_view token(int32_t id) const {
        const auto at = starts_.begin() + id;
        return {bytes_.data() + at[0], at[1] - at[0]};
    }
    void sort();
    // The longest token that `text` begins with, or kNone.
    int32_t longest_match(std::string_view text) const;

    std::string bytes_;                // of all tokens, one after the other
    std::vector<std::size_t> starts_;  // [n_vocab + 1], into bytes_
    std::vector<int32_t> sorted_;      // the tokens with text, by their bytes
};

}  // namespace rwkv_edge
