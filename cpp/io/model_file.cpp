// SPDX-License-Identifier: Apache-2.0
#include "io/model_file.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "io/byte_reader.h"
#include "io/gguf.h"

namespace rwkv_edge {

namespace {

template <class T>
T load_at(std::span<const std::byte> data, uint64_t i) {
    T value;
    std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
    return value;
}

}  // namespace

const char* value_type_name(ValueType type) {
    constexpr const char* kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                      "int32",  "float32", "bool",   "string", "array",
                                      "uint64", "int64",   "float64"};
    return kNames[static_cast<uint32_t>(type)];
}

bool MetaValue::is_integer() const {
    return type != ValueType::F32 && type != ValueType::F64 && type != ValueType::Bool &&
           type != ValueType::String && type != ValueType::Array;
}

std::string_view MetaValue::text() const {
    return {reinterpret_cast<const char*>(data.data()) + 8, data.size() - 8};
}

int64_t MetaValue::integer(uint64_t i) const {
    switch (element) {
        case ValueType::Bool:
        case ValueType::U8: return load_at<uint8_t>(data, i);
        case ValueType::I8: return load_at<int8_t>(data, i);
        case ValueType::U16: return load_at<uint16_t>(data, i);
        case ValueType::I16: return load_at<int16_t>(data, i);
        case ValueType::U32: return load_at<uint32_t>(data, i);
        case ValueType::I32: return load_at<int32_t>(data, i);
        case ValueType::U64:
        case ValueType::I64: return load_at<int64_t>(data, i);
        default: return static_cast<int64_t>(number(i));
    }
}

double MetaValue::number(uint64_t i) const {
    if (element == ValueType::F32) return static_cast<double>(load_at<float>(data, i));
    if (element == ValueType::F64) return load_at<double>(data, i);
    return static_cast<double>(integer(i));
}

std::vector<std::string_view> MetaValue::strings() const {
    std::vector<std::string_view> all;
    all.reserve(static_cast<std::size_t>(count));
    ByteReader reader(data, "");
    for (uint64_t i = 0; i < count; ++i) all.push_back(reader.string("a string"));
    return all;
}

std::shared_ptr<const ModelFile> ModelFile::open(const std::string& path) {
    auto map = std::make_unique<MappedFile>(path);
    const auto bytes = map->bytes();
    return GgufParser(bytes, path).parse(std::move(map));
}

std::shared_ptr<const ModelFile> ModelFile::open(int descriptor, int64_t offset, int64_t length) {
    const std::string name = cat("file descriptor ", descriptor);
    if (offset % static_cast<int64_t>(alignof(float)) != 0)
        throw std::invalid_argument(
            cat(name, ": an offset of ", offset, ", expected a multiple of ", alignof(float)));
    auto map = std::make_unique<MappedFile>(descriptor, offset, length, name);
    const auto bytes = map->bytes();
    return GgufParser(bytes, name).parse(std::move(map));
}

std::shared_ptr<const ModelFile> ModelFile::parse(std::span<const std::byte> bytes,
                                                  const std::string& path) {
    return GgufParser(bytes, path).parse(nullptr);
}

std::shared_ptr<const ModelFile> ModelFile::assemble(
    std::span<const std::byte> header, std::span<const std::span<const std::byte>> tensors,
    const std::string& path, std::shared_ptr<const void> owner) {
    return GgufParser(header, path).assemble(tensors, std::move(owner));
}

int64_t ModelFile::offset(const TensorView& tensor) const {
    return owner_ == nullptr ? tensor.data.data() - bytes_.data() : -1;
}

void ModelFile::read(std::span<const std::byte> part, std::byte* to) const {
    const std::span<const std::byte> all = map_ == nullptr ? part : map_->bytes();
    const bool in_map = map_ != nullptr && std::less_equal<>()(all.data(), part.data()) &&
                        std::less_equal<>()(part.data() + part.size(), all.data() + all.size());
    if (in_map)
        map_->read(part.data() - all.data(), {to, part.size()}, path_);
    else
        std::ranges::copy(part, to);
}

const MetaValue* ModelFile::find(std::string_view key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
}

const TensorView* ModelFile::find_tensor(std::string_view name) const {
    const auto found = tensor_index_.find(name);
    return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

int64_t ModelFile::integer(std::string_view key, int64_t low, int64_t high) const {
    const MetaValue* value = find(key);
    if (value == nullptr) throw FormatError(cat(path_, ": key '", key, "' is missing"));
    if (!value->is_integer())
        throw FormatError(cat(path_, ": key '", key, "' is of type ", value_type_name(value->type),
                              ", expected an integer"));
    const int64_t n = value->integer();
    if (n < low || n > high)
        throw FormatError(cat(path_, ": key '", key, "' is ", n, ", expected ", low, " to ", high));
    return n;
}

std::string_view ModelFile::text(std::string_view key) const {
    const MetaValue* value = find(key);
    if (value == nullptr) throw FormatError(cat(path_, ": key '", key, "' is missing"));
    if (value->type != ValueType::String)
        throw FormatError(cat(path_, ": key '", key, "' is of type ", value_type_name(value->type),
                              ", expected a string"));
    const std::string_view text = value->text();
    if (text.size() > kMaxName)
        throw FormatError(cat(path_, ": key '", key, "' has ", text.size(),
                              " bytes, expected at most ", kMaxName));
    return text;
}

}  // namespace rwkv_edge
