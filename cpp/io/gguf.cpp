// SPDX-License-Identifier: Apache-2.0
#include "io/gguf.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace rwkv_edge {

namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"

int value_bytes(ValueType type) {
    switch (type) {
        case ValueType::U8:
        case ValueType::I8:
        case ValueType::Bool: return 1;
        case ValueType::U16:
        case ValueType::I16: return 2;
        case ValueType::U32:
        case ValueType::I32:
        case ValueType::F32: return 4;
        case ValueType::U64:
        case ValueType::I64:
        case ValueType::F64: return 8;
        default: return 0;  // strings and arrays have no fixed size
    }
}

// Names of the ggml types that we know of but cannot read, for the message.
const char* foreign_type(uint32_t id) {
    switch (id) {
        case 9: return "q8_1";
        case 15: return "q8_k";
        case 34: return "tq1_0";
        case 35: return "tq2_0";
        case 39: return "mxfp4";
        default: return id >= 16 && id <= 29 ? "an iq or integer type" : "unknown";
    }
}

}  // namespace

GgufParser::GgufParser(std::span<const std::byte> bytes, const std::string& path)
    : bytes_(bytes), reader_(bytes, path), file_(std::make_shared<ModelFile>()) {
    file_->path_ = path;
    file_->bytes_ = bytes;
    file_->size_ = bytes.size();
}

std::shared_ptr<const ModelFile> GgufParser::parse(std::unique_ptr<MappedFile> map) {
    file_->map_ = std::move(map);
    place_tensors(read_all());
    return file_;
}

std::shared_ptr<const ModelFile> GgufParser::assemble(
    std::span<const std::span<const std::byte>> tensors, std::shared_ptr<const void> owner) {
    file_->owner_ = std::move(owner);
    read_all();
    if (tensors.size() != file_->tensors_.size())
        reader_.fail(
            cat(tensors.size(), " tensors given, the header has ", file_->tensors_.size()));
    for (std::size_t i = 0; i < tensors.size(); ++i) attach(file_->tensors_[i], tensors[i]);
    return file_;
}

std::vector<uint64_t> GgufParser::read_all() {
    read_header();
    read_values(value_count_);
    read_alignment();
    return read_tensors(tensor_count_);
}

void GgufParser::read_header() {
    if (bytes_.size() < 4) reader_.fail("not a GGUF file: it has fewer than 4 bytes");
    const uint32_t magic = reader_.read<uint32_t>("the magic");
    if (magic == 0x47475546) reader_.fail("a big-endian GGUF file, which cannot be mapped here");
    if (magic != kMagic) reader_.fail("not a GGUF file: it does not begin with 'GGUF'");
    file_->version_ = reader_.read<uint32_t>("the version");
    if ((file_->version_ & 0xffff) == 0 && file_->version_ != 0)
        reader_.fail("a big-endian GGUF file, which cannot be mapped here");
    if (file_->version_ != 2 && file_->version_ != 3)
        reader_.fail(cat("GGUF version ", file_->version_, ", expected 2 or 3"));
    tensor_count_ = reader_.read<uint64_t>("the tensor count");
    value_count_ = reader_.read<uint64_t>("the key count");
    // The smallest key takes 13 bytes, the smallest tensor header 24.
    if (value_count_ > reader_.remaining() / 13)
        reader_.fail(cat(value_count_, " keys do not fit in the ", reader_.remaining(),
                         " bytes that follow"));
    if (tensor_count_ > reader_.remaining() / 24)
        reader_.fail(cat(tensor_count_, " tensors do not fit in the ", reader_.remaining(),
                         " bytes that follow"));
    if (value_count_ > kMaxKeys)
        reader_.fail(cat(value_count_, " keys, expected at most ", kMaxKeys));
    if (tensor_count_ > kMaxTensors)
        reader_.fail(cat(tensor_count_, " tensors, expected at most ", kMaxTensors));
}

void GgufParser::read_values(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
        const std::string key(reader_.string(cat("the name of key ", i)));
        if (key.empty() || key.size() > kMaxName)
            reader_.fail(cat("the name of key ", i, " has ", key.size(), " bytes, expected 1 to ",
                             kMaxName));
        if (!file_->values_.emplace(key, read_value(key)).second)
            reader_.fail(cat("key '", key, "' occurs twice"));
        file_->keys_.push_back(key);
    }
}

MetaValue GgufParser::read_value(const std::string& key) {
    const auto read_type = [&] {
        const uint32_t id = reader_.read<uint32_t>(cat("the type of key '", key, "'"));
        if (id > static_cast<uint32_t>(ValueType::F64))
            reader_.fail(cat("key '", key, "' has value type ", id, ", expected 0 to 12"));
        return static_cast<ValueType>(id);
    };
    MetaValue value{};
    value.type = value.element = read_type();
    value.count = 1;
    if (value.type == ValueType::Array) {
        value.element = read_type();
        value.count = reader_.read<uint64_t>(cat("the length of key '", key, "'"));
        if (value.element == ValueType::Array)
            reader_.fail(cat("key '", key, "' is an array of arrays, which no known model has"));
    }
    const std::size_t begin = reader_.position();
    skip_elements(value, key);
    value.data = bytes_.subspan(begin, reader_.position() - begin);
    return value;
}

void GgufParser::skip_elements(const MetaValue& value, const std::string& key) {
    const std::string what = cat("the value of key '", key, "'");
    if (value.element == ValueType::String) {
        if (value.count > reader_.remaining() / 8)
            reader_.fail(cat(what, ": ", value.count, " strings do not fit in the ",
                             reader_.remaining(), " bytes that follow"));
        for (uint64_t i = 0; i < value.count; ++i) reader_.string(what);
        return;
    }
    const auto size = static_cast<uint64_t>(value_bytes(value.element));
    if (value.count > reader_.remaining() / size)
        reader_.fail(cat(what, ": ", value.count, " values of ", size, " bytes do not fit in the ",
                         reader_.remaining(), " bytes that follow"));
    reader_.take(value.count * size, what);
}

void GgufParser::read_alignment() {
    if (file_->find("general.alignment") == nullptr) return;
    // At least 8, as the format demands: kernels read blocks where they lie.
    const int64_t alignment = file_->integer("general.alignment", 8, 1 << 20);
    if ((alignment & (alignment - 1)) != 0)
        reader_.fail(cat("key 'general.alignment' is ", alignment, ", expected a power of two"));
    file_->alignment_ = static_cast<uint64_t>(alignment);
}

// Returns the tensors' offsets.
std::vector<uint64_t> GgufParser::read_tensors(uint64_t count) {
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < count; ++i) {
        TensorView tensor;
        tensor.name = reader_.string(cat("the name of tensor ", i));
        if (tensor.name.empty() || tensor.name.size() > kMaxName)
            reader_.fail(cat("the name of tensor ", i, " has ", tensor.name.size(),
                             " bytes, expected 1 to ", kMaxName));
        if (!file_->tensor_index_.emplace(tensor.name, file_->tensors_.size()).second)
            reader_.fail(cat("tensor '", tensor.name, "' occurs twice"));
        offsets.push_back(read_tensor_header(tensor));
        file_->tensors_.push_back(std::move(tensor));
    }
    return offsets;
}

// Reads shape, type and offset; returns the offset. Leaves data with the right size but no address.
uint64_t GgufParser::read_tensor_header(TensorView& tensor) {
    const std::string what = cat("the header of tensor '", tensor.name, "'");
    const auto fail = [&](const auto&... parts) {
        reader_.fail(cat("tensor '", tensor.name, "' ", parts...));
    };
    const uint32_t dims = reader_.read<uint32_t>(what);
    if (dims < 1 || dims > 4) fail("has ", dims, " dimensions, expected 1 to 4");
    int64_t values = 1;
    for (uint32_t d = 0; d < dims; ++d) {
        const int64_t n = reader_.read<int64_t>(what);
        // 2^56 values stay below 2^63 bytes in any type
        if (n < 1 || n > (int64_t{1} << 56) / values)
            fail("has dimension ", d, " of size ", static_cast<uint64_t>(n),
                 ", expected 1 or more, with a product below 2^56");
        values *= n;
        tensor.shape.insert(tensor.shape.begin(), n);
    }
    const uint32_t type = reader_.read<uint32_t>(what);
    const uint64_t offset = reader_.read<uint64_t>(what);
    const TypeInfo* info = find_type(type);
    if (info == nullptr)
        throw UnsupportedError(cat(file_->path_, ": tensor '", tensor.name, "' is of ggml type ",
                                   type, " (", foreign_type(type),
                                   "), which this build cannot read"));
    tensor.type = info->type;
    if (tensor.shape.back() % info->block_len != 0)
        fail("has rows of ", tensor.shape.back(), " values, expected a multiple of ",
             info->block_len, " for ", info->name);
    if (offset % file_->alignment_ != 0)
        fail("lies at offset ", offset, ", expected a multiple of the alignment ",
             file_->alignment_);
    const int64_t bytes = type_bytes(info->type, values);
    if (!std::in_range<std::size_t>(bytes))
        fail("has ", bytes, " bytes, more than a ", 8 * sizeof(std::size_t),
             "-bit program reaches");
    tensor.data = {static_cast<const std::byte*>(nullptr), static_cast<std::size_t>(bytes)};
    return offset;
}

// Gives every tensor its bytes, and sees to it that they lie inside the file and apart from each
// other.
void GgufParser::place_tensors(const std::vector<uint64_t>& offsets) {
    const uint64_t mask = file_->alignment_ - 1;
    const uint64_t start = (reader_.position() + mask) & ~mask;
    const uint64_t room = start < bytes_.size() ? bytes_.size() - start : 0;
    std::vector<std::size_t> order(offsets.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return offsets[a] < offsets[b]; });
    uint64_t end = 0;
    const std::string* before = nullptr;
    for (const std::size_t i : order) {
        TensorView& tensor = file_->tensors_[i];
        const uint64_t size = tensor.data.size();
        if (offsets[i] < end)
            reader_.fail(cat("tensor '", tensor.name, "' at offset ", offsets[i],
                             " overlaps tensor '", *before, "', which ends at ", end));
        if (offsets[i] > room || size > room - offsets[i])
            reader_.fail(cat("the file is cut short: tensor '", tensor.name, "' needs ", size,
                             " bytes at offset ", offsets[i], " of the data, which has ", room));
        tensor.data =
            bytes_.subspan(static_cast<std::size_t>(start + offsets[i]), tensor.data.size());
        end = offsets[i] + size;
        before = &tensor.name;
    }
}

// Gives a tensor bytes from elsewhere, or a copy where its type could not be read in place.
void GgufParser::attach(TensorView& tensor, std::span<const std::byte> data) {
    if (data.size() != tensor.data.size())
        reader_.fail(cat("tensor '", tensor.name, "' has ", data.size(), " bytes, expected ",
                         tensor.data.size()));
    const std::size_t alignment = tensor.type == Type::F32 ? alignof(float) : alignof(uint16_t);
    if (reinterpret_cast<std::uintptr_t>(data.data()) % alignment != 0)
        data = file_->copies_.emplace_back(data.begin(), data.end());
    tensor.data = data;
    file_->size_ += data.size();
}

}  // namespace rwkv_edge
