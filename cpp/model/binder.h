// SPDX-License-Identifier: Apache-2.0
// Hands out the tensors of a file by name, each checked against the shape that the equations need
// and placed on the backend. After binding, kernels may trust every size. Dimensions of size 1 do
// not count.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "backend/backend.h"
#include "io/model_file.h"

namespace rwkv_edge {

class Binder {
public:
    using Shape = std::vector<int64_t>;

    Binder(const ModelFile& file, Backend& backend) : file_(file), backend_(backend) {}

    const ModelFile& file() const { return file_; }
    bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
    // A matrix of any type, for products; all dimensions but the last make up its rows.
    Tensor matrix(const std::string& name, const Shape& shape);
    // The matrix `name`.weight, or in its place `name`_t.weight, which is the same by input.
    Tensor matrix_either_way(const std::string& name, int64_t rows, int64_t cols);
    // `count` matrices that lie one below the other as one tensor of that shape.
    std::vector<Tensor> matrices(const std::string& name, const Shape& shape, int64_t count);
    // A matrix of which steps look up rows.
    Tensor table(const std::string& name, const Shape& shape);
    // The number of rows of a matrix whose columns are known (a LoRA rank, the vocabulary).
    int64_t rows_of(const std::string& name, int64_t cols);
    // The floats of a tensor of this shape, flat or not.
    const float* vector(const std::string& name, const Shape& shape);
    // The same in the host's memory.
    std::vector<float> host_vector(const std::string& name, const Shape& shape);
    Norm norm(const std::string& name, int64_t n);
    // Marks a tensor that files carry and no equation uses.
    void ignore(const std::string& name) { used_.insert(name); }
    // Throws FormatError if the file has a tensor that nobody asked for.
    void finish() const;

private:
    const TensorView& find(const std::string& name);
    Tensor find_matrix(const std::string& name, const Shape& shape);
    Tensor find_vector(const std::string& name, const Shape& shape);
    [[noreturn]] void wrong_shape(const TensorView& tensor, const std::string& expected) const;

    const ModelFile& file_;
    Backend& backend_;
    std::unordered_set<std::string> used_;
};

}  // namespace rwkv_edge
