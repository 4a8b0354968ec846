// SPDX-License-Identifier: Apache-2.0
// RWKV_EDGE_ISA takes effect, and a wrong name fails. ctest runs this once per level.
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "quant/types.h"

using namespace rwkv_edge;

namespace {

void set_wanted(const char* name) {
#ifdef _WIN32
    _putenv_s("RWKV_EDGE_ISA", name);
#else
    setenv("RWKV_EDGE_ISA", name, 1);
#endif
}

std::string wanted() {
    const char* name = std::getenv("RWKV_EDGE_ISA");
    return name == nullptr ? "" : name;
}

}  // namespace

// First in the file: the level is chosen once, at the first call that succeeds.
TEST(a_wrong_name_fails_and_says_what_there_is) {
    const std::string before = wanted();
    set_wanted("sse9");
    CHECK_THROWS(UnsupportedError, "sse9", kernels());
    CHECK_THROWS(UnsupportedError, "scalar", kernels());
    set_wanted(before.c_str());  // empty means none
}

TEST(the_wanted_level_is_active) {
    std::string best;
    for (const Kernels& level : available_kernels())
        if (level.proven) best = level.isa;
    CHECK(kernels().isa == (wanted().empty() ? best : wanted()));
}

// The table holds nothing but the level's name and whether it is proven, then pointers; those of
// types without a kernel are null at every level.
TEST(levels_begin_with_scalar_and_lack_no_entry) {
    const Kernels& scalar = available_kernels().front();
    CHECK(scalar.isa == std::string("scalar") && scalar.proven);
    constexpr size_t kFirst = offsetof(Kernels, matmul), kEntry = sizeof(Matmul);
    static_assert((sizeof(Kernels) - kFirst) % kEntry == 0, "pointers alone");
    const auto entry = [](const Kernels& table, size_t i) {
        Matmul pointer;
        std::memcpy(&pointer, reinterpret_cast<const char*>(&table) + kFirst + i * kEntry, kEntry);
        return pointer;
    };
    for (const Kernels& k : available_kernels())
        for (size_t i = 0; i < (sizeof(Kernels) - kFirst) / kEntry; ++i) {
            const bool wanted_here = i >= 2 * kTypeSlots || entry(scalar, i) != nullptr;
            CHECK_CASE((entry(k, i) != nullptr) == wanted_here, k.isa + std::to_string(i));
        }
}

#if defined(__x86_64__) && defined(__linux__)
// By what Linux says of this CPU: a build that overlooks a level would report its tests as skipped.
TEST(every_level_of_this_cpu_is_there) {
    if (std::getenv("QEMU_CPU") != nullptr) return;  // the file is the real CPU's
    const std::vector<std::pair<std::string, std::vector<std::string>>> levels = {
        {"scalar", {}},
        {"avx2", {"avx2", "fma", "f16c"}},
        {"avxvnni", {"avx2", "fma", "f16c", "avx_vnni"}},
        {"avxvnni",
         {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}},
        {"avx512",
         {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}},
    };
    std::ifstream file("/proc/cpuinfo");
    std::string line;
    while (std::getline(file, line) && !line.starts_with("flags")) continue;
    std::istringstream words(line);
    const std::vector<std::string> flags(std::istream_iterator<std::string>(words), {});
    CHECK(std::ranges::count(flags, "sse2") == 1);
    std::string expected, found;
    for (const auto& [name, needs] : levels)
        if (std::ranges::all_of(needs,
                                [&](const std::string& flag) {
                                    return std::ranges::find(flags, flag) != flags.end();
                                }) &&
            !expected.ends_with(name + " "))
            expected += name + " ";
    for (const Kernels& level : available_kernels()) found += std::string(level.isa) + " ";
    CHECK_CASE(found == expected, found + "expected " + expected);
}
#endif

// Products of few tokens take the activations that go with them.
TEST(few_tokens_have_activations_in_the_form_of_their_products) {
    const Kernels& few = few_tokens_kernels();
    CHECK(few.isa == std::string(kernels().isa));
    for (const TypeInfo& type : all_types()) {
        const int at = static_cast<int>(type.type);
        if (type.block_len == 1) {
            CHECK(few.matmul[at] == kernels().matmul[at]);
            continue;
        }
        CHECK_CASE(std::ranges::any_of(available_kernels(),
                                       [&](const Kernels& level) {
                                           return few.matmul[at] == level.matmul[at] &&
                                                  few.rounded_bytes == level.rounded_bytes &&
                                                  few.round_activations == level.round_activations;
                                       }),
                   type.name);
    }
}

// Level by level, something is faster than below.
TEST(levels_differ) {
    const auto levels = available_kernels();
    for (size_t i = 1; i < levels.size(); ++i)
        CHECK_CASE(levels[i].int8_peak != levels[i - 1].int8_peak, levels[i].isa);
}
