/*
 * The server's life and its edges, with rpc/client.h as the client. What a
 * client sees of each method is judged by check_server.py.
 */
#include "rpc/client.h"
#include "rpc/server.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/unit/rpc/fake_engine.h"
#include "tests/unit/rpc/wire_writer.h"

static struct fake_engine fake;
static struct writer w;

static struct server_options options_of(const char *listen)
{
    return (struct server_options){.listen = listen,
                                   .max_message_bytes = 1 << 20,
                                   .max_streams = 100,
                                   .reply_bytes = 1 << 16,
                                   .has_reflection = true,
                                   .model_name = "model",
                                   .n_vocab = 100,
                                   .n_context = 1000,
                                   .clock = clock_real(),
                                   .inbox = fake.inbox,
                                   .outbox = fake.outbox};
}

static struct server *started(void)
{
    struct server_options options = options_of("127.0.0.1:0");
    struct server *server = NULL;

    cr_assert_eq(server_start(&options, &server), STATUS_OK, "%s",
                 status_reason());
    cr_assert_neq(server_port(server), 0);
    return server;
}

static struct client *client_of(const struct server *server,
                                uint32_t timeout_ms)
{
    struct client_options options = {.timeout_ms = timeout_ms};
    struct client *client = NULL;
    char endpoint[32];

    (void)snprintf(endpoint, sizeof(endpoint), "127.0.0.1:%u",
                   server_port(server));
    options.endpoint = endpoint;
    cr_assert_eq(client_create(&options, &client), STATUS_OK);
    return client;
}

static enum status ignore(void *context, const void *message, size_t n_bytes)
{
    (void)message;
    (void)n_bytes;
    if (context)
        ++*(uint32_t *)context;
    return STATUS_OK;
}

#define GET_NODE "/godwit.v1.AdminService/GetNode"
#define GENERATE "/godwit.v1.GenerationService/Generate"

static void starts_not(const struct server_options *options, enum status code,
                       const char *text)
{
    struct server *server = (struct server *)0x1;

    cr_expect_eq(server_start(options, &server), code, "%s", status_reason());
    cr_expect(strstr(status_reason(), text) != NULL, "\"%s\" lacks \"%s\"",
              status_reason(), text);
    cr_expect_eq((uintptr_t)server, 0x1);
}

Test(server, what_keeps_it_from_starting_is_named, .timeout = 240)
{
    static const char *const bad[] = {"",
                                      "50051",
                                      ":50051",
                                      "host:",
                                      "host:x",
                                      "host:70000",
                                      "::1:500",
                                      "[]:1",
                                      "1.2.3.4.5:1",
                                      "nowhere.invalid:50051",
                                      "192.0.2.1:50051"};
    struct server_options options = options_of("127.0.0.1:0");
    struct server *server;
    char taken[32], port[8];

    fake_start(&fake, 64);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        options = options_of(bad[i]);
        starts_not(&options, STATUS_INVALID_ARGUMENT, "listen");
    }
    server = started();
    (void)snprintf(port, sizeof(port), "%u", server_port(server));
    (void)snprintf(taken, sizeof(taken), "127.0.0.1:%s", port);
    options = options_of(taken);
    starts_not(&options, STATUS_UNAVAILABLE, port);

    options = options_of("127.0.0.1:0");
    options.tls_cert = "/nonexistent/cert.pem";
    options.tls_key = "CMakeLists.txt";
    starts_not(&options, STATUS_NOT_FOUND, "/nonexistent/cert.pem");
    options.tls_cert = "CMakeLists.txt";
    starts_not(&options, STATUS_INVALID_ARGUMENT, "no PEM block");
    options.tls_cert = "assets";
    starts_not(&options, STATUS_INVALID_ARGUMENT, "assets");
    options.tls_cert = "";
    starts_not(&options, STATUS_INVALID_ARGUMENT, "without its certificate");
    options.tls_key = NULL;
    options.tls_ca = "CMakeLists.txt";
    starts_not(&options, STATUS_INVALID_ARGUMENT, "without a certificate");
    server_stop(server, 100);
    server_stop(NULL, 0);
    fake_drain(&fake);
    fake_release(&fake);
}

Test(server, it_starts_again_on_the_port_it_left, .timeout = 240)
{
    char listen[32] = "127.0.0.1:0";

    fake_start(&fake, 64);
    for (int i = 0; i < 10; i++) {
        struct server_options options = options_of(listen);
        struct server *server = NULL;
        struct client *client;

        cr_assert_eq(server_start(&options, &server), STATUS_OK, "%s",
                     status_reason());
        client = client_of(server, 5000);
        cr_expect_eq(client_call(client, GET_NODE, "", 0, ignore, NULL),
                     STATUS_OK, "%s", status_reason());
        (void)snprintf(listen, sizeof(listen), "127.0.0.1:%u",
                       server_port(server));
        server_stop(server, 1000);
        cr_expect_eq(client_call(client, GET_NODE, "", 0, ignore, NULL),
                     STATUS_UNAVAILABLE);
        client_destroy(client);
    }
    fake_drain(&fake);
    fake_release(&fake);
}

Test(server, a_full_inbox_is_said_with_a_time_to_retry, .timeout = 240)
{
    struct command *nothing = NULL;
    struct server *server;
    struct client *client;

    cr_assert_eq(ring_create(4, sizeof(struct command *), &fake.inbox),
                 STATUS_OK);
    cr_assert_eq(ring_create(64, sizeof(struct event *), &fake.outbox),
                 STATUS_OK);
    while (ring_push(fake.inbox, &nothing))
        ;
    server = started();
    client = client_of(server, 5000);
    cr_expect_eq(client_call(client, GET_NODE, "", 0, ignore, NULL),
                 STATUS_RESOURCE_EXHAUSTED);
    cr_expect_str_eq(status_cause()->reason, "QUEUE_FULL");
    cr_expect_eq(status_cause()->retry_ms, 500);
    client_destroy(client);
    server_stop(server, 100);
    while (ring_pop(fake.inbox, &nothing))
        ;
    fake_release(&fake);
}

static void *call_silent(void *client)
{
    enum status st;

    st = client_call(client, GENERATE, w.byte, w.n, ignore, NULL);
    return (void *)(uintptr_t)st;
}

static struct command *next_command(void)
{
    struct command *command = NULL;

    while (!ring_pop(fake.inbox, &command))
        ring_wait(fake.inbox, 100);
    return command;
}

/* The engine must hear of every reader that is gone, however full it is. */
Test(server, a_detach_that_finds_no_room_comes_later, .timeout = 240)
{
    struct command *nothing = NULL, *command;
    struct server *server;
    struct client *client;
    pthread_t thread;
    uint64_t reply;
    void *result;

    cr_assert_eq(ring_create(4, sizeof(struct command *), &fake.inbox),
                 STATUS_OK);
    cr_assert_eq(ring_create(64, sizeof(struct event *), &fake.outbox),
                 STATUS_OK);
    server = started();
    client = client_of(server, 300);
    write_bytes(&w, 4, "\x12\x01\x05", 3);
    cr_assert_eq(pthread_create(&thread, NULL, call_silent, client), 0);
    command = next_command();
    cr_assert_eq(command->kind, COMMAND_GENERATE);
    cr_expect_neq(command->deadline_us, 0);
    reply = command->reply;
    arena_destroy(command->arena);
    while (ring_push(fake.inbox, &nothing))
        ;
    pthread_join(thread, &result);
    cr_expect_eq((enum status)(uintptr_t)result, STATUS_DEADLINE_EXCEEDED);
    do
        command = next_command();
    while (!command);
    cr_expect_eq(command->kind, COMMAND_DETACH);
    cr_expect_eq(command->subject, reply);
    arena_destroy(command->arena);
    client_destroy(client);
    server_stop(server, 100);
    fake_release(&fake);
}

Test(server, an_event_for_nobody_is_dropped, .timeout = 240)
{
    struct server *server;
    struct client *client;
    uint32_t n_message = 0;

    fake_start(&fake, 64);
    server = started();
    client = client_of(server, 5000);
    for (uint64_t reply = 0; reply < 100; reply += 33) {
        struct event *event = event_create(EVENT_TOKENS, reply, 0, NULL);
        while (!ring_push(fake.outbox, &event))
            ;
    }
    cr_expect_eq(client_call(client, GET_NODE, "", 0, ignore, &n_message),
                 STATUS_OK);
    cr_expect_eq(n_message, 1);
    client_destroy(client);
    fake_drain(&fake);
    server_stop(server, 1000);
    fake_release(&fake);
}

Test(server, calls_are_counted_by_code, .timeout = 240)
{
    struct metrics *metrics = NULL;
    struct server_options options;
    struct server *server = NULL;
    struct client *client;
    char *text;

    cr_assert_eq(metrics_create(&metrics), STATUS_OK);
    fake_start(&fake, 64);
    options = options_of("127.0.0.1:0");
    options.metrics = metrics;
    cr_assert_eq(server_start(&options, &server), STATUS_OK);
    client = client_of(server, 5000);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(client_call(client, GET_NODE, "", 0, ignore, NULL),
                     STATUS_OK);
    cr_expect_eq(client_call(client, "/a.B/C", "", 0, ignore, NULL),
                 STATUS_UNIMPLEMENTED);
    text = metrics_format(metrics);
    cr_expect(strstr(text, "godwit_rpc_calls_total{code=\"ok\"} 3\n"), "%s",
              text);
    cr_expect(
        strstr(text, "godwit_rpc_calls_total{code=\"unimplemented\"} 1\n"),
        "%s", text);
    free(text);
    client_destroy(client);
    fake_drain(&fake);
    server_stop(server, 1000);
    fake_release(&fake);
    metrics_destroy(metrics);
}
