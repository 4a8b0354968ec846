// SPDX-License-Identifier: Apache-2.0
// The Python module rwkv_edge._core; the only file that knows Python. Checks what numpy hands over,
// releases the GIL around everything long, turns exceptions into Python's.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>

#include "backend/limits.h"
#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"
#include "gptq.h"
#include "gram.h"
#include "io/fingerprint.h"
#include "io/model_file.h"
#include "kernels/dispatch.h"
#include "quant/search.h"
#include "sampler.h"
#include "session.h"
#include "text/answer.h"
#include "text/chat_template.h"
#include "text/sentencepiece.h"
#include "text/tokenizer.h"
#include "text/world_tokenizer.h"

namespace py = pybind11;

namespace rwkv_edge {

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;
using FilePtr = std::shared_ptr<const ModelFile>;
constexpr int kMostThreads = 1024;

// Calls Python's C interface, which may end this thread: a thread that outlives the interpreter is
// unwound when it wants the GIL (until Python 3.13), and the destructors on its stack cannot bear
// that. It stops here instead, as Python 3.14 has it stop.
template <class Call>
auto call_python(Call&& call) {
    try {
        return call();
    } catch (...) {  // no C++ exception comes out of C
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

// The GIL is released while this lives.
//
// It must not be the call_guard of a py::init: pybind11 puts the new object into its table of all
// objects under that guard, so without the GIL.
class Unlocked {
public:
    Unlocked() = default;
    ~Unlocked() { take(); }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

    // In between it is held while one of these lives.
    class Locked {
    public:
        explicit Locked(Unlocked& outer) : outer_(outer) { outer_.take(); }
        ~Locked() { outer_.state_ = PyEval_SaveThread(); }
        Locked(const Locked&) = delete;
        Locked& operator=(const Locked&) = delete;

    private:
        Unlocked& outer_;
    };

private:
    void take() {
        call_python([this] { PyEval_RestoreThread(state_); });
    }
    PyThreadState* state_ = PyEval_SaveThread();
};

// Text from a file need not be UTF-8; what is not comes as lone surrogates.
py::str to_str(std::string_view text) {
    PyObject* object =
        PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "surrogateescape");
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(object);
}

// The bytes of a text that `to_str` made.
std::string from_str(const py::str& text) {
    const auto bytes = py::reinterpret_steal<py::bytes>(
        PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogateescape"));
    if (!bytes) throw py::error_already_set();
    return bytes;
}

// --- types ---

const TypeInfo& type_by_name(const std::string& name) {
    if (const TypeInfo* info = find_type(name)) return *info;
    std::string names;
    for (const TypeInfo& info : all_types()) names += cat(names.empty() ? "" : ", ", info.name);
    throw std::invalid_argument(cat("type '", name, "', expected one of ", names));
}

std::vector<py::ssize_t> shape_with_last(const py::array& array, int64_t last) {
    std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    shape.back() = static_cast<py::ssize_t>(last);
    return shape;
}

int64_t last_dimension(const py::array& array, int64_t multiple, const char* unit,
                       const char* type) {
    if (array.ndim() < 1)
        throw std::invalid_argument("an array without dimensions, expected [..., cols]");
    const auto last = static_cast<int64_t>(array.shape(array.ndim() - 1));
    if (last % multiple != 0)
        throw std::invalid_argument(
            cat("rows of ", last, " ", unit, ", expected a multiple of ", multiple, " for ", type));
    return last;
}

// A value that the type cannot hold would turn into an infinity or worse without a word.
void check_values(std::span<const float> values, Type type) {
    constexpr float kHalfMax = 65504.0f;
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (!std::isfinite(values[i]))
            throw std::invalid_argument(
                cat("value ", i, " is ", values[i], ", expected finite values"));
        if (type != Type::F32 && type != Type::BF16 && std::fabs(values[i]) > kHalfMax)
            throw std::invalid_argument(cat("value ", i, " is ", values[i],
                                            ", which is beyond the range of ",
                                            type_info(type).name));
    }
}

void check_importance(std::span<const float> importance) {
    for (std::size_t i = 0; i < importance.size(); ++i)
        if (!(importance[i] >= 0) || !std::isfinite(importance[i]))
            throw std::invalid_argument(cat("importance of column ", i, " is ", importance[i],
                                            ", expected a finite value of at least 0"));
}

Bytes quantize(const Floats& x, const std::string& name) {
    const TypeInfo& info = type_by_name(name);
    if (info.quantize == nullptr)
        throw UnsupportedError(cat("type ", name, " is not written by round to nearest"));
    const int64_t cols = last_dimension(x, info.block_len, "values", info.name);
    Bytes out(shape_with_last(x, type_bytes(info.type, cols)));
    const std::span<const float> values(x.data(), static_cast<std::size_t>(x.size()));
    uint8_t* blocks = out.mutable_data();
    const Unlocked unlocked;
    check_values(values, info.type);
    info.quantize(values.data(), blocks, static_cast<int64_t>(values.size()));
    return out;
}

// [rows, cols] with a search, shared by threads.
Bytes quantize_matrix(const Floats& x, const std::string& name,
                      const std::optional<Floats>& importance, const std::optional<Floats>& hessian,
                      float damp, int threads) {
    const TypeInfo& info = type_by_name(name);
    if (x.ndim() != 2)
        throw std::invalid_argument(
            cat("weights of ", x.ndim(), " dimensions, expected [rows, cols]"));
    const int64_t rows = x.shape(0), cols = last_dimension(x, info.block_len, "values", info.name);
    if (block_form(info.type) == nullptr) {
        if (importance || hessian)
            throw std::invalid_argument(
                cat("type ", name, " has no search, so it takes no importance and no hessian"));
        return quantize(x, name);
    }
    if (importance && (importance->ndim() != 1 || importance->shape(0) != cols))
        throw std::invalid_argument(cat("importance of ", importance->size(),
                                        " values, expected one for each of ", cols, " columns"));
    if (hessian && (hessian->ndim() != 2 || hessian->shape(0) != cols || hessian->shape(1) != cols))
        throw std::invalid_argument(
            cat("hessian of ", hessian->size(), " values, expected [", cols, ", ", cols, "]"));
    if (hessian && importance)
        throw std::invalid_argument(
            "importance and hessian, expected one of them: the diagonal of a hessian is an "
            "importance");
    if (!(damp >= 0) || !std::isfinite(damp))
        throw std::invalid_argument(cat("damp ", damp, ", expected a finite number of at least 0"));
    if (threads < 0 || threads > kMostThreads)
        throw std::invalid_argument(
            cat(threads, " threads, expected 0 to ", kMostThreads, "; 0 for all CPUs"));
    Bytes out(shape_with_last(x, type_bytes(info.type, cols)));
    const std::span<const float> values(x.data(), static_cast<std::size_t>(x.size()));
    const float* columns = importance ? importance->data() : nullptr;
    const float* square = hessian ? hessian->data() : nullptr;
    uint8_t* blocks = out.mutable_data();
    const Unlocked unlocked;
    check_values(values, info.type);
    if (columns != nullptr) check_importance({columns, static_cast<std::size_t>(cols)});
    ThreadPool pool(threads == 0 ? usable_cpus() : threads);
    if (square != nullptr && !values.empty())
        quantize_with_hessian(info.type, values.data(), rows, cols, square, damp, blocks, kernels(),
                              pool);
    else
        search_rows(info.type, values.data(), columns, rows, cols, blocks, pool);
    return out;
}

// sums [n, n] += x^T x of x [tokens, n], right of the diagonal
void add_outer_products(const py::array_t<float>& sums, const Floats& x, int threads) {
    const bool square = sums.ndim() == 2 && sums.shape(0) == sums.shape(1);
    if (!square || x.ndim() != 2 || x.shape(1) != sums.shape(0))
        throw std::invalid_argument("sums and x, expected [n, n] and [tokens, n]");
    if ((sums.flags() & py::array::c_style) == 0 || !sums.writeable())
        throw std::invalid_argument("sums, expected an array of rows that can be written");
    if (threads < 1 || threads > kMostThreads)
        throw std::invalid_argument(cat(threads, " threads, expected 1 to ", kMostThreads));
    auto* to = const_cast<float*>(sums.data());
    const Unlocked unlocked;
    ThreadPool pool(threads);
    add_outer_products(x.data(), x.shape(0), x.shape(1), to, kernels(), pool);
}

Floats dequantize(const Bytes& data, const std::string& name) {
    const TypeInfo& info = type_by_name(name);
    const int64_t row = last_dimension(data, info.block_bytes, "bytes", info.name);
    Floats out(shape_with_last(data, row / info.block_bytes * info.block_len));
    const uint8_t* blocks = data.data();
    float* values = out.mutable_data();
    const auto n = static_cast<int64_t>(out.size());
    const auto n_bytes = static_cast<std::size_t>(data.size());
    const Unlocked unlocked;
    // In files of rwkv.cpp blocks lie anywhere.
    std::vector<uint8_t> aligned;
    if (reinterpret_cast<std::uintptr_t>(blocks) % alignof(float) != 0) {
        aligned.assign(blocks, blocks + n_bytes);
        blocks = aligned.data();
    }
    info.dequantize(blocks, values, n);
    return out;
}

// --- files ---

py::object element(const MetaValue& value, uint64_t i) {
    switch (value.element) {
        case ValueType::Bool: return py::bool_(value.integer(i) != 0);
        case ValueType::F32:
        case ValueType::F64: return py::float_(value.number(i));
        case ValueType::U64: return py::int_(static_cast<uint64_t>(value.integer(i)));
        default: return py::int_(value.integer(i));
    }
}

py::object to_python(const MetaValue& value) {
    if (value.type == ValueType::String) return to_str(value.text());
    if (value.type != ValueType::Array) return element(value, 0);
    py::list list;
    if (value.element == ValueType::String) {
        for (const std::string_view text : value.strings()) list.append(to_str(text));
    } else {
        for (uint64_t i = 0; i < value.count; ++i) list.append(element(value, i));
    }
    return std::move(list);
}

py::str value_type(const ModelFile& file, const py::str& key) {
    const MetaValue* value = file.find(from_str(key));
    if (value == nullptr) throw py::key_error(key);
    if (value->type != ValueType::Array) return value_type_name(value->type);
    return cat("array[", value_type_name(value->element), "]");
}

// One tensor of a file, and the file with it.
struct TensorInfo {
    FilePtr file;
    const TensorView* view;
};

// Bytes in a map, which lives as long as the array or anything made from it.
Bytes view_of(std::shared_ptr<const void> owner, std::span<const std::byte> bytes) {
    using Owner = std::shared_ptr<const void>;
    const py::capsule capsule(new Owner(std::move(owner)),
                              [](void* p) { delete static_cast<Owner*>(p); });
    Bytes array(static_cast<py::ssize_t>(bytes.size()),
                reinterpret_cast<const uint8_t*>(bytes.data()), capsule);
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return array;
}

py::bytes read_tensor(const TensorInfo& tensor, std::size_t start, std::size_t size) {
    const std::span<const std::byte> data = tensor.view->data;
    if (start > data.size() || size > data.size() - start)
        throw std::invalid_argument(
            cat(size, " bytes from ", start, " on, the tensor has ", data.size()));
    return {reinterpret_cast<const char*>(data.data()) + start, size};
}

// As the engine takes paths on every system; on POSIX these are the bytes as they are.
std::string utf8(const std::filesystem::path& path) {
    const std::u8string text = path.u8string();
    return {text.begin(), text.end()};
}

// What an assembled file lives on. It may go in a thread that does not hold the GIL.
struct Parts {
    py::bytes header;
    std::vector<Bytes> tensors;
};

std::shared_ptr<ModelFile> assemble(const std::filesystem::path& path, const py::bytes& header,
                                    const std::vector<Bytes>& tensors) {
    const std::shared_ptr<const Parts> owner(new Parts{header, tensors}, [](const Parts* parts) {
        const py::gil_scoped_acquire locked;
        delete parts;
    });
    std::vector<std::span<const std::byte>> views;
    for (const Bytes& tensor : owner->tensors)
        views.push_back(
            std::as_bytes(std::span(tensor.data(), static_cast<std::size_t>(tensor.size()))));
    const std::string_view text = owner->header;
    const Unlocked unlocked;
    return std::const_pointer_cast<ModelFile>(
        ModelFile::assemble(std::as_bytes(std::span(text)), views, utf8(path), owner));
}

// --- sessions ---

// Floats pass as bytearrays: text is generated without numpy, which takes longer to import than a
// model to open.
std::span<float> floats(const py::bytearray& bytes) {
    if (bytes.size() % sizeof(float) != 0)
        throw std::invalid_argument(cat(bytes.size(), " bytes are no whole number of floats"));
    return {reinterpret_cast<float*>(PyByteArray_AS_STRING(bytes.ptr())),
            bytes.size() / sizeof(float)};
}

py::bytearray new_floats(int64_t n) {
    PyObject* object = PyByteArray_FromStringAndSize(
        nullptr, static_cast<py::ssize_t>(n) * static_cast<py::ssize_t>(sizeof(float)));
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::bytearray>(object);
}

// Lets Python in while tokens are read: `progress` is called when their number has changed, and
// Ctrl-C raises within kPause.
class Watch {
public:
    Watch(const py::object& progress, Unlocked& unlocked)
        : progress_(progress), unlocked_(unlocked) {}

    void operator()(int64_t tokens) {
        const auto now = std::chrono::steady_clock::now();
        const bool tell = !progress_.is_none() && tokens != told_;
        if (!tell && now - last_ < kPause) return;
        const Unlocked::Locked locked(unlocked_);
        last_ = now;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (!tell) return;
        told_ = tokens;
        const py::int_ number(tokens);
        PyObject* result = call_python(
            [&] { return PyObject_CallFunctionObjArgs(progress_.ptr(), number.ptr(), nullptr); });
        if (result == nullptr) throw py::error_already_set();
        Py_DECREF(result);
    }

private:
    static constexpr std::chrono::milliseconds kPause{50};
    const py::object& progress_;
    Unlocked& unlocked_;
    int64_t told_ = -1;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

using PyPart = std::tuple<Session*, std::vector<int32_t>, Session::Logits>;

// With `stay` the logits may be a KeptLogits: on a GPU.
py::object feed_together(const std::vector<PyPart>& parts, const py::object& progress, bool stay) {
    std::vector<Session::Part> views;
    int64_t values = 0, rows = 0;
    for (const auto& [session, ids, mode] : parts) {
        if (session == nullptr) throw std::invalid_argument("a session is None");
        if (ids.empty() && mode == Session::Logits::Last)
            throw std::invalid_argument("no tokens, so there is no last one to give logits for");
        const int64_t wanted = Session::rows(mode, std::ssize(ids));
        rows += wanted;
        values += wanted * session->model().config().n_vocab;
        views.push_back({session, ids, mode});
    }
    if (stay && !views.empty() && views[0].session->runner()->keeps_logits()) {
        auto kept = std::make_unique<KeptLogits>(views[0].session->runner(), rows);
        {
            Unlocked unlocked;
            Watch watch(progress, unlocked);
            Session::feed_together(views, *kept, std::ref(watch));
        }
        return py::cast(std::move(kept));
    }
    py::bytearray logits = new_floats(values);
    float* to = floats(logits).data();
    Unlocked unlocked;
    Watch watch(progress, unlocked);
    Session::feed_together(views, to, std::ref(watch));
    return logits;
}

py::bytearray feed(Session& session, const std::vector<int32_t>& ids, Session::Logits mode,
                   const py::object& progress) {
    return feed_together({{&session, ids, mode}}, progress, false);
}

// [layers, tokens, n_embd]
py::bytearray hidden(Session& session, const std::vector<int32_t>& ids,
                     const std::vector<int64_t>& layers, const py::object& progress) {
    py::bytearray found =
        new_floats(std::ssize(layers) * std::ssize(ids) * session.model().config().n_embd);
    float* to = floats(found).data();
    Unlocked unlocked;
    Watch watch(progress, unlocked);
    const Session::Part part{&session, ids, Session::Logits::None, layers, to};
    Session::feed_together({&part, 1}, nullptr, std::ref(watch));
    return found;
}

// Of each tensor [tokens, its inputs]
py::bytearray inputs(Session& session, const std::vector<int32_t>& ids,
                     const std::vector<std::string>& tensors, const py::object& progress) {
    py::bytearray found = new_floats(session.input_floats(tensors, std::ssize(ids)));
    float* to = floats(found).data();
    Unlocked unlocked;
    Watch watch(progress, unlocked);
    session.inputs(ids, tensors, to, std::ref(watch));
    return found;
}

std::span<float> written_rows(const py::array_t<float>& rows, std::size_t tokens, int64_t width,
                              const char* what) {
    if (rows.ndim() != 2 || rows.shape(0) != static_cast<py::ssize_t>(tokens) ||
        rows.shape(1) != width)
        throw std::invalid_argument(cat(what, ", expected [", tokens, ", ", width, "]"));
    if ((rows.flags() & py::array::c_style) == 0 || !rows.writeable())
        throw std::invalid_argument(cat(what, ", expected an array of rows that can be written"));
    return {const_cast<float*>(rows.data()), static_cast<std::size_t>(rows.size())};
}

// The same of the layers from `begin` to before `end`.
py::bytearray section_inputs(Session& session, const std::vector<int32_t>& ids,
                             const std::vector<std::string>& tensors, int64_t begin, int64_t end,
                             const py::array_t<float>& residual, const py::array_t<float>& carry) {
    const Model& model = session.model();
    const Section section{begin, end,
                          written_rows(residual, ids.size(), model.config().n_embd, "residual"),
                          written_rows(carry, ids.size(), model.carry_width(), "carry")};
    py::bytearray found = new_floats(session.input_floats(tensors, std::ssize(ids)));
    float* to = floats(found).data();
    const py::none silent;
    Unlocked unlocked;
    Watch watch(silent, unlocked);
    session.inputs(ids, tensors, to, std::ref(watch), &section);
    return found;
}

py::bytearray last_logits(const Session& session) {
    py::bytearray logits = new_floats(session.model().config().n_vocab);
    float* to = floats(logits).data();
    const Unlocked unlocked;
    session.logits(to);
    return logits;
}

py::bytearray get_state(const Session& session) {
    py::bytearray state = new_floats(session.model().state_size());
    const std::span<float> to = floats(state);
    const Unlocked unlocked;
    session.copy_state(to);
    return state;
}

py::bytearray get_output(const Session& session) {
    py::bytearray output = new_floats(session.model().config().n_embd);
    const std::span<float> to = floats(output);
    const Unlocked unlocked;
    session.copy_output(to);
    return output;
}

void set_state(Session& session, const py::bytearray& state, const py::bytearray& output) {
    const auto copy = [](const py::bytearray& bytes) {  // others may resize the bytearray
        const std::span<const float> now = floats(bytes);
        return std::vector<float>(now.begin(), now.end());
    };
    const std::vector<float> values = copy(state), last = copy(output);
    const Unlocked unlocked;
    session.set_state(values, last);
}

// Row `row` of [rows, n_vocab]; 0: all are one row.
std::span<const float> row_of(const py::bytearray& logits, std::size_t row, std::size_t n_vocab) {
    const std::span<const float> all = floats(logits);
    if (n_vocab == 0) n_vocab = all.size();
    if (row >= all.size() / std::max<std::size_t>(n_vocab, 1))
        throw std::invalid_argument(
            cat("row ", row, " of logits, found ", all.size(), " values in rows of ", n_vocab));
    return all.subspan(row * n_vocab, n_vocab);
}

int32_t sample(Sampler& sampler, const py::bytearray& logits, std::size_t row, std::size_t n_vocab,
               const std::optional<py::bytes>& allowed) {
    const std::span<const float> values = row_of(logits, row, n_vocab);
    if (!allowed) return sampler.sample(values);
    const std::string_view bits = *allowed;
    return sampler.sample(values,
                          std::span(reinterpret_cast<const uint8_t*>(bits.data()), bits.size()));
}

py::bytearray kept_row(const KeptLogits& logits, int64_t row) {
    py::bytearray found = new_floats(logits.n_vocab());
    const std::span<float> to = floats(found);
    const Unlocked unlocked;
    logits.copy(row, to);
    return found;
}

using PyChoice = std::tuple<Sampler*, int64_t, std::optional<py::bytes>>;

std::vector<int32_t> sample_kept(const KeptLogits& logits, const std::vector<PyChoice>& choices) {
    std::vector<KeptLogits::Choice> views;
    for (const auto& [sampler, row, allowed] : choices) {
        if (sampler == nullptr) throw std::invalid_argument("a sampler is None");
        views.push_back({sampler, row});
        if (!allowed) continue;
        const std::string_view bits = *allowed;
        views.back().allowed =
            std::span(reinterpret_cast<const uint8_t*>(bits.data()), bits.size());
    }
    const Unlocked unlocked;
    return logits.sample(views);
}

int32_t sample_one(Sampler& sampler, const KeptLogits& logits, int64_t row, int64_t,
                   const std::optional<py::bytes>& allowed) {
    return sample_kept(logits, {{&sampler, row, allowed}}).front();
}

std::vector<std::pair<int32_t, double>> logprobs_of(const py::bytearray& logits, std::size_t row,
                                                    std::size_t n_vocab, int32_t token,
                                                    int64_t top) {
    std::vector<std::pair<int32_t, double>> found;
    for (const auto& [id, logprob] : logprobs(row_of(logits, row, n_vocab), token, top))
        found.emplace_back(id, logprob);
    return found;
}

// Made by the module, which lives as long as they are needed.
py::handle format_error, unsupported_error;

// Paths and names in a message need not be UTF-8, so pybind11's own translation would fail.
void translate(std::exception_ptr error) {
    try {
        std::rethrow_exception(error);
    } catch (const FormatError& e) {
        py::set_error(format_error, to_str(e.what()));
    } catch (const UnsupportedError& e) {
        py::set_error(unsupported_error, to_str(e.what()));
    } catch (const FileError& e) {
        const py::object error =
            py::handle(PyExc_OSError)(e.code, to_str(e.reason), to_str(e.path));
        py::set_error(py::type::of(error), error);
    } catch (const std::system_error& e) {
        PyErr_SetString(PyExc_OSError, e.what());
    } catch (const NoMemory& e) {
        PyErr_SetString(PyExc_MemoryError, e.what());
    } catch (const std::bad_alloc&) {
        PyErr_SetString(PyExc_MemoryError,
                        "no memory left for the engine (state, scratch memory, tables): a smaller "
                        "model or fewer threads take less");
    }
}

void bind_files(py::module_& m) {
    py::class_<TensorInfo>(m, "TensorInfo")
        .def_property_readonly("name", [](const TensorInfo& t) { return to_str(t.view->name); })
        .def_property_readonly("type",
                               [](const TensorInfo& t) { return type_info(t.view->type).name; })
        .def_property_readonly(
            "shape", [](const TensorInfo& t) { return py::tuple(py::cast(t.view->shape)); })
        .def_property_readonly("nbytes", [](const TensorInfo& t) { return t.view->data.size(); })
        .def_property_readonly("offset",
                               [](const TensorInfo& t) { return t.file->offset(*t.view); })
        .def_property_readonly("data",
                               [](const TensorInfo& t) { return view_of(t.file, t.view->data); })
        .def("read", &read_tensor, py::arg("start"), py::arg("size"));
    py::class_<MappedFile, std::shared_ptr<MappedFile>>(m, "MappedFile")
        .def(py::init([](const std::filesystem::path& path) {
                 const Unlocked unlocked;
                 return std::make_shared<MappedFile>(utf8(path));
             }),
             py::arg("path"))
        .def_property_readonly(
            "data", [](const std::shared_ptr<MappedFile>& f) { return view_of(f, f->bytes()); })
        .def("forget", &MappedFile::forget);
    py::class_<ModelFile, std::shared_ptr<ModelFile>>(m, "ModelFile")
        .def(py::init([](const std::filesystem::path& path) {
                 const Unlocked unlocked;
                 return std::const_pointer_cast<ModelFile>(ModelFile::open(utf8(path)));
             }),
             py::arg("path"))
        .def_static("assemble", &assemble, py::arg("path"), py::arg("header"), py::arg("tensors"))
        .def_property_readonly("path", [](const ModelFile& f) { return to_str(f.path()); })
        .def_property_readonly("size", &ModelFile::size)
        .def_property_readonly("version", &ModelFile::version)
        .def_property_readonly("alignment", &ModelFile::alignment)
        .def("keys",
             [](const ModelFile& f) {
                 py::list keys;
                 for (const std::string& key : f.keys()) keys.append(to_str(key));
                 return keys;
             })
        .def(
            "get",
            [](const ModelFile& f, const py::str& key, py::object otherwise) {
                const MetaValue* value = f.find(from_str(key));
                return value == nullptr ? otherwise : to_python(*value);
            },
            py::arg("key"), py::arg("default") = py::none())
        .def("value_type", &value_type, py::arg("key"))
        .def("forget", &ModelFile::forget)
        .def("fingerprint", &fingerprint, py::call_guard<Unlocked>())
        .def_property_readonly("tensors", [](const std::shared_ptr<ModelFile>& f) {
            py::list tensors;
            for (const TensorView& view : f->tensors()) tensors.append(TensorInfo{f, &view});
            return tensors;
        });
}

void bind_engine(py::module_& m) {
    const auto config = [](const Runner& r) -> const Config& { return r.model().config(); };
    py::class_<Runner, std::shared_ptr<Runner>>(m, "Runner")
        .def(py::init([](const std::shared_ptr<ModelFile>& file, int threads,
                         const std::string& device) {
                 const Unlocked unlocked;
                 return std::make_shared<Runner>(Model::open(file, make_backend(device, threads)));
             }),
             py::arg("file"), py::arg("threads") = 0, py::arg("device") = "cpu")
        .def_property_readonly("device", [](const Runner& r) { return r.model().backend().name(); })
        .def_property_readonly("arch", [=](const Runner& r) { return config(r).arch; })
        .def_property_readonly("n_layer", [=](const Runner& r) { return config(r).n_layer; })
        .def_property_readonly("n_embd", [=](const Runner& r) { return config(r).n_embd; })
        .def_property_readonly("n_vocab", [=](const Runner& r) { return config(r).n_vocab; })
        .def_property_readonly("carry_width",
                               [](const Runner& r) { return r.model().carry_width(); })
        .def_property_readonly(
            "state_parts",
            [](const Runner& r) {
                py::list parts;
                for (const StatePart& part : r.model().state_parts())
                    parts.append(py::make_tuple(part.name, py::tuple(py::cast(part.shape))));
                return parts;
            })
        .def_property_readonly("threads",
                               [](const Runner& r) { return r.model().backend().threads(); })
        .def("session",
             [](const std::shared_ptr<Runner>& r) { return std::make_unique<Session>(r); });
    py::native_enum<Session::Logits>(m, "Logits", "enum.Enum")
        .value("none", Session::Logits::None)
        .value("last", Session::Logits::Last)
        .value("all", Session::Logits::All)
        .finalize();
    py::class_<Session>(m, "Session")
        .def("feed", &feed, py::arg("tokens"), py::arg("logits"), py::arg("progress") = py::none())
        .def("hidden", &hidden, py::arg("tokens"), py::arg("layers"),
             py::arg("progress") = py::none())
        .def("inputs", &inputs, py::arg("tokens"), py::arg("tensors"),
             py::arg("progress") = py::none())
        .def("section_inputs", &section_inputs, py::arg("tokens"), py::arg("tensors"),
             py::arg("begin"), py::arg("end"), py::arg("residual").noconvert(),
             py::arg("carry").noconvert())
        .def_property_readonly("tokens",
                               py::cpp_function(&Session::tokens, py::call_guard<Unlocked>()))
        .def("logits", &last_logits)
        .def("get_state", &get_state)
        .def("get_output", &get_output)
        .def("set_state", &set_state, py::arg("state"), py::arg("output") = py::bytearray())
        .def("reset", &Session::reset, py::call_guard<Unlocked>())
        .def("fork", &Session::fork, py::call_guard<Unlocked>())
        .def("rewind", &Session::rewind, py::arg("to"), py::call_guard<Unlocked>());
    py::class_<KeptLogits>(m, "KeptLogits")
        .def_property_readonly("rows", &KeptLogits::rows)
        .def("row", &kept_row, py::arg("row"))
        .def("sample", &sample_kept, py::arg("choices"));
    m.def("feed_together", &feed_together, py::arg("parts"), py::arg("progress") = py::none(),
          py::arg("stay") = false);
    const SamplerOptions off{.top_p = 1.0};
    py::class_<Sampler>(m, "Sampler")
        .def(py::init([](double temperature, int64_t top_k, double top_p, double min_p,
                         double typical_p, double presence_penalty, double frequency_penalty,
                         double penalty_decay, int64_t penalty_window, uint64_t seed,
                         std::vector<std::pair<int32_t, double>> logit_bias,
                         std::vector<int32_t> banned, std::vector<int32_t> forced) {
                 return Sampler({temperature, top_k, top_p, min_p, typical_p, presence_penalty,
                                 frequency_penalty, penalty_decay, penalty_window, seed,
                                 std::move(logit_bias), std::move(banned), std::move(forced)});
             }),
             py::kw_only(), py::arg("temperature") = off.temperature, py::arg("top_k") = off.top_k,
             py::arg("top_p") = off.top_p, py::arg("min_p") = off.min_p,
             py::arg("typical_p") = off.typical_p,
             py::arg("presence_penalty") = off.presence_penalty,
             py::arg("frequency_penalty") = off.frequency_penalty,
             py::arg("penalty_decay") = off.penalty_decay,
             py::arg("penalty_window") = off.penalty_window, py::arg("seed") = off.seed,
             py::arg("logit_bias") = off.logit_bias, py::arg("banned") = off.banned,
             py::arg("forced") = off.forced)
        .def("sample", &sample, py::arg("logits"), py::arg("row") = 0, py::arg("n_vocab") = 0,
             py::arg("allowed") = py::none())
        .def("sample", &sample_one, py::arg("logits"), py::arg("row") = 0, py::arg("n_vocab") = 0,
             py::arg("allowed") = py::none())
        .def("accept", &Sampler::accept, py::arg("token"), py::arg("weight") = 1.0)
        .def_property_readonly("seed", &Sampler::seed);
    m.def("logprobs", &logprobs_of, py::arg("logits"), py::arg("row"), py::arg("n_vocab"),
          py::arg("token"), py::arg("top") = 0);
}

// --- text ---

py::object reason(Finish finish) {
    constexpr const char* kNames[] = {nullptr, "stop", "length", "end", "cancelled"};
    const char* name = kNames[static_cast<int>(finish)];
    return name == nullptr ? py::object(py::none()) : py::str(name);
}

Finish finish_named(std::string_view name) {
    if (name == "stop") return Finish::Stop;
    if (name == "length") return Finish::Length;
    if (name == "end") return Finish::End;
    throw std::invalid_argument(cat("reason: found '", name, "', expected stop, length or end"));
}

py::list all_chat_templates() {
    py::list all;
    for (const ChatTemplate& t : chat_templates()) {
        py::list stop;
        for (const std::string_view text : t.stop) stop.append(to_str(text));
        all.append(py::make_tuple(to_str(t.name), to_str(t.user), to_str(t.assistant),
                                  py::tuple(stop), to_str(t.system), to_str(t.opening), t.think,
                                  t.exact));
    }
    return all;
}

void bind_answers(py::module_& m) {
    py::class_<Utf8Stream>(m, "Utf8Stream")
        .def(py::init<>())
        .def(
            "push",
            [](Utf8Stream& s, const py::bytes& data) {
                return to_str(s.push(std::string_view(data)));
            },
            py::arg("data"))
        .def("flush", [](Utf8Stream& s) { return to_str(s.flush()); })
        .def_property_readonly("pending", &Utf8Stream::pending);
    py::class_<Answer>(m, "Answer")
        .def(py::init([](const std::vector<py::bytes>& stop, std::vector<int32_t> stop_tokens,
                         int64_t max_tokens) {
                 return std::make_unique<Answer>(
                     AnswerOptions{{stop.begin(), stop.end()}, std::move(stop_tokens), max_tokens});
             }),
             py::arg("stop"), py::arg("stop_tokens"), py::arg("max_tokens"))
        .def_property_readonly("wants_token", &Answer::wants_token)
        .def(
            "ends_at", [](const Answer& a, int32_t token) { return reason(a.ends_at(token)); },
            py::arg("token"))
        .def(
            "take",
            [](Answer& a, int32_t token, const py::bytes& data, bool last) {
                return to_str(a.take(token, std::string_view(data), last));
            },
            py::arg("token"), py::arg("data"), py::arg("last") = false)
        .def(
            "end",
            [](Answer& a, const std::string& why) { return to_str(a.end(finish_named(why))); },
            py::arg("reason"))
        .def_property_readonly("finish_reason", [](const Answer& a) { return reason(a.finish()); })
        .def("limit", &Answer::limit, py::arg("tokens"))
        .def_property_readonly("stopped_by",
                               [](const Answer& a) -> py::object {
                                   if (a.stopped_by() == nullptr) return py::none();
                                   return py::bytes(*a.stopped_by());
                               })
        .def_property_readonly("all_given", &Answer::all_given)
        .def("given", [](const Answer& a) {
            const Answer::Given given = a.given();
            return std::pair(given.tokens, given.bytes);
        });
    m.def(
        "frequency_weight",
        [](const py::bytes& data) { return frequency_weight(std::string_view(data)); },
        py::arg("data"));
    m.def("chat_templates", &all_chat_templates);
    m.def(
        "chat_template_of",
        [](const ModelFile& file) {
            const ChosenTemplate chosen = choose_chat_template(file);
            return py::make_tuple(to_str(chosen.words->name), chosen.source);
        },
        py::arg("file"));
    m.def("is_g1", [](const py::str& name) { return is_g1(from_str(name)); }, py::arg("name"));
}

// What a sentencepiece model says: texts, scores and types of its pieces, and whether other
// programs put a space before a text.
py::tuple sentencepiece_model(const py::bytes& data, const std::string& source) {
    const std::string_view bytes = data;
    const auto model = SentencePieceModel::parse(std::as_bytes(std::span(bytes)), source);
    py::list texts, scores, types;
    for (const Piece& piece : model.pieces) {
        texts.append(py::str(piece.text.data(), piece.text.size()));
        scores.append(piece.score);
        types.append(static_cast<int>(piece.type));
    }
    return py::make_tuple(texts, scores, types, model.adds_space);
}

void bind_text(py::module_& m) {
    m.def("sentencepiece_model", &sentencepiece_model, py::arg("data"), py::arg("source"));
    py::class_<Tokenizer>(m, "Tokenizer")
        .def_static(
            "from_vocab",
            [](const std::vector<std::optional<py::bytes>>& tokens) -> std::unique_ptr<Tokenizer> {
                std::vector<std::optional<std::string>> raw;
                for (const auto& token : tokens)
                    raw.push_back(token ? std::optional<std::string>(*token) : std::nullopt);
                return std::make_unique<WorldTokenizer>(raw);
            },
            py::arg("tokens"))
        .def_static(
            "from_model_file",
            [](const std::shared_ptr<ModelFile>& file) { return make_tokenizer(*file); },
            py::arg("file"), py::call_guard<Unlocked>())
        .def_property_readonly("kind", &Tokenizer::kind)
        .def_property_readonly("n_vocab", &Tokenizer::n_vocab)
        .def("without_text", &Tokenizer::without_text)
        .def(
            "encode",
            [](const Tokenizer& t, const py::bytes& data) {
                const std::string_view text = data;
                const Unlocked unlocked;
                return t.encode(text);
            },
            py::arg("data"))
        .def(
            "token_bytes",
            [](const Tokenizer& t, int64_t id) { return py::bytes(t.token_bytes(id)); },
            py::arg("id"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The engine of rwkv_edge. Use the classes of rwkv_edge itself.";
    format_error = py::exception<FormatError>(m, "FormatError", PyExc_ValueError);
    unsupported_error = py::exception<UnsupportedError>(m, "UnsupportedError", PyExc_RuntimeError);
    py::register_exception_translator(&translate);

    py::list names;
    for (const TypeInfo& info : all_types()) names.append(info.name);
    m.attr("TYPE_NAMES") = py::tuple(names);
    m.def(
        "type_id",
        [](const std::string& name) { return static_cast<uint32_t>(type_by_name(name).type); },
        py::arg("name"));
    m.def(
        "type_block",
        [](const std::string& name) {
            const TypeInfo& info = type_by_name(name);
            return py::make_tuple(info.block_len, info.block_bytes);
        },
        py::arg("name"));
    m.def("quantize", &quantize, py::arg("x"), py::arg("type"));
    m.def("quantize_matrix", &quantize_matrix, py::arg("weights"), py::arg("type"),
          py::arg("importance") = py::none(), py::arg("hessian") = py::none(),
          py::arg("damp") = 0.1f, py::arg("threads") = 0);
    m.def("add_outer_products",
          py::overload_cast<const py::array_t<float>&, const Floats&, int>(&add_outer_products),
          py::arg("sums").noconvert(), py::arg("x"), py::arg("threads") = 1);
    m.def("dequantize", &dequantize, py::arg("data"), py::arg("type"));
    m.def("isa", [] { return kernels().isa; });
    m.def("isa_levels", [] {
        std::vector<std::string> levels;
        for (const Kernels& table : available_kernels()) levels.emplace_back(table.isa);
        return levels;
    });
    m.def("why_no_cuda", &why_no_cuda, py::call_guard<Unlocked>());
    m.def("cuda_devices", &cuda_devices, py::call_guard<Unlocked>());
    m.def(
        "gpu_limits",
        [](const std::string& device) {
            const DeviceLimits limits = gpu_limits(device);
            return std::pair(limits.bandwidth_gb, limits.gops);
        },
        py::arg("device"), py::call_guard<Unlocked>());
    m.def("available_memory", [] { return available_memory(); });
    m.def("share_memory_pools", &share_memory_pools);
    m.def("give_back_memory", &give_back_memory, py::call_guard<Unlocked>());
    m.def("say_on_bus_error", &say_on_bus_error, py::arg("text"));
    m.def("read_bandwidth", &read_bandwidth, py::arg("threads"), py::call_guard<Unlocked>());
    m.def(
        "float_peak", [](int threads) { return float_peak(kernels(), threads); },
        py::arg("threads"), py::call_guard<Unlocked>());
    m.def(
        "int8_peak", [](int threads) { return int8_peak(kernels(), threads); }, py::arg("threads"),
        py::call_guard<Unlocked>());
    bind_files(m);
    bind_engine(m);
    bind_text(m);
    bind_answers(m);
}

}  // namespace rwkv_edge
