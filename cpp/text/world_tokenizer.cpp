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

constexpr std::size_t kMostTokens = std::numeric_limits<int32_t>::max();
// Encoding looks at no more bytes than this for each byte of a text. The longest token of the World
// vocabulary has 128.
constexpr std::size_t kLongestToken = 256;

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

// Undoes repr(bytes)[2:-1], and appends the bytes to `out`. Returns false where a backslash begins
// none of its escapes.
bool unescape(std::string_view text, std::string& out) {
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\') {
            out += text[i];
            continue;
        }
        if (++i == text.size()) return false;
        switch (text[i]) {
            case 't': out += '\t'; break;
            case 'n': out += '\n'; break;
            case 'r': out += '\r'; break;
            case '\\':
            case '\'':
            case '"': out += text[i]; break;
            case 'x': {
                if (i + 2 >= text.size()) return false;
                const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
                if (high < 0 || low < 0) return false;
                out += static_cast<char>(high * 16 + low);
                i += 2;
                break;
            }
            default: return false;
        }
    }
    return true;
}

// Whether a text is the filler that stands for an id that no token has.
bool is_padding(std::string_view text, size_t id) {
    return text.starts_with("[PAD") && text == cat("[PAD", id, "]");
}

unsigned byte_at(std::string_view text, size_t i) { return static_cast<unsigned char>(text[i]); }

}  // namespace

WorldTokenizer::WorldTokenizer(const std::vector<std::optional<std::string>>& tokens) {
    if (tokens.empty() || tokens.size() > kMostTokens) {
        throw std::invalid_argument(cat("a vocabulary of ", tokens.size(), " tokens"));
    }
    starts_.reserve(tokens.size() + 1);
    for (size_t id = 0; id < tokens.size(); ++id) {
        const bool text = id != kEndOfText && tokens[id];
        if (text && tokens[id]->size() > kLongestToken)
            throw std::invalid_argument(cat("token ", id, " has ", tokens[id]->size(),
                                            " bytes, expected at most ", kLongestToken));
        add(text ? std::string_view(*tokens[id]) : std::string_view());
    }
    sort();
}

WorldTokenizer WorldTokenizer::from_gguf(std::span<const std::string_view> tokens,
                                         std::span<const int32_t> types, const std::string& path) {
    const auto fail = [&](const auto&... what) {
        throw FormatError(cat(path, ": tokenizer.ggml.", what...));
    };
    if (tokens.empty()) fail("tokens: found no tokens");
    if (tokens.size() > kMostTokens)
        fail("tokens: found ", tokens.size(), ", expected at most ", kMostTokens);
    if (!types.empty() && types.size() != tokens.size()) {
        fail("token_type: found ", types.size(), " entries, expected ", tokens.size(),
             " as in tokenizer.ggml.tokens");
    }
    WorldTokenizer made;
    made.starts_.reserve(tokens.size() + 1);
    std::string bytes;
    for (size_t id = 0; id < tokens.size(); ++id) {
        bytes.clear();
        const bool text = types.empty() || (types[id] != kControl && types[id] != kUnused);
        if (id != kEndOfText && text && !is_padding(tokens[id], id)) {
            const std::string_view start = tokens[id].substr(0, 60);
            if (!unescape(tokens[id], bytes))
                fail("tokens[", id, "]: found '", start, "', expected bytes as Python writes them");
            if (bytes.size() > kLongestToken)
                fail("tokens[", id, "]: found ", bytes.size(), " bytes, '", start,
                     "', expected at most ", kLongestToken);
        }
        made.add(bytes);
    }
    made.sort();
    return made;
}

// Most comparisons end in the first eight bytes, which a number holds.
void WorldTokenizer::sort() {
    struct Entry {
        uint64_t prefix;
        int32_t id;
    };
    std::vector<Entry> entries;
    entries.reserve(starts_.size());
    for (int32_t id = 0; id < n_vocab(); ++id) {
        const std::string_view bytes = token(id);
        if (bytes.empty()) continue;
        uint64_t prefix = 0;
        for (size_t i = 0; i < sizeof(prefix); ++i)
            prefix = prefix << 8 | (i < bytes.size() ? byte_at(bytes, i) : 0);
        entries.push_back({prefix, id});
    }
    std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
        if (a.prefix != b.prefix) return a.prefix < b.prefix;
        const int order = token(a.id).compare(token(b.id));
        return order != 0 ? order < 0 : a.id < b.id;
    });
    for (const Entry& entry : entries) {
        if (sorted_.empty() || token(sorted_.back()) != token(entry.id))
            sorted_.push_back(entry.id);
    }
}

// Narrows the range of the tokens that the text agrees with, byte by byte.
int32_t WorldTokenizer::longest_match(std::string_view text) const {
    int32_t found = kNone;
    auto begin = sorted_.begin(), end = sorted_.end();
    for (size_t depth = 0; depth < text.size(); ++depth) {
        const auto before = [&](int32_t id, unsigned byte) {
            return byte_at(token(id), depth) < byte;
        };
        begin = std::lower_bound(begin, end, byte_at(text, depth), before);
        end = std::lower_bound(begin, end, byte_at(text, depth) + 1, before);
        if (begin == end) break;
        // A token that ends here stands before those that go on.
        if (token(*begin).size() == depth + 1) found = *begin++;
    }
    return found;
}

std::vector<int32_t> WorldTokenizer::encode(std::string_view text) const {
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3);
    for (size_t at = 0; at < text.size(); at += token(ids.back()).size()) {
        const int32_t id = longest_match(text.substr(at));
        if (id == kNone) {
            throw std::invalid_argument(cat("the vocabulary has no token for byte ",
                                            byte_at(text, at), " at offset ", at, " of the text"));
        }
        ids.push_back(id);
    }
    return ids;
}

}  // namespace rwkv_edge
