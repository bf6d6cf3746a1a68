#ifndef STATE_SNAPSHOT_IMAGE_H
#define STATE_SNAPSHOT_IMAGE_H
/*
 * What lies in a struct image (state/snapshot.h): the engine thread makes it,
 * the store thread reads it. On the host the states are those of the memory,
 * which takes others before it goes on; mostly it need not, for its turn has
 * ended. With a device they are copied within it, at once, and come to the host
 * only when they are stored.
 */
#include "state/snapshot_value.h"

struct image_layer {
    const void *state;  /* held or copied, or NULL */
    const void *open;   /* copy of the block that is not full, or NULL */
    const void **block; /* [n_block - first_block] borrowed sealed blocks */
};

struct image {
    const struct model *model;
    struct uid log; /* its owner */
    struct snapshot_label label;
    uint64_t position;
    struct digest chain;           /* of tokens [0, position) */
    uint64_t first_block, n_block; /* sealed ones to save */
    struct digest *end_chain; /* [n_block - first_block] at their ends; owned */
    struct log_path base;     /* of blocks before them */
    uint32_t n_layer;
    enum index_kind index; /* of its policy, for what lies where, */
    struct digest policy;  /* and that itself */
    struct states *states; /* held; NULL: they are copied, too */
    size_t copy_bytes;
    unsigned char *copy;     /* [copy_bytes] open blocks, states; owned */
    struct image_pool *pool; /* that gave it, or NULL */
    const void **block;      /* the layers' tables; owned */
    struct device *device;   /* in whose memory copies and blocks lie */
    struct image_layer layer[];
};
#endif
