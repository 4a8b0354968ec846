// SPDX-License-Identifier: Apache-2.0
#include <random>
#include <stdexcept>

#include "base/error.h"
#include "check.h"
#include "text/world_tokenizer.h"

using namespace rwkv_edge;

namespace {

using Ids = std::vector<int32_t>;
using Vocabulary = std::vector<std::optional<std::string>>;

// Id 0, then every byte, then `words`: the first of them is 257.
Vocabulary bytes_and(std::initializer_list<const char*> words) {
    Vocabulary out{std::nullopt};
    for (int byte = 0; byte < 256; ++byte)
        out.emplace_back(std::string(1, static_cast<char>(byte)));
    for (const char* word : words) out.emplace_back(word);
    return out;
}

int32_t byte_id(char c) { return 1 + static_cast<unsigned char>(c); }

std::string decode(const WorldTokenizer& tokenizer, const Ids& ids) {
    std::string text;
    for (const int32_t id : ids) text += tokenizer.token_bytes(id);
    return text;
}

WorldTokenizer from_gguf(const std::vector<std::string_view>& tokens, const Ids& types = {}) {
    return WorldTokenizer::from_gguf(tokens, types, "a.gguf");
}

}  // namespace

TEST(the_longest_match_wins) {
    const WorldTokenizer tokenizer(bytes_and({"ab", "abcd", "bc", "cde", "\n\n"}));
    CHECK(tokenizer.n_vocab() == 262);
    CHECK(tokenizer.encode("").empty());
    CHECK(tokenizer.encode("ab") == Ids{257});
    CHECK((tokenizer.encode("abcde") == Ids{258, byte_id('e')}));
    CHECK((tokenizer.encode("abc") == Ids{257, byte_id('c')}));
    CHECK((tokenizer.encode("abcx") == Ids{257, byte_id('c'), byte_id('x')}));
    CHECK((tokenizer.encode("\n\n\n") == Ids{261, byte_id('\n')}));
}

TEST(id_0_unused_ids_and_empty_tokens_never_encode) {
    const WorldTokenizer tokenizer(Vocabulary{"a", "a", std::nullopt, "", "a", "b"});
    CHECK((tokenizer.encode("ab") == Ids{1, 5}));
    CHECK(tokenizer.token_bytes(0).empty());
    CHECK(decode(tokenizer, Ids{0, 1, 2, 3, 4, 5}) == "aab");
    CHECK((tokenizer.without_text() == Ids{2, 3}));
}

TEST(tokens_that_begin_alike) {
    // Longer than what is compared at once, with zeros, and one the beginning of another.
    using namespace std::string_literals;
    const Vocabulary words{std::nullopt, "a\0"s, "a"s, "aaaaaaaab"s, "aaaaaaaac"s, "aaaaaaaa"s};
    const WorldTokenizer tokenizer(words);
    CHECK((tokenizer.encode("aaaaaaaacaaaaaaaabaaaaaaaaa\0a"s) == Ids{4, 3, 5, 1, 2}));
}

TEST(any_bytes_survive) {
    const WorldTokenizer tokenizer(bytes_and({"\xe4\xbd\xa0", "\xff\xfe", "aa", "aaaa"}));
    std::mt19937 random(1);
    for (int i = 0; i < 500; ++i) {
        std::string text(random() % 64, '\0');
        for (char& c : text) c = "a\xe4\xbd\xa0\xff\xfe\0z"[random() % 8];
        CHECK_CASE(decode(tokenizer, tokenizer.encode(text)) == text, text);
    }
}

TEST(what_the_vocabulary_lacks_is_an_error) {
    const WorldTokenizer tokenizer(Vocabulary{std::nullopt, "a", "bc"});
    CHECK_THROWS(std::invalid_argument, "no token for byte 98 at offset 2",
                 tokenizer.encode("aab"));
    CHECK_THROWS(std::invalid_argument, "no token for byte 255 at offset 0",
                 tokenizer.encode("\xff"));
    CHECK_THROWS(std::invalid_argument, "token 3 is outside the vocabulary of 3",
                 tokenizer.token_bytes(3));
    CHECK_THROWS(std::invalid_argument, "token -1 is", tokenizer.token_bytes(-1));
    CHECK_THROWS(std::invalid_argument, "a vocabulary of 0 tokens", WorldTokenizer(Vocabulary{}));
    CHECK_THROWS(std::invalid_argument, "no token for byte 120", WorldTokenizer({"x"}).encode("x"));
}

TEST(the_text_form_of_gguf_is_undone) {
    const WorldTokenizer tokenizer = from_gguf(
        {"<s>", R"(\t\n\r\\\')", R"(\x00\xfF)", R"("')", R"(\")", "[PAD5]", "[PAD9]", "\xc3\xa9"});
    CHECK(tokenizer.token_bytes(0).empty());
    CHECK(tokenizer.token_bytes(1) == "\t\n\r\\'");
    CHECK(tokenizer.token_bytes(2) == std::string_view("\0\xff", 2));
    CHECK(tokenizer.token_bytes(3) == "\"'");
    CHECK(tokenizer.token_bytes(4) == "\"");
    CHECK(tokenizer.token_bytes(5).empty());  // named as the filler of its own id
    CHECK(tokenizer.token_bytes(6) == "[PAD9]");
    CHECK(tokenizer.token_bytes(7) == "\xc3\xa9");
}

TEST(token_types_of_gguf_take_tokens_out) {
    const WorldTokenizer tokenizer = from_gguf({"<s>", "a", "a", "a", "b"}, {1, 3, 5, 1, 6});
    CHECK((tokenizer.encode("ab") == Ids{3, 4}));
    CHECK(decode(tokenizer, Ids{1, 2}).empty());
}

TEST(bad_vocabularies_of_gguf) {
    CHECK_THROWS(FormatError, "a.gguf: tokenizer.ggml.tokens: found no tokens", from_gguf({}));
    CHECK_THROWS(FormatError, "a.gguf: tokenizer.ggml.token_type: found 1 entries, expected 2",
                 from_gguf({"<s>", "a"}, {1}));
    for (const char* text : {"\\", "a\\q", "\\x", "\\x4", "\\x4g", "\\xg4", "\\x-1", "\\0"}) {
        CHECK_THROWS(FormatError, cat("a.gguf: tokenizer.ggml.tokens[1]: found '", text, "'"),
                     from_gguf({"<s>", text}));
    }
    // What is not text is not read either.
    CHECK(from_gguf({"\\", "\\q"}, {3, 5}).n_vocab() == 2);
}
