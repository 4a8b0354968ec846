// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back, byte for byte, with the vocabulary that lies in a model file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_file.h"

namespace rwkv_edge {

// The token that ends a document, in every vocabulary. No text encodes to it.
constexpr int32_t kEndOfText = 0;

// decode(encode(text)) is `text`, for any bytes, and encoding gives no token without bytes.
// Immutable once built; any number of threads may share one.
class Tokenizer {
public:
    virtual ~Tokenizer() = default;

    // "world" or "sentencepiece".
    virtual const char* kind() const = 0;
    // Throws std::invalid_argument where the vocabulary lacks a byte that the text needs.
    virtual std::vector<int32_t> encode(std::string_view text) const = 0;

    // Both throw std::invalid_argument for an id outside [0, n_vocab).
    std::string decode(std::span<const int32_t> ids) const;
    // None for kEndOfText, control tokens and unused ids.
    std::string_view token_bytes(int64_t id) const;

    // The ids without bytes, but for kEndOfText.
    std::vector<int32_t> without_text() const;
    int32_t n_vocab() const { return static_cast<int32_t>(starts_.size() - 1); }

protected:
    Tokenizer() = default;
    Tokenizer(const Tokenizer&) = default;
    Tokenizer(Tokenizer&&) = default;
    Tokenizer& operator=(const Tokenizer&) = default;
    Tokenizer& operator=(Tokenizer&&) = default;

    // Appends a token, whose id is the number of those before it.
    void add(std::string_view bytes) {
        bytes_ += bytes;
        starts_.push_back(bytes_.size());
    }
    std::string_view token(int32_t id) const {
        const auto at = starts_.begin() + id;
        return {bytes_.data() + at[0], at[1] - at[0]};
    }

    std::string bytes_;                      // of all tokens, one after the other
    std::vector<std::size_t> starts_ = {0};  // [n_vocab + 1], into bytes_
};

// The tokenizer in a model file. Throws FormatError where there is none or it is damaged, and
// UnsupportedError for one that the engine does not read (a Hugging Face tokenizer.json).
std::unique_ptr<Tokenizer> make_tokenizer(const ModelFile& file);

}  // namespace rwkv_edge
