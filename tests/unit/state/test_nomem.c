/*
 * Every allocation of a call is made to fail, the n-th for n = 1, 2, ..., until
 * the call succeeds. Each failure must be RESOURCE_EXHAUSTED, change nothing
 * and leak nothing, which the ASan build judges. The linker puts the __wrap_
 * functions between our code and libc; RocksDB's own memory is not reached.
 */
#include "base/log.h"
#include "state/lineage.h"
#include "state/threads.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { N_MAX = 300, N_TOKEN = 300 };

/* Allocations still to succeed before one fails; negative: none fails. */
static int n_left = -1;

static bool fails(void)
{
    return n_left >= 0 && n_left-- == 0;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from);

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t n)
{
    return fails() ? NULL : __real_realloc(old, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t from)
{
    return fails() ? MAP_FAILED : __real_mmap(at, n, prot, flags, fd, from);
}

static const struct uid alice = {0x10, 1};
static uint32_t token[N_TOKEN];
static const struct ids tokens = {.id = token, .n = N_TOKEN};
static struct model *model;
static struct store *store;
static struct journal *journal;
static struct snapshots *snapshots;
static struct memory *filled;

static struct digest chain_at(uint64_t position)
{
    return digest_tokens(model_fingerprint(model), token, position);
}

static void begin(void)
{
    const struct model_options options = {.backend = backend_all()[0]};

    log_set_level(LOG_ERROR + 1);
    for (uint32_t i = 0; i < N_TOKEN; i++)
        token[i] = i;
    cr_assert_eq(model_load("tests/golden/qwen3_5_text", &options, &model),
                 STATUS_OK, "%s", status_reason());
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(journal_open(store, model_fingerprint(model), &journal),
                 STATUS_OK);
    cr_assert_eq(snapshots_open(store, model, &snapshots), STATUS_OK);
    cr_assert_eq(memory_create(model, &filled), STATUS_OK);
    cr_assert_eq(memory_reserve(filled, 200), STATUS_OK);
    memory_advance(filled, 200);
}

static void end(void)
{
    memory_destroy(filled);
    snapshots_close(snapshots);
    journal_close(journal);
    store_close(store);
    model_destroy(model);
}

TestSuite(nomem, .init = begin, .fini = end, .timeout = 240);

/* How many allocations `call` makes; each was made to fail before. */
static int until_success(enum status (*call)(void))
{
    for (int n = 0; n < N_MAX; n++) {
        enum status st;
        bool has_failed;

        n_left = n;
        st = call();
        has_failed = n_left < 0;
        n_left = -1;
        if (!has_failed) {
            cr_assert_eq(st, STATUS_OK, "%s", status_reason());
            return n;
        }
        cr_assert_eq(st, STATUS_RESOURCE_EXHAUSTED, "at %d: %s: %s", n,
                     status_name(st), status_reason());
    }
    cr_assert_fail("still failing");
    return 0;
}

static enum status open_store(void)
{
    struct store *other;
    enum status st = store_open_memory(&other);

    if (!st)
        store_close(other);
    return st;
}

static enum status open_journal(void)
{
    struct journal *other;
    enum status st = journal_open(store, (struct digest){1, 1}, &other);

    if (!st)
        journal_close(other);
    return st;
}

static enum status open_snapshots(void)
{
    struct snapshots *other;
    enum status st = snapshots_open(store, model, &other);

    if (!st)
        snapshots_close(other);
    return st;
}

Test(nomem, to_open)
{
    cr_assert_geq(until_success(open_store), 1);
    cr_assert_geq(until_success(open_journal), 1);
    cr_assert_geq(until_success(open_snapshots), 2);
}

static uint32_t n_session;

static enum status count(void *context, const struct session_meta *meta,
                         uint64_t n_token)
{
    (void)context;
    (void)meta;
    cr_assert_eq(n_token, N_TOKEN);
    n_session++;
    return STATUS_OK;
}

static void check_log(uint32_t n)
{
    uint64_t n_bad;

    n_session = 0;
    cr_assert_eq(journal_each_session(journal, count, NULL, &n_bad), STATUS_OK);
    cr_assert_eq(n_session, n);
}

static enum status write_log(void)
{
    struct session_meta meta = {
        .uid = alice, .name = "alice", .path = log_path_alone(alice)};
    struct turn turn = {.n_input = 7};
    struct journal_batch *batch = journal_batch_create(journal);
    enum status st;

    if (!batch)
        return STATUS_RESOURCE_EXHAUSTED;
    journal_put_session(batch, &meta);
    journal_put_tokens(batch, alice, 0, token, 100, chain_at(100));
    journal_put_tokens(batch, alice, 100, token + 100, 200, chain_at(N_TOKEN));
    journal_put_turn(batch, alice, &turn);
    st = journal_commit(journal, &batch, 1, true);
    journal_batch_destroy(batch);
    if (st)
        check_log(0);
    return st;
}

static enum status read_log(void)
{
    struct ids ids = {0};
    struct digest chain = {0};
    struct turn turn;
    uint64_t n_bad;
    enum status st = journal_read_tokens(
        journal, &(struct log_path){1, {{alice, UINT64_MAX}}}, &ids, &chain);

    if (!st) {
        cr_assert_eq(ids.n, N_TOKEN);
        cr_assert(digest_equal(chain, chain_at(N_TOKEN)));
        st = journal_last_turn(journal, alice, &turn);
    }
    if (!st)
        st = journal_each_session(journal, count, NULL, &n_bad);
    free(ids.id);
    return st;
}

static enum status delete_log(void)
{
    struct journal_batch *batch = journal_batch_create(journal);
    enum status st;

    if (!batch)
        return STATUS_RESOURCE_EXHAUSTED;
    journal_delete_session(batch, alice);
    journal_trim_log(batch, alice, 0);
    st = journal_commit(journal, &batch, 1, true);
    journal_batch_destroy(batch);
    if (st)
        check_log(1);
    return st;
}

Test(nomem, to_write_read_and_delete_a_log)
{
    cr_assert_geq(until_success(write_log), 10);
    check_log(1);
    cr_assert_geq(until_success(read_log), 5);
    cr_assert_geq(until_success(delete_log), 3);
    check_log(0);
}

static enum status save(void)
{
    struct image *image;
    enum status st = image_create(model,
                                  &(struct image_source){.log = alice,
                                                         .memory = filled,
                                                         .token = tokens.id,
                                                         .chain = chain_at(0)},
                                  &image);

    if (st)
        return st;
    st = snapshot_save(snapshots, image);
    image_destroy(image);
    if (st) {
        struct snapshot_entry entry;
        uint32_t n;

        cr_assert_eq(snapshot_list(snapshots, alice, &entry, 1, &n), STATUS_OK);
        cr_assert_eq(n, 0, "a failed save is named");
    }
    return st;
}

/* A value for which there is no memory is one that is not used. */
static enum status load(void)
{
    const struct log_path path = log_path_alone(alice);
    struct restore restore;
    struct memory *memory;
    enum status st = memory_create(model, &memory);

    if (st)
        return st;
    st = snapshot_load(snapshots, &path, &tokens, N_TOKEN, memory, &restore);
    cr_assert_eq(memory_position(memory), st || restore.reason ? 0 : 200);
    if (!st && restore.reason) {
        cr_assert_eq(restore.reason, RESTORE_DAMAGED);
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "replay");
    }
    memory_destroy(memory);
    return st;
}

Test(nomem, to_save_and_load_a_snapshot)
{
    cr_assert_geq(until_success(save), 5);
    cr_assert_geq(until_success(load), 10);
}

/* No memory to look is no reason to find anything bad. */
static enum status verify(void)
{
    struct scrub_source source = {.journal = journal,
                                  .snapshots = snapshots,
                                  .session = alice,
                                  .path = log_path_alone(alice),
                                  .n_token = N_TOKEN};
    const struct scrub_report *report;
    struct scrub *scrub;
    bool is_done = false;
    enum status st = scrub_create(&source, &scrub);

    if (st)
        return st;
    while (!st && !is_done)
        st = scrub_step(scrub, &is_done);
    if (!st)
        st = scrub_heal(scrub);
    report = scrub_report(scrub);
    cr_assert_eq(report->n_finding, 0, "%s", report->finding[0]);
    cr_assert_eq(report->n_drop, 0);
    if (!st) {
        cr_assert_eq(report->n_token, N_TOKEN);
        cr_assert_gt(report->count[SCRUB_STATE].n, 0);
    }
    scrub_destroy(scrub);
    return st;
}

static unsigned char *bundle;
static size_t n_bundle;

static enum status export_it(void)
{
    struct export_source source = {
        .journal = journal,
        .snapshots = snapshots,
        .meta = {.uid = alice, .name = "alice", .path = log_path_alone(alice)},
        .n_token = N_TOKEN,
        .has_turns = true,
        .has_state = true};
    struct exporter *exporter;
    enum status st = exporter_create(&source, &exporter);

    if (st)
        return st;
    n_bundle = 0;
    while (!st && !exporter_is_done(exporter)) {
        const void *bytes;
        size_t n;

        st = exporter_step(exporter);
        while (!st && (bytes = exporter_take(exporter, 65536, &n)) && n > 0) {
            memcpy(bundle + n_bundle, bytes, n);
            n_bundle += n;
        }
    }
    exporter_destroy(exporter);
    return st;
}

static enum status import_it(void)
{
    static const struct uid log = {7, 8};
    struct import_source source = {.snapshots = snapshots,
                                   .n_vocab = model_config(model)->n_vocab,
                                   .n_context = N_TOKEN,
                                   .log = log};
    struct importer *importer;
    struct snapshot_entry entry;
    enum status st = importer_create(&source, &importer);
    uint32_t n;

    if (st)
        return st;
    for (size_t at = 0, piece; !st && at < n_bundle; at += piece) {
        piece = n_bundle - at < 50000 ? n_bundle - at : 50000;
        st = importer_push(importer, bundle + at, piece);
    }
    if (!st)
        st = importer_end(importer);
    importer_destroy(importer);
    if (!st)
        st = snapshot_list(snapshots, log, &entry, 1, &n);
    if (!st)
        cr_assert_eq(n, 1);
    return st;
}

static enum status write_all(void)
{
    struct journal_batch *batch = journal_batch_create(journal);
    struct session_meta meta = {.uid = alice,
                                .name = "alice",
                                .path = log_path_alone(alice),
                                .durability = DURABILITY_LOCAL};
    enum status st;

    if (!batch)
        return STATUS_RESOURCE_EXHAUSTED;
    journal_put_session(batch, &meta);
    journal_put_tokens(batch, alice, 0, token, N_TOKEN, chain_at(N_TOKEN));
    st = journal_commit(journal, &batch, 1, true);
    journal_batch_destroy(batch);
    return st;
}

Test(nomem, to_verify_export_and_import)
{
    bundle = malloc(8u << 20);
    cr_assert_eq(write_all(), STATUS_OK);
    cr_assert_eq(save(), STATUS_OK);
    cr_assert_geq(until_success(verify), 10);
    cr_assert_geq(until_success(export_it), 10);
    cr_assert_geq(until_success(import_it), 5);
    free(bundle);
}

static struct ring *ring;

static enum status start_journal(void)
{
    struct journal_thread_options options = {
        .journal = journal, .outbox = ring, .reports = ring, .engine = ring};
    struct journal_thread *thread;
    enum status st = journal_thread_start(&options, 4, &thread);

    if (!st)
        journal_thread_stop(thread);
    return st;
}

static enum status start_store(void)
{
    struct store_thread_options options = {.journal = journal,
                                           .snapshots = snapshots,
                                           .done = ring,
                                           .engine = ring};
    struct store_thread *thread;
    enum status st = store_thread_start(&options, 4, &thread);

    if (!st)
        store_thread_stop(thread);
    return st;
}

Test(nomem, to_start_a_thread)
{
    cr_assert_eq(ring_create(1, 1, &ring), STATUS_OK);
    cr_assert_geq(until_success(start_journal), 3);
    cr_assert_geq(until_success(start_store), 3);
    ring_destroy(ring);
}
