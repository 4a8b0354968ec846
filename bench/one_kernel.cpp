// SPDX-License-Identifier: Apache-2.0
// Runs one kernel of one level once, for arm_counts.py, which counts the instructions between the
// two marks. Arguments: LEVEL KERNEL ROWS COLS TOKENS, where KERNEL is a weight type, for its
// matmul, or an entry of kernels.h. Those on vectors take COLS elements, wkv6 and wkv7 a head of
// COLS keys, wkv4 COLS channels.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "base/aligned.h"
#include "kernels/dispatch.h"
#include "quant/types.h"

using namespace rwkv_edge;

extern "C" {
[[gnu::noinline]] void kernel_begins() { asm volatile("" : : : "memory"); }
[[gnu::noinline]] void kernel_ends() { asm volatile("" : : : "memory"); }
}

namespace {

template <class Body>
void marked(const Body& body) {
    kernel_begins();
    body();
    kernel_ends();
}

// Counts hardly depend on values; these are finite and small in every type, and never all zero.
template <class T>
AlignedVector<T> filled(int64_t n) {
    AlignedVector<T> made(static_cast<size_t>(n));
    std::memset(made.data(), 0x3b, made.size() * sizeof(T));
    return made;
}

void matmul(const Kernels& kernels, Type type, int64_t rows, int64_t cols, int64_t tokens) {
    const int64_t row_bytes = type_bytes(type, cols);
    const auto w = filled<std::byte>(rows * row_bytes);
    const auto x = filled<float>(tokens * cols);
    int64_t x_stride = cols * static_cast<int64_t>(sizeof(float));
    AlignedVector<std::byte> rounded;
    if (type_info(type).block_len > 1) {
        x_stride = kernels.rounded_bytes(cols);
        rounded.resize(static_cast<size_t>(tokens * x_stride));
        for (int64_t t = 0; t < tokens; ++t)
            kernels.round_activations(x.data() + t * cols, cols, rounded.data() + t * x_stride);
    }
    auto y = filled<float>(tokens * rows);
    auto scratch = filled<std::byte>(matmul_scratch_bytes(cols));
    const void* from = rounded.empty() ? static_cast<const void*>(x.data()) : rounded.data();
    const MatmulArgs args{w.data(), row_bytes, cols,     0,    rows,           from,
                          x_stride, tokens,    y.data(), rows, scratch.data(), kernels.ahead};
    marked([&] { kernels.matmul[static_cast<int>(type)](args); });
}

// False for a name that is none of these; so the two below.
bool in_place(const Kernels& kernels, const std::string& name, float* y, int64_t n) {
    constexpr std::pair<const char*, void (*Kernels::*)(float*, int64_t)> kFunctions[] = {
        {"sigmoid", &Kernels::sigmoid}, {"silu", &Kernels::silu},     {"tanh", &Kernels::tanh},
        {"relu2", &Kernels::relu2},     {"decay6", &Kernels::decay6}, {"decay7", &Kernels::decay7},
    };
    for (const auto& [known, function] : kFunctions)
        if (name == known) {
            marked([&, run = kernels.*function] { run(y, n); });
            return true;
        }
    return false;
}

bool vectors(const Kernels& kernels, const std::string& name, int64_t n) {
    auto ys = filled<float>(n);
    const auto xs = filled<float>(n);
    float* y = ys.data();
    const float* x = xs.data();
    auto rounded = filled<std::byte>(kernels.rounded_bytes(n));
    if (name == "round_activations")
        marked([&] { kernels.round_activations(x, n, rounded.data()); });
    else if (name == "layer_norm")
        marked([&] { kernels.layer_norm(x, x, x, n, 1e-5f, y); });
    else if (name == "lerp")
        marked([&] { kernels.lerp(x, x, x, n, y); });
    else if (name == "add")
        marked([&] { kernels.add(x, n, y); });
    else if (name == "mul")
        marked([&] { kernels.mul(x, x, n, y); });
    else if (name == "l2_normalize")
        marked([&] { kernels.l2_normalize(x, x, n, y); });
    else if (name == "bonus")
        marked([&] { kernels.bonus(x, x, x, x, n, y); });
    else
        return in_place(kernels, name, y, n);
    return true;
}

bool recurrence(const Kernels& kernels, const std::string& name, int64_t n, int64_t tokens) {
    const auto xs = filled<float>(n * tokens);
    auto state = filled<float>(n * n), ys = xs;
    const float* x = xs.data();
    float *s = state.data(), *y = ys.data();
    if (name == "wkv4")
        marked([&] { kernels.wkv4({s, s + n, s + 2 * n, x, x, x, x, y, n, n, tokens}); });
    else if (name == "wkv6")
        marked([&] { kernels.wkv6({s, x, x, x, x, y, n, n, n, tokens}); });
    else if (name == "wkv7")
        marked([&] { kernels.wkv7({s, x, x, x, x, x, x, y, n, n, tokens}); });
    else
        return false;
    return true;
}

const Kernels* level(const std::string& name) {
    for (const Kernels& kernels : available_kernels())
        if (name == kernels.isa) return &kernels;
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    const Kernels* kernels = argc > 1 ? level(argv[1]) : nullptr;
    if (kernels == nullptr || argc != 6) {
        std::fprintf(stderr, "expected LEVEL KERNEL ROWS COLS TOKENS; levels of this machine:");
        for (const Kernels& known : available_kernels()) std::fprintf(stderr, " %s", known.isa);
        std::fprintf(stderr, "\n");
        return 2;
    }
    const std::string name = argv[2];
    const int64_t rows = std::atoll(argv[3]), cols = std::atoll(argv[4]),
                  tokens = std::atoll(argv[5]);
    for (const TypeInfo& type : all_types())
        if (name == type.name && kernels->matmul[static_cast<int>(type.type)] != nullptr) {
            matmul(*kernels, type.type, rows, cols, tokens);
            return 0;
        }
    if (vectors(*kernels, name, cols) || recurrence(*kernels, name, cols, tokens)) return 0;
    std::fprintf(stderr, "%s: no kernel of the level %s\n", argv[2], argv[1]);
    return 2;
}
