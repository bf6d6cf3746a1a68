#include "state/snapshot.h"

#include "base/log.h"
#include "state/lineage.h"
#include "state/snapshot_image.h"
#include "state/snapshot_value.h"
#include "state/store_key.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_BYTES (2u << 20) /* values written at once */

struct snapshots {
    struct store *store;       /* borrowed */
    const struct model *model; /* borrowed */
    uint32_t n_layer;
    struct numerics numerics;
    struct writer frame;       /* scratch of one value; owned */
    struct store_batch *batch; /* owned */
};

enum status snapshots_open(struct store *store, const struct model *model,
                           struct snapshots **out)
{
    struct snapshots *snapshots = calloc(1, sizeof(*snapshots));
    const char *numerics = model_numerics(model);

    if (!snapshots)
        goto no_memory;
    snapshots->store = store;
    snapshots->model = model;
    snapshots->n_layer = model_config(model)->n_layer;
    snapshots->numerics.fingerprint = model_fingerprint(model);
    snapshots->numerics.id = digest_bytes(numerics, strlen(numerics));
    writer_init(&snapshots->frame, SNAPSHOT_VALUE_MAX);
    snapshots->batch = store_batch_create(store);
    if (!snapshots->batch)
        goto no_memory;
    *out = snapshots;
    return STATUS_OK;

no_memory:
    snapshots_close(snapshots);
    return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for snapshots");
}

void snapshots_close(struct snapshots *snapshots)
{
    if (!snapshots)
        return;
    writer_release(&snapshots->frame);
    store_batch_destroy(snapshots->batch);
    free(snapshots);
}

static struct key value_key(char letter, struct uid uid, uint64_t place,
                            uint32_t layer)
{
    struct key key = key_at(letter, uid, place);

    key_add_number(&key, layer, 2);
    return key;
}

/* As store_get() and manifest_get(); NOT_FOUND is n = 0. */
static enum status read_manifest(struct snapshots *snapshots, struct uid uid,
                                 struct manifest *out)
{
    struct key key = key_of('v', uid);
    void *bytes;
    size_t n_bytes;
    enum status st =
        store_get(snapshots->store, key.bytes, key.n, &bytes, &n_bytes);

    if (st == STATUS_NOT_FOUND) {
        *out = (struct manifest){
            .uid = uid, .session = uid, .numerics = snapshots->numerics};
        return STATUS_OK;
    }
    if (st)
        return st;
    st = manifest_get(bytes, n_bytes, out);
    free(bytes);
    if (!st && !uid_equal(out->uid, uid))
        st = status_fail(STATUS_DATA_LOSS, "manifest is of another session");
    return st;
}

/* Put one value, and write the batch once it is large. */
static enum status save_value(struct snapshots *snapshots,
                              const struct key *key, enum frame_kind kind,
                              const struct value_head *head, const void *data,
                              size_t data_bytes)
{
    enum status st;

    writer_clear(&snapshots->frame);
    st = value_put(&snapshots->frame, kind, head, data, data_bytes);
    if (st)
        return st;
    store_batch_put(snapshots->batch, key->bytes, key->n,
                    snapshots->frame.bytes, snapshots->frame.n);
    if (store_batch_bytes(snapshots->batch) < BATCH_BYTES)
        return STATUS_OK;
    st = store_write(snapshots->store, snapshots->batch, false);
    store_batch_clear(snapshots->batch);
    return st;
}

static struct value_head head_of(const struct snapshots *snapshots,
                                 const struct image *image, uint32_t layer)
{
    return (struct value_head){.uid = image->log,
                               .numerics = snapshots->numerics,
                               .position = image->position,
                               .chain = image->chain,
                               .place = image->position,
                               .layer = layer};
}

static struct value_head head_of_block(const struct snapshots *snapshots,
                                       const struct image *image, uint64_t b,
                                       uint32_t layer)
{
    struct value_head head = head_of(snapshots, image, layer);

    head.position = (b + 1) * KV_BLOCK;
    head.chain = image->end_chain[b - image->first_block];
    head.place = b;
    head.n_token = KV_BLOCK;
    return head;
}

/* Blocks in the order of their keys, then the layers' own values. */
static enum status save_values(struct snapshots *snapshots,
                               const struct image *image)
{
    enum status st = STATUS_OK;

    for (uint64_t b = image->first_block; !st && b < image->n_block; b++)
        for (uint32_t i = 0; !st && i < image->n_layer; i++) {
            size_t n = model_plan(snapshots->model, i)->block_bytes;
            struct key key = value_key('b', image->log, b, i);
            struct value_head head = head_of_block(snapshots, image, b, i);

            if (n > 0)
                st = save_value(snapshots, &key, FRAME_BLOCK, &head,
                                image->layer[i].block[b - image->first_block],
                                n);
        }
    for (uint32_t i = 0; !st && i < image->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(snapshots->model, i);
        const struct image_layer *layer = &image->layer[i];
        uint64_t position = image->position;
        struct key state = value_key('s', image->log, position, i);
        struct key open = value_key('o', image->log, position, i);
        struct value_head head = head_of(snapshots, image, i);

        if (layer->state)
            st = save_value(snapshots, &state, FRAME_STATE, &head, layer->state,
                            plan->state_bytes);
        head.n_token = position % KV_BLOCK;
        if (!st && layer->open)
            st = save_value(snapshots, &open, FRAME_OPEN, &head, layer->open,
                            plan->block_bytes);
    }
    return st;
}

static void delete_range(struct store_batch *batch, struct key from,
                         struct key to)
{
    store_batch_delete_range(batch, from.bytes, from.n, to.bytes, to.n);
}

/* Forget states and open blocks of positions [from, to). */
static void drop_positions(struct snapshots *snapshots, struct uid uid,
                           uint64_t from, uint64_t to)
{
    if (from >= to)
        return;
    delete_range(snapshots->batch, key_at('s', uid, from),
                 key_at('s', uid, to));
    delete_range(snapshots->batch, key_at('o', uid, from),
                 key_at('o', uid, to));
}

/* Of a full list: the oldest one, or the oldest that is not shared while
 * there are few shared ones. */
static uint32_t victim(const struct manifest *manifest)
{
    uint32_t i = manifest->n - 1, n_shared = 0;

    for (uint32_t j = 0; j < manifest->n; j++)
        n_shared += manifest->entry[j].is_shared;
    while (n_shared <= SNAPSHOT_SHARED_MAX && manifest->entry[i].is_shared)
        i--;
    return i;
}

static void remove_entry(struct snapshots *snapshots, struct manifest *manifest,
                         uint32_t i)
{
    uint64_t position = manifest->entry[i].position;

    drop_positions(snapshots, manifest->uid, position, position + 1);
    manifest->n--;
    memmove(&manifest->entry[i], &manifest->entry[i + 1],
            (manifest->n - i) * sizeof(manifest->entry[0]));
}

/* Put the image's entry in its place; in a full list another one goes, with
 * its values. */
static void add_entry(struct snapshots *snapshots, struct manifest *manifest,
                      const struct image *image)
{
    struct snapshot_entry entry = {.position = image->position,
                                   .chain = image->chain,
                                   .scope = image->label.scope,
                                   .create_ms = image->label.create_ms,
                                   .is_shared = image->label.is_shared};
    uint32_t i = 0;

    for (uint32_t j = 0; j < manifest->n; j++)
        if (manifest->entry[j].position == entry.position) {
            manifest->entry[j] = entry;
            return;
        }
    if (manifest->n == SNAPSHOT_KEEP_MAX)
        remove_entry(snapshots, manifest, victim(manifest));
    while (i < manifest->n && manifest->entry[i].position > entry.position)
        i++;
    memmove(&manifest->entry[i + 1], &manifest->entry[i],
            (manifest->n - i) * sizeof(entry));
    manifest->entry[i] = entry;
    manifest->n++;
}

/* The commit point: manifest and deletions, synced. */
static enum status save_manifest(struct snapshots *snapshots,
                                 const struct image *image)
{
    struct key key = key_of('v', image->log);
    struct manifest manifest;
    enum status st = read_manifest(snapshots, image->log, &manifest);

    if (st == STATUS_DATA_LOSS || st == STATUS_FAILED_PRECONDITION ||
        (!st && !numerics_equal(manifest.numerics, snapshots->numerics))) {
        manifest = (struct manifest){.uid = image->log,
                                     .numerics = snapshots->numerics};
        drop_positions(snapshots, image->log, 0, image->position);
        drop_positions(snapshots, image->log, image->position + 1, UINT64_MAX);
    } else if (st) {
        return st;
    }
    manifest.session = image->label.session;
    manifest.base = image->base;
    add_entry(snapshots, &manifest, image);
    writer_clear(&snapshots->frame);
    st = manifest_put(&snapshots->frame, &manifest);
    if (st)
        return st;
    store_batch_put(snapshots->batch, key.bytes, key.n, snapshots->frame.bytes,
                    snapshots->frame.n);
    return store_write(snapshots->store, snapshots->batch, true);
}

enum status snapshot_save(struct snapshots *snapshots,
                          const struct image *image)
{
    enum status st;

    assert(image->n_layer == snapshots->n_layer);
    store_batch_clear(snapshots->batch);
    st = save_values(snapshots, image);
    if (!st && store_batch_bytes(snapshots->batch) > 0) {
        st = store_write(snapshots->store, snapshots->batch, false);
        store_batch_clear(snapshots->batch);
    }
    if (!st)
        st = save_manifest(snapshots, image);
    store_batch_clear(snapshots->batch);
    return st;
}

enum status snapshot_list(struct snapshots *snapshots, struct uid uid,
                          struct snapshot_entry *out, uint32_t max,
                          uint32_t *out_n)
{
    struct manifest manifest;
    enum status st = read_manifest(snapshots, uid, &manifest);

    if (st)
        return st;
    *out_n = manifest.n < max ? manifest.n : max;
    memcpy(out, manifest.entry, *out_n * sizeof(*out));
    return STATUS_OK;
}

static void delete_log(struct snapshots *snapshots, struct uid uid)
{
    static const char letters[] = {'s', 'o', 'b'};
    struct key manifest = key_of('v', uid);

    store_batch_delete(snapshots->batch, manifest.bytes, manifest.n);
    for (size_t i = 0; i < sizeof(letters); i++)
        delete_range(snapshots->batch, key_of(letters[i], uid),
                     key_after(key_of(letters[i], uid)));
}

/* What is of another model or numerics id goes. A manifest without snapshots
 * stays: it says that there are blocks. */
static enum status cut_log(struct snapshots *snapshots, struct uid uid,
                           uint64_t n_token)
{
    struct key key = key_of('v', uid);
    struct manifest manifest;
    enum status st = read_manifest(snapshots, uid, &manifest);

    if (st == STATUS_DATA_LOSS || st == STATUS_FAILED_PRECONDITION)
        manifest = (struct manifest){
            .uid = uid, .session = uid, .numerics = snapshots->numerics};
    else if (st)
        return st;
    if (!numerics_equal(manifest.numerics, snapshots->numerics)) {
        delete_log(snapshots, uid);
        return STATUS_OK;
    }
    while (manifest.n > 0 && manifest.entry[0].position > n_token)
        remove_entry(snapshots, &manifest, 0);
    delete_range(snapshots->batch, key_at('b', uid, n_token / KV_BLOCK),
                 key_after(key_of('b', uid)));
    writer_clear(&snapshots->frame);
    st = manifest_put(&snapshots->frame, &manifest);
    if (!st)
        store_batch_put(snapshots->batch, key.bytes, key.n,
                        snapshots->frame.bytes, snapshots->frame.n);
    return st;
}

enum status snapshot_trim(struct snapshots *snapshots, struct uid uid,
                          uint64_t n_token)
{
    enum status st = STATUS_OK;

    store_batch_clear(snapshots->batch);
    if (n_token > 0)
        st = cut_log(snapshots, uid, n_token);
    else
        delete_log(snapshots, uid);
    if (!st)
        st = store_write(snapshots->store, snapshots->batch, false);
    store_batch_clear(snapshots->batch);
    return st;
}

/* Chain hashes of a session's tokens, looked up anywhere after one pass. */
struct chains {
    const uint32_t *token;
    uint64_t n_token;
    struct digest *at; /* [n_token / KV_BLOCK + 1] after that many blocks */
    uint64_t last_position;
    struct digest last; /* after last_position, so that a run of equal
                           questions costs one answer */
};

static enum status chains_init(struct chains *chains, struct digest first,
                               const struct ids *tokens)
{
    uint64_t n_token = tokens->n, n_block = n_token / KV_BLOCK;

    *chains = (struct chains){.token = tokens->id, .n_token = n_token};
    chains->at = calloc(n_block + 1, sizeof(*chains->at));
    if (!chains->at)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the chain of %lu tokens", n_token);
    chains->at[0] = first;
    for (uint64_t b = 0; b < n_block; b++)
        chains->at[b + 1] = digest_tokens(
            chains->at[b], chains->token + b * KV_BLOCK, KV_BLOCK);
    chains->last = first;
    return STATUS_OK;
}

static bool chains_match(struct chains *chains, uint64_t position,
                         struct digest chain)
{
    uint64_t b = position / KV_BLOCK;

    if (position > chains->n_token)
        return false;
    if (position != chains->last_position) {
        chains->last = digest_tokens(
            chains->at[b], chains->token + b * KV_BLOCK, position % KV_BLOCK);
        chains->last_position = position;
    }
    return digest_equal(chains->last, chain);
}

/* One attempt to fill a memory from one snapshot. */
struct attempt {
    struct snapshots *snapshots;
    struct chains *chains;
    const struct manifest *manifest;
    uint64_t position;
    const struct layer_memory *layer;
};

static enum restore_reason damaged(const char *what, uint64_t place,
                                   uint32_t layer)
{
    char why[STATUS_TEXT_SIZE];

    (void)strncpy(why, status_reason(), sizeof(why) - 1);
    why[sizeof(why) - 1] = 0;
    (void)status_fail(STATUS_DATA_LOSS, "%s %lu of layer %u: %.280s", what,
                      place, layer, why);
    return RESTORE_DAMAGED;
}

static enum restore_reason other_numerics(const struct snapshots *snapshots,
                                          struct numerics its)
{
    return digest_equal(its.fingerprint, snapshots->numerics.fingerprint)
               ? RESTORE_NUMERICS
               : RESTORE_WEIGHTS;
}

/* What a value must say of itself; its bytes then go to `to`. */
struct wanted {
    struct uid owner;
    enum frame_kind kind;
    const char *what; /* for messages */
    uint64_t place;
    uint32_t layer, n_token;
    uint64_t min_position; /* of the snapshot that wrote it */
    size_t data_bytes;
    void *to;
};

static enum restore_reason take_value(struct attempt *attempt,
                                      const struct wanted *wanted,
                                      const void *bytes, size_t n_bytes)
{
    struct value_head head;
    const void *data;
    size_t data_bytes;

    if (value_get(bytes, n_bytes, wanted->kind, &head, &data, &data_bytes))
        return damaged(wanted->what, wanted->place, wanted->layer);
    if (!numerics_equal(head.numerics, attempt->snapshots->numerics)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "%s %lu of layer %u is of another model or numerics "
                          "id",
                          wanted->what, wanted->place, wanted->layer);
        return other_numerics(attempt->snapshots, head.numerics);
    }
    if (!uid_equal(head.uid, wanted->owner) || head.place != wanted->place ||
        head.layer != wanted->layer || head.n_token != wanted->n_token ||
        data_bytes != wanted->data_bytes) {
        (void)status_fail(STATUS_DATA_LOSS,
                          "it is place %lu, layer %u, %u tokens, %zu bytes, "
                          "expected %u tokens, %zu bytes",
                          head.place, head.layer, head.n_token, data_bytes,
                          wanted->n_token, wanted->data_bytes);
        return damaged(wanted->what, wanted->place, wanted->layer);
    }
    if (head.position < wanted->min_position ||
        !chains_match(attempt->chains, head.position, head.chain)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "%s %lu of layer %u was made from other tokens",
                          wanted->what, wanted->place, wanted->layer);
        return RESTORE_CHAIN;
    }
    memcpy(wanted->to, data, data_bytes);
    return RESTORE_HIT;
}

static enum restore_reason fetch_value(struct attempt *attempt, char letter,
                                       const struct wanted *wanted)
{
    struct key key =
        value_key(letter, wanted->owner, wanted->place, wanted->layer);
    enum restore_reason reason;
    void *bytes;
    size_t n_bytes;

    if (store_get(attempt->snapshots->store, key.bytes, key.n, &bytes,
                  &n_bytes))
        return damaged(wanted->what, wanted->place, wanted->layer);
    reason = take_value(attempt, wanted, bytes, n_bytes);
    free(bytes);
    return reason;
}

static enum restore_reason load_layers(struct attempt *attempt)
{
    uint64_t position = attempt->position;
    enum restore_reason reason = RESTORE_HIT;

    for (uint32_t i = 0; !reason && i < attempt->snapshots->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan(attempt->snapshots->model, i);
        struct wanted wanted = {.owner = attempt->manifest->uid,
                                .kind = FRAME_STATE,
                                .what = "state",
                                .place = position,
                                .layer = i,
                                .min_position = position,
                                .data_bytes = plan->state_bytes,
                                .to = attempt->layer[i].state};

        if (plan->state_bytes > 0)
            reason = fetch_value(attempt, 's', &wanted);
        if (reason || plan->block_bytes == 0 || position % KV_BLOCK == 0)
            continue;
        wanted.kind = FRAME_OPEN;
        wanted.what = "open block";
        wanted.n_token = position % KV_BLOCK;
        wanted.data_bytes = plan->block_bytes;
        wanted.to = attempt->layer[i].block[position / KV_BLOCK];
        reason = fetch_value(attempt, 'o', &wanted);
    }
    return reason;
}

/* The next value of the scan must be the one wanted. */
static enum restore_reason scan_value(struct attempt *attempt,
                                      struct store_scan *scan,
                                      const struct wanted *wanted)
{
    struct key key =
        value_key('b', wanted->owner, wanted->place, wanted->layer);
    const void *its_key, *bytes;
    size_t its_key_bytes, n_bytes;

    if (!store_scan_next(scan, &its_key, &its_key_bytes, &bytes, &n_bytes)) {
        if (!store_scan_status(scan))
            (void)status_fail(STATUS_NOT_FOUND, "it is missing");
        return damaged(wanted->what, wanted->place, wanted->layer);
    }
    if (its_key_bytes != key.n || memcmp(its_key, key.bytes, key.n) != 0) {
        (void)status_fail(STATUS_NOT_FOUND, "it is missing");
        return damaged(wanted->what, wanted->place, wanted->layer);
    }
    return take_value(attempt, wanted, bytes, n_bytes);
}

/* Blocks [first, n) of one owner. */
static enum restore_reason load_piece(struct attempt *attempt, struct uid owner,
                                      uint64_t first, uint64_t n)
{
    struct key from = key_at('b', owner, first);
    struct key to = key_at('b', owner, n);
    struct store_scan *scan;
    enum restore_reason reason = RESTORE_HIT;

    if (store_scan_open(
            attempt->snapshots->store,
            &(struct store_range){from.bytes, from.n, to.bytes, to.n}, false,
            &scan))
        return damaged("block", first, 0);
    for (uint64_t b = first; !reason && b < n; b++)
        for (uint32_t i = 0; !reason && i < attempt->snapshots->n_layer; i++) {
            const struct mixer_plan *plan =
                model_plan(attempt->snapshots->model, i);
            struct wanted wanted = {.owner = owner,
                                    .kind = FRAME_BLOCK,
                                    .what = "block",
                                    .place = b,
                                    .layer = i,
                                    .n_token = KV_BLOCK,
                                    .min_position = (b + 1) * KV_BLOCK,
                                    .data_bytes = plan->block_bytes};

            if (plan->block_bytes == 0)
                continue;
            wanted.to = attempt->layer[i].block[b];
            reason = scan_value(attempt, scan, &wanted);
        }
    store_scan_close(scan);
    return reason;
}

/* Those of other logs, then its own. */
static enum restore_reason load_blocks(struct attempt *attempt)
{
    const struct log_path *base = &attempt->manifest->base;
    uint64_t first = 0, n_block = attempt->position / KV_BLOCK;
    enum restore_reason reason = RESTORE_HIT;

    for (uint32_t i = 0; !reason && i < base->n && first < n_block; i++) {
        uint64_t n = base->piece[i].end / KV_BLOCK;

        n = n < n_block ? n : n_block;
        reason = load_piece(attempt, base->piece[i].log, first, n);
        first = n;
    }
    if (!reason && first < n_block)
        reason = load_piece(attempt, attempt->manifest->uid, first, n_block);
    return reason;
}

/* Back to the empty memory after an attempt that wrote some of it. */
static void wipe(const struct attempt *attempt)
{
    uint64_t n_block = (attempt->position + KV_BLOCK - 1) / KV_BLOCK;

    for (uint32_t i = 0; i < attempt->snapshots->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan(attempt->snapshots->model, i);

        if (plan->state_bytes > 0)
            memset(attempt->layer[i].state, 0, plan->state_bytes);
        for (uint64_t b = 0; plan->block_bytes > 0 && b < n_block; b++)
            memset(attempt->layer[i].block[b], 0, plan->block_bytes);
    }
}

/* RESTORE_HIT: the memory stands at the entry's position. */
static enum status try_entry(struct snapshots *snapshots,
                             const struct manifest *manifest,
                             const struct snapshot_entry *entry,
                             struct chains *chains, struct memory *memory,
                             enum restore_reason *out)
{
    struct attempt attempt = {.snapshots = snapshots,
                              .chains = chains,
                              .manifest = manifest,
                              .position = entry->position};
    enum status st;

    if (!numerics_equal(manifest->numerics, snapshots->numerics)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it is of another model or numerics id");
        *out = other_numerics(snapshots, manifest->numerics);
        return STATUS_OK;
    }
    if (!chains_match(chains, entry->position, entry->chain)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it was made from other tokens");
        *out = RESTORE_CHAIN;
        return STATUS_OK;
    }
    st = memory_reserve(memory, entry->position);
    if (st)
        return st;
    attempt.layer = memory_layers(memory);
    *out = load_layers(&attempt);
    if (*out == RESTORE_HIT)
        *out = load_blocks(&attempt);
    if (*out == RESTORE_HIT)
        memory_advance(memory, entry->position);
    else
        wipe(&attempt);
    return STATUS_OK;
}

static void log_refused(struct uid uid, uint64_t position, uint64_t n_token,
                        const char *why)
{
    char about[UID_TEXT_SIZE + 2] = "u=";

    uid_format(uid, about + 2);
    log_line(LOG_WARN, "state", about, "%s, recomputing %lu tokens", why,
             n_token - position);
}

/* Why the newest was not used, or RESTORE_HIT. */
struct refusal {
    enum restore_reason reason;
    struct cause cause;
};

/* Entries from the newest, up to the first that fits. */
static enum status try_entries(struct snapshots *snapshots,
                               const struct manifest *manifest,
                               struct chains *chains, uint64_t limit,
                               struct memory *memory, struct refusal *out)
{
    *out = (struct refusal){.reason = RESTORE_NONE};
    for (uint32_t i = 0; i < manifest->n; i++) {
        const struct snapshot_entry *entry = &manifest->entry[i];
        enum restore_reason reason;
        enum status st;

        if (entry->position > limit)
            continue;
        st = try_entry(snapshots, manifest, entry, chains, memory, &reason);
        if (st)
            return st;
        if (out->reason == RESTORE_NONE) {
            out->reason = reason;
            if (reason != RESTORE_HIT) {
                struct cause first = *status_cause();

                (void)status_fail(STATUS_DATA_LOSS,
                                  "snapshot at token %lu is not used: %.300s",
                                  entry->position, first.text);
                out->cause = *status_cause();
            }
        }
        if (reason == RESTORE_HIT)
            break;
    }
    return STATUS_OK;
}

/* A snapshot is saved behind the journal, so a log that is shorter lost its
 * end: going on from there would be fluent and wrong. */
static enum status check_log(const struct manifest *manifest, uint64_t n_token)
{
    for (uint32_t i = 0; i < manifest->n; i++)
        if (manifest->entry[i].position > n_token) {
            status_fail(STATUS_DATA_LOSS,
                        "the log has %lu tokens, but a snapshot was made "
                        "behind token %lu: committed tokens are lost",
                        n_token, manifest->entry[i].position);
            return status_because("SESSION_LOG_LOST");
        }
    return STATUS_OK;
}

/* Where the blocks lie of what the manifest's snapshot gave to the memory,
 * seen from a log behind piece. */
static struct log_path base_from(const struct manifest *manifest, bool is_own,
                                 uint64_t position)
{
    struct log_path base = manifest->base;

    if (is_own)
        return base;
    position = position / KV_BLOCK * KV_BLOCK;
    log_pieces_cut(&base, position);
    log_pieces_add(&base, manifest->uid, position);
    return base;
}

/* What a load works on. */
struct loading {
    struct snapshots *snapshots;
    const struct log_path *path;
    const struct ids *tokens;
    uint64_t limit;
    struct memory *memory;
    struct chains chains;
    struct refusal refusal; /* of the newest snapshot */
};

/* The snapshots of one log of the path, if there are any. */
static enum status load_log(struct loading *loading, uint32_t piece,
                            struct restore *out)
{
    const struct log_piece *from = &loading->path->piece[piece];
    const bool is_own = piece + 1 == loading->path->n;
    uint64_t limit = from->end < loading->limit ? from->end : loading->limit;
    struct refusal refusal = {.reason = RESTORE_NONE};
    struct manifest manifest;
    enum status st = STATUS_OK;

    if (read_manifest(loading->snapshots, from->log, &manifest)) {
        refusal.cause = *status_cause();
        (void)status_fail(STATUS_DATA_LOSS,
                          "list of snapshots is not used: %.300s",
                          refusal.cause.text);
        refusal = (struct refusal){RESTORE_DAMAGED, *status_cause()};
    } else if (manifest.n > 0) {
        if (is_own)
            st = check_log(&manifest, loading->tokens->n);
        if (!st && !loading->chains.at)
            st = chains_init(&loading->chains,
                             loading->snapshots->numerics.fingerprint,
                             loading->tokens);
        if (!st)
            st = try_entries(loading->snapshots, &manifest, &loading->chains,
                             limit, loading->memory, &refusal);
        if (!st && memory_position(loading->memory) > 0)
            out->base =
                base_from(&manifest, is_own, memory_position(loading->memory));
    }
    if (loading->refusal.reason == RESTORE_NONE)
        loading->refusal = refusal;
    return st;
}

enum status snapshot_load(struct snapshots *snapshots,
                          const struct log_path *path, const struct ids *tokens,
                          uint64_t limit, struct memory *memory,
                          struct restore *out)
{
    struct loading loading = {.snapshots = snapshots,
                              .path = path,
                              .tokens = tokens,
                              .limit = limit,
                              .memory = memory,
                              .refusal = {.reason = RESTORE_NONE}};
    enum restore_reason reason;
    struct restore restore = {0};
    enum status st = STATUS_OK;

    assert(memory_position(memory) == 0 && limit <= tokens->n);
    for (uint32_t i = path->n; !st && i-- > 0 && !memory_position(memory);)
        st = load_log(&loading, i, &restore);
    free(loading.chains.at);
    if (st)
        return st;
    reason = loading.refusal.reason;
    if (reason != RESTORE_HIT && reason != RESTORE_NONE)
        log_refused(log_path_own(path), memory_position(memory), tokens->n,
                    loading.refusal.cause.text);
    restore.reason = reason;
    *out = restore;
    return STATUS_OK;
}

static const struct snapshot_entry *
find_entry(const struct manifest *manifest,
           const struct snapshot_source *wanted)
{
    for (uint32_t i = 0; i < manifest->n; i++)
        if (manifest->entry[i].position == wanted->position &&
            digest_equal(manifest->entry[i].chain, wanted->chain))
            return &manifest->entry[i];
    return NULL;
}

static enum status try_source(struct snapshots *snapshots,
                              const struct snapshot_source *source,
                              struct chains *chains, struct memory *memory,
                              enum restore_reason *out)
{
    const struct snapshot_entry *entry;
    struct manifest manifest;

    if (read_manifest(snapshots, source->uid, &manifest)) {
        *out = RESTORE_DAMAGED;
        return STATUS_OK;
    }
    entry = find_entry(&manifest, source);
    if (!entry) {
        *out = RESTORE_NONE;
        return STATUS_OK;
    }
    return try_entry(snapshots, &manifest, entry, chains, memory, out);
}

enum status snapshot_fetch(struct snapshots *snapshots,
                           const struct snapshot_source *source,
                           uint32_t n_source, const struct ids *tokens,
                           struct memory *memory, enum restore_reason *reason)
{
    struct chains chains;
    enum status st;

    assert(memory_position(memory) == 0);
    for (uint32_t i = 0; i < n_source; i++)
        reason[i] = RESTORE_NONE;
    st = chains_init(&chains, snapshots->numerics.fingerprint, tokens);
    for (uint32_t i = 0; !st && i < n_source; i++) {
        st = try_source(snapshots, &source[i], &chains, memory, &reason[i]);
        if (st || reason[i] == RESTORE_HIT)
            break;
        if (reason[i] != RESTORE_NONE)
            log_refused(source[i].uid, 0, source[i].position, status_reason());
    }
    free(chains.at);
    return st;
}

static enum status visit_manifest(struct snapshots *snapshots,
                                  const void *bytes, size_t n_bytes,
                                  snapshot_visit *visit, void *context,
                                  uint64_t *out_n_bad)
{
    struct manifest manifest;
    struct snapshot_owned list;

    if (manifest_get(bytes, n_bytes, &manifest)) {
        (*out_n_bad)++;
        log_line(LOG_WARN, "state", "", "list of snapshots is not used: %s",
                 status_reason());
        return STATUS_OK;
    }
    list = (struct snapshot_owned){
        .uid = manifest.uid,
        .session = manifest.session,
        .is_usable = numerics_equal(manifest.numerics, snapshots->numerics),
        .n = manifest.n,
        .entry = manifest.entry};
    return visit(context, &list);
}

enum status snapshots_each(struct snapshots *snapshots, snapshot_visit *visit,
                           void *context, uint64_t *out_n_bad)
{
    const void *key, *bytes;
    size_t key_bytes, n_bytes;
    struct store_scan *scan;
    enum status st = store_scan_open(
        snapshots->store, &(struct store_range){"v", 1, "w", 1}, false, &scan);

    if (st)
        return st;
    *out_n_bad = 0;
    while (!st && store_scan_next(scan, &key, &key_bytes, &bytes, &n_bytes))
        st = visit_manifest(snapshots, bytes, n_bytes, visit, context,
                            out_n_bad);
    if (!st)
        st = store_scan_status(scan);
    store_scan_close(scan);
    return st;
}
