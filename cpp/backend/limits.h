// SPDX-License-Identifier: Apache-2.0
// What this machine gives at most: the walls that decoding (memory) and prompts (arithmetic) run
// into. All three are the best of several passes of `threads` threads together, and throw
// std::invalid_argument for a number of threads outside 1 to 1024.
#pragma once

#include "kernels/kernels.h"

namespace rwkv_edge {

// Gigabytes (1e9) per second read from a buffer larger than the caches. Takes about a second, and
// 256 MiB or a quarter of the available memory, whichever is less; throws NoMemory where the system
// does not give it.
double read_bandwidth(int threads);

// 1e9 operations per second, two per product, of a level's arithmetic on f32 and on 8-bit codes
// (Kernels::float_peak, int8_peak). Take some 64 ms each.
double float_peak(const Kernels& kernels, int threads);
double int8_peak(const Kernels& kernels, int threads);

}  // namespace rwkv_edge
