#include "state/importer.h"

#include "base/utf8.h"
#include "state/bundle.h"
#include "state/prefix.h"
#include "state/snapshot_check.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_BYTES (2u << 20)  /* values written at once */
#define FRAME_LEAST (64u << 10) /* bytes that any frame may have */
#define FRAME_SLACK 1024u       /* of a value, besides its payload */
#define BYTES_MAX (1u << 30)    /* kept at once; frames are bounded before */

enum phase {
    PHASE_HEAD,
    PHASE_SESSION,
    PHASE_TOKENS,
    PHASE_TURNS,
    PHASE_VALUES,
    PHASE_DONE
};
enum form { FORM_UNKNOWN, FORM_PLAIN, FORM_SEALED };

struct importer {
    struct import_source source;
    struct seal_key key; /* source.key points here */
    size_t frame_max;
    enum form form;
    struct opener *opener; /* NULL until the head of a sealed stream came */
    struct writer sealed;  /* what came and is not yet opened */
    struct writer plain;   /* what is not yet parsed */

    enum phase phase;
    struct bundle_head head;
    struct session_meta meta;
    struct ids tokens;
    struct digest chain; /* of them */
    struct chains chains;
    struct writer turns; /* frames */
    uint64_t next_turn;  /* none stands before it */
    struct bundle_place place;
    struct writer frame; /* scratch of one value */
    struct store_batch *batch;
    bool has_written;
    struct snapshot_entry entry;
    uint64_t n_frame;
    struct digest digest;
};

/* No frame is larger than the largest value of this model, or the head of a
 * forged one would make us wait for gigabytes. */
static size_t frame_max(const struct snapshots *snapshots)
{
    size_t max = FRAME_LEAST;

    for (uint32_t i = 0; i < snapshots->n_layer * N_INDEX; i++) {
        const struct mixer_plan *plan = model_plan_for(
            snapshots->model, i / N_INDEX, (enum index_kind)(i % N_INDEX));

        if (max < plan->state_bytes + FRAME_SLACK)
            max = plan->state_bytes + FRAME_SLACK;
        if (max < plan->block_bytes + FRAME_SLACK)
            max = plan->block_bytes + FRAME_SLACK;
    }
    return max;
}

enum status importer_create(const struct import_source *source,
                            struct importer **out)
{
    struct importer *importer = calloc(1, sizeof(*importer));

    if (!importer)
        goto no_memory;
    importer->source = *source;
    if (source->key) {
        importer->key = *source->key;
        importer->source.key = &importer->key;
    }
    importer->frame_max = frame_max(source->snapshots);
    importer->chain = source->snapshots->numerics.fingerprint;
    writer_init(&importer->sealed, BYTES_MAX);
    writer_init(&importer->plain, BYTES_MAX);
    writer_init(&importer->turns, IMPORT_TURN_BYTES);
    writer_init(&importer->frame, SNAPSHOT_VALUE_MAX);
    importer->batch = store_batch_create(source->snapshots->store);
    if (!importer->batch)
        goto no_memory;
    *out = importer;
    return STATUS_OK;

no_memory:
    importer_destroy(importer);
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "no memory to import a session");
}

void importer_destroy(struct importer *importer)
{
    if (!importer)
        return;
    opener_destroy(importer->opener);
    writer_release(&importer->sealed);
    writer_release(&importer->plain);
    writer_release(&importer->turns);
    writer_release(&importer->frame);
    ids_release(&importer->tokens);
    chains_release(&importer->chains);
    store_batch_destroy(importer->batch);
    memset(&importer->key, 0, sizeof(importer->key));
    free(importer);
}

static enum status damaged(const char *why)
{
    char copy[200];

    (void)snprintf(copy, sizeof(copy), "%s", why); /* it may be our cause's */
    (void)status_fail(STATUS_DATA_LOSS, "bundle is damaged: %s", copy);
    return status_because("BUNDLE_DAMAGED");
}

/* A frame that was not opened: is it bad, or of another version? */
static enum status unreadable(enum status st)
{
    return st == STATUS_FAILED_PRECONDITION ? status_because("BUNDLE_VERSION")
                                            : damaged(status_reason());
}

static enum status misfit(const char *reason, const char *why)
{
    (void)status_fail(STATUS_FAILED_PRECONDITION, "%s", why);
    return status_because(reason);
}

/* --- one frame after the other --- */

static enum status take_head(struct importer *importer, const void *bytes,
                             size_t n_bytes)
{
    const struct import_source *source = &importer->source;
    struct numerics own = source->snapshots->numerics;
    enum status st = bundle_get_head(bytes, n_bytes, &importer->head);

    if (st)
        return unreadable(st);
    if (!digest_equal(importer->head.numerics.fingerprint, own.fingerprint))
        return misfit("MODEL_FINGERPRINT_MISMATCH",
                      "bundle's session was made with another model");
    if (importer->head.n_token > source->n_context) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "bundle's session has %lu tokens, limit %lu",
                          importer->head.n_token, source->n_context);
        return status_because("CONTEXT_LENGTH_EXCEEDED");
    }
    if (importer->head.snapshot > 0 && !source->skips_state &&
        !digest_equal(importer->head.numerics.id, own.id))
        return misfit("NUMERICS_MISMATCH",
                      "bundle's states were made by another arithmetic; "
                      "import its log alone");
    importer->phase = PHASE_SESSION;
    return STATUS_OK;
}

static bool is_name(const char *name)
{
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("._-", *name))
            return false;
    return true;
}

static bool is_utf8(const char *text)
{
    return utf8_prefix(text, strlen(text)) == strlen(text);
}

static enum status take_session(struct importer *importer, const void *bytes,
                                size_t n_bytes)
{
    struct session_meta *meta = &importer->meta;
    enum status st = record_get_session(bytes, n_bytes, meta);
    bool is_good;

    if (st)
        return unreadable(st);
    is_good = is_name(meta->name) && is_name(meta->parent_name);
    for (uint32_t i = 0; i < meta->n_label; i++)
        is_good &= is_utf8(meta->label[i].key) && is_utf8(meta->label[i].value);
    if (!is_good)
        return damaged("a name or a label has forbidden characters");
    st = model_check_policy(importer->source.snapshots->model, &meta->policy);
    if (st)
        return st;
    meta->durability = DURABILITY_LOCAL;
    meta->tenant[0] = 0; /* whoever imports it says */
    meta->is_pinned = false;
    importer->phase = PHASE_TOKENS;
    return STATUS_OK;
}

static enum status append(struct importer *importer,
                          const struct record_tokens *row)
{
    struct ids *tokens = &importer->tokens;
    size_t n = tokens->n + row->n_token;

    if (n > tokens->capacity) {
        size_t capacity = n > 2 * tokens->capacity ? n : 2 * tokens->capacity;
        uint32_t *id = realloc(tokens->id, capacity * sizeof(*id));

        if (!id)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for %zu tokens", n);
        tokens->id = id;
        tokens->capacity = capacity;
    }
    memcpy(tokens->id + tokens->n, row->token,
           row->n_token * sizeof(*tokens->id));
    for (size_t i = tokens->n; i < n; i++)
        if (tokens->id[i] >= importer->source.n_vocab)
            return damaged("a token is outside the vocabulary");
    tokens->n = n;
    return STATUS_OK;
}

static enum status take_tokens(struct importer *importer, const void *bytes,
                               size_t n_bytes)
{
    const uint64_t before = importer->tokens.n;
    struct record_tokens row;
    enum status st = record_get_tokens(bytes, n_bytes, &row);

    if (st)
        return unreadable(st);
    if (row.n_token > importer->head.n_token - before)
        return damaged("there are more tokens than its head says");
    st = append(importer, &row);
    if (st)
        return st;
    importer->chain = digest_tokens(importer->chain,
                                    importer->tokens.id + before, row.n_token);
    if (!digest_equal(importer->chain, row.chain))
        return misfit("CHAIN_MISMATCH",
                      "bundle's tokens do not give the chain hash that stands "
                      "beside them");
    return STATUS_OK;
}

/* All tokens are there. */
static enum status end_tokens(struct importer *importer)
{
    const struct snapshots *snapshots = importer->source.snapshots;

    if (!digest_equal(importer->chain, importer->head.chain))
        return misfit("CHAIN_MISMATCH",
                      "bundle's tokens do not give its head's chain hash");
    importer->phase = PHASE_TURNS;
    if (!importer->source.skips_state)
        importer->place = bundle_first(snapshots, &importer->meta.policy,
                                       importer->head.snapshot);
    return chains_init(&importer->chains, snapshots->numerics.fingerprint,
                       &importer->tokens);
}

static bool is_visible(const char *text)
{
    for (; *text; text++)
        if (*text < '!' || *text > '~')
            return false;
    return true;
}

static enum status take_turn(struct importer *importer, const void *bytes,
                             size_t n_bytes)
{
    struct turn turn;
    enum status st = record_get_turn(bytes, n_bytes, &turn);

    if (st)
        return unreadable(st);
    if (turn.position < importer->next_turn ||
        turn.position > importer->head.n_token ||
        turn.n_input > importer->head.n_token - turn.position ||
        !is_visible(turn.request_id))
        return damaged("a turn is not where one may be");
    importer->next_turn = turn.position + 1;
    writer_bytes(&importer->turns, bytes, n_bytes);
    return importer->turns.is_failed
               ? status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "bundle has more than %u bytes of turns",
                             IMPORT_TURN_BYTES)
               : STATUS_OK;
}

static enum status put_manifest(struct importer *importer, bool is_whole)
{
    const struct import_source *source = &importer->source;
    struct key key = key_of('v', source->log);
    struct manifest manifest = {.uid = source->log,
                                .session = source->log,
                                .numerics = source->snapshots->numerics,
                                .index = importer->meta.policy.index,
                                .n = is_whole,
                                .entry = {importer->entry}};
    enum status st;

    manifest.numerics.policy = policy_digest(&importer->meta.policy);
    writer_clear(&importer->frame);
    st = manifest_put(&importer->frame, &manifest);
    if (!st)
        store_batch_put(importer->batch, key.bytes, key.n,
                        importer->frame.bytes, importer->frame.n);
    return st;
}

static enum status flush(struct importer *importer, bool sync)
{
    enum status st =
        store_write(importer->source.snapshots->store, importer->batch, sync);

    store_batch_clear(importer->batch);
    return st;
}

/* The same under our log; the first of them behind an empty manifest, so that
 * a start finds whose they are if we are killed now. */
static enum status write_value(struct importer *importer,
                               const struct value_place *at, const void *bytes,
                               size_t n_bytes)
{
    const uint64_t owner_place = at->place;
    struct key key =
        value_key(at->letter, importer->source.log, owner_place, at->layer);
    struct value_head head;
    const void *data;
    size_t data_bytes;
    enum status st = value_get(bytes, n_bytes, value_kind(at->letter), &head,
                               &data, &data_bytes);

    if (!st && !importer->has_written)
        st = put_manifest(importer, false);
    if (st)
        return st;
    importer->has_written = true;
    head.uid = importer->source.log;
    writer_clear(&importer->frame);
    st = value_put(&importer->frame, value_kind(at->letter), &head, data,
                   data_bytes);
    if (st)
        return st;
    store_batch_put(importer->batch, key.bytes, key.n, importer->frame.bytes,
                    importer->frame.n);
    return store_batch_bytes(importer->batch) < BATCH_BYTES
               ? STATUS_OK
               : flush(importer, false);
}

static enum status take_value(struct importer *importer, uint16_t kind,
                              const void *bytes, size_t n_bytes)
{
    const struct snapshots *snapshots = importer->source.snapshots;
    const struct bundle_place place = importer->place;
    const struct value_place at = {
        .letter = place.letter,
        .place = place.letter == 'b' ? place.block : importer->head.snapshot,
        .layer = place.layer,
        .policy = &importer->meta.policy};
    const void *data;
    enum status st;

    if (place.letter == 0 || kind != (uint16_t)value_kind(place.letter))
        return damaged("a value is not the next one");
    st = value_check(snapshots, &at, &importer->chains, bytes, n_bytes, &data);
    if (st == STATUS_DATA_LOSS)
        return damaged(status_reason());
    if (st)
        return st;
    importer->place = bundle_next(snapshots, &importer->meta.policy,
                                  importer->head.snapshot, place);
    return write_value(importer, &at, bytes, n_bytes);
}

static enum status take_end(struct importer *importer, const void *bytes,
                            size_t n_bytes)
{
    struct digest digest;
    uint64_t n_frame;
    enum status st = bundle_get_end(bytes, n_bytes, &n_frame, &digest);

    if (st)
        return unreadable(st);
    if (n_frame != importer->n_frame ||
        !digest_equal(digest, importer->digest) || importer->place.letter)
        return damaged("frames are missing, or are another bundle's");
    importer->phase = PHASE_DONE;
    return STATUS_OK;
}

static bool is_value(uint16_t kind)
{
    return kind == FRAME_STATE || kind == FRAME_OPEN || kind == FRAME_BLOCK;
}

/* Behind the tokens: turns, values, and the end. */
static enum status take_late(struct importer *importer, uint16_t kind,
                             const void *bytes, size_t n_bytes)
{
    if (kind == FRAME_BUNDLE_END)
        return take_end(importer, bytes, n_bytes);
    if (kind == FRAME_TURN && importer->phase == PHASE_TURNS)
        return take_turn(importer, bytes, n_bytes);
    if (!is_value(kind))
        return damaged("a frame is not where it may be");
    importer->phase = PHASE_VALUES;
    return importer->source.skips_state
               ? STATUS_OK
               : take_value(importer, kind, bytes, n_bytes);
}

static enum status take_frame(struct importer *importer, uint16_t kind,
                              const void *bytes, size_t n_bytes)
{
    static const uint16_t due[] = {[PHASE_HEAD] = FRAME_BUNDLE,
                                   [PHASE_SESSION] = FRAME_SESSION,
                                   [PHASE_TOKENS] = FRAME_TOKENS};
    enum status st = STATUS_OK;

    if (importer->phase == PHASE_DONE)
        return damaged("there is more behind its end");
    if (importer->phase <= PHASE_TOKENS && kind != due[importer->phase])
        return damaged("a frame is not where it may be");
    if (importer->phase == PHASE_HEAD)
        st = take_head(importer, bytes, n_bytes);
    else if (importer->phase == PHASE_SESSION)
        st = take_session(importer, bytes, n_bytes);
    else if (importer->phase == PHASE_TOKENS)
        st = take_tokens(importer, bytes, n_bytes);
    else
        st = take_late(importer, kind, bytes, n_bytes);
    if (!st && importer->phase == PHASE_TOKENS &&
        importer->tokens.n == importer->head.n_token)
        st = end_tokens(importer);
    importer->n_frame++;
    importer->digest = digest_chain(importer->digest, bytes, n_bytes);
    return st;
}

/* --- bytes become frames --- */

/* *out_bytes: of the frame that `from` begins with; 0: not all of it is there.
 */
static enum status next_frame(const struct writer *from, size_t at, size_t max,
                              uint16_t *out_kind, size_t *out_bytes)
{
    uint64_t n_bytes;

    *out_bytes = 0;
    if (from->n - at < FRAME_HEAD_BYTES)
        return STATUS_OK;
    if (frame_peek(from->bytes + at, out_kind, &n_bytes))
        return damaged(status_reason());
    if (n_bytes > max)
        return damaged("a frame is larger than any may be");
    if (n_bytes <= from->n - at)
        *out_bytes = n_bytes;
    return STATUS_OK;
}

static void consume(struct writer *from, size_t n)
{
    if (n == 0)
        return;
    memmove(from->bytes, from->bytes + n, from->n - n);
    from->n -= n;
}

static enum status parse(struct importer *importer)
{
    struct writer *plain = &importer->plain;
    size_t at = 0, n = 1;
    uint16_t kind;
    enum status st = STATUS_OK;

    while (!st && n > 0) {
        st = next_frame(plain, at, importer->frame_max, &kind, &n);
        if (!st && n > 0)
            st = take_frame(importer, kind, plain->bytes + at, n);
        at += n;
    }
    if (!st)
        consume(plain, at);
    return st;
}

static enum status begin_opener(struct importer *importer, const void *frame,
                                size_t n_bytes)
{
    enum status st;

    if (!importer->source.key)
        return misfit("KEY_MISSING",
                      "bundle is sealed, and this node has no key of this "
                      "tenant");
    st = opener_create(importer->source.key, frame, n_bytes, &importer->opener);
    return st == STATUS_DATA_LOSS ? damaged(status_reason()) : st;
}

static enum status open_sealed(struct importer *importer)
{
    struct writer *sealed = &importer->sealed;
    size_t at = 0, n = 1;
    uint16_t kind;
    enum status st = STATUS_OK;

    while (!st && n > 0) {
        st = next_frame(sealed, at, SEAL_FRAME_MAX, &kind, &n);
        if (!st && n > 0) {
            const void *frame = sealed->bytes + at;

            st = importer->opener
                     ? opener_take(importer->opener, frame, n, &importer->plain)
                     : begin_opener(importer, frame, n);
        }
        at += n;
        if (!st && n > 0)
            st = parse(importer);
    }
    if (!st)
        consume(sealed, at);
    return st;
}

/* Its first frame says whether it is sealed. */
static enum status find_form(struct importer *importer)
{
    uint64_t n_bytes;
    uint16_t kind;

    if (importer->sealed.n < FRAME_HEAD_BYTES)
        return STATUS_OK;
    if (frame_peek(importer->sealed.bytes, &kind, &n_bytes))
        return damaged(status_reason());
    importer->form = kind == FRAME_SEAL ? FORM_SEALED : FORM_PLAIN;
    if (importer->form == FORM_PLAIN) {
        writer_bytes(&importer->plain, importer->sealed.bytes,
                     importer->sealed.n);
        writer_clear(&importer->sealed);
    }
    return STATUS_OK;
}

enum status importer_push(struct importer *importer, const void *bytes,
                          size_t n_bytes)
{
    enum status st = STATUS_OK;

    writer_bytes(importer->form == FORM_PLAIN ? &importer->plain
                                              : &importer->sealed,
                 bytes, n_bytes);
    if (importer->form == FORM_UNKNOWN)
        st = find_form(importer);
    if (importer->plain.is_failed || importer->sealed.is_failed)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a piece of a bundle");
    if (st || importer->form == FORM_UNKNOWN)
        return st;
    return importer->form == FORM_PLAIN ? parse(importer)
                                        : open_sealed(importer);
}

enum status importer_end(struct importer *importer)
{
    enum status st = STATUS_OK;

    if (importer->phase != PHASE_DONE || importer->plain.n > 0 ||
        importer->sealed.n > 0 ||
        (importer->opener && !opener_is_done(importer->opener))) {
        (void)status_fail(STATUS_DATA_LOSS,
                          "bundle ends before its end, behind %lu frames",
                          importer->n_frame);
        return status_because("BUNDLE_TRUNCATED");
    }
    if (!importer->has_written)
        return STATUS_OK;
    importer->entry = (struct snapshot_entry){
        .position = importer->head.snapshot,
        .chain = digest_tokens(importer->source.snapshots->numerics.fingerprint,
                               importer->tokens.id, importer->head.snapshot),
        .scope = policy_scope(&importer->meta.policy, importer->source.scope),
        .create_ms = importer->source.create_ms};
    st = put_manifest(importer, true);
    return st ? st : flush(importer, true);
}

const struct session_meta *importer_meta(const struct importer *importer)
{
    return &importer->meta;
}

struct ids *importer_tokens(struct importer *importer)
{
    return &importer->tokens;
}

const struct snapshot_entry *importer_entry(const struct importer *importer)
{
    return importer->entry.position > 0 ? &importer->entry : NULL;
}

enum status importer_each_turn(const struct importer *importer,
                               importer_visit *visit, void *context)
{
    const struct writer *turns = &importer->turns;
    enum status st = STATUS_OK;

    for (size_t at = 0; !st && at < turns->n;) {
        struct turn turn;
        uint64_t n_bytes;
        uint16_t kind;

        st = frame_peek(turns->bytes + at, &kind, &n_bytes);
        if (!st)
            st = record_get_turn(turns->bytes + at, n_bytes, &turn);
        if (!st)
            st = visit(context, &turn);
        at += n_bytes;
    }
    return st;
}
