#ifndef STATE_SNAPSHOT_PARTS_H
#define STATE_SNAPSHOT_PARTS_H
/*
 * What snapshot.c, which stores and deletes, and snapshot_load.c, which reads,
 * share.
 */
#include "state/snapshot_value.h"
#include "state/store_key.h"

struct snapshots {
    struct store *store;       /* borrowed */
    const struct model *model; /* borrowed */
    uint32_t n_layer;
    struct numerics numerics;
    struct writer frame;   /* scratch of a manifest; owned */
    struct device *device; /* the model's side, or NULL */
    void *staging;         /* host memory for one value of a device; owned */
    struct store_batch *batch; /* owned */
    float head_rms;            /* of the last save */
};

static inline struct key value_key(char letter, struct uid uid, uint64_t place,
                                   uint32_t layer)
{
    struct key key = key_at(letter, uid, place);

    key_add_number(&key, layer, 2);
    return key;
}

/* As store_get() and manifest_get(); NOT_FOUND is n = 0. */
MUST_CHECK enum status read_manifest(struct snapshots *snapshots,
                                     struct uid uid, struct manifest *out);

/*
 * From now on *data is where the host reads those bytes of an image, until the
 * next call: where they were, or copied from the device.
 *   UNAVAILABLE  the device is lost
 */
MUST_CHECK enum status snapshots_bring(struct snapshots *snapshots,
                                       const struct image *image,
                                       size_t n_bytes, const void **data);
#endif
