/*
 * Judged by what was put in: tokens, turns and sessions come back byte for
 * byte, in whatever rows they were written, and the chain is that of the whole
 * in one call. Then every kind of damage, which is done to the stored rows.
 */
#include "state/journal.h"
#include "state/lineage.h"

#include "base/log.h"
#include "state/journal_record.h"
#include "state/store_key.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 1000u

static const struct digest fingerprint = {0x1111, 0x2222};
static const struct uid alice = {0x10, 0x1}, bob = {0x10, 0x2},
                        carol = {0xffffffffffffffff, 0xffffffffffffffff};

static struct store *store;
static struct journal *journal;
static struct journal_batch *batch;
static uint32_t token[N_TOKEN];

static void begin(void)
{
    log_set_level(LOG_ERROR + 1);
    for (uint32_t i = 0; i < N_TOKEN; i++)
        token[i] = i * 2654435761u % 4096;
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(journal_open(store, fingerprint, &journal), STATUS_OK);
    batch = journal_batch_create(journal);
    cr_assert(batch);
}

static void end(void)
{
    journal_batch_destroy(batch);
    journal_batch_destroy(NULL);
    journal_close(journal);
    store_close(store);
}

TestSuite(journal, .init = begin, .fini = end);

static void commit(void)
{
    cr_assert_eq(journal_commit(journal, &batch, 1, true), STATUS_OK);
    journal_batch_clear(batch);
}

/* Tokens [from, to) as one row. */
static void put(struct uid uid, uint32_t from, uint32_t to)
{
    journal_put_tokens(batch, uid, from, token + from, to - from,
                       digest_tokens(fingerprint, token, to));
}

static void check_tokens(struct uid uid, uint32_t n)
{
    struct ids ids = {0};
    struct digest chain;

    cr_assert_eq(journal_read_tokens(journal,
                                     &(struct log_path){1, {{uid, UINT64_MAX}}},
                                     &ids, &chain),
                 STATUS_OK, "%s", status_reason());
    cr_assert_eq(ids.n, n);
    if (n > 0)
        cr_assert_arr_eq(ids.id, token, n * sizeof(token[0]));
    cr_assert(digest_equal(chain, digest_tokens(fingerprint, token, n)));
    free(ids.id);
}

Test(journal, gives_back_tokens_of_any_cut)
{
    uint32_t at = 0;

    for (uint32_t n = 1; at < N_TOKEN; n = n * 5 % 97 + 1) {
        uint32_t to = at + n < N_TOKEN ? at + n : N_TOKEN;

        put(alice, at, to);
        put(carol, at, to);
        if (n % 3 == 0)
            commit();
        at = to;
    }
    commit();
    put(bob, 0, 1);
    commit();
    check_tokens(alice, N_TOKEN);
    check_tokens(carol, N_TOKEN);
    check_tokens(bob, 1);
    check_tokens((struct uid){0x10, 0x3}, 0);
}

Test(journal, appends_behind_what_the_list_holds)
{
    struct ids ids = {0};
    struct digest chain;

    put(alice, 0, 10);
    commit();
    for (int i = 0; i < 200; i++)
        cr_assert_eq(journal_read_tokens(
                         journal, &(struct log_path){1, {{alice, UINT64_MAX}}},
                         &ids, &chain),
                     STATUS_OK);
    cr_assert_eq(ids.n, 2000);
    cr_assert_arr_eq(ids.id + 1990, token, 10 * sizeof(token[0]));
    free(ids.id);
}

static struct turn turn_of(uint64_t position)
{
    static struct turn turn;

    memset(&turn, 0, sizeof(turn));
    turn.position = position;
    turn.n_input = 77;
    strcpy(turn.request_id, "request-1");
    turn.input = (struct digest){5, 6};
    turn.finish = FINISH_STOP_SEQUENCE;
    turn.sampling = (struct sampling){.temperature = 0.7f,
                                      .top_p = 0.9f,
                                      .min_p = 0.01f,
                                      .top_k = -1,
                                      .repetition_penalty = 1.1f,
                                      .presence_penalty = -0.5f,
                                      .frequency_penalty = 0.25f,
                                      .max_tokens = 100,
                                      .min_tokens = 3,
                                      .seed = UINT64_MAX,
                                      .n_logprob = -1,
                                      .skip_special = true,
                                      .n_stop = STOP_MAX,
                                      .n_stop_id = STOP_ID_MAX,
                                      .n_bias = LOGIT_BIAS_MAX};
    for (uint32_t i = 0; i < STOP_MAX; i++)
        memset(turn.sampling.stop[i], 'a' + (int)i, STOP_BYTES_MAX - 1 - i);
    for (uint32_t i = 0; i < STOP_ID_MAX; i++)
        turn.sampling.stop_id[i] = UINT32_MAX - i;
    for (uint32_t i = 0; i < LOGIT_BIAS_MAX; i++)
        turn.sampling.bias[i] = (struct logit_bias){i, -100.0f + (float)i};
    return turn;
}

Test(journal, gives_back_the_last_turn)
{
    static struct turn first, second, found;

    cr_assert_eq(journal_last_turn(journal, alice, &found), STATUS_NOT_FOUND);
    first = turn_of(0);
    second = turn_of(300);
    second.finish = FINISH_NONE;
    second.is_append = true;
    second.sampling.n_stop = 0;
    memset(second.sampling.stop, 0, sizeof(second.sampling.stop));
    journal_put_turn(batch, alice, &first);
    commit();
    cr_assert_eq(journal_last_turn(journal, alice, &found), STATUS_OK);
    cr_assert_arr_eq(&found, &first, sizeof(found));
    journal_put_turn(batch, alice, &second);
    commit();
    cr_assert_eq(journal_last_turn(journal, alice, &found), STATUS_OK);
    cr_assert_arr_eq(&found, &second, sizeof(found));
    second.finish = FINISH_LENGTH; /* written again at its end */
    journal_put_turn(batch, alice, &second);
    commit();
    cr_assert_eq(journal_last_turn(journal, alice, &found), STATUS_OK);
    cr_assert_eq(found.finish, FINISH_LENGTH);
    cr_assert_eq(journal_last_turn(journal, bob, &found), STATUS_NOT_FOUND);
}

static struct session_meta meta_of(struct uid uid, const char *name)
{
    static struct session_meta meta;

    memset(&meta, 0, sizeof(meta));
    meta.uid = uid;
    meta.path = log_path_alone(uid);
    strcpy(meta.name, name);
    meta.create_ms = 1;
    meta.update_ms = UINT64_MAX;
    meta.durability = DURABILITY_LOCAL;
    meta.n_label = LABEL_MAX;
    for (uint32_t i = 0; i < LABEL_MAX; i++) {
        memset(meta.label[i].key, 'k', i);
        memset(meta.label[i].value, 'v', LABEL_VALUE_SIZE - 1);
    }
    return meta;
}

static struct session_meta seen[4];
static uint64_t seen_n_token[4];
static uint32_t n_seen;

static enum status see(void *context, const struct session_meta *meta,
                       uint64_t n_token)
{
    if (context && n_seen == *(uint32_t *)context)
        return status_fail(STATUS_ABORTED, "enough");
    seen[n_seen] = *meta;
    seen_n_token[n_seen++] = n_token;
    return STATUS_OK;
}

static uint64_t visit_all(void)
{
    uint64_t n_bad = 99;

    n_seen = 0;
    cr_assert_eq(journal_each_session(journal, see, NULL, &n_bad), STATUS_OK);
    return n_bad;
}

static void put_three(void)
{
    const struct uid uid[] = {carol, alice, bob};
    static const char *const name[] = {"carol", "alice", "bob"};

    for (int i = 0; i < 3; i++) {
        struct session_meta meta = meta_of(uid[i], name[i]);

        journal_put_session(batch, &meta);
    }
    put(alice, 0, 7);
    put(alice, 7, 9);
    put(carol, 0, N_TOKEN);
    commit();
}

Test(journal, visits_every_session_in_order_with_its_length)
{
    struct session_meta expected = meta_of(alice, "alice");
    uint32_t stop_at = 1;
    uint64_t n_bad = 99;

    put_three();
    cr_assert_eq(visit_all(), 0);
    cr_assert_eq(n_seen, 3);
    cr_assert_arr_eq(&seen[0], &expected, sizeof(expected));
    cr_assert_str_eq(seen[1].name, "bob");
    cr_assert_str_eq(seen[2].name, "carol");
    cr_assert_eq(seen_n_token[0], 9);
    cr_assert_eq(seen_n_token[1], 0);
    cr_assert_eq(seen_n_token[2], N_TOKEN);
    n_seen = 0;
    cr_assert_eq(journal_each_session(journal, see, &stop_at, &n_bad),
                 STATUS_ABORTED);
    cr_assert_eq(n_seen, 1);
    cr_assert_eq(n_bad, 99, "untouched on failure");
}

Test(journal, deletes_one_session_whole_and_no_other)
{
    struct turn turn = turn_of(0);

    put_three();
    journal_put_turn(batch, alice, &turn);
    journal_put_turn(batch, bob, &turn);
    commit();
    journal_delete_session(batch, alice);
    journal_delete_session(batch, carol);
    journal_trim_log(batch, alice, 0);
    journal_trim_log(batch, carol, 0);
    commit();
    cr_assert_eq(visit_all(), 0);
    cr_assert_eq(n_seen, 1);
    cr_assert_str_eq(seen[0].name, "bob");
    check_tokens(alice, 0);
    check_tokens(carol, 0);
    cr_assert_eq(journal_last_turn(journal, alice, &turn), STATUS_NOT_FOUND);
    cr_assert_eq(journal_last_turn(journal, bob, &turn), STATUS_OK);
}

/* Flip one bit of the value under a key, or with no bytes delete it. */
static void damage(struct key key, size_t bit)
{
    struct store_batch *raw = store_batch_create(store);
    unsigned char *value;
    void *bytes;
    size_t n;

    cr_assert_eq(store_get(store, key.bytes, key.n, &bytes, &n), STATUS_OK);
    value = bytes;
    if (bit == SIZE_MAX) {
        store_batch_delete(raw, key.bytes, key.n);
    } else {
        value[bit / 8 % n] ^= (unsigned char)(1u << bit % 8);
        store_batch_put(raw, key.bytes, key.n, value, n);
    }
    cr_assert_eq(store_write(store, raw, true), STATUS_OK);
    store_batch_destroy(raw);
    free(bytes);
}

static void check_lost(const char *position)
{
    struct ids ids = {0};
    struct digest chain;

    cr_assert_eq(journal_read_tokens(
                     journal, &(struct log_path){1, {{alice, UINT64_MAX}}},
                     &ids, &chain),
                 STATUS_DATA_LOSS);
    cr_assert_str_eq(status_cause()->reason, "SESSION_LOG_LOST");
    cr_assert(strstr(status_reason(), position), "%s", status_reason());
    cr_assert_eq(ids.n, strtoul(strpbrk(position, "0123456789"), NULL, 10));
    cr_assert(ids.n == 0 || !memcmp(ids.id, token, ids.n * sizeof(token[0])));
    free(ids.id);
}

Test(journal, names_where_a_log_is_lost)
{
    put(alice, 0, 5);
    put(alice, 5, 9);
    put(alice, 9, 20);
    commit();
    for (size_t bit = 0; bit < 8 * 84; bit += 5) {
        damage(key_at('k', alice, 5), bit);
        check_lost("after token 5:");
        damage(key_at('k', alice, 5), bit);
    }
    check_tokens(alice, 20);
    damage(key_at('k', alice, 9), 3);
    check_lost("after token 9:");
    damage(key_at('k', alice, 5), SIZE_MAX);
    check_lost("after token 5: the next record begins at 9");
    damage(key_at('k', alice, 0), SIZE_MAX);
    check_lost("after token 0:");
}

Test(journal, refuses_a_sound_row_of_other_tokens)
{
    put(alice, 0, 5);
    /* Its chain is another log's, its digest is right. */
    journal_put_tokens(batch, alice, 5, token, 3,
                       digest_tokens(fingerprint, token + 1, 8));
    commit();
    check_lost("after token 5: the chain hash differs");
}

Test(journal, of_another_model_is_refused_at_use_and_kept)
{
    struct digest chain = {7, 7};
    struct journal *other;
    struct ids ids = {0};

    put_three();
    cr_assert_eq(journal_open(store, (struct digest){3, 4}, &other), STATUS_OK);
    cr_assert_eq(
        journal_read_tokens(other, &(struct log_path){1, {{alice, UINT64_MAX}}},
                            &ids, &chain),
        STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(status_cause()->reason, "MODEL_FINGERPRINT_MISMATCH");
    cr_assert_eq(ids.n, 0);
    cr_assert_eq(chain.lo, 7);
    free(ids.id);
    journal_close(other);
    check_tokens(alice, 9);
}

Test(journal, counts_and_skips_bad_records_at_start)
{
    put_three();
    damage(key_of('m', bob), 700);
    cr_assert_eq(visit_all(), 1);
    cr_assert_eq(n_seen, 2);
    cr_assert_str_eq(seen[1].name, "carol");
    damage(key_at('k', alice, 7), 300);
    cr_assert_eq(visit_all(), 2);
    cr_assert_eq(seen_n_token[0], 7, "up to the last sound row");
    damage(key_at('k', alice, 0), 300);
    cr_assert_eq(visit_all(), 3);
    cr_assert_eq(seen_n_token[0], 0);
}

Test(journal, skips_a_record_under_a_key_that_is_not_its_own)
{
    struct session_meta meta = meta_of(bob, "bob");
    struct store_batch *raw = store_batch_create(store);
    struct key key = key_of('m', alice);
    struct writer writer;

    writer_init(&writer, 1 << 16);
    cr_assert_eq(record_put_session(&writer, &meta), STATUS_OK);
    store_batch_put(raw, key.bytes, key.n, writer.bytes, writer.n);
    store_batch_put(raw, "mx", 2, writer.bytes, writer.n);
    cr_assert_eq(store_write(store, raw, true), STATUS_OK);
    cr_assert_eq(visit_all(), 2);
    cr_assert_eq(n_seen, 0);
    writer_release(&writer);
    store_batch_destroy(raw);
}

Test(journal, reports_a_damaged_last_turn)
{
    struct turn turn = turn_of(0), found = {.n_input = 99};

    journal_put_turn(batch, alice, &turn);
    commit();
    for (size_t bit = 0; bit < 8 * 1500; bit += 101) {
        damage(key_at('t', alice, 0), bit);
        cr_assert_eq(journal_last_turn(journal, alice, &found),
                     STATUS_DATA_LOSS);
        damage(key_at('t', alice, 0), bit);
    }
    cr_assert_eq(found.n_input, 99);
}

/* A frame whose digest is right but whose field `at` is `value`. */
static enum status reread(struct writer *writer, size_t at, uint8_t value,
                          bool is_turn)
{
    static struct session_meta meta;
    static struct turn turn;
    uint64_t n = writer->n - FRAME_HEAD_BYTES;
    struct writer again;
    enum status st;
    size_t begin;

    writer_init(&again, 1 << 16);
    begin = frame_begin(&again, is_turn ? FRAME_TURN : FRAME_SESSION,
                        RECORD_VERSION);
    writer_bytes(&again, writer->bytes + FRAME_HEAD_BYTES, n);
    again.bytes[FRAME_HEAD_BYTES + at] = value;
    cr_assert_eq(frame_end(&again, begin), STATUS_OK);
    st = is_turn ? record_get_turn(again.bytes, again.n, &turn)
                 : record_get_session(again.bytes, again.n, &meta);
    writer_release(&again);
    return st;
}

Test(record, refuses_fields_beyond_their_limits)
{
    struct session_meta meta = meta_of(alice, "alice");
    struct turn turn = turn_of(0);
    struct writer writer;
    /* uid 16, name 2 + 5, three times 24 */
    const size_t durability_at = 47, label_at = 48, name_at = 16;
    /* position, n_input 16, request id 2 + 9, digest 16 */
    const size_t finish_at = 43, append_at = 44, sampling_at = 45;

    log_set_level(LOG_ERROR);
    writer_init(&writer, 1 << 16);
    cr_assert_eq(record_put_session(&writer, &meta), STATUS_OK);
    cr_assert_eq(reread(&writer, durability_at, DURABILITY_LOCAL, false),
                 STATUS_OK);
    cr_assert_eq(reread(&writer, durability_at, 2, false), STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, label_at, LABEL_MAX + 1, false),
                 STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, label_at, LABEL_MAX - 1, false),
                 STATUS_DATA_LOSS, "bytes are left over");
    cr_assert_eq(reread(&writer, name_at, 200, false), STATUS_DATA_LOSS);
    writer_clear(&writer);
    cr_assert_eq(record_put_turn(&writer, &turn), STATUS_OK);
    cr_assert_eq(reread(&writer, finish_at, FINISH_ERROR, true), STATUS_OK);
    cr_assert_eq(reread(&writer, finish_at, FINISH_ERROR + 1, true),
                 STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, append_at, 2, true), STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, 7, 0xff, true), STATUS_OK);
    cr_assert_eq(reread(&writer, sampling_at + 44, LOGPROBS_MAX + 1, true),
                 STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, sampling_at + 48, 2, true), STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, sampling_at + 49, 2, true), STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, sampling_at + 50, STOP_MAX + 1, true),
                 STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, sampling_at + 52, STOP_ID_MAX + 1, true),
                 STATUS_DATA_LOSS);
    cr_assert_eq(reread(&writer, sampling_at + 55, 2, true), STATUS_DATA_LOSS);
    /* Counts that pass a limit and still fit the bytes: 2 ids are 1 bias. */
    writer.bytes[FRAME_HEAD_BYTES + sampling_at + 54] =
        LOGIT_BIAS_MAX - 1 - 256;
    cr_assert_eq(reread(&writer, sampling_at + 52, STOP_ID_MAX + 2, true),
                 STATUS_DATA_LOSS);
    writer.bytes[FRAME_HEAD_BYTES + sampling_at + 54] =
        LOGIT_BIAS_MAX + 1 - 256;
    cr_assert_eq(reread(&writer, sampling_at + 52, STOP_ID_MAX - 2, true),
                 STATUS_DATA_LOSS);
    writer_release(&writer);
}

Test(journal, commit_is_all_or_nothing_and_lasts)
{
    struct journal_batch *two[2] = {batch, journal_batch_create(journal)};

    put(alice, 0, 5);
    journal_put_tokens(two[1], alice, 5, token + 5, 4,
                       digest_tokens(fingerprint, token, 9));
    store_memory_faults(store)->fail_at = 1;
    cr_assert_eq(journal_commit(journal, two, 2, true), STATUS_UNAVAILABLE);
    check_tokens(alice, 0);
    store_memory_faults(store)->is_read_only = true;
    cr_assert_eq(journal_commit(journal, two, 2, true),
                 STATUS_RESOURCE_EXHAUSTED);
    store_memory_faults(store)->is_read_only = false;
    cr_assert_eq(journal_commit(journal, two, 2, true), STATUS_OK);
    store_memory_crash(store);
    check_tokens(alice, 9);
    cr_assert_eq(journal_commit(journal, two, 0, true), STATUS_OK);
    cr_assert_not(journal_batch_is_empty(batch));
    journal_batch_clear(batch);
    cr_assert(journal_batch_is_empty(batch));
    journal_batch_destroy(two[1]);
}

Test(journal, unsynced_commits_are_lost_from_the_end_only)
{
    put(alice, 0, 5);
    commit();
    put(alice, 5, 9);
    cr_assert_eq(journal_commit(journal, &batch, 1, false), STATUS_OK);
    check_tokens(alice, 9);
    store_memory_crash(store);
    check_tokens(alice, 5);
}

static enum status read_it_all(void)
{
    struct ids ids = {0};
    struct digest chain;
    struct turn turn;
    uint64_t n_bad;
    enum status st;

    n_seen = 0;
    st = journal_each_session(journal, see, NULL, &n_bad);
    if (!st)
        st = journal_read_tokens(journal,
                                 &(struct log_path){1, {{alice, UINT64_MAX}}},
                                 &ids, &chain);
    if (!st)
        st = journal_last_turn(journal, alice, &turn);
    free(ids.id);
    return st;
}

Test(journal, passes_on_the_failure_of_every_call)
{
    struct turn turn = turn_of(0);
    uint64_t n = 0;

    put_three();
    journal_put_turn(batch, alice, &turn);
    commit();
    for (;;) {
        enum status st;

        store_memory_faults(store)->fail_at = ++n;
        st = read_it_all();
        if (store_memory_faults(store)->fail_at > 0)
            break; /* nothing failed any more */
        cr_assert_eq(st, STATUS_UNAVAILABLE, "call %lu: %s", n,
                     status_name(st));
        cr_assert_lt(n, 100);
    }
    cr_assert_geq(n, 15);
    store_memory_faults(store)->fail_at = 0;
    cr_assert_eq(read_it_all(), STATUS_OK);
}
