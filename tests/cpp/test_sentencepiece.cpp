// SPDX-License-Identifier: Apache-2.0
// tests/python/test_sentencepiece.py compares with the library.
#include <random>
#include <stdexcept>

#include "base/error.h"
#include "check.h"
#include "text/sentencepiece.h"
#include "text/tokenizer.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

using Ids = std::vector<int32_t>;
constexpr int kUnigram = 1, kBpe = 2;
constexpr PieceType kNormal = PieceType::Normal, kUser = PieceType::UserDefined,
                    kUnused = PieceType::Unused;

std::string field(int number, const std::string& data) {
    std::string out(1, static_cast<char>(number << 3 | 2));
    size_t size = data.size();
    for (; size > 127; size >>= 7) out += static_cast<char>(size % 128 + 128);
    return out + static_cast<char>(size) + data;
}

std::string piece(const std::string& text, float score = 0, PieceType type = kNormal) {
    std::string number(sizeof(score), '\0');
    std::memcpy(number.data(), &score, sizeof(score));
    return field(1, field(1, text) + "\x15" + number + "\x18" + static_cast<char>(type));
}

std::string trainer(int kind, bool bytes) {
    return field(2, {'\x18', static_cast<char>(kind), '\x98', '\x02', static_cast<char>(bytes)});
}

// Token 0 ends a document, token 1 is unknown.
std::string start() {
    return piece("</s>", 0, PieceType::Control) + piece("<unk>", 0, PieceType::Unknown);
}

// From token 2 on.
std::string bytes() {
    std::string out;
    for (int byte = 0; byte < 256; ++byte) {
        constexpr const char* kDigits = "0123456789ABCDEF";
        out += piece(std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">", 0,
                     PieceType::Byte);
    }
    return out;
}

SentencePieceTokenizer make(const std::string& model) {
    return {SentencePieceModel::parse(std::as_bytes(std::span(model)), "a.model"), "a.model"};
}

}  // namespace

TEST(the_best_merge_comes_first_and_then_the_leftmost) {
    const auto tokenizer = make(start() + piece("a", -9) + piece("b", -9) + piece("ab", -2) +
                                piece("ba", -1) + piece("aa", -2) + trainer(kBpe, false));
    CHECK((tokenizer.encode("aba") == Ids{2, 5}));
    CHECK((tokenizer.encode("aab") == Ids{6, 3}));  // aa and ab are equal
    CHECK((tokenizer.encode("aaa") == Ids{6, 2}));
    CHECK(tokenizer.encode("").empty());
}

TEST(unigram_takes_the_largest_sum_and_of_equal_ones_the_longest_last_piece) {
    const auto tokenizer = make(start() + piece("a", -1) + piece("b", -1) + piece("ab", -3) +
                                piece("ba", -1.5f) + piece("aa", -2) + trainer(kUnigram, false));
    CHECK((tokenizer.encode("ab") == Ids{2, 3}));
    CHECK((tokenizer.encode("aba") == Ids{2, 5}));
    CHECK((tokenizer.encode("aa") == Ids{6}));
    CHECK((tokenizer.encode("aaa") == Ids{2, 6}));
}

TEST(user_defined_pieces_stay_whole) {
    const std::string pieces = start() + piece("a", -1) + piece("b", -1) + piece("ab", 0, kUser) +
                               piece("aba", 0, kUser) + piece("bb", 5) + piece("abb", 5);
    const auto bpe = make(pieces + trainer(kBpe, false));
    CHECK((bpe.encode("abab") == Ids{5, 3}));  // the longest, and what is left
    CHECK((bpe.encode("abb") == Ids{4, 3}));
    // Here they have a bonus, no more.
    const auto unigram = make(pieces + trainer(kUnigram, false));
    CHECK((unigram.encode("abab") == Ids{4, 4}));
    CHECK((unigram.encode("aba") == Ids{5}));
    CHECK((unigram.encode("abb") == Ids{7}));
}

TEST(unused_pieces_are_cut_again) {
    const auto tokenizer = make(start() + piece("a", -3) + piece("b", -3) + piece("c", -3) +
                                piece("bc", -1) + piece("abc", -1, kUnused) + trainer(kBpe, false));
    CHECK((tokenizer.encode("abc") == Ids{2, 5}));
    CHECK(tokenizer.token_bytes(6).empty());
    CHECK((tokenizer.without_text() == Ids{1, 6}));
}

TEST(spaces_and_the_character_that_stands_for_them) {
    const std::string block = "\xe2\x96\x81";
    const auto byte = [](int value) { return 2 + value; };
    for (const int kind : {kBpe, kUnigram}) {
        const auto plain = make(start() + bytes() + piece("a", -1) + trainer(kind, true));
        CHECK((plain.encode(" a") == Ids{byte(' '), 258}));
        const auto tokenizer = make(start() + bytes() + piece(block, -1) + piece("a", -1) +
                                    piece(block + "a", -1) + trainer(kind, true));
        CHECK((tokenizer.encode(" a") == Ids{260}));
        CHECK((tokenizer.encode(block + "a") == Ids{byte(0xe2), byte(0x96), byte(0x81), 259}));
        CHECK(tokenizer.token_bytes(260) == " a");
        CHECK(tokenizer.decode(Ids{0, 260, 1, byte(255)}) == " a\xff");
    }
}

TEST(any_bytes_survive) {
    for (const int kind : {kBpe, kUnigram}) {
        const auto tokenizer =
            make(start() + bytes() + piece("\xe4\xbd\xa0", -2) + piece("a\xe4\xbd\xa0", -1) +
                 piece("zz", -3, kUnused) + piece("\xf0\x9f\x98\x80", -4) + trainer(kind, true));
        std::mt19937 random(1);
        for (int i = 0; i < 500; ++i) {
            std::string text(random() % 64, '\0');
            for (char& c : text)
                c = "a\xe4\xbd\xa0\xff\xfe\0z \xe2\x96\x81\xf0\x9f\x98\x80"[random() % 16];
            CHECK_CASE(tokenizer.decode(tokenizer.encode(text)) == text, text);
        }
    }
}

TEST(what_the_vocabulary_lacks_is_an_error) {
    for (const int kind : {kBpe, kUnigram}) {
        const auto tokenizer = make(start() + piece("a") + trainer(kind, false));
        CHECK_THROWS(std::invalid_argument, "no token for '\xc3\xa9' of the text",
                     tokenizer.encode("aa\xc3\xa9"));
        CHECK_THROWS(std::invalid_argument, "no token for byte 255 of", tokenizer.encode("a\xff"));
        CHECK_THROWS(std::invalid_argument, "token 3 is outside the vocabulary of 3",
                     tokenizer.token_bytes(3));
    }
}

TEST(a_model_file_may_hold_one) {
    const std::string model = start() + piece("a", -9) + piece("aa", -2) + trainer(kBpe, false);
    GgufBytes file;
    file.text("tokenizer.ggml.model", "llama");
    file.array("rwkv_edge.sentencepiece_model", ValueType::U8,
               std::vector<uint8_t>(model.begin(), model.end()));
    std::vector<std::byte> bytes = file.bytes();
    const auto tokenizer = make_tokenizer(*ModelFile::parse(bytes, "a.gguf"));
    std::ranges::fill(bytes, std::byte{0});  // it needs them no more
    CHECK(tokenizer->kind() == std::string("sentencepiece") && tokenizer->n_vocab() == 4);
    CHECK((tokenizer->encode("aaa") == Ids{3, 2}));
}

TEST(every_cut_of_a_model_is_refused_or_read) {
    const std::string whole = start() + piece("a") + trainer(kBpe, false);
    int refused = 0;
    for (size_t size = 0; size < whole.size(); ++size) {
        try {
            (void)make(whole.substr(0, size)).encode("a");
        } catch (const FormatError& error) {
            ++refused;
            CHECK(std::string(error.what()).starts_with("a.model: not a sentencepiece model ("));
        } catch (const std::invalid_argument&) {  // the piece is missing
        }
    }
    CHECK(refused > 30);
    CHECK_THROWS(UnsupportedError, "a.model: a sentencepiece model of words",
                 make(start() + piece("a") + trainer(3, false)));
    CHECK_THROWS(FormatError, "a.model: token 0 is 'a', expected a control",
                 make(piece("a") + start() + trainer(kBpe, false)));
}
