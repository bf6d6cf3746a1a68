#ifndef STATE_STORE_CALLS_H
#define STATE_STORE_CALLS_H
/*
 * What a store implementation provides to store.c, and the batch that both
 * share. A batch is a log of operations in one buffer: it belongs to no
 * database, so the journal can write those of many sessions as one.
 * Included by store*.c only.
 */
#include "proto/frame.h"
#include "state/store.h"

enum store_op_kind {
    STORE_PUT = 1,
    STORE_DELETE_KEY = 2,
    STORE_DELETE_RANGE = 3, /* value is the range's end */
};
struct store_op {
    enum store_op_kind kind;
    const void *key;
    size_t key_bytes;
    const void *value;
    size_t value_bytes;
};

struct store_batch {
    struct writer log;
    size_t value_at; /* of a put that has begun: where its value begins */
};

/* The next operation; *at starts at 0. False at the end. */
bool store_batch_next(const struct store_batch *batch, size_t *at,
                      struct store_op *out);

/* Each as the function of this name in store.h; batches are sound. */
struct store_calls {
    void (*close)(struct store *store);
    enum status (*write)(struct store *store,
                         const struct store_batch *const *batch,
                         uint32_t n_batch, bool sync);
    enum status (*get)(struct store *store, const void *key, size_t key_bytes,
                       void **out, size_t *out_bytes);
    enum status (*scan_open)(struct store *store,
                             const struct store_range *range,
                             bool is_descending, struct store_scan **out);
    bool (*scan_next)(struct store_scan *scan, const void **out_key,
                      size_t *out_key_bytes, const void **out_value,
                      size_t *out_value_bytes);
    enum status (*scan_status)(const struct store_scan *scan);
    void (*scan_close)(struct store_scan *scan);
};

/* First members of an implementation's own structs. */
struct store {
    const struct store_calls *calls;
};
struct store_scan {
    const struct store_calls *calls;
};
#endif
