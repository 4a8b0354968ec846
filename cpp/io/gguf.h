// SPDX-License-Identifier: Apache-2.0
// Reader of GGUF versions 2 and 3 (ggml's docs/gguf.md). Everything in the file is hostile until
// checked.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "io/byte_reader.h"
#include "io/model_file.h"

namespace rwkv_edge {

class GgufParser {
public:
    GgufParser(std::span<const std::byte> bytes, const std::string& path);
    // `map` may be null; otherwise the result owns it.
    std::shared_ptr<const ModelFile> parse(std::unique_ptr<MappedFile> map);
    std::shared_ptr<const ModelFile> assemble(std::span<const std::span<const std::byte>> tensors,
                                              std::shared_ptr<const void> owner);

private:
    std::vector<uint64_t> read_all();
    void read_header();
    void read_values(uint64_t count);
    MetaValue read_value(const std::string& key);
    void skip_elements(const MetaValue& value, const std::string& key);
    void read_alignment();
    std::vector<uint64_t> read_tensors(uint64_t count);
    uint64_t read_tensor_header(TensorView& tensor);
    void place_tensors(const std::vector<uint64_t>& offsets);
    void attach(TensorView& tensor, std::span<const std::byte> data);

    std::span<const std::byte> bytes_;
    ByteReader reader_;
    std::shared_ptr<ModelFile> file_;
    uint64_t tensor_count_ = 0, value_count_ = 0;
};

}  // namespace rwkv_edge
