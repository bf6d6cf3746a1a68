#ifndef RPC_REPLY_H
#define RPC_REPLY_H
/*
 * The way out: what the engine says becomes the bytes a client receives. The
 * mirror of rpc/convert.h; knows nothing of gRPC. Any thread.
 */
#include "rpc/convert.h"
#include "scheduler/event.h"

#define REPLY_DOMAIN "godwit.v1" /* of every ErrorInfo */

/* The request that an event answers; all borrowed. */
struct reply_to {
    enum method_kind kind;
    const struct note *note;
    const char *model_name;
};

/*
 * The response message of one event; out->bytes stays NULL when this event
 * gives none (progress of an append, the end of ReadTokens).
 *   NOT_FOUND           GetNode named another node
 *   INTERNAL            the engine answered something else than was asked
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status reply_pack(const struct reply_to *to,
                                  const struct event *event,
                                  struct packed *out);

/*
 * A cause as google.rpc.Status for grpc-status-details-bin: one ErrorInfo
 * (reason: the cause's, else the code's name in capitals), RetryInfo when the
 * cause has a time, BadRequest when it names a field.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status reply_error(const struct cause *cause,
                                   struct packed *out);

/* grpc.health.v1.HealthCheckResponse. status: its ServingStatus. */
MUST_CHECK enum status reply_health(int serving_status, struct packed *out);
#endif
