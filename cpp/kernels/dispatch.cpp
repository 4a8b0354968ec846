// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "kernels/levels.h"
#include "quant/types.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rwkv_edge {

namespace {

// Low to high. Each overlay overwrites only the entries it has.
struct Level {
    const char* name;
    bool proven;
    bool (*supported)();
    void (*overlay)(Kernels& table);
};

#if defined(__aarch64__)
// As the system tells it. On macOS this has not run yet.
bool has_dot_products() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int has = 0;
    std::size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}
#endif

#if defined(__x86_64__)
struct X86 {
    bool avx2, avxvnni, avx512;
    bool halves;    // 512 bits are worked on in two halves
    int64_t ahead;  // Kernels::ahead
};

// By cpuid and not by __builtin_cpu_supports, which says no to everything where nobody fills its
// table, as in programs that zig links. macOS sets XCR0's bits of AVX-512 at its first use only, so
// Macs that have it take avx2.
X86 read_x86() {
    enum { kEax, kEbx, kEcx, kEdx };
    unsigned zero[4] = {}, one[4] = {}, seven[4] = {}, seven_one[4] = {};
    const auto read = [](unsigned leaf, unsigned subleaf, unsigned (&r)[4]) {
        return __get_cpuid_count(leaf, subleaf, &r[kEax], &r[kEbx], &r[kEcx], &r[kEdx]) != 0;
    };
    const auto has = [](unsigned word, std::initializer_list<int> bits) {
        return std::ranges::all_of(bits, [word](int bit) { return (word >> bit & 1) != 0; });
    };
    constexpr int kFma = 12, kOsXsave = 27, kAvx = 28, kF16c = 29;
    if (!read(0, 0, zero) || !read(1, 0, one) || !has(one[kEcx], {kFma, kOsXsave, kAvx, kF16c}))
        return {};
    if (!read(7, 0, seven) || (seven[kEax] >= 1 && !read(7, 1, seven_one))) return {};
    unsigned saved, high;  // the registers that the system saves: XCR0
    asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    X86 cpu{};
    cpu.avx2 = has(saved, {1, 2}) && has(seven[kEbx], {5});
    cpu.avxvnni = cpu.avx2 && has(seven_one[kEax], {4});
    cpu.avx512 = cpu.avx2 && has(saved, {5, 6, 7}) &&
                 has(seven[kEbx], {16, 17, 30, 31}) &&  // f, dq, bw, vl
                 has(seven[kEcx], {11});                // vnni
    // What differs between a Zen 4 and a Zen 5, which is AMD's family 26: bench/RESULTS.md has the
    // figures. Of others nothing is known.
    const unsigned family = (one[kEax] >> 8 & 15) + (one[kEax] >> 20 & 255);
    const bool amd = std::memcmp(&zero[kEbx], "Auth", 4) == 0;  // "AuthenticAMD"
    cpu.halves = amd && family < 26;
    cpu.ahead = amd && family >= 26 ? 8192 : 2048;
    return cpu;
}

// Read once: in a virtual machine each cpuid goes to the host.
const X86& x86() {
    static const X86 cpu = read_x86();
    return cpu;
}
#endif

constexpr Level kLevels[] = {
    {"scalar", true, [] { return true; }, scalar_kernels},
#if defined(__x86_64__)
    {"avx2", true, [] { return x86().avx2; }, avx2_kernels},
    {"avxvnni", true, [] { return x86().avxvnni || x86().avx512; },
     [](Kernels& table) { x86().avxvnni ? avxvnni_kernels(table) : avxvnni_evex_kernels(table); }},
    {"avx512", true, [] { return x86().avx512; },
     [](Kernels& table) {
         avx512_kernels(table);
         table.ahead = x86().ahead;
     }},
#elif defined(__aarch64__)
    {"neon", true, [] { return true; }, neon_kernels},
    {"neon_dotprod", true, has_dot_products, neon_dotprod_kernels},
#endif
};

// An array: unlike a vector, it is there until the process is gone, and so are its threads.
struct Tables {
    std::array<Kernels, std::size(kLevels)> kernels;
    std::size_t count = 0;
};

Tables build_tables() {
    Tables tables{};
    Kernels table{};
    for (const Level& level : kLevels) {
        if (!level.supported()) continue;
        level.overlay(table);
        table.isa = level.name;
        table.proven = level.proven;
        tables.kernels[tables.count++] = table;
    }
    return tables;
}

const Kernels& choose() {
    const char* wanted = std::getenv("RWKV_EDGE_ISA");
    const bool any = wanted == nullptr || *wanted == '\0';
    const Kernels* best = nullptr;
    std::string names;
    for (const Kernels& table : available_kernels()) {
        if (any ? table.proven : std::string(table.isa) == wanted) best = &table;
        names += cat(names.empty() ? "" : ", ", table.isa);
    }
    if (best != nullptr) return *best;
    throw UnsupportedError(cat("RWKV_EDGE_ISA=", wanted, ": this machine runs ", names));
}

Kernels choose_for_few_tokens() {
    Kernels table = kernels();
#if defined(__x86_64__)
    if (table.isa != std::string("avx512") || !x86().halves) return table;
    Kernels narrow{};
    avx2_kernels(narrow);
    Kernels dots = narrow;
    avxvnni_evex_kernels(dots);
    // What gains from its instructions; the others are faster in the shorter ones of AVX2.
    for (const Type type : {Type::Q8_0, Type::Q4_K, Type::Q5_K})
        narrow.matmul[static_cast<int>(type)] = dots.matmul[static_cast<int>(type)];
    for (const TypeInfo& type : all_types())
        if (type.block_len > 1)
            table.matmul[static_cast<int>(type.type)] = narrow.matmul[static_cast<int>(type.type)];
    table.rounded_bytes = narrow.rounded_bytes;
    table.round_activations = narrow.round_activations;
#endif
    return table;
}

}  // namespace

std::span<const Kernels> available_kernels() {
    static const Tables tables = build_tables();
    return std::span(tables.kernels).first(tables.count);
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

const Kernels& few_tokens_kernels() {
    static const Kernels chosen = choose_for_few_tokens();
    return chosen;
}

}  // namespace rwkv_edge
