// SPDX-License-Identifier: Apache-2.0
// Any bytes either make a model, which then runs a token, or end in one of our errors. Sanitizers
// watch.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "session.h"
#include "text/tokenizer.h"
#include "text/world_tokenizer.h"

using namespace rwkv_edge;

namespace {

// Any list of strings may be taken for a vocabulary.
void tokenize(const MetaValue& list) {
    const auto strings = list.strings();
    try {
        const auto vocabulary = WorldTokenizer::from_gguf(strings, {}, "");
        for (const std::string_view text : strings) (void)vocabulary.encode(text);
    } catch (const FormatError&) {
    } catch (const std::invalid_argument&) {  // a byte that no token covers
    }
}

// The tokenizer of the file, whichever it is: what it makes of bytes must come back.
void tokenize(const ModelFile& file, std::string_view text) {
    std::unique_ptr<const Tokenizer> tokenizer;
    try {
        tokenizer = make_tokenizer(file);
        if (tokenizer->decode(tokenizer->encode(text)) != text) std::abort();
        (void)tokenizer->without_text();
    } catch (const FormatError&) {
    } catch (const UnsupportedError&) {
    } catch (const std::invalid_argument&) {
    }
}

// Reads everything a file can say: each value in each form, each tensor's first and last byte.
void touch(const ModelFile& file) {
    for (const std::string& key : file.keys()) {
        const MetaValue& value = *file.find(key);
        if (value.type == ValueType::String) {
            (void)value.text();
        } else if (value.element == ValueType::String) {
            tokenize(value);
        } else if (value.count > 0) {
            (void)value.integer(value.count - 1);
            (void)value.number(0);
        }
    }
    volatile std::byte sink{};
    for (const TensorView& tensor : file.tensors())
        if (!tensor.data.empty()) sink = tensor.data.front() | tensor.data.back();
    (void)sink;
}

// The logits of a few tokens.
std::vector<float> run(std::shared_ptr<const ModelFile> file) {
    const auto model = std::make_shared<const Model>(std::move(file), make_cpu_backend(1));
    Session session(std::make_shared<Runner>(model));
    std::vector<float> logits(static_cast<size_t>(model->config().n_vocab));
    const int32_t ids[] = {0, static_cast<int32_t>(model->config().n_vocab - 1), 0};
    session.feed(ids, Session::Logits::Last, logits.data());
    return logits;
}

// The same file as a header and tensors from elsewhere; without any if it could not be parsed.
std::shared_ptr<const ModelFile> in_parts(std::span<const std::byte> bytes, const ModelFile* file) {
    std::vector<std::span<const std::byte>> tensors;
    if (file != nullptr)
        for (const TensorView& tensor : file->tensors()) tensors.push_back(tensor.data);
    return ModelFile::assemble(bytes, tensors, "parts", std::make_shared<int>());
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    std::shared_ptr<const ModelFile> file;
    try {
        file = ModelFile::parse(bytes, "input");
        touch(*file);
        tokenize(*file, {reinterpret_cast<const char*>(data), std::min<size_t>(size, 4096)});
        tokenize(*file, "aab abba  a\xe2\x96\x81 caf\xc3\xa9 aaaa bab ");
        if (!same_bytes(run(file), run(in_parts(bytes, file.get())))) std::abort();
    } catch (const FormatError&) {
        if (file != nullptr) return 0;
        try {
            (void)in_parts(bytes, nullptr);
        } catch (const FormatError&) {
        } catch (const UnsupportedError&) {
        }
    } catch (const UnsupportedError&) {
    }
    return 0;
}
