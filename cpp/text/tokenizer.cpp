// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <stdexcept>

#include "base/error.h"
#include "text/sentencepiece.h"
#include "text/world_tokenizer.h"

namespace rwkv_edge {

namespace {

constexpr std::string_view kModelKey = "tokenizer.ggml.model";
constexpr std::string_view kSentencePieceKey = "rwkv_edge.sentencepiece_model";
constexpr std::string_view kHuggingFaceKey = "tokenizer.huggingface.json";

std::string type_of(const MetaValue& value) {
    if (value.type != ValueType::Array) return value_type_name(value.type);
    return cat("array[", value_type_name(value.element), "]");
}

// The array of a key with elements of one type; null where there is none.
const MetaValue* find_array(const ModelFile& file, std::string_view key, ValueType element) {
    const MetaValue* value = file.find(key);
    if (value == nullptr) return nullptr;
    if (value->type != ValueType::Array || value->element != element)
        throw FormatError(cat(file.path(), ": ", key, " is ", type_of(*value), ", expected array[",
                              value_type_name(element), "]"));
    return value;
}

std::unique_ptr<Tokenizer> make_world(const ModelFile& file) {
    const MetaValue* tokens = find_array(file, "tokenizer.ggml.tokens", ValueType::String);
    if (tokens == nullptr)
        throw FormatError(cat(file.path(), ": key tokenizer.ggml.tokens is missing"));
    std::vector<int32_t> types;
    if (const auto* found = find_array(file, "tokenizer.ggml.token_type", ValueType::I32)) {
        types.reserve(static_cast<std::size_t>(found->count));
        for (uint64_t i = 0; i < found->count; ++i)
            types.push_back(static_cast<int32_t>(found->integer(i)));
    }
    return std::make_unique<WorldTokenizer>(
        WorldTokenizer::from_gguf(tokens->strings(), types, file.path()));
}

}  // namespace

std::string_view Tokenizer::token_bytes(int64_t id) const {
    if (id < 0 || id >= n_vocab()) {
        throw std::invalid_argument(cat("token ", id, " is outside the vocabulary of ", n_vocab()));
    }
    return token(static_cast<int32_t>(id));
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
    std::string text;
    for (const int32_t id : ids) text += token_bytes(id);
    return text;
}

std::vector<int32_t> Tokenizer::without_text() const {
    std::vector<int32_t> ids;
    for (int32_t id = 1; id < n_vocab(); ++id)
        if (token(id).empty()) ids.push_back(id);
    return ids;
}

std::unique_ptr<Tokenizer> make_tokenizer(const ModelFile& file) {
    if (file.find(kModelKey) == nullptr)
        throw FormatError(cat(file.path(), ": no tokenizer (key ", kModelKey, " is missing)"));
    const std::string_view model = file.text(kModelKey);
    if (model == "rwkv") return make_world(file);
    if (model == "gpt2" && file.find(kHuggingFaceKey) != nullptr)
        throw UnsupportedError(cat(file.path(), ": a Hugging Face tokenizer (", kHuggingFaceKey,
                                   "), which only the Python package reads"));
    if (const auto* found = find_array(file, kSentencePieceKey, ValueType::U8))
        return std::make_unique<SentencePieceTokenizer>(
            SentencePieceModel::parse(found->data, file.path()), file.path());
    throw UnsupportedError(cat(file.path(), ": ", kModelKey, " is '", model,
                               "'; supported are 'rwkv', 'gpt2' with ", kHuggingFaceKey,
                               ", and sentencepiece models whose file is in ", kSentencePieceKey));
}

}  // namespace rwkv_edge
