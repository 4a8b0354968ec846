/* SPDX-License-Identifier: Apache-2.0 */
/* Chats with a model: chat MODEL.gguf */
#include <rwkv_edge.h>
#include <stdio.h>

static int print(void* user, const char* text, size_t size) {
    (void)user;
    fwrite(text, 1, size, stdout);
    return fflush(stdout);
}

int main(int argc, char** argv) {
    rwkv_edge_model* model = NULL;
    rwkv_edge_session* session = NULL;
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    char line[4096];
    if (argc != 2 || rwkv_edge_model_open(argv[1], NULL, &model) != RWKV_EDGE_OK ||
        rwkv_edge_session_new(model, &session) != RWKV_EDGE_OK) {
        fprintf(stderr, "%s\n", argc == 2 ? rwkv_edge_last_error() : "usage: chat MODEL.gguf");
        return 1;
    }
    while (fgets(line, sizeof line, stdin) != NULL) {
        options.seed++;
        if (rwkv_edge_chat(session, NULL, line, &options, print, NULL, NULL) != RWKV_EDGE_OK)
            fprintf(stderr, "%s", rwkv_edge_last_error());
        putchar('\n');
    }
    rwkv_edge_session_free(session);
    rwkv_edge_model_free(model);
    return 0;
}
