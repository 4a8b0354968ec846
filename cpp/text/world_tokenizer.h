// SPDX-License-Identifier: Apache-2.0
// The RWKV World tokenizer: greedy longest match over bytes; any bytes survive a round trip.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace rwkv_edge {

class WorldTokenizer final : public Tokenizer {
public:
    // tokens[id] holds the bytes of a token, or nothing where the id is unused. Id 0 is the end of
    // a document, whatever stands there. Of two ids with the same bytes the lower one encodes.
    explicit WorldTokenizer(const std::vector<std::optional<std::string>>& tokens);

    // From the arrays of a GGUF file, whose tokens are written as Python writes bytes. `types` are
    // ggml's token types, or empty where the file has none. Errors begin with `path`.
    static WorldTokenizer from_gguf(std::span<const std::string_view> tokens,
                                    std::span<const int32_t> types, const std::string& path);

    const char* kind() const override { return "world"; }
    std::vector<int32_t> encode(std::string_view text) const override;

private:
    static constexpr int32_t kNone = -1;

    WorldTokenizer() = default;
    void sort();
    // The longest token that `text` begins with, or kNone.
    int32_t longest_match(std::string_view text) const;

    std::vector<int32_t> sorted_;  // the tokens with text, by their bytes
};

}  // namespace rwkv_edge
