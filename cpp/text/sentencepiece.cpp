// SPDX-License-Identifier: Apache-2.0
#include "text/sentencepiece.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// Real models have 5 MB, 256,000 pieces and 100 bytes of a piece.
constexpr std::size_t kMaxModel = 1 << 24, kMaxPieces = 1 << 20;
// Encoding looks at no more bytes than this for each byte of a text.
constexpr std::size_t kLongestPiece = 1024;
constexpr std::size_t kLongestText = std::numeric_limits<int32_t>::max() / 2;
constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581 stands for it in a piece
constexpr std::string_view kNoPiece("\0", 1);        // an unused id, of which there may be many
constexpr int32_t kNone = -1;

struct Source {
    const std::string& name;
    template <class... Parts>
    [[noreturn]] void fail(const Parts&... why) const {
        throw FormatError(cat(name, ": not a sentencepiece model (", why..., ")"));
    }
};

// The fields of a protobuf message, one after the other. Groups, which no such model has, are
// refused, so nothing is nested deeper than the messages that are read here.
class Fields {
public:
    Fields(std::string_view message, const Source& source) : rest_(message), source_(source) {}

    // Reads the next field; false at the end.
    bool next() {
        if (rest_.empty()) return false;
        const uint64_t key = varint(5);
        number_ = key >> 3;
        wire_ = key & 7;
        if (number_ == 0 || key > std::numeric_limits<uint32_t>::max())
            source_.fail("a field of number ", number_);
        switch (wire_) {
            case 0: value_ = varint(10); break;
            case 1: bytes_ = take(8); break;
            case 2: bytes_ = take(varint(5)); break;
            case 5: bytes_ = take(4); break;
            default: source_.fail("a field of wire type ", wire_);
        }
        return true;
    }

    // Whether this is the field `number` in the form that it has; others are skipped.
    bool is_bytes(uint64_t number) const { return number_ == number && wire_ == 2; }
    bool is_number(uint64_t number) const { return number_ == number && wire_ == 0; }
    bool is_float(uint64_t number) const { return number_ == number && wire_ == 5; }

    std::string_view bytes() const { return bytes_; }
    bool flag() const { return value_ != 0; }
    int32_t number() const { return static_cast<int32_t>(static_cast<uint32_t>(value_)); }
    float real() const {
        float value;
        std::memcpy(&value, bytes_.data(), sizeof(value));
        return value;
    }

private:
    uint64_t varint(int most) {
        uint64_t value = 0;
        for (int i = 0; i < most && !rest_.empty(); ++i) {
            const auto byte = static_cast<uint8_t>(rest_.front());
            rest_.remove_prefix(1);
            value |= static_cast<uint64_t>(byte & 127) << (7 * i);
            if (byte < 128) return value;
        }
        source_.fail("no protobuf, or cut short");
    }

    std::string_view take(uint64_t size) {
        if (size > rest_.size())
            source_.fail("no protobuf, or cut short: ", size, " bytes needed, ", rest_.size(),
                         " left");
        const auto part = rest_.substr(0, static_cast<std::size_t>(size));
        rest_.remove_prefix(part.size());
        return part;
    }

    std::string_view rest_;
    const Source& source_;
    uint64_t number_ = 0, wire_ = 0, value_ = 0;
    std::string_view bytes_;
};

// The bytes of the character that a text begins with; 0 where that is not UTF-8.
std::size_t character(std::string_view text) {
    const auto at = [&](std::size_t i) { return static_cast<uint8_t>(text[i]); };
    const auto follows = [&](std::size_t i, int low = 0x80, int high = 0xBF) {
        return i < text.size() && at(i) >= low && at(i) <= high;
    };
    const uint8_t lead = at(0);
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return follows(1) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        // neither overlong nor a surrogate
        const bool second = follows(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
        return second && follows(2) ? 3 : 0;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        const bool second = follows(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
        return second && follows(2) && follows(3) ? 4 : 0;
    }
    return 0;
}

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const std::size_t size = character(text);
        if (size == 0) return false;
        text.remove_prefix(size);
    }
    return true;
}

Piece read_piece(std::string_view message, const Source& source) {
    Piece piece;
    for (Fields field(message, source); field.next();) {
        if (field.is_bytes(1)) piece.text = field.bytes();
        if (field.is_float(2)) piece.score = field.real();
        // An unknown type is no type.
        if (field.is_number(3) && field.number() >= 1 && field.number() <= 6)
            piece.type = static_cast<PieceType>(field.number());
    }
    return piece;
}

bool may_match(PieceType type) {
    return type == PieceType::Normal || type == PieceType::UserDefined || type == PieceType::Unused;
}

// The byte of "<0xHH>"; -1 for another text.
int byte_of(std::string_view piece) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
    const std::size_t high = kDigits.find(piece[3]), low = kDigits.find(piece[4]);
    if (high == kDigits.npos || low == kDigits.npos) return -1;
    return static_cast<int>(high * 16 + low);
}

std::string shown(std::string_view text) {
    std::size_t size = 0;
    while (size < text.size() && size < 60) size += character(text.substr(size));
    return std::string(text.substr(0, size));
}

void check_pieces(const SentencePieceModel& model, const Source& source) {
    if (model.pieces.size() > kMaxPieces)
        source.fail(model.pieces.size(), " pieces, expected at most ", kMaxPieces);
    bool has_unknown = false, has_text = false;
    std::array<bool, 256> has_byte{};
    // In a unigram model one text may be a piece of text and another one that is not.
    std::vector<std::pair<std::string_view, bool>> texts;
    for (std::size_t id = 0; id < model.pieces.size(); ++id) {
        const Piece& piece = model.pieces[id];
        if (piece.text.empty()) source.fail("token ", id, " has no text");
        if (piece.text == kNoPiece && piece.type == PieceType::Unused) continue;
        if (!is_utf8(piece.text)) source.fail("token ", id, " is not UTF-8");
        if (piece.text.find('\0') != piece.text.npos)
            source.fail("token ", id, " has a zero in it");
        if (piece.text.size() > kLongestPiece)
            source.fail("token ", id, " has ", piece.text.size(), " bytes, expected at most ",
                        kLongestPiece);
        if (!std::isfinite(piece.score))
            source.fail("token ", id, " has the score ", piece.score, ", expected a finite one");
        if (piece.type == PieceType::Unknown) {
            if (has_unknown) source.fail("token ", id, " is a second unknown one");
            has_unknown = true;
        }
        if (piece.type == PieceType::Byte) {
            const int byte = byte_of(piece.text);
            if (byte < 0 || !model.byte_fallback)
                source.fail(
                    "token ", id, " is the byte '", shown(piece.text), "', expected ",
                    model.byte_fallback ? "<0x00> to <0xFF>" : "none without byte_fallback");
            has_byte[static_cast<std::size_t>(byte)] = true;
        }
        has_text |= may_match(piece.type);
        texts.emplace_back(piece.text, !model.bpe && may_match(piece.type));
    }
    if (!has_unknown && !model.byte_fallback) source.fail("no token is the unknown one");
    if (!has_text && !model.bpe) source.fail("no token has text");
    if (model.byte_fallback && std::find(has_byte.begin(), has_byte.end(), false) != has_byte.end())
        source.fail("byte_fallback without a token for each of the 256 bytes");
    std::sort(texts.begin(), texts.end());
    const auto twice = std::adjacent_find(texts.begin(), texts.end());
    if (twice != texts.end()) source.fail("two tokens are '", shown(twice->first), "'");
}

// Writes a piece as the text that it stands for.
std::string unescaped(std::string_view piece) {
    std::string text;
    for (std::size_t at = 0; at < piece.size();) {
        const bool space = piece.substr(at, kSpace.size()) == kSpace;
        text += space ? ' ' : piece[at];
        at += space ? kSpace.size() : 1;
    }
    return text;
}

}  // namespace

SentencePieceModel SentencePieceModel::parse(std::span<const std::byte> file,
                                             const std::string& name) {
    constexpr int kUnigram = 1, kBpe = 2, kTypes = 4;  // the others split at spaces or characters
    const Source source{name};
    if (file.size() > kMaxModel) source.fail(file.size(), " bytes, expected at most ", kMaxModel);
    SentencePieceModel model;
    int type = kUnigram;
    const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
    for (Fields field(bytes, source); field.next();) {
        if (field.is_bytes(1)) model.pieces.push_back(read_piece(field.bytes(), source));
        if (field.is_bytes(2)) {  // trainer_spec
            for (Fields spec(field.bytes(), source); spec.next();) {
                if (spec.is_number(3) && spec.number() >= 1 && spec.number() <= kTypes)
                    type = spec.number();
                if (spec.is_number(35)) model.byte_fallback = spec.flag();
            }
        }
        if (field.is_bytes(3)) {  // normalizer_spec
            for (Fields spec(field.bytes(), source); spec.next();)
                if (spec.is_number(3)) model.adds_space = spec.flag();
        }
    }
    model.bpe = type == kBpe;
    check_pieces(model, source);
    if (type != kBpe && type != kUnigram)
        throw UnsupportedError(cat(name, ": a sentencepiece model of ",
                                   type == 3 ? "words" : "characters",
                                   ", expected BPE or unigram"));
    return model;
}

Trie::Trie(std::vector<Entry> entries) {
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.bytes < b.bytes; });
    // The nodes of one depth, each with the entries that go through it.
    struct Range {
        std::size_t begin, end;
    };
    std::vector<Range> level{{0, entries.size()}}, next;
    bytes_.push_back(0);
    for (std::size_t depth = 0; !level.empty(); ++depth, level.swap(next), next.clear()) {
        for (auto [at, end] : level) {
            const bool whole = at < end && entries[at].bytes.size() == depth;
            ids_.push_back(whole ? entries[at++].id : kNone);
            children_.push_back(static_cast<uint32_t>(bytes_.size()));
            while (at < end) {
                const std::size_t begin = at;
                const char byte = entries[at].bytes[depth];
                while (at < end && entries[at].bytes[depth] == byte) ++at;
                bytes_.push_back(static_cast<uint8_t>(byte));
                next.push_back({begin, at});
            }
        }
    }
    children_.push_back(static_cast<uint32_t>(bytes_.size()));
    first_.fill(kNone);
    for (uint32_t child = children_[0]; child < children_[1]; ++child)
        first_[bytes_[child]] = static_cast<int32_t>(child);
}

int32_t Trie::step(int32_t node, char byte) const {
    const auto wanted = static_cast<uint8_t>(byte);
    if (node == kRoot) return first_[wanted];
    const auto children = children_.begin() + node;
    const auto begin = bytes_.begin() + children[0], end = bytes_.begin() + children[1];
    const auto found = std::lower_bound(begin, end, wanted);
    if (found == end || *found != wanted) return kNone;
    return static_cast<int32_t>(found - bytes_.begin());
}

int32_t Trie::walk(int32_t node, std::string_view bytes) const {
    for (std::size_t i = 0; i < bytes.size() && node != kNone; ++i) node = step(node, bytes[i]);
    return node;
}

SentencePieceTokenizer::SentencePieceTokenizer(const SentencePieceModel& model,
                                               const std::string& source)
    : bpe_(model.bpe) {
    const auto has_text = [](const Piece& piece) {
        return piece.type == PieceType::Normal || piece.type == PieceType::UserDefined ||
               piece.type == PieceType::Byte;
    };
    if (has_text(model.pieces[kEndOfText]))
        throw FormatError(cat(source, ": token 0 is '", shown(model.pieces[kEndOfText].text),
                              "', expected a control or unknown symbol: it ends a document"));
    byte_ids_.fill(kNone);
    float lowest = FLT_MAX;
    for (const Piece& piece : model.pieces)
        if (piece.type == PieceType::Normal) lowest = std::min(lowest, piece.score);
    unknown_score_ = lowest - 10;

    std::vector<std::string> unused;  // whose bytes are not the tokens'
    std::vector<Trie::Entry> pieces, user_defined;
    starts_.reserve(model.pieces.size() + 1);
    scores_.reserve(model.pieces.size());
    unused_.reserve(model.pieces.size());
    for (const Piece& piece : model.pieces) {
        const int32_t id = n_vocab();
        if (piece.type == PieceType::Byte) {
            const auto byte = static_cast<std::size_t>(byte_of(piece.text));
            byte_ids_[byte] = id;
            add(std::string(1, static_cast<char>(byte)));
        } else {
            add(has_text(piece) ? unescaped(piece.text) : std::string());
        }
        unused_.push_back(piece.type == PieceType::Unused);
        // In a unigram model user-defined pieces are meant to win, the longest of them.
        const bool wins = !bpe_ && piece.type == PieceType::UserDefined;
        const double bonus = 0.1 * static_cast<double>(piece.text.size() - 1);
        scores_.push_back(wins ? static_cast<float>(bonus) : piece.score);
    }
    // With a plain space in a piece no text agrees, as spaces of texts become U+2581.
    const auto matches = [](const Piece& piece) {
        return may_match(piece.type) && piece.text.find(' ') == piece.text.npos &&
               piece.text != kNoPiece;
    };
    unused.reserve(static_cast<std::size_t>(std::count(unused_.begin(), unused_.end(), true)));
    for (int32_t id = 0; id < n_vocab(); ++id) {
        const Piece& piece = model.pieces[static_cast<std::size_t>(id)];
        if (!matches(piece)) continue;
        std::string_view bytes = token(id);
        if (piece.type == PieceType::Unused) bytes = unused.emplace_back(unescaped(piece.text));
        pieces.push_back({bytes, id});
        if (piece.type == PieceType::UserDefined) user_defined.push_back({bytes, id});
    }
    pieces_ = Trie(std::move(pieces));
    user_defined_ = Trie(std::move(user_defined));
}

void SentencePieceTokenizer::add_byte(char byte, Ids& out) const {
    const auto value = static_cast<uint8_t>(byte);
    if (byte_ids_[value] == kNone)
        throw std::invalid_argument(
            cat("the vocabulary has no token for byte ", int{value}, " of the text"));
    out.push_back(byte_ids_[value]);
}

void SentencePieceTokenizer::add_unknown(std::string_view text, Ids& out) const {
    if (byte_ids_[0] == kNone)
        throw std::invalid_argument(
            cat("the vocabulary has no token for '", text, "' of the text"));
    for (const char byte : text) add_byte(byte, out);
}

// --- BPE ---

// A part of the text, one character at first. Those that are merged into another one are empty.
struct SentencePieceTokenizer::Symbol {
    uint32_t at, size;
    int32_t before, behind;  // its neighbours; kNone at an end of the text
    int32_t node;            // in pieces_; kNone where no piece begins so, kFrozen where it stays
    static constexpr int32_t kFrozen = -2;
};

// The pairs of neighbours that are a piece together, the one with the best score first, of equal
// ones the leftmost.
class SentencePieceTokenizer::Merges {
public:
    struct Pair {
        int32_t rank;  // in the order of the scores; -0.0 is below 0.0, as in the library
        int32_t left, right;
        uint32_t size;
        int32_t node;
        bool operator<(const Pair& other) const {
            return rank < other.rank || (rank == other.rank && left > other.left);
        }
    };

    Merges(const SentencePieceTokenizer& tokenizer, std::string_view text)
        : tokenizer_(tokenizer), pieces_(tokenizer.pieces_), text_(text) {}

    void add(const std::vector<Symbol>& symbols, int32_t left, int32_t right) {
        if (left == kNone || right == kNone) return;
        const Symbol &a = symbols[static_cast<std::size_t>(left)],
                     &b = symbols[static_cast<std::size_t>(right)];
        if (a.node < 0 || b.node == Symbol::kFrozen) return;
        const int32_t node = pieces_.walk(a.node, text_.substr(b.at, b.size));
        if (node == kNone || pieces_.id(node) == kNone) return;
        const int32_t id = pieces_.id(node);
        const auto bits = std::bit_cast<int32_t>(tokenizer_.score(id));
        const int32_t rank = bits < 0 ? bits ^ std::numeric_limits<int32_t>::max() : bits;
        pairs_.push({rank, left, right, a.size + b.size, node});
        if (tokenizer_.is_unused(id)) cuts_[id] = a.size;
    }

    bool empty() const { return pairs_.empty(); }
    Pair pop() {
        const Pair best = pairs_.top();
        pairs_.pop();
        return best;
    }
    // Where the last pair that made an unused piece was cut; 0 where none did.
    uint32_t cut(int32_t id) const {
        const auto found = cuts_.find(id);
        return found == cuts_.end() ? 0 : found->second;
    }

private:
    const SentencePieceTokenizer& tokenizer_;
    const Trie& pieces_;
    std::string_view text_;
    std::priority_queue<Pair> pairs_;
    std::map<int32_t, uint32_t> cuts_;
};

void SentencePieceTokenizer::encode_bpe(std::string_view text, Ids& out) const {
    std::vector<Symbol> symbols;
    symbols.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        // A user-defined piece, the longest one; else a character.
        std::size_t size = 0;
        if (!user_defined_.empty()) {
            int32_t node = Trie::kRoot;
            for (std::size_t i = at; i < text.size(); ++i) {
                node = user_defined_.step(node, text[i]);
                if (node == kNone) break;
                if (user_defined_.id(node) != kNone) size = i + 1 - at;
            }
        }
        const bool frozen = size != 0;
        if (!frozen) size = character(text.substr(at));
        const auto index = static_cast<int32_t>(symbols.size());
        symbols.push_back(
            {static_cast<uint32_t>(at), static_cast<uint32_t>(size), index - 1, index + 1,
             frozen ? Symbol::kFrozen : pieces_.walk(Trie::kRoot, text.substr(at, size))});
        at += size;
    }
    symbols.back().behind = kNone;

    Merges merges(*this, text);
    for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i)
        merges.add(symbols, i - 1, i);
    while (!merges.empty()) {
        const Merges::Pair pair = merges.pop();
        Symbol &left = symbols[static_cast<std::size_t>(pair.left)],
               &right = symbols[static_cast<std::size_t>(pair.right)];
        // One of them may have grown or gone since.
        if (left.size == 0 || right.size == 0 || left.size + right.size != pair.size) continue;
        left.size = pair.size;
        left.node = pair.node;
        left.behind = right.behind;
        right.size = 0;
        if (left.behind != kNone) symbols[static_cast<std::size_t>(left.behind)].before = pair.left;
        merges.add(symbols, left.before, pair.left);
        merges.add(symbols, pair.left, left.behind);
    }

    // Unused pieces are cut again into what they were merged from.
    std::vector<std::string_view> parts;
    for (int32_t i = 0; i != kNone; i = symbols[static_cast<std::size_t>(i)].behind) {
        const Symbol& symbol = symbols[static_cast<std::size_t>(i)];
        parts.push_back(text.substr(symbol.at, symbol.size));
        while (!parts.empty()) {
            const std::string_view part = parts.back();
            parts.pop_back();
            const int32_t node = pieces_.walk(Trie::kRoot, part);
            const int32_t id = node == kNone ? kNone : pieces_.id(node);
            if (id != kNone && !is_unused(id)) {
                out.push_back(id);
            } else if (const uint32_t cut = id == kNone ? 0 : merges.cut(id); cut != 0) {
                parts.push_back(part.substr(cut));
                parts.push_back(part.substr(0, cut));
            } else {
                add_unknown(part, out);
            }
        }
    }
}

// --- unigram ---

// The path whose scores have the largest sum. Of equal paths to a place the one stays that was
// found first: its last piece is the longest. Which paths are equal depends on the rounding of the
// sums, so they are the library's, with the step back to zero where a sum becomes large.
void SentencePieceTokenizer::encode_unigram(std::string_view text, Ids& out) const {
    constexpr float kLargeSum = 100000;
    struct Path {
        float score = 0;
        int32_t begin = kNone, id = kNone;  // of the last piece
    };
    std::vector<Path> paths(text.size() + 1);  // to each byte
    std::size_t farthest = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t size = character(text.substr(at));
        float reached = paths[at].score;
        if (reached < -kLargeSum || reached > kLargeSum) {
            for (std::size_t end = at; end <= farthest; ++end)
                if (end == at || paths[end].begin != kNone) paths[end].score -= reached;
            reached = 0;
        }
        const auto offer = [&](std::size_t end, float score, int32_t id) {
            const float found = score + reached;
            if (paths[end].begin == kNone || found > paths[end].score)
                paths[end] = {found, static_cast<int32_t>(at), id};
            farthest = std::max(farthest, end);
        };
        bool single = false;
        int32_t node = Trie::kRoot;
        for (std::size_t end = at; end < text.size();) {
            node = pieces_.step(node, text[end++]);
            if (node == kNone) break;
            const int32_t id = pieces_.id(node);
            if (id == kNone || is_unused(id)) continue;
            offer(end, score(id), id);
            single |= end - at == size;
        }
        if (!single) offer(at + size, unknown_score_, kNone);
        at += size;
    }
    std::vector<std::size_t> ends;
    for (std::size_t end = text.size(); end != 0; end = static_cast<std::size_t>(paths[end].begin))
        ends.push_back(end);
    for (auto end = ends.rbegin(); end != ends.rend(); ++end) {
        const Path& path = paths[*end];
        const auto begin = static_cast<std::size_t>(path.begin);
        if (path.id != kNone) {
            out.push_back(path.id);
        } else {
            add_unknown(text.substr(begin, *end - begin), out);
        }
    }
}

// What is UTF-8 and holds no U+2581 is text. The rest goes by bytes: a piece would make a space of
// U+2581.
std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
    if (text.size() > kLongestText)
        throw std::invalid_argument(
            cat("a text of ", text.size(), " bytes, expected at most ", kLongestText));
    Ids out;
    out.reserve(text.size() / 3);
    const auto encode_part = [&](std::string_view part) {
        if (part.empty()) return;
        if (bpe_) {
            encode_bpe(part, out);
        } else {
            encode_unigram(part, out);
        }
    };
    std::size_t begin = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t size = character(text.substr(at));
        if (size != 0 && text.substr(at, size) != kSpace) {
            at += size;
            continue;
        }
        encode_part(text.substr(begin, at - begin));
        begin = at + (size == 0 ? 1 : size);
        for (; at < begin; ++at) add_byte(text[at], out);
    }
    encode_part(text.substr(begin));
    return out;
}

}  // namespace rwkv_edge
