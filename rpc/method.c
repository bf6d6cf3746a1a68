#include "rpc/method.h"

#include <string.h>

#define GENERATION "/godwit.v1.GenerationService/"
#define SESSION "/godwit.v1.SessionService/"
#define ADMIN "/godwit.v1.AdminService/"
#define OPERATIONS "/google.longrunning.Operations/"
#define HEALTH "/grpc.health.v1.Health/"

#define NO_CLUSTER "comes with clusters"
#define NO_OPERATIONS "comes with long-running operations"

static const struct method METHODS[] = {
    {GENERATION "Generate", METHOD_GENERATE, true, NULL},
    {GENERATION "CountTokens", METHOD_COUNT_TOKENS, false, NULL},
    {GENERATION "Tokenize", METHOD_TOKENIZE, false, NULL},
    {GENERATION "Detokenize", METHOD_DETOKENIZE, false, NULL},
    {GENERATION "CancelGeneration", METHOD_CANCEL_GENERATION, false, NULL},

    {SESSION "CreateSession", METHOD_CREATE_SESSION, false, NULL},
    {SESSION "GetSession", METHOD_GET_SESSION, false, NULL},
    {SESSION "ListSessions", METHOD_LIST_SESSIONS, false, NULL},
    {SESSION "UpdateSession", METHOD_UPDATE_SESSION, false, NULL},
    {SESSION "DeleteSession", METHOD_DELETE_SESSION, false, NULL},
    {SESSION "AppendTokens", METHOD_APPEND_TOKENS, false, NULL},
    {SESSION "ReadTokens", METHOD_READ_TOKENS, true, NULL},
    {SESSION "ForkSession", METHOD_FORK_SESSION, false, NULL},
    {SESSION "TruncateSession", METHOD_TRUNCATE_SESSION, false, NULL},
    {SESSION "VerifySession", METHOD_VERIFY_SESSION, false, NULL},
    {SESSION "ListCheckpoints", METHOD_LIST_CHECKPOINTS, false, NULL},
    {SESSION "ParkSession", METHOD_PARK_SESSION, false, NULL},
    {SESSION "ExportSession", METHOD_EXPORT_SESSION, true, NULL},
    {SESSION "ImportSession", METHOD_IMPORT_SESSION, false, NULL},

    {ADMIN "GetNode", METHOD_GET_NODE, false, NULL},
    {ADMIN "CheckpointSession", METHOD_CHECKPOINT_SESSION, false, NULL},
    {ADMIN "GetCluster", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "ListNodes", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "CordonNode", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "UncordonNode", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "DrainNode", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "DecommissionNode", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "MigrateSession", METHOD_UNIMPLEMENTED, false, NO_CLUSTER},
    {ADMIN "WatchEvents", METHOD_UNIMPLEMENTED, true, NO_CLUSTER},
    {ADMIN "InspectSession", METHOD_INSPECT_SESSION, false, NULL},

    {OPERATIONS "ListOperations", METHOD_UNIMPLEMENTED, false, NO_OPERATIONS},
    {OPERATIONS "GetOperation", METHOD_UNIMPLEMENTED, false, NO_OPERATIONS},
    {OPERATIONS "DeleteOperation", METHOD_UNIMPLEMENTED, false, NO_OPERATIONS},
    {OPERATIONS "CancelOperation", METHOD_UNIMPLEMENTED, false, NO_OPERATIONS},
    {OPERATIONS "WaitOperation", METHOD_UNIMPLEMENTED, false, NO_OPERATIONS},

    {HEALTH "Check", METHOD_HEALTH_CHECK, false, NULL},
    {HEALTH "Watch", METHOD_HEALTH_WATCH, true, NULL},
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
     METHOD_REFLECTION, true, NULL},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
     METHOD_REFLECTION, true, NULL},
};

const struct method *method_find(const char *path, size_t n_bytes)
{
    for (size_t i = 0; i < sizeof(METHODS) / sizeof(METHODS[0]); i++)
        if (strlen(METHODS[i].path) == n_bytes &&
            memcmp(METHODS[i].path, path, n_bytes) == 0)
            return &METHODS[i];
    return NULL;
}

bool method_is_engine(enum method_kind kind)
{
    return kind >= METHOD_GENERATE && kind <= METHOD_GET_NODE;
}
