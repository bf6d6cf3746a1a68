#ifndef KERNELS_INDEX_H
#define KERNELS_INDEX_H
/*
 * How indices of KV blocks lie in memory, and how they are made, which every
 * CPU backend shares. They are no part of any reply's arithmetic but decide
 * which blocks it reads, so their bits count as much.
 */
#include "kernels/backend.h"

/* Dimensions of a key in bf16 that lie in INDEX_GROUP / 2 words: word i has
 * dimension i in its low half and i + INDEX_GROUP / 2 in its high one. Behind
 * the last dimension are zeros. */
#define INDEX_GROUP 32u

size_t index_key_words(struct attend_shape shape); /* of one key */
size_t index_head_bytes(struct attend_shape shape, enum index_kind kind);
/* As these arguments have it: long or short. */
size_t index_scored_bytes(const struct kv_score_args *args);

/* Blocks of one task of a look-up. */
#define INDEX_TASK 256u

void index_seal(struct pool *pool, const struct kv_seal_args *args);
#endif
