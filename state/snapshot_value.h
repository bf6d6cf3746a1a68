#ifndef STATE_SNAPSHOT_VALUE_H
#define STATE_SNAPSHOT_VALUE_H
/*
 * The stored bytes of snapshots: manifest and values. Every value repeats
 * whose it is, so that one found under a wrong key, of another model or of
 * other tokens is refused for what it says of itself.
 */
#include "proto/frame.h"
#include "state/snapshot.h"

#define SNAPSHOT_VERSION 3u /* of values */
#define MANIFEST_VERSION 5u
#define MANIFEST_BYTES_MAX (64u << 10)
#define SNAPSHOT_VALUE_MAX (256u << 20) /* bytes of one value */

/* What two memories must share to be exchangeable. */
struct numerics {
    struct digest fingerprint; /* of the model */
    struct digest id;          /* of the text model_numerics() */
    struct digest policy;      /* of what the softmax layers see */
};
/* But for their policies: are they of one model and its numerics? */
bool numerics_equal(struct numerics a, struct numerics b);
/* 0 for full, which may also be NULL. */
struct digest policy_digest(const struct policy *policy);

struct manifest {
    struct uid uid, session; /* as struct snapshot_owned */
    struct numerics numerics;
    enum index_kind index; /* of its policy: how large its values are */
    struct log_path base;  /* leading blocks that lie with other logs */
    uint32_t n;
    struct snapshot_entry entry[SNAPSHOT_KEEP_MAX]; /* newest first */
};

/* What stands before the floats of a value. Those of a state are what
 * mixer_live() names. */
struct value_head {
    struct uid uid;
    struct numerics numerics;
    uint64_t position;   /* of the snapshot; of a block: of its end ... */
    struct digest chain; /* ... and of the tokens before that */
    uint64_t place;      /* state, open: the position; block: its index */
    uint32_t layer;
    uint32_t n_token; /* in this block; 0 for a state */
};

/* Append a frame.  RESOURCE_EXHAUSTED  as frame_end() */
MUST_CHECK enum status manifest_put(struct writer *writer,
                                    const struct manifest *manifest);
MUST_CHECK enum status value_put(struct writer *writer, enum frame_kind kind,
                                 const struct value_head *head,
                                 const void *data, size_t data_bytes);
/* The same, of some parts of `data`, one behind the other. */
MUST_CHECK enum status
value_put_parts(struct writer *writer, enum frame_kind kind,
                const struct value_head *head, const void *data,
                const struct mixer_part *part, uint32_t n_part);

/*
 * Read a frame; outputs are untouched on failure. *out_data is borrowed.
 *   DATA_LOSS, FAILED_PRECONDITION  as frame_open(), or a bad field
 */
MUST_CHECK enum status manifest_get(const void *bytes, size_t n_bytes,
                                    struct manifest *out);
MUST_CHECK enum status value_get(const void *bytes, size_t n_bytes,
                                 enum frame_kind kind, struct value_head *out,
                                 const void **out_data, size_t *out_data_bytes);
#endif
