// SPDX-License-Identifier: Apache-2.0
// Files of rwkv.cpp, made here of GGUF models by what its converter does to tensors: what is read
// must be the GGUF file's tensors, to the bit. Then files that are wrong, cut or altered.
// tests/python/test_rwkv_cpp.py compares models that run with the Python package's.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "check.h"
#include "folder.h"
#include "io/ggmf.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

using Bytes = std::vector<std::byte>;
using Dims = std::vector<int32_t>;

// The numbers that these files have for types.
const std::map<Type, uint32_t> kTypes = {
    {Type::F32, 0},   {Type::F16, 1},   {Type::Q4_0, 2},  {Type::Q4_1, 3},
    {Type::Q5_0, 7},  {Type::Q5_1, 8},  {Type::Q8_0, 9},  {Type::Q2_K, 11},
    {Type::Q3_K, 12}, {Type::Q4_K, 13}, {Type::Q5_K, 14}, {Type::Q6_K, 15},
};

struct BinTensor {
    std::string name;
    Dims dims;  // columns first
    uint32_t type = 0;
    Bytes data;
    std::size_t length = name.size();  // what the file says of the name

    std::size_t header_bytes() const { return 12 + 4 * dims.size() + name.size(); }
};

struct Bin {
    uint32_t magic = 0x67676d66, version = 101, vocab = 0, width = 0, layers = 0, type = 0;
    std::vector<BinTensor> tensors;

    BinTensor& at(const std::string& name) {
        for (BinTensor& tensor : tensors)
            if (tensor.name == name) return tensor;
        throw std::out_of_range(name);
    }
    void drop(const std::string& name) {
        std::erase_if(tensors, [&](const BinTensor& tensor) { return tensor.name == name; });
    }
    Bytes bytes() const {
        Bytes out;
        const auto put = [&](const void* from, std::size_t size) {
            const auto* raw = static_cast<const std::byte*>(from);
            out.insert(out.end(), raw, raw + size);
        };
        const uint32_t header[] = {magic, version, vocab, width, layers, type};
        put(header, sizeof header);
        for (const BinTensor& tensor : tensors) {
            const uint32_t begin[] = {static_cast<uint32_t>(tensor.dims.size()),
                                      static_cast<uint32_t>(tensor.length), tensor.type};
            put(begin, sizeof begin);
            put(tensor.dims.data(), 4 * tensor.dims.size());
            put(tensor.name.data(), tensor.name.size());
            put(tensor.data.data(), tensor.data.size());
        }
        return out;
    }
};

Bytes encoded(const std::vector<float>& x, Type type) {
    const auto n = static_cast<int64_t>(x.size());
    Bytes out(static_cast<std::size_t>(type_bytes(type, n)));
    type_info(type).quantize(x.data(), out.data(), n);
    return out;
}

BinTensor floats(const std::string& name, const Dims& dims) {
    int64_t n = 1;
    for (const int32_t size : dims) n *= size;
    return {name, dims, 0, Bytes(static_cast<std::size_t>(4 * n))};
}

// What BlinkDL calls a tensor of a layer, or "" where several make up this one.
std::string name_in_layer(const std::string& gguf, const std::string& version) {
    const bool is_7 = version == "7", is_6 = version == "6";
    static const std::map<std::string, std::string> same = {
        {"attn_norm.weight", "ln1.weight"},
        {"attn_norm.bias", "ln1.bias"},
        {"attn_norm_2.weight", "ln2.weight"},
        {"attn_norm_2.bias", "ln2.bias"},
        {"time_mix_ln.weight", "att.ln_x.weight"},
        {"time_mix_ln.bias", "att.ln_x.bias"},
        {"time_mix_receptance.weight", "att.receptance.weight"},
        {"time_mix_key.weight", "att.key.weight"},
        {"time_mix_value.weight", "att.value.weight"},
        {"time_mix_output.weight", "att.output.weight"},
        {"time_mix_gate.weight", "att.gate.weight"},
        {"time_mix_lerp_fused.weight", ""},
        {"time_mix_decay.weight", "att.time_decay"},
        {"time_mix_state.weight", "att.time_state"},
        {"time_mix_lerp_x.weight", "att.time_maa_x"},
        {"time_mix_decay_w1.weight", "att.time_decay_w1"},
        {"time_mix_decay_w2.weight", "att.time_decay_w2"},
        {"channel_mix_key.weight", "ffn.key.weight"},
        {"channel_mix_value.weight", "ffn.value.weight"},
        {"channel_mix_receptance.weight", "ffn.receptance.weight"},
    };
    if (const auto found = same.find(gguf); found != same.end()) return found->second;
    if (gguf == "time_mix_first.weight")
        return version == "4" || version == "5.0" ? "att.time_first" : "att.time_faaaa";
    if (const std::string lerp = "channel_mix_lerp_"; gguf.starts_with(lerp))
        return std::string(is_7   ? "ffn.x_"
                           : is_6 ? "ffn.time_maa_"
                                  : "ffn.time_mix_") +
               gguf[lerp.size()];
    const std::string mix = "time_mix_", end = ".weight";  // w1 and the like
    return (is_6 ? "att.time_maa_" : "att.") +
           gguf.substr(mix.size(), gguf.size() - mix.size() - end.size());
}

// The letters of a token shift in their order, and what stands before each.
std::pair<std::string, std::string> lerps(const std::string& version) {
    if (version == "7") return {"rwkvag", "att.x_"};
    if (version == "6") return {"wkvrg", "att.time_maa_"};
    return {version == "5.2" ? "kvrg" : "kvr", "att.time_mix_"};
}

// As rwkv.cpp's converter writes a model. Heads are of 32. In `type` are the matrices, as its
// quantizer makes them; RWKV-6's low-rank ones too.
Bin bin_of(const GgufBytes& file, const std::string& version) {
    static const std::map<std::string, std::string> outside = {
        {"token_embd.weight", "emb.weight"},
        {"token_embd_norm.weight", "blocks.0.ln0.weight"},
        {"token_embd_norm.bias", "blocks.0.ln0.bias"},
        {"output_norm.weight", "ln_out.weight"},
        {"output_norm.bias", "ln_out.bias"},
        {"output.weight", "head.weight"},
    };
    Bin bin;
    for (const GgufBytes::Tensor& tensor : file.tensors) {
        Dims dims(tensor.dims.begin(), tensor.dims.end());
        std::vector<float> x = tensor.x;
        std::string name;
        const auto add = [&] {
            bin.tensors.push_back({name, dims, kTypes.at(tensor.type), encoded(x, tensor.type)});
        };
        if (const auto found = outside.find(tensor.name); found != outside.end()) {
            name = found->second;
            if (name == "emb.weight") {
                bin.width = static_cast<uint32_t>(dims[0]);
                bin.vocab = static_cast<uint32_t>(dims[1]);
            }
            add();
            continue;
        }
        const std::string layer = tensor.name.substr(4, tensor.name.find('.', 4) - 4);
        const std::string rest = tensor.name.substr(5 + layer.size()), to = "blocks." + layer + ".";
        bin.layers = std::max(bin.layers, static_cast<uint32_t>(std::stoul(layer)) + 1);
        const int32_t width = dims[0], heads = width / 32;
        name = to + name_in_layer(rest, version);
        if (rest == "time_mix_lerp_fused.weight") {
            const auto [letters, prefix] = lerps(version);
            if (version == "7" && layer == "0") {  // newer converters join them
                name = to + "att.x_rwkvag";
                dims = {width, 1, 6};
                add();
                continue;
            }
            auto from = tensor.x.begin();
            for (const char letter : letters) {
                name = to + prefix + letter;
                dims = {width};
                x.assign(from, from + width);
                from += width;
                add();
            }
            continue;
        }
        const bool by_channel = rest == "time_mix_decay.weight" || rest == "time_mix_first.weight";
        if (version == "5.0" && by_channel) {  // one value for a head
            dims = {1, 1, heads};
            for (std::size_t head = 0; head < static_cast<std::size_t>(heads); ++head)
                x[head] = tensor.x[32 * head];
            x.resize(static_cast<std::size_t>(heads));
        } else if ((version == "5.2" || version == "6") && by_channel) {
            dims = {1, 32, heads};
        } else if (rest == "time_mix_r_k.weight") {
            dims = {32, heads};
        } else if (rest == "time_mix_k_k.weight") {
            dims = {width, 1, 1};
        } else if (rest == "time_mix_state.weight" && version != "7") {
            for (std::size_t i = 0; i < x.size(); ++i)
                x[i] = tensor.x[i / 1024 * 1024 + i % 32 * 32 + i / 32 % 32];
        }
        add();
        if (version == "7" && rest == "time_mix_a0.weight" && layer == "0")  // never used
            for (const char* dummy : {"v0", "v1", "v2"})
                bin.tensors.push_back(floats(to + "att." + dummy, {3}));
    }
    return bin;
}

// A model of which such a file exists: in RWKV-5.0 all channels of a head are alike.
GgufBytes model_of(const std::string& version, const TinyShape& shape = {}) {
    GgufBytes file = tiny_model(version, 1, shape);
    for (GgufBytes::Tensor& tensor : file.tensors)
        if (version == "5.0" && (tensor.name.ends_with("time_mix_decay.weight") ||
                                 tensor.name.ends_with("time_mix_first.weight")))
            for (std::size_t i = 0; i < tensor.x.size(); ++i) tensor.x[i] = tensor.x[i / 32 * 32];
    return file;
}

const std::vector<std::string> kVersions = {"4", "5.0", "5.2", "6", "7"};

std::vector<int64_t> squeezed(std::vector<int64_t> shape) {
    std::erase(shape, 1);
    return shape;
}

std::vector<float> logits_of(std::shared_ptr<const ModelFile> file) {
    const auto runner = std::make_shared<Runner>(Model::open(std::move(file), make_cpu_backend(1)));
    const auto n_vocab = static_cast<int32_t>(runner->model().config().n_vocab);
    std::vector<int32_t> ids{1, 39, 7, 7, 0, 22, 3};
    for (int32_t& id : ids) id %= n_vocab;
    std::vector<float> out(ids.size() * static_cast<std::size_t>(n_vocab));
    Session(runner).feed(ids, Session::Logits::All, out.data());
    return out;
}

// Whether a file of rwkv.cpp is the same model as a GGUF file.
void compare(const Bin& bin, const GgufBytes& gguf, const std::string& text) {
    const Folder folder;
    const Bytes bytes = gguf.bytes();
    const auto right = ModelFile::parse(bytes, "right.gguf");
    const auto found = open_ggmf(folder.put(u8"model.bin", bin.bytes()));
    for (const std::string& key : right->keys()) {
        const MetaValue *value = found->find(key), *expected = right->find(key);
        CHECK_CASE(value != nullptr && value->type == expected->type &&
                       std::ranges::equal(value->data, expected->data),
                   text + " " + key);
    }
    CHECK_CASE(found->keys().size() == right->keys().size(), text);
    CHECK_CASE(found->tensors().size() == right->tensors().size(), text);
    for (const TensorView& tensor : right->tensors()) {
        const TensorView* same = found->find_tensor(tensor.name);
        CHECK_CASE(same != nullptr && same->type == tensor.type, text + " " + tensor.name);
        if (same == nullptr) continue;
        CHECK_CASE(std::ranges::equal(same->data, tensor.data), text + " " + tensor.name);
        const auto shape = squeezed(tensor.shape);  // a vector may have several dimensions
        CHECK_CASE(shape.size() == 1 || squeezed(same->shape) == shape, text + " " + tensor.name);
    }
    CHECK_CASE(logits_of(found) == logits_of(right), text);
}

// Where everything goes that a file may do wrong, up to a model.
void open(const Bin& bin) {
    const Folder folder;
    const std::string path = folder.put(u8"wrong.bin", bin.bytes());
    const Model model(open_ggmf(path), make_cpu_backend(1));
}

}  // namespace

TEST(every_version_is_the_model_of_its_gguf_file) {
    for (const std::string& version : kVersions) {
        const GgufBytes file = model_of(version);
        compare(bin_of(file, version), file, version);
    }
}

TEST(states_that_were_merged_begin_every_session) {
    for (const std::string version : {"5.0", "5.2", "6", "7"}) {
        const GgufBytes file = model_of(version, {.state = true});
        compare(bin_of(file, version), file, version);
    }
}

// Names are as long as they are, so blocks and floats begin at any byte.
TEST(every_type_comes_as_it_is) {
    for (const std::string version : {"4", "5.2", "6", "7"})
        for (const auto& [type, number] : kTypes) {
            if (number > 9) continue;  // no quantizer of ours
            GgufBytes file = model_of(version, {.rank = 32});
            GgufBytes right = file;
            for (GgufBytes::Tensor& tensor : file.tensors) {
                const bool matrix = tensor.dims.size() >= 2 && tensor.dims[1] > 1 &&
                                    !tensor.name.ends_with("time_mix_lerp_fused.weight");
                if (!matrix) continue;
                // Its quantizer leaves the embedding, the head, and what RWKV-7 calls by a letter.
                const bool low_rank = tensor.name.find("w1.") != std::string::npos ||
                                      tensor.name.find("w2.") != std::string::npos;
                const bool stays =
                    !tensor.name.starts_with("blk.") ||
                    (version == "7" && tensor.name.find("_mix_") != std::string::npos &&
                     std::isdigit(tensor.name[tensor.name.size() - 8]) != 0);
                tensor.type = stays && type != Type::F32 ? Type::F16 : type;
                GgufBytes::Tensor& same = right.at(tensor.name);
                same.type = tensor.type;
                if (version != "6" || !low_rank || type == Type::F16) continue;
                // Blocks of RWKV-6's low-rank matrices become floats, which hold the same values.
                same.type = Type::F32;
                const Bytes blocks = encoded(tensor.x, type);
                type_info(type).dequantize(blocks.data(), same.x.data(),
                                           static_cast<int64_t>(same.x.size()));
            }
            compare(bin_of(file, version), right,
                    version + " " + std::string(type_info(type).name));
        }
}

TEST(k_types_have_numbers_of_their_own) {
    const GgufBytes file = model_of("4", {.width = 256, .ffn = 32});
    const Folder folder;
    std::mt19937 rng(3);
    for (const auto& [type, number] : kTypes) {
        if (number < 10) continue;
        Bin bin = bin_of(file, "4");
        BinTensor& key = bin.at("blocks.1.att.key.weight");
        key.type = number;
        key.data.resize(static_cast<std::size_t>(type_bytes(type, 256 * 256)));
        for (std::byte& byte : key.data) byte = static_cast<std::byte>(rng());
        const auto opened = open_ggmf(folder.put(u8"model.bin", bin.bytes()));
        const TensorView* found = opened->find_tensor("blk.1.time_mix_key.weight");
        CHECK(found != nullptr && found->type == type);
        CHECK((found->shape == std::vector<int64_t>{256, 256}));
        CHECK(std::ranges::equal(found->data, key.data));
    }
}

TEST(files_of_version_100_hold_no_blocks) {
    GgufBytes file = model_of("4");
    for (const char* name : {"token_embd.weight", "blk.0.time_mix_key.weight"})
        file.at(name).type = Type::F16;
    Bin bin = bin_of(file, "4");
    bin.version = 100;
    compare(bin, file, "f16");
    file.at("blk.0.time_mix_key.weight").type = Type::Q5_1;
    bin = bin_of(file, "4");
    bin.version = 100;
    CHECK_THROWS(UnsupportedError,
                 "wrong.bin: tensor 'blocks.0.att.key.weight' is q5_1 of file version 100, whose "
                 "blocks had another layout; quantize the FP16 file again",
                 open(bin));
}

TEST(files_of_other_kinds) {
    const Folder folder;
    CHECK_THROWS(FileError, "missing", open_ggmf(folder.of(u8"missing")));
    CHECK_THROWS(FormatError, "the file is empty", open_ggmf(folder.put(u8"empty", "")));
    const std::string path = folder.put(u8"other", "ggmf");
    CHECK_THROWS(FormatError, path + ": not a file of rwkv.cpp", open_ggmf(path));
}

TEST(headers_that_lie) {
    const Bin good = bin_of(model_of("4"), "4");
    const auto wrong = [&](auto change) {
        Bin bin = good;
        change(bin);
        return bin;
    };
    CHECK_THROWS(UnsupportedError, "wrong.bin: rwkv.cpp file version 99, expected 100 or 101",
                 open(wrong([](Bin& bin) { bin.version = 99; })));
    CHECK_THROWS(UnsupportedError, "file version 102",
                 open(wrong([](Bin& bin) { bin.version = 102; })));
    CHECK_THROWS(FormatError, "tensor 'emb.weight', expected [65536, 64] as the header says",
                 open(wrong([](Bin& bin) { bin.vocab = 65536; })));
    CHECK_THROWS(FormatError, "expected [40, 4294967295] as the header says",
                 open(wrong([](Bin& bin) { bin.width = ~0u; })));
    CHECK_THROWS(FormatError, "tensors of 2 layers, the header says 4; is the download complete?",
                 open(wrong([](Bin& bin) { bin.layers = 4; })));
    CHECK_THROWS(FormatError, "tensors of 2 layers, the header says 1",
                 open(wrong([](Bin& bin) { bin.layers = 1; })));
    CHECK_THROWS(FormatError, "no tensor 'emb.weight'; is the download complete?",
                 open(wrong([](Bin& bin) { bin.tensors.clear(); })));
    (void)open(wrong([](Bin& bin) { bin.type = 77; }));  // each tensor says its own
}

// A good file with one more tensor, which is wrong.
TEST(tensors_that_lie) {
    const Bin good = bin_of(model_of("4"), "4");
    const std::string where = cat("the tensor at byte ", good.bytes().size());
    const auto with = [&](BinTensor tensor) {
        Bin bin = good;
        bin.tensors.push_back(std::move(tensor));
        return bin;
    };
    const auto typed = [&](uint32_t type, Dims dims) {
        BinTensor tensor = floats("extra", dims);
        tensor.type = type;
        return with(tensor);
    };
    CHECK_THROWS(FormatError, "tensor 'extra' has no place in RWKV-4",
                 open(with(floats("extra", {32, 2}))));
    CHECK_THROWS(FormatError,
                 where + " has 0 dimensions and a name of 5 bytes, expected 1 to 3 and 1 to 256",
                 open(with(floats("extra", {}))));
    CHECK_THROWS(FormatError, where + " has 4 dimensions",
                 open(with(floats("extra", {4, 4, 2, 2}))));
    CHECK_THROWS(FormatError, "a name of 0 bytes", open(with(floats("", {4}))));
    CHECK_THROWS(FormatError, "a name of 257 bytes",
                 open(with(floats(std::string(257, 'x'), {4}))));
    CHECK_THROWS(FormatError, "tensor '" + std::string(256, 'x') + "' has no place",
                 open(with(floats(std::string(256, 'x'), {4}))));
    BinTensor long_name = floats("extra", {4});
    long_name.length = 200;
    CHECK_THROWS(FormatError, "the file ends inside the name of a tensor", open(with(long_name)));
    CHECK_THROWS(FormatError, "tensor 'emb.weight' appears twice",
                 open(with(floats("emb.weight", {64, 40}))));
    for (const int32_t size : {0, -1, -32, INT32_MIN})
        CHECK_THROWS(FormatError, cat(where, " has a dimension of ", size),
                     open(with({"extra", {32, size}, 0, {}})));
    // 2^60 values, and 2^56, whose bytes no file has
    CHECK_THROWS(FormatError, where + " has a dimension of 1073741824",
                 open(with({"extra", {1 << 30, 1 << 30}, 0, {}})));
    CHECK_THROWS(FormatError,
                 "the file ends inside tensor 'extra': 288230376151711744 bytes needed",
                 open(with({"extra", {1 << 30, 1 << 26}, 0, {}})));
    CHECK_THROWS(FormatError,
                 "tensor 'extra' has rows of 48 values, expected a multiple of 32 "
                 "for q4_0",
                 open(typed(2, {48, 2})));
    CHECK_THROWS(FormatError, "rows of 128 values, expected a multiple of 256 for q6_k",
                 open(typed(15, {128, 2})));
    for (const uint32_t type : {4u, 5u, 6u, 10u, 16u, 17u, ~0u})
        CHECK_THROWS(UnsupportedError,
                     cat("tensor 'extra' is of type ", type,
                         ", which is not read; quantize the FP16 file again"),
                     open(typed(type, {32, 2})));
    // In blocks it takes fewer bytes, and what is left would be a tensor.
    CHECK_THROWS(FormatError, cat("the tensor at byte ", good.bytes().size() + 25 + 68, " has 0"),
                 open(typed(9, {32, 2})));
}

TEST(there_are_not_too_many_tensors) {
    Bin bin;
    for (int i = 0; i < 65536; ++i) bin.tensors.push_back(floats(cat(i), {1}));
    CHECK_THROWS(FormatError, "no tensor 'emb.weight'", open(bin));
    bin.tensors.push_back(floats("x", {1}));
    CHECK_THROWS(FormatError, "more than 65536 tensors", open(bin));
}

TEST(every_tensor_must_be_there_and_have_its_size) {
    for (const std::string& version : kVersions) {
        const Bin good =
            bin_of(model_of(version, {.ffn = 32, .vocab = 8, .rank = 4, .state = version[0] > '4'}),
                   version);
        for (const BinTensor& tensor : good.tensors) {
            const std::string& name = tensor.name;
            // Of a first layer of RWKV-7 nobody uses these.
            if (name.starts_with("blocks.0.att.v") && !name.ends_with("weight")) continue;
            if (!name.ends_with("time_state")) {
                Bin without = good;
                without.drop(name);
                CHECK_THROWS(FormatError, "wrong.bin: ", open(without));
            }
            Bin wider = good;
            BinTensor& wide = wider.at(name);
            wide.data.resize(wide.data.size() / static_cast<std::size_t>(wide.dims[0]) *
                             static_cast<std::size_t>(wide.dims[0] + 1));
            wide.dims[0] += 1;
            CHECK_THROWS(FormatError, "wrong.bin: ", open(wider));
        }
    }
}

// Dimensions of size 1 do not count, wherever they are.
TEST(heads_are_those_that_the_shape_says) {
    for (const std::string version : {"6", "7"}) {
        const GgufBytes file = model_of(version);
        Bin bin = bin_of(file, version);
        BinTensor& heads = bin.at(version == "6" ? "blocks.0.att.time_faaaa" : "blocks.0.att.r_k");
        for (const Dims& dims : {Dims{32, 2}, Dims{1, 32, 2}, Dims{32, 2, 1}}) {
            heads.dims = dims;
            compare(bin, file, version);
        }
        const GgufBytes one = model_of(version, {.width = 32});
        compare(bin_of(one, version), one, version + " with one head");
    }
}

TEST(messages_name_the_tensor_and_both_sizes) {
    const auto wrong = [](const std::string& version, const std::string& name, const Dims& dims) {
        Bin bin = bin_of(model_of(version, {.state = version[0] > '4'}), version);
        bin.at(name) = floats(name, dims);
        open(bin);
    };
    CHECK_THROWS(FormatError, "tensor 'blocks.1.ln1.weight' has 65 values, expected 64",
                 wrong("4", "blocks.1.ln1.weight", {65}));
    CHECK_THROWS(FormatError, "tensor 'blocks.1.att.time_mix_v' has 63 values, expected 64",
                 wrong("4", "blocks.1.att.time_mix_v", {63}));
    CHECK_THROWS(FormatError, "tensor 'blocks.1.att.time_decay' has 3 values, expected 64 or 2",
                 wrong("5.0", "blocks.1.att.time_decay", {1, 1, 3}));
    CHECK_THROWS(FormatError, "3 heads, expected a divisor of 64, the columns of emb.weight",
                 wrong("5.2", "blocks.0.att.time_decay", {1, 32, 3}));
    CHECK_THROWS(FormatError,
                 "tensor 'blocks.0.att.time_faaaa' has 5 heads of 32 values, expected 64 values, "
                 "the columns of emb.weight",
                 wrong("6", "blocks.0.att.time_faaaa", {1, 32, 5}));
    CHECK_THROWS(FormatError, "tensor 'blocks.0.att.r_k' has 7 heads of 32 values",
                 wrong("7", "blocks.0.att.r_k", {32, 7}));
    CHECK_THROWS(FormatError,
                 "tensor 'blocks.0.att.r_k' has 1 dimensions, expected 2: heads, and values of a "
                 "head",
                 wrong("7", "blocks.0.att.r_k", {64}));
    CHECK_THROWS(FormatError, "tensor 'blocks.1.att.time_state' has 2080 values, expected 2048",
                 wrong("6", "blocks.1.att.time_state", {32, 65}));
    CHECK_THROWS(FormatError, "tensor 'blocks.1.att.time_state' has 2080 values, expected 2048",
                 wrong("7", "blocks.1.att.time_state", {32, 65}));
    CHECK_THROWS(FormatError, "tensor 'blk.1.time_mix_w1.weight' has shape [12, 65], expected ",
                 wrong("7", "blocks.1.att.w1", {65, 12}));
}

// On Windows a mapped file cannot be changed, so each model is gone before the next change.
TEST(every_cut_is_noticed) {
    const Folder folder;
    const Bin bin = bin_of(model_of("7", {.width = 32, .layers = 1, .ffn = 32, .vocab = 8}), "7");
    const Bytes bytes = bin.bytes();
    std::set<std::size_t> cuts;  // in every header, and at some places of the data
    for (std::size_t at = 1; at < 24; ++at) cuts.insert(at);
    std::size_t begin = 24;
    for (const BinTensor& tensor : bin.tensors) {
        for (std::size_t at = 0; at <= tensor.header_bytes(); ++at) cuts.insert(begin + at);
        begin += tensor.header_bytes() + tensor.data.size();
        cuts.insert({begin - 1, begin - tensor.data.size() / 2});
    }
    CHECK(begin == bytes.size() && cuts.size() > 1000);
    const std::string path = folder.put(u8"cut.bin", bytes);
    for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
        std::filesystem::resize_file(path, *cut);
        CHECK_THROWS(FormatError, path + ": ", open_ggmf(path));
    }
}

// Any byte of a header may be anything: a model or an error, never more.
TEST(altered_bytes_give_an_error_or_a_model) {
    const Folder folder;
    std::mt19937 rng(1);
    for (const std::string& version : kVersions) {
        const Bin bin =
            bin_of(model_of(version, {.width = 32, .layers = 1, .ffn = 32, .vocab = 8, .rank = 4}),
                   version);
        const Bytes bytes = bin.bytes();
        const std::string path = folder.put(u8"altered.bin", bytes);
        int models = 0, errors = 0;
        const auto alter = [&](std::size_t at) {
            const auto put = [&](char byte) {
                std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
                file.seekp(static_cast<std::streamoff>(at));
                file.put(byte);
            };
            put(static_cast<char>(rng()));
            try {
                const Model model(open_ggmf(path), make_cpu_backend(1));
                ++models;
            } catch (const FormatError& error) {
                ++errors;
                CHECK_CASE(std::string(error.what()).starts_with(path + ": "), error.what());
            } catch (const UnsupportedError&) {
                ++errors;
            }
            put(static_cast<char>(bytes[at]));
        };
        for (std::size_t at = 0; at < 24; ++at) alter(at);
        std::size_t begin = 24;
        for (const BinTensor& tensor : bin.tensors) {
            for (std::size_t at = 0; at < tensor.header_bytes(); ++at) alter(begin + at);
            begin += tensor.header_bytes() + tensor.data.size();
        }
        CHECK_CASE(models > 0 && errors > 500, version);
        for (const float logit : logits_of(open_ggmf(path))) CHECK(std::isfinite(logit));
    }
}
