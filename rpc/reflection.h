#ifndef RPC_REFLECTION_H
#define RPC_REFLECTION_H
/*
 * Server reflection (grpc.reflection.v1 and v1alpha, whose messages are the
 * same on the wire): which services there are, and the descriptors of what a
 * client names. Works on the embedded FileDescriptorSet (proto/descriptors.h)
 * without decoding it: file descriptors are handed out as the bytes they are.
 * Immutable after creation; any thread.
 */
#include "rpc/wire.h"

struct reflection;

/*
 *   INTERNAL            the embedded set does not parse
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status reflection_create(struct reflection **out);
void reflection_destroy(struct reflection *reflection);

/*
 * A ServerReflectionRequest's bytes in, its response's bytes out. What is not
 * found is an error_response with NOT_FOUND inside, not a failure.
 *   INVALID_ARGUMENT    not such a message
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status reflection_answer(const struct reflection *reflection,
                                         const void *bytes, size_t n_bytes,
                                         struct packed *out);
#endif
