// SPDX-License-Identifier: Apache-2.0
// How the kernels walk over the rows of a matrix. The ISA file that includes this has defined
// kLanes, the number of rows that a decode step takes side by side.

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// kLanes rows, `stride` bytes apart.
struct Rows {
    const char* first;
    int64_t stride;

    const char* operator()(int lane) const { return first + lane * stride; }
    Rows operator+(int64_t bytes) const { return {first + bytes, stride}; }
};

// A decode step is as fast as memory, and the hardware fetches ahead where reads run on without
// end. So its rows are not neighbours: the rows of a call are cut into kLanes runs, and lane i
// takes the rows of run i one after the other, which lie in one piece.
struct Runs {
    const char* first;
    int64_t row_bytes, length;  // of a run, in rows

    const void* row(int lane, int64_t i) const { return first + (lane * length + i) * row_bytes; }
};

inline Runs runs_of(const MatmulArgs& a) {
    return {(const char*)a.w + a.row_begin * a.row_bytes, a.row_bytes,
            (a.row_end - a.row_begin) / kLanes};
}

// Runs that begin at the same place in a page share one set of the first cache, which their current
// lines then fill: blocks, of which a line holds several, are dropped between two reads. One row
// less moves the runs apart.
inline Runs apart(Runs runs) {
    const bool together = runs.length * runs.row_bytes % 4096 == 0 && runs.length > 1;
    return {runs.first, runs.row_bytes, runs.length - together};
}
