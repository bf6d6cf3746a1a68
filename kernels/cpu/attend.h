#ifndef KERNELS_CPU_ATTEND_H
#define KERNELS_CPU_ATTEND_H
/*
 * Rows of attention against one block of keys after the other: what the tasks
 * of attend.lanes.c are made of. How a block's keys, scores and values are
 * multiplied is a kernel's matter: attend_f32.lanes.c has that of FP32,
 * attend_bf16.lanes.c those of PAIR and TILE.
 */
#include "kernels/backend.h"
#include "kernels/cpu/bf16_tile.h"
#include "kernels/cpu/lanes.h"

struct attend_kernel;

/*
 * Rows of one KV head and some consecutive positions of one span, as
 * [position][query head].
 */
struct rows {
    const struct attend_args *args;
    const struct attend_kernel *kernel;
    const struct attend_span *span;
    uint32_t head;           /* KV head */
    uint32_t n_query, n_row; /* n_row = positions * n_query */
    uint64_t position;       /* of the first row */
    void *q;                 /* [n_row] times scale, as the kernel reads them */
    float *out, *sum, *max;  /* [n_row, d_head], [n_row], [n_row] */
    bool is_apart;           /* a block's partials are kept, not merged */
};

/* Rows of one group against one block; made once for all groups of a task. */
struct group {
    const struct rows *rows;
    uint32_t first, n_row;     /* rows of the task */
    uint32_t n_key;            /* that the first row sees */
    uint32_t n_seen;           /* that the last row sees */
    bool is_whole;             /* all rows see all keys */
    bool is_start;             /* of a merge: out, max and sum begin here */
    const void *k, *v;         /* of the block */
    const void *next;          /* keys that few rows meet next, or NULL */
    void *rotated;             /* keys of the block, rotated */
    void *clean;               /* room for its values, if the kernel wants it */
    float *p;                  /* [n_row, KV_BLOCK] scores, then weights */
    float *out1, *sum1, *max1; /* of this block alone */
    float *keep, *take;        /* [n_row] factors of a merge */
};

/* Rows that go together through one block, but for more queries of one KV
 * head. Their queries, weights and results stay in the first-level cache beside
 * the block's keys and values. The positions of a group lie in one block of the
 * grid, so that only its last block of keys is cut by the causal mask. */
#define GROUP_ROWS 32u

/* Fewer rows than this are bound by the way from memory. */
#define FEW_ROWS 16u

struct attend_kernel {
    void (*scale)(const struct rows *rows); /* fill q */
    /* Fill rotated, before the groups of a task meet the block. */
    void (*rotate)(const struct group *group, struct key_place place);
    /* Those rows against the block, merged into out, sum and max. */
    void (*group)(struct group *group);
    bf16_tile_work *product; /* of PAIR and TILE */
};

/* Kernels by arithmetic. */
extern const struct attend_kernel attend_f32_avx2, attend_f32_avx512,
    attend_pair_avx2, attend_pair_avx512, attend_pair_avx512_bf16,
    attend_tile_avx2, attend_tile_avx512, attend_tile_amx;

/* The angles of 16 keys from j on of a place whose block of the table has them
 * in row. */
LANES_INLINE v16 attend_angles(const float *row, struct key_place place,
                               size_t j)
{
    return place.is_flat ? v16_set1(row[place.position % KV_BLOCK])
                         : v16_load(row + j);
}

/* Floats of a group's arrays, and of q, out, sum and max of a task's rows. */
size_t LANES_NAME(attend_group_floats)(struct attend_shape shape);
size_t LANES_NAME(attend_rows_floats)(uint32_t n_row,
                                      struct attend_shape shape);

/* Lay them out in scratch; returns what lies behind. */
float *LANES_NAME(attend_place_group)(struct group *group,
                                      struct attend_shape shape,
                                      float *scratch);
float *LANES_NAME(attend_place_rows)(struct rows *rows, float *scratch);

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

/* Four-byte elements from row to row of q: floats, or words of two bf16, which
 * are padded with zeros to a whole number of cache lines. */
static inline size_t attend_q_stride(struct attend_shape shape)
{
    return shape.arithmetic == ARITHMETIC_FP32
               ? shape.d_head
               : (shape.d_head + 2 * LANES - 1) / (2 * LANES) * LANES;
}
#endif
