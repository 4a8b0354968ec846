// SPDX-License-Identifier: Apache-2.0
// Reader of rwkv.cpp's .bin files ("ggmf"), as if they were GGUF: for programs without Python,
// whose files/ggmf.py and convert/ do the same for every format.
#pragma once

#include <memory>
#include <string>

#include "io/model_file.h"

namespace rwkv_edge {

// Opens one of version 100 or 101. Matrices are used in place, unless they lie so that their type
// cannot be read there. The file has no vocabulary. Throws FileError, FormatError,
// UnsupportedError.
std::shared_ptr<const ModelFile> open_ggmf(const std::string& path);

}  // namespace rwkv_edge
