// SPDX-License-Identifier: Apache-2.0
#include "io/fingerprint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <locale>
#include <sstream>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// FIPS 180-4.
class Sha256 {
public:
    void add(std::span<const std::byte> data) {
        for (const std::byte byte : data) {
            block_[size_++ % 64] = std::to_integer<uint8_t>(byte);
            if (size_ % 64 == 0) mix();
        }
    }

    std::string hex_digest() {
        const uint64_t bits = size_ * 8;
        const std::byte end{0x80}, zero{0};
        add({&end, 1});
        while (size_ % 64 != 56) add({&zero, 1});
        for (int shift = 56; shift >= 0; shift -= 8) {
            const auto byte = static_cast<std::byte>(bits >> shift & 0xff);
            add({&byte, 1});
        }
        std::string hex;
        for (const uint32_t word : state_)
            for (int shift = 28; shift >= 0; shift -= 4)
                hex += "0123456789abcdef"[word >> shift & 15];
        return hex;
    }

private:
    static constexpr std::array<uint32_t, 64> kRounds = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};

    void mix() {
        std::array<uint32_t, 64> w;
        for (std::size_t i = 0; i < 16; ++i)
            w[i] = static_cast<uint32_t>(block_[4 * i]) << 24 |
                   static_cast<uint32_t>(block_[4 * i + 1]) << 16 |
                   static_cast<uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
        for (std::size_t i = 16; i < 64; ++i) {
            const uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) +
                   (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state_;
        for (std::size_t i = 0; i < 64; ++i) {
            const uint32_t one = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                                 ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
            const uint32_t two = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) +
                                 ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        const std::array<uint32_t, 8> mixed = {a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < 8; ++i) state_[i] += mixed[i];
    }

    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> block_{};
    uint64_t size_ = 0;
};

// The shortest decimal number that is this one, as Python writes it. Neither printf nor strtod with
// a point in it would do: both ask the program's locale. std::to_chars is missing on macOS 11.
std::string shortest(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
    std::string digits;
    int exponent = 0;
    const auto is = [&](int64_t number, int scale) {
        return std::strtod(cat(number, 'e', scale).c_str(), nullptr) == std::abs(value);
    };
    for (int precision = 0; precision < 17; ++precision) {
        std::ostringstream out;
        out.imbue(std::locale::classic());
        out.precision(precision);
        out << std::scientific << std::abs(value);
        const std::string text = out.str();
        const std::size_t e = text.find('e');
        exponent = std::atoi(text.c_str() + e + 1);
        digits = text.substr(0, e);
        std::erase(digits, '.');
        int64_t number = std::atoll(digits.c_str());
        if (is(number, exponent - precision)) break;
        // Above a power of two lie more numbers that round to it than below.
        if (is(++number, exponent - precision)) {
            digits = cat(number);
            break;
        }
    }
    while (digits.size() > 1 && digits.back() == '0') digits.pop_back();
    const std::string sign = std::signbit(value) ? "-" : "";
    const int count = static_cast<int>(digits.size());
    if (exponent < -4 || exponent >= 16) {
        if (count > 1) digits.insert(1, 1, '.');
        const int size = std::abs(exponent);
        return cat(sign, digits, 'e', exponent < 0 ? '-' : '+', size < 10 ? "0" : "", size);
    }
    if (exponent < 0) return sign + "0." + std::string(std::size_t(-exponent - 1), '0') + digits;
    if (exponent >= count - 1) digits.append(std::size_t(exponent + 2 - count), '0');
    digits.insert(std::size_t(exponent + 1), 1, '.');
    return sign + digits;
}

// As Python shows it, but for unusual characters. No key of an architecture is a text.
std::string shown(const MetaValue& value) {
    const auto one = [&](uint64_t i) -> std::string {
        switch (value.element) {
            case ValueType::Bool: return value.integer(i) != 0 ? "True" : "False";
            case ValueType::F32:
            case ValueType::F64: return shortest(value.number(i));
            case ValueType::U64: return cat(static_cast<uint64_t>(value.integer(i)));
            default: return cat(value.integer(i));
        }
    };
    if (value.type == ValueType::String) return cat('\'', value.text(), '\'');
    if (value.type != ValueType::Array) return one(0);
    std::string list;
    const auto add = [&](const std::string& text) { list += (list.empty() ? "" : ", ") + text; };
    if (value.element == ValueType::String)
        for (const std::string_view text : value.strings()) add(cat('\'', text, '\''));
    else
        for (uint64_t i = 0; i < value.count; ++i) add(one(i));
    return cat('[', list, ']');
}

}  // namespace

std::string fingerprint(const ModelFile& file) {
    constexpr std::size_t kPieces = 8, kPieceBytes = 1024;
    Sha256 digest;
    const auto add = [&](std::span<const std::byte> data) {
        const auto size = static_cast<uint64_t>(data.size());
        digest.add(std::as_bytes(std::span(&size, 1)));
        digest.add(data);
    };
    const auto add_text = [&](const std::string& text) { add(std::as_bytes(std::span(text))); };

    const MetaValue* arch = file.find("general.architecture");
    const std::string prefix =
        (arch != nullptr && arch->type == ValueType::String ? std::string(arch->text()) : "None") +
        ".";
    std::vector<std::string> keys = file.keys();
    std::ranges::sort(keys);
    for (const std::string& key : keys)
        if (key.starts_with(prefix)) add_text(cat(key, ' ', shown(*file.find(key))));

    std::vector<const TensorView*> tensors;
    for (const TensorView& tensor : file.tensors()) tensors.push_back(&tensor);
    std::ranges::sort(tensors, {}, [](const TensorView* tensor) { return tensor->name; });
    for (const TensorView* tensor : tensors) {
        std::string shape;
        for (const int64_t size : tensor->shape) shape += cat(shape.empty() ? "" : ", ", size);
        if (tensor->shape.size() == 1) shape += ',';
        add_text(cat(tensor->name, ' ', type_info(tensor->type).name, " (", shape, ')'));
        const std::size_t size = tensor->data.size();
        const bool whole = size <= kPieces * kPieceBytes;
        std::vector<std::byte> bytes(whole ? size : kPieceBytes);
        for (std::size_t i = 0; i < (whole ? 1 : kPieces); ++i) {
            // The product may exceed what 32 bits hold.
            const std::size_t start =
                whole ? 0
                      : static_cast<std::size_t>(uint64_t{size - kPieceBytes} * i / (kPieces - 1));
            file.read(tensor->data.subspan(start, bytes.size()), bytes.data());
            add(bytes);
        }
    }
    return digest.hex_digest();
}

}  // namespace rwkv_edge
