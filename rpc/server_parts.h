#ifndef RPC_SERVER_PARTS_H
#define RPC_SERVER_PARTS_H
/*
 * What the files of the server share. Threads and who may do what:
 *
 *   completion-queue threads (2, on one queue, so that one long prompt being
 *     tokenised holds up nobody): a call's arrival, its message, its end
 *   reply thread: the outbox, and what the inbox had no room for
 *
 * A call is counted: each completion in flight owns one reference, the table of
 * replies another. Its lock guards its queue and its state; inside it only the
 * backlog's lock is taken, never the table's.
 *
 * gRPC's types are named by struct tag, so that its headers stay in the .c.
 */
#include "rpc/convert.h"
#include "rpc/reflection.h"
#include "rpc/server.h"
#include "scheduler/event.h"

#include <pthread.h>
#include <stdatomic.h>

#define SERVER_QUEUE_THREADS 2u
#define SERVER_DRAIN_RETRY_MS 1000u
#define SERVER_FULL_RETRY_MS 500u

struct grpc_server;
struct grpc_completion_queue;
struct grpc_server_credentials;

/* What a completion queue hands back; it names who goes on with it. */
struct tag {
    void (*fn)(void *owner, bool ok);
    void *owner;
};

/* One call's part that all files see; server_call.c knows the rest. */
struct call {
    struct server *server;
    const struct method *method; /* NULL: no such method */
    struct note note;            /* set before the command is pushed */
    uint64_t id;                 /* of its reply; 0: in no table */
    uint64_t progress_us;        /* reply thread: when progress was last sent */
    bool is_fetching;  /* reply thread: an append that now reads its session */
    uint64_t position; /* reply thread: where that append ended */
};

/* Replies by number; a number is never used again. */
#define TABLE_BUCKETS 1024u
struct entry;
struct calls {
    pthread_mutex_t lock;
    uint64_t last_id;
    struct entry *bucket[TABLE_BUCKETS];
};

/* A command about a reply that found no room in the inbox. */
struct control {
    enum command_kind kind;
    uint64_t subject;
};

struct server {
    struct server_options options;
    struct convert_node convert;
    struct reflection *reflection; /* NULL: off */
    struct grpc_server *grpc;
    struct grpc_completion_queue *queue;
    uint16_t port;
    pthread_t queue_thread[SERVER_QUEUE_THREADS], reply_thread;
    uint32_t n_queue_thread;
    bool is_started, has_reply_thread;
    _Atomic bool is_draining, is_stopping;

    struct calls calls;

    pthread_mutex_t backlog_lock;
    struct control *backlog; /* in order of arrival; owned */
    size_t n_backlog, backlog_capacity;

    _Atomic uint32_t n_open; /* calls that arrived and have not closed */
    struct tag shutdown;
    pthread_mutex_t shutdown_lock;
    pthread_cond_t shutdown_changed;
    bool is_shut;

    struct metric *calls_by_code[17], *slow_readers, *pauses;
};

/* server_call.c: one call. */

/* Wait for the next call. False: no memory. */
bool call_arm(struct server *server);
void call_ref(struct call *call);
void call_unref(struct call *call);
/* Ask for one more message of the client (reflection). */
void call_receive(struct call *call);
/* The call's metadata under this key, if there is any. False: more than once,
 * so that somebody's word stands against another's. */
bool call_metadata(const struct call *call, const char *key,
                   const char **out_text, size_t *out_n_bytes);
/* The deadline on `clock`; 0: none. */
uint64_t call_deadline_us(const struct call *call, const struct clock *clock);
/*
 * Queue a message (adopted; bytes may be NULL for none), and with is_last the
 * status OK behind it. Nothing happens when the call is over.
 */
void call_send(struct call *call, struct packed message, bool is_last);
/* End the call with a cause; queued messages go out before it. */
void call_fail(struct call *call, const struct cause *cause);
/* Its command is with the engine, or its watch in the table. */
void call_submitted(struct call *call);
/* The engine has said its last about it. */
void call_answered(struct call *call);

/* server_request.c: what arrived is answered or passed on. */

/* bytes NULL: the client has nothing more to say. */
void request_arrived(struct call *call, const void *bytes, size_t n_bytes);
/* Tell the engine about a reply, now or when the inbox has room. Any thread. */
void request_control(struct server *server, enum command_kind kind,
                     uint64_t subject);
/* The reply thread's: push what had no room. True when some is left. */
bool request_flush(struct server *server);
/* An append is done: ask for its session under the same number. */
bool request_session(struct call *call);
/* Health's ServingStatus of a service now; -1: unknown. */
int request_health(const struct server *server, const char *service);

/* server_reply.c: the reply thread, and the table of replies. */

void *reply_thread(void *server);
/* 0: no memory. The table holds a reference. */
uint64_t calls_add(struct calls *calls, struct call *call);
/* With a reference for the caller; NULL: no such reply. */
struct call *calls_find(struct calls *calls, uint64_t id);
void calls_remove(struct calls *calls, uint64_t id);
/* The reply with the least number above `after`, with a reference; or NULL. */
struct call *calls_next(struct calls *calls, uint64_t after);

/* server_listen.c: */

/* Errors as server_start(); sets grpc's port. */
MUST_CHECK enum status server_listen(struct server *server);
#endif
