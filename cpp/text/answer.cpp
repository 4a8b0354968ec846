// SPDX-License-Identifier: Apache-2.0
#include "text/answer.h"

#include <algorithm>
#include <stdexcept>

#include "base/error.h"
#include "text/tokenizer.h"

namespace rwkv_edge {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

// Table 3-7 of the Unicode standard: well-formed UTF-8.
void Utf8Stream::begin(unsigned char byte, std::string& out) {
    low_ = 0x80;
    high_ = 0xbf;
    missing_ = 0;
    if (byte < 0x80) {
        out += static_cast<char>(byte);
        return;
    }
    if (byte >= 0xc2 && byte <= 0xdf) missing_ = 1;
    if (byte >= 0xe0 && byte <= 0xef) missing_ = 2;
    if (byte >= 0xf0 && byte <= 0xf4) missing_ = 3;
    if (missing_ == 0) {
        out += kReplacement;
        return;
    }
    if (byte == 0xe0) low_ = 0xa0;
    if (byte == 0xed) high_ = 0x9f;  // no surrogates
    if (byte == 0xf0) low_ = 0x90;
    if (byte == 0xf4) high_ = 0x8f;
    pending_ += static_cast<char>(byte);
}

std::string Utf8Stream::push(std::string_view bytes) {
    std::string out;
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        if (pending_.empty()) {
            begin(byte, out);
        } else if (byte >= low_ && byte <= high_) {
            low_ = 0x80;
            high_ = 0xbf;
            pending_ += c;
            if (--missing_ > 0) continue;
            out += pending_;
            pending_.clear();
        } else {
            out += flush();
            begin(byte, out);
        }
    }
    return out;
}

std::string Utf8Stream::flush() {
    if (pending_.empty()) return {};
    pending_.clear();
    return std::string(kReplacement);
}

double frequency_weight(std::string_view bytes) {
    return std::string_view(" \t0123456789").find(bytes) == std::string_view::npos ? 1.0 : 0.0;
}

Answer::Answer(AnswerOptions options) : options_(std::move(options)), left_(options_.max_tokens) {
    if (left_ < 0)
        throw std::invalid_argument(cat("max_tokens: found ", left_, ", expected at least 0"));
    if (std::ranges::any_of(options_.stop, &std::string::empty))
        throw std::invalid_argument("stop: found an empty string, expected some text");
}

Finish Answer::ends_at(int32_t token) const {
    if (std::ranges::count(options_.stop_tokens, token) != 0) return Finish::Stop;
    return token == kEndOfText ? Finish::End : Finish::None;
}

std::string Answer::take(int32_t token, std::string_view bytes, bool last) {
    if (const Finish reason = ends_at(token); reason != Finish::None) return end(reason);
    --left_;
    ends_.push_back((ends_.empty() ? 0 : ends_.back()) + bytes.size());
    tokens_.push_back(token);
    held_ += bytes;
    if (const std::size_t stop = find_stop(); stop != std::string::npos) {
        const std::string_view text = held_;
        stopped_by_ = &*std::ranges::find_if(
            options_.stop, [&](const std::string& s) { return text.substr(stop).starts_with(s); });
        return end(Finish::Stop, text.substr(0, stop));
    }
    if (last) return end(Finish::Stop);
    if (left_ == 0) return end(Finish::Length);
    const std::size_t cut = held_.size() - held_back();
    std::string text = characters_.push(std::string_view(held_).substr(0, cut));
    held_.erase(0, cut);
    given_ = ends_.back() - held_.size() - characters_.pending();
    return text;
}

std::string Answer::end(Finish reason) { return end(reason, held_); }

std::string Answer::end(Finish reason, std::string_view rest) {
    finish_ = reason;
    given_ += characters_.pending() + rest.size();
    std::string text = characters_.push(rest);
    return text += characters_.flush();
}

Answer::Given Answer::given() const {
    const auto whole = std::ranges::upper_bound(ends_, given_) - ends_.begin();
    const auto count = static_cast<std::size_t>(whole);
    return {count, given_ - (count == 0 ? 0 : ends_[count - 1])};
}

// Where the first stop string begins, or npos.
std::size_t Answer::find_stop() const {
    std::size_t first = std::string::npos;
    for (const std::string& stop : options_.stop) first = std::min(first, held_.find(stop));
    return first;
}

// How many bytes at the end may turn out to begin a stop string.
std::size_t Answer::held_back() const {
    std::size_t most = 0;
    for (const std::string& stop : options_.stop) {
        for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > most; --n)
            if (held_.ends_with(std::string_view(stop).substr(0, n))) most = n;
    }
    return most;
}

}  // namespace rwkv_edge
