/*
 * One gRPC call. Rules: one batch of writes in flight; the queue behind it is
 * bounded in bytes; the status goes out in the batch of the last message;
 * after the call is closed nothing is started.
 */
#include "base/log.h"
#include "rpc/reply.h"
#include "rpc/server_parts.h"

#include <assert.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* gRPC is not instrumented: what it orders between two of our calls is told to
   ThreadSanitizer here. */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define ORDER_BEFORE(tag) __tsan_release(tag)
#else
#define ORDER_BEFORE(tag) ((void)(tag))
#endif

/* A reader is too slow when so much waits although the engine was asked to
   pause: some replies' worth, and a whole log, which comes in one go. */
#define HARD_LIMIT_FACTOR 4u       /* of reply_bytes */
#define HARD_LIMIT_TOKEN_BYTES 16u /* per token of the context: id and text */

struct message {
    struct message *next;
    struct packed packed;
};

struct call_state {
    struct call call; /* first, so that a call is its state */
    _Atomic uint32_t n_ref;
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *received;
    int was_cancelled;
    struct tag arrived, message, closed, written;

    pthread_mutex_t lock;        /* of all below */
    struct message *head, *tail; /* not yet given to gRPC */
    size_t queued_bytes;         /* of them and of the one in flight */
    size_t flying_bytes;
    bool is_writing, has_header, has_end, has_status;
    bool is_closed, is_submitted, is_answered, is_paused;
    enum status code; /* with has_end */
    char text[STATUS_TEXT_SIZE];
    struct packed details_bytes;
    uint32_t retry_ms;
};

static struct call_state *state_of(struct call *call)
{
    return (struct call_state *)call;
}

void call_ref(struct call *call)
{
    atomic_fetch_add(&state_of(call)->n_ref, 1);
}

void call_unref(struct call *call)
{
    struct call_state *state = state_of(call);

    if (atomic_fetch_sub(&state->n_ref, 1) != 1)
        return;
    if (state->grpc)
        grpc_call_unref(state->grpc);
    if (state->received)
        grpc_byte_buffer_destroy(state->received);
    grpc_call_details_destroy(&state->details);
    grpc_metadata_array_destroy(&state->metadata);
    while (state->head) {
        struct message *message = state->head;
        state->head = message->next;
        free(message->packed.bytes);
        free(message);
    }
    free(state->details_bytes.bytes);
    pthread_mutex_destroy(&state->lock);
    free(state);
}

static void start(struct call_state *state, const grpc_op *op, size_t n_op,
                  struct tag *tag)
{
    grpc_call_error error;

    call_ref(&state->call);
    ORDER_BEFORE(tag);
    error = grpc_call_start_batch(state->grpc, op, n_op, tag, NULL);
    assert(error == GRPC_CALL_OK); /* only our own misuse is refused */
}

/* Header, one message and the status, as far as they are due. Lock held. */
struct batch {
    grpc_op op[3];
    size_t n_op;
    grpc_byte_buffer *buffer;
    grpc_slice text, details, retry;
    grpc_metadata trailer[2];
    bool has_status;
};

static void add_message(struct call_state *state, struct batch *batch)
{
    struct message *message = state->head;
    grpc_op *op = &batch->op[batch->n_op++];
    grpc_slice slice =
        grpc_slice_new(message->packed.bytes, message->packed.n_bytes, free);

    state->head = message->next;
    if (!state->head)
        state->tail = NULL;
    state->flying_bytes = message->packed.n_bytes;
    free(message);
    batch->buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    op->op = GRPC_OP_SEND_MESSAGE;
    op->data.send_message.send_message = batch->buffer;
    if (state->head)
        op->flags = GRPC_WRITE_BUFFER_HINT;
}

static void add_status(struct call_state *state, struct batch *batch)
{
    grpc_op *op = &batch->op[batch->n_op++];
    size_t n = 0;

    batch->text = grpc_slice_from_copied_string(state->text);
    batch->details = grpc_slice_from_copied_buffer(
        (const char *)state->details_bytes.bytes, state->details_bytes.n_bytes);
    batch->retry = grpc_empty_slice();
    if (state->details_bytes.n_bytes) {
        batch->trailer[n].key =
            grpc_slice_from_static_string("grpc-status-details-bin");
        batch->trailer[n++].value = batch->details;
    }
    if (state->retry_ms) {
        char text[16];
        (void)snprintf(text, sizeof(text), "%u", state->retry_ms);
        batch->retry = grpc_slice_from_copied_string(text);
        batch->trailer[n].key =
            grpc_slice_from_static_string("grpc-retry-pushback-ms");
        batch->trailer[n++].value = batch->retry;
    }
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = (grpc_status_code)state->code;
    op->data.send_status_from_server.status_details = &batch->text;
    op->data.send_status_from_server.trailing_metadata_count = n;
    op->data.send_status_from_server.trailing_metadata = batch->trailer;
    batch->has_status = state->has_status = true;
}

static void pump(struct call_state *state)
{
    struct batch batch;
    bool is_due = state->head || state->has_end;

    if (!is_due || state->is_writing || state->has_status || state->is_closed)
        return;
    memset(&batch, 0, sizeof(batch));
    if (!state->has_header) {
        batch.op[batch.n_op++].op = GRPC_OP_SEND_INITIAL_METADATA;
        state->has_header = true;
    }
    if (state->head)
        add_message(state, &batch);
    if (state->has_end && !state->head)
        add_status(state, &batch);
    state->is_writing = true;
    start(state, batch.op, batch.n_op, &state->written);
    if (batch.buffer)
        grpc_byte_buffer_destroy(batch.buffer);
    if (batch.has_status) {
        grpc_slice_unref(batch.text);
        grpc_slice_unref(batch.details);
        grpc_slice_unref(batch.retry);
    }
}

/* A batch of writes has left, or will never. */
static void on_written(void *owner, bool ok)
{
    struct call_state *state = owner;
    struct server *server = state->call.server;

    pthread_mutex_lock(&state->lock);
    state->is_writing = false;
    state->queued_bytes -= state->flying_bytes;
    state->flying_bytes = 0;
    if (ok)
        pump(state);
    if (ok && state->is_paused && !state->is_answered &&
        state->queued_bytes < server->options.reply_bytes / 8) {
        state->is_paused = false;
        /* Under the lock, as the pause: else one could overtake the other,
           and the reply would stay paused for ever. */
        request_control(server, COMMAND_RESUME, state->call.id);
    }
    pthread_mutex_unlock(&state->lock);
    call_unref(&state->call);
}

/* The client is gone before the last event: nobody may look for this reply. */
static void leave(struct call *call)
{
    if (method_is_engine(call->method->kind)) {
        log_line(LOG_INFO, "rpc", "", "%s: the client has left reply %lu",
                 call->method->path, (unsigned long)call->id);
        request_control(call->server, COMMAND_DETACH, call->id);
    }
    calls_remove(&call->server->calls, call->id);
}

/* Whether this thread is the one to leave(). Lock held. */
static bool takes_leave(struct call_state *state)
{
    bool leaves =
        state->is_closed && state->is_submitted && !state->is_answered;

    state->is_answered = state->is_answered || leaves;
    return leaves;
}

/* The call is over for any reason: cancel, deadline, dead peer, our status. */
static void on_closed(void *owner, bool ok)
{
    struct call_state *state = owner;
    bool leaves;

    (void)ok;
    pthread_mutex_lock(&state->lock);
    state->is_closed = true;
    leaves = takes_leave(state);
    pthread_mutex_unlock(&state->lock);
    if (leaves)
        leave(&state->call);
    atomic_fetch_sub(&state->call.server->n_open, 1);
    call_unref(&state->call);
}

void call_submitted(struct call *call)
{
    struct call_state *state = state_of(call);
    bool leaves;

    pthread_mutex_lock(&state->lock);
    state->is_submitted = true;
    leaves = takes_leave(state);
    pthread_mutex_unlock(&state->lock);
    if (leaves)
        leave(call);
}

void call_answered(struct call *call)
{
    struct call_state *state = state_of(call);

    pthread_mutex_lock(&state->lock);
    state->is_answered = true;
    pthread_mutex_unlock(&state->lock);
}

static void on_message(void *owner, bool ok)
{
    struct call_state *state = owner;
    grpc_byte_buffer_reader reader;
    grpc_byte_buffer *received = state->received;
    grpc_slice slice;

    state->received = NULL;
    if (!ok || !received) {
        request_arrived(&state->call, NULL, 0);
    } else if (!grpc_byte_buffer_reader_init(&reader, received)) {
        status_fail(STATUS_INVALID_ARGUMENT,
                    "the request's compressed bytes do not unpack");
        call_fail(&state->call, status_cause());
    } else {
        slice = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
        request_arrived(&state->call, GRPC_SLICE_START_PTR(slice),
                        GRPC_SLICE_LENGTH(slice));
        grpc_slice_unref(slice);
    }
    if (received)
        grpc_byte_buffer_destroy(received);
    call_unref(&state->call);
}

void call_receive(struct call *call)
{
    struct call_state *state = state_of(call);
    grpc_op op;
    bool is_closed;

    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &state->received;
    pthread_mutex_lock(&state->lock);
    is_closed = state->is_closed || state->has_end;
    if (!is_closed)
        start(state, &op, 1, &state->message);
    pthread_mutex_unlock(&state->lock);
}

static void refuse_unknown(struct call *call)
{
    const grpc_slice path = state_of(call)->details.method;

    status_fail(
        STATUS_UNIMPLEMENTED, "this node has no method %.*s",
        (int)(GRPC_SLICE_LENGTH(path) < 200 ? GRPC_SLICE_LENGTH(path) : 200),
        (const char *)GRPC_SLICE_START_PTR(path));
    status_because("UNKNOWN_METHOD");
    call_fail(call, status_cause());
}

/* A call has arrived, or the server is shutting down. */
static void on_arrived(void *owner, bool ok)
{
    struct call_state *state = owner;
    struct call *call = &state->call;
    const grpc_slice path = state->details.method;
    grpc_op op;

    if (!ok) {
        state->grpc = NULL;
        call_unref(call);
        return;
    }
    if (!call_arm(call->server))
        log_line(LOG_ERROR, "rpc", "", "no memory to accept more calls");
    call->method = method_find((const char *)GRPC_SLICE_START_PTR(path),
                               GRPC_SLICE_LENGTH(path));
    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &state->was_cancelled;
    atomic_fetch_add(&call->server->n_open, 1);
    start(state, &op, 1, &state->closed);
    if (!call->method)
        refuse_unknown(call);
    else if (call->method->kind == METHOD_UNIMPLEMENTED)
        request_arrived(call, NULL, 0);
    else
        call_receive(call);
    call_unref(call);
}

bool call_arm(struct server *server)
{
    struct call_state *state = calloc(1, sizeof(*state));
    grpc_call_error error;

    if (!state)
        return false;
    state->call.server = server;
    state->arrived = (struct tag){on_arrived, state};
    state->message = (struct tag){on_message, state};
    state->closed = (struct tag){on_closed, state};
    state->written = (struct tag){on_written, state};
    atomic_init(&state->n_ref, 1);
    pthread_mutex_init(&state->lock, NULL);
    grpc_call_details_init(&state->details);
    grpc_metadata_array_init(&state->metadata);
    ORDER_BEFORE(&state->arrived);
    error = grpc_server_request_call(
        server->grpc, &state->grpc, &state->details, &state->metadata,
        server->queue, server->queue, &state->arrived);
    assert(error == GRPC_CALL_OK);
    return true;
}

bool call_metadata(const struct call *call, const char *key,
                   const char **out_text, size_t *out_n_bytes)
{
    const struct call_state *state = (const struct call_state *)call;
    uint32_t n = 0;

    *out_text = "";
    *out_n_bytes = 0;
    for (size_t i = 0; i < state->metadata.count; i++) {
        const grpc_metadata *entry = &state->metadata.metadata[i];

        if (grpc_slice_str_cmp(entry->key, key) != 0)
            continue;
        n++;
        *out_text = (const char *)GRPC_SLICE_START_PTR(entry->value);
        *out_n_bytes = GRPC_SLICE_LENGTH(entry->value);
    }
    return n <= 1;
}

uint64_t call_deadline_us(const struct call *call, const struct clock *clock)
{
    const struct call_state *state = (const struct call_state *)call;
    gpr_timespec left = state->details.deadline;
    const uint64_t now = clock->now_us(clock);

    if (gpr_time_cmp(left, gpr_inf_future(left.clock_type)) == 0)
        return 0;
    left = gpr_convert_clock_type(left, GPR_TIMESPAN);
    if (left.tv_sec < 0)
        return now ? now : 1; /* 0 would mean none */
    return now + (uint64_t)left.tv_sec * 1000000 +
           (uint64_t)left.tv_nsec / 1000 + 1;
}

/* Pauses the reply when much waits already. Lock held. */
static void enqueue(struct call_state *state, struct message *message)
{
    struct server *server = state->call.server;

    if (state->tail)
        state->tail->next = message;
    else
        state->head = message;
    state->tail = message;
    state->queued_bytes += message->packed.n_bytes;
    if (state->call.method->kind == METHOD_EXPORT_SESSION) {
        state->is_paused = true; /* of itself: each piece is asked for */
        return;
    }
    if (state->is_paused || !state->call.method->is_stream ||
        !method_is_engine(state->call.method->kind) ||
        state->queued_bytes <= server->options.reply_bytes / 2)
        return;
    state->is_paused = true;
    metric_add(server->pauses, 1);
    request_control(server, COMMAND_PAUSE, state->call.id);
}

/* Above it the reader is too slow, although the engine was asked to pause. */
static size_t hard_limit(const struct server *server)
{
    return HARD_LIMIT_FACTOR * server->options.reply_bytes +
           HARD_LIMIT_TOKEN_BYTES * (size_t)server->options.n_context;
}

static bool is_too_slow(const struct call_state *state)
{
    return state->call.method->is_stream &&
           state->queued_bytes > hard_limit(state->call.server);
}

static void drop_queue(struct call_state *state)
{
    while (state->head) {
        struct message *message = state->head;
        state->head = message->next;
        state->queued_bytes -= message->packed.n_bytes;
        free(message->packed.bytes);
        free(message);
    }
    state->tail = NULL;
}

static void fail_slow(struct call *call)
{
    struct server *server = call->server;
    struct call_state *state = state_of(call);
    bool detaches;

    pthread_mutex_lock(&state->lock);
    drop_queue(state);
    detaches = state->is_submitted && !state->is_answered;
    state->is_answered = state->is_answered || detaches;
    pthread_mutex_unlock(&state->lock);
    metric_add(server->slow_readers, 1);
    status_fail(STATUS_RESOURCE_EXHAUSTED,
                "the client reads too slowly: more than %zu bytes wait for it",
                hard_limit(server));
    status_because("SLOW_READER");
    call_fail(call, status_cause());
    if (detaches) {
        request_control(server, COMMAND_DETACH, call->id);
        calls_remove(&server->calls, call->id);
    }
}

void call_send(struct call *call, struct packed message, bool is_last)
{
    struct call_state *state = state_of(call);
    struct message *item = message.bytes ? calloc(1, sizeof(*item)) : NULL;
    bool is_slow = false, is_lost = message.bytes && !item;

    pthread_mutex_lock(&state->lock);
    if (state->is_closed || state->has_end || is_lost) {
        free(message.bytes);
        free(item);
    } else {
        if (item) {
            item->packed = message;
            enqueue(state, item);
        }
        state->has_end = is_last;
        is_slow = !is_last && is_too_slow(state);
        if (is_last)
            metric_add(call->server->calls_by_code[STATUS_OK], 1);
        pump(state);
    }
    pthread_mutex_unlock(&state->lock);
    if (is_lost) {
        status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a reply");
        call_fail(call, status_cause());
    } else if (is_slow) {
        fail_slow(call);
    }
}

static void log_failure(const struct call *call, const struct cause *cause)
{
    enum log_level level =
        cause->code == STATUS_INTERNAL || cause->code == STATUS_DATA_LOSS
            ? LOG_ERROR
            : LOG_INFO;
    char about[SESSION_NAME_SIZE + 4] = "";

    if (call->note.request_id[0])
        (void)snprintf(about, sizeof(about), "r=%s", call->note.request_id);
    else if (call->note.session[0])
        (void)snprintf(about, sizeof(about), "s=%s", call->note.session);
    log_line(level, "rpc", about, "%s: %s%s%s: %s",
             call->method ? call->method->path : "unknown method",
             status_name(cause->code), cause->reason[0] ? " " : "",
             cause->reason, cause->text);
}

void call_fail(struct call *call, const struct cause *cause)
{
    struct call_state *state = state_of(call);
    struct cause copy = *cause; /* packing may fail and record another */
    struct packed details = {0};

    if (reply_error(&copy, &details))
        details = (struct packed){0};
    pthread_mutex_lock(&state->lock);
    if (state->has_end || state->is_closed) {
        pthread_mutex_unlock(&state->lock);
        free(details.bytes);
        return;
    }
    state->has_end = true;
    state->code = copy.code;
    state->retry_ms = copy.retry_ms;
    memcpy(state->text, copy.text, sizeof(state->text));
    state->details_bytes = details;
    metric_add(call->server->calls_by_code[copy.code], 1);
    pump(state);
    pthread_mutex_unlock(&state->lock);
    log_failure(call, &copy);
}
