// SPDX-License-Identifier: Apache-2.0
// The loop of C programs: what it hands out, and that the session then stands where the text ends.
// Tokens are forced, so that every end of a text comes when it is wanted.
#include <stdexcept>

#include "check.h"
#include "generate.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

using Ids = std::vector<int32_t>;

// Tokens 14 and 15 are named as fillers, and the vocabulary is smaller than the model's.
const std::vector<std::string> kTokens = {"<s>",   "a",      "b",       "c",      "ab", "x",
                                          "\\n",   "User",   ":",       "abc",    "bx", "\\xe4",
                                          "\\xbd", "\\xa0c", "[PAD14]", "[PAD15]"};
const Ids kPrompt = {5, 5, 1};

class Text {
public:
    Text() : bytes_(made()), runner_(open_model(bytes_, 1, "cpu")) {
        tokenizer = make_tokenizer(runner_->model().file());
        session = std::make_unique<Session>(runner_);
    }

    // Forces tokens, and then lets the likeliest come.
    Generated write(const Ids& forced, AnswerOptions answer, std::span<const int32_t> prompt) {
        return generate(*session, *tokenizer, prompt, {.temperature = 0, .forced = forced},
                        std::move(answer), {}, [this](std::string_view piece) {
                            CHECK(!piece.empty());
                            pieces.emplace_back(piece);
                            return std::ssize(pieces) < most;
                        });
    }
    Generated write(const Ids& forced, AnswerOptions answer) {
        return write(forced, std::move(answer), kPrompt);
    }
    std::string text() const {
        std::string out;
        for (const std::string& piece : pieces) out += piece;
        return out;
    }
    // Whether the session has the state and the logits of these tokens after the prompt.
    bool stands_after(Ids tokens) const {
        tokens.insert(tokens.begin(), kPrompt.begin(), kPrompt.end());
        Session other(runner_);
        std::vector<float> expected(40), found(40);
        other.feed(tokens, Session::Logits::Last, expected.data());
        session->logits(found.data());
        return state_of(*session) == state_of(other) && found == expected &&
               session->tokens() == other.tokens();
    }

    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<Session> session;
    std::vector<std::string> pieces;
    std::ptrdiff_t most = 1000;  // pieces until the caller has enough

private:
    static std::vector<std::byte> made() {
        GgufBytes file = tiny_model("7", 1);
        file.text("tokenizer.ggml.model", "rwkv");
        file.texts("tokenizer.ggml.tokens", kTokens);
        return file.bytes();
    }

    std::vector<std::byte> bytes_;
    std::shared_ptr<Runner> runner_;
};

}  // namespace

TEST(a_text_of_so_many_tokens) {
    Text whole;
    const Generated found = whole.write({4, 3, 5, 6}, {.max_tokens = 4});
    CHECK(found.finish == Finish::Length && (found.tokens == Ids{4, 3, 5, 6}));
    CHECK((whole.pieces == std::vector<std::string>{"ab", "c", "x", "\n"}));
    CHECK(whole.stands_after({4, 3, 5, 6}));
    // In two calls; the second goes on after the last token.
    Text parts;
    parts.write({4, 3}, {.max_tokens = 2});
    CHECK(parts.write({5, 6}, {.max_tokens = 2}, {}).finish == Finish::Length);
    CHECK(parts.text() == "abcx\n" && parts.stands_after({4, 3, 5, 6}));
    Text none;
    const Generated nothing = none.write({}, {.max_tokens = 0});
    CHECK(nothing.finish == Finish::Length && nothing.tokens.empty() && none.pieces.empty());
    CHECK(none.stands_after({}));
}

TEST(what_ends_a_text_is_not_read) {
    Text at_end;
    CHECK(at_end.write({1, 2, 0, 3}, {}).finish == Finish::End);
    CHECK(at_end.text() == "ab" && at_end.stands_after({1, 2}));
    Text at_token;
    CHECK(at_token.write({1, 2, 7, 3}, {.stop_tokens = {7}}).finish == Finish::Stop);
    CHECK(at_token.text() == "ab" && at_token.stands_after({1, 2}));
}

// Tokens were read that turn out to begin a stop string: the session goes back.
TEST(a_stop_string_over_many_tokens) {
    Text text;
    const Generated found = text.write({3, 6, 7, 8, 1}, {.stop = {"\nUser:"}});
    CHECK(found.finish == Finish::Stop && (found.tokens == Ids{3}));
    CHECK((text.pieces == std::vector<std::string>{"c"}) && text.stands_after({3}));
    // What begins like one and is none comes later, and no token is lost.
    Text other;
    const Generated more = other.write({3, 6, 7, 5, 6, 6, 7, 8}, {.stop = {"\nUser:"}});
    CHECK((other.pieces == std::vector<std::string>{"c", "\nUserx", "\n"}));
    CHECK((more.tokens == Ids{3, 6, 7, 5, 6}) && other.stands_after({3, 6, 7, 5, 6}));
    Text held;  // until there are no more tokens
    CHECK(held.write({3, 6, 7}, {.stop = {"\nUser:"}, .max_tokens = 3}).finish == Finish::Length);
    CHECK(held.text() == "c\nUser" && held.stands_after({3, 6, 7}));
}

// Of the token in which it begins, what stands before it is encoded again.
TEST(a_stop_string_inside_a_token) {
    Text text;
    const Generated found = text.write({3, 9, 1}, {.stop = {"c"}, .max_tokens = 5});
    CHECK(found.finish == Finish::Stop && found.tokens.empty() && text.pieces.empty());
    CHECK(text.stands_after({}));
    Text inside;
    const Generated part = inside.write({5, 9, 1}, {.stop = {"c"}, .max_tokens = 5});
    CHECK((part.tokens == Ids{5, 4}) && inside.text() == "xab" && inside.stands_after({5, 4}));
    // It begins in a token that was held back, and ends in a later one.
    Text over;
    const Generated last = over.write({3, 4, 10, 1}, {.stop = {"bbx"}, .max_tokens = 5});
    CHECK((last.tokens == Ids{3, 1}) && over.text() == "ca" && over.stands_after({3, 1}));
}

TEST(whole_characters_come_at_once) {
    Text text;
    const Generated found = text.write({11, 12, 13, 11}, {.max_tokens = 4});
    CHECK((text.pieces == std::vector<std::string>{"\xe4\xbd\xa0"
                                                   "c",
                                                   "\xef\xbf\xbd"}));
    CHECK((found.tokens == Ids{11, 12, 13, 11}) && text.stands_after({11, 12, 13, 11}));
}

TEST(the_caller_may_end_it) {
    Text text;
    text.most = 2;
    const Generated found = text.write({4, 3, 5, 6}, {.max_tokens = 9});
    CHECK(found.finish == Finish::Cancelled && (found.tokens == Ids{4, 3}));
    CHECK(text.text() == "abc" && text.stands_after({4, 3}));
    // Where tokens were held back, they are not part of it.
    Text held;
    held.most = 1;
    CHECK(held.write({6, 7, 3, 5}, {.stop = {"\nUser:"}}).finish == Finish::Cancelled);
    CHECK(held.text() == "\nUserc" && held.stands_after({6, 7, 3}));
    // What ended by itself with the last piece was not ended by the caller.
    Text last;
    last.most = 1;
    CHECK(last.write({4, 3}, {.max_tokens = 1}).finish == Finish::Length);
}

TEST(an_exception_leaves_the_session_where_the_text_ends) {
    struct Enough : std::runtime_error {
        using std::runtime_error::runtime_error;
    };
    Text text;
    int calls = 0;
    CHECK_THROWS(Enough, "enough",
                 generate(*text.session, *text.tokenizer, kPrompt,
                          {.temperature = 0, .forced = {3, 6, 1, 5, 5}}, {.stop = {"\nUser:"}}, {},
                          [&](std::string_view) -> bool {
                              if (++calls == 2) throw Enough("enough");
                              return true;
                          }));
    CHECK(calls == 2 && text.stands_after({3, 6, 1}));
    // While the prompt is read, the session stays where it was.
    const Ids page(200, 5);
    CHECK_THROWS(
        Enough, "reading",
        generate(
            *text.session, *text.tokenizer, page, {}, {}, [](int64_t) { throw Enough("reading"); },
            [](std::string_view) { return true; }));
    CHECK(text.stands_after({3, 6, 1}));
    CHECK_THROWS(std::invalid_argument, "token 1 is 40, expected 0 to 39",
                 text.write({}, {}, Ids{1, 40}));
    CHECK_THROWS(std::invalid_argument, "stop: found an empty string",
                 text.write({}, {.stop = {""}}));
    CHECK(text.stands_after({3, 6, 1}));
    Text fresh;
    CHECK_THROWS(std::invalid_argument, "no token was fed yet", fresh.write({}, {}, {}));
}

TEST(tokens_without_text_are_never_chosen) {
    Text text;
    const Generated found =
        generate(*text.session, *text.tokenizer, kPrompt,
                 {.temperature = 5, .top_p = 1.0, .seed = 3, .logit_bias = {{0, -1000.0}}},
                 {.max_tokens = 300}, {}, [](std::string_view) { return true; });
    CHECK(found.finish == Finish::Length && found.tokens.size() == 300);
    std::vector<int> times(40);
    for (const int32_t token : found.tokens) ++times[static_cast<std::size_t>(token)];
    for (std::size_t token = 0; token < 40; ++token)  // at this temperature nearly alike
        CHECK((times[token] > 0) == (token >= 1 && token < 14));
    CHECK(text.stands_after(found.tokens));
}

// Digits and blanks do not count for the frequency penalty, whatever they are chosen for.
TEST(what_was_written_is_penalised) {
    Text text;
    const Generated found =
        generate(*text.session, *text.tokenizer, kPrompt,
                 {.temperature = 0, .presence_penalty = 900, .logit_bias = {{0, -1000.0}}},
                 {.max_tokens = 13}, {}, [](std::string_view) { return true; });
    Ids once = found.tokens;
    std::ranges::sort(once);
    CHECK((once == Ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}));
}
