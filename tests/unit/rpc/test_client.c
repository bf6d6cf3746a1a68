/*
 * The oracle is a server in another language (client_peer.py, Python's grpcio):
 * it counts messages, encodes its error details by hand, and says whether it
 * saw the cancellation.
 */
#include "rpc/client.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

struct peer {
    pid_t pid;
    int keep; /* closing it ends the peer */
    unsigned port;
};

static void peer_start(struct peer *peer, const char *tls_dir)
{
    char *argv[] = {"/usr/bin/python3", "tests/unit/rpc/client_peer.py",
                    tls_dir ? "--tls" : NULL, (char *)tls_dir, NULL};
    posix_spawn_file_actions_t files;
    int in[2], out[2];
    FILE *said;

    cr_assert(pipe(in) == 0 && pipe(out) == 0);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, in[0], 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    posix_spawn_file_actions_addclose(&files, in[1]);
    posix_spawn_file_actions_addclose(&files, out[0]);
    cr_assert(posix_spawn(&peer->pid, argv[0], &files, NULL, argv, environ) ==
              0);
    posix_spawn_file_actions_destroy(&files);
    close(in[0]);
    close(out[1]);
    peer->keep = in[1];
    said = fdopen(out[0], "r");
    cr_assert(fscanf(said, "%u", &peer->port) == 1, "the peer did not start");
    fclose(said);
}

static void peer_stop(struct peer *peer)
{
    close(peer->keep);
    waitpid(peer->pid, NULL, 0);
}

static struct client *connect_to(unsigned port, uint32_t timeout_ms)
{
    char endpoint[32];
    struct client_options options = {.endpoint = endpoint,
                                     .timeout_ms = timeout_ms};
    struct client *client = NULL;

    snprintf(endpoint, sizeof(endpoint), "127.0.0.1:%u", port);
    cr_assert(client_create(&options, &client) == STATUS_OK);
    client_silence();
    return client;
}

/* What `each` was given: the last message, how many, and when to stop. */
struct seen {
    char *last;
    size_t n_last, n, stop_at;
    bool is_in_order;
};

static enum status see(void *context, const void *message, size_t n_bytes)
{
    struct seen *seen = context;
    char expected[24];

    snprintf(expected, sizeof(expected), "%zu", seen->n);
    seen->is_in_order = (seen->n == 0 || seen->is_in_order) &&
                        n_bytes == strlen(expected) &&
                        memcmp(message, expected, n_bytes) == 0;
    free(seen->last);
    seen->last = malloc(n_bytes + 1);
    memcpy(seen->last, message, n_bytes);
    seen->last[n_bytes] = 0;
    seen->n_last = n_bytes;
    if (++seen->n == seen->stop_at)
        return status_fail(STATUS_DATA_LOSS, "seen enough");
    return STATUS_OK;
}

Test(client, echoes_any_size)
{
    static const size_t size[] = {0, 1, 1000, 5u << 20};
    struct peer peer;
    struct client *client;

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 10000);
    for (size_t i = 0; i < sizeof(size) / sizeof(size[0]); i++) {
        char *bytes = malloc(size[i] + 1);
        struct seen seen = {0};

        for (size_t k = 0; k < size[i]; k++)
            bytes[k] = (char)(k * 7 + i);
        cr_expect(client_call(client, "/test.Peer/Echo", bytes, size[i], see,
                              &seen) == STATUS_OK);
        cr_expect(seen.n == 1 && seen.n_last == size[i] &&
                  memcmp(seen.last, bytes, size[i]) == 0);
        free(seen.last);
        free(bytes);
    }
    cr_expect(client_call(client, "/test.Peer/Echo", "x", 1, NULL, NULL) ==
              STATUS_OK);
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, passes_a_stream_in_order)
{
    struct peer peer;
    struct client *client;
    struct seen seen = {0}, none = {0};

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 10000);
    cr_expect(client_call(client, "/test.Peer/Count", "1000", 4, see, &seen) ==
              STATUS_OK);
    cr_expect(seen.n == 1000 && seen.is_in_order);
    cr_expect(client_call(client, "/test.Peer/Count", "0", 1, see, &none) ==
              STATUS_OK);
    cr_expect(none.n == 0);
    free(seen.last);
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, takes_code_reason_field_and_retry_from_the_server)
{
    struct peer peer;
    struct client *client;
    const struct cause *cause = status_cause();

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 10000);
    cr_expect(client_call(client, "/test.Peer/Fail", "", 0, NULL, NULL) ==
              STATUS_RESOURCE_EXHAUSTED);
    cr_expect(cause->code == STATUS_RESOURCE_EXHAUSTED);
    cr_expect_str_eq(cause->text, "queue is full");
    cr_expect_str_eq(cause->reason, "QUEUE_FULL");
    cr_expect_str_eq(cause->field, "sampling_params.top_p");
    cr_expect(cause->retry_ms == 1500, "%u", cause->retry_ms);

    cr_expect(client_call(client, "/test.Peer/BrokenDetails", "", 0, NULL,
                          NULL) == STATUS_NOT_FOUND);
    cr_expect_str_eq(cause->text, "no such thing");
    cr_expect_str_eq(cause->reason, "");

    cr_expect(client_call(client, "/test.Peer/Unknown", "", 0, NULL, NULL) ==
              STATUS_UNIMPLEMENTED);
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, a_callers_stop_cancels_the_call)
{
    struct peer peer;
    struct client *client;
    struct seen seen = {.stop_at = 5}, answer = {0};

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 20000);
    cr_expect(client_call(client, "/test.Peer/Forever", "", 0, see, &seen) ==
              STATUS_DATA_LOSS);
    cr_expect_str_eq(status_reason(), "seen enough");
    cr_expect(seen.n == 5, "messages after the stop are dropped");
    cr_expect(client_call(client, "/test.Peer/AwaitCancel", "", 0, see,
                          &answer) == STATUS_OK);
    cr_expect_str_eq(answer.last, "yes");
    free(seen.last);
    free(answer.last);
    client_destroy(client);
    peer_stop(&peer);
}

static void *cancel_soon(void *client)
{
    client_cancel(client);
    return NULL;
}

static enum status cancel_from_elsewhere(void *context, const void *message,
                                         size_t n_bytes)
{
    pthread_t thread;

    (void)message, (void)n_bytes;
    cr_assert(pthread_create(&thread, NULL, cancel_soon, context) == 0);
    pthread_join(thread, NULL);
    return STATUS_OK;
}

Test(client, another_thread_cancels_for_good)
{
    struct peer peer;
    struct client *client, *other;
    struct seen answer = {0};

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 20000);
    other = connect_to(peer.port, 20000);
    cr_expect(client_call(client, "/test.Peer/Forever", "", 0,
                          cancel_from_elsewhere, client) == STATUS_CANCELLED);
    cr_expect(client_call(client, "/test.Peer/Echo", "", 0, NULL, NULL) ==
              STATUS_CANCELLED);
    cr_expect(client_call(other, "/test.Peer/AwaitCancel", "", 0, see,
                          &answer) == STATUS_OK);
    cr_expect_str_eq(answer.last, "yes");
    free(answer.last);
    client_destroy(client);
    client_destroy(other);
    peer_stop(&peer);
}

/* One call of many, and how it ended. */
struct call {
    struct seen seen;
    struct exchange *exchange;
    enum status status;
    struct cause cause;
    unsigned n_end;
};

static enum status see_call(void *context, const void *message, size_t n_bytes)
{
    return see(&((struct call *)context)->seen, message, n_bytes);
}

static void end_call(void *context, enum status st)
{
    struct call *call = context;

    call->status = st;
    call->cause = *status_cause();
    call->n_end++;
}

static void begin(struct client *client, struct call *call, const char *method,
                  const char *request, uint32_t timeout_ms)
{
    struct client_request asked = {.method = method,
                                   .bytes = request,
                                   .n_bytes = strlen(request),
                                   .timeout_ms = timeout_ms,
                                   .each = see_call,
                                   .end = end_call,
                                   .context = call};

    cr_assert(exchange_begin(client, &asked, &call->exchange) == STATUS_OK);
}

#define N_CALL 20u

Test(client, many_calls_run_at_a_time_and_each_ends_once)
{
    struct peer peer;
    struct client *client;
    struct call call[N_CALL] = {0}, slow = {0}, refused = {0}, endless = {0};
    unsigned n_over = 0, n_event = 0;

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 20000);
    cr_expect(!client_poll(client, 0), "nothing can happen without a call");
    begin(client, &slow, "/test.Peer/Silent", "", 300);
    begin(client, &endless, "/test.Peer/Forever", "", 0);
    begin(client, &refused, "/test.Peer/Fail", "", 0);
    for (unsigned i = 0; i < N_CALL; i++) {
        char text[8];

        snprintf(text, sizeof(text), "%u", i * 10);
        begin(client, &call[i], "/test.Peer/Count", text, 0);
    }
    for (; n_over < N_CALL + 2 && n_event < 100000; n_event++) {
        cr_assert(client_poll(client, 20000000));
        n_over = slow.n_end + refused.n_end;
        for (unsigned i = 0; i < N_CALL; i++)
            n_over += call[i].n_end;
    }
    cr_expect(endless.n_end == 0, "one that goes on holds up no other");
    exchange_cancel(endless.exchange);
    for (n_event = 0; endless.n_end == 0 && n_event < 100000; n_event++)
        cr_assert(client_poll(client, 20000000));
    cr_expect(!client_poll(client, 0), "nothing is left");

    for (unsigned i = 0; i < N_CALL; i++) {
        cr_expect(call[i].n_end == 1 && call[i].status == STATUS_OK);
        cr_expect(call[i].seen.n == i * 10 &&
                  (i == 0 || call[i].seen.is_in_order));
        free(call[i].seen.last);
    }
    cr_expect(slow.n_end == 1 && slow.status == STATUS_DEADLINE_EXCEEDED);
    cr_expect(strstr(slow.cause.text, "within 300 ms") != NULL, "%s",
              slow.cause.text);
    cr_expect(refused.n_end == 1 && refused.cause.retry_ms == 1500);
    cr_expect(endless.n_end == 1 && endless.status == STATUS_CANCELLED);
    free(endless.seen.last);
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, cancelling_it_ends_all_its_calls)
{
    struct peer peer;
    struct client *client;
    struct call call[3] = {0};
    unsigned n_over = 0;

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 20000);
    for (unsigned i = 0; i < 3; i++)
        begin(client, &call[i], "/test.Peer/Forever", "", 0);
    cr_expect(!client_is_cancelled(client));
    client_cancel(client);
    cr_expect(client_is_cancelled(client));
    for (unsigned n_event = 0; n_over < 3 && n_event < 100000; n_event++) {
        cr_assert(client_poll(client, 20000000));
        n_over = call[0].n_end + call[1].n_end + call[2].n_end;
    }
    for (unsigned i = 0; i < 3; i++) {
        cr_expect(call[i].n_end == 1 && call[i].status == STATUS_CANCELLED);
        free(call[i].seen.last);
    }
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, its_deadline_ends_a_silent_call)
{
    struct peer peer;
    struct client *client;

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 300);
    cr_expect(client_call(client, "/test.Peer/Silent", "", 0, NULL, NULL) ==
              STATUS_DEADLINE_EXCEEDED);
    cr_expect(strstr(status_reason(), "within 300 ms") != NULL, "%s",
              status_reason());
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, says_whether_a_server_was_there)
{
    struct peer peer;
    struct client *client;
    struct seen seen = {0};

    peer_start(&peer, NULL);
    client = connect_to(peer.port, 10000);
    cr_expect(client_call(client, "/test.Peer/Die", "", 0, see, &seen) ==
              STATUS_UNAVAILABLE);
    cr_expect_str_eq(status_cause()->reason, "CONNECTION_LOST");
    cr_expect_str_eq(seen.last, "last words");
    cr_expect(client_call(client, "/test.Peer/Echo", "", 0, NULL, NULL) ==
              STATUS_UNAVAILABLE);
    cr_expect_str_eq(status_cause()->reason, "NO_SERVER");
    cr_expect(strstr(status_reason(), "no server at 127.0.0.1:") != NULL);
    free(seen.last);
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, ignores_a_proxy_of_the_environment)
{
    struct peer peer;
    struct client *client;

    setenv("http_proxy", "http://127.0.0.1:1", 1);
    setenv("grpc_proxy", "http://127.0.0.1:1", 1);
    peer_start(&peer, NULL);
    client = connect_to(peer.port, 10000);
    cr_expect(client_call(client, "/test.Peer/Echo", "", 0, NULL, NULL) ==
              STATUS_OK);
    client_destroy(client);
    peer_stop(&peer);
}

Test(client, refuses_what_is_no_endpoint)
{
    static const char *const bad[] = {NULL,      "",
                                      "host",    "host:",
                                      ":1",      "h:0",
                                      "h:65536", "h:1x",
                                      "h:-1",    "http://h:1",
                                      "h 1:2",   "unix:",
                                      "h:+1",    "h:99999999999999999999"};
    struct client *client = (struct client *)&bad;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct client_options options = {.endpoint = bad[i]};

        cr_expect(client_create(&options, &client) == STATUS_INVALID_ARGUMENT,
                  "%s", bad[i] ? bad[i] : "NULL");
        cr_expect(client == (struct client *)&bad, "out is untouched");
    }
    client_destroy(NULL);
}

static void shell(const char *dir, const char *script)
{
    char command[2048];

    snprintf(command, sizeof(command), "cd %s && { %s ; } >/dev/null 2>&1", dir,
             script);
    cr_assert(system(command) == 0, "%s", command);
}

static const char make_certificates[] =
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    "-keyout ca.key -out ca.pem -subj /CN=ca -days 2 && "
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    "-keyout x.key -out foreign.pem -subj /CN=foreign -days 2 && "
    "printf 'subjectAltName=IP:127.0.0.1\n' > san && "
    "for who in server client; do "
    "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    "-keyout $who.key -out $who.csr -subj /CN=$who && "
    "openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial "
    "-extfile san -days 2 -out $who.pem || exit 1; done; echo no > empty.pem";

/* Which files are given (by name in the directory), and what a call returns. */
struct tls_case {
    const char *ca, *cert, *key;
    enum status created, called;
};

static const struct tls_case tls_cases[] = {
    {"ca.pem", "client.pem", "client.key", STATUS_OK, STATUS_OK},
    {"foreign.pem", "client.pem", "client.key", STATUS_OK, STATUS_UNAVAILABLE},
    {"ca.pem", "", "", STATUS_OK, STATUS_UNAVAILABLE},
    {"", "", "", STATUS_OK, STATUS_UNAVAILABLE},
    {"ca.pem", "client.pem", "", STATUS_INVALID_ARGUMENT, STATUS_OK},
    {"ca.pem", "", "client.key", STATUS_INVALID_ARGUMENT, STATUS_OK},
    {"none.pem", "", "", STATUS_NOT_FOUND, STATUS_OK},
    {"empty.pem", "", "", STATUS_INVALID_ARGUMENT, STATUS_OK},
    {".", "", "", STATUS_INVALID_ARGUMENT, STATUS_OK},
};

static void try_tls(const struct tls_case *c, const char *dir, unsigned port)
{
    const char *name[3] = {c->ca, c->cert, c->key};
    char path[3][300], endpoint[32];
    struct client_options options = {.endpoint = endpoint,
                                     .tls_ca = path[0],
                                     .tls_cert = path[1],
                                     .tls_key = path[2],
                                     .timeout_ms = 5000};
    struct client *client = NULL;
    enum status st;

    snprintf(endpoint, sizeof(endpoint), "127.0.0.1:%u", port);
    for (int i = 0; i < 3; i++)
        snprintf(path[i], sizeof(path[i]), "%s%s%s", name[i][0] ? dir : "",
                 name[i][0] ? "/" : "", name[i]);
    st = client_create(&options, &client);
    cr_expect(st == c->created, "%s %s %s: %s", c->ca, c->cert, c->key,
              status_name(st));
    if (st)
        return;
    client_silence();
    st = client_call(client, "/test.Peer/Echo", "hi", 2, NULL, NULL);
    cr_expect(st == c->called, "%s %s %s: %s", c->ca, c->cert, c->key,
              status_name(st));
    client_destroy(client);
}

Test(client, tls_needs_the_right_files)
{
    char dir[] = "/tmp/test_client_XXXXXX";
    struct peer peer;

    cr_assert(mkdtemp(dir) != NULL);
    shell(dir, make_certificates);
    peer_start(&peer, dir);
    for (size_t i = 0; i < sizeof(tls_cases) / sizeof(tls_cases[0]); i++)
        try_tls(&tls_cases[i], dir, peer.port);
    peer_stop(&peer);
    shell(dir, "rm -f ./*.pem ./*.key ./*.csr ./*.srl san");
    cr_expect(rmdir(dir) == 0);
}
