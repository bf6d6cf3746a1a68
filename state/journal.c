#include "state/journal.h"

#include "base/log.h"
#include "state/journal_record.h"
#include "state/lineage.h"
#include "state/store_key.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UID_KEY_BYTES 17u /* letter and uid */

struct journal {
    struct store *store; /* borrowed */
    struct digest fingerprint;
};

struct journal_batch {
    struct store_batch *rows;
    struct writer frame; /* scratch of one row */
    bool is_failed;      /* a row found no memory */
};

enum status journal_open(struct store *store, struct digest fingerprint,
                         struct journal **out)
{
    struct journal *journal = calloc(1, sizeof(*journal));

    if (!journal)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a journal");
    journal->store = store;
    journal->fingerprint = fingerprint;
    *out = journal;
    return STATUS_OK;
}

void journal_close(struct journal *journal)
{
    free(journal);
}

struct journal_batch *journal_batch_create(struct journal *journal)
{
    struct journal_batch *batch = calloc(1, sizeof(*batch));

    if (!batch)
        return NULL;
    batch->rows = store_batch_create(journal->store);
    if (!batch->rows) {
        free(batch);
        return NULL;
    }
    writer_init(&batch->frame, RECORD_BYTES_MAX);
    return batch;
}

void journal_batch_destroy(struct journal_batch *batch)
{
    if (!batch)
        return;
    store_batch_destroy(batch->rows);
    writer_release(&batch->frame);
    free(batch);
}

void journal_batch_clear(struct journal_batch *batch)
{
    store_batch_clear(batch->rows);
    batch->is_failed = false;
}

bool journal_batch_is_empty(const struct journal_batch *batch)
{
    return !batch->is_failed && store_batch_bytes(batch->rows) == 0;
}

/* Move the row in the scratch writer into the batch. */
static void put_row(struct journal_batch *batch, const struct key *key,
                    enum status st)
{
    if (st)
        batch->is_failed = true;
    else
        store_batch_put(batch->rows, key->bytes, key->n, batch->frame.bytes,
                        batch->frame.n);
    writer_clear(&batch->frame);
}

static void delete_range(struct journal_batch *batch, struct key from,
                         struct key to)
{
    store_batch_delete_range(batch->rows, from.bytes, from.n, to.bytes, to.n);
}

void journal_put_session(struct journal_batch *batch,
                         const struct session_meta *meta)
{
    struct key key = key_of('m', meta->uid);

    put_row(batch, &key, record_put_session(&batch->frame, meta));
}

void journal_delete_session(struct journal_batch *batch, struct uid uid)
{
    struct key meta = key_of('m', uid);

    store_batch_delete(batch->rows, meta.bytes, meta.n);
}

void journal_trim_log(struct journal_batch *batch, struct uid log,
                      uint64_t n_token)
{
    struct key turns = key_of('t', log);

    delete_range(batch, key_at('k', log, n_token), key_after(key_of('k', log)));
    delete_range(batch, turns, key_after(turns));
}

void journal_put_tokens(struct journal_batch *batch, struct uid log,
                        uint64_t position, const uint32_t *token,
                        uint32_t n_token, struct digest chain)
{
    struct key key = key_at('k', log, position);

    put_row(batch, &key,
            record_put_tokens(&batch->frame, token, n_token, chain));
}

void journal_put_turn(struct journal_batch *batch, struct uid log,
                      const struct turn *turn)
{
    struct key key = key_at('t', log, turn->position);

    put_row(batch, &key, record_put_turn(&batch->frame, turn));
}

enum status journal_commit(struct journal *journal,
                           struct journal_batch *const *batch, uint32_t n_batch,
                           bool sync)
{
    const struct store_batch **rows =
        calloc(n_batch + 1u, sizeof(struct store_batch *));
    enum status st;

    if (!rows)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to commit %u batches", n_batch);
    for (uint32_t i = 0; i < n_batch; i++) {
        if (batch[i]->is_failed) {
            st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "no memory for a row of the journal");
            goto out;
        }
        rows[i] = batch[i]->rows;
    }
    st = store_write_all(journal->store, rows, n_batch, sync);
out:
    free(rows);
    return st;
}

/* One row under a cursor, its key split. */
struct row {
    struct uid uid;
    uint64_t position; /* 0 for keys without one */
    const void *value;
    size_t value_bytes;
};

/* False at the end; a key of a strange length counts as position UINT64_MAX. */
static bool next_row(struct store_scan *scan, struct row *out)
{
    const void *key;
    const unsigned char *bytes;
    size_t key_bytes;

    if (!store_scan_next(scan, &key, &key_bytes, &out->value,
                         &out->value_bytes))
        return false;
    bytes = key;
    *out = (struct row){.position = UINT64_MAX,
                        .value = out->value,
                        .value_bytes = out->value_bytes};
    if (key_bytes < UID_KEY_BYTES)
        return true;
    out->uid.hi = key_number(bytes + 1);
    out->uid.lo = key_number(bytes + 9);
    if (key_bytes == UID_KEY_BYTES)
        out->position = 0;
    else if (key_bytes == UID_KEY_BYTES + 8)
        out->position = key_number(bytes + UID_KEY_BYTES);
    return true;
}

static enum status open_scan(struct journal *journal, struct key from,
                             bool is_descending, struct store_scan **out)
{
    struct key to = key_after(from);

    return store_scan_open(
        journal->store,
        &(struct store_range){from.bytes, from.n, to.bytes, to.n},
        is_descending, out);
}

static void log_bad(struct uid uid, const char *what, uint64_t position)
{
    char about[UID_TEXT_SIZE + 2] = "u=";

    uid_format(uid, about + 2);
    log_line(LOG_ERROR, "journal", about,
             "%s record at position %lu is damaged and skipped: %s", what,
             position, status_reason());
}

/* Where the last sound row of tokens ends; if there is none, what it begins
 * with. */
static enum status count_tokens(struct journal *journal,
                                const struct log_path *path, uint64_t *out,
                                uint64_t *n_bad)
{
    struct uid log = log_path_own(path);
    struct store_scan *scan;
    struct row row;
    enum status st = open_scan(journal, key_of('k', log), true, &scan);

    if (st)
        return st;
    *out = log_path_inherited(path);
    while (next_row(scan, &row)) {
        struct record_tokens tokens;

        if (!record_get_tokens(row.value, row.value_bytes, &tokens) &&
            row.position <= UINT64_MAX - tokens.n_token) {
            *out = row.position + tokens.n_token;
            break;
        }
        log_bad(log, "token", row.position);
        ++*n_bad;
    }
    st = store_scan_status(scan);
    store_scan_close(scan);
    return st;
}

enum status journal_each_session(struct journal *journal, journal_visit *visit,
                                 void *context, uint64_t *out_n_bad)
{
    struct key all = {.n = 1, .bytes = {'m'}};
    struct store_scan *scan;
    struct row row;
    uint64_t n_bad = 0;
    enum status st = open_scan(journal, all, false, &scan);

    if (st)
        return st;
    while (!st && next_row(scan, &row)) {
        struct session_meta meta;
        uint64_t n_token;
        enum status bad = record_get_session(row.value, row.value_bytes, &meta);

        if (!bad && !uid_equal(meta.uid, row.uid))
            bad = status_fail(STATUS_DATA_LOSS, "its uid is not its key's");
        if (bad) {
            log_bad(row.uid, "session", 0);
            n_bad++;
            continue;
        }
        st = count_tokens(journal, &meta.path, &n_token, &n_bad);
        if (!st)
            st = visit(context, &meta, n_token);
    }
    if (!st)
        st = store_scan_status(scan);
    store_scan_close(scan);
    if (!st)
        *out_n_bad = n_bad;
    return st;
}

/* The first log whose key is not below `from`. NOT_FOUND: there is none. */
static enum status next_log(struct journal *journal, struct key from,
                            struct uid *out)
{
    struct store_scan *scan;
    struct row row;
    enum status st = store_scan_open(
        journal->store, &(struct store_range){from.bytes, from.n, "l", 1},
        false, &scan);

    if (st)
        return st;
    if (next_row(scan, &row)) {
        *out = row.uid;
    } else {
        st = store_scan_status(scan);
        if (!st)
            st = status_fail(STATUS_NOT_FOUND, "no more logs");
    }
    store_scan_close(scan);
    return st;
}

enum status journal_each_log(struct journal *journal, journal_visit_log *visit,
                             void *context)
{
    struct key from = {.n = 1, .bytes = {'k'}};
    struct uid log;
    enum status st = next_log(journal, from, &log);

    while (!st) {
        st = visit(context, log);
        if (st)
            return st;
        from = key_after(key_of('k', log));
        if (from.n == 1)
            return STATUS_OK; /* that was the greatest uid there can be */
        st = next_log(journal, from, &log);
    }
    return st == STATUS_NOT_FOUND ? STATUS_OK : st;
}

static enum status append(struct ids *ids, const struct record_tokens *tokens)
{
    size_t n = ids->n + tokens->n_token;

    if (n > ids->capacity) {
        size_t capacity = ids->capacity < 1024 ? 1024 : 2 * ids->capacity;
        uint32_t *id;

        capacity = capacity < n ? n : capacity;
        id = realloc(ids->id, capacity * sizeof(*id));
        if (!id)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for %zu tokens of a session", n);
        ids->id = id;
        ids->capacity = capacity;
    }
    memcpy(ids->id + ids->n, tokens->token, tokens->n_token * sizeof(*ids->id));
    ids->n = n;
    return STATUS_OK;
}

static enum status log_lost(uint64_t position, const char *why)
{
    char text[STATUS_TEXT_SIZE];

    (void)strncpy(text, why, sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    (void)status_fail(STATUS_DATA_LOSS,
                      "session's log is damaged after token %lu: %.300s",
                      position, text);
    return status_because("SESSION_LOG_LOST");
}

/* Tokens of a path as they come. */
struct reading {
    struct ids *out;
    uint64_t end;        /* tokens so far ... */
    struct digest chain; /* ... and their chain */
    size_t n_before_row; /* of `out`, before the last row */
    struct digest chain_before_row;
};

/* Take one row, which must begin where the tokens end. */
static enum status take_row(const struct row *row, struct reading *reading)
{
    struct ids *out = reading->out;
    uint64_t end = reading->end;
    struct record_tokens tokens;
    struct digest chain;
    size_t n_before = out->n;
    enum status st;

    if (row->position != end) {
        char why[64];

        (void)snprintf(why, sizeof(why), "the next record begins at %lu",
                       row->position);
        return log_lost(end, why);
    }
    if (record_get_tokens(row->value, row->value_bytes, &tokens))
        return log_lost(end, status_reason());
    st = append(out, &tokens);
    if (st)
        return st;
    chain = digest_tokens(reading->chain, out->id + n_before, tokens.n_token);
    if (digest_equal(chain, tokens.chain)) {
        reading->n_before_row = n_before;
        reading->chain_before_row = reading->chain;
        reading->chain = chain;
        reading->end = end + tokens.n_token;
        return STATUS_OK;
    }
    out->n = n_before;
    if (end > 0)
        return log_lost(end, "the chain hash differs");
    (void)status_fail(STATUS_FAILED_PRECONDITION,
                      "session was made with another model: its tokens' chain "
                      "does not begin with this model's fingerprint");
    return status_because("MODEL_FINGERPRINT_MISMATCH");
}

/* A piece's last row may go on behind it: that is nobody's business here. */
static void cut_piece(const struct log_piece *piece, struct reading *reading)
{
    uint64_t n_excess = reading->end - piece->end;
    uint64_t n = reading->out->n - reading->n_before_row - n_excess;

    reading->chain = digest_tokens(reading->chain_before_row,
                                   reading->out->id + reading->n_before_row, n);
    reading->out->n -= n_excess;
    reading->end = piece->end;
}

static enum status read_piece(struct journal *journal,
                              const struct log_piece *piece,
                              struct reading *reading)
{
    struct store_scan *scan;
    struct row row;
    enum status st = open_scan(journal, key_of('k', piece->log), false, &scan);

    if (st)
        return st;
    while (!st && reading->end < piece->end && next_row(scan, &row))
        st = take_row(&row, reading);
    if (!st)
        st = store_scan_status(scan);
    store_scan_close(scan);
    if (st == STATUS_DATA_LOSS && status_cause()->reason[0] == 0)
        return log_lost(reading->end, status_reason());
    if (st)
        return st;
    if (reading->end > piece->end)
        cut_piece(piece, reading);
    if (reading->end < piece->end && piece->end != UINT64_MAX)
        return log_lost(reading->end, "the log that it was forked from ends");
    return STATUS_OK;
}

enum status journal_read_tokens(struct journal *journal,
                                const struct log_path *path, struct ids *out,
                                struct digest *out_chain)
{
    struct reading reading = {.out = out, .chain = journal->fingerprint};
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < path->n; i++)
        st = read_piece(journal, &path->piece[i], &reading);
    if (!st)
        *out_chain = reading.chain;
    return st;
}

enum status journal_each_row(struct journal *journal, struct uid log,
                             enum journal_rows rows, uint64_t from,
                             journal_visit_row *visit, void *context)
{
    struct key first = key_at((char)rows, log, from);
    struct key to = key_after(key_of((char)rows, log));
    struct store_scan *scan;
    struct row row;
    enum status st = store_scan_open(
        journal->store,
        &(struct store_range){first.bytes, first.n, to.bytes, to.n}, false,
        &scan);

    if (st)
        return st;
    while (!st && next_row(scan, &row))
        st = visit(context, row.position, row.value, row.value_bytes);
    if (!st)
        st = store_scan_status(scan);
    store_scan_close(scan);
    return st;
}

enum status journal_get_record(struct journal *journal, struct uid session,
                               void **out, size_t *out_bytes)
{
    struct key key = key_of('m', session);

    return store_get(journal->store, key.bytes, key.n, out, out_bytes);
}

struct digest journal_empty_chain(const struct journal *journal)
{
    return journal->fingerprint;
}

enum status journal_last_turn(struct journal *journal, struct uid log,
                              struct turn *out)
{
    struct turn turn;
    struct store_scan *scan;
    struct row row;
    enum status st = open_scan(journal, key_of('t', log), true, &scan);

    if (st)
        return st;
    if (next_row(scan, &row)) {
        st = record_get_turn(row.value, row.value_bytes, &turn);
        if (!st && turn.position != row.position)
            st = status_fail(STATUS_DATA_LOSS,
                             "turn of position %lu stands at position %lu",
                             turn.position, row.position);
        if (!st)
            *out = turn;
    } else {
        st = store_scan_status(scan);
        if (!st)
            st = status_fail(STATUS_NOT_FOUND, "session has no turn yet");
    }
    store_scan_close(scan);
    return st;
}
