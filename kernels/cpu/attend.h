#ifndef KERNELS_CPU_ATTEND_H
#define KERNELS_CPU_ATTEND_H
/*
 * Rows of attention against one block of keys after the other: what the tasks
 * of attend.lanes.c are made of.
 */
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"

/*
 * Rows of one KV head and some consecutive positions of one span, as
 * [position][query head].
 */
struct rows {
    const struct attend_args *args;
    const struct attend_span *span;
    uint32_t head;           /* KV head */
    uint32_t n_query, n_row; /* n_row = positions * n_query */
    uint64_t position;       /* of the first row */
    float *q;                /* [n_row, d_head] times scale */
    float *out, *sum, *max;  /* [n_row, d_head], [n_row], [n_row] */
    bool is_apart;           /* a block's partials are kept, not merged */
};

/* Rows of one group against one block; made once for all groups of a task. */
struct group {
    const struct rows *rows;
    uint32_t first, n_row;     /* rows of the task */
    uint32_t n_key;            /* that the first row sees */
    bool is_whole;             /* all rows see all keys */
    const float *k, *v;        /* of the block */
    float *rotated;            /* [d_head, KV_BLOCK] its keys, rotated */
    float *p;                  /* [n_row, KV_BLOCK] scores, then weights */
    float *out1, *sum1, *max1; /* of this block alone */
    float *keep, *take;        /* [n_row] factors of a merge */
};

/* Floats of a group's arrays, and of q, out, sum and max of a task's rows. */
size_t LANES_NAME(attend_group_floats)(struct attend_shape shape);
size_t LANES_NAME(attend_rows_floats)(uint32_t n_row, uint32_t d_head);

/* Lay them out in scratch; returns what lies behind. */
float *LANES_NAME(attend_place_group)(struct group *group,
                                      struct attend_shape shape,
                                      float *scratch);
float *LANES_NAME(attend_place_rows)(struct rows *rows, float *scratch);

/* Fill q. */
void LANES_NAME(attend_scale)(const struct rows *rows);

/*
 * Rows that see the block, against it. Block 0 starts their out, sum and max,
 * as does every block if is_apart; others are merged into them. Some row must
 * see it.
 */
void LANES_NAME(attend_block)(const struct rows *rows, struct group *group,
                              uint64_t block);

/* Query row r of a task in args, or its result: the same place in both. */
static inline size_t attend_row_at(const struct rows *rows, uint32_t r,
                                   size_t stride)
{
    size_t row = rows->span->first_row + r / rows->n_query +
                 (rows->position - rows->span->position);
    size_t head = (size_t)rows->head * rows->n_query + r % rows->n_query;

    return row * stride + head * rows->args->shape.d_head;
}
#endif
