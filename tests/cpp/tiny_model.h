// SPDX-License-Identifier: Apache-2.0
// A GGUF file in memory that a test may change before it is written, and the smallest model of each
// version in it: for the tests of everything above the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/model_file.h"
#include "session.h"

namespace rwkv_edge {

class GgufBytes {
public:
    struct Tensor {
        std::string name;
        std::vector<uint64_t> dims;  // as the file has them: columns first
        std::vector<float> x;
        Type type = Type::F32;  // in which the file is to hold x
    };
    std::vector<Tensor> tensors;

    // Replaces a key of the same name.
    template <class T>
    void key(const std::string& name, ValueType type, T value) {
        std::vector<std::byte>& out = new_key(name);
        append(out, type);
        append(out, value);
    }
    void text(const std::string& name, const std::string& value) {
        std::vector<std::byte>& out = new_key(name);
        append(out, ValueType::String);
        string(out, value);
    }
    template <class T>
    void array(const std::string& name, ValueType element, const std::vector<T>& values) {
        std::vector<std::byte>& out = new_array(name, element, values.size());
        for (const T& value : values) append(out, value);
    }
    void texts(const std::string& name, const std::vector<std::string>& values) {
        std::vector<std::byte>& out = new_array(name, ValueType::String, values.size());
        for (const std::string& value : values) string(out, value);
    }
    void tensor(const std::string& name, const std::vector<uint64_t>& dims,
                const std::vector<float>& x) {
        tensors.push_back({name, dims, x, Type::F32});
    }
    Tensor& at(const std::string& name) {
        for (Tensor& tensor : tensors)
            if (tensor.name == name) return tensor;
        throw std::out_of_range(name);
    }
    void drop(const std::string& name) {
        std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
    }

    // All but the tensors' data.
    std::vector<std::byte> header() const {
        std::vector<std::byte> out;
        append(out, uint32_t{0x46554747});
        append(out, uint32_t{3});
        append(out, static_cast<uint64_t>(tensors.size()));
        append(out, static_cast<uint64_t>(keys_.size()));
        for (const Key& key : keys_) out.insert(out.end(), key.bytes.begin(), key.bytes.end());
        uint64_t offset = 0;
        for (const Tensor& tensor : tensors) {
            string(out, tensor.name);
            append(out, static_cast<uint32_t>(tensor.dims.size()));
            for (uint64_t n : tensor.dims) append(out, n);
            append(out, tensor.type);
            append(out, offset);
            offset += padded(size_of(tensor));
        }
        return out;
    }
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> out = header();
        out.resize(padded(out.size()));
        for (const Tensor& tensor : tensors) {
            const std::size_t begin = out.size();
            out.resize(begin + size_of(tensor));
            type_info(tensor.type)
                .quantize(tensor.x.data(), &out[begin], static_cast<int64_t>(tensor.x.size()));
            out.resize(padded(out.size()));
        }
        return out;
    }

private:
    struct Key {
        std::string name;
        std::vector<std::byte> bytes;
    };

    template <class T>
    static void append(std::vector<std::byte>& out, T value) {
        const auto* raw = reinterpret_cast<const std::byte*>(&value);
        out.insert(out.end(), raw, raw + sizeof value);
    }
    static void string(std::vector<std::byte>& out, const std::string& value) {
        append(out, static_cast<uint64_t>(value.size()));
        for (char c : value) out.push_back(static_cast<std::byte>(c));
    }
    static std::size_t size_of(const Tensor& tensor) {
        const auto n = static_cast<int64_t>(tensor.x.size());
        return static_cast<std::size_t>(type_bytes(tensor.type, n));
    }
    static std::size_t padded(std::size_t n) { return (n + 31) / 32 * 32; }
    std::vector<std::byte>& new_key(const std::string& name) {
        std::erase_if(keys_, [&](const Key& key) { return key.name == name; });
        Key& key = keys_.emplace_back(Key{name, {}});
        string(key.bytes, name);
        return key.bytes;
    }

    std::vector<std::byte>& new_array(const std::string& name, ValueType element,
                                      std::size_t count) {
        std::vector<std::byte>& out = new_key(name);
        append(out, ValueType::Array);
        append(out, element);
        append(out, static_cast<uint64_t>(count));
        return out;
    }

    std::vector<Key> keys_;
};

struct TinyShape {
    uint64_t width = 64, head_size = 32, layers = 2, ffn = 96, vocab = 40, rank = 12;
    bool state = false;  // with an initial state
};

inline const std::vector<std::string> kTinyVersions = {"4", "5.0", "5.2", "6", "7", "7a"};

// Random weights, the residual kept small; the same bytes for the same seed.
class TinyModel {
public:
    TinyModel(const std::string& version, unsigned seed, const TinyShape& shape)
        : version_(version), s_(shape), rng_(seed) {
        put_keys();
        matrix("token_embd", s_.vocab, s_.width);
        norm("token_embd_norm");
        for (uint64_t i = 0; i < s_.layers; ++i) {
            const std::string block = "blk." + std::to_string(i) + ".";
            norm(block + "attn_norm");
            norm(block + "attn_norm_2");
            if (version_[0] < '6') time_mix4_or_5(block + "time_mix_");
            if (version_[0] == '6') time_mix6(block + "time_mix_");
            if (version_[0] == '7') time_mix7(block + "time_mix_", i > 0);
            if (s_.state)
                random(block + "time_mix_state.weight",
                       {s_.head_size, s_.head_size, s_.width / s_.head_size}, 0.0f, 0.5f);
            channel_mix(block + "channel_mix_");
        }
        norm("output_norm");
        matrix("output", s_.vocab, s_.width);
    }

    GgufBytes file;

private:
    void put_keys() {
        const std::string arch = "rwkv" + (version_[0] == '5' ? "5" : version_);
        file.text("general.architecture", arch);
        const auto number = [&](const char* name, uint64_t value) {
            file.key(arch + "." + name, ValueType::U32, static_cast<uint32_t>(value));
        };
        number("block_count", s_.layers);
        number("embedding_length", s_.width);
        number("feed_forward_length", s_.ffn);
        if (version_ != "4") number("wkv.head_size", s_.head_size);
        file.key(arch + ".attention.layer_norm_epsilon", ValueType::F32, 1e-5f);
    }

    void random(const std::string& name, const std::vector<uint64_t>& dims, float mean,
                float spread) {
        std::normal_distribution<float> normal(mean, spread);
        uint64_t n = 1;
        for (uint64_t d : dims) n *= d;
        std::vector<float> x(n);
        for (float& v : x) v = normal(rng_);
        file.tensor(name, dims, x);
    }
    void matrix(const std::string& name, uint64_t rows, uint64_t cols) {
        random(name + ".weight", {cols, rows}, 0.0f, 0.5f / std::sqrt(static_cast<float>(cols)));
    }
    void vector(const std::string& name, float mean, float spread) {
        random(name + ".weight", {s_.width}, mean, spread);
    }
    void norm(const std::string& name) {
        vector(name, 1.0f, 0.1f);
        random(name + ".bias", {s_.width}, 0.0f, 0.1f);
    }
    void squares(const std::string& mix) {
        for (const char* name : {"receptance", "key", "value", "output"})
            matrix(mix + name, s_.width, s_.width);
    }

    void time_mix4_or_5(const std::string& mix) {
        const bool is_4 = version_ == "4", has_gate = version_ == "5.2";
        random(mix + "lerp_fused.weight", {s_.width, 1, 1, has_gate ? 4u : 3u}, 0.5f, 0.2f);
        vector(mix + "first", 0.0f, 0.5f);
        vector(mix + "decay", 0.0f, 1.0f);
        for (float& w : file.at(mix + "decay.weight").x)
            w = is_4 ? -std::exp(w - 2) : std::exp(-std::exp(w - 2));
        squares(mix);
        if (has_gate) matrix(mix + "gate", s_.width, s_.width);
        if (!is_4) norm(mix + "ln");
    }

    void time_mix6(const std::string& mix) {
        vector(mix + "lerp_x", 0.5f, 0.2f);
        random(mix + "lerp_fused.weight", {s_.width, 1, 1, 5}, 0.5f, 0.2f);
        matrix(mix + "w1", 5 * s_.rank, s_.width);
        random(mix + "w2.weight", {s_.rank, s_.width, 5}, 0.0f, 0.1f);
        vector(mix + "first", 0.0f, 0.5f);
        vector(mix + "decay", -2.0f, 1.0f);
        matrix(mix + "decay_w1", s_.rank, s_.width);
        matrix(mix + "decay_w2", s_.width, s_.rank);
        squares(mix);
        matrix(mix + "gate", s_.width, s_.width);
        norm(mix + "ln");
    }

    void time_mix7(const std::string& mix, bool mixes_values) {
        norm(mix + "ln");
        random(mix + "lerp_fused.weight", {s_.width, 1, 1, 6}, 0.5f, 0.2f);
        for (const std::string letter : {"w", "a", "g", "v"}) {
            if (letter == "v" && !mixes_values) continue;
            matrix(mix + letter + "1", s_.rank, s_.width);
            matrix(mix + letter + "2", s_.width, s_.rank);
            if (letter != "g") vector(mix + letter + "0", 0.0f, 1.0f);
        }
        for (const char* name : {"k_k", "k_a", "r_k"}) vector(mix + name, 0.8f, 0.2f);
        squares(mix);
    }

    void channel_mix(const std::string& mix) {
        vector(mix + "lerp_k", 0.5f, 0.2f);
        matrix(mix + "key", s_.ffn, s_.width);
        matrix(mix + "value", s_.width, s_.ffn);
        if (version_[0] < '7') {
            vector(mix + "lerp_r", 0.5f, 0.2f);
            matrix(mix + "receptance", s_.width, s_.width);
        }
        if (version_ != "7a") return;
        random(mix + "s_emb.weight", {1024, s_.vocab}, 0.0f, 0.2f);
        matrix(mix + "s_emb_x", 1024, s_.width);
        matrix(mix + "s1", 32, s_.width);
        matrix(mix + "s2", s_.ffn, 32);
        random(mix + "s0.weight", {s_.ffn}, 1.0f, 0.2f);
    }

    std::string version_;
    TinyShape s_;
    std::mt19937 rng_;
};

inline GgufBytes tiny_model(const std::string& version, unsigned seed,
                            const TinyShape& shape = {}) {
    return TinyModel(version, seed, shape).file;
}

// The device that the tests of models are to run on.
inline std::string test_device() {
    const char* device = std::getenv("RWKV_EDGE_DEVICE");
    return device == nullptr || *device == '\0' ? "cpu" : device;
}

// A model of a parsed file; the bytes must outlive it.
inline std::shared_ptr<Runner> open_model(std::span<const std::byte> bytes, int threads,
                                          const std::string& device = test_device()) {
    return std::make_shared<Runner>(
        Model::open(ModelFile::parse(bytes, "tiny.gguf"), make_backend(device, threads)));
}

inline std::vector<float> state_of(const Session& session) {
    std::vector<float> state(static_cast<std::size_t>(session.model().state_size()));
    session.copy_state(state);
    return state;
}

}  // namespace rwkv_edge
