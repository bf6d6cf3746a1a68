#include "state/snapshot.h"

#include "base/log.h"
#include "state/lineage.h"
#include "state/snapshot_image.h"
#include "state/snapshot_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_BYTES (2u << 20) /* values written at once */

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

/* Blocks in the order of their keys, then the layers' own values. */
static enum status save_values(struct snapshots *snapshots,
                               const struct image *image)
{
    enum status st = STATUS_OK;

    for (uint64_t b = image->first_block; !st && b < image->n_block; b++)
        for (uint32_t i = 0; !st && i < image->n_layer; i++) {
            size_t n =
                model_plan_for(snapshots->model, i, image->index)->block_bytes;
            struct key key = value_key('b', image->log, b, i);
            struct value_head head = head_of_block(snapshots, image, b, i);

            if (n > 0)
                st = save_value(snapshots, &key, FRAME_BLOCK, &head,
                                image->layer[i].block[b - image->first_block],
                                n);
        }
    for (uint32_t i = 0; !st && i < image->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan_for(snapshots->model, i, image->index);
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

/* May its snapshots stay beside the image's? Without any it says nothing. */
static bool is_like(const struct manifest *manifest,
                    const struct snapshots *snapshots,
                    const struct image *image)
{
    return numerics_equal(manifest->numerics, snapshots->numerics) &&
           (manifest->n == 0 ||
            digest_equal(manifest->numerics.policy, image->policy));
}

/* The commit point: manifest and deletions, synced. */
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
