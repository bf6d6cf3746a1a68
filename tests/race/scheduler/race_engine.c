/*
 * The engine on its own thread with both disk threads, two clients and a
 * listener, for the thread sanitizer: sessions are made, continued, paused,
 * detached, read and deleted at once, then the node drains. Every reply must
 * come to its end.
 */
#include "tests/unit/scheduler/fixture.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define N_CLIENT 2u
#define N_CALL 60u

struct shared {
    struct node *node;
    _Atomic uint32_t n_over;
    _Atomic bool is_over[REPLY_MAX];
    _Atomic bool is_drained;
};

static void *run_engine(void *argument)
{
    struct shared *shared = argument;

    engine_run(shared->node->engine);
    atomic_store(&shared->is_drained, true);
    ring_kick(shared->node->outbox);
    return NULL;
}

static void *listen_all(void *argument)
{
    struct shared *shared = argument;

    for (;;) {
        struct event *event;
        bool is_last = atomic_load(&shared->is_drained);
        while (ring_pop(shared->node->outbox, &event)) {
            if (event->is_last &&
                !atomic_exchange(&shared->is_over[event->reply], true))
                atomic_fetch_add(&shared->n_over, 1);
            event_destroy(event);
        }
        if (is_last)
            return NULL;
        ring_wait(shared->node->outbox, 50);
    }
}

static struct command *call(struct node *node, uint32_t client, uint32_t i,
                            uint64_t reply)
{
    struct command *command;
    char name[16], id[16];

    snprintf(name, sizeof(name), "s%u", (i * 5 + client) % 7);
    snprintf(id, sizeof(id), "c%u-%u", client, i);
    if (i % 9 == 7) {
        command = command_make(COMMAND_READ_TOKENS, reply);
        snprintf(command->target.session, SESSION_NAME_SIZE, "%s", name);
    } else if (i % 13 == 12) {
        command = command_make(COMMAND_DELETE_SESSION, reply);
        snprintf(command->target.session, SESSION_NAME_SIZE, "%s", name);
    } else {
        command = generate(node, name, id, 1 + i * 7 % 90, i);
        command->reply = reply;
    }
    return command;
}

struct client {
    struct shared *shared;
    uint32_t number;
};

static void *run_client(void *argument)
{
    const struct client *client = argument;
    struct node *node = client->shared->node;

    for (uint32_t i = 0; i < N_CALL; i++) {
        uint64_t reply = 1 + client->number * N_CALL + i;
        /* generate() counts replies in the node, which is not shared: each
         * client has a copy of what it reads. */
        struct node mine = {.model = node->model};
        node_send(node, call(&mine, client->number, i, reply));
        if (i % 5 == 1)
            node_subject(node, COMMAND_PAUSE, reply);
        if (i % 5 == 2)
            node_subject(node, COMMAND_RESUME, reply - 1);
        while (i % 5 == 4 && !atomic_load(&client->shared->is_over[reply]))
            sched_yield(); /* let some run to their end before the drain */
    }
    return NULL;
}

int main(void)
{
    struct node *node = node_create(NULL);
    struct shared *shared = calloc(1, sizeof(*shared));
    struct client client[N_CLIENT];
    pthread_t engine, listener, thread[N_CLIENT];
    struct command *drain;

    need(shared != NULL);
    shared->node = node;
    node->options.session_bytes = 3 * memory_bytes_for(node->model, NULL, 400);
    node_start(node);
    need(pthread_create(&engine, NULL, run_engine, shared) == 0);
    need(pthread_create(&listener, NULL, listen_all, shared) == 0);
    for (uint32_t i = 0; i < N_CLIENT; i++) {
        client[i] = (struct client){shared, i};
        need(pthread_create(&thread[i], NULL, run_client, &client[i]) == 0);
    }
    for (uint32_t i = 0; i < N_CLIENT; i++)
        need(pthread_join(thread[i], NULL) == 0);
    for (uint32_t i = 0; i < N_CLIENT * N_CALL; i++)
        node_subject(node, COMMAND_RESUME, i + 1);
    drain = command_make(COMMAND_DRAIN, 1 + N_CLIENT * N_CALL);
    node_send(node, drain);
    need(pthread_join(engine, NULL) == 0);
    journal_thread_stop(node->journal_thread);
    node->journal_thread = NULL;
    ring_kick(node->outbox);
    need(pthread_join(listener, NULL) == 0);
    struct event *event;
    while (ring_pop(node->outbox, &event)) {
        if (event->is_last &&
            !atomic_exchange(&shared->is_over[event->reply], true))
            atomic_fetch_add(&shared->n_over, 1);
        event_destroy(event);
    }
    need(atomic_load(&shared->n_over) == N_CLIENT * N_CALL + 1);
    node_destroy(node);
    free(shared);
    puts("every reply came to its end");
    return 0;
}
