#include "state/scrub.h"

#include "state/journal_record.h"
#include "state/lineage.h"
#include "state/scrub_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *scrub_kind_name(enum scrub_kind kind)
{
    static const char *const name[SCRUB_KIND_COUNT] = {
        "session", "tokens",     "turns", "manifest",
        "state",   "open_block", "block",
    };

    return name[kind];
}

enum scrub_kind scrub_kind_of(char letter)
{
    if (letter == 's')
        return SCRUB_STATE;
    return letter == 'o' ? SCRUB_OPEN : SCRUB_BLOCK;
}

void scrub_note(struct scrub *scrub, enum scrub_kind kind, enum status st,
                const char *what)
{
    struct scrub_report *report = &scrub->report;

    if (st == STATUS_RESOURCE_EXHAUSTED) {
        scrub->failure = *status_cause();
        return;
    }
    if (st == STATUS_NOT_FOUND)
        report->count[kind].n_missing++;
    else
        report->count[kind].n_bad++;
    if (report->n_finding == SCRUB_FINDING_MAX)
        return;
    (void)snprintf(report->finding[report->n_finding++], SCRUB_FINDING_SIZE,
                   "%s: %.150s", what,
                   st == STATUS_NOT_FOUND ? "it is missing" : status_reason());
}

enum status scrub_create(const struct scrub_source *source, struct scrub **out)
{
    struct scrub *scrub = calloc(1, sizeof(*scrub));

    if (!scrub)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to verify a session");
    scrub->source = *source;
    scrub->report.chain = journal_empty_chain(source->journal);
    *out = scrub;
    return STATUS_OK;
}

void scrub_destroy(struct scrub *scrub)
{
    if (!scrub)
        return;
    ids_release(&scrub->tokens);
    chains_release(&scrub->chains);
    free(scrub->report.drop);
    free(scrub);
}

const struct scrub_report *scrub_report(const struct scrub *scrub)
{
    return &scrub->report;
}

static void count(struct scrub *scrub, enum scrub_kind kind, size_t n_bytes)
{
    scrub->report.count[kind].n++;
    scrub->report.count[kind].bytes += n_bytes;
    scrub->step_bytes += n_bytes;
}

static bool is_step_over(const struct scrub *scrub)
{
    return scrub->step_bytes >= SCRUB_STEP_BYTES ||
           scrub->step_rows >= SCRUB_STEP_ROWS;
}

/* --- the journal --- */

static void check_record(struct scrub *scrub)
{
    struct session_meta meta;
    size_t n_bytes;
    void *bytes;
    enum status st = journal_get_record(
        scrub->source.journal, scrub->source.session, &bytes, &n_bytes);

    if (!st) {
        count(scrub, SCRUB_SESSION, n_bytes);
        st = record_get_session(bytes, n_bytes, &meta);
        free(bytes);
    }
    if (st)
        scrub_note(scrub, SCRUB_SESSION, st, "session's record");
}

static enum status append(struct ids *ids, const void *token, size_t n_token)
{
    size_t n = ids->n + n_token;

    if (n > ids->capacity) {
        size_t capacity = n > 2 * ids->capacity ? n : 2 * ids->capacity;
        uint32_t *id = realloc(ids->id, capacity * sizeof(*id));

        if (!id)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory to verify %zu tokens", n);
        ids->id = id;
        ids->capacity = capacity;
    }
    memcpy(ids->id + ids->n, token, n_token * sizeof(*ids->id));
    ids->n = n;
    return STATUS_OK;
}

/* What a piece of the log must reach to. */
static uint64_t piece_end(const struct scrub *scrub)
{
    uint64_t end = scrub->source.path.piece[scrub->piece].end;

    return end < scrub->source.n_token ? end : scrub->source.n_token;
}

static enum status take_tokens(struct scrub *scrub, uint64_t position,
                               const struct record_tokens *row)
{
    uint64_t before = scrub->tokens.n, end = piece_end(scrub);
    struct digest chain;
    enum status st;

    if (position != before)
        return status_fail(STATUS_DATA_LOSS, "it stands at %lu, expected %lu",
                           position, before);
    st = append(&scrub->tokens, row->token, row->n_token);
    if (st)
        return st;
    chain = digest_tokens(scrub->report.chain, scrub->tokens.id + before,
                          row->n_token);
    if (!digest_equal(chain, row->chain)) {
        scrub->tokens.n = before;
        if (before > 0)
            return status_fail(STATUS_DATA_LOSS, "its chain hash differs");
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "session was made with another model");
        return status_because("MODEL_FINGERPRINT_MISMATCH");
    }
    if (scrub->tokens.n > end) { /* the rest is nobody's business here */
        scrub->tokens.n = end;
        chain = digest_tokens(scrub->report.chain, scrub->tokens.id + before,
                              end - before);
    }
    scrub->report.chain = chain;
    return STATUS_OK;
}

/* CANCELLED: the step is over, or the piece is. */
static enum status visit_tokens(void *context, uint64_t position,
                                const void *bytes, size_t n_bytes)
{
    struct scrub *scrub = context;
    struct record_tokens row;
    enum status st;

    count(scrub, SCRUB_TOKENS, n_bytes);
    scrub->step_rows++;
    st = record_get_tokens(bytes, n_bytes, &row);
    if (!st)
        st = take_tokens(scrub, position, &row);
    if (!st && (is_step_over(scrub) || scrub->tokens.n >= piece_end(scrub)))
        return STATUS_CANCELLED;
    return st;
}

/* The log is sound up to here, and nothing behind can be judged. */
static void end_tokens(struct scrub *scrub, enum status st)
{
    char what[96];

    (void)snprintf(what, sizeof(what), "tokens behind position %zu of %lu",
                   scrub->tokens.n, scrub->source.n_token);
    scrub_note(scrub, SCRUB_TOKENS, st, what);
    scrub->phase = SCRUB_PHASE_TURNS;
}

static enum status check_tokens(struct scrub *scrub)
{
    const struct log_path *path = &scrub->source.path;
    enum status st = STATUS_OK;

    if (scrub->tokens.n < piece_end(scrub))
        st = journal_each_row(scrub->source.journal,
                              path->piece[scrub->piece].log, JOURNAL_TOKENS,
                              scrub->tokens.n, visit_tokens, scrub);
    scrub->report.n_token = scrub->tokens.n;
    if (st == STATUS_CANCELLED)
        st = STATUS_OK;
    else if (!st && scrub->tokens.n < piece_end(scrub))
        st = STATUS_NOT_FOUND;
    if (st == STATUS_RESOURCE_EXHAUSTED || st == STATUS_FAILED_PRECONDITION)
        return st;
    if (st)
        end_tokens(scrub, st);
    else if (scrub->tokens.n >= piece_end(scrub) && ++scrub->piece == path->n)
        scrub->phase = SCRUB_PHASE_TURNS;
    return STATUS_OK;
}

static enum status visit_turn(void *context, uint64_t position,
                              const void *bytes, size_t n_bytes)
{
    struct scrub *scrub = context;
    struct turn turn;
    char what[64];
    enum status st;

    count(scrub, SCRUB_TURNS, n_bytes);
    scrub->step_rows++;
    scrub->next_row = position + 1;
    st = record_get_turn(bytes, n_bytes, &turn);
    if (!st && turn.position != position)
        st = status_fail(STATUS_DATA_LOSS, "it says that it is at %lu",
                         turn.position);
    if (st) {
        (void)snprintf(what, sizeof(what), "turn at position %lu", position);
        scrub_note(scrub, SCRUB_TURNS, st, what);
    }
    return is_step_over(scrub) ? STATUS_CANCELLED : STATUS_OK;
}

static enum status check_turns(struct scrub *scrub)
{
    enum status st = journal_each_row(
        scrub->source.journal, log_path_own(&scrub->source.path), JOURNAL_TURNS,
        scrub->next_row, visit_turn, scrub);

    if (st == STATUS_CANCELLED)
        return STATUS_OK;
    if (st)
        scrub_note(scrub, SCRUB_TURNS, st, "turns");
    scrub->phase = SCRUB_PHASE_MANIFESTS;
    return chains_init(&scrub->chains,
                       journal_empty_chain(scrub->source.journal),
                       &scrub->tokens);
}

/* --- what is stored --- */

/* Its snapshots of these tokens, and the blocks that they need of it. */
static void take_manifest(struct scrub *scrub, struct scrub_log *log,
                          const struct manifest *manifest)
{
    const uint64_t limit =
        log->end < scrub->tokens.n ? log->end : scrub->tokens.n;

    log->base = manifest->base;
    log->first_block = log_pieces_end(&manifest->base) / KV_BLOCK;
    for (uint32_t i = 0; i < manifest->n; i++) {
        const struct snapshot_entry *from = &manifest->entry[i];
        struct scrub_entry *to = &log->entry[log->n];

        *to = (struct scrub_entry){.position = from->position,
                                   .is_gone = from->position > limit};
        log->n++;
        if (to->is_gone)
            continue;
        if (!chains_match(&scrub->chains, from->position, from->chain)) {
            (void)status_fail(STATUS_FAILED_PRECONDITION,
                              "snapshot at %lu was made from other tokens",
                              from->position);
            scrub_note(scrub, SCRUB_MANIFEST, STATUS_FAILED_PRECONDITION,
                       "list of snapshots");
            to->is_bad = true;
        }
        if (log->n_block < from->position / KV_BLOCK)
            log->n_block = from->position / KV_BLOCK;
    }
}

static void check_manifest(struct scrub *scrub, struct scrub_log *log)
{
    struct snapshots *snapshots = scrub->source.snapshots;
    struct key key = key_of('v', log->uid);
    struct manifest manifest;
    size_t n_bytes;
    void *bytes;
    enum status st =
        store_get(snapshots->store, key.bytes, key.n, &bytes, &n_bytes);

    if (st == STATUS_NOT_FOUND)
        return; /* nothing was stored yet */
    if (!st) {
        count(scrub, SCRUB_MANIFEST, n_bytes);
        free(bytes);
        st = read_manifest(snapshots, log->uid, &manifest);
    }
    if (st) {
        log->is_bad = true;
        scrub_note(scrub, SCRUB_MANIFEST, st, "list of snapshots");
    } else if (numerics_equal(manifest.numerics, snapshots->numerics)) {
        take_manifest(scrub, log, &manifest);
    } /* else it is of another arithmetic, and never used */
}

/* Blocks of an ancestor that a later log's snapshots need. */
static void need_blocks(struct scrub *scrub, const struct scrub_log *of)
{
    uint64_t first = 0;

    for (uint32_t i = 0; i < of->base.n; i++) {
        const struct log_piece *piece = &of->base.piece[i];
        uint64_t n = piece->end / KV_BLOCK;

        for (uint32_t j = 0; j < scrub->source.path.n; j++) {
            struct scrub_log *log = &scrub->logs[j];

            if (!uid_equal(log->uid, piece->log))
                continue;
            if (log->first_lent > first || log->n_lent == 0)
                log->first_lent = first;
            if (log->n_lent < n)
                log->n_lent = n;
        }
        first = n;
    }
}

static void check_manifests(struct scrub *scrub)
{
    const struct log_path *path = &scrub->source.path;

    for (uint32_t i = 0; i < path->n; i++) {
        scrub->logs[i] = (struct scrub_log){.uid = path->piece[i].log,
                                            .end = path->piece[i].end,
                                            .first_bad = UINT64_MAX};
        check_manifest(scrub, &scrub->logs[i]);
    }
    for (uint32_t i = 0; i < path->n; i++)
        if (scrub->logs[i].n > 0)
            need_blocks(scrub, &scrub->logs[i]);
    scrub->phase = SCRUB_PHASE_VALUES;
}

/* Or was it dropped for a newer one since the list was read? */
static bool is_named(struct scrub *scrub, struct uid log, uint64_t position)
{
    struct manifest manifest;

    if (read_manifest(scrub->source.snapshots, log, &manifest))
        return true;
    for (uint32_t i = 0; i < manifest.n; i++)
        if (manifest.entry[i].position == position)
            return true;
    return false;
}

/* Not OK: it is bad or missing, and noted. CANCELLED: it was dropped. */
static enum status check_value(struct scrub *scrub,
                               const struct value_place *at)
{
    const enum scrub_kind kind = scrub_kind_of(at->letter);
    struct snapshots *snapshots = scrub->source.snapshots;
    struct key key = value_key(at->letter, at->owner, at->place, at->layer);
    char name[VALUE_NAME_SIZE];
    const void *data;
    size_t n_bytes;
    void *bytes;
    enum status st =
        store_get(snapshots->store, key.bytes, key.n, &bytes, &n_bytes);

    if (!st) {
        count(scrub, kind, n_bytes);
        st = value_check(snapshots, at, &scrub->chains, bytes, n_bytes, &data);
        free(bytes);
    }
    if (st == STATUS_NOT_FOUND && at->letter != 'b' &&
        !is_named(scrub, at->owner, at->place))
        return STATUS_CANCELLED;
    if (st) {
        value_name(at, name);
        scrub_note(scrub, kind, st, name);
    }
    return st;
}

/* State and open block of one layer of one snapshot. */
static void check_entry(struct scrub *scrub, struct scrub_log *log)
{
    struct scrub_entry *entry = &log->entry[scrub->place];

    for (const char *letter = "so"; *letter && !entry->is_gone; letter++) {
        const struct value_place at = {*letter, log->uid, entry->position,
                                       scrub->layer, &scrub->source.policy};
        enum status st = value_bytes(scrub->source.snapshots, &at) > 0
                             ? check_value(scrub, &at)
                             : STATUS_OK;

        entry->is_gone = st == STATUS_CANCELLED;
        entry->is_bad |= st && st != STATUS_CANCELLED;
    }
}

static void check_block(struct scrub *scrub, struct scrub_log *log)
{
    const struct value_place at = {'b', log->uid, scrub->place, scrub->layer,
                                   &scrub->source.policy};

    if (scrub_has_block(log, scrub->place) &&
        value_bytes(scrub->source.snapshots, &at) > 0 &&
        check_value(scrub, &at) && log->first_bad > scrub->place)
        log->first_bad = scrub->place;
}

static uint64_t n_block(const struct scrub_log *log)
{
    return log->n_block > log->n_lent ? log->n_block : log->n_lent;
}

/* Layers of the entries of a log, then of its blocks, then the next log. */
static void check_values(struct scrub *scrub)
{
    while (scrub->log < scrub->source.path.n) {
        struct scrub_log *log = &scrub->logs[scrub->log];

        for (; !scrub->is_in_blocks && scrub->place < log->n; scrub->place++) {
            for (; scrub->layer < scrub->source.snapshots->n_layer;
                 scrub->layer++) {
                if (is_step_over(scrub))
                    return;
                check_entry(scrub, log);
            }
            scrub->layer = 0;
        }
        if (!scrub->is_in_blocks) {
            scrub->is_in_blocks = true;
            scrub->place = 0;
        }
        for (; scrub->place < n_block(log); scrub->place++) {
            for (; scrub->layer < scrub->source.snapshots->n_layer;
                 scrub->layer++) {
                if (is_step_over(scrub))
                    return;
                check_block(scrub, log);
            }
            scrub->layer = 0;
        }
        scrub->is_in_blocks = false;
        scrub->place = 0;
        scrub->log++;
    }
    scrub->phase = SCRUB_PHASE_DONE;
}

enum status scrub_step(struct scrub *scrub, bool *out_is_done)
{
    enum status st = STATUS_OK;

    scrub->step_bytes = scrub->step_rows = 0;
    while (!st && !scrub->failure.code && !is_step_over(scrub) &&
           scrub->phase != SCRUB_PHASE_DONE)
        switch (scrub->phase) {
        case SCRUB_PHASE_RECORD:
            check_record(scrub);
            scrub->phase = SCRUB_PHASE_TOKENS;
            break;
        case SCRUB_PHASE_TOKENS:
            st = check_tokens(scrub);
            break;
        case SCRUB_PHASE_TURNS:
            st = check_turns(scrub);
            break;
        case SCRUB_PHASE_MANIFESTS:
            check_manifests(scrub);
            break;
        case SCRUB_PHASE_VALUES:
            check_values(scrub);
            break;
        case SCRUB_PHASE_DONE:
            break;
        }
    if (!st && scrub->failure.code)
        st = status_adopt(&scrub->failure);
    if (!st)
        *out_is_done = scrub->phase == SCRUB_PHASE_DONE;
    return st;
}
