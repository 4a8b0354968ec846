// SPDX-License-Identifier: Apache-2.0
// States in files of their own (docs/file_format.md), as Python's State writes and reads them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/model.h"

namespace rwkv_edge {

struct SavedState {
    std::vector<float> state = {};       // [model.state_size()]
    std::vector<float> output = {};      // of the last token, [n_embd]; or none
    std::optional<int64_t> tokens = {};  // read since the beginning, where that is known
};

// Writes a state of this model, whose fingerprint goes into the file. A saved state or an empty
// file at `path` is replaced, no other. Throws FileError, and std::invalid_argument for NaN and
// infinity.
void save_state(const std::string& path, const Model& model, const std::string& fingerprint,
                const SavedState& saved);

// Reads a saved state of this model, or a tuned one that fits. An empty `fingerprint` takes a state
// of any model of this shape. Throws FileError, FormatError for what is no state or does not fit,
// and UnsupportedError for a file of a later version.
SavedState load_state(const std::string& path, const Model& model, const std::string& fingerprint);

}  // namespace rwkv_edge
