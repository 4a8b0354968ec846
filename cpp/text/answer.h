// SPDX-License-Identifier: Apache-2.0
// Text from tokens as they are chosen: whole characters, and no part of a stop string.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv_edge {

// Decodes UTF-8 that comes in pieces. What is not UTF-8 becomes U+FFFD, one for each largest part
// that could begin a character, as Python's "replace" has it.
class Utf8Stream {
public:
    // The characters that are now complete.
    std::string push(std::string_view bytes);
    // Ends the text: U+FFFD if its last character is incomplete.
    std::string flush();
    // Bytes that wait for the rest of their character.
    std::size_t pending() const { return pending_.size(); }

private:
    void begin(unsigned char byte, std::string& out);

    std::string pending_;
    int missing_ = 0;                         // bytes of the pending character
    unsigned char low_ = 0x80, high_ = 0xbf;  // what the next of them may be
};

// How much a token counts for the frequency penalty: nothing where it is a blank or digits, so that
// numbers and columns may repeat.
double frequency_weight(std::string_view bytes);

// Why a text ended: at a stop string or token, at max_tokens, at the token that ends a document,
// or because nobody wants more of it.
enum class Finish { None, Stop, Length, End, Cancelled };

struct AnswerOptions {
    std::vector<std::string> stop = {};  // none of them empty
    std::vector<int32_t> stop_tokens = {};
    int64_t max_tokens = 256;
};

// A text in the making. It knows no model: whoever chooses tokens shows each of them to it.
class Answer {
public:
    // Throws std::invalid_argument for an empty stop string and for max_tokens below 0.
    explicit Answer(AnswerOptions options);
    Answer(const Answer&) = delete;
    Answer& operator=(const Answer&) = delete;

    // Whether a token may follow: if not, `end` is what remains to be called.
    bool wants_token() const { return left_ > 0; }
    // Why the text ends at a token that is no part of it; None where it does not.
    Finish ends_at(int32_t token) const;
    // The text that is certain after a token with these bytes: whole characters that begin no stop
    // string. With `last` no token follows, whatever its text.
    std::string take(int32_t token, std::string_view bytes, bool last = false);
    // Lets at most so many more come.
    void limit(int64_t tokens) { left_ = std::min(left_, tokens); }
    // Ends the text; returns what was held back.
    std::string end(Finish reason);

    Finish finish() const { return finish_; }
    // The stop string that ended the text, the first of those that begin there; null without one.
    const std::string* stopped_by() const { return stopped_by_; }
    // All that were taken, but for the one that ended the text without being part of it.
    const std::vector<int32_t>& tokens() const { return tokens_; }

    // What the returned text consists of: so many tokens, and so many bytes of the next one.
    struct Given {
        std::size_t tokens, bytes;
    };
    Given given() const;
    bool all_given() const { return given_ == (ends_.empty() ? 0 : ends_.back()); }

private:
    std::string end(Finish reason, std::string_view rest);
    std::size_t find_stop() const;
    std::size_t held_back() const;

    AnswerOptions options_;
    int64_t left_;
    Utf8Stream characters_;
    std::string held_;               // the end of the tokens' bytes, which may begin a stop string
    std::size_t given_ = 0;          // bytes that were returned
    std::vector<std::size_t> ends_;  // where the bytes of each token end
    std::vector<int32_t> tokens_;
    Finish finish_ = Finish::None;
    const std::string* stopped_by_ = nullptr;  // one of options_.stop
};

}  // namespace rwkv_edge
