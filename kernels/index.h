#ifndef KERNELS_INDEX_H
#define KERNELS_INDEX_H
/*
 * Indices of KV blocks (kernels/backend.h): every CPU backend shares them. They
 * are no part of any reply's arithmetic but decide which blocks it reads, so
 * their bits count as much. Only + * and comparisons: any compiler's vectors
 * give the same.
 */
#include "kernels/backend.h"

void index_seal(struct pool *pool, const struct kv_seal_args *args);
void index_score(struct pool *pool, const struct kv_score_args *args);
#endif
