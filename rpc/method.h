#ifndef RPC_METHOD_H
#define RPC_METHOD_H
/*
 * Every method a client may name, in one constant table: those that work, and
 * those of the public API that this build answers with UNIMPLEMENTED, each with
 * what is missing. Any thread.
 */
#include <stdbool.h>
#include <stddef.h>

enum method_kind {
    METHOD_UNIMPLEMENTED,
    /* answered by the engine */
    METHOD_GENERATE,
    METHOD_APPEND_TOKENS,
    METHOD_READ_TOKENS,
    METHOD_CANCEL_GENERATION,
    METHOD_CREATE_SESSION,
    METHOD_GET_SESSION,
    METHOD_LIST_SESSIONS,
    METHOD_UPDATE_SESSION,
    METHOD_DELETE_SESSION,
    METHOD_FORK_SESSION,
    METHOD_TRUNCATE_SESSION,
    METHOD_CHECKPOINT_SESSION,
    METHOD_VERIFY_SESSION,
    METHOD_PARK_SESSION,
    METHOD_INSPECT_SESSION,
    METHOD_LIST_CHECKPOINTS,
    METHOD_EXPORT_SESSION,
    METHOD_IMPORT_SESSION,
    METHOD_GET_NODE,
    /* answered at once */
    METHOD_COUNT_TOKENS,
    METHOD_TOKENIZE,
    METHOD_DETOKENIZE,
    METHOD_HEALTH_CHECK,
    METHOD_HEALTH_WATCH,
    METHOD_REFLECTION,
    METHOD_KIND_COUNT,
};

struct method {
    const char *path; /* "/godwit.v1.GenerationService/Generate" */
    enum method_kind kind;
    bool is_stream;      /* more than one response; of an export each is made
                            when the one before was taken */
    const char *missing; /* of METHOD_UNIMPLEMENTED: why, a clause */
};

/* NULL when no service of this node has such a method. */
const struct method *method_find(const char *path, size_t n_bytes);

/* True for what the engine answers. */
bool method_is_engine(enum method_kind kind);
#endif
