#include "rpc/server.h"

#include "base/log.h"
#include "base/thread.h"
#include "rpc/reply.h"
#include "rpc/server_parts.h"

#include <assert.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define ORDER_BEFORE(tag) __tsan_release(tag)
#define ORDER_AFTER(tag) __tsan_acquire(tag)
#else
#define ORDER_BEFORE(tag) ((void)(tag))
#define ORDER_AFTER(tag) ((void)(tag))
#endif

#define CLOSE_WAIT_MS 100u /* between looks at the calls that are open */
#define ARMED_CALLS 8u     /* that may arrive while others are being accepted */

/* gRPC's own complaints (refused handshakes, oversized messages). */
static void log_grpc(gpr_log_func_args *line)
{
    log_line(line->severity == GPR_LOG_SEVERITY_ERROR ? LOG_WARN : LOG_DEBUG,
             "grpc", "", "%s", line->message);
}

static void *queue_thread(void *argument)
{
    struct server *server = argument;

    thread_is_brief();
    for (;;) {
        grpc_event event = grpc_completion_queue_next(
            server->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        struct tag *tag = event.tag;

        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type != GRPC_OP_COMPLETE)
            continue;
        ORDER_AFTER(tag);
        tag->fn(tag->owner, event.success != 0);
    }
}

static void on_shutdown(void *owner, bool ok)
{
    struct server *server = owner;

    (void)ok;
    pthread_mutex_lock(&server->shutdown_lock);
    server->is_shut = true;
    pthread_cond_broadcast(&server->shutdown_changed);
    pthread_mutex_unlock(&server->shutdown_lock);
}

static void register_metrics(struct server *server)
{
    struct metrics *metrics = server->options.metrics;

    if (!metrics)
        return;
    for (unsigned code = 0; code < 17; code++) {
        char label[64];
        (void)snprintf(label, sizeof(label), "code=\"%s\"",
                       status_name((enum status)code));
        server->calls_by_code[code] =
            metrics_counter(metrics, "godwit_rpc_calls_total", label,
                            "calls that have ended, by status code");
    }
    server->slow_readers =
        metrics_counter(metrics, "godwit_rpc_slow_readers_total", "",
                        "calls ended because their client did not read");
    server->pauses =
        metrics_counter(metrics, "godwit_rpc_pauses_total", "",
                        "times that a reply was paused for its reader");
}

static enum status start_threads(struct server *server)
{
    for (uint32_t i = 0; i < SERVER_QUEUE_THREADS; i++) {
        if (pthread_create(&server->queue_thread[i], NULL, queue_thread,
                           server) != 0)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "cannot start a thread of the gRPC server");
        server->n_queue_thread++;
    }
    if (pthread_create(&server->reply_thread, NULL, reply_thread, server) != 0)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "cannot start the reply thread");
    server->has_reply_thread = true;
    for (uint32_t i = 0; i < ARMED_CALLS; i++)
        if (!call_arm(server))
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory to accept calls");
    return STATUS_OK;
}

static void init(struct server *server, const struct server_options *options)
{
    pthread_condattr_t monotonic;

    server->options = *options;
    server->convert = (struct convert_node){
        .tokenizer = options->tokenizer,
        .model_name = options->model_name,
        .n_vocab = options->n_vocab,
        .n_context = options->n_context,
        .has_sampling = options->has_sampling,
        .temperature = options->temperature,
        .top_p = options->top_p,
        .top_k = options->top_k,
        .durability = options->durability,
        .clock = options->clock,
    };
    server->shutdown = (struct tag){on_shutdown, server};
    pthread_mutex_init(&server->calls.lock, NULL);
    pthread_mutex_init(&server->backlog_lock, NULL);
    pthread_mutex_init(&server->shutdown_lock, NULL);
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->shutdown_changed, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
    register_metrics(server);
    gpr_set_log_function(log_grpc);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    grpc_init();
    server->queue = grpc_completion_queue_create_for_next(NULL);
}

enum status server_start(const struct server_options *options,
                         struct server **out)
{
    struct server *server = calloc(1, sizeof(*server));
    enum status st;

    if (!server)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the gRPC server");
    init(server, options);
    st = options->has_reflection ? reflection_create(&server->reflection)
                                 : STATUS_OK;
    if (!st)
        st = server_listen(server);
    if (!st) {
        grpc_server_start(server->grpc);
        server->is_started = true;
        st = start_threads(server);
    }
    if (st) {
        const struct cause cause = *status_cause();
        server_stop(server, 0);
        return status_adopt(&cause);
    }
    *out = server;
    return STATUS_OK;
}

uint16_t server_port(const struct server *server)
{
    return server->port;
}

/* End every reply, or the health watches alone, with the cause of a drain. */
static void end_calls(struct server *server, bool only_watches)
{
    uint64_t id = 0;
    struct call *call;

    while ((call = calls_next(&server->calls, id)) != NULL) {
        bool is_watch = call->method->kind == METHOD_HEALTH_WATCH;
        struct packed packed = {0};

        id = call->id;
        if (is_watch && !reply_health(request_health(server, ""), &packed))
            call_send(call, packed, false);
        if (is_watch || !only_watches) {
            status_fail(STATUS_UNAVAILABLE, "this node is shutting down");
            status_because("NODE_DRAINING");
            status_retry(SERVER_DRAIN_RETRY_MS);
            call_answered(call);
            call_fail(call, status_cause());
            calls_remove(&server->calls, id);
        }
        call_unref(call);
    }
}

void server_drain(struct server *server)
{
    if (atomic_exchange(&server->is_draining, true))
        return;
    end_calls(server, true);
}

/* True when gRPC has shut down within the time. */
static bool wait_for_shutdown(struct server *server, uint32_t wait_ms)
{
    struct timespec until;
    bool is_shut;
    int error = 0;

    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += wait_ms / 1000;
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&server->shutdown_lock);
    while (!server->is_shut && error == 0)
        error = pthread_cond_timedwait(&server->shutdown_changed,
                                       &server->shutdown_lock, &until);
    is_shut = server->is_shut;
    pthread_mutex_unlock(&server->shutdown_lock);
    return is_shut;
}

/* No call arrives any more, and those there are have ended. */
static void shut_grpc(struct server *server, uint32_t grace_ms)
{
    ORDER_BEFORE(&server->shutdown);
    grpc_server_shutdown_and_notify(server->grpc, server->queue,
                                    &server->shutdown);
    if (server->n_queue_thread == 0) {
        grpc_server_cancel_all_calls(server->grpc);
        return;
    }
    /* Connections close by themselves when their clients are quick; those
     * without a call are not waited for, and the others up to the grace. */
    do {
        const uint32_t wait_ms =
            grace_ms < CLOSE_WAIT_MS ? grace_ms : CLOSE_WAIT_MS;

        if (wait_for_shutdown(server, wait_ms))
            return;
        grace_ms -= wait_ms;
    } while (grace_ms > 0 && atomic_load(&server->n_open) > 0);
    if (atomic_load(&server->n_open) > 0)
        log_line(LOG_WARN, "rpc", "",
                 "clients have not read their replies in time, cancelling "
                 "their calls");
    grpc_server_cancel_all_calls(server->grpc);
    while (!wait_for_shutdown(server, 1000))
        ;
}

static void close_grpc(struct server *server, uint32_t grace_ms)
{
    if (server->is_started)
        shut_grpc(server, grace_ms);
    grpc_completion_queue_shutdown(server->queue);
    for (uint32_t i = 0; i < server->n_queue_thread; i++)
        pthread_join(server->queue_thread[i], NULL);
    if (server->n_queue_thread == 0)
        (void)queue_thread(server); /* empties it, so that it can end */
    end_calls(server, false);       /* that came while it closed */
    if (server->grpc)
        grpc_server_destroy(server->grpc);
    grpc_completion_queue_destroy(server->queue);
    grpc_shutdown_blocking();
}

void server_stop(struct server *server, uint32_t grace_ms)
{
    if (!server)
        return;
    server_drain(server);
    if (server->has_reply_thread) {
        atomic_store(&server->is_stopping, true);
        ring_kick(server->options.outbox);
        pthread_join(server->reply_thread, NULL);
    }
    end_calls(server, false);
    close_grpc(server, grace_ms);
    reflection_destroy(server->reflection);
    free(server->backlog);
    pthread_mutex_destroy(&server->calls.lock);
    pthread_mutex_destroy(&server->backlog_lock);
    pthread_mutex_destroy(&server->shutdown_lock);
    pthread_cond_destroy(&server->shutdown_changed);
    free(server);
}
