// SPDX-License-Identifier: Apache-2.0
#include "model/binder.h"

#include <algorithm>

#include "base/error.h"

namespace rwkv_edge {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (const int64_t n : shape) text += cat(text.size() > 1 ? ", " : "", n);
    return text + "]";
}

std::vector<int64_t> squeezed(std::vector<int64_t> shape) {
    std::erase(shape, 1);
    return shape;
}

}  // namespace

const TensorView& Binder::find(const std::string& name) {
    const TensorView* tensor = file_.find_tensor(name);
    if (tensor == nullptr) throw FormatError(cat(file_.path(), ": tensor '", name, "' is missing"));
    used_.insert(name);
    return *tensor;
}

Tensor Binder::matrix(const std::string& name, int64_t rows, int64_t cols) {
    const TensorView& tensor = find(name);
    if (squeezed(tensor.shape) != squeezed({rows, cols}))
        throw FormatError(cat(file_.path(), ": tensor '", name, "' has shape ",
                              shape_text(tensor.shape), ", expected ", shape_text({rows, cols})));
    return {tensor.data.data(), tensor.type, rows, cols};
}

int64_t Binder::rows_of(const std::string& name, int64_t cols) {
    const TensorView& tensor = find(name);
    if (tensor.shape.size() != 2 || tensor.shape[1] != cols)
        throw FormatError(cat(file_.path(), ": tensor '", name, "' has shape ",
                              shape_text(tensor.shape), ", expected [any, ", cols, "]"));
    return tensor.shape[0];
}

const float* Binder::vector(const std::string& name, int64_t n, int64_t parts) {
    const TensorView& tensor = find(name);
    const auto shape = squeezed(tensor.shape);
    if (shape != squeezed({n}) && shape != squeezed({parts, n / parts}))
        throw FormatError(cat(file_.path(), ": tensor '", name, "' has shape ",
                              shape_text(tensor.shape), ", expected ",
                              parts == 1 ? shape_text({n}) : shape_text({parts, n / parts})));
    if (tensor.type == Type::F32) return reinterpret_cast<const float*>(tensor.data.data());
    AlignedVector<float>& wide = owned_.emplace_back(static_cast<std::size_t>(n));
    type_info(tensor.type).dequantize(tensor.data.data(), wide.data(), n);
    return wide.data();
}

void Binder::finish() const {
    for (const TensorView& tensor : file_.tensors())
        if (!used_.contains(tensor.name))
            throw FormatError(cat(file_.path(), ": tensor '", tensor.name, "' ",
                                  shape_text(tensor.shape), " is not part of this architecture"));
}

}  // namespace rwkv_edge
