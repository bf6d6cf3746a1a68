#ifndef RPC_SERVER_H
#define RPC_SERVER_H
/*
 * The gRPC server of one node: godwit.v1 (Generation, Session, Admin), health
 * and reflection. A call is checked and converted once (rpc/convert.h), sent to
 * the engine as a command, and answered from the events that come back:
 *
 *   completion-queue thread: accept, parse, tokenise, convert -> inbox ring
 *   reply thread: outbox ring -> message bytes -> the call's bounded queue,
 *                 one gRPC batch in flight per call
 *
 * A reader that is slow fills its call's queue; the engine is told to pause
 * that session alone (COMMAND_PAUSE) and to resume it later. gRPC core is
 * known only in rpc/server*.c and rpc/client*.c.
 */
#include "base/clock.h"
#include "base/metrics.h"
#include "base/ring.h"
#include "model/tokenizer.h"
#include "state/session.h"

#include <stdbool.h>
#include <stddef.h>

struct server;

/* Texts are borrowed until server_stop(). */
struct server_options {
    const char *listen; /* "127.0.0.1:50051"; port 0 picks a free one */
    /* TLS by file, PEM; all "" for plain text. With a CA, clients must show a
       certificate that it signed (mTLS). */
    const char *tls_cert, *tls_key, *tls_ca;
    uint32_t max_message_bytes; /* of one request; 16 MiB */
    uint32_t max_streams;       /* concurrent calls per connection */
    size_t reply_bytes;         /* queue of one call; beyond: paused */
    bool has_reflection;
    bool has_operators; /* rpc/caller.h */

    const struct tokenizer *tokenizer; /* NULL: text input is refused */
    const char *model_name;
    uint32_t n_vocab;
    uint64_t n_context;
    bool has_sampling; /* the checkpoint's own defaults follow */
    float temperature, top_p;
    int32_t top_k;
    enum durability durability; /* of sessions whose creation names none */
    const struct clock *clock;
    struct metrics *metrics; /* may be NULL */
    struct ring *inbox;      /* of struct command *; the engine's */
    struct ring *outbox;     /* of struct event *; the server consumes it */
};

/*
 * Bind, listen and serve on threads of its own.
 *   UNAVAILABLE       the port is in use: names it
 *   INVALID_ARGUMENT  listen is no HOST:PORT, or an address that is not this
 *                     machine's; a certificate without its key, a PEM file that
 *                     holds none, or key and certificate that do not match
 *   NOT_FOUND         a PEM file is missing
 *   PERMISSION_DENIED a PEM file or the port may not be used
 *   RESOURCE_EXHAUSTED no memory or no thread
 */
MUST_CHECK enum status server_start(const struct server_options *options,
                                    struct server **out);
/* The port in use. */
uint16_t server_port(const struct server *server);

/*
 * Health turns NOT_SERVING, watches end, new calls are refused with
 * UNAVAILABLE NODE_DRAINING; running replies go on.
 */
void server_drain(struct server *server);

/*
 * After the engine has returned: send what the outbox holds, answer what the
 * engine never did with UNAVAILABLE, wait up to grace_ms for readers, cancel
 * the rest, close, join, free. NULL is accepted. Commands that came too late
 * for the engine are then still in the inbox: its owner destroys their arenas.
 */
void server_stop(struct server *server, uint32_t grace_ms);
#endif
