// SPDX-License-Identifier: Apache-2.0
// The reader on whole, cut and altered files. The handcrafted malformed kinds, each with its
// message, are in tests/python/test_gguf.py.

#ifndef _WIN32
#include <fcntl.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/error.h"
#include "base/system.h"
#include "check.h"
#include "folder.h"
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

TEST(values_of_every_type) {
    GgufBytes file;
    const auto put = [&]<class T>(ValueType type, T first, T second) {
        const std::string name = value_type_name(type);
        file.key(name, type, first);
        file.array(name + "s", type, std::vector<T>{first, second});
    };
    put(ValueType::U8, uint8_t{0}, uint8_t{255});
    put(ValueType::I8, int8_t{-128}, int8_t{127});
    put(ValueType::U16, uint16_t{1}, uint16_t{65535});
    put(ValueType::I16, int16_t{-32768}, int16_t{32767});
    put(ValueType::U32, uint32_t{2}, uint32_t{4294967295});
    put(ValueType::I32, int32_t{-3}, INT32_MIN);
    put(ValueType::F32, -1.5f, 0.25f);
    put(ValueType::Bool, uint8_t{1}, uint8_t{0});
    put(ValueType::U64, uint64_t{5}, uint64_t{1} << 63);
    put(ValueType::I64, int64_t{-6}, INT64_MIN);
    put(ValueType::F64, -2.5, 1e300);
    file.text("string", "a");
    file.texts("strings", {"", "b\xff", std::string(70000, 'c')});
    file.texts("no strings", {});
    const auto bytes = file.bytes();
    const auto read = parse(bytes);
    const auto both = [&](const char* name) {
        const MetaValue &one = *read->find(name), &two = *read->find(std::string(name) + "s");
        CHECK_CASE(one.count == 1 && two.count == 2 && two.type == ValueType::Array &&
                       two.element == one.type && one.integer() == two.integer(0),
                   name);
        CHECK_CASE(one.number() == two.number(), name);
        return std::pair(two.integer(0), two.integer(1));
    };
    using Both = std::pair<int64_t, int64_t>;
    CHECK(both("uint8") == Both(0, 255) && both("int8") == Both(-128, 127));
    CHECK(both("uint16") == Both(1, 65535) && both("int16") == Both(-32768, 32767));
    CHECK(both("uint32") == Both(2, 4294967295) && both("int32") == Both(-3, INT32_MIN));
    CHECK(both("uint64") == Both(5, INT64_MIN) && both("int64") == Both(-6, INT64_MIN));
    CHECK(both("bool") == Both(1, 0) && both("float32") == Both(-1, 0));
    CHECK(read->find("float32s")->number(1) == 0.25 && read->find("float64s")->number(1) == 1e300);
    CHECK(read->find("int16s")->number(0) == -32768.0 && read->find("float64")->integer() == -2);
    CHECK(read->find("string")->text() == "a" && read->find("no strings")->strings().empty());
    CHECK((read->find("strings")->strings() ==
           std::vector<std::string_view>{"", "b\xff", std::string(70000, 'c')}));
    for (const char* name :
         {"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"})
        CHECK_CASE(read->find(name)->is_integer(), name);
    for (const char* name : {"float32", "float64", "bool", "string"})
        CHECK_THROWS(FormatError,
                     cat("name.gguf: key '", name, "' is of type ", name, ", expected an integer"),
                     read->integer(name, 0, 1));
    CHECK_THROWS(FormatError, "key 'uint8s' is of type array, expected an integer",
                 read->integer("uint8s", 0, 1));
}

TEST(texts_of_keys_are_checked) {
    GgufBytes file;
    file.text("longest", std::string(1024, 'a'));
    file.text("longer", std::string(1025, 'a'));
    file.key("number", ValueType::U32, 7u);
    const auto bytes = file.bytes();
    const auto read = parse(bytes);
    CHECK(read->text("longest").size() == 1024);
    CHECK_THROWS(FormatError, "name.gguf: key 'longer' has 1025 bytes, expected at most 1024",
                 read->text("longer"));
    CHECK_THROWS(FormatError, "name.gguf: key 'number' is of type uint32, expected a string",
                 read->text("number"));
    CHECK_THROWS(FormatError, "name.gguf: key 'nothing' is missing", read->text("nothing"));
}

#ifndef _WIN32
// As in an archive: a model in the middle of a file that is open.
TEST(a_part_of_an_open_file) {
    const Folder folder;
    const auto model = tiny_model("7", 8, kSmallest).bytes();
    for (const std::size_t before : {0u, 4u, 4100u}) {
        auto bytes = std::vector<std::byte>(before);
        bytes.insert(bytes.end(), model.begin(), model.end());
        bytes.resize(bytes.size() + 100);
        const std::string path = folder.put(u8"archive", bytes);
        const int descriptor = ::open(path.c_str(), O_RDONLY);
        const auto size = static_cast<int64_t>(model.size()), at = static_cast<int64_t>(before);
        const auto file = ModelFile::open(descriptor, at, size);
        const auto right = parse(model);
        CHECK(file->size() == model.size() && file->path() == cat("file descriptor ", descriptor));
        for (std::size_t i = 0; i < right->tensors().size(); ++i) {
            const TensorView &found = file->tensors()[i], &tensor = right->tensors()[i];
            CHECK(std::ranges::equal(found.data, tensor.data));
            CHECK(file->offset(found) == right->offset(tensor));
            std::vector<std::byte> copy(tensor.data.size());
            file->read(found.data, copy.data());  // from the file, whatever of it is mapped
            CHECK(std::ranges::equal(copy, tensor.data));
            file->forget();
        }
        CHECK(ModelFile::open(descriptor, at, 0)->size() == model.size() + 100);
        CHECK_THROWS(std::invalid_argument, "an offset of 2, expected a multiple of 4",
                     ModelFile::open(descriptor, 2, 0));
        CHECK_THROWS(std::invalid_argument, "1 bytes from -4 on, expected no negative number",
                     ModelFile::open(descriptor, -4, 1));
        CHECK_THROWS(std::invalid_argument,
                     cat(size + 101, " bytes from ", at, " on, the file has"),
                     ModelFile::open(descriptor, at, size + 101));
        CHECK_THROWS(FormatError, cat("file descriptor ", descriptor, ": "),
                     ModelFile::open(descriptor, at, size / 2));
        // The map has a descriptor of its own; what was cut short is an error and no signal.
        ::close(descriptor);
        std::filesystem::resize_file(path, before + model.size() / 2);
        std::vector<std::byte> copy(file->tensors().back().data.size());
        CHECK_THROWS(FileError, "it was cut short while the model was read from it",
                     file->read(file->tensors().back().data, copy.data()));
        CHECK_THROWS(FileError, cat("file descriptor ", descriptor),
                     ModelFile::open(descriptor, 0, 0));
    }
}
#endif

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
