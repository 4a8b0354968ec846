/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of rwkv.cpp's library, for programs that were written for it (docs/c.md). New
 * programs take rwkv_edge.h. */
#ifndef RWKV_H
#define RWKV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define RWKV_API __declspec(dllexport)
#else
#define RWKV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Where something went wrong, and what; both are in one number. */
enum rwkv_error_flags {
    RWKV_ERROR_NONE = 0,
    RWKV_ERROR_ARGS = 0x100,
    RWKV_ERROR_FILE = 0x200,
    RWKV_ERROR_MODEL = 0x300,
    RWKV_ERROR_MODEL_PARAMS = 0x400,
    RWKV_ERROR_GRAPH = 0x500,
    RWKV_ERROR_CTX = 0x600,
    RWKV_ERROR_ALLOC = 1,
    RWKV_ERROR_FILE_OPEN = 2,
    RWKV_ERROR_FILE_STAT = 3,
    RWKV_ERROR_FILE_READ = 4,
    RWKV_ERROR_FILE_WRITE = 5,
    RWKV_ERROR_FILE_MAGIC = 6,
    RWKV_ERROR_FILE_VERSION = 7,
    RWKV_ERROR_DATA_TYPE = 8,
    RWKV_ERROR_UNSUPPORTED = 9,
    RWKV_ERROR_SHAPE = 10,
    RWKV_ERROR_DIMENSION = 11,
    RWKV_ERROR_KEY = 12,
    RWKV_ERROR_DATA = 13,
    RWKV_ERROR_PARAM_MISSING = 14
};

struct rwkv_context;

/* Whether errors are printed to stderr, as they are at first. NULL: those of loading, and the
 * setting of new contexts. */
RWKV_API void rwkv_set_print_errors(struct rwkv_context* context, bool print_errors);
RWKV_API bool rwkv_get_print_errors(const struct rwkv_context* context);
/* Returns and forgets the last error of a context, or with NULL that of this thread's loading. */
RWKV_API enum rwkv_error_flags rwkv_get_last_error(struct rwkv_context* context);

/* Opens a .bin file of rwkv.cpp or a GGUF file; NULL on errors. With layers for a GPU the whole
 * model goes there, where this build has one; else they are ignored. */
RWKV_API struct rwkv_context* rwkv_init_from_file(const char* path, uint32_t n_threads,
                                                  uint32_t n_gpu_layers);
/* Another context of the model, with the same threads: evaluations of both wait for each other. */
RWKV_API struct rwkv_context* rwkv_clone_context(struct rwkv_context* context, uint32_t n_threads);
RWKV_API void rwkv_free(struct rwkv_context* context);
/* Does nothing, as in rwkv.cpp without a GPU. Old programs call it. */
RWKV_API bool rwkv_gpu_offload_layers(struct rwkv_context* context, uint32_t n_layers);

/* Each reads tokens from `state_in` on, NULL being the beginning, and writes what is not NULL of
 * the new state, rwkv_get_state_len floats, and of the logits, rwkv_get_logits_len floats. Without
 * tokens (NULL) nothing happens. */
RWKV_API bool rwkv_eval(struct rwkv_context* context, uint32_t token, const float* state_in,
                        float* state_out, float* logits_out);
RWKV_API bool rwkv_eval_sequence(struct rwkv_context* context, const uint32_t* tokens,
                                 size_t sequence_len, const float* state_in, float* state_out,
                                 float* logits_out);
RWKV_API bool rwkv_eval_sequence_in_chunks(struct rwkv_context* context, const uint32_t* tokens,
                                           size_t sequence_len, size_t chunk_size,
                                           const float* state_in, float* state_out,
                                           float* logits_out);

RWKV_API size_t rwkv_get_n_vocab(const struct rwkv_context* context);
RWKV_API size_t rwkv_get_n_embed(const struct rwkv_context* context);
RWKV_API size_t rwkv_get_n_layer(const struct rwkv_context* context);
RWKV_API size_t rwkv_get_state_len(const struct rwkv_context* context);
RWKV_API size_t rwkv_get_logits_len(const struct rwkv_context* context);
/* The same under the names that the Python wrapper calls. */
RWKV_API uint32_t rwkv_get_state_buffer_element_count(const struct rwkv_context* context);
RWKV_API uint32_t rwkv_get_logits_buffer_element_count(const struct rwkv_context* context);
/* 5 and 2 for RWKV-5.2. As in rwkv.cpp, 5 and 1 is what others call 5.0. */
RWKV_API uint32_t rwkv_get_arch_version_major(const struct rwkv_context* context);
RWKV_API uint32_t rwkv_get_arch_version_minor(const struct rwkv_context* context);

/* Writes the state that NULL stands for. */
RWKV_API void rwkv_init_state(const struct rwkv_context* context, float* state);

/* Not in this library: returns false, with RWKV_ERROR_UNSUPPORTED. `rwkv-edge quantize` does it. */
RWKV_API bool rwkv_quantize_model_file(const char* path_in, const char* path_out,
                                       const char* format_name);
RWKV_API const char* rwkv_get_system_info_string(void);

#ifdef __cplusplus
}
#endif

#endif
