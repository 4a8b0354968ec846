// SPDX-License-Identifier: Apache-2.0
// A GGUF file in memory, and the smallest RWKV-7 in it: for the tests of everything above the
// kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "io/model_file.h"

namespace rwkv_edge {

class GgufBytes {
public:
    template <class T>
    void key(const std::string& name, ValueType type, T value) {
        string(keys_, name);
        append(keys_, type);
        append(keys_, value);
        ++key_count_;
    }
    void text(const std::string& name, const std::string& value) {
        string(keys_, name);
        append(keys_, ValueType::String);
        string(keys_, value);
        ++key_count_;
    }
    // dims as the file has them: columns first.
    void tensor(const std::string& name, const std::vector<uint64_t>& dims,
                const std::vector<float>& x) {
        string(headers_, name);
        append(headers_, static_cast<uint32_t>(dims.size()));
        for (uint64_t n : dims) append(headers_, n);
        append(headers_, Type::F32);
        append(headers_, static_cast<uint64_t>(data_.size()));
        for (float v : x) append(data_, v);
        data_.resize((data_.size() + 31) / 32 * 32);
        ++tensor_count_;
    }
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> out;
        append(out, uint32_t{0x46554747});
        append(out, uint32_t{3});
        append(out, tensor_count_);
        append(out, key_count_);
        for (const auto* part : {&keys_, &headers_})
            out.insert(out.end(), part->begin(), part->end());
        out.resize((out.size() + 31) / 32 * 32);
        out.insert(out.end(), data_.begin(), data_.end());
        return out;
    }

private:
    template <class T>
    static void append(std::vector<std::byte>& out, T value) {
        const auto* raw = reinterpret_cast<const std::byte*>(&value);
        out.insert(out.end(), raw, raw + sizeof value);
    }
    static void string(std::vector<std::byte>& out, const std::string& value) {
        append(out, static_cast<uint64_t>(value.size()));
        for (char c : value) out.push_back(static_cast<std::byte>(c));
    }

    std::vector<std::byte> keys_, headers_, data_;
    uint64_t key_count_ = 0, tensor_count_ = 0;
};

struct TinyShape {
    uint64_t width = 64, head_size = 32, layers = 2, ffn = 96, vocab = 40, rank = 12;
};

// Random weights, the residual kept small; the same bytes for the same seed.
inline std::vector<std::byte> tiny_rwkv7(unsigned seed, const TinyShape& s = {}) {
    std::mt19937 rng(seed);
    GgufBytes file;
    file.text("general.architecture", "rwkv7");
    const auto number = [&](const char* name, uint64_t value) {
        file.key(std::string("rwkv7.") + name, ValueType::U32, static_cast<uint32_t>(value));
    };
    number("block_count", s.layers);
    number("embedding_length", s.width);
    number("feed_forward_length", s.ffn);
    number("wkv.head_size", s.head_size);
    file.key("rwkv7.attention.layer_norm_epsilon", ValueType::F32, 1e-5f);

    const auto random = [&](const std::string& name, std::vector<uint64_t> dims, float mean,
                            float spread) {
        std::normal_distribution<float> normal(mean, spread);
        uint64_t n = 1;
        for (uint64_t d : dims) n *= d;
        std::vector<float> x(n);
        for (float& v : x) v = normal(rng);
        file.tensor(name, dims, x);
    };
    const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t cols) {
        random(name + ".weight", {cols, rows}, 0.0f, 0.5f / std::sqrt(static_cast<float>(cols)));
    };
    const auto norm = [&](const std::string& name) {
        random(name + ".weight", {s.width}, 1.0f, 0.1f);
        random(name + ".bias", {s.width}, 0.0f, 0.1f);
    };
    matrix("token_embd", s.vocab, s.width);
    norm("token_embd_norm");
    for (uint64_t i = 0; i < s.layers; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        const std::string mix = block + "time_mix_";
        norm(block + "attn_norm");
        norm(block + "attn_norm_2");
        norm(mix + "ln");
        random(mix + "lerp_fused.weight", {s.width, 1, 1, 6}, 0.5f, 0.2f);
        for (const char* letter : {"w", "a", "g", "v"}) {
            if (letter[0] == 'v' && i == 0) continue;
            matrix(mix + letter + "1", s.rank, s.width);
            matrix(mix + letter + "2", s.width, s.rank);
            if (letter[0] != 'g') random(mix + letter + "0.weight", {s.width}, 0.0f, 1.0f);
        }
        for (const char* name : {"k_k", "k_a", "r_k"})
            random(mix + name + ".weight", {s.width}, 0.8f, 0.2f);
        for (const char* name : {"receptance", "key", "value", "output"})
            matrix(mix + name, s.width, s.width);
        random(block + "channel_mix_lerp_k.weight", {s.width}, 0.5f, 0.2f);
        matrix(block + "channel_mix_key", s.ffn, s.width);
        matrix(block + "channel_mix_value", s.width, s.ffn);
    }
    norm("output_norm");
    matrix("output", s.vocab, s.width);
    return file.bytes();
}

}  // namespace rwkv_edge
