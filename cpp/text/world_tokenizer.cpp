// SPDX-License-Identifier: Apache-2.0
#include "text/world_tokenizer.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// ggml's token types; all others are text.
constexpr int32_t kControl = 3;
constexpr int32_t kUnused = 5;

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

// Undoes repr(bytes)[2:-1]; nothing where a backslash begins none of its escapes.
std::optional<std::string> unescape(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\') {
            out += text[i];
            continue;
        }
        if (++i == text.size()) return std::nullopt;
        switch (text[i]) {
            case 't': out += '\t'; break;
            case 'n': out += '\n'; break;
            case 'r': out += '\r'; break;
            case '\\':
            case '\'':
            case '"': out += text[i]; break;
            case 'x': {
                if (i + 2 >= text.size()) return std::nullopt;
                const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
                if (high < 0 || low < 0) return std::nullopt;
                out += static_cast<char>(high * 16 + low);
                i += 2;
                break;
            }
            default: return std::nullopt;
        }
    }
    return out;
}

unsigned byte_at(std::string_view text, size_t i) { return static_cast<unsigned char>(text[i]); }

}  // namespace

WorldTokenizer::WorldTokenizer(const std::vector<std::optional<std::string>>& tokens) {
    if (tokens.empty() || tokens.size() > std::numeric_limits<int32_t>::max()) {
        throw std::invalid_argument(cat("a vocabulary of ", tokens.size(), " tokens"));
    }
    starts_.reserve(tokens.size() + 1);
    for (size_t id = 0; id < tokens.size(); ++id) {
        starts_.push_back(bytes_.size());
        if (id > 0 && tokens[id]) bytes_ += *tokens[id];
    }
    starts_.push_back(bytes_.size());
    build_trie();
}

WorldTokenizer WorldTokenizer::from_gguf(const std::vector<std::string>& tokens,
                                         std::span<const int32_t> types, const std::string& path) {
    const auto fail = [&](const auto&... what) {
        throw FormatError(cat(path, ": tokenizer.ggml.", what...));
    };
    if (tokens.empty()) fail("tokens: found no tokens");
    if (!types.empty() && types.size() != tokens.size()) {
        fail("token_type: found ", types.size(), " entries, expected ", tokens.size(),
             " as in tokenizer.ggml.tokens");
    }
    std::vector<std::optional<std::string>> plain(tokens.size());
    for (size_t id = 1; id < tokens.size(); ++id) {
        const bool text = types.empty() || (types[id] != kControl && types[id] != kUnused);
        if (!text || tokens[id] == cat("[PAD", id, "]")) continue;
        plain[id] = unescape(tokens[id]);
        if (!plain[id]) {
            fail("tokens[", id, "]: found '", tokens[id],
                 "', expected bytes as Python writes them");
        }
    }
    return WorldTokenizer(plain);
}

// Breadth first over the sorted tokens: each node is a range of them that share their first bytes.
void WorldTokenizer::build_trie() {
    std::vector<int32_t> sorted;
    for (int32_t id = 0; id < n_vocab(); ++id) {
        if (!token_bytes(id).empty()) sorted.push_back(id);
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [&](int32_t a, int32_t b) { return token_bytes(a) < token_bytes(b); });

    struct Range {
        size_t begin, end, depth;
    };
    std::vector<Range> ranges{{0, sorted.size(), 0}};
    nodes_.emplace_back();
    for (size_t i = 0; i < nodes_.size(); ++i) {
        auto [begin, end, depth] = ranges[i];
        const auto byte = [&](size_t at) { return byte_at(token_bytes(sorted[at]), depth); };
        // Tokens that end here stand before those that go on.
        for (; begin < end && token_bytes(sorted[begin]).size() == depth; ++begin) {
            if (nodes_[i].token == kNone) nodes_[i].token = sorted[begin];
        }
        if (begin == end) continue;
        const unsigned low = byte(begin), span = byte(end - 1) - low + 1;
        const size_t first = children_.size();
        nodes_[i].first = static_cast<uint32_t>(first);
        nodes_[i].low = static_cast<uint16_t>(low);
        nodes_[i].span = static_cast<uint16_t>(span);
        children_.resize(first + span, 0);
        while (begin < end) {
            const size_t start = begin;
            while (begin < end && byte(begin) == byte(start)) ++begin;
            children_[first + byte(start) - low] = static_cast<uint32_t>(nodes_.size());
            nodes_.emplace_back();
            ranges.push_back({start, begin, depth + 1});
        }
    }
}

std::vector<int32_t> WorldTokenizer::encode(std::string_view text) const {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3);
    for (size_t at = 0; at < text.size();) {
        int32_t token = kNone;
        size_t token_end = at;
        uint32_t index = 0;
        for (size_t i = at; i < text.size(); ++i) {
            const Node& node = nodes_[index];
            const unsigned child = byte_at(text, i) - node.low;
            if (child >= node.span) break;
            index = children_[node.first + child];
            if (index == 0) break;
            if (nodes_[index].token != kNone) {
                token = nodes_[index].token;
                token_end = i + 1;
            }
        }
        if (token == kNone) {
            throw std::invalid_argument(cat("the vocabulary has no token for byte ",
                                            byte_at(text, at), " at offset ", at, " of the text"));
        }
        ids.push_back(token);
        at = token_end;
    }
    return ids;
}

std::string_view WorldTokenizer::token_bytes(int64_t id) const {
    if (id < 0 || id >= n_vocab()) {
        throw std::invalid_argument(cat("token ", id, " is outside the vocabulary of ", n_vocab()));
    }
    const size_t i = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(starts_[i], starts_[i + 1] - starts_[i]);
}

std::string WorldTokenizer::decode(std::span<const int32_t> ids) const {
    std::string out;
    for (const int32_t id : ids) out += token_bytes(id);
    return out;
}

}  // namespace rwkv_edge
