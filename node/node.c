#include "node/node.h"

#include "base/arena.h"
#include "base/log.h"
#include "kernels/device.h"
#include "node/subcommand.h"
#include "state/snapshot.h"
#include "state/threads.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INBOX_CAPACITY 4096u
#define OUTBOX_CAPACITY 16384u
#define JOB_CAPACITY 256u
/* Steps that may run ahead of the journal: a sync of some milliseconds now and
 * then is no reason to stand still. */
#define COMMIT_CAPACITY 16u
/* A sync takes 0.1 ms of the CPUs that the kernels want: with one at each step
 * a reply of 0.25 ms a token lost a quarter of its pace. */
#define SYNC_EVERY_US 1000u
/* Reads of blocks at once. */
#define PAGER_THREADS 4u
/* The part of --kv-memory, up to some size, for what sessions need beside their
 * memory: buffers of the databases, images and prompts on their way, the index
 * of prefixes; and of the rest that which one session's blocks may have. */
#define BESIDE_SHARE 3u
#define BESIDE_BYTES_MAX ((size_t)24 << 20)
#define PAGES_SHARE 4u
/* Heaps of malloc() under --kv-memory: memory that is free in one serves no
 * thread of another, and there would be eight for each processor. */
#define HEAP_MAX 2
/* Larger pieces, as logs of tokens and tables, are maps of their own: they grow
 * in place and go back when they are free. By itself malloc() would take them
 * from a heap once the first of their size was freed, and leave holes there. */
#define MAP_BYTES (256 << 10)
#define DRAIN_ARENA_BYTES 65536u
/* Memory of sessions that is taken at start: a part of what they may have. */
#define WARM_PART 8u
#define WARM_BYTES_MAX ((size_t)256 << 20)
#define KEY_FILE_MAX (1u << 20)

struct node {
    struct model *model;
    struct tokenizer *tokenizer; /* NULL: the model came without one */
    struct pool *pool;
    struct metrics *metrics;
    struct store *journal_store, *bulk_store;
    struct journal *journal;
    struct snapshots *snapshots;
    struct keyring *keys; /* NULL: none */
    struct ring *inbox, *outbox, *done, *reports;
    struct journal_thread *journal_thread;
    struct store_thread *store_thread;
    struct pager *pager; /* NULL: all blocks of resident sessions are in RAM */
    struct engine *engine;
    pthread_t engine_thread;
    bool is_running; /* the engine's thread was started and not joined */
    char name[64];
};

struct ring *node_inbox(struct node *node)
{
    return node->inbox;
}

struct ring *node_outbox(struct node *node)
{
    return node->outbox;
}

const struct model *node_model(const struct node *node)
{
    return node->model;
}

const struct tokenizer *node_tokenizer(const struct node *node)
{
    return node->tokenizer;
}

struct metrics *node_metrics(struct node *node)
{
    return node->metrics;
}

const char *node_name(const struct node *node)
{
    return node->name;
}

static enum status load_model(struct node *node,
                              const struct node_options *options)
{
    struct model_options model = {.n_context = options->n_context};
    enum status st;

    st = model_options_find(&options->choice, &model);
    if (!st)
        st = options->synthetic
                 ? model_load_synthetic(options->synthetic, SYNTHETIC_SEED,
                                        &model, &node->model)
                 : model_load(options->model, &model, &node->model);
    if (!st)
        st = pool_create(subcommand_threads(options->n_thread), &node->pool);
    if (st || options->synthetic)
        return st;
    st = tokenizer_load(options->model, &node->tokenizer);
    if (st == STATUS_NOT_FOUND) {
        log_line(LOG_WARN, "node", "",
                 "%s, serving token ids only: text input is refused",
                 status_reason());
        return STATUS_OK;
    }
    return st;
}

/* A file that is no regular one, or that others may read, is no place for
 * keys. */
static enum status check_key_file(const char *path, FILE *file)
{
    struct stat st;

    if (fstat(fileno(file), &st) || !S_ISREG(st.st_mode) ||
        st.st_size > KEY_FILE_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s is no file of at most %u bytes", path,
                           KEY_FILE_MAX);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return status_fail(STATUS_PERMISSION_DENIED,
                           "keys in %s are open to others than its owner, "
                           "make it mode 0600",
                           path);
    return STATUS_OK;
}

static enum status read_keys(const char *path, struct keyring **out)
{
    FILE *file = fopen(path, "rbe");
    char *text = NULL;
    size_t n = 0;
    enum status st;

    if (!file)
        return status_fail(STATUS_NOT_FOUND, "cannot read keys from %s: %s",
                           path, strerror(errno));
    st = check_key_file(path, file);
    if (!st) {
        text = calloc(1, KEY_FILE_MAX + 1u);
        st = text ? STATUS_OK
                  : status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory");
    }
    if (!st) {
        n = fread(text, 1, KEY_FILE_MAX, file);
        st = keyring_parse(text, out);
        explicit_bzero(text, n);
    }
    free(text);
    (void)fclose(file);
    return st;
}

static enum status make_directory(const char *path)
{
    struct stat st;

    if (mkdir(path, 0700) == 0)
        return STATUS_OK;
    if (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return STATUS_OK;
    return status_fail(
        errno == EEXIST ? STATUS_FAILED_PRECONDITION : STATUS_PERMISSION_DENIED,
        "data directory %s cannot be made: %s", path,
        errno == EEXIST ? "a file has that name" : strerror(errno));
}

/*
 * Stored states are a cache of the journal: when their database is damaged it
 * is set aside whole, and what is asked for is computed again.
 */
static enum status open_bulk_store(const char *path, struct store **out)
{
    char aside[PATH_MAX];
    enum status st = store_open_rocksdb(path, STORE_BULK, out);
    int n;

    if (st != STATUS_DATA_LOSS)
        return st;
    n = snprintf(aside, sizeof(aside), "%s.damaged-%lu", path,
                 clock_real()->wall_ms(clock_real()));
    if (n < 0 || (size_t)n >= sizeof(aside))
        return st;
    log_line(LOG_WARN, "node", "",
             "stored states are damaged (%s), set aside as %s; recomputing "
             "from the journal",
             status_reason(), aside);
    if (rename(path, aside))
        return status_fail(STATUS_DATA_LOSS, "cannot move %s away: %s", path,
                           strerror(errno));
    return store_open_rocksdb(path, STORE_BULK, out);
}

static enum status open_stores(struct node *node, const char *data)
{
    char path[PATH_MAX];
    enum status st = make_directory(data);

    if (!st) {
        (void)snprintf(path, sizeof(path), "%s/journal", data);
        st = store_open_rocksdb(path, STORE_JOURNAL, &node->journal_store);
    }
    if (!st) {
        (void)snprintf(path, sizeof(path), "%s/store", data);
        st = open_bulk_store(path, &node->bulk_store);
    }
    if (!st)
        st = journal_open(node->journal_store, model_fingerprint(node->model),
                          &node->journal);
    if (!st)
        st = snapshots_open(node->bulk_store, node->model, &node->snapshots);
    return st;
}

static enum status start_threads(struct node *node)
{
    enum status st;

    st = ring_create(INBOX_CAPACITY, sizeof(struct command *), &node->inbox);
    if (!st)
        st =
            ring_create(OUTBOX_CAPACITY, sizeof(struct event *), &node->outbox);
    if (!st)
        st = ring_create(JOB_CAPACITY * 2, sizeof(struct store_job *),
                         &node->done);
    if (!st)
        st = ring_create(64, sizeof(struct journal_report), &node->reports);
    if (!st)
        st = journal_thread_start(
            &(struct journal_thread_options){
                .journal = node->journal,
                .outbox = node->outbox,
                .reports = node->reports,
                .engine = node->inbox,
                .sync_every_us = SYNC_EVERY_US,
                .drop = engine_drop_message,
            },
            COMMIT_CAPACITY, &node->journal_thread);
    if (!st)
        st = store_thread_start(
            &(struct store_thread_options){
                .journal = node->journal,
                .snapshots = node->snapshots,
                .done = node->done,
                .engine = node->inbox,
            },
            JOB_CAPACITY, &node->store_thread);
    return st;
}

/* Sessions on a device have their blocks there, all of them. */
static enum status start_pager(struct node *node)
{
    if (model_device(node->model))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--kv-memory is for the host's memory, the model is "
                           "on a device");
    return pager_start(&(struct pager_options){.store = node->bulk_store,
                                               .model = node->model,
                                               .engine = node->inbox,
                                               .n_thread = PAGER_THREADS},
                       &node->pager);
}

/* If nobody says it, of what is available now, since the weights are loaded
 * already: half of a host, which has other things to do, and most of a device.
 */
static size_t session_budget(const struct model *model,
                             const struct node_options *options)
{
    struct device *device = model_device(model);
    const size_t kv = (size_t)options->kv_mib << 20;

    if (kv)
        return kv - (kv / BESIDE_SHARE < BESIDE_BYTES_MAX ? kv / BESIDE_SHARE
                                                          : BESIDE_BYTES_MAX);
    if (options->session_mib)
        return (size_t)options->session_mib << 20;
    return device ? device_available(device) / 5 * 4
                  : device_available(NULL) / 2;
}

static void *run_engine(void *arg)
{
    struct node *node = arg;

    engine_run(node->engine);
    return NULL;
}

/* What sessions will want first. On a device it is taken as it is needed. */
static void warm_rooms(const struct model *model, size_t budget)
{
    if (!model_device(model))
        rooms_warm(model_rooms(model), budget / WARM_PART < WARM_BYTES_MAX
                                           ? budget / WARM_PART
                                           : WARM_BYTES_MAX);
}

static enum status start_engine(struct node *node,
                                const struct node_options *options)
{
    const size_t budget = session_budget(node->model, options);
    struct engine_options engine = {
        .model = node->model,
        .tokenizer = node->tokenizer,
        .pool = node->pool,
        .clock = clock_real(),
        .metrics = node->metrics,
        .node_name = node->name,
        .journal = node->journal,
        .journal_thread = node->journal_thread,
        .store_thread = node->store_thread,
        .inbox = node->inbox,
        .done = node->done,
        .reports = node->reports,
        .max_running = (uint32_t)options->max_running,
        .max_queue = (uint32_t)options->max_queue,
        .max_sessions = options->max_sessions,
        .session_bytes = budget,
        .state_bytes = (size_t)options->state_mib << 20,
        .pager = node->pager,
        .host_bytes = (size_t)options->host_mib << 20,
        .page_bytes = options->kv_mib ? budget / PAGES_SHARE : 0,
        .snapshots = node->snapshots,
        .keys = node->keys,
        .store_bytes = (size_t)options->store_mib << 20,
        .tenant_sessions = options->tenant_sessions,
        .tenant_tokens = options->tenant_tokens,
        .tenant_store = (size_t)options->tenant_mib << 20,
        .prefix_bytes = (size_t)options->prefix_mib << 20,
        .first_token_us = options->first_token_ms * 1000,
        .inter_token_us = options->inter_token_ms * 1000,
        .max_wait_us = options->max_wait_s * 1000000,
        .default_max_tokens = (uint32_t)options->default_max_tokens,
        .durability = strcmp(options->durability, "none") == 0
                          ? DURABILITY_NONE
                          : DURABILITY_LOCAL,
    };
    enum status st = engine_create(&engine, &node->engine);

    if (st)
        return st;
    warm_rooms(node->model, budget);
    if (pthread_create(&node->engine_thread, NULL, run_engine, node) != 0)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no thread for the engine");
    (void)pthread_setname_np(node->engine_thread, "engine");
    node->is_running = true;
    return STATUS_OK;
}

enum status node_start(const struct node_options *options, struct node **out)
{
    struct node *node = calloc(1, sizeof(*node));
    enum status st;

    if (!node)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a node");
    (void)snprintf(node->name, sizeof(node->name), "%s", options->name);
    if (!node->name[0] && gethostname(node->name, sizeof(node->name) - 1) != 0)
        (void)snprintf(node->name, sizeof(node->name), "node");

    if (options->kv_mib) {
        (void)mallopt(M_ARENA_MAX, HEAP_MAX);
        (void)mallopt(M_MMAP_THRESHOLD, MAP_BYTES);
    }
    st = metrics_create(&node->metrics);
    if (!st)
        st = load_model(node, options);
    if (!st && options->tenant_keys && options->tenant_keys[0])
        st = read_keys(options->tenant_keys, &node->keys);
    if (!st)
        st = open_stores(node, options->data);
    if (!st)
        st = start_threads(node);
    if (!st && options->kv_mib)
        st = start_pager(node);
    if (!st)
        st = start_engine(node, options);
    if (st) {
        node_destroy(node);
        return st;
    }
    *out = node;
    return STATUS_OK;
}

/* The engine returns from engine_run() once it has carried this out. */
static void push_drain(struct node *node, uint32_t grace_ms)
{
    struct arena *arena = NULL;
    struct command *command = NULL;
    enum status st = arena_create(DRAIN_ARENA_BYTES, &arena);

    if (!st)
        command = arena_take(arena, sizeof(*command));
    assert(command);
    command->kind = COMMAND_DRAIN;
    command->arena = arena;
    command->deadline_us =
        clock_real()->now_us(clock_real()) + (uint64_t)grace_ms * 1000;
    while (!ring_push(node->inbox, &command))
        (void)sched_yield(); /* the engine empties it every step */
}

void node_drain(struct node *node, uint32_t grace_ms)
{
    if (!node->is_running)
        return;
    push_drain(node, grace_ms);
    (void)pthread_join(node->engine_thread, NULL);
    node->is_running = false;
}

/* Calls that came while the engine was draining. */
static void discard_commands(struct ring *inbox)
{
    struct command *command;

    while (inbox && ring_pop(inbox, &command))
        arena_destroy(command->arena);
}

void node_destroy(struct node *node)
{
    if (!node)
        return;
    assert(!node->is_running);
    /* Threads first: they hold the rings, the journal and the stores. */
    journal_thread_stop(node->journal_thread);
    store_thread_stop(node->store_thread);
    engine_destroy(node->engine);
    pager_stop(node->pager);
    snapshots_close(node->snapshots);
    journal_close(node->journal);
    store_close(node->bulk_store);
    store_close(node->journal_store);
    ring_destroy(node->reports);
    ring_destroy(node->done);
    ring_destroy(node->outbox);
    discard_commands(node->inbox);
    ring_destroy(node->inbox);
    pool_destroy(node->pool);
    keyring_destroy(node->keys);
    tokenizer_destroy(node->tokenizer);
    model_destroy(node->model);
    metrics_destroy(node->metrics);
    free(node);
}
