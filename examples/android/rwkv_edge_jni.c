/* SPDX-License-Identifier: Apache-2.0 */
/* A sketch, neither compiled nor run: the JNI of RwkvEdge.kt. Texts pass as bytes, because JNI's
 * own strings are not UTF-8. */
#include <jni.h>
#include <rwkv_edge.h>

struct call {
    JNIEnv* env;
    jobject piece;
    jmethodID take;
};

static int hand_out(void* user, const char* text, size_t size) {
    struct call* call = user;
    JNIEnv* env = call->env;
    if (size == 0) return 0; /* the question is being read */
    jbyteArray bytes = (*env)->NewByteArray(env, (jsize)size);
    if (bytes == NULL) return 1;
    (*env)->SetByteArrayRegion(env, bytes, 0, (jsize)size, (const jbyte*)text);
    jboolean more = (*env)->CallBooleanMethod(env, call->piece, call->take, bytes);
    (*env)->DeleteLocalRef(env, bytes);
    return (*env)->ExceptionCheck(env) || !more;
}

static void check(JNIEnv* env, rwkv_edge_status status) {
    if (status != RWKV_EDGE_OK && !(*env)->ExceptionCheck(env))
        (*env)->ThrowNew(env, (*env)->FindClass(env, "java/lang/RuntimeException"),
                         rwkv_edge_last_error());
}

JNIEXPORT jlong JNICALL Java_org_rwkvedge_RwkvEdge_open(JNIEnv* env, jobject self, jint fd,
                                                        jlong offset, jlong length) {
    rwkv_edge_model* model = NULL;
    rwkv_edge_session* session = NULL;
    (void)self;
    rwkv_edge_status status = rwkv_edge_model_open_fd(fd, offset, length, NULL, &model);
    if (status == RWKV_EDGE_OK) status = rwkv_edge_session_new(model, &session);
    check(env, status);
    rwkv_edge_model_free(model); /* the session keeps it */
    return (jlong)(intptr_t)session;
}

JNIEXPORT void JNICALL Java_org_rwkvedge_RwkvEdge_chat(JNIEnv* env, jobject self, jlong session,
                                                       jbyteArray text, jlong seed, jobject piece) {
    rwkv_edge_options options = RWKV_EDGE_OPTIONS;
    jclass kind = (*env)->GetObjectClass(env, piece);
    struct call call = {env, piece, (*env)->GetMethodID(env, kind, "take", "([B)Z")};
    jbyte* question = (*env)->GetByteArrayElements(env, text, NULL);
    (void)self;
    options.seed = (uint64_t)seed;
    check(env, rwkv_edge_chat((rwkv_edge_session*)(intptr_t)session, NULL, (const char*)question,
                              &options, hand_out, &call, NULL));
    (*env)->ReleaseByteArrayElements(env, text, question, JNI_ABORT);
}

JNIEXPORT void JNICALL Java_org_rwkvedge_RwkvEdge_free(JNIEnv* env, jobject self, jlong session) {
    (void)env;
    (void)self;
    rwkv_edge_session_free((rwkv_edge_session*)(intptr_t)session);
}
