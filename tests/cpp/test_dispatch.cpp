// SPDX-License-Identifier: Apache-2.0
// RWKV_EDGE_ISA takes effect, and a wrong name fails. ctest runs this once per level.
#include <cstdlib>

#include "base/error.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "quant/types.h"

using namespace rwkv_edge;

namespace {

std::string wanted() {
    const char* name = std::getenv("RWKV_EDGE_ISA");
    return name == nullptr ? "" : name;
}

}  // namespace

// First in the file: the level is chosen once, at the first call that succeeds.
TEST(a_wrong_name_fails_and_says_what_there_is) {
    const std::string before = wanted();
    setenv("RWKV_EDGE_ISA", "sse9", 1);
    CHECK_THROWS(UnsupportedError, "sse9", kernels());
    CHECK_THROWS(UnsupportedError, "scalar", kernels());
    setenv("RWKV_EDGE_ISA", before.c_str(), 1);  // empty means none
}

TEST(the_wanted_level_is_active) {
    std::string best;  // of the proven ones
    for (const Kernels& level : available_kernels())
        if (level.isa != std::string("avx512vnni")) best = level.isa;
    CHECK(kernels().isa == (wanted().empty() ? best : wanted()));
}

TEST(levels_begin_with_scalar_and_lack_no_entry) {
    CHECK(available_kernels().front().isa == std::string("scalar"));
    for (const Kernels& k : available_kernels()) {
        CHECK_CASE(k.quantize_activation && k.layer_norm && k.lerp && k.add && k.mul, k.isa);
        CHECK_CASE(k.sigmoid && k.tanh && k.relu2 && k.decay7 && k.l2_normalize, k.isa);
        CHECK_CASE(k.bonus && k.wkv7 && k.float_peak && k.int8_peak, k.isa);
        CHECK_CASE(k.matmul[static_cast<int>(Type::F32)], k.isa);
    }
}
