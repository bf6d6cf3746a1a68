/*
 * godwitd serve: one node behind gRPC until SIGTERM or SIGINT. The main thread
 * only waits for a signal; everything else happens on the node's and the
 * server's threads.
 */
#include "base/log.h"
#include "base/settings.h"
#include "node/commands.h"
#include "node/node.h"
#include "node/subcommand.h"
#include "rpc/server.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#define REPLY_BYTES (256u << 10) /* queue of one call before it is paused */
#define MIB (1u << 20)

struct serve_values {
    struct node_options node;
    const char *config, *listen, *tls_cert, *tls_key, *tls_ca, *log_level;
    uint64_t message_mib, max_streams, grace_s;
    bool no_reflection, has_operators;
};

#define FIELD(member) offsetof(struct serve_values, member)

static const struct setting ROWS[] = {
    {"model", SETTING_TEXT, NULL, 0, 0, NULL, "DIR",
     "model in the Hugging Face layout", FIELD(node.model)},
    {"data", SETTING_TEXT, "./data", 0, 0, NULL, "DIR",
     "where sessions are kept", FIELD(node.data)},
    {"listen", SETTING_TEXT, "127.0.0.1:50051", 0, 0, NULL, "HOST:PORT",
     "address for gRPC; port 0 picks a free one", FIELD(listen)},
    {"config", SETTING_TEXT, "", 0, 0, NULL, "FILE",
     "JSON object of these settings", FIELD(config)},
    {"name", SETTING_TEXT, "", 0, 0, NULL, "NAME",
     "this node's name; the host's if not given", FIELD(node.name)},
    {"threads", SETTING_NUMBER, "0", 0, POOL_THREAD_MAX, NULL, "threads",
     "kernel threads; 0 for one per processor", FIELD(node.n_thread)},
    SUBCOMMAND_MODEL_ROWS(FIELD(node.choice)),
    {"context", SETTING_NUMBER, "0", 0, CONFIG_CONTEXT_MAX, NULL, "tokens",
     "longest session; 0 for the model's own limit", FIELD(node.n_context)},
    {"session-memory", SETTING_NUMBER, "0", 0, 1u << 24, NULL, "MiB",
     "for sessions in memory; 0 for half of what is free",
     FIELD(node.session_mib)},
    {"kv-memory", SETTING_NUMBER, "0", 0, 1u << 24, NULL, "MiB",
     "instead of --session-memory: for sessions in memory and, a third or 24 "
     "MiB of it, what they need beside; those under a policy of bounded views "
     "leave most of their keys and values on disk",
     FIELD(node.kv_mib)},
    {"host-memory", SETTING_NUMBER, "4096", 0, 1u << 24, NULL, "MiB",
     "of pinned host memory, with a device: sessions that have no room there "
     "come back from it quickly; 0: they leave for the store at once",
     FIELD(node.host_mib)},
    {"state-memory", SETTING_NUMBER, "0", 0, 1u << 24, NULL, "MiB",
     "of --session-memory or --kv-memory, for states of fixed size and images "
     "of them that are being stored; 0: no limit of their own",
     FIELD(node.state_mib)},
    {"prefix-store", SETTING_NUMBER, "1024", 0, 1u << 24, NULL, "MiB",
     "on disk, for prompts whose session is not kept; 0: share no prefixes",
     FIELD(node.prefix_mib)},
    {"store-limit", SETTING_NUMBER, "0", 0, 1u << 30, NULL, "MiB",
     "of snapshots and K/V on disk: above, sessions that were not used for "
     "longest lose theirs and are computed again; 0: no limit",
     FIELD(node.store_mib)},
    {"tenant-sessions", SETTING_NUMBER, "0", 0, 100000000, NULL, "sessions",
     "of one tenant; 0: no limit", FIELD(node.tenant_sessions)},
    {"tenant-tokens", SETTING_NUMBER, "0", 0, 1e15, NULL, "tokens",
     "of all sessions of one tenant; 0: no limit", FIELD(node.tenant_tokens)},
    {"tenant-store", SETTING_NUMBER, "0", 0, 1u << 30, NULL, "MiB",
     "on disk of one tenant: above, its requests are refused; 0: no limit",
     FIELD(node.tenant_mib)},
    {"tenant-keys", SETTING_TEXT, "", 0, 0, NULL, "FILE",
     "keys to seal exported sessions with: lines of TENANT and 64 hex digits",
     FIELD(node.tenant_keys)},
    {"operators", SETTING_SWITCH, "false", 0, 0, NULL, "",
     "calls whose metadata godwit-tenant is * see the sessions of all tenants",
     FIELD(has_operators)},
    {"max-running", SETTING_NUMBER, "64", 1, 256, NULL, "requests",
     "in one batch", FIELD(node.max_running)},
    {"max-queue", SETTING_NUMBER, "256", 1, 65536, NULL, "requests",
     "waiting; more are refused with a time to retry", FIELD(node.max_queue)},
    {"max-wait", SETTING_NUMBER, "60", 0, 86400, NULL, "s",
     "predicted for the first token; beyond, a request is refused; 0: none",
     FIELD(node.max_wait_s)},
    {"first-token", SETTING_NUMBER, "1000", 1, 3600000, NULL, "ms",
     "target for the first token of a short prompt; long ones get more by what "
     "they take",
     FIELD(node.first_token_ms)},
    {"inter-token", SETTING_NUMBER, "0", 0, 60000, NULL, "ms",
     "between tokens of a reply to keep while prompts are computed; 0 for less "
     "than twice its pace alone",
     FIELD(node.inter_token_ms)},
    {"max-sessions", SETTING_NUMBER, "1000000", 1, 100000000, NULL, "sessions",
     "that exist", FIELD(node.max_sessions)},
    {"max-tokens", SETTING_NUMBER, "256", 1, CONFIG_CONTEXT_MAX, NULL, "tokens",
     "of a reply whose request does not say", FIELD(node.default_max_tokens)},
    {"durability", SETTING_CHOICE, "local", 0, 0, "local|none", "",
     "of new sessions: local syncs the journal before a token is sent",
     FIELD(node.durability)},
    {"max-message", SETTING_NUMBER, "16", 1, 1024, NULL, "MiB",
     "of one request", FIELD(message_mib)},
    {"max-streams", SETTING_NUMBER, "1024", 1, 1u << 20, NULL, "calls",
     "at once on one connection", FIELD(max_streams)},
    {"grace", SETTING_NUMBER, "10", 0, 3600, NULL, "s",
     "for running replies after SIGTERM", FIELD(grace_s)},
    {"tls-cert", SETTING_TEXT, "", 0, 0, NULL, "FILE",
     "server certificate chain, PEM", FIELD(tls_cert)},
    {"tls-key", SETTING_TEXT, "", 0, 0, NULL, "FILE", "its private key, PEM",
     FIELD(tls_key)},
    {"tls-ca", SETTING_TEXT, "", 0, 0, NULL, "FILE",
     "demand client certificates signed by this CA, PEM", FIELD(tls_ca)},
    {"no-reflection", SETTING_SWITCH, "false", 0, 0, NULL, "",
     "do not describe the API to clients that ask", FIELD(no_reflection)},
    {"log-level", SETTING_CHOICE, "info", 0, 0, "debug|info|warn|error", "",
     "lines to write to stderr", FIELD(log_level)},
};

static const struct settings SETTINGS = {
    .program = "godwitd serve",
    .about = "Serve a model over gRPC, with durable sessions.",
    .row = ROWS,
    .n_row = sizeof(ROWS) / sizeof(ROWS[0]),
};

/* gRPC's listener never recovers from running out of descriptors. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static const char *base_name(const char *path)
{
    size_t n = strlen(path);
    const char *slash;

    while (n > 1 && path[n - 1] == '/')
        n--;
    slash = memrchr(path, '/', n);
    return slash && slash[1] ? slash + 1 : path;
}

static enum status start_server(const struct serve_values *values,
                                struct node *node, struct server **out)
{
    const struct config *config = model_config(node_model(node));

    return server_start(
        &(struct server_options){
            .listen = values->listen,
            .tls_cert = values->tls_cert,
            .tls_key = values->tls_key,
            .tls_ca = values->tls_ca,
            .max_message_bytes = (uint32_t)values->message_mib * MIB,
            .max_streams = (uint32_t)values->max_streams,
            .reply_bytes = REPLY_BYTES,
            .has_reflection = !values->no_reflection,
            .has_operators = values->has_operators,
            .tokenizer = node_tokenizer(node),
            .model_name = base_name(values->node.model),
            .n_vocab = config->n_vocab,
            .n_context = model_n_context(node_model(node)),
            .durability = strcmp(values->node.durability, "none") == 0
                              ? DURABILITY_NONE
                              : DURABILITY_LOCAL,
            .has_sampling = config->has_sampling,
            .temperature = config->temperature,
            .top_p = config->top_p,
            .top_k = config->top_k,
            .clock = clock_real(),
            .metrics = node_metrics(node),
            .inbox = node_inbox(node),
            .outbox = node_outbox(node),
        },
        out);
}

static void wait_for_signal(const sigset_t *set)
{
    int number = 0;

    while (sigwait(set, &number) != 0)
        ;
    log_line(LOG_INFO, "node", "", "%s: finishing what runs, then stopping",
             number == SIGINT ? "interrupted" : "asked to stop");
}

static enum status serve(const struct serve_values *values,
                         const sigset_t *signals)
{
    const uint32_t grace_ms = (uint32_t)values->grace_s * 1000;
    struct node *node = NULL;
    struct server *server = NULL;
    enum status st = node_start(&values->node, &node);

    if (st)
        return st;
    st = start_server(values, node, &server);
    if (!st) {
        log_line(LOG_INFO, "node", "", "serving %s on port %u, sessions in %s",
                 base_name(values->node.model), server_port(server),
                 values->node.data);
        wait_for_signal(signals);
        server_drain(server);
    }
    node_drain(node, grace_ms);
    if (server)
        server_stop(server, grace_ms);
    node_destroy(node);
    return st;
}

int cmd_serve(int argc, char **argv)
{
    struct serve_values values = {0};
    struct settings_store *store = NULL;
    enum log_level level = LOG_INFO;
    sigset_t signals;
    enum status st;
    int n_word = 0, code;

    if (settings_wants_help(argc, argv)) {
        settings_help(&SETTINGS, stdout);
        return 0;
    }
    st =
        settings_read(&SETTINGS, argc, argv, NULL, 0, &n_word, &values, &store);
    if (!st)
        st = log_level_parse(values.log_level, &level);
    if (st) {
        fprintf(stderr, "godwitd: %s\n", status_reason());
        settings_release(store);
        return 2;
    }
    log_set_level(level);
    raise_descriptor_limit();
    /* Blocked before any thread starts, so that only sigwait() sees them. */
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN);

    st = serve(&values, &signals);
    code = st ? 1 : 0;
    if (st)
        log_line(LOG_ERROR, "node", "", "%s", status_reason());
    settings_release(store);
    return code;
}
