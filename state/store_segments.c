#include "state/store_segments.h"

#include "state/segments.h"
#include "state/store_calls.h"

#include <stdlib.h>
#include <string.h>

#define ROW_VERSION 1u
#define ROW_BYTES (FRAME_HEAD_BYTES + 24u)
/* Of a write, beside its values. */
#define LIST_FIRST 64u

/* Extents, one behind the other. */
struct extents {
    struct extent *at; /* [n]; owned */
    uint32_t n, capacity;
};

struct store_segments {
    struct store base;
    struct store *rows;        /* owned */
    struct segments *segments; /* owned */
    struct extents dropped;    /* no row names them; not yet given back */
    uint32_t n_scan;           /* open ones, which may still read those */
    /* Scratch of one write. */
    struct bytes *value;   /* [value_capacity] the large ones */
    struct extent *extent; /* [value_capacity] where they went */
    uint32_t n_value, value_capacity;
    struct store_batch *batch; /* what the rows get */
    struct writer row;
};

struct scan_segments {
    struct store_scan base;
    struct store_segments *store;
    struct store_scan *rows;
    void *value; /* [capacity] the last one read; owned */
    size_t capacity;
    enum status status;
};

static struct store_segments *segments_of(struct store *store)
{
    return (struct store_segments *)(void *)store;
}

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a store");
}

/* --- rows that name a value --- */

static enum status put_name(struct writer *row, const struct extent *extent)
{
    size_t begin;

    writer_clear(row);
    begin = frame_begin(row, FRAME_SEGMENT, ROW_VERSION);
    writer_u64(row, extent->file);
    writer_u64(row, extent->offset);
    writer_u64(row, extent->n_bytes);
    return frame_end(row, begin);
}

/* False: the row is a value itself. */
static bool get_name(const void *row, size_t n_bytes, struct extent *out)
{
    struct reader reader;

    if (n_bytes != ROW_BYTES ||
        frame_open(row, n_bytes, FRAME_SEGMENT, ROW_VERSION, &reader))
        return false;
    out->file = reader_u64(&reader);
    out->offset = reader_u64(&reader);
    out->n_bytes = reader_u64(&reader);
    return reader_is_done(&reader) && out->n_bytes <= STORE_BATCH_MAX;
}

/* --- what a write leaves behind --- */

static enum status note_dropped(struct store_segments *store, const void *row,
                                size_t n_bytes)
{
    struct extents *dropped = &store->dropped;
    struct extent extent;

    if (!get_name(row, n_bytes, &extent))
        return STATUS_OK;
    if (dropped->n == dropped->capacity) {
        uint32_t capacity = 2 * dropped->capacity + LIST_FIRST;
        struct extent *at =
            realloc(dropped->at, capacity * sizeof(*dropped->at));

        if (!at)
            return no_memory();
        dropped->at = at;
        dropped->capacity = capacity;
    }
    dropped->at[dropped->n++] = extent;
    return STATUS_OK;
}

static enum status note_key(struct store_segments *store,
                            const struct store_op *op)
{
    void *row;
    size_t n_bytes;
    enum status st =
        store_get(store->rows, op->key, op->key_bytes, &row, &n_bytes);

    if (st == STATUS_NOT_FOUND)
        return STATUS_OK;
    if (st)
        return st;
    st = note_dropped(store, row, n_bytes);
    free(row);
    return st;
}

static enum status note_range(struct store_segments *store,
                              const struct store_op *op)
{
    const struct store_range range = {op->key, op->key_bytes, op->value,
                                      op->value_bytes};
    const void *key, *row;
    size_t key_bytes, n_bytes;
    struct store_scan *scan;
    enum status st = store_scan_open(store->rows, &range, false, &scan);

    if (st)
        return st;
    while (!st && store_scan_next(scan, &key, &key_bytes, &row, &n_bytes))
        st = note_dropped(store, row, n_bytes);
    if (!st)
        st = store_scan_status(scan);
    store_scan_close(scan);
    return st;
}

/* --- write --- */

static enum status list_value(struct store_segments *store,
                              const struct store_op *op)
{
    if (store->n_value == store->value_capacity) {
        uint32_t capacity = 2 * store->value_capacity + LIST_FIRST;
        struct bytes *value =
            realloc(store->value, capacity * sizeof(*store->value));
        struct extent *extent;

        if (!value)
            return no_memory();
        store->value = value;
        extent = realloc(store->extent, capacity * sizeof(*store->extent));
        if (!extent)
            return no_memory();
        store->extent = extent;
        store->value_capacity = capacity;
    }
    store->value[store->n_value++] = (struct bytes){op->value, op->value_bytes};
    return STATUS_OK;
}

/* Which values are large, and which extents will have no name any more; some
 * may be found twice. A key that one write puts, then puts or deletes again, is
 * seen as it was before: the value between stays in its segment until the store
 * is opened again. */
static enum status list_op(struct store_segments *store,
                           const struct store_op *op)
{
    if (op->kind == STORE_DELETE_RANGE)
        return note_range(store, op);
    if (op->kind == STORE_PUT && op->value_bytes >= SEGMENT_VALUE_MIN) {
        enum status st = list_value(store, op);

        if (st)
            return st;
    }
    return note_key(store, op);
}

/* The same operation on the rows. */
static enum status copy_op(struct store_segments *store,
                           const struct store_op *op, uint32_t *n_named)
{
    enum status st;

    switch (op->kind) {
    case STORE_DELETE_KEY:
        store_batch_delete(store->batch, op->key, op->key_bytes);
        return STATUS_OK;
    case STORE_DELETE_RANGE:
        store_batch_delete_range(store->batch, op->key, op->key_bytes,
                                 op->value, op->value_bytes);
        return STATUS_OK;
    case STORE_PUT:
        break;
    }
    if (op->value_bytes < SEGMENT_VALUE_MIN) {
        store_batch_put(store->batch, op->key, op->key_bytes, op->value,
                        op->value_bytes);
        return STATUS_OK;
    }
    st = put_name(&store->row, &store->extent[(*n_named)++]);
    if (!st)
        store_batch_put(store->batch, op->key, op->key_bytes, store->row.bytes,
                        store->row.n);
    return st;
}

typedef enum status op_visit(struct store_segments *store,
                             const struct store_op *op, uint32_t *n);

static enum status list_one(struct store_segments *store,
                            const struct store_op *op, uint32_t *n)
{
    (void)n;
    return list_op(store, op);
}

static enum status each_op(struct store_segments *store,
                           const struct store_batch *const *batch,
                           uint32_t n_batch, op_visit *visit)
{
    uint32_t n = 0;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < n_batch && !st; i++) {
        struct store_op op;
        size_t at = 0;

        while (!st && store_batch_next(batch[i], &at, &op))
            st = visit(store, &op, &n);
    }
    return st;
}

/* Rows that name what is appended already; synced, if need be, before. */
static enum status write_rows(struct store_segments *store,
                              const struct store_batch *const *batch,
                              uint32_t n_batch, bool sync)
{
    enum status st;

    store_batch_clear(store->batch);
    st = each_op(store, batch, n_batch, copy_op);
    if (!st && sync)
        st = segments_sync(store->segments);
    if (!st)
        st = store_write(store->rows, store->batch, sync);
    store_batch_clear(store->batch);
    return st;
}

static enum status segments_write(struct store *base,
                                  const struct store_batch *const *batch,
                                  uint32_t n_batch, bool sync)
{
    struct store_segments *store = segments_of(base);
    const uint32_t n_dropped = store->dropped.n;
    enum status st;

    store->n_value = 0;
    st = each_op(store, batch, n_batch, list_one);
    if (!st && store->n_value > 0)
        st = segments_append(store->segments, store->value, store->n_value,
                             store->extent);
    if (st) {
        store->dropped.n = n_dropped;
        return st;
    }
    st = write_rows(store, batch, n_batch, sync);
    if (st) {
        store->dropped.n = n_dropped;
        segments_drop(store->segments, store->extent, store->n_value);
        return st;
    }
    if (sync && store->n_scan == 0) {
        segments_drop(store->segments, store->dropped.at, store->dropped.n);
        store->dropped.n = 0;
    }
    return STATUS_OK;
}

/* --- read --- */

static enum status segments_get(struct store *base, const void *key,
                                size_t key_bytes, void **out, size_t *out_bytes)
{
    struct store_segments *store = segments_of(base);
    struct extent extent;
    void *row, *value;
    size_t n_bytes;
    enum status st = store_get(store->rows, key, key_bytes, &row, &n_bytes);

    if (st)
        return st;
    if (!get_name(row, n_bytes, &extent)) {
        *out = row;
        *out_bytes = n_bytes;
        return STATUS_OK;
    }
    free(row);
    value = malloc(extent.n_bytes + 1);
    if (!value)
        return no_memory();
    st = segments_read(store->segments, &extent, value);
    if (st) {
        free(value);
        return st;
    }
    *out = value;
    *out_bytes = extent.n_bytes;
    return STATUS_OK;
}

static enum status segments_scan_open(struct store *base,
                                      const struct store_range *range,
                                      bool is_descending,
                                      struct store_scan **out)
{
    struct store_segments *store = segments_of(base);
    struct scan_segments *scan = calloc(1, sizeof(*scan));
    enum status st;

    if (!scan)
        return no_memory();
    scan->base.calls = base->calls;
    scan->store = store;
    st = store_scan_open(store->rows, range, is_descending, &scan->rows);
    if (st) {
        free(scan);
        return st;
    }
    store->n_scan++;
    *out = &scan->base;
    return STATUS_OK;
}

static enum status read_value(struct scan_segments *scan,
                              const struct extent *extent)
{
    if (extent->n_bytes > scan->capacity) {
        free(scan->value);
        scan->value = malloc(extent->n_bytes);
        scan->capacity = scan->value ? extent->n_bytes : 0;
        if (!scan->value)
            return no_memory();
    }
    return segments_read(scan->store->segments, extent, scan->value);
}

static bool segments_scan_next(struct store_scan *base, const void **out_key,
                               size_t *out_key_bytes, const void **out_value,
                               size_t *out_value_bytes)
{
    struct scan_segments *scan = (struct scan_segments *)(void *)base;
    struct extent extent;

    if (scan->status || !store_scan_next(scan->rows, out_key, out_key_bytes,
                                         out_value, out_value_bytes))
        return false;
    if (!get_name(*out_value, *out_value_bytes, &extent))
        return true;
    scan->status = read_value(scan, &extent);
    if (scan->status)
        return false;
    *out_value = scan->value;
    *out_value_bytes = extent.n_bytes;
    return true;
}

static enum status segments_scan_status(const struct store_scan *base)
{
    const struct scan_segments *scan =
        (const struct scan_segments *)(const void *)base;

    return scan->status ? scan->status : store_scan_status(scan->rows);
}

static void segments_scan_close(struct store_scan *base)
{
    struct scan_segments *scan = (struct scan_segments *)(void *)base;

    store_scan_close(scan->rows);
    scan->store->n_scan--;
    free(scan->value);
    free(scan);
}

/* --- life --- */

static void release(struct store_segments *store)
{
    segments_close(store->segments);
    store_batch_destroy(store->batch);
    writer_release(&store->row);
    free(store->dropped.at);
    free(store->value);
    free(store->extent);
    free(store);
}

static void segments_store_close(struct store *base)
{
    struct store_segments *store = segments_of(base);

    store_close(store->rows);
    release(store);
}

static const struct store_calls calls = {
    .close = segments_store_close,
    .write = segments_write,
    .get = segments_get,
    .scan_open = segments_scan_open,
    .scan_next = segments_scan_next,
    .scan_status = segments_scan_status,
    .scan_close = segments_scan_close,
};

/* What no row names is deleted, as far as whole files of it are. */
static enum status read_rows(struct store_segments *store)
{
    const void *key, *row;
    size_t key_bytes, n_bytes;
    struct store_scan *scan;
    enum status st = store_scan_open(
        store->rows, &(struct store_range){"\1", 1, "\377", 1}, false, &scan);

    if (st)
        return st;
    while (!st && store_scan_next(scan, &key, &key_bytes, &row, &n_bytes)) {
        struct extent extent;

        if (get_name(row, n_bytes, &extent))
            st = segments_need(store->segments, &extent);
    }
    if (!st)
        st = store_scan_status(scan);
    store_scan_close(scan);
    if (!st)
        segments_sweep(store->segments);
    return st;
}

enum status store_segments_adopt(struct store *rows, const char *path,
                                 struct store **out)
{
    struct store_segments *store = calloc(1, sizeof(*store));
    enum status st;

    if (!store)
        return no_memory();
    store->base.calls = &calls;
    store->rows = rows;
    writer_init(&store->row, ROW_BYTES);
    store->batch = store_batch_create(rows);
    st = store->batch ? segments_open(path, &store->segments) : no_memory();
    if (!st)
        st = read_rows(store);
    if (st) {
        release(store);
        return st;
    }
    *out = &store->base;
    return STATUS_OK;
}
