/* SPDX-License-Identifier: Apache-2.0 */
/* rwkv-edge for C: RWKV language models in a program. docs/c.md has examples.
 *
 * Every call that can fail returns a status, and rwkv_edge_last_error() has the text. No call
 * prints, ends the process or throws. Paths and texts are UTF-8 on every system. Arrays of floats
 * and tokens are the caller's. Objects are freed by their own function, which takes NULL too.
 *
 * A model may be used by any number of threads; a session or a sampler by one at a time. A session
 * keeps its model, so a model may be freed before it. */
#ifndef RWKV_EDGE_H
#define RWKV_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(RWKV_EDGE_SHARED) && defined(_WIN32)
#ifdef RWKV_EDGE_BUILD
#define RWKV_EDGE_API __declspec(dllexport)
#else
#define RWKV_EDGE_API __declspec(dllimport)
#endif
#elif defined(__GNUC__) && !defined(_WIN32)
#define RWKV_EDGE_API __attribute__((visibility("default")))
#else
#define RWKV_EDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 1000000 * major + 1000 * minor + patch */
#define RWKV_EDGE_VERSION_NUMBER 1000

typedef struct rwkv_edge_model rwkv_edge_model;
typedef struct rwkv_edge_session rwkv_edge_session;
typedef struct rwkv_edge_sampler rwkv_edge_sampler;

typedef enum rwkv_edge_status {
    RWKV_EDGE_OK = 0,
    RWKV_EDGE_INVALID = 1,     /* a wrong argument, text or token */
    RWKV_EDGE_FILE = 2,        /* the system refused to open or read a file */
    RWKV_EDGE_FORMAT = 3,      /* a malformed file */
    RWKV_EDGE_UNSUPPORTED = 4, /* a valid file that this build or machine cannot run */
    RWKV_EDGE_NO_MEMORY = 5,
    RWKV_EDGE_SYSTEM = 6,   /* threads do not start, and the like */
    RWKV_EDGE_CANCELLED = 7 /* a progress function ended the call; nothing has changed */
} rwkv_edge_status;

/* ---- the library ---- */

/* RWKV_EDGE_VERSION_NUMBER of the library that runs. */
RWKV_EDGE_API int rwkv_edge_version_number(void);
/* The kernels that this CPU gets: "avx2". NULL where RWKV_EDGE_ISA asks for others. */
RWKV_EDGE_API const char* rwkv_edge_isa(void);
/* What went wrong in the last call of this thread that failed; "" where none did. It is valid until
 * the next call of this thread. */
RWKV_EDGE_API const char* rwkv_edge_last_error(void);

/* ---- models ---- */

/* Begins with its own size, so that later versions can add fields:
 *     rwkv_edge_model_options options = RWKV_EDGE_MODEL_OPTIONS; */
typedef struct rwkv_edge_model_options {
    size_t size;
    int32_t threads;    /* 0: one per CPU, at most 8 */
    const char* device; /* "cpu", "cuda", "cuda:1"; NULL: "cpu" */
} rwkv_edge_model_options;
#define RWKV_EDGE_MODEL_OPTIONS {sizeof(rwkv_edge_model_options), 0, NULL}

/* Opens a GGUF file, or one of rwkv.cpp (.bin, which has no vocabulary). The file is mapped: the
 * weights take no memory of their own. `options` may be NULL, here and everywhere. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_model_open(const char* path,
                                                    const rwkv_edge_model_options* options,
                                                    rwkv_edge_model** model);
/* Opens `length` bytes of an open file from `offset` on (0: to its end), such as an asset that lies
 * uncompressed in an APK. `offset` is a multiple of 4. The descriptor may be closed afterwards. Not
 * on Windows. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_model_open_fd(int fd, int64_t offset, int64_t length,
                                                       const rwkv_edge_model_options* options,
                                                       rwkv_edge_model** model);
/* Opens a model in memory, at an address that is a multiple of 4. The bytes must stay until the
 * model and its sessions are freed. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_model_open_memory(const void* bytes, size_t size,
                                                           const rwkv_edge_model_options* options,
                                                           rwkv_edge_model** model);
RWKV_EDGE_API void rwkv_edge_model_free(rwkv_edge_model* model);

/* A number about a model, by name: "n_vocab", "n_embd", "n_layer", "version" (4 to 7), "gated"
 * (1 where the time mix has a gate: 5.1 and 5.2 differ from 5.0 by it), "threads",
 * "state_size" and "memory_size" (in floats), "tokenizer" (1 where the engine reads it, else 0). */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_model_info(const rwkv_edge_model* model, const char* name,
                                                    int64_t* value);

/* ---- text and tokens ---- */

/* Writes the tokens of a text, at most `capacity` of them, and how many there are. Where `count` is
 * above `capacity`, some are missing: call again with more room. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_encode(const rwkv_edge_model* model, const char* text,
                                                size_t size, int32_t* tokens, size_t capacity,
                                                size_t* count);
/* The bytes of one token, which need not be whole characters; none for token 0, which ends a
 * document. They are valid as long as the model or a session of it. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_token_bytes(const rwkv_edge_model* model, int32_t token,
                                                     const char** bytes, size_t* size);

/* ---- sessions ---- */

/* Something that reads: it remembers a text in a state of fixed size. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_session_new(const rwkv_edge_model* model,
                                                     rwkv_edge_session** session);
/* A copy, which goes on by itself. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_session_fork(const rwkv_edge_session* session,
                                                      rwkv_edge_session** copy);
RWKV_EDGE_API void rwkv_edge_session_free(rwkv_edge_session* session);

/* Called now and then while tokens are read, with how many were read. A result other than 0 ends
 * the call, with RWKV_EDGE_CANCELLED. */
typedef int (*rwkv_edge_progress)(void* user, size_t done, size_t total);

/* Reads tokens. `logits` gets [n_vocab] floats of what follows the last one; it may be NULL, and
 * so may `progress`. A call that fails leaves the session where it was. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_feed(rwkv_edge_session* session, const int32_t* tokens,
                                              size_t count, float* logits,
                                              rwkv_edge_progress progress, void* user);

/* Copies the state: `count` is the model's "state_size", or "memory_size" with the output of the
 * last token too, from which logits can be made again. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_state_get(const rwkv_edge_session* session, float* state,
                                                   size_t count);
/* Goes to a state that a session of this model had. Without the output (a `count` of "state_size")
 * a token must be fed before text can be generated. NULL and 0: the beginning. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_state_set(rwkv_edge_session* session, const float* state,
                                                   size_t count);

/* Writes the state to a file, the output of the last token and the model's fingerprint with it.
 * Python's State.load, `rwkv-edge chat` and the next call read it. A saved state is replaced, any
 * other file is not. A new file can be read by its owner only, because a state tells what was
 * said. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_state_save(const rwkv_edge_session* session,
                                                    const char* path);
/* Goes to a state from a file: one that the call above, Python or a chat wrote for this model, or a
 * tuned state. With `any_model` the fingerprint is not looked at, and any model of the same shape
 * will do, such as the same one in other types. A call that fails changes nothing. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_state_load(rwkv_edge_session* session, const char* path,
                                                    int any_model);

/* ---- choosing tokens ---- */

/*     rwkv_edge_options options = RWKV_EDGE_OPTIONS;
 * docs/generation.md says what the rules do. */
typedef struct rwkv_edge_options {
    size_t size;
    uint64_t seed;      /* equal seeds give equal texts */
    int64_t max_tokens; /* for generate and chat */
    double temperature; /* 0: the likeliest token */
    double top_p;       /* 1: off */
    int64_t top_k;      /* 0: off */
    double min_p;       /* 0: off */
    double typical_p;   /* 1: off */
    double presence_penalty, frequency_penalty, penalty_decay;
    int64_t penalty_window; /* 0: all tokens */
    const int32_t* banned;  /* tokens that are never chosen */
    size_t n_banned;
    const char* const* stop; /* texts before which generate and chat end */
    size_t n_stop;
    const int32_t* stop_tokens; /* tokens at which they end */
    size_t n_stop_tokens;
    const char* chat_template; /* for chat: "world", "g1", "raven", "instruct", "raw"; NULL: the
                                  model's */
} rwkv_edge_options;
#define RWKV_EDGE_OPTIONS       \
    {sizeof(rwkv_edge_options), \
     0,                         \
     256,                       \
     1.0,                       \
     0.3,                       \
     0,                         \
     0.0,                       \
     1.0,                       \
     0.0,                       \
     0.0,                       \
     0.996,                     \
     0,                         \
     NULL,                      \
     0,                         \
     NULL,                      \
     0,                         \
     NULL,                      \
     0,                         \
     NULL}

RWKV_EDGE_API rwkv_edge_status rwkv_edge_sampler_new(const rwkv_edge_options* options,
                                                     rwkv_edge_sampler** sampler);
/* Chooses a token for [n_vocab] logits, and remembers it for the penalties. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_sampler_next(rwkv_edge_sampler* sampler,
                                                      const float* logits, size_t n_vocab,
                                                      int32_t* token);
RWKV_EDGE_API void rwkv_edge_sampler_free(rwkv_edge_sampler* sampler);

/* ---- generating text ---- */

/* Gets a piece of text: whole characters of valid UTF-8 and a 0 behind them. A `size` of 0 means
 * that the prompt is still being read. A result other than 0 ends the text; while the prompt is
 * read, it ends the call with RWKV_EDGE_CANCELLED. */
typedef int (*rwkv_edge_piece)(void* user, const char* text, size_t size);

typedef enum rwkv_edge_finish {
    RWKV_EDGE_FINISH_STOP = 1,     /* a stop text or a stop token */
    RWKV_EDGE_FINISH_LENGTH = 2,   /* max_tokens */
    RWKV_EDGE_FINISH_END = 3,      /* the token that ends a document */
    RWKV_EDGE_FINISH_CANCELLED = 4 /* the function asked for it */
} rwkv_edge_finish;

/* Reads a prompt and hands the text that follows to `piece`. Then the session stands where that
 * text ends. An empty prompt goes on from the last token; at the very beginning it stands for the
 * token that ends a document. `finish` may be NULL. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_generate(rwkv_edge_session* session, const char* prompt,
                                                  size_t size, const rwkv_edge_options* options,
                                                  rwkv_edge_piece piece, void* user,
                                                  rwkv_edge_finish* finish);

/* Asks a question in a conversation, and hands the answer to `piece`, without white space before
 * it. The words around both are those of a chat template, and so are the texts that end an answer,
 * beside those of the options. Then the session stands where the user's next turn begins. `system`
 * is read before the question where it is not NULL; give it with the first question only. What a
 * model thinks is part of its answer. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_chat(rwkv_edge_session* session, const char* system,
                                              const char* text, const rwkv_edge_options* options,
                                              rwkv_edge_piece piece, void* user,
                                              rwkv_edge_finish* finish);

/* The words of a chat template, for programs that put conversations together themselves; {} is
 * where a text goes. All are valid for ever. `stop` has `n_stop` texts. */
typedef struct rwkv_edge_template {
    const char *name, *system, *opening, *user, *assistant;
    const char* const* stop;
    size_t n_stop;
} rwkv_edge_template;
/* By its name, or the one that suits a model; one of the two is NULL. */
RWKV_EDGE_API rwkv_edge_status rwkv_edge_template_find(const rwkv_edge_model* model,
                                                       const char* name,
                                                       const rwkv_edge_template** found);

#ifdef __cplusplus
}
#endif

#endif
