// SPDX-License-Identifier: Apache-2.0
// rwkv.cpp's functions by those of rwkv_edge.h. Its errors are flags, which are kept until somebody
// asks, and texts on stderr, unless somebody forbids it.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "capi/rwkv.h"
#include "capi/rwkv_edge.h"

struct rwkv_context {
    std::shared_ptr<rwkv_edge_model> model;
    rwkv_edge_session* session = nullptr;
    bool print = true;
    int error = RWKV_ERROR_NONE;
    // In the order of the file format: of each layer the last input of the channel mix, that of the
    // time mix, and the rest. The engine has the first one last.
    std::vector<float> state;
    std::vector<int32_t> tokens;
    int64_t n_vocab = 0, n_embd = 0, n_layer = 0, version = 0, gated = 0;

    ~rwkv_context() { rwkv_edge_session_free(session); }
};

namespace {

std::atomic<bool> print_by_default = true;
thread_local int loading_error = RWKV_ERROR_NONE;

bool said(rwkv_context* context, int flags, const char* text) {
    (context == nullptr ? loading_error : context->error) |= flags;
    if (context == nullptr ? print_by_default.load() : context->print)
        std::fprintf(stderr, "rwkv: %s\n", text);
    return false;
}

int flags_of(rwkv_edge_status status) {
    switch (status) {
        case RWKV_EDGE_FILE: return RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN;
        case RWKV_EDGE_FORMAT: return RWKV_ERROR_MODEL | RWKV_ERROR_DATA;
        case RWKV_EDGE_UNSUPPORTED: return RWKV_ERROR_MODEL | RWKV_ERROR_UNSUPPORTED;
        case RWKV_EDGE_NO_MEMORY: return RWKV_ERROR_CTX | RWKV_ERROR_ALLOC;
        case RWKV_EDGE_INVALID: return RWKV_ERROR_ARGS;
        default: return RWKV_ERROR_CTX;
    }
}

// True where the call went well.
bool good(rwkv_context* context, rwkv_edge_status status) {
    return status == RWKV_EDGE_OK || said(context, flags_of(status), rwkv_edge_last_error());
}

// Between rwkv.cpp's order of a layer and the engine's.
void to_engine(const rwkv_context& context, const float* from, float* to) {
    const auto layer = static_cast<std::ptrdiff_t>(context.state.size()) / context.n_layer;
    for (int64_t i = 0; i < context.n_layer; ++i, from += layer, to += layer)
        std::rotate_copy(from, from + context.n_embd, from + layer, to);
}
void from_engine(const rwkv_context& context, const float* from, float* to) {
    const auto layer = static_cast<std::ptrdiff_t>(context.state.size()) / context.n_layer;
    for (int64_t i = 0; i < context.n_layer; ++i, from += layer, to += layer)
        std::rotate_copy(from, from + layer - context.n_embd, from + layer, to);
}

bool fill(rwkv_context& context) {
    int64_t size = 0;
    for (const auto& [name, value] : {std::pair("n_vocab", &context.n_vocab),
                                      {"n_embd", &context.n_embd},
                                      {"n_layer", &context.n_layer},
                                      {"version", &context.version},
                                      {"gated", &context.gated},
                                      {"state_size", &size}})
        if (!good(nullptr, rwkv_edge_model_info(context.model.get(), name, value))) return false;
    context.print = print_by_default;
    context.state.resize(static_cast<std::size_t>(size));
    return good(nullptr, rwkv_edge_session_new(context.model.get(), &context.session));
}

template <class Get>
rwkv_context* made(Get&& model) {
    try {
        auto context = std::make_unique<rwkv_context>();
        context->model = model();
        return fill(*context) ? context.release() : nullptr;
    } catch (const std::bad_alloc&) {
        said(nullptr, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory left for a context");
        return nullptr;
    }
}

bool evaluate(rwkv_context* context, const uint32_t* tokens, std::size_t count,
              const float* state_in, float* state_out, float* logits_out) {
    if (context == nullptr) return said(nullptr, RWKV_ERROR_ARGS, "the context is NULL");
    context->error = RWKV_ERROR_NONE;
    if (tokens == nullptr) return true;
    if (count == 0) return said(context, RWKV_ERROR_ARGS, "no tokens, expected at least one");
    try {
        context->tokens.resize(count);
    } catch (const std::exception&) {
        return said(context, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory left for the tokens");
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (tokens[i] >= context->n_vocab)
            return said(context, RWKV_ERROR_ARGS, "a token is outside the vocabulary");
        context->tokens[i] = static_cast<int32_t>(tokens[i]);
    }
    std::vector<float>& state = context->state;
    if (state_in != nullptr) to_engine(*context, state_in, state.data());
    if (!good(context,
              rwkv_edge_state_set(context->session, state_in == nullptr ? nullptr : state.data(),
                                  state_in == nullptr ? 0 : state.size())) ||
        !good(context, rwkv_edge_feed(context->session, context->tokens.data(), count, logits_out,
                                      nullptr, nullptr)))
        return false;
    if (state_out == nullptr) return true;
    if (!good(context, rwkv_edge_state_get(context->session, state.data(), state.size())))
        return false;
    from_engine(*context, state.data(), state_out);
    return true;
}

}  // namespace

void rwkv_set_print_errors(rwkv_context* context, bool print_errors) {
    if (context == nullptr)
        print_by_default = print_errors;
    else
        context->print = print_errors;
}

bool rwkv_get_print_errors(const rwkv_context* context) {
    return context == nullptr ? print_by_default.load() : context->print;
}

rwkv_error_flags rwkv_get_last_error(rwkv_context* context) {
    int& error = context == nullptr ? loading_error : context->error;
    const int found = error;
    error = RWKV_ERROR_NONE;
    return static_cast<rwkv_error_flags>(found);
}

rwkv_context* rwkv_init_from_file(const char* path, uint32_t n_threads, uint32_t n_gpu_layers) {
    loading_error = RWKV_ERROR_NONE;
    rwkv_edge_model_options options = RWKV_EDGE_MODEL_OPTIONS;
    options.threads = static_cast<int32_t>(std::min(n_threads, uint32_t{INT32_MAX}));
    if (n_threads == 0) {
        said(nullptr, RWKV_ERROR_ARGS, "n_threads is 0, expected at least 1");
        return nullptr;
    }
    rwkv_edge_model* model = nullptr;
    options.device = n_gpu_layers > 0 ? "cuda" : nullptr;
    if (n_gpu_layers > 0 && rwkv_edge_model_open(path, &options, &model) != RWKV_EDGE_OK)
        options.device = nullptr;
    if (model == nullptr && !good(nullptr, rwkv_edge_model_open(path, &options, &model)))
        return nullptr;
    return made([&] { return std::shared_ptr<rwkv_edge_model>(model, rwkv_edge_model_free); });
}

rwkv_context* rwkv_clone_context(rwkv_context* context, uint32_t n_threads) {
    loading_error = RWKV_ERROR_NONE;
    if (context == nullptr || n_threads == 0) {
        said(context, RWKV_ERROR_ARGS, "a context and at least one thread expected");
        return nullptr;
    }
    rwkv_context* clone = made([&] { return context->model; });
    if (clone != nullptr) clone->print = context->print;
    return clone;
}

void rwkv_free(rwkv_context* context) { delete context; }

bool rwkv_gpu_offload_layers(rwkv_context*, uint32_t) { return false; }

bool rwkv_eval(rwkv_context* context, uint32_t token, const float* state_in, float* state_out,
               float* logits_out) {
    return evaluate(context, &token, 1, state_in, state_out, logits_out);
}

bool rwkv_eval_sequence(rwkv_context* context, const uint32_t* tokens, size_t sequence_len,
                        const float* state_in, float* state_out, float* logits_out) {
    return evaluate(context, tokens, sequence_len, state_in, state_out, logits_out);
}

// The engine cuts a sequence into steps of its own, and gives the same bits for any.
bool rwkv_eval_sequence_in_chunks(rwkv_context* context, const uint32_t* tokens,
                                  size_t sequence_len, size_t chunk_size, const float* state_in,
                                  float* state_out, float* logits_out) {
    if (chunk_size == 0) return said(context, RWKV_ERROR_ARGS, "chunk_size is 0");
    return evaluate(context, tokens, sequence_len, state_in, state_out, logits_out);
}

size_t rwkv_get_n_vocab(const rwkv_context* context) {
    return static_cast<size_t>(context->n_vocab);
}
size_t rwkv_get_n_embed(const rwkv_context* context) {
    return static_cast<size_t>(context->n_embd);
}
size_t rwkv_get_n_layer(const rwkv_context* context) {
    return static_cast<size_t>(context->n_layer);
}
size_t rwkv_get_state_len(const rwkv_context* context) { return context->state.size(); }
size_t rwkv_get_logits_len(const rwkv_context* context) { return rwkv_get_n_vocab(context); }
uint32_t rwkv_get_state_buffer_element_count(const rwkv_context* context) {
    return static_cast<uint32_t>(context->state.size());
}
uint32_t rwkv_get_logits_buffer_element_count(const rwkv_context* context) {
    return static_cast<uint32_t>(context->n_vocab);
}
uint32_t rwkv_get_arch_version_major(const rwkv_context* context) {
    return static_cast<uint32_t>(context->version);
}
uint32_t rwkv_get_arch_version_minor(const rwkv_context* context) {
    return context->version != 5 ? 0 : context->gated != 0 ? 2 : 1;
}

void rwkv_init_state(const rwkv_context* context, float* state) {
    rwkv_edge_session* fresh = nullptr;
    if (rwkv_edge_session_new(context->model.get(), &fresh) != RWKV_EDGE_OK) return;
    std::vector<float>& own = const_cast<rwkv_context*>(context)->state;
    if (rwkv_edge_state_get(fresh, own.data(), own.size()) == RWKV_EDGE_OK)
        from_engine(*context, own.data(), state);
    rwkv_edge_session_free(fresh);
}

bool rwkv_quantize_model_file(const char*, const char*, const char*) {
    return said(nullptr, RWKV_ERROR_UNSUPPORTED,
                "this library does not quantize; `rwkv-edge quantize IN OUT --type q4_0` does");
}

const char* rwkv_get_system_info_string() {
    const char* isa = rwkv_edge_isa();
    return isa == nullptr ? "rwkv-edge" : isa;
}
