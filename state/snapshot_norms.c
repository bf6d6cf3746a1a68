#include "state/snapshot_parts.h"

#include <stdlib.h>
#include <string.h>

/* Is this the state of that layer there, as this model would write it? */
static bool is_state(const struct snapshots *snapshots,
                     const struct value_head *head, uint64_t position,
                     uint32_t layer)
{
    return numerics_equal(head->numerics, snapshots->numerics) &&
           head->place == position && head->layer == layer;
}

static enum status norm_at(struct snapshots *snapshots, struct uid uid,
                           uint64_t position, uint32_t layer,
                           struct state_norm *out)
{
    const struct mixer_plan *plan = model_plan(snapshots->model, layer);
    const struct key key = value_key('s', uid, position, layer);
    struct value_head head;
    const void *data;
    size_t n_bytes, n_data;
    void *bytes;
    enum status st =
        store_get(snapshots->store, key.bytes, key.n, &bytes, &n_bytes);

    if (st)
        return st == STATUS_NOT_FOUND || st == STATUS_DATA_LOSS ? STATUS_OK
                                                                : st;
    if (!value_get(bytes, n_bytes, FRAME_STATE, &head, &data, &n_data) &&
        is_state(snapshots, &head, position, layer) &&
        n_data == mixer_live_bytes(plan, position))
        *out = state_norm_of(plan, data);
    free(bytes);
    return STATUS_OK;
}

enum status snapshot_norms(struct snapshots *snapshots, struct uid uid,
                           uint64_t position, struct state_norm *out)
{
    enum status st = STATUS_OK;

    memset(out, 0, snapshots->n_layer * sizeof(*out));
    for (uint32_t i = 0; !st && i < snapshots->n_layer; i++)
        if (model_plan(snapshots->model, i)->state_bytes > 0)
            st = norm_at(snapshots, uid, position, i, &out[i]);
    return st;
}
