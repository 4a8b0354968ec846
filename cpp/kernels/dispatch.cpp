// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/levels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace rwkv_edge {

namespace {

// Low to high. Each overlay overwrites only the entries it has.
struct Level {
    const char* name;
    bool proven;  // tests have passed on such a CPU or its emulation; else it must be asked for
    bool (*supported)();
    void (*overlay)(Kernels& table);
};

#if defined(__aarch64__) || defined(_M_ARM64)
// As the system tells it. On macOS this has not run yet, and on Windows the rest does not build.
bool has_dot_products() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int has = 0;
    std::size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE) != 0;
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
    {"avx512vnni", false,
     [] {
         return __builtin_cpu_supports("avx512vnni") != 0 &&
                __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512bw") != 0;
     },
     avx512vnni_kernels},
#elif defined(__aarch64__) || defined(_M_ARM64)
    {"neon", true, [] { return true; }, neon_kernels},
    {"neon_dotprod", true, has_dot_products, neon_dotprod_kernels},
#endif
};

std::vector<Kernels> build_tables() {
    std::vector<Kernels> tables;
    Kernels table{};
    for (const Level& level : kLevels) {
        if (!level.supported()) continue;
        level.overlay(table);
        table.isa = level.name;
        tables.push_back(table);
    }
    return tables;
}

const char* best_proven() {
    const char* best = nullptr;
    for (const Level& level : kLevels)
        if (level.proven && level.supported()) best = level.name;
    return best;
}

const Kernels& choose() {
    const std::span<const Kernels> tables = available_kernels();
    const char* wanted = std::getenv("RWKV_EDGE_ISA");
    if (wanted == nullptr || *wanted == '\0') wanted = best_proven();
    std::string names;
    for (const Kernels& table : tables) {
        if (std::string(table.isa) == wanted) return table;
        names += cat(names.empty() ? "" : ", ", table.isa);
    }
    throw UnsupportedError(cat("RWKV_EDGE_ISA=", wanted, ": this machine runs ", names));
}

}  // namespace

std::span<const Kernels> available_kernels() {
    static const std::vector<Kernels> tables = build_tables();
    return tables;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace rwkv_edge
