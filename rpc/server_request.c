/*
 * What a client asks: answered here (tokenising, health, reflection), or
 * converted and pushed into the engine's inbox.
 */
#include "base/log.h"
#include "grpc/health/v1/health.pb-c.h"
#include "rpc/caller.h"
#include "rpc/reply.h"
#include "rpc/server_parts.h"

#include <stdlib.h>
#include <string.h>

#define HEALTH_REQUEST_BYTES (64u << 10)
#define SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING                                                            \
    GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN                                                        \
    GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

/* False: no room, or no memory. */
static bool push_control(struct server *server, struct control control)
{
    struct arena *arena = NULL;
    struct command *command;

    if (arena_create(2 * sizeof(*command), &arena))
        return false;
    command = arena_take(arena, sizeof(*command));
    if (command) {
        command->kind = control.kind;
        command->subject = control.subject;
        command->arena = arena;
    }
    if (!command || !ring_push(server->options.inbox, &command)) {
        arena_destroy(arena);
        return false;
    }
    return true;
}

void request_control(struct server *server, enum command_kind kind,
                     uint64_t subject)
{
    const struct control control = {kind, subject};
    bool is_kept = true;

    pthread_mutex_lock(&server->backlog_lock);
    /* Behind older ones, so that a pause never overtakes a resume. */
    if (server->n_backlog == 0 && push_control(server, control)) {
        pthread_mutex_unlock(&server->backlog_lock);
        return;
    }
    if (server->n_backlog == server->backlog_capacity) {
        size_t capacity = 2 * server->backlog_capacity + 64;
        struct control *wider =
            realloc(server->backlog, capacity * sizeof(*wider));
        is_kept = wider != NULL;
        if (wider) {
            server->backlog = wider;
            server->backlog_capacity = capacity;
        }
    }
    if (is_kept)
        server->backlog[server->n_backlog++] = control;
    pthread_mutex_unlock(&server->backlog_lock);
    if (!is_kept)
        log_line(LOG_ERROR, "rpc", "",
                 "no memory to tell the engine about "
                 "reply %lu",
                 (unsigned long)subject);
    ring_kick(server->options.outbox);
}

bool request_flush(struct server *server)
{
    size_t n_done = 0;
    bool is_left;

    pthread_mutex_lock(&server->backlog_lock);
    while (n_done < server->n_backlog &&
           push_control(server, server->backlog[n_done]))
        n_done++;
    server->n_backlog -= n_done;
    if (n_done)
        memmove(server->backlog, server->backlog + n_done,
                server->n_backlog * sizeof(*server->backlog));
    is_left = server->n_backlog > 0;
    pthread_mutex_unlock(&server->backlog_lock);
    return is_left;
}

static enum status queue_full(void)
{
    status_fail(STATUS_RESOURCE_EXHAUSTED,
                "the engine's inbox is full, retry in %u ms",
                SERVER_FULL_RETRY_MS);
    status_because("QUEUE_FULL");
    return status_retry(SERVER_FULL_RETRY_MS);
}

/* The next piece of a stream. If it has no room the call fails, and what was
 * begun is given up when that has closed. */
static enum status push_piece(struct call *call, struct command *command)
{
    command->reply = call->id;
    if (ring_push(call->server->options.inbox, &command))
        return STATUS_OK;
    arena_destroy(command->arena);
    return queue_full();
}

static enum status take_caller(struct call *call, struct command *command)
{
    const char *text;
    size_t n_bytes;
    enum status st;

    if (!call_metadata(call, CALLER_KEY, &text, &n_bytes)) {
        status_fail(STATUS_INVALID_ARGUMENT, "metadata %s comes twice",
                    CALLER_KEY);
        return status_field(CALLER_KEY);
    }
    st = caller_apply(text, n_bytes, call->server->options.has_operators,
                      command);
    memcpy(call->note.tenant, command->tenant, sizeof(call->note.tenant));
    return st;
}

/* bytes NULL: an import's client has sent all. */
static enum status submit(struct call *call, const void *bytes, size_t n_bytes)
{
    struct server *server = call->server;
    struct command *command = NULL;
    enum status st =
        convert_command(&server->convert, call->method->kind,
                        bytes ? bytes : "", n_bytes, &command, &call->note);

    if (st)
        return st;
    st = take_caller(call, command);
    if (st) {
        arena_destroy(command->arena);
        return st;
    }
    if (call->method->kind == METHOD_IMPORT_SESSION) {
        command->import.is_first = !call->id;
        command->import.is_last = !bytes;
    }
    if (call->id)
        return push_piece(call, command);
    call->id = calls_add(&server->calls, call);
    if (!call->id) {
        arena_destroy(command->arena);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for another call");
    }
    command->reply = call->id;
    command->deadline_us = call_deadline_us(call, server->options.clock);
    if (!ring_push(server->options.inbox, &command)) {
        arena_destroy(command->arena);
        calls_remove(&server->calls, call->id);
        return queue_full();
    }
    call_submitted(call);
    return STATUS_OK;
}

bool request_session(struct call *call)
{
    struct server *server = call->server;
    struct arena *arena = NULL;
    struct command *command;

    if (arena_create(2 * sizeof(*command), &arena))
        return false;
    command = arena_take(arena, sizeof(*command));
    if (command) {
        command->kind = COMMAND_GET_SESSION;
        command->reply = call->id;
        command->arena = arena;
        memcpy(command->tenant, call->note.tenant, sizeof(command->tenant));
        memcpy(command->target.session, call->note.session,
               sizeof(command->target.session));
    }
    if (command && ring_push(server->options.inbox, &command))
        return true;
    arena_destroy(arena);
    (void)queue_full();
    return false;
}

int request_health(const struct server *server, const char *service)
{
    static const char *const names[] = {"", "godwit.v1.GenerationService",
                                        "godwit.v1.SessionService",
                                        "godwit.v1.AdminService"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(service, names[i]) == 0)
            return atomic_load(&server->is_draining) ? (int)NOT_SERVING
                                                     : (int)SERVING;
    return -1;
}

static enum status draining(void)
{
    status_fail(STATUS_UNAVAILABLE, "this node is shutting down");
    status_because("NODE_DRAINING");
    return status_retry(SERVER_DRAIN_RETRY_MS);
}

static enum status watch(struct call *call, int serving)
{
    struct packed packed = {0};
    enum status st;

    /* In the table before the state is read: a drain sees it, or it sees the
       drain. */
    call->id = calls_add(&call->server->calls, call);
    if (!call->id)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for another call");
    st = reply_health(serving < 0 ? (int)SERVICE_UNKNOWN : serving, &packed);
    if (!st)
        call_send(call, packed, false);
    call_submitted(call);
    if (!st && atomic_load(&call->server->is_draining))
        st = draining();
    return st;
}

static enum status answer_health(struct call *call, const void *bytes,
                                 size_t n_bytes)
{
    struct packed packed = {0};
    ProtobufCMessage *message = NULL;
    int serving;
    enum status st =
        wire_unpack(&grpc__health__v1__health_check_request__descriptor, bytes,
                    n_bytes, HEALTH_REQUEST_BYTES, &message);

    if (st)
        return st;
    serving = request_health(
        call->server,
        ((Grpc__Health__V1__HealthCheckRequest *)message)->service);
    wire_free(message);
    if (call->method->kind == METHOD_HEALTH_WATCH)
        return watch(call, serving);
    if (serving < 0) {
        status_fail(STATUS_NOT_FOUND, "no such service on this node");
        status_because("SERVICE_NOT_FOUND");
        return status_field("service");
    }
    st = reply_health(serving, &packed);
    if (!st)
        call_send(call, packed, true);
    return st;
}

static enum status answer_reflection(struct call *call, const void *bytes,
                                     size_t n_bytes)
{
    struct packed packed = {0};
    enum status st;

    if (!call->server->reflection)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "reflection is off on this node");
    if (!bytes) {
        call_send(call, packed, true);
        return STATUS_OK;
    }
    st = reflection_answer(call->server->reflection, bytes, n_bytes, &packed);
    if (st)
        return st;
    call_send(call, packed, false);
    call_receive(call);
    return STATUS_OK;
}

static enum status answer(struct call *call, const void *bytes, size_t n_bytes)
{
    const struct method *method = call->method;
    struct packed packed = {0};
    enum status st;

    if (method->kind == METHOD_UNIMPLEMENTED) {
        status_fail(STATUS_UNIMPLEMENTED, "%s %s; not in this build",
                    strrchr(method->path, '/') + 1, method->missing);
        return status_because("NOT_IN_THIS_BUILD");
    }
    if (method->kind == METHOD_REFLECTION)
        return answer_reflection(call, bytes, n_bytes);
    if (!bytes && !(method->kind == METHOD_IMPORT_SESSION && call->id))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "the call ended before its request message");
    if (method->kind == METHOD_HEALTH_CHECK ||
        method->kind == METHOD_HEALTH_WATCH)
        return answer_health(call, bytes, n_bytes);
    if (atomic_load(&call->server->is_draining))
        return draining();
    if (method_is_engine(method->kind))
        return submit(call, bytes, n_bytes);
    st = convert_local(&call->server->convert, method->kind, bytes, n_bytes,
                       &packed);
    if (!st)
        call_send(call, packed, true);
    return st;
}

void request_arrived(struct call *call, const void *bytes, size_t n_bytes)
{
    if (answer(call, bytes, n_bytes))
        call_fail(call, status_cause());
}
