// SPDX-License-Identifier: Apache-2.0
// How the kernels walk over the rows of a matrix.
#pragma once

#include <stdint.h>

#include "kernels/kernels.h"

namespace rwkv_edge {

namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows that are worked on side by side, `stride` bytes apart.
struct Rows {
    const char* first;
    int64_t stride;

    const char* operator()(int lane) const { return first + lane * stride; }
    Rows operator+(int64_t bytes) const { return {first + bytes, stride}; }
};

inline Rows rows_from(const MatmulArgs& a, int64_t r) {
    return {(const char*)a.w + r * a.row_bytes, a.row_bytes};
}

// A decode step is as fast as memory, and the hardware fetches ahead where reads run on without
// end. So its rows are not neighbours: the rows of a call are cut into as many runs as it takes
// rows, and lane i takes the rows of run i one after the other, which lie in one piece.
struct Runs {
    Rows first;
    int64_t row_bytes, length;  // of a run, in rows

    Rows operator[](int64_t i) const { return first + i * row_bytes; }
};

// Runs that begin at the same place in a page share one set of the first cache, which their current
// lines then fill: blocks, of which a line holds several, are dropped between two reads. One row
// less moves the runs apart.
inline Runs runs_of(const MatmulArgs& a, int lanes) {
    int64_t length = (a.row_end - a.row_begin) / lanes;
    if (length > 1 && length * a.row_bytes % 4096 == 0) --length;
    return {{rows_from(a, a.row_begin).first, length * a.row_bytes}, a.row_bytes, length};
}

}  // namespace

}  // namespace rwkv_edge
