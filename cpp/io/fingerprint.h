// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "io/model_file.h"

namespace rwkv_edge {

// What tells a model from others of its shape: 64 hex digits, a SHA-256.
//
// It covers the keys of the architecture and, of each tensor, its name, type, shape and bytes: all
// of up to 8 KiB, and of a larger one 8 pieces of 1 KiB, the first at its beginning, the last at
// its end. So it reads a few megabytes of a file of 14 GB. Training changes most weights, so two
// fine-tunes differ; one weight that was changed by hand may escape. Names, licences, vocabulary
// and the order of tensors do not matter, nor does the form of the file.
std::string fingerprint(const ModelFile& file);

}  // namespace rwkv_edge
