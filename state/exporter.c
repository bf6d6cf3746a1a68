#include "state/exporter.h"

#include "state/bundle.h"
#include "state/lineage.h"
#include "state/snapshot_check.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum phase { PHASE_HEAD, PHASE_TOKENS, PHASE_TURNS, PHASE_VALUES, PHASE_DONE };

struct exporter {
    struct export_source source;
    struct seal_key key; /* source.key points here */
    enum phase phase;
    struct ids tokens;
    struct chains chains;
    struct bundle_head head;
    struct manifest manifest; /* of the log whose snapshot comes along */
    struct digest chain;      /* of the tokens that are out */
    uint64_t at;              /* tokens that are; then the next turn's row */
    struct bundle_place place;
    uint64_t n_frame;
    struct digest digest; /* of all frames so far */
    struct sealer *sealer;
    struct writer plain; /* frames that are not sealed yet */
    struct writer out;
    size_t n_taken; /* of `out` */
};

enum status exporter_create(const struct export_source *source,
                            struct exporter **out)
{
    struct exporter *exporter = calloc(1, sizeof(*exporter));

    if (!exporter)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to export a session");
    exporter->source = *source;
    if (source->key) {
        exporter->key = *source->key;
        exporter->source.key = &exporter->key;
    }
    writer_init(&exporter->plain, 2u * SNAPSHOT_VALUE_MAX);
    writer_init(&exporter->out, 4u * SNAPSHOT_VALUE_MAX);
    *out = exporter;
    return STATUS_OK;
}

void exporter_destroy(struct exporter *exporter)
{
    if (!exporter)
        return;
    ids_release(&exporter->tokens);
    chains_release(&exporter->chains);
    sealer_destroy(exporter->sealer);
    writer_release(&exporter->plain);
    writer_release(&exporter->out);
    memset(&exporter->key, 0, sizeof(exporter->key));
    free(exporter);
}

/* The frame that was just put behind `begin` of the plain writer. */
static enum status note_frame(struct exporter *exporter, size_t begin,
                              enum status st)
{
    if (st)
        return st;
    exporter->n_frame++;
    exporter->digest =
        digest_chain(exporter->digest, exporter->plain.bytes + begin,
                     exporter->plain.n - begin);
    return STATUS_OK;
}

/* --- which snapshot --- */

/* Of this log, the newest below the end: a resume needs one token more. A list
 * that cannot be used has none. */
static enum status choose(struct exporter *exporter,
                          const struct log_piece *piece)
{
    struct manifest *manifest = &exporter->manifest;
    uint64_t limit = exporter->tokens.n > 0 ? exporter->tokens.n - 1 : 0;
    enum status st =
        read_manifest(exporter->source.snapshots, piece->log, manifest);

    if (st == STATUS_RESOURCE_EXHAUSTED)
        return st;
    limit = piece->end < limit ? piece->end : limit;
    if (st ||
        !numerics_equal(manifest->numerics,
                        exporter->source.snapshots->numerics) ||
        !digest_equal(manifest->numerics.policy,
                      policy_digest(&exporter->source.meta.policy)))
        return STATUS_OK;
    for (uint32_t i = 0; i < manifest->n && exporter->head.snapshot == 0; i++) {
        const struct snapshot_entry *entry = &manifest->entry[i];

        if (entry->position <= limit &&
            chains_match(&exporter->chains, entry->position, entry->chain))
            exporter->head.snapshot = entry->position;
    }
    return STATUS_OK;
}

static enum status choose_snapshot(struct exporter *exporter)
{
    const struct log_path *path = &exporter->source.meta.path;
    enum status st = STATUS_OK;

    for (uint32_t i = path->n; !st && exporter->source.has_state &&
                               exporter->head.snapshot == 0 && i-- > 0;)
        st = choose(exporter, &path->piece[i]);
    return st;
}

/* --- one part after the other --- */

static enum status put_session(struct exporter *exporter)
{
    struct session_meta meta = exporter->source.meta;

    meta.path = log_path_alone(meta.uid);
    return record_put_session(&exporter->plain, &meta);
}

static enum status begin(struct exporter *exporter)
{
    const struct export_source *source = &exporter->source;
    size_t first = 0;
    enum status st =
        journal_read_tokens(source->journal, &source->meta.path,
                            &exporter->tokens, &exporter->head.chain);

    if (!st && exporter->tokens.n < source->n_token)
        st = status_fail(STATUS_DATA_LOSS, "the log has %zu of %lu tokens",
                         exporter->tokens.n, source->n_token);
    if (st)
        return st;
    exporter->tokens.n = source->n_token;
    exporter->chain = journal_empty_chain(source->journal);
    exporter->head.chain =
        digest_tokens(exporter->chain, exporter->tokens.id, exporter->tokens.n);
    st = chains_init(&exporter->chains, exporter->chain, &exporter->tokens);
    if (st)
        return st;
    exporter->head.numerics = source->snapshots->numerics;
    exporter->head.n_token = source->n_token;
    st = choose_snapshot(exporter);
    if (!st && source->key)
        st = sealer_create(source->key, &exporter->out, &exporter->sealer);
    if (!st)
        st = note_frame(exporter, first,
                        bundle_put_head(&exporter->plain, &exporter->head));
    first = exporter->plain.n;
    if (!st)
        st = note_frame(exporter, first, put_session(exporter));
    exporter->phase = PHASE_TOKENS;
    return st;
}

static enum status put_tokens(struct exporter *exporter)
{
    const size_t first = exporter->plain.n;
    uint64_t n = exporter->tokens.n - exporter->at;
    const uint32_t *token = exporter->tokens.id + exporter->at;

    if (n == 0) {
        exporter->phase = PHASE_TURNS;
        exporter->at = 0;
        return STATUS_OK;
    }
    n = n < BUNDLE_TOKENS ? n : BUNDLE_TOKENS;
    exporter->chain = digest_tokens(exporter->chain, token, n);
    exporter->at += n;
    return note_frame(exporter, first,
                      record_put_tokens(&exporter->plain, token, (uint32_t)n,
                                        exporter->chain));
}

static bool is_step_over(const struct exporter *exporter)
{
    return exporter->plain.n >= EXPORT_STEP_BYTES;
}

static enum status put_turn(void *context, uint64_t position, const void *bytes,
                            size_t n_bytes)
{
    struct exporter *exporter = context;
    const struct export_source *source = &exporter->source;
    const size_t first = exporter->plain.n;
    struct turn turn;
    enum status st = record_get_turn(bytes, n_bytes, &turn);

    if (st)
        return st;
    exporter->at = position + 1;
    if (source->has_last && source->last.position == position)
        turn = source->last;
    if (turn.position + turn.n_input > source->n_token)
        return STATUS_OK; /* it began since */
    st = note_frame(exporter, first, record_put_turn(&exporter->plain, &turn));
    return !st && is_step_over(exporter) ? STATUS_CANCELLED : st;
}

static enum status put_turns(struct exporter *exporter)
{
    const struct export_source *source = &exporter->source;
    enum status st = STATUS_OK;

    if (source->has_turns)
        st = journal_each_row(source->journal, log_path_own(&source->meta.path),
                              JOURNAL_TURNS, exporter->at, put_turn, exporter);
    if (st == STATUS_CANCELLED)
        return STATUS_OK;
    exporter->phase = PHASE_VALUES;
    exporter->place = bundle_first(source->snapshots, &source->meta.policy,
                                   exporter->head.snapshot);
    return st;
}

/* Whose log has this value. */
static struct value_place find_value(const struct exporter *exporter)
{
    const struct bundle_place at = exporter->place;
    const struct log_path *base = &exporter->manifest.base;
    struct value_place place = {.letter = at.letter,
                                .owner = exporter->manifest.uid,
                                .place = exporter->head.snapshot,
                                .layer = at.layer,
                                .policy = &exporter->source.meta.policy};

    if (at.letter != 'b')
        return place;
    place.place = at.block;
    for (uint32_t i = base->n; i-- > 0;)
        if (at.block < base->piece[i].end / KV_BLOCK)
            place.owner = base->piece[i].log;
    return place;
}

/* Was the snapshot dropped for a newer one since it was chosen? */
static bool is_replaced(const struct exporter *exporter)
{
    struct manifest now;

    if (read_manifest(exporter->source.snapshots, exporter->manifest.uid, &now))
        return false;
    for (uint32_t i = 0; i < now.n; i++)
        if (now.entry[i].position == exporter->head.snapshot)
            return false;
    return true;
}

static enum status damaged(const struct exporter *exporter,
                           const struct value_place *at)
{
    char name[VALUE_NAME_SIZE], why[200];

    if (status_cause()->code == STATUS_RESOURCE_EXHAUSTED)
        return STATUS_RESOURCE_EXHAUSTED; /* that is not the value's fault */
    if (status_cause()->code == STATUS_NOT_FOUND && is_replaced(exporter)) {
        (void)status_fail(STATUS_ABORTED,
                          "snapshot was replaced while it was exported");
        (void)status_because("OPERATION_ABORTED");
        return status_retry(100);
    }
    value_name(at, name);
    (void)strncpy(why, status_reason(), sizeof(why) - 1);
    why[sizeof(why) - 1] = 0;
    (void)status_fail(STATUS_DATA_LOSS,
                      "%s is not to be used: %s; verify the session, or "
                      "export its log alone",
                      name, why);
    return status_because("SNAPSHOT_DAMAGED");
}

static enum status put_value(struct exporter *exporter)
{
    const struct snapshots *snapshots = exporter->source.snapshots;
    const struct value_place at = find_value(exporter);
    const enum frame_kind kind = value_kind(at.letter);
    const size_t first = exporter->plain.n;
    struct value_head head;
    const void *data;
    size_t n_bytes, data_bytes;
    void *bytes;
    enum status st =
        value_read(snapshots, &at, &exporter->chains, &bytes, &n_bytes, &data);

    if (st)
        return damaged(exporter, &at);
    st = value_get(bytes, n_bytes, kind, &head, &data, &data_bytes);
    if (!st) {
        head.uid = (struct uid){0, 0};
        st = note_frame(
            exporter, first,
            value_put(&exporter->plain, kind, &head, data, data_bytes));
    }
    free(bytes);
    exporter->place = bundle_next(snapshots, &exporter->source.meta.policy,
                                  exporter->head.snapshot, exporter->place);
    return st;
}

static enum status put_end(struct exporter *exporter)
{
    exporter->phase = PHASE_DONE;
    return bundle_put_end(&exporter->plain, exporter->n_frame,
                          exporter->digest);
}

static enum status put_next(struct exporter *exporter)
{
    switch (exporter->phase) {
    case PHASE_HEAD:
        return begin(exporter);
    case PHASE_TOKENS:
        return put_tokens(exporter);
    case PHASE_TURNS:
        return put_turns(exporter);
    case PHASE_VALUES:
        return exporter->place.letter ? put_value(exporter) : put_end(exporter);
    case PHASE_DONE:
        break;
    }
    return STATUS_OK;
}

/* Whole pieces, and at the end what is left. */
static enum status seal(struct exporter *exporter)
{
    struct writer *plain = &exporter->plain;
    const bool is_end = exporter->phase == PHASE_DONE;
    enum status st = STATUS_OK;
    size_t at = 0;

    while (!st && (plain->n - at > SEAL_PIECE_BYTES || is_end)) {
        size_t n =
            plain->n - at < SEAL_PIECE_BYTES ? plain->n - at : SEAL_PIECE_BYTES;
        const bool is_last = is_end && at + n == plain->n;

        st = sealer_put(exporter->sealer, plain->bytes + at, n, is_last,
                        &exporter->out);
        at += n;
        if (is_last)
            break;
    }
    memmove(plain->bytes, plain->bytes + at, plain->n - at);
    plain->n -= at;
    return st;
}

enum status exporter_step(struct exporter *exporter)
{
    enum status st = STATUS_OK;

    assert(exporter->n_taken == exporter->out.n);
    writer_clear(&exporter->out);
    exporter->n_taken = 0;
    while (!st && exporter->phase != PHASE_DONE && !is_step_over(exporter))
        st = put_next(exporter);
    if (st)
        return st;
    if (exporter->source.key)
        return seal(exporter);
    writer_bytes(&exporter->out, exporter->plain.bytes, exporter->plain.n);
    writer_clear(&exporter->plain);
    if (exporter->out.is_failed)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to export a session");
    return STATUS_OK;
}

const void *exporter_take(struct exporter *exporter, size_t max_bytes,
                          size_t *out_n)
{
    size_t n = exporter->out.n - exporter->n_taken;
    const unsigned char *bytes = exporter->out.bytes + exporter->n_taken;

    *out_n = n < max_bytes ? n : max_bytes;
    exporter->n_taken += *out_n;
    return bytes;
}

bool exporter_is_done(const struct exporter *exporter)
{
    return exporter->phase == PHASE_DONE &&
           exporter->n_taken == exporter->out.n;
}
