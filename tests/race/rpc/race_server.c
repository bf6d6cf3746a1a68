/*
 * Clients that generate, break off, list and ask for the node, all at once,
 * while the server drains and stops under them: ThreadSanitizer is the judge,
 * and that every call ends. The engine is the unit tests' script.
 */
#include "rpc/client.h"
#include "rpc/server.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>

#include "tests/unit/rpc/fake_engine.h"

#define CLIENTS 4u
#define ROUNDS 40u
#define LIFE_MAX 3u

struct worker {
    pthread_t thread;
    uint16_t port;
    uint32_t number;
    uint32_t n_ok, n_other;
};

static enum status some(void *context, const void *message, size_t n_bytes)
{
    uint32_t *left = context;

    (void)message;
    (void)n_bytes;
    return left && (*left)-- == 0 ? STATUS_CANCELLED : STATUS_OK;
}

static enum status one_call(struct client *client, uint32_t i)
{
    /* Generate: input_ids [5]; max_tokens 40; session "large" every third. */
    static const char generate[] = "\x22\x03\x12\x01\x05\x32\x02\x40\x28";
    static const char large[] =
        "\x22\x03\x12\x01\x05\x32\x02\x40\x28\x0A\x0Esessions/large";
    uint32_t left = i % 7;

    switch (i % 5) {
    case 0:
        return client_call(client, "/godwit.v1.GenerationService/Generate",
                           generate, sizeof(generate) - 1, some, NULL);
    case 1: /* breaks off */
        return client_call(client, "/godwit.v1.GenerationService/Generate",
                           large, sizeof(large) - 1, some, &left);
    case 2:
        return client_call(client, "/godwit.v1.AdminService/GetNode", "", 0,
                           some, NULL);
    case 3:
        return client_call(client, "/godwit.v1.SessionService/ListSessions", "",
                           0, some, NULL);
    default: /* breaks off, if it is not ended first */
        left = 1;
        return client_call(client, "/grpc.health.v1.Health/Watch", "", 0, some,
                           &left);
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct client_options options = {.timeout_ms = 300};
    struct client *client = NULL;
    char endpoint[32];
    enum status st;

    (void)snprintf(endpoint, sizeof(endpoint), "127.0.0.1:%u", worker->port);
    options.endpoint = endpoint;
    st = client_create(&options, &client);
    assert(!st);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        st = one_call(client, i + worker->number);
        worker->n_ok += st == STATUS_OK;
        worker->n_other += st != STATUS_OK;
        if (st == STATUS_UNAVAILABLE)
            break;
    }
    client_destroy(client);
    return NULL;
}

static void live(uint32_t life)
{
    static struct fake_engine fake;
    struct worker worker[CLIENTS] = {0};
    struct server *server = NULL;
    struct server_options options = {.listen = "127.0.0.1:0",
                                     .max_message_bytes = 1 << 20,
                                     .max_streams = 100,
                                     .reply_bytes = 16 << 10,
                                     .has_reflection = true,
                                     .model_name = "model",
                                     .n_vocab = 100,
                                     .n_context = 1000,
                                     .clock = clock_real()};
    uint32_t n_ok = 0, n_other = 0;
    enum status st;

    /* A small inbox, so that controls also take the way of the backlog. */
    fake_start(&fake, life == 1 ? 4 : 256);
    options.inbox = fake.inbox;
    options.outbox = fake.outbox;
    st = server_start(&options, &server);
    assert(!st);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        worker[i].port = server_port(server);
        worker[i].number = i;
        if (pthread_create(&worker[i].thread, NULL, work, &worker[i]) != 0)
            abort();
    }
    if (life == LIFE_MAX - 1) { /* the last one goes down under its clients */
        while (atomic_load(&fake.n_command) < 20)
            (void)sched_yield();
    } else {
        for (uint32_t i = 0; i < CLIENTS; i++)
            pthread_join(worker[i].thread, NULL);
    }
    server_drain(server);
    fake_drain(&fake);
    server_stop(server, 500);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if (life == LIFE_MAX - 1)
            pthread_join(worker[i].thread, NULL);
        n_ok += worker[i].n_ok;
        n_other += worker[i].n_other;
    }
    printf("life %u: %u calls ok, %u broken off, %u detached, %u paused\n",
           life, n_ok, n_other, atomic_load(&fake.n_detach),
           atomic_load(&fake.n_pause));
    /* The last life may be over before a client breaks off. */
    if (n_ok == 0 || (life < LIFE_MAX - 1 && atomic_load(&fake.n_detach) == 0))
        abort();
    fake_release(&fake);
}

int main(void)
{
    for (uint32_t life = 0; life < LIFE_MAX; life++)
        live(life);
    return 0;
}
