#ifndef KERNELS_MOVE_H
#define KERNELS_MOVE_H
/*
 * The operators of kernels/backend.h that only move numbers, or round them to
 * bf16 by their bits: every CPU backend shares them. Thread rules as there.
 */
#include "kernels/backend.h"

void move_embed(struct pool *pool, const struct embed_args *args);
void move_kv_append(struct pool *pool, const struct kv_append_args *args);

/* Of it: row r of a span, one KV head; and the pool, or NULL for few rows. */
void move_kv_append_row(const struct kv_append_args *args,
                        const struct attend_span *span, size_t head, size_t r);
struct pool *move_kv_append_pool(struct pool *pool,
                                 const struct kv_append_args *args);
#endif
