// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <array>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "kernels/levels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
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

constexpr Level kLevels[] = {
    {"scalar", true, [] { return true; }, scalar_kernels},
#if defined(__x86_64__)
    {"avx2", true,
     [] {
         return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
                __builtin_cpu_supports("f16c") != 0;
     },
     avx2_kernels},
    {"avxvnni", true, [] { return __builtin_cpu_supports("avxvnni") != 0; }, avxvnni_kernels},
    {"avx512", true,
     [] {
         return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                __builtin_cpu_supports("avx512vl") != 0 &&
                __builtin_cpu_supports("avx512dq") != 0 &&
                __builtin_cpu_supports("avx512vnni") != 0;
     },
     avx512_kernels},
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

}  // namespace

std::span<const Kernels> available_kernels() {
    static const Tables tables = build_tables();
    return std::span(tables.kernels).first(tables.count);
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace rwkv_edge
