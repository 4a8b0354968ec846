/* SPDX-License-Identifier: Apache-2.0 */
/* One token in C, for bench/first_token.py: first_token MODEL THREADS */
#include <rwkv_edge.h>
#include <stdio.h>
#include <stdlib.h>

static int any(void* user, const char* text, size_t size) {
    (void)user;
    (void)text;
    (void)size;
    return 0;
}

int main(int argc, char** argv) {
    rwkv_edge_model_options how = RWKV_EDGE_MODEL_OPTIONS;
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    rwkv_edge_model* model = NULL;
    rwkv_edge_session* session = NULL;
    if (argc != 3) return 2;
    how.threads = atoi(argv[2]);
    options.max_tokens = 1;
    options.temperature = 0;
    if (rwkv_edge_model_open(argv[1], &how, &model) != RWKV_EDGE_OK ||
        rwkv_edge_session_new(model, &session) != RWKV_EDGE_OK ||
        rwkv_edge_generate(session, "The", 3, &options, any, NULL, NULL) != RWKV_EDGE_OK) {
        fprintf(stderr, "%s\n", rwkv_edge_last_error());
        return 1;
    }
    rwkv_edge_session_free(session);
    rwkv_edge_model_free(model);
    return 0;
}
