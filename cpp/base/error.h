// SPDX-License-Identifier: Apache-2.0
// The errors of the engine. Bindings turn them into Python exceptions of the same meaning; bad
// arguments from a caller are std::invalid_argument (ValueError).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace rwkv_edge {

// A file is malformed, or does not fit the model. The message begins with the file's path.
class FormatError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Well-formed, but not something this build or this machine can run.
class UnsupportedError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The system refused to open or map a file; `code` is errno.
class FileError : public std::runtime_error {
public:
    FileError(int errno_code, std::string file, const std::string& what)
        : std::runtime_error(what), code(errno_code), path(std::move(file)) {}
    int code;
    std::string path;
};

// Joins anything printable into one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace rwkv_edge
