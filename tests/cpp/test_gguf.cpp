// SPDX-License-Identifier: Apache-2.0
// The reader on whole, cut and altered files. The handcrafted malformed kinds, each with its
// message, are in tests/python/test_gguf.py.
#include "base/error.h"
#include "check.h"
#include "model/model.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

std::shared_ptr<const ModelFile> parse(std::span<const std::byte> bytes) {
    return ModelFile::parse(bytes, "name.gguf");
}

}  // namespace

TEST(a_whole_file_is_read) {
    const auto bytes = tiny_rwkv7(1);
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
    const auto bytes = tiny_rwkv7(
        2, {.width = 32, .head_size = 16, .layers = 1, .ffn = 32, .vocab = 8, .rank = 4});
    for (std::size_t n = 0; n < bytes.size(); n += n < 6000 ? 1 : 37) {
        const std::vector<std::byte> cut(bytes.begin(),
                                         bytes.begin() + static_cast<std::ptrdiff_t>(n));
        CHECK_THROWS(FormatError, "name.gguf: ", parse(cut));
    }
}

// Any single byte of the header may be anything: a file or a FormatError, never more.
TEST(altered_bytes_give_an_error_or_a_model) {
    const auto bytes = tiny_rwkv7(
        3, {.width = 32, .head_size = 16, .layers = 1, .ffn = 32, .vocab = 8, .rank = 4});
    std::mt19937 rng(1);
    int models = 0, errors = 0;
    for (std::size_t at = 0; at < 4000; ++at) {
        auto altered = bytes;
        altered[at] = static_cast<std::byte>(rng());
        try {
            const Model model(parse(altered), 1);
            ++models;
        } catch (const FormatError&) {
            ++errors;
        } catch (const UnsupportedError&) {
            ++errors;
        }
    }
    CHECK(models > 0 && errors > 1000);
}
