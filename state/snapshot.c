#include "state/snapshot.h"

#include "base/log.h"
#include "kernels/device.h"
#include "state/lineage.h"
#include "state/retention.h"
#include "state/snapshot_image.h"
#include "state/snapshot_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Values written at once: no more than that, but for one that is larger, so
 * that what they are gathered in is no larger either. */
#define BATCH_BYTES (2u << 20)
#define VALUE_BESIDE_BYTES 512u /* its key and head, at most */

/* Bytes of the largest value. */
static size_t staging_bytes(const struct model *model)
{
    size_t most = 0;

    for (uint32_t i = 0; i < N_INDEX * model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan_for(model, i / N_INDEX, (enum index_kind)(i % N_INDEX));

        most = plan->state_bytes > most ? plan->state_bytes : most;
        most = plan->block_bytes > most ? plan->block_bytes : most;
    }
    return most;
}

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
    writer_init(&snapshots->frame, MANIFEST_BYTES_MAX);
    snapshots->batch = store_batch_create(store);
    if (!snapshots->batch)
        goto no_memory;
    snapshots->device = device_side(model_device(model));
    if (snapshots->device &&
        device_take_host(snapshots->device, staging_bytes(model),
                         &snapshots->staging))
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
    if (snapshots->device)
        device_give_host(snapshots->device, snapshots->staging);
    free(snapshots);
}

enum status read_manifest(struct snapshots *snapshots, struct uid uid,
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

/* What is to be stored: some parts of what lies at `data`. */
struct stored {
    const void *data;
    bool is_far; /* that is on the device */
    struct mixer_part part[MIXER_FIELD_MAX];
    uint32_t n_part;
};

static struct stored whole(const struct image *image, const void *data,
                           size_t n_bytes)
{
    return (struct stored){.data = data,
                           .is_far = image->device,
                           .part = {{.bytes = n_bytes}},
                           .n_part = 1};
}

/* Its bytes where the host can read them. */
static enum status stage(struct snapshots *snapshots, struct stored *stored)
{
    if (!stored->is_far)
        return STATUS_OK;
    for (uint32_t i = 0; i < stored->n_part; i++) {
        const struct mixer_part *part = &stored->part[i];

        device_read(snapshots->device,
                    (char *)snapshots->staging + part->offset,
                    (const char *)stored->data + part->offset, part->bytes);
    }
    stored->data = snapshots->staging;
    return device_wait(snapshots->device);
}

enum status snapshots_bring(struct snapshots *snapshots,
                            const struct image *image, size_t n_bytes,
                            const void **data)
{
    struct stored stored = whole(image, *data, n_bytes);
    const enum status st = stage(snapshots, &stored);

    if (!st)
        *data = stored.data;
    return st;
}

static size_t bytes_of(const struct stored *stored)
{
    size_t n = VALUE_BESIDE_BYTES;

    for (uint32_t i = 0; i < stored->n_part; i++)
        n += stored->part[i].bytes;
    return n;
}

static enum status write_batch(struct snapshots *snapshots)
{
    const enum status st =
        store_write(snapshots->store, snapshots->batch, false);

    store_batch_clear(snapshots->batch);
    return st;
}

/* Put one value; the batch is written before it where it has no room. */
static enum status save_value(struct snapshots *snapshots,
                              const struct key *key, enum frame_kind kind,
                              const struct value_head *head,
                              struct stored stored)
{
    const size_t n_before = store_batch_bytes(snapshots->batch);
    enum status st = stage(snapshots, &stored);
    struct writer *value;

    if (!st && n_before && n_before + bytes_of(&stored) > BATCH_BYTES)
        st = write_batch(snapshots);
    if (st)
        return st;
    value = store_batch_begin_put(snapshots->batch, key->bytes, key->n);
    st = value_put_parts(value, kind, head, stored.data, stored.part,
                         stored.n_part);
    store_batch_end_put(snapshots->batch);
    return st;
}

static struct numerics numerics_of(const struct snapshots *snapshots,
                                   const struct image *image)
{
    struct numerics numerics = snapshots->numerics;

    numerics.policy = image->policy;
    return numerics;
}

static struct value_head head_of(const struct snapshots *snapshots,
                                 const struct image *image, uint32_t layer)
{
    return (struct value_head){.uid = image->log,
                               .numerics = numerics_of(snapshots, image),
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

static void watch(struct snapshots *snapshots, const struct mixer_plan *plan,
                  const void *state)
{
    const struct state_norm norm = state_norm_of(plan, state);

    if (norm.n_head > 0 && norm.head_rms > snapshots->head_rms)
        snapshots->head_rms = norm.head_rms;
}

float snapshots_head_rms(const struct snapshots *snapshots)
{
    return snapshots->head_rms;
}

/* Blocks in the order of their keys, then the layers' own values. */
static enum status save_values(struct snapshots *snapshots,
                               const struct image *image)
{
    enum status st = STATUS_OK;

    snapshots->head_rms = 0;
    for (uint64_t b = image->first_block; !st && b < image->n_block; b++)
        for (uint32_t i = 0; !st && i < image->n_layer; i++) {
            size_t n =
                model_plan_for(snapshots->model, i, image->index)->block_bytes;
            struct key key = value_key('b', image->log, b, i);
            struct value_head head = head_of_block(snapshots, image, b, i);

            if (n > 0)
                st = save_value(
                    snapshots, &key, FRAME_BLOCK, &head,
                    whole(image, image->layer[i].block[b - image->first_block],
                          n));
        }
    for (uint32_t i = 0; !st && i < image->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan_for(snapshots->model, i, image->index);
        const struct image_layer *layer = &image->layer[i];
        uint64_t position = image->position;
        struct key state = value_key('s', image->log, position, i);
        struct key open = value_key('o', image->log, position, i);
        struct value_head head = head_of(snapshots, image, i);
        struct stored live = {.data = layer->state, .is_far = image->device};

        live.n_part = mixer_live(plan, position, live.part);
        if (layer->state) {
            st = save_value(snapshots, &state, FRAME_STATE, &head, live);
            if (!st) /* where that has put it */
                watch(snapshots, plan,
                      snapshots->device ? snapshots->staging : layer->state);
        }
        head.n_token = position % KV_BLOCK;
        if (!st && layer->open)
            st = save_value(snapshots, &open, FRAME_OPEN, &head,
                            whole(image, layer->open, plan->block_bytes));
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

static void remove_entry(struct snapshots *snapshots, struct manifest *manifest,
                         uint32_t i)
{
    uint64_t position = manifest->entry[i].position;

    drop_positions(snapshots, manifest->uid, position, position + 1);
    manifest->n--;
    memmove(&manifest->entry[i], &manifest->entry[i + 1],
            (manifest->n - i) * sizeof(manifest->entry[0]));
}

/* Put the image's entry in its place; those that the ladder has no step for go,
 * with their values. */
static void add_entry(struct snapshots *snapshots, struct manifest *manifest,
                      const struct image *image)
{
    struct snapshot_entry entry = {.position = image->position,
                                   .chain = image->chain,
                                   .scope = image->label.scope,
                                   .create_ms = image->label.create_ms,
                                   .is_shared = image->label.is_shared,
                                   .is_pinned = image->label.is_pinned};
    uint32_t i = 0;

    for (uint32_t j = 0; j < manifest->n; j++)
        if (manifest->entry[j].position == entry.position) {
            entry.is_pinned |= manifest->entry[j].is_pinned;
            manifest->entry[j] = entry;
            return;
        }
    assert(manifest->n < SNAPSHOT_KEEP_MAX); /* it was thinned before */
    while (i < manifest->n && manifest->entry[i].position > entry.position)
        i++;
    memmove(&manifest->entry[i + 1], &manifest->entry[i],
            (manifest->n - i) * sizeof(entry));
    manifest->entry[i] = entry;
    manifest->n++;
    while ((i = retention_victim(manifest->entry, manifest->n)) < manifest->n)
        remove_entry(snapshots, manifest, i);
}

/* May its snapshots stay beside the image's? Without any it says nothing. */
static bool is_like(const struct manifest *manifest,
                    const struct snapshots *snapshots,
                    const struct image *image)
{
    return numerics_equal(manifest->numerics, snapshots->numerics) &&
           (manifest->n == 0 ||
            digest_equal(manifest->numerics.policy, image->policy));
}

/* The commit point: the last values, manifest and deletions, synced. */
static enum status save_manifest(struct snapshots *snapshots,
                                 const struct image *image)
{
    struct key key = key_of('v', image->log);
    struct manifest manifest;
    enum status st = read_manifest(snapshots, image->log, &manifest);

    if (st == STATUS_DATA_LOSS || st == STATUS_FAILED_PRECONDITION ||
        (!st && !is_like(&manifest, snapshots, image))) {
        manifest = (struct manifest){.uid = image->log};
        drop_positions(snapshots, image->log, 0, image->position);
        drop_positions(snapshots, image->log, image->position + 1, UINT64_MAX);
    } else if (st) {
        return st;
    }
    manifest.session = image->label.session;
    manifest.numerics = numerics_of(snapshots, image);
    manifest.index = image->index;
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

static enum status put_manifest(struct snapshots *snapshots,
                                const struct manifest *manifest)
{
    struct key key = key_of('v', manifest->uid);
    enum status st;

    writer_clear(&snapshots->frame);
    st = manifest_put(&snapshots->frame, manifest);
    if (!st)
        store_batch_put(snapshots->batch, key.bytes, key.n,
                        snapshots->frame.bytes, snapshots->frame.n);
    return st;
}

enum status snapshot_thin(struct snapshots *snapshots, struct uid uid,
                          uint32_t n_keep)
{
    struct manifest manifest;
    enum status st = read_manifest(snapshots, uid, &manifest);

    if (st == STATUS_DATA_LOSS || st == STATUS_FAILED_PRECONDITION)
        manifest.n = n_keep = 0; /* nobody can use it */
    else if (st)
        return st;
    st = STATUS_OK;
    store_batch_clear(snapshots->batch);
    if (n_keep == 0)
        delete_log(snapshots, uid);
    while (n_keep > 0 && manifest.n > n_keep)
        remove_entry(snapshots, &manifest, n_keep);
    if (n_keep > 0)
        st = put_manifest(snapshots, &manifest);
    if (!st)
        st = store_write(snapshots->store, snapshots->batch, false);
    store_batch_clear(snapshots->batch);
    return st;
}

static void blocks_of(const struct manifest *manifest, uint64_t *out_first,
                      uint64_t *out_n)
{
    uint64_t newest = manifest->n > 0 ? manifest->entry[0].position : 0;

    *out_first = log_pieces_end(&manifest->base) / KV_BLOCK;
    *out_n = newest / KV_BLOCK > *out_first ? newest / KV_BLOCK : *out_first;
}

enum status snapshot_blocks(struct snapshots *snapshots, struct uid uid,
                            uint64_t *out_first, uint64_t *out_n)
{
    struct manifest manifest;
    enum status st = read_manifest(snapshots, uid, &manifest);

    if (!st)
        blocks_of(&manifest, out_first, out_n);
    return st;
}

/* States and open blocks of its snapshots, and its own blocks. */
static size_t manifest_bytes(const struct snapshots *snapshots,
                             const struct manifest *manifest)
{
    uint64_t first, n_block, n_open = 0;
    size_t n = 0;

    blocks_of(manifest, &first, &n_block);
    for (uint32_t i = 0; i < manifest->n; i++)
        n_open += manifest->entry[i].position % KV_BLOCK != 0;
    for (uint32_t i = 0; i < snapshots->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan_for(snapshots->model, i, manifest->index);

        for (uint32_t e = 0; e < manifest->n; e++)
            n += mixer_live_bytes(plan, manifest->entry[e].position);
        n += (n_open + n_block - first) * plan->block_bytes;
    }
    return n;
}

enum status snapshot_stored(struct snapshots *snapshots, struct uid uid,
                            size_t *out)
{
    struct manifest manifest;
    enum status st = read_manifest(snapshots, uid, &manifest);

    if (!st)
        *out = manifest_bytes(snapshots, &manifest);
    return st;
}

static bool is_among(uint64_t value, const uint64_t *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] == value)
            return true;
    return false;
}

enum status snapshot_drop(struct snapshots *snapshots, struct uid uid,
                          const uint64_t *position, uint32_t n)
{
    struct manifest manifest;
    enum status st = read_manifest(snapshots, uid, &manifest);

    if (st)
        return st;
    store_batch_clear(snapshots->batch);
    for (uint32_t i = manifest.n; i-- > 0;)
        if (is_among(manifest.entry[i].position, position, n))
            remove_entry(snapshots, &manifest, i);
    st = put_manifest(snapshots, &manifest);
    if (!st)
        st = store_write(snapshots->store, snapshots->batch, true);
    store_batch_clear(snapshots->batch);
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
        .bytes = manifest_bytes(snapshots, &manifest),
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
