/* SPDX-License-Identifier: Apache-2.0 */
/* What a C program may rely on: test_capi MODEL. The texts are those of the demo model, the same on
 * every system. */
#define _POSIX_C_SOURCE 200809L /* fileno */
#include <rwkv_edge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            ++failures;                                                                    \
            fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, \
                    rwkv_edge_last_error());                                               \
        }                                                                                  \
    } while (0)
#define OK(call) CHECK((call) == RWKV_EDGE_OK)
#define FAILS(status, part, call) \
    CHECK((call) == (status) && strstr(rwkv_edge_last_error(), part) != NULL)

/* A text as it comes; after so many bytes it asks for the end. */
struct text {
    char bytes[4096];
    size_t size, most, reading, pieces;
};

static int add(void* user, const char* piece, size_t size) {
    struct text* text = user;
    if (size == 0) return ++text->reading > text->most;
    CHECK(piece[size] == '\0');
    if (text->size + size < sizeof text->bytes) memcpy(text->bytes + text->size, piece, size);
    text->size += size;
    ++text->pieces;
    return text->size >= text->most;
}

static struct text fresh(size_t most) {
    struct text text;
    memset(&text, 0, sizeof text);
    text.most = most;
    return text;
}

static int no_progress(void* user, size_t done, size_t total) {
    (void)user;
    (void)done;
    (void)total;
    return 1;
}

static int64_t info(const rwkv_edge_model* model, const char* name) {
    int64_t value = -1;
    OK(rwkv_edge_model_info(model, name, &value));
    return value;
}

static float* floats(int64_t n) { return calloc((size_t)n, sizeof(float)); }

static int equal(const float* a, const float* b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof(float)) == 0;
}

/* The whole file, and bytes of no use before it. */
static char* read_file(const char* path, size_t before, size_t* size) {
    FILE* file = fopen(path, "rb");
    char* bytes;
    long end;
    if (file == NULL) return NULL;
    fseek(file, 0, SEEK_END);
    end = ftell(file);
    *size = end > 0 ? (size_t)end : 0;
    fseek(file, 0, SEEK_SET);
    bytes = calloc(1, before + *size);
    if (fread(bytes + before, 1, *size, file) != *size) *size = 0;
    fclose(file);
    return bytes;
}

static void errors_have_a_status_and_a_text(const rwkv_edge_model* model, const char* path) {
    rwkv_edge_model* none = NULL;
    rwkv_edge_model_options options = RWKV_EDGE_MODEL_OPTIONS;
    int64_t value;
    const int32_t words[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    FAILS(RWKV_EDGE_FILE, "no/such.gguf", rwkv_edge_model_open("no/such.gguf", NULL, &none));
    FAILS(RWKV_EDGE_INVALID, "path is NULL", rwkv_edge_model_open(NULL, NULL, &none));
    FAILS(RWKV_EDGE_FORMAT, "`rwkv-edge convert`", rwkv_edge_model_open(__FILE__, NULL, &none));
    FAILS(RWKV_EDGE_FORMAT, "GGUF", rwkv_edge_model_open_memory(words, sizeof words, NULL, &none));
    options.size = 3;
    FAILS(RWKV_EDGE_INVALID, "size", rwkv_edge_model_open(path, &options, &none));
    FAILS(RWKV_EDGE_INVALID, "weights", rwkv_edge_model_info(model, "weights", &value));
    CHECK(none == NULL);
    rwkv_edge_model_free(NULL);
    rwkv_edge_session_free(NULL);
    rwkv_edge_sampler_free(NULL);
}

static void tokens_and_bytes_are_one_text(const rwkv_edge_model* model) {
    const char* text = "Hello, \xc3\xa4\xe4\xb8\xad\xf0\x9f\x98\x80 world";
    int32_t ids[64];
    size_t count = 0, i, size, at = 0;
    const char* bytes;
    OK(rwkv_edge_encode(model, text, strlen(text), ids, 64, &count));
    CHECK(count > 3 && count < 64);
    for (i = 0; i < count; ++i) {
        OK(rwkv_edge_token_bytes(model, ids[i], &bytes, &size));
        CHECK(memcmp(text + at, bytes, size) == 0);
        at += size;
    }
    CHECK(at == strlen(text));
    OK(rwkv_edge_encode(model, text, strlen(text), ids, 2, &i));
    CHECK(i == count);
    OK(rwkv_edge_token_bytes(model, 0, &bytes, &size));
    CHECK(size == 0);
    FAILS(RWKV_EDGE_INVALID, "-1", rwkv_edge_token_bytes(model, -1, &bytes, &size));
}

static void a_state_is_all_that_a_session_knows(const rwkv_edge_model* model) {
    const int64_t n_vocab = info(model, "n_vocab"), size = info(model, "memory_size");
    float *one = floats(n_vocab), *two = floats(n_vocab), *state = floats(size),
          *same = floats(size);
    rwkv_edge_session *session = NULL, *other = NULL;
    int32_t ids[256];
    size_t count;
    OK(rwkv_edge_encode(model, "The cat sat on the mat", 22, ids, 64, &count));
    OK(rwkv_edge_session_new(model, &session));
    FAILS(RWKV_EDGE_INVALID, "", rwkv_edge_state_get(session, state, (size_t)size));
    OK(rwkv_edge_feed(session, ids, count, one, NULL, NULL));
    OK(rwkv_edge_state_get(session, state, (size_t)size));
    FAILS(RWKV_EDGE_INVALID, "count", rwkv_edge_state_get(session, state, 7));
    /* token by token, to the bit */
    OK(rwkv_edge_session_new(model, &other));
    for (size_t i = 0; i < count; ++i) OK(rwkv_edge_feed(other, ids + i, 1, two, NULL, NULL));
    CHECK(equal(one, two, n_vocab));
    OK(rwkv_edge_state_get(other, same, (size_t)size));
    CHECK(equal(state, same, size));
    /* a call that fails, or is ended, changes nothing */
    ids[1] = (int32_t)n_vocab;
    FAILS(RWKV_EDGE_INVALID, "token", rwkv_edge_feed(other, ids, 2, two, NULL, NULL));
    for (count = 0; count < 256; ++count) ids[count] = 1 + (int32_t)count;
    FAILS(RWKV_EDGE_CANCELLED, "", rwkv_edge_feed(other, ids, count, two, no_progress, NULL));
    OK(rwkv_edge_state_get(other, same, (size_t)size));
    CHECK(equal(state, same, size));
    /* from the beginning, and back to the state */
    OK(rwkv_edge_state_set(other, NULL, 0));
    OK(rwkv_edge_feed(other, ids, 1, two, NULL, NULL));
    CHECK(!equal(one, two, n_vocab));
    OK(rwkv_edge_state_set(other, state, (size_t)size));
    OK(rwkv_edge_feed(other, ids, 1, two, NULL, NULL));
    OK(rwkv_edge_feed(session, ids, 1, one, NULL, NULL));
    CHECK(equal(one, two, n_vocab));
    OK(rwkv_edge_state_set(other, state, (size_t)info(model, "state_size")));
    {
        struct text text = fresh(4000);
        FAILS(RWKV_EDGE_INVALID, "logits",
              rwkv_edge_generate(other, NULL, 0, NULL, add, &text, NULL));
    }
    rwkv_edge_session_free(session);
    rwkv_edge_session_free(other);
    free(one), free(two), free(state), free(same);
}

static void a_state_goes_through_a_file(const rwkv_edge_model* model, const char* model_path,
                                        const char* path) {
    const int64_t n_vocab = info(model, "n_vocab"), size = info(model, "memory_size");
    float *one = floats(n_vocab), *two = floats(n_vocab), *state = floats(size),
          *same = floats(size);
    rwkv_edge_session *session = NULL, *other = NULL;
    struct text text = fresh(4000), again = fresh(4000);
    const int32_t ids[] = {1, 2, 3};
    char name[1024];
    OK(rwkv_edge_session_new(model, &session));
    OK(rwkv_edge_session_new(model, &other));
    OK(rwkv_edge_feed(session, ids, 3, one, NULL, NULL));
    OK(rwkv_edge_state_get(session, state, (size_t)size));
    remove(path);
    OK(rwkv_edge_state_save(session, path));
    OK(rwkv_edge_state_save(session, path)); /* and replaces it */
    OK(rwkv_edge_feed(session, ids, 1, one, NULL, NULL));
    OK(rwkv_edge_state_load(other, path, 0));
    OK(rwkv_edge_state_get(other, same, (size_t)size));
    CHECK(equal(state, same, size));
    OK(rwkv_edge_feed(other, ids, 1, two, NULL, NULL));
    CHECK(equal(one, two, n_vocab));
    /* the output of the last token is in the file, so a text can go on without a prompt */
    OK(rwkv_edge_state_load(other, path, 1));
    OK(rwkv_edge_state_set(session, state, (size_t)size));
    OK(rwkv_edge_generate(other, NULL, 0, NULL, add, &text, NULL));
    OK(rwkv_edge_generate(session, NULL, 0, NULL, add, &again, NULL));
    CHECK(text.size > 0 && strcmp(text.bytes, again.bytes) == 0);
    /* what cannot be read or written changes nothing */
    OK(rwkv_edge_state_load(other, path, 0));
    FAILS(RWKV_EDGE_FORMAT, "not a saved state", rwkv_edge_state_load(other, model_path, 0));
    FAILS(RWKV_EDGE_FILE, "no/such.state", rwkv_edge_state_load(other, "no/such.state", 0));
    FAILS(RWKV_EDGE_FILE, "is no saved state, and is not replaced",
          rwkv_edge_state_save(other, model_path));
    sprintf(name, "%.900s/a", path); /* a folder that is a file */
    FAILS(RWKV_EDGE_FILE, name, rwkv_edge_state_save(other, name));
    OK(rwkv_edge_state_get(other, same, (size_t)size));
    CHECK(equal(state, same, size));
    rwkv_edge_session_free(session);
    rwkv_edge_session_free(other);
    free(one), free(two), free(state), free(same);
    remove(path);
}

/* What a program of its own makes of logits. */
static void a_sampler_chooses_what_generate_writes(const rwkv_edge_model* model) {
    const char* prompt = "User: What is the capital of France?\n\nAssistant:";
    const int64_t n_vocab = info(model, "n_vocab");
    float* logits = floats(n_vocab);
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    rwkv_edge_session* session = NULL;
    rwkv_edge_sampler* sampler = NULL;
    struct text text = fresh(4000);
    char own[1024];
    size_t n = 0, count, size;
    int32_t ids[64], token;
    const char* bytes;
    options.seed = 1;
    options.max_tokens = 12;
    OK(rwkv_edge_session_new(model, &session));
    OK(rwkv_edge_generate(session, prompt, strlen(prompt), &options, add, &text, NULL));
    OK(rwkv_edge_sampler_new(&options, &sampler));
    OK(rwkv_edge_encode(model, prompt, strlen(prompt), ids, 64, &count));
    OK(rwkv_edge_state_set(session, NULL, 0));
    OK(rwkv_edge_feed(session, ids, count, logits, NULL, NULL));
    for (int i = 0; i < 12; ++i) {
        OK(rwkv_edge_sampler_next(sampler, logits, (size_t)n_vocab, &token));
        if (token == 0) break;
        OK(rwkv_edge_token_bytes(model, token, &bytes, &size));
        memcpy(own + n, bytes, size);
        n += size;
        OK(rwkv_edge_feed(session, &token, 1, logits, NULL, NULL));
    }
    CHECK(n == text.size && memcmp(own, text.bytes, n) == 0);
    rwkv_edge_sampler_free(sampler);
    rwkv_edge_session_free(session);
    options.top_p = -1;
    FAILS(RWKV_EDGE_INVALID, "top_p", rwkv_edge_sampler_new(&options, &sampler));
    free(logits);
}

static void texts_end_where_they_should(const rwkv_edge_model* model) {
    const char* prompt = "User: Hello!\n\nAssistant:";
    const char* stops[] = {"\n\n", "\nUser"};
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    rwkv_edge_session *session = NULL, *other = NULL;
    rwkv_edge_finish finish;
    struct text whole = fresh(4000), part = fresh(5);
    options.temperature = 0;
    options.stop = stops;
    options.n_stop = 2;
    OK(rwkv_edge_session_new(model, &session));
    OK(rwkv_edge_session_fork(session, &other));
    OK(rwkv_edge_generate(session, prompt, strlen(prompt), &options, add, &whole, &finish));
    CHECK(finish == RWKV_EDGE_FINISH_STOP && whole.size > 5 && whole.pieces > 1);
    CHECK(strstr(whole.bytes, "\n\n") == NULL);
    /* the caller ends it; the session stands there, and goes on from there */
    OK(rwkv_edge_generate(other, prompt, strlen(prompt), &options, add, &part, &finish));
    CHECK(finish == RWKV_EDGE_FINISH_CANCELLED && part.size < whole.size);
    CHECK(memcmp(whole.bytes, part.bytes, part.size) == 0);
    part.most = 4000;
    OK(rwkv_edge_generate(other, NULL, 0, &options, add, &part, &finish));
    CHECK(strcmp(whole.bytes, part.bytes) == 0);
    /* nothing is read where the caller ends the reading */
    {
        char page[2000];
        memset(page, 'a', sizeof page);
        part = fresh(0);
        FAILS(RWKV_EDGE_CANCELLED, "",
              rwkv_edge_generate(other, page, sizeof page, &options, add, &part, &finish));
        CHECK(part.reading == 1 && part.pieces == 0);
    }
    stops[1] = "";
    FAILS(RWKV_EDGE_INVALID, "stop",
          rwkv_edge_generate(other, prompt, strlen(prompt), &options, add, &part, &finish));
    rwkv_edge_session_free(session);
    rwkv_edge_session_free(other);
}

static void a_chat(const rwkv_edge_model* model) {
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    const rwkv_edge_template* words = NULL;
    rwkv_edge_session* session = NULL;
    struct text answer = fresh(4000), second = fresh(4000);
    options.seed = 7;
    options.temperature = 0.8;
    OK(rwkv_edge_template_find(model, NULL, &words));
    CHECK(strcmp(words->name, "world") == 0 && strcmp(words->user, "User: {}\n\n") == 0);
    CHECK(words->n_stop == 7 && strcmp(words->stop[0], "\n\n") == 0);
    OK(rwkv_edge_template_find(NULL, "raven", &words));
    CHECK(strncmp(words->opening, "The following", 13) == 0);
    FAILS(RWKV_EDGE_INVALID, "name", rwkv_edge_template_find(model, "world", &words));
    OK(rwkv_edge_session_new(model, &session));
    OK(rwkv_edge_chat(session, NULL, "What is the capital of France?", &options, add, &answer,
                      NULL));
    OK(rwkv_edge_chat(session, NULL, "And of Germany?", &options, add, &second, NULL));
    printf("%s\n%s\n", answer.bytes, second.bytes);
    CHECK(strcmp(answer.bytes, "The capital of France is Paris.") == 0);
    CHECK(strcmp(second.bytes, "The capital of Germany is Berlin.") == 0);
    FAILS(RWKV_EDGE_INVALID, "empty", rwkv_edge_chat(session, NULL, " ", NULL, add, &answer, NULL));
    options.chat_template = "none";
    FAILS(RWKV_EDGE_INVALID, "none",
          rwkv_edge_chat(session, NULL, "Hi", &options, add, &answer, NULL));
    rwkv_edge_session_free(session);
}

static void the_same_model_in_memory(const rwkv_edge_model* model, const char* path) {
    size_t size = 0;
    char* bytes = read_file(path, 4, &size);
    const int64_t n_vocab = info(model, "n_vocab");
    float *one = floats(n_vocab), *two = floats(n_vocab);
    rwkv_edge_model* again = NULL;
    rwkv_edge_session *session = NULL, *other = NULL;
    const int32_t id = 42;
    CHECK(size > 0);
    FAILS(RWKV_EDGE_INVALID, "multiple",
          rwkv_edge_model_open_memory(bytes + 1, size, NULL, &again));
    OK(rwkv_edge_model_open_memory(bytes + 4, size, NULL, &again));
    OK(rwkv_edge_session_new(model, &session));
    OK(rwkv_edge_session_new(again, &other));
    rwkv_edge_model_free(again); /* its session keeps it */
    OK(rwkv_edge_feed(session, &id, 1, one, NULL, NULL));
    OK(rwkv_edge_feed(other, &id, 1, two, NULL, NULL));
    CHECK(equal(one, two, n_vocab));
    rwkv_edge_session_free(other);
#ifndef _WIN32
    { /* in the middle of a file, as in an APK */
        FILE* file = tmpfile();
        memcpy(bytes, "junk", 4);
        CHECK(file != NULL && fwrite(bytes, 1, size + 4, file) == size + 4 && fflush(file) == 0);
        again = NULL;
        FAILS(RWKV_EDGE_INVALID, "multiple",
              rwkv_edge_model_open_fd(fileno(file), 2, 0, NULL, &again));
        FAILS(RWKV_EDGE_INVALID, "bytes from",
              rwkv_edge_model_open_fd(fileno(file), 4, (int64_t)size + 1, NULL, &again));
        FAILS(RWKV_EDGE_FORMAT, "GGUF", rwkv_edge_model_open_fd(fileno(file), 0, 0, NULL, &again));
        OK(rwkv_edge_model_open_fd(fileno(file), 4, (int64_t)size, NULL, &again));
        fclose(file);
        OK(rwkv_edge_session_new(again, &other));
        OK(rwkv_edge_feed(other, &id, 1, two, NULL, NULL));
        CHECK(equal(one, two, n_vocab));
        rwkv_edge_session_free(other);
        rwkv_edge_model_free(again);
    }
    FAILS(RWKV_EDGE_FILE, "descriptor", rwkv_edge_model_open_fd(-1, 0, 0, NULL, &again));
#endif
    rwkv_edge_session_free(session);
    free(one), free(two), free(bytes);
}

int main(int argc, char** argv) {
    rwkv_edge_model* model = NULL;
    rwkv_edge_model_options options = RWKV_EDGE_MODEL_OPTIONS;
    char state[1024];
    if (argc != 2) return 2;
    CHECK(rwkv_edge_version_number() == RWKV_EDGE_VERSION_NUMBER);
    CHECK(rwkv_edge_isa() != NULL && *rwkv_edge_isa() != '\0');
    CHECK(strcmp(rwkv_edge_last_error(), "") == 0);
    options.threads = 2;
    OK(rwkv_edge_model_open(argv[1], &options, &model));
    if (model == NULL) return 1;
    CHECK(info(model, "threads") == 2 && info(model, "version") == 7);
    CHECK(info(model, "tokenizer") == 1);
    errors_have_a_status_and_a_text(model, argv[1]);
    tokens_and_bytes_are_one_text(model);
    a_state_is_all_that_a_session_knows(model);
    sprintf(state, "%.1000s.state", argv[0]);
    a_state_goes_through_a_file(model, argv[1], state);
    a_sampler_chooses_what_generate_writes(model);
    texts_end_where_they_should(model);
    a_chat(model);
    the_same_model_in_memory(model, argv[1]);
    rwkv_edge_model_free(model);
    printf("%s: %d failed checks\n", rwkv_edge_isa(), failures);
    return failures != 0;
}
