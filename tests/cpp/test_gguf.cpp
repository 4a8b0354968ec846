// SPDX-License-Identifier: Apache-2.0
// The reader on whole, cut and altered files. The handcrafted malformed kinds, each with its
// message, are in tests/python/test_gguf.py.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/error.h"
#include "base/system.h"
#include "check.h"
#include "model/model.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

constexpr TinyShape kSmallest{
    .width = 32, .head_size = 16, .layers = 1, .ffn = 32, .vocab = 8, .rank = 4};

std::shared_ptr<const ModelFile> parse(std::span<const std::byte> bytes) {
    return ModelFile::parse(bytes, "name.gguf");
}

}  // namespace

TEST(a_whole_file_is_read) {
    const auto bytes = tiny_model("7", 1).bytes();
    const auto file = parse(bytes);
    CHECK(file->version() == 3 && file->alignment() == 32 && file->size() == bytes.size());
    CHECK(file->text("general.architecture") == "rwkv7");
    CHECK(file->integer("rwkv7.block_count", 1, 10) == 2);
    const TensorView* head = file->find_tensor("output.weight");
    CHECK(head != nullptr && head->type == Type::F32);
    CHECK((head->shape == std::vector<int64_t>{40, 64}));
    CHECK(head->data.size() == 40 * 64 * 4);
    CHECK(head->data.data() + head->data.size() == bytes.data() + bytes.size());
    CHECK(file->find_tensor("output") == nullptr && file->find("rwkv7") == nullptr);
    CHECK_THROWS(FormatError, "name.gguf: key 'rwkv7.nothing' is missing",
                 file->integer("rwkv7.nothing", 0, 1));
    CHECK_THROWS(FormatError, "expected 5 to 10", file->integer("rwkv7.block_count", 5, 10));
}

// Each cut is a copy of its own, so that a sanitizer sees a read beyond it.
TEST(every_cut_is_noticed) {
    const auto bytes = tiny_model("7", 2, kSmallest).bytes();
    for (std::size_t n = 0; n < bytes.size(); n += n < 6000 ? 1 : 37) {
        const std::vector<std::byte> cut(bytes.begin(),
                                         bytes.begin() + static_cast<std::ptrdiff_t>(n));
        CHECK_THROWS(FormatError, "name.gguf: ", parse(cut));
    }
}

// 2^32 + 32 bytes, of which a 32-bit size would keep 32.
TEST(a_tensor_beyond_32_bits_is_not_cut_to_them) {
    auto file = tiny_model("7", 6, kSmallest);
    file.tensors.back().dims = {(uint64_t{1} << 30) + 8};
    CHECK_THROWS(FormatError, " 4294967328 bytes", parse(file.bytes()));
}

TEST(a_file_beyond_32_bits_opens_or_says_why_not) {
    const auto path = std::filesystem::temp_directory_path() / cat("rwkv-edge-", process_id());
    const auto bytes = tiny_model("7", 7, kSmallest).bytes();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    constexpr uint64_t kSize = uint64_t{5} << 30;  // all but the model is a hole
    std::filesystem::resize_file(path, kSize);
    if (std::in_range<std::size_t>(kSize))
        CHECK(ModelFile::open(path.string())->size() == kSize);
    else
        CHECK_THROWS(FileError, path.string() + ": its 5368709120 bytes do not fit",
                     ModelFile::open(path.string()));
    std::filesystem::remove(path);
}

// Any single byte of the header may be anything: a file or a FormatError, never more.
TEST(altered_bytes_give_an_error_or_a_model) {
    std::mt19937 rng(1);
    for (const std::string& version : kTinyVersions) {
        const auto file = tiny_model(version, 3, kSmallest);
        const auto bytes = file.bytes();
        int models = 0, errors = 0;
        for (std::size_t at = 0; at < file.header().size(); ++at) {
            auto altered = bytes;
            altered[at] = static_cast<std::byte>(rng());
            try {
                const Model model(parse(altered), make_cpu_backend(1));
                ++models;
            } catch (const FormatError&) {
                ++errors;
            } catch (const UnsupportedError&) {
                ++errors;
            }
        }
        CHECK_CASE(models > 0 && errors > 1000, version);
    }
}

TEST(a_file_in_parts_is_the_same_model) {
    const auto whole = tiny_model("7", 4, kSmallest);
    const auto header = whole.header(), bytes = whole.bytes();
    // One byte after a float's place: F32 cannot be read there.
    auto parts = std::make_shared<std::vector<std::vector<std::byte>>>();
    std::vector<std::span<const std::byte>> views;
    const auto file = parse(bytes);
    for (const TensorView& tensor : file->tensors()) {
        const std::size_t shift = parts->size() % 2;
        parts->emplace_back(shift).insert(parts->back().end(), tensor.data.begin(),
                                          tensor.data.end());
        views.push_back(std::span<const std::byte>(parts->back()).subspan(shift));
    }
    const std::weak_ptr<const void> alive = parts;
    auto built = ModelFile::assemble(header, views, "parts", std::move(parts));
    std::size_t size = header.size();
    for (std::size_t i = 0; i < views.size(); ++i) {
        const TensorView &tensor = built->tensors()[i], &right = file->tensors()[i];
        CHECK(tensor.name == right.name && tensor.shape == right.shape);
        CHECK(std::ranges::equal(tensor.data, right.data));
        CHECK((tensor.data.data() == views[i].data()) == (i % 2 == 0));  // in place, or a copy
        CHECK(built->offset(tensor) == -1 && file->offset(right) > 0);
        size += tensor.data.size();
    }
    CHECK(built->size() == size && built->path() == "parts");
    const Model model(built, make_cpu_backend(1));
    built.reset();
    CHECK(!alive.expired());  // the model holds them
}

TEST(parts_that_do_not_fit_are_refused) {
    const auto whole = tiny_model("7", 5, kSmallest);
    const auto header = whole.header(), bytes = whole.bytes();
    const auto file = parse(bytes);
    std::vector<std::span<const std::byte>> views;
    for (const TensorView& tensor : file->tensors()) views.push_back(tensor.data);
    const auto assemble = [&](std::span<const std::byte> head) {
        return ModelFile::assemble(head, views, "parts", std::make_shared<int>());
    };
    for (std::size_t n = 0; n < header.size(); n += 3) {
        const std::vector<std::byte> cut(header.begin(),
                                         header.begin() + static_cast<std::ptrdiff_t>(n));
        CHECK_THROWS(FormatError, "parts: ", assemble(cut));
    }
    views[3] = views[3].first(views[3].size() - 1);
    CHECK_THROWS(FormatError, "tensor '" + file->tensors()[3].name + "' has ", assemble(header));
    views.pop_back();
    CHECK_THROWS(FormatError, "parts: " + std::to_string(views.size()) + " tensors given",
                 assemble(header));
}
