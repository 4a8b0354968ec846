// SPDX-License-Identifier: Apache-2.0
// sentencepiece models (sentencepiece_model.proto): BPE and unigram, with or without byte pieces.
// The tokens are those of the sentencepiece library with an identity normalizer: characters stay as
// they are, nothing is put before the text, and a model's own normalizer is not run.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace rwkv_edge {

// The numbers of sentencepiece's types, which are llama.cpp's token types too.
enum class PieceType : int32_t { Normal = 1, Unknown, Control, UserDefined, Unused, Byte };

struct Piece {
    std::string_view text;  // with U+2581 for a space
    float score = 0;
    PieceType type = PieceType::Normal;
};

// What a model file says; `pieces` are views into its bytes.
struct SentencePieceModel {
    std::vector<Piece> pieces;
    bool bpe = false;  // else unigram
    bool byte_fallback = false;
    bool adds_space = true;  // before a text, in other programs

    // Throws FormatError and, for models of words or of characters, UnsupportedError; messages
    // begin with `source`.
    static SentencePieceModel parse(std::span<const std::byte> file, const std::string& source);
};

// Finds strings of bytes. Children of a node lie side by side, sorted by their byte.
class Trie {
public:
    static constexpr int32_t kNone = -1, kRoot = 0;

    struct Entry {
        std::string_view bytes;
        int32_t id;
    };
    // No two entries have the same bytes, and none is empty.
    explicit Trie(std::vector<Entry> entries = {});

    // The node behind `byte`, or kNone.
    int32_t step(int32_t node, char byte) const;
    // The node behind all of `bytes`, or kNone.
    int32_t walk(int32_t node, std::string_view bytes) const;
    // The entry whose bytes end at a node, or kNone.
    int32_t id(int32_t node) const { return ids_[static_cast<std::size_t>(node)]; }
    bool empty() const { return ids_.size() == 1; }

private:
    std::vector<uint32_t> children_;  // [nodes + 1]: those of node i begin at children_[i]
    std::vector<uint8_t> bytes_;      // [nodes]: the last byte on the way to a node
    std::vector<int32_t> ids_;        // [nodes]
    std::array<int32_t, 256> first_;  // the children of the root, by byte
};

class SentencePieceTokenizer final : public Tokenizer {
public:
    // Throws FormatError where token 0 is not a control, unknown or unused one, as it ends a
    // document.
    SentencePieceTokenizer(const SentencePieceModel& model, const std::string& source);

    const char* kind() const override { return "sentencepiece"; }
    std::vector<int32_t> encode(std::string_view text) const override;

private:
    struct Symbol;
    class Merges;
    using Ids = std::vector<int32_t>;

    void encode_bpe(std::string_view text, Ids& out) const;
    void encode_unigram(std::string_view text, Ids& out) const;
    // Byte by byte, where the vocabulary has no piece for a character.
    void add_unknown(std::string_view text, Ids& out) const;
    void add_byte(char byte, Ids& out) const;

    bool is_unused(int32_t id) const { return unused_[static_cast<std::size_t>(id)]; }
    float score(int32_t id) const { return scores_[static_cast<std::size_t>(id)]; }

    bool bpe_;
    // Tokens by their bytes, with a space for U+2581.
    Trie pieces_, user_defined_;
    std::vector<float> scores_;  // [n_vocab]
    std::vector<bool> unused_;   // [n_vocab]
    float unknown_score_ = 0;
    std::array<int32_t, 256> byte_ids_;  // -1 where there is none
};

}  // namespace rwkv_edge
