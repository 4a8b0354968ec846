// SPDX-License-Identifier: Apache-2.0
// What a text consists of and what ends it, in bytes that come in pieces; the words of chats; the
// tokenizer of a file.
#include <random>
#include <stdexcept>

#include "base/error.h"
#include "check.h"
#include "text/answer.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

const std::string kWrong = "\xef\xbf\xbd";  // U+FFFD

std::string in_pieces(const std::string& bytes, std::size_t cut) {
    Utf8Stream stream;
    std::string out = stream.push(std::string_view(bytes).substr(0, cut));
    CHECK(stream.pending() <= 3);
    out += stream.push(std::string_view(bytes).substr(cut));
    return out + stream.flush();
}

// As `Answer` says of a text that consists of these tokens, in a plain way: all of it is looked at
// again after each token.
struct Plainly {
    std::string text, stop;  // up to the first stop string
    std::size_t most = 0;    // bytes that may be shown before the next token
};
Plainly plainly(const std::string& all, const std::vector<std::string>& stops) {
    Plainly found{all, "", all.size()};
    std::size_t first = std::string::npos;
    for (const std::string& stop : stops)
        if (const std::size_t at = all.find(stop); at < first) {
            first = at;
            found.stop = stop;
        }
    if (first != std::string::npos) {
        found.text = all.substr(0, first);
        return found;
    }
    for (std::size_t n = 0; n <= all.size(); ++n)
        for (const std::string& stop : stops)
            if (stop.starts_with(all.substr(n)) && n < all.size())
                found.most = std::min(found.most, n);
    return found;
}

std::unique_ptr<Tokenizer> tokenizer_of(const GgufBytes& file) {
    const auto bytes = file.bytes();
    return make_tokenizer(*ModelFile::parse(bytes, "a.gguf"));
}

}  // namespace

// The example of the Unicode standard (table 3-8), and each first byte beside what may not follow.
TEST(bytes_that_are_no_utf8_become_replacement_characters) {
    const std::string good = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80\xed\x9f\xbf\xf4\x8f\xbf\xbf";
    const std::pair<std::string, std::string> cases[] = {
        {good, good},
        {"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
         "a" + kWrong + kWrong + kWrong + "b" + kWrong + "c" + kWrong + kWrong + "d"},
        {"\xc0\xaf", kWrong + kWrong},  // too long a form
        {"\xe0\x9f\xbf", kWrong + kWrong + kWrong},
        {"\xf0\x8f\xbf\xbf", kWrong + kWrong + kWrong + kWrong},
        {"\xed\xa0\x80", kWrong + kWrong + kWrong},               // a surrogate
        {"\xf4\x90\x80\x80", kWrong + kWrong + kWrong + kWrong},  // beyond U+10FFFF
        {"\xf5\xff\xfe", kWrong + kWrong + kWrong},
        {"\xe4\xbd", kWrong},  // one for each largest part
        {"\xe4\xe4\xbd\xa0", kWrong + "\xe4\xbd\xa0"},
        {"\xf0\x9f\x98", kWrong},
    };
    for (const auto& [bytes, text] : cases)
        for (std::size_t cut = 0; cut <= bytes.size(); ++cut)
            CHECK_CASE(in_pieces(bytes, cut) == text, text);
}

TEST(blanks_and_digits_may_repeat) {
    for (const char* often : {"", " ", "\t", "0", "9", "12", "0123456789"})
        CHECK_CASE(frequency_weight(often) == 0.0, often);
    for (const char* other : {"a", "  ", "21", " 1", "\n", "0123456789 "})
        CHECK_CASE(frequency_weight(other) == 1.0, other);
}

// Against a plain search in the whole text, for any tokens and stop strings.
TEST(no_part_of_a_stop_string_is_shown) {
    std::mt19937 rng(2);
    const auto word = [&](std::size_t least) {
        std::string out(least + rng() % 4, ' ');
        for (char& c : out) c = "ab"[rng() % 2];
        return out;
    };
    int stopped = 0, held = 0;
    for (int round = 0; round < 2000; ++round) {
        std::vector<std::string> stops(rng() % 4);
        for (std::string& stop : stops) stop = word(2);
        Answer answer({.stop = stops, .max_tokens = 12});
        std::string all, text;
        std::vector<int32_t> tokens;
        while (answer.wants_token()) {
            const std::string bytes = word(0);
            all += bytes;
            tokens.push_back(static_cast<int32_t>(tokens.size()) + 1);
            text += answer.take(tokens.back(), bytes);
            const Plainly right = plainly(all, stops);
            if (!right.stop.empty()) {
                ++stopped;
                CHECK(answer.finish() == Finish::Stop && text == right.text);
                // Of those that begin at one place the first one of the list counts.
                CHECK(answer.stopped_by() != nullptr && right.stop == *answer.stopped_by());
                break;
            }
            if (answer.finish() == Finish::Length) {
                CHECK(tokens.size() == 12 && text == all && !answer.wants_token());
                break;
            }
            held += text.size() < all.size();
            CHECK(answer.finish() == Finish::None && text == all.substr(0, right.most));
            CHECK(answer.all_given() == (text.size() == all.size()));
        }
        CHECK(answer.tokens() == tokens);
        // What was shown are so many tokens and a part of the next one.
        CHECK(answer.given().tokens <= tokens.size());
    }
    CHECK(stopped > 500 && held > 500);
}

TEST(what_was_shown_is_counted_in_tokens_and_bytes) {
    Answer answer({.stop = {"cd"}, .max_tokens = 9});
    const auto given = [&](std::size_t tokens, std::size_t bytes) {
        return answer.given().tokens == tokens && answer.given().bytes == bytes;
    };
    CHECK(answer.all_given() && given(0, 0));
    CHECK(answer.take(1, "ab") == "ab" && given(1, 0));
    CHECK(answer.take(2, "xyc") == "xy" && given(1, 2) && !answer.all_given());
    CHECK(answer.take(3, "") == "" && given(1, 2));
    CHECK(answer.take(4, "b") == "cb" && given(4, 0) && answer.all_given());
    CHECK(answer.take(5, "\xe4\xbd") == "" && given(4, 0));  // no whole character
    CHECK(answer.take(6, "\xa0\xf0") == "\xe4\xbd\xa0" && given(5, 1));
    CHECK(answer.take(7, "cde") == kWrong);  // which was shown for a byte
    CHECK(answer.finish() == Finish::Stop && *answer.stopped_by() == "cd" && given(6, 0));
    CHECK((answer.tokens() == std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7}));
}

TEST(what_ends_a_text) {
    const auto answer = [](int64_t most) {
        return AnswerOptions{.stop = {"::"}, .stop_tokens = {7}, .max_tokens = most};
    };
    Answer at_stop(answer(9));
    CHECK(at_stop.ends_at(7) == Finish::Stop && at_stop.ends_at(0) == Finish::End &&
          at_stop.ends_at(6) == Finish::None);
    CHECK(at_stop.take(6, "a:") == "a" && at_stop.take(7, "not shown") == ":");
    CHECK(at_stop.finish() == Finish::Stop && at_stop.stopped_by() == nullptr);
    CHECK((at_stop.tokens() == std::vector<int32_t>{6}));
    Answer at_end(answer(9));
    CHECK(at_end.take(0, "") == "" && at_end.finish() == Finish::End && at_end.tokens().empty());
    Answer last(answer(9));
    CHECK(last.take(3, "a:", true) == "a:" && last.finish() == Finish::Stop);
    Answer limited(answer(9));
    CHECK(limited.take(3, "a:") == "a");
    limited.limit(20);
    limited.limit(1);
    CHECK(limited.wants_token() && limited.take(4, "\xe4") == ":" + kWrong &&
          limited.finish() == Finish::Length && !limited.wants_token());
    Answer none(answer(0));
    CHECK(!none.wants_token() && none.end(Finish::Length) == "" && none.given().tokens == 0);
    CHECK_THROWS(std::invalid_argument, "max_tokens: found -1, expected at least 0",
                 Answer(answer(-1)));
    CHECK_THROWS(std::invalid_argument, "stop: found an empty string, expected some text",
                 Answer({.stop = {"a", ""}}));
}

// --- the words of chats ---

TEST(conversations_are_written_in_the_words_of_training) {
    const auto said = [](const char* name) {
        const ChatTemplate* words = find_chat_template(name);
        if (words == nullptr) return std::string("none");
        return words->told("Be brief.") + words->asked("hi") + words->answered("Hello.") +
               words->asked("and") + words->answered("");
    };
    for (const char* name : {"world", "g1"})
        CHECK(said(name) ==
              "System: Be brief.\n\nUser: hi\n\nAssistant: Hello.\n\nUser: and\n\nAssistant:\n\n");
    CHECK(said("raven") == "\nBe brief.\n\nBob: hi\n\nAlice: Hello.\n\nBob: and\n\nAlice:\n\n");
    CHECK(said("instruct") ==
          "Be brief.\n\n# Instruction:\nhi\n\n# Response:\nHello.\n\n# Instruction:\nand\n\n"
          "# Response:\n\n\n");
    CHECK(said("raw") == "hiHello.and");
    CHECK(said("World") == "none");
    CHECK(find_chat_template("g1")->told("").empty());
    for (const ChatTemplate& each : chat_templates()) {
        CHECK_CASE(find_chat_template(each.name) == &each, std::string(each.name));
        CHECK_CASE(each.think == (each.name == "g1"), std::string(each.name));
        // An answer cannot go on with the user's next turn.
        const std::string turn = each.answered("a") + each.asked("b");
        bool ends = each.exact;
        for (const std::string_view stop : each.stop) ends |= turn.find(stop) != std::string::npos;
        CHECK_CASE(ends, std::string(each.name));
    }
}

TEST(a_text_cannot_end_its_turn) {
    const std::string text = "\n hi\r\n\r\n\nthere\rfriend \xe3\x80\x80";
    CHECK(find_chat_template("world")->clean(text) == "hi\nthere\nfriend");
    CHECK(find_chat_template("raven")->clean(text) == "hi\nthere\nfriend");
    CHECK(find_chat_template("raw")->clean(text) == text);
    // What ends no turn may stay.
    ChatTemplate words = *find_chat_template("world");
    words.user = "<u>{}</u>";
    CHECK(words.clean(text) == "hi\n\n\nthere\nfriend");
    CHECK(words.asked("{}") == "<u>{}</u>Assistant:");  // the first place, once
}

TEST(white_space_is_that_of_python) {
    // str.strip() takes these away, and no other.
    const std::vector<std::string> blanks = {"\t",           "\n",           "\v",
                                             "\f",           "\r",           " ",
                                             "\x1c",         "\x1d",         "\x1e",
                                             "\x1f",         "\xc2\x85",     "\xc2\xa0",
                                             "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x8a",
                                             "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf",
                                             "\xe2\x81\x9f", "\xe3\x80\x80"};
    for (const std::string& blank : blanks) {
        CHECK_CASE(stripped(blank + "a" + blank + "b" + blank + blank) == "a" + blank + "b", blank);
        CHECK_CASE(stripped(blank).empty(), blank);
    }
    for (const std::string other : {"\xe2\x80\x8b", "\xef\xbb\xbf", "\x1b", "\xc2\xad", "\x85"})
        CHECK_CASE(stripped(other) == other, other);
    CHECK(stripped("").empty() && stripped("a") == "a");
}

TEST(names_say_the_template) {
    for (const char* name : {"rwkv7-g1-0.4b", "G1", "x.g0a3.gguf", "RWKV7-G1b-1.5B", "rwkv7-g1a2"})
        CHECK_CASE(is_g1(name) && template_by_name(name)->name == "g1", name);
    for (const char* name : {"", "g", "g2", "rwkv-g10", "bg1", "g1ab", "g1a22", "4g1", "g1_"})
        CHECK_CASE(is_g1(name) == (std::string(name) == "g1_"), name);
    for (const auto& [name, expected] : {std::pair{"RWKV-4-Raven-7B", "raven"},
                                         {"rwkv-4-PILE", "raven"},
                                         {"RWKV-x060-World-3B", "world"},
                                         {"world-pile", "raven"}})
        CHECK_CASE(template_by_name(name) == find_chat_template(expected), name);
    CHECK(template_by_name("model.gguf") == nullptr);
    CHECK(template_by_words("{{ 'User: ' }} Assistant:")->name == "world");
    CHECK(template_by_words("User: Assistant: <think>")->name == "g1");
    CHECK(template_by_words("Bob: Alice:")->name == "raven");
    CHECK(template_by_words("User: Alice:") == nullptr);
}

TEST(what_decides_the_template_of_a_file) {
    const auto chosen = [](auto change, const std::string& path, const std::string& words,
                           const std::string& source) {
        GgufBytes file;
        change(file);
        const auto bytes = file.bytes();
        const ChosenTemplate found = choose_chat_template(*ModelFile::parse(bytes, path));
        CHECK_CASE(found.words->name == words && found.source == source, path + " " + words);
    };
    const auto none = [](GgufBytes&) {};
    chosen(none, "/pile/m.gguf", "world", "by its tokenizer");  // a folder says nothing
    chosen(none, "/x/rwkv-4-pile.gguf", "raven", "by its name");
    chosen(none, "C:\\pile\\rwkv7-g1-0.1b.gguf", "g1", "by its name");
    chosen([](GgufBytes& file) { file.text("general.basename", "G1"); }, "raven", "g1",
           "by its name");
    chosen([](GgufBytes& file) { file.text("general.finetune", "Raven"); }, "m", "raven",
           "by its name");
    chosen([](GgufBytes& file) { file.key("general.name", ValueType::U32, 7u); }, "m", "world",
           "by its tokenizer");
    const auto jinja = [](const char* text) {
        return [text](GgufBytes& file) { file.text("tokenizer.chat_template", text); };
    };
    chosen(jinja("User: Assistant: <think"), "m", "g1", "by its chat template");
    chosen(jinja("Bob: Alice:"), "world", "world", "by its name");
    chosen(jinja("[INST]"), "m", "world", "by its tokenizer");
    chosen([](GgufBytes& file) { file.text("tokenizer.ggml.model", "gpt2"); }, "m", "raven",
           "by its tokenizer");
}

// --- the tokenizer of a file ---

TEST(a_world_vocabulary_of_a_file) {
    GgufBytes file;
    file.text("tokenizer.ggml.model", "rwkv");
    CHECK_THROWS(FormatError, "a.gguf: key tokenizer.ggml.tokens is missing", tokenizer_of(file));
    file.texts("tokenizer.ggml.tokens", {"<s>", "a", "b", "ab"});
    const auto tokenizer = tokenizer_of(file);
    CHECK(tokenizer->kind() == std::string("world") && tokenizer->n_vocab() == 4);
    CHECK((tokenizer->encode("abb") == std::vector<int32_t>{3, 2}));
    CHECK(tokenizer->decode(std::vector<int32_t>{3, 0, 1}) == "aba");
    file.array("tokenizer.ggml.token_type", ValueType::I32, std::vector<int32_t>{1, 1, 1, 3});
    CHECK((tokenizer_of(file)->encode("abb") == std::vector<int32_t>{1, 2, 2}));
    CHECK((tokenizer_of(file)->without_text() == std::vector<int32_t>{3}));
    file.array("tokenizer.ggml.token_type", ValueType::U8, std::vector<uint8_t>{1, 1, 1, 3});
    CHECK_THROWS(FormatError,
                 "a.gguf: tokenizer.ggml.token_type is array[uint8], expected array[int32]",
                 tokenizer_of(file));
    file.key("tokenizer.ggml.tokens", ValueType::F32, 1.0f);
    CHECK_THROWS(FormatError, "a.gguf: tokenizer.ggml.tokens is float32, expected array[string]",
                 tokenizer_of(file));
}

TEST(files_without_a_tokenizer_that_is_read) {
    GgufBytes file;
    CHECK_THROWS(FormatError, "a.gguf: no tokenizer (key tokenizer.ggml.model is missing)",
                 tokenizer_of(file));
    file.key("tokenizer.ggml.model", ValueType::Bool, uint8_t{1});
    CHECK_THROWS(FormatError,
                 "a.gguf: key 'tokenizer.ggml.model' is of type bool, expected a string",
                 tokenizer_of(file));
    file.text("tokenizer.ggml.model", "llama");
    CHECK_THROWS(UnsupportedError,
                 "a.gguf: tokenizer.ggml.model is 'llama'; supported are 'rwkv', 'gpt2' with "
                 "tokenizer.huggingface.json, and sentencepiece models whose file is in "
                 "rwkv_edge.sentencepiece_model",
                 tokenizer_of(file));
    file.array("rwkv_edge.sentencepiece_model", ValueType::U8, std::vector<uint8_t>{255, 255});
    CHECK_THROWS(FormatError, "a.gguf: not a sentencepiece model", tokenizer_of(file));
    file.array("rwkv_edge.sentencepiece_model", ValueType::I8, std::vector<int8_t>{10, 0});
    CHECK_THROWS(FormatError, "rwkv_edge.sentencepiece_model is array[int8], expected array[uint8]",
                 tokenizer_of(file));
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.huggingface.json", "{}");
    CHECK_THROWS(UnsupportedError,
                 "a.gguf: a Hugging Face tokenizer (tokenizer.huggingface.json), which only the "
                 "Python package reads",
                 tokenizer_of(file));
}
