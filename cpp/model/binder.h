// SPDX-License-Identifier: Apache-2.0
// Hands out the tensors of a file by name, each checked against the shape that the equations need.
// After binding, kernels may trust every size. Dimensions of size 1 do not count.
#pragma once

#include <deque>
#include <string>
#include <unordered_set>
#include <vector>

#include "backend/ops.h"
#include "base/aligned.h"
#include "io/model_file.h"

namespace rwkv_edge {

class Binder {
public:
    using Shape = std::vector<int64_t>;

    explicit Binder(const ModelFile& file) : file_(file) {}

    const ModelFile& file() const { return file_; }
    bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
    // A matrix in place, of any type; all dimensions but the last make up its rows.
    Tensor matrix(const std::string& name, const Shape& shape);
    // The number of rows of a matrix whose columns are known (a LoRA rank, the vocabulary).
    int64_t rows_of(const std::string& name, int64_t cols);
    // The floats of a tensor of this shape, flat or not. In place if F32, else widened once into
    // memory of ours.
    const float* vector(const std::string& name, const Shape& shape);
    Norm norm(const std::string& name, int64_t n);
    // Marks a tensor that files carry and no equation uses.
    void ignore(const std::string& name) { used_.insert(name); }
    // Throws FormatError if the file has a tensor that nobody asked for.
    void finish() const;

    // The widened vectors; they must live as long as the weights.
    std::deque<AlignedVector<float>> take_owned() { return std::move(owned_); }

private:
    const TensorView& find(const std::string& name);
    [[noreturn]] void wrong_shape(const TensorView& tensor, const std::string& expected) const;

    const ModelFile& file_;
    std::unordered_set<std::string> used_;
    std::deque<AlignedVector<float>> owned_;
};

}  // namespace rwkv_edge
