// SPDX-License-Identifier: Apache-2.0
#include "generate.h"

#include <memory>
#include <vector>

#include "base/error.h"

namespace rwkv_edge {

namespace {

class Writer {
public:
    Writer(Session& session, const Tokenizer& tokenizer, SamplerOptions sampling,
           AnswerOptions answer)
        : session_(session),
          tokenizer_(tokenizer),
          sampler_(without_silence(std::move(sampling))),
          answer_(std::move(answer)),
          logits_(static_cast<std::size_t>(session.model().config().n_vocab)) {}

    void read(std::span<const int32_t> prompt, const Session::Progress& progress) {
        if (prompt.empty())
            session_.logits(logits_.data());
        else
            session_.feed(prompt, Session::Logits::Last, logits_.data(), progress);
        start_ = session_.tokens();
    }

    void write(const std::function<bool(std::string_view)>& piece) {
        for (;;) {
            const std::string text = next();
            if (!text.empty() && !piece(text)) {
                if (answer_.finish() == Finish::None) cancelled_ = true;
                return;
            }
            if (answer_.finish() != Finish::None) return;
            feed_last();
        }
    }

    // Leaves the session where the text ends that was handed out.
    Generated settle() {
        const auto [whole, bytes] = answer_.given();
        const std::vector<int32_t>& tokens = answer_.tokens();
        if (fed() > whole) session_.rewind(*mark_);
        std::vector<int32_t> rest(tokens.begin() + static_cast<std::ptrdiff_t>(fed()),
                                  tokens.begin() + static_cast<std::ptrdiff_t>(whole));
        std::vector<int32_t> all(tokens.begin(),
                                 tokens.begin() + static_cast<std::ptrdiff_t>(whole));
        if (bytes > 0) {
            const std::string_view part = tokenizer_.token_bytes(tokens[whole]).substr(0, bytes);
            for (const int32_t id : tokenizer_.encode(part)) {
                rest.push_back(id);
                all.push_back(id);
            }
        }
        if (!rest.empty()) session_.feed(rest, Session::Logits::None, nullptr);
        return {cancelled_ ? Finish::Cancelled : answer_.finish(), std::move(all)};
    }

private:
    std::size_t fed() const { return static_cast<std::size_t>(session_.tokens() - start_); }

    SamplerOptions without_silence(SamplerOptions options) const {
        for (const int32_t id : tokenizer_.without_text()) options.banned.push_back(id);
        const auto n_vocab = static_cast<int32_t>(session_.model().config().n_vocab);
        for (int32_t id = tokenizer_.n_vocab(); id < n_vocab; ++id) options.banned.push_back(id);
        return options;
    }

    std::string next() {
        if (!answer_.wants_token()) return answer_.end(Finish::Length);
        const int32_t token = sampler_.sample(logits_);
        const std::string_view bytes = tokenizer_.token_bytes(token);
        std::string text = answer_.take(token, bytes);
        sampler_.accept(token, frequency_weight(bytes));
        return text;
    }

    // Of the tokens that were fed when the mark was made, all text was handed out.
    void feed_last() {
        if (answer_.all_given()) {
            marked_ = false;
        } else if (!marked_) {
            if (mark_ == nullptr)
                mark_ = session_.fork();
            else
                mark_->rewind(session_);
            marked_ = true;
        }
        session_.feed({&answer_.tokens().back(), 1}, Session::Logits::Last, logits_.data());
    }

    Session& session_;
    const Tokenizer& tokenizer_;
    Sampler sampler_;
    Answer answer_;
    std::vector<float> logits_;
    int64_t start_ = 0;
    std::unique_ptr<Session> mark_;
    bool marked_ = false, cancelled_ = false;
};

}  // namespace

Generated generate(Session& session, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                   SamplerOptions sampling, AnswerOptions answer, const Session::Progress& progress,
                   const std::function<bool(std::string_view)>& piece) {
    Writer writer(session, tokenizer, std::move(sampling), std::move(answer));
    writer.read(prompt, progress);
    try {
        writer.write(piece);
    } catch (const std::exception&) {
        writer.settle();
        throw;
    }
    return writer.settle();
}

}  // namespace rwkv_edge
