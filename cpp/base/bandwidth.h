// SPDX-License-Identifier: Apache-2.0
// This machine's memory read rate: the wall that decoding runs into.
#pragma once

namespace rwkv_edge {

// Gigabytes (1e9) per second that `threads` threads read from memory together: the best of several
// passes over a buffer larger than the caches. Takes about a second and 256 MiB.
double read_bandwidth(int threads);

}  // namespace rwkv_edge
