#ifndef RPC_CLIENT_H
#define RPC_CLIENT_H
/*
 * A small gRPC client for godwitctl and tests: unary calls and server streams
 * of raw message bytes, one that blocks or many at a time from one thread. It
 * connects at the first call, keeps the connection for later ones, and never
 * goes through a proxy that the environment names: nodes are addressed
 * directly. One thread per client, client_cancel() excepted.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

#define CLIENT_MESSAGE_MAX (64u << 20) /* bytes of one received message */
#define CLIENT_PEM_MAX (1u << 20)      /* bytes of one PEM file */

struct client;

struct client_options {
    const char *endpoint;                    /* HOST:PORT or unix:/path */
    const char *tls_ca, *tls_cert, *tls_key; /* "" or NULL: plain text */
    const char *tenant;  /* said in each call's metadata; "" or NULL: none */
    uint32_t timeout_ms; /* per call; 0: none */
};

/*
 * Does not connect yet. With any of the three files TLS is used: a CA alone
 * checks the server, a certificate and its key show who we are (mTLS), and
 * without a CA gRPC's own roots judge the server.
 *   INVALID_ARGUMENT    the endpoint is no HOST:PORT or unix:/path, a file
 *                       holds no PEM block, one of certificate and key is
 *                       missing, or the tenant is not visible ASCII
 *   NOT_FOUND           no such PEM file
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status client_create(const struct client_options *options,
                                     struct client **out);
/* No call may be running. */
void client_destroy(struct client *client);

/*
 * Call "/godwit.v1.SessionService/GetSession" and pass every response message
 * to `each` (once for unary; NULL: drop them), whose bytes are valid during
 * that call only. A failed call becomes this thread's cause with the server's
 * code, text, ErrorInfo reason, first BadRequest field and RetryInfo. `each`
 * may return non-zero to cancel the call; that code is then returned.
 *   UNAVAILABLE        no server at the endpoint (reason NO_SERVER), or it went
 *                      away during the call (reason CONNECTION_LOST)
 *   DEADLINE_EXCEEDED  timeout_ms is over
 *   CANCELLED          client_cancel() was called
 *   any other          as the server says
 */
typedef enum status client_each(void *context, const void *message,
                                size_t n_bytes);
MUST_CHECK enum status client_call(struct client *client, const char *method,
                                   const void *request, size_t n_bytes,
                                   client_each *each, void *context);

/*
 * The same, of messages that `next` gives one by one when the one before has
 * left: *out_bytes, valid until it is called again; NULL: that was all. It may
 * return non-zero to cancel the call; that code is then returned. It is not
 * called again once the server has ended the call.
 */
typedef enum status client_next(void *context, const void **out_bytes,
                                size_t *out_n_bytes);
MUST_CHECK enum status client_upload(struct client *client, const char *method,
                                     client_next *next, client_each *each,
                                     void *context);

/*
 * One call of many: begun, then served by client_poll() until its end, with
 * which it is gone. `end` is called once, with what client_call() would have
 * returned and this thread's cause set; both callbacks may begin and cancel
 * calls, but neither poll nor block in client_call().
 */
struct exchange;
typedef void client_end(void *context, enum status st);
struct client_request {
    const char *method;
    const void *bytes; /* of the message; copied */
    size_t n_bytes;
    client_next *next;   /* or NULL: several messages, instead of that one */
    uint32_t timeout_ms; /* 0: the client's own */
    client_each *each;   /* NULL: drop them */
    client_end *end;
    void *context; /* of all */
};
/* RESOURCE_EXHAUSTED  no memory; `end` is not called */
MUST_CHECK enum status exchange_begin(struct client *client,
                                      const struct client_request *request,
                                      struct exchange **out);
/* It ends soon, with CANCELLED unless it had ended otherwise already. */
void exchange_cancel(struct exchange *exchange);

/*
 * Wait for one thing to happen in one of the calls, and let their callbacks
 * know. False: nothing did within wait_us (UINT64_MAX: no limit; there must be
 * a call then).
 */
bool client_poll(struct client *client, uint64_t wait_us);

/*
 * Cancel all running calls and refuse later ones with CANCELLED, so that it
 * does not matter when the wish to stop comes. Any thread, but no signal
 * handler.
 */
void client_cancel(struct client *client);
/* Was it called? Any thread. */
bool client_is_cancelled(struct client *client);

/*
 * Drop gRPC's own log lines: for programs whose stderr is for people. Acts on
 * the whole process.
 */
void client_silence(void);
#endif
