// SPDX-License-Identifier: Apache-2.0
#include "model/binder.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace rwkv_edge {

namespace {

std::string shape_text(const Binder::Shape& shape) {
    std::string text = "[";
    for (const int64_t n : shape) text += cat(text.size() > 1 ? ", " : "", n);
    return text + "]";
}

Binder::Shape squeezed(Binder::Shape shape) {
    std::erase(shape, 1);
    return shape;
}

int64_t product(const Binder::Shape& shape) {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace

const TensorView& Binder::find(const std::string& name) {
    const TensorView* tensor = file_.find_tensor(name);
    if (tensor == nullptr) throw FormatError(cat(file_.path(), ": tensor '", name, "' is missing"));
    used_.insert(name);
    return *tensor;
}

void Binder::wrong_shape(const TensorView& tensor, const std::string& expected) const {
    throw FormatError(cat(file_.path(), ": tensor '", tensor.name, "' has shape ",
                          shape_text(tensor.shape), ", expected ", expected));
}

Tensor Binder::find_matrix(const std::string& name, const Shape& shape) {
    const TensorView& tensor = find(name);
    // The columns of a block type are those of its blocks, also where there is but one row or one.
    const bool other_columns =
        type_info(tensor.type).block_len > 1 && tensor.shape.back() != shape.back();
    if (squeezed(tensor.shape) != squeezed(shape) || other_columns)
        wrong_shape(tensor, shape_text(shape));
    return {tensor.data.data(), tensor.type, product(shape) / shape.back(), shape.back()};
}

Tensor Binder::matrix(const std::string& name, const Shape& shape) {
    return backend_.matrix(find_matrix(name, shape));
}

Tensor Binder::matrix_either_way(const std::string& name, int64_t rows, int64_t cols) {
    const std::string usual = name + ".weight", transposed = name + "_t.weight";
    if (!has(transposed)) return matrix(usual, {rows, cols});
    if (has(usual))
        throw FormatError(cat(file_.path(), ": tensors '", usual, "' and '", transposed,
                              "' are the same matrix, expected one of them"));
    Tensor tensor = find_matrix(transposed, {cols, rows});
    tensor.by_input = true;
    return backend_.matrix(tensor);
}

std::vector<Tensor> Binder::matrices(const std::string& name, const Shape& shape, int64_t count) {
    const Tensor all = find_matrix(name, shape);
    std::vector<Tensor> parts;
    for (int64_t i = 0; i < count; ++i) parts.push_back(backend_.matrix(all.part(i, count)));
    return parts;
}

Tensor Binder::table(const std::string& name, const Shape& shape) {
    return backend_.table(find_matrix(name, shape));
}

int64_t Binder::rows_of(const std::string& name, int64_t cols) {
    const TensorView& tensor = find(name);
    if (tensor.shape.size() != 2 || tensor.shape[1] != cols)
        wrong_shape(tensor, cat("[any, ", cols, "]"));
    return tensor.shape[0];
}

Tensor Binder::find_vector(const std::string& name, const Shape& shape) {
    const TensorView& tensor = find(name);
    const int64_t n = product(shape);
    const Shape found = squeezed(tensor.shape);
    if (found != squeezed(shape) && found != squeezed({n})) wrong_shape(tensor, shape_text(shape));
    return {tensor.data.data(), tensor.type, 1, n};
}

const float* Binder::vector(const std::string& name, const Shape& shape) {
    return backend_.vector(find_vector(name, shape));
}

std::vector<float> Binder::host_vector(const std::string& name, const Shape& shape) {
    const Tensor tensor = find_vector(name, shape);
    std::vector<float> values(static_cast<std::size_t>(tensor.cols));
    type_info(tensor.type).dequantize(tensor.data, values.data(), tensor.cols);
    return values;
}

Norm Binder::norm(const std::string& name, int64_t n) {
    return {vector(name + ".weight", {n}), vector(name + ".bias", {n})};
}

void Binder::finish() const {
    for (const TensorView& tensor : file_.tensors())
        if (!used_.contains(tensor.name))
            throw FormatError(cat(file_.path(), ": tensor '", tensor.name, "' ",
                                  shape_text(tensor.shape), " is not part of this architecture"));
}

}  // namespace rwkv_edge
