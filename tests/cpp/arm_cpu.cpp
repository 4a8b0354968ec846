// SPDX-License-Identifier: Apache-2.0
// That this Arm CPU, real or emulated, runs the instructions that it reports and dies of the
// others, and that kernel levels are offered accordingly. With that, the tests that pass on an
// emulated cortex-a53 prove that all they call keeps to ARMv8.0; but for AES and SHA, which the
// emulated core has and a Raspberry Pi 4 lacks.
#include <setjmp.h>
#include <signal.h>
#include <sys/auxv.h>

#include "check.h"

namespace {

[[gnu::target("arch=armv8.1-a")]] void atomics() {
    int x = 0;
    asm volatile("ldadd w0, w0, %0" : "+Q"(x)::"w0");
}
[[gnu::target("arch=armv8.2-a+fp16")]] void fp16() {
    asm volatile("fadd v0.8h, v0.8h, v0.8h" ::: "v0");
}
[[gnu::target("arch=armv8.2-a+dotprod")]] void dotprod() {
    asm volatile("sdot v0.4s, v0.16b, v0.16b" ::: "v0");
}
[[gnu::target("arch=armv8.2-a+i8mm")]] void i8mm() {
    asm volatile("smmla v0.4s, v0.16b, v0.16b" ::: "v0");
}

// What compilers and kernels are most likely to use beyond ARMv8.0, oldest first.
struct Extension {
    const char* name;
    bool reported;
    void (*execute)();
};
std::vector<Extension> extensions() {
    const auto has = [](unsigned long type, unsigned long bit) {
        return (getauxval(type) & bit) != 0;
    };
    return {{"atomics", has(AT_HWCAP, HWCAP_ATOMICS), atomics},
            {"fp16", has(AT_HWCAP, HWCAP_ASIMDHP), fp16},
            {"dotprod", has(AT_HWCAP, HWCAP_ASIMDDP), dotprod},
            {"i8mm", has(AT_HWCAP2, HWCAP2_I8MM), i8mm}};
}

sigjmp_buf before_the_instruction;

bool runs(void (*execute)()) {
    signal(SIGILL, [](int) { siglongjmp(before_the_instruction, 1); });
    if (sigsetjmp(before_the_instruction, 1) != 0) return false;
    execute();
    return true;
}

}  // namespace

TEST(what_runs_is_what_is_reported) {
    for (const Extension& extension : extensions())
        CHECK_CASE(runs(extension.execute) == extension.reported, extension.name);
}

TEST(levels_follow_the_cpu) {
    bool found = false;
    for (const rwkv_edge::Kernels& level : rwkv_edge::available_kernels())
        found |= level.isa == std::string("neon_dotprod");
    CHECK(found == runs(dotprod));
}

TEST(an_emulated_cpu_has_what_the_real_one_has) {
    const char* cpu = std::getenv("QEMU_CPU");
    if (cpu == nullptr) return;
    std::string found;
    for (const Extension& extension : extensions())
        if (runs(extension.execute)) found += std::string(" ") + extension.name;
    std::printf("%s:%s\n", cpu, found.c_str());
    if (cpu == std::string("cortex-a53")) CHECK_CASE(found.empty(), found);
    if (cpu == std::string("cortex-a76")) CHECK_CASE(found == " atomics fp16 dotprod", found);
    if (cpu == std::string("max")) CHECK_CASE(found == " atomics fp16 dotprod i8mm", found);
}
