// SPDX-License-Identifier: Apache-2.0
// What every model file looks like to the rest of the engine: metadata and tensors, all views into
// the map, all lengths checked. Names are llama.cpp's GGUF names.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned.h"
#include "base/system.h"
#include "quant/types.h"

namespace rwkv_edge {

// What a file may have at most (docs/security.md). Real ones have some 50 keys and 3000 tensors.
constexpr uint64_t kMaxKeys = 1 << 16, kMaxTensors = 1 << 16;
constexpr uint64_t kMaxName =
    1024;  // bytes of a key or of a tensor's name; ggml allows 64 for these

// GGUF's value types and their ids.
enum class ValueType : uint32_t {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64
};
const char* value_type_name(ValueType type);

struct MetaValue {
    ValueType type;
    ValueType element;  // of an array; else equal to type
    uint64_t count;     // of an array; else 1
    std::span<const std::byte> data;

    bool is_integer() const;
    // The bytes of the one string of a String value.
    std::string_view text() const;
    // Element `i` of numbers: integers as int64 (a larger uint64 stays a bit pattern), floats as
    // double.
    int64_t integer(uint64_t i = 0) const;
    double number(uint64_t i = 0) const;
    // All strings of an array of strings.
    std::vector<std::string_view> strings() const;
};

struct TensorView {
    std::string name;
    Type type;
    std::vector<int64_t> shape;  // slowest first, as numpy has it; a GGUF file holds it reversed
    std::span<const std::byte> data;
};

class ModelFile {
public:
    // Opens a GGUF file. Throws FileError, FormatError, UnsupportedError.
    static std::shared_ptr<const ModelFile> open(const std::string& path);
    // The same for `length` bytes of an open file from `offset` on; 0: to its end. Throws
    // std::invalid_argument too.
    static std::shared_ptr<const ModelFile> open(int descriptor, int64_t offset, int64_t length);
    // The same for bytes that the caller keeps alive; `path` appears in messages only.
    static std::shared_ptr<const ModelFile> parse(std::span<const std::byte> bytes,
                                                  const std::string& path);

    // A model whose header (a GGUF file up to its tensors' bytes) and tensors come from elsewhere,
    // in the header's order; `owner` keeps them alive. Used in place, unless they lie so that the
    // type cannot be read there.
    static std::shared_ptr<const ModelFile> assemble(
        std::span<const std::byte> header, std::span<const std::span<const std::byte>> tensors,
        const std::string& path, std::shared_ptr<const void> owner);

    const std::string& path() const { return path_; }
    std::size_t size() const { return size_; }
    // Where in the file a tensor begins; -1 if it is not in a file of ours.
    int64_t offset(const TensorView& tensor) const;
    // Copies bytes of a tensor; from the file itself where they lie in one, so that one that was
    // cut short is an error and nothing comes into memory. Throws FileError.
    void read(std::span<const std::byte> part, std::byte* to) const;
    // Gives back the pages that were read; the file has them.
    void forget() const {
        if (map_ != nullptr) map_->forget();
    }
    uint32_t version() const { return version_; }
    uint64_t alignment() const { return alignment_; }
    const std::vector<std::string>& keys() const { return keys_; }  // in file order
    const std::vector<TensorView>& tensors() const { return tensors_; }

    // Null when there is none.
    const MetaValue* find(std::string_view key) const;
    const TensorView* find_tensor(std::string_view name) const;

    // The value of a key that must be there, with its type checked. Throws FormatError.
    int64_t integer(std::string_view key, int64_t low, int64_t high) const;
    std::string_view text(std::string_view key) const;

private:
    friend class GgufParser;
    std::string path_;
    std::unique_ptr<MappedFile> map_;
    std::shared_ptr<const void> owner_;  // of what was assembled
    std::deque<AlignedVector<std::byte>> copies_;
    std::span<const std::byte> bytes_;  // the file, or the header
    std::size_t size_ = 0;
    uint32_t version_ = 0;
    uint64_t alignment_ = 32;
    std::vector<std::string> keys_;
    // Ordered: names from a file can be chosen so that all fall into one bucket of a hash table.
    std::map<std::string, MetaValue, std::less<>> values_;
    std::vector<TensorView> tensors_;
    std::map<std::string, std::size_t, std::less<>> tensor_index_;
};

}  // namespace rwkv_edge
