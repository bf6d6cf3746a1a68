#include "state/store.h"

#include "state/store_calls.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void store_close(struct store *store)
{
    if (store)
        store->calls->close(store);
}

struct store_batch *store_batch_create(struct store *store)
{
    struct store_batch *batch = malloc(sizeof(*batch));

    (void)store; /* a batch is bytes; any store can apply it */
    if (batch) {
        writer_init(&batch->log, STORE_BATCH_MAX);
        batch->value_at = 0;
    }
    return batch;
}

void store_batch_destroy(struct store_batch *batch)
{
    if (!batch)
        return;
    writer_release(&batch->log);
    free(batch);
}

void store_batch_clear(struct store_batch *batch)
{
    writer_clear(&batch->log);
}

/* All but the value, whose length is the last number before it. */
static void add_head(struct store_batch *batch, const struct store_op *op)
{
    assert(op->key_bytes > 0 && op->key_bytes <= STORE_KEY_MAX);
    assert(*(const unsigned char *)op->key != 0);
    assert(batch->value_at == 0);
    writer_u8(&batch->log, (uint8_t)op->kind);
    writer_u32(&batch->log, (uint32_t)op->key_bytes);
    writer_bytes(&batch->log, op->key, op->key_bytes);
    writer_u64(&batch->log, op->value_bytes);
}

static void add_op(struct store_batch *batch, const struct store_op *op)
{
    add_head(batch, op);
    writer_bytes(&batch->log, op->value, op->value_bytes);
}

void store_batch_put(struct store_batch *batch, const void *key,
                     size_t key_bytes, const void *value, size_t value_bytes)
{
    add_op(batch,
           &(struct store_op){STORE_PUT, key, key_bytes, value, value_bytes});
}

struct writer *store_batch_begin_put(struct store_batch *batch, const void *key,
                                     size_t key_bytes)
{
    add_head(batch, &(struct store_op){STORE_PUT, key, key_bytes, NULL, 0});
    batch->value_at = batch->log.n;
    return &batch->log;
}

void store_batch_end_put(struct store_batch *batch)
{
    const uint64_t value_bytes = batch->log.n - batch->value_at;

    if (!batch->log.is_failed)
        memcpy(batch->log.bytes + batch->value_at - sizeof(value_bytes),
               &value_bytes, sizeof(value_bytes));
    batch->value_at = 0;
}

void store_batch_delete(struct store_batch *batch, const void *key,
                        size_t key_bytes)
{
    add_op(batch,
           &(struct store_op){STORE_DELETE_KEY, key, key_bytes, NULL, 0});
}

void store_batch_delete_range(struct store_batch *batch, const void *from,
                              size_t from_bytes, const void *to,
                              size_t to_bytes)
{
    add_op(batch, &(struct store_op){STORE_DELETE_RANGE, from, from_bytes, to,
                                     to_bytes});
}

size_t store_batch_bytes(const struct store_batch *batch)
{
    return batch->log.n;
}

bool store_batch_next(const struct store_batch *batch, size_t *at,
                      struct store_op *out)
{
    struct reader reader;

    if (*at == batch->log.n)
        return false;
    reader_init(&reader, batch->log.bytes + *at, batch->log.n - *at);
    out->kind = (enum store_op_kind)reader_u8(&reader);
    out->key_bytes = reader_u32(&reader);
    out->key = reader_bytes(&reader, out->key_bytes);
    out->value_bytes = reader_u64(&reader);
    out->value = reader_bytes(&reader, out->value_bytes);
    assert(!reader.is_failed);
    *at = batch->log.n - reader.left;
    return true;
}

enum status store_write_all(struct store *store,
                            const struct store_batch *const *batch,
                            uint32_t n_batch, bool sync)
{
    for (uint32_t i = 0; i < n_batch; i++)
        if (batch[i]->log.is_failed)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no room for a batch behind %zu bytes, limit %u",
                               batch[i]->log.n, STORE_BATCH_MAX);
    return store->calls->write(store, batch, n_batch, sync);
}

enum status store_write(struct store *store, const struct store_batch *batch,
                        bool sync)
{
    return store_write_all(store, &batch, 1, sync);
}

enum status store_get(struct store *store, const void *key, size_t key_bytes,
                      void **out, size_t *out_bytes)
{
    return store->calls->get(store, key, key_bytes, out, out_bytes);
}

enum status store_scan_open(struct store *store,
                            const struct store_range *range, bool is_descending,
                            struct store_scan **out)
{
    return store->calls->scan_open(store, range, is_descending, out);
}

bool store_scan_next(struct store_scan *scan, const void **out_key,
                     size_t *out_key_bytes, const void **out_value,
                     size_t *out_value_bytes)
{
    return scan->calls->scan_next(scan, out_key, out_key_bytes, out_value,
                                  out_value_bytes);
}

enum status store_scan_status(const struct store_scan *scan)
{
    return scan->calls->scan_status(scan);
}

void store_scan_close(struct store_scan *scan)
{
    if (scan)
        scan->calls->scan_close(scan);
}
