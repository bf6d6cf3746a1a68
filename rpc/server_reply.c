/*
 * The reply thread: events out of the engine's outbox become messages of the
 * calls they belong to. It is the only thread between engine and gRPC, because
 * a batch may run a system call inline (2 to 3 % take 0.1 to 1 ms).
 */
#include "base/log.h"
#include "base/thread.h"
#include "rpc/reply.h"
#include "rpc/server_parts.h"

#include <stdlib.h>
#include <string.h>

#define BACKLOG_RETRY_MS 2

struct entry {
    struct entry *next;
    uint64_t id;
    struct call *call; /* one reference */
};

uint64_t calls_add(struct calls *calls, struct call *call)
{
    struct entry *entry = calloc(1, sizeof(*entry));
    struct entry **bucket;

    if (!entry)
        return 0;
    call_ref(call);
    entry->call = call;
    pthread_mutex_lock(&calls->lock);
    entry->id = ++calls->last_id;
    bucket = &calls->bucket[entry->id % TABLE_BUCKETS];
    entry->next = *bucket;
    *bucket = entry;
    pthread_mutex_unlock(&calls->lock);
    return entry->id;
}

struct call *calls_find(struct calls *calls, uint64_t id)
{
    struct call *call = NULL;

    pthread_mutex_lock(&calls->lock);
    for (struct entry *entry = calls->bucket[id % TABLE_BUCKETS]; entry;
         entry = entry->next)
        if (entry->id == id) {
            call = entry->call;
            call_ref(call);
            break;
        }
    pthread_mutex_unlock(&calls->lock);
    return call;
}

void calls_remove(struct calls *calls, uint64_t id)
{
    struct entry **at, *found;

    pthread_mutex_lock(&calls->lock);
    at = &calls->bucket[id % TABLE_BUCKETS];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    found = *at;
    if (found)
        *at = found->next;
    pthread_mutex_unlock(&calls->lock);
    if (found)
        call_unref(found->call);
    free(found);
}

struct call *calls_next(struct calls *calls, uint64_t after)
{
    struct entry *best = NULL;
    struct call *call = NULL;

    pthread_mutex_lock(&calls->lock);
    for (size_t i = 0; i < TABLE_BUCKETS; i++)
        for (struct entry *entry = calls->bucket[i]; entry; entry = entry->next)
            if (entry->id > after && (!best || entry->id < best->id))
                best = entry;
    if (best) {
        call = best->call;
        call_ref(call);
    }
    pthread_mutex_unlock(&calls->lock);
    return call;
}

/* Progress that comes sooner than the client wants is left out. */
static bool is_too_soon(struct call *call, const struct event *event)
{
    const struct clock *clock = call->server->options.clock;
    uint64_t now;

    if (event->kind != EVENT_PROGRESS || call->note.progress_us == 0)
        return false;
    now = clock->now_us(clock);
    if (call->progress_us && now - call->progress_us < call->note.progress_us)
        return true;
    call->progress_us = now;
    return false;
}

static void send_event(struct call *call, const struct event *event)
{
    const struct reply_to to = {call->method->kind, &call->note,
                                call->server->options.model_name};
    struct packed packed = {0};

    if (reply_pack(&to, event, &packed))
        call_fail(call, status_cause());
    else if (packed.bytes || event->is_last)
        call_send(call, packed, event->is_last);
}

/* An append's tokens are committed even if its session cannot be read now. */
static void send_bare_session(struct call *call)
{
    struct event event = {.kind = EVENT_SESSION, .is_last = true};
    struct session_info *info = &event.session;

    memcpy(info->meta.name, call->note.session, sizeof(info->meta.name));
    info->meta.durability = call->server->options.durability;
    info->state = SESSION_IDLE;
    info->position = info->committed_position = call->position;
    send_event(call, &event);
}

/* True when the append is over: what ended it early is an error. */
static bool append_is_over(struct call *call, const struct event *event)
{
    enum finish_reason finish = event->complete.finish;

    call->position = event->complete.committed_position;
    if (finish == FINISH_DRAINED) {
        status_fail(STATUS_UNAVAILABLE,
                    "this node is shutting down; the log ends at token %lu",
                    (unsigned long)call->position);
        status_because("NODE_DRAINING");
        status_retry(SERVER_DRAIN_RETRY_MS);
    } else if (finish == FINISH_CANCELLED || finish == FINISH_ERROR) {
        status_fail(STATUS_CANCELLED,
                    "the append was cancelled; the log ends at token %lu",
                    (unsigned long)call->position);
    } else if (request_session(call)) {
        call->is_fetching = true;
        return false;
    } else {
        send_bare_session(call);
        return true;
    }
    call_fail(call, status_cause());
    return true;
}

static bool deliver_to(struct call *call, const struct event *event)
{
    if (call->method->kind == METHOD_APPEND_TOKENS && !call->is_fetching &&
        event->kind == EVENT_COMPLETE)
        return append_is_over(call, event);
    if (event->kind == EVENT_ERROR) {
        call_answered(call);
        if (call->is_fetching)
            send_bare_session(call);
        else
            call_fail(call, &event->cause);
        return true;
    }
    if (event->kind == EVENT_MORE) {
        call_receive(call);
        return false;
    }
    if (event->is_last)
        call_answered(call);
    if (!is_too_soon(call, event))
        send_event(call, event);
    return event->is_last;
}

static void deliver(struct server *server, const struct event *event)
{
    struct call *call = calls_find(&server->calls, event->reply);

    if (!call)
        return;
    if (deliver_to(call, event)) {
        call_answered(call);
        calls_remove(&server->calls, call->id);
    }
    call_unref(call);
}

void *reply_thread(void *argument)
{
    struct server *server = argument;
    struct event *event;

    thread_is_brief();
    for (;;) {
        /* Read before the outbox, so that what came before it is sent. */
        bool is_stopping = atomic_load(&server->is_stopping);
        bool has_backlog;

        while (ring_pop(server->options.outbox, &event)) {
            deliver(server, event);
            event_destroy(event);
        }
        has_backlog = request_flush(server);
        if (is_stopping)
            return NULL;
        ring_wait(server->options.outbox, has_backlog ? BACKLOG_RETRY_MS : -1);
    }
}
