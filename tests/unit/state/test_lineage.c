/*
 * Paths through logs, the index of them, and the journal's rows along a path.
 * The oracle is a flat list: what every position of a path should read.
 */
#include "state/lineage.h"

#include "base/log.h"
#include "proto/frame.h"
#include "state/journal.h"
#include "state/journal_record.h"
#include "state/store_key.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static const struct uid a = {1, 1}, b = {1, 2}, c = {2, 0}, d = {2, 1};

static struct log_path fork_of(const struct log_path *path, uint64_t position,
                               struct uid own)
{
    struct log_path out;

    cr_assert(log_path_fork(path, position, own, &out));
    cr_assert(log_path_is_sound(&out));
    return out;
}

Test(lineage, a_fork_takes_the_pieces_before_it)
{
    struct log_path one = log_path_alone(a), two, three;

    cr_assert(log_path_is_sound(&one));
    cr_assert_eq(log_path_inherited(&one), 0);
    two = fork_of(&one, 100, b);
    cr_assert_eq(two.n, 2);
    cr_assert_eq(log_path_inherited(&two), 100);
    three = fork_of(&two, 150, c);
    cr_assert_eq(three.n, 3);
    cr_assert(uid_equal(three.piece[1].log, b));
    cr_assert_eq(three.piece[1].end, 150);
    three = fork_of(&two, 100, c); /* nothing of b */
    cr_assert_eq(three.n, 2);
    three = fork_of(&two, 40, c);
    cr_assert_eq(three.n, 2);
    cr_assert_eq(three.piece[0].end, 40);
    three = fork_of(&two, 0, c);
    cr_assert_eq(three.n, 1);
    cr_assert(uid_equal(log_path_own(&three), c));
}

Test(lineage, a_path_ends_at_its_limit)
{
    struct log_path path = log_path_alone(a), next;
    uint64_t position = 0;

    while (path.n < LOG_PATH_MAX)
        path = fork_of(&path, position += 10, (struct uid){7, position});
    cr_assert_not(log_path_fork(&path, position + 1, d, &next));
    path = fork_of(&path, position, d); /* without tokens of its own */
    cr_assert_eq(path.n, LOG_PATH_MAX);
}

Test(lineage, unsound_paths_are_known)
{
    struct log_path path = {0};

    cr_assert_not(log_path_is_sound(&path));
    path = (struct log_path){2, {{a, 5}, {b, 9}}};
    cr_assert_not(log_path_is_sound(&path), "the last one ends");
    path = (struct log_path){3, {{a, 5}, {b, 5}, {c, UINT64_MAX}}};
    cr_assert_not(log_path_is_sound(&path), "ends rise");
    path = (struct log_path){2, {{a, 0}, {b, UINT64_MAX}}};
    cr_assert_not(log_path_is_sound(&path), "an empty piece");
    path.n = LOG_PATH_MAX + 1;
    cr_assert_not(log_path_is_sound(&path));
}

Test(lineage, common_tokens_are_those_of_the_same_logs)
{
    struct log_path one = log_path_alone(a), other = log_path_alone(d);
    struct log_path two = fork_of(&one, 100, b), three = fork_of(&two, 150, c);

    cr_assert_eq(log_path_common(&one, &two), 100);
    cr_assert_eq(log_path_common(&two, &three), 150);
    cr_assert_eq(log_path_common(&one, &three), 100);
    cr_assert_eq(log_path_common(&one, &other), 0);
    two = fork_of(&one, 60, d);
    cr_assert_eq(log_path_common(&two, &three), 60);
}

Test(lineage, equal_paths_read_the_same_tokens_of_the_same_logs)
{
    struct log_path one = log_path_alone(a), two = fork_of(&one, 100, b);

    cr_assert(log_path_equal(&one, &one));
    cr_assert(log_path_equal(
        &two, &(struct log_path){2, {{a, 100}, {b, UINT64_MAX}}}));
    cr_assert_not(log_path_equal(&one, &two));
    cr_assert_not(log_path_equal(
        &two, &(struct log_path){2, {{a, 99}, {b, UINT64_MAX}}}));
    cr_assert_not(log_path_equal(
        &two, &(struct log_path){2, {{a, 100}, {c, UINT64_MAX}}}));
}

Test(lineage, a_path_keeps_what_its_pieces_cover)
{
    const struct log_path path = {3, {{a, 100}, {b, 200}, {c, UINT64_MAX}}};
    struct log_path base = {0};

    cr_assert_eq(log_path_keeps(&path, &base), 0);
    log_pieces_add(&base, a, 64);
    log_pieces_add(&base, b, 128);
    log_pieces_add(&base, b, 192); /* one piece with the one before */
    cr_assert_eq(base.n, 2);
    cr_assert_eq(log_path_keeps(&path, &base), 192);
    log_pieces_add(&base, b, 256);
    cr_assert_eq(log_path_keeps(&path, &base), 200);
    log_pieces_cut(&base, 64);
    cr_assert_eq(base.n, 1);
    log_pieces_add(&base, d, 128); /* not in the path */
    cr_assert_eq(log_path_keeps(&path, &base), 64);
    log_pieces_cut(&base, 0);
    cr_assert_eq(base.n, 0);
    cr_assert_eq(log_pieces_end(&base), 0);
}

Test(lineage, the_index_knows_who_needs_what)
{
    struct lineage lineage = {0};
    struct log_path one = log_path_alone(a), two = fork_of(&one, 100, b),
                    three = fork_of(&one, 60, c);

    cr_assert_eq(lineage_add(&lineage, &three), STATUS_OK);
    cr_assert_eq(lineage_add(&lineage, &one), STATUS_OK);
    cr_assert_eq(lineage_add(&lineage, &two), STATUS_OK);
    cr_assert_eq(lineage_need(&lineage, a), UINT64_MAX);
    cr_assert_eq(lineage_lent(&lineage, a), 100);
    cr_assert_eq(lineage_lent(&lineage, b), 0);
    cr_assert_eq(lineage_need(&lineage, d), 0);
    lineage_remove(&lineage, &one);
    cr_assert_eq(lineage_need(&lineage, a), 100);
    lineage_remove(&lineage, &two);
    cr_assert_eq(lineage_need(&lineage, a), 60);
    cr_assert_eq(lineage_need(&lineage, b), 0);
    lineage_remove(&lineage, &three);
    cr_assert_eq(lineage_need(&lineage, a), 0);
    cr_assert_eq(lineage.n, 0);
    lineage_release(&lineage);
}

/* --- along the journal --- */

#define N_TOKEN 300u

static const struct digest fingerprint = {7, 8};
static struct store *store;
static struct journal *journal;
static struct journal_batch *batch;
static uint32_t left[N_TOKEN], right[N_TOKEN]; /* they part at 100 */

static void begin(void)
{
    log_set_level(LOG_ERROR + 1);
    for (uint32_t i = 0; i < N_TOKEN; i++) {
        left[i] = i * 2654435761u % 4096;
        right[i] = i < 100 ? left[i] : left[i] ^ 1;
    }
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(journal_open(store, fingerprint, &journal), STATUS_OK);
    batch = journal_batch_create(journal);
}

static void end(void)
{
    journal_batch_destroy(batch);
    journal_close(journal);
    store_close(store);
}

TestSuite(lineage_journal, .init = begin, .fini = end);

static void put(struct uid log, const uint32_t *token, uint32_t from,
                uint32_t to)
{
    journal_put_tokens(batch, log, from, token + from, to - from,
                       digest_tokens(fingerprint, token, to));
}

static void commit(void)
{
    cr_assert_eq(journal_commit(journal, &batch, 1, true), STATUS_OK);
    journal_batch_clear(batch);
}

static void check(const struct log_path *path, const uint32_t *token,
                  uint32_t n)
{
    struct ids ids = {0};
    struct digest chain;

    cr_assert_eq(journal_read_tokens(journal, path, &ids, &chain), STATUS_OK,
                 "%s", status_reason());
    cr_assert_eq(ids.n, n);
    if (n)
        cr_assert_arr_eq(ids.id, token, n * sizeof(*token));
    cr_assert(digest_equal(chain, digest_tokens(fingerprint, token, n)));
    free(ids.id);
}

/* a: all of left in rows of 70; b: right from 100 on. */
static struct log_path put_two(void)
{
    struct log_path one = log_path_alone(a);

    for (uint32_t from = 0; from < N_TOKEN; from += 70)
        put(a, left, from, from + 70 < N_TOKEN ? from + 70 : N_TOKEN);
    put(b, right, 100, 150);
    put(b, right, 150, N_TOKEN);
    commit();
    return fork_of(&one, 100, b);
}

Test(lineage_journal, reads_through_the_ancestors_at_any_position)
{
    struct log_path one = log_path_alone(a), two = put_two();

    check(&one, left, N_TOKEN);
    check(&two, right, N_TOKEN);
    for (uint32_t p = 0; p <= N_TOKEN; p++) {
        struct log_path fork = fork_of(&one, p, c);

        check(&fork, left, p);
        fork = fork_of(&two, p, c);
        check(&fork, right, p);
    }
}

Test(lineage_journal, a_trimmed_log_serves_those_that_need_it)
{
    struct log_path one = log_path_alone(a), two = put_two();

    journal_trim_log(batch, a, 100);
    commit();
    check(&two, right, N_TOKEN);
    check(&one, left, 140); /* the row that 100 lies in stays whole */
    journal_trim_log(batch, a, 0);
    commit();
    check(&one, left, 0);
}

Test(lineage_journal, an_ancestor_that_lost_its_end_is_told)
{
    struct log_path two = put_two();
    struct ids ids = {0};
    struct digest chain;

    journal_trim_log(batch, a, 70);
    commit();
    cr_assert_eq(journal_read_tokens(journal, &two, &ids, &chain),
                 STATUS_DATA_LOSS);
    cr_assert_str_eq(status_cause()->reason, "SESSION_LOG_LOST");
    cr_assert_eq(ids.n, 70);
    ids_release(&ids);
}

Test(lineage_journal, a_torn_row_of_an_ancestor_is_told)
{
    struct log_path two = put_two();
    struct store_batch *raw = store_batch_create(store);
    struct key key = key_at('k', a, 70);
    struct ids ids = {0};
    struct digest chain;

    store_batch_put(raw, key.bytes, key.n, "torn", 4);
    cr_assert_eq(store_write(store, raw, true), STATUS_OK);
    cr_assert_eq(journal_read_tokens(journal, &two, &ids, &chain),
                 STATUS_DATA_LOSS);
    cr_assert_str_eq(status_cause()->reason, "SESSION_LOG_LOST");
    cr_assert_eq(ids.n, 70);
    ids_release(&ids);
    store_batch_destroy(raw);
}

static enum status count_log(void *context, struct uid log)
{
    struct uid *seen = context;

    seen[seen[7].lo++] = log;
    return STATUS_OK;
}

Test(lineage_journal, visits_each_log_once)
{
    struct uid seen[8] = {{0}};

    put_two();
    put((struct uid){UINT64_MAX, UINT64_MAX}, left, 0, 1);
    commit();
    cr_assert_eq(journal_each_log(journal, count_log, seen), STATUS_OK);
    cr_assert_eq(seen[7].lo, 3);
    cr_assert(uid_equal(seen[0], a) && uid_equal(seen[1], b));
    cr_assert_eq(seen[2].hi, UINT64_MAX);
}

static enum status read_all(const struct log_path *path)
{
    struct uid seen[8] = {{0}};
    struct ids ids = {0};
    struct digest chain;
    enum status st = journal_read_tokens(journal, path, &ids, &chain);

    if (!st)
        st = journal_each_log(journal, count_log, seen);
    ids_release(&ids);
    return st;
}

Test(lineage_journal, passes_on_the_failure_of_every_call)
{
    struct log_path two = put_two();
    uint64_t n = 0;

    for (;;) {
        enum status st;

        store_memory_faults(store)->fail_at = ++n;
        st = read_all(&two);
        if (store_memory_faults(store)->fail_at > 0)
            break;
        cr_assert_eq(st, STATUS_UNAVAILABLE, "call %lu", n);
        cr_assert_lt(n, 100);
    }
    cr_assert_geq(n, 10);
}

/* --- the record --- */

static struct session_meta meta_of(const struct log_path *path)
{
    struct session_meta meta = {.uid = c,
                                .name = "child",
                                .path = *path,
                                .parent = a,
                                .parent_name = "parent",
                                .fork_position = 100};
    return meta;
}

Test(lineage_record, comes_back_as_it_was)
{
    struct log_path one = log_path_alone(a), path = fork_of(&one, 100, c);
    struct session_meta meta = meta_of(&path), found;
    struct writer writer;

    writer_init(&writer, 1 << 16);
    cr_assert_eq(record_put_session(&writer, &meta), STATUS_OK);
    cr_assert_eq(record_get_session(writer.bytes, writer.n, &found), STATUS_OK);
    cr_assert_eq(found.path.n, 2);
    cr_assert_eq(found.path.piece[0].end, 100);
    cr_assert(uid_equal(found.path.piece[0].log, a));
    cr_assert(uid_equal(log_path_own(&found.path), c));
    cr_assert_str_eq(found.parent_name, "parent");
    cr_assert(uid_equal(found.parent, a));
    cr_assert_eq(found.fork_position, 100);
    writer_release(&writer);
}

/* A tenant and a pin make another version of the record, and so does a policy;
 * without them it is as it always was. */
Test(lineage_record, owner_and_policy_come_back_with_and_without_a_lineage)
{
    struct log_path one = log_path_alone(a), path = fork_of(&one, 100, c);

    for (uint32_t i = 0; i < 16; i++) {
        struct session_meta meta = meta_of(i & 1 ? &path : &one), found;
        struct policy policy;
        struct writer writer;

        if (i & 2)
            strcpy(meta.tenant, "ann");
        meta.is_pinned = i & 4;
        cr_assert_eq(policy_parse(i & 8 ? "quest:step=16" : "full", &policy),
                     STATUS_OK);
        meta.policy = policy;
        writer_init(&writer, 1 << 16);
        cr_assert_eq(record_put_session(&writer, &meta), STATUS_OK);
        cr_assert_eq(writer.bytes[6], i & 8   ? RECORD_VERSION_POLICY
                                      : i > 1 ? RECORD_VERSION_OWNED
                                              : RECORD_VERSION);
        cr_assert_eq(record_get_session(writer.bytes, writer.n, &found),
                     STATUS_OK);
        cr_assert_str_eq(found.tenant, i & 2 ? "ann" : "");
        cr_assert_eq(found.is_pinned, (i & 4) != 0);
        cr_assert(policy_equal(&found.policy, &policy));
        cr_assert_eq(found.path.n, path.n * (i & 1) + one.n * !(i & 1));
        writer_release(&writer);
    }
}

/* Each byte of a sound frame's lineage set to each of some values: refused, or
 * read as something sound. */
Test(lineage_record, never_reads_an_unsound_path)
{
    static const uint8_t VALUE[] = {0, 1, 2, 31, 32, 33, 127, 255};
    struct log_path one = log_path_alone(a), path = fork_of(&one, 100, c);
    struct session_meta meta = meta_of(&path), found;
    struct writer writer, again;
    uint32_t n_refused = 0;

    log_set_level(LOG_ERROR + 1);
    writer_init(&writer, 1 << 16);
    writer_init(&again, 1 << 16);
    cr_assert_eq(record_put_session(&writer, &meta), STATUS_OK);
    for (size_t at = FRAME_HEAD_BYTES; at < writer.n; at++)
        for (size_t v = 0; v < sizeof(VALUE); v++) {
            size_t frame;

            writer_clear(&again);
            frame = frame_begin(&again, FRAME_SESSION, RECORD_VERSION);
            writer_bytes(&again, writer.bytes + FRAME_HEAD_BYTES,
                         writer.n - FRAME_HEAD_BYTES);
            again.bytes[at] = VALUE[v];
            cr_assert_eq(frame_end(&again, frame), STATUS_OK);
            if (record_get_session(again.bytes, again.n, &found)) {
                n_refused++;
                continue;
            }
            cr_assert(log_path_is_sound(&found.path));
        }
    cr_assert_gt(n_refused, 20);
    writer_release(&writer);
    writer_release(&again);
}
