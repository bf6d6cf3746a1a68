#include "kernels/cpu/attend.h"

#include <assert.h>

#define LINE 64u /* bytes of a cache line */

/* Room in scratch, a whole number of cache lines. */
static size_t rounded(size_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

static float *room(float **scratch, size_t n)
{
    float *start = *scratch;
    *scratch += rounded(n);
    return start;
}

static size_t group_rows(struct attend_shape shape)
{
    uint32_t n_query = shape.n_head / shape.n_kv_head;

    return n_query > GROUP_ROWS ? n_query : GROUP_ROWS;
}

/* Words for a block's keys, and as many for its values, in bf16; FP32 has keys
 * alone. */
static size_t copy_floats(struct attend_shape shape)
{
    return ((size_t)shape.d_head + 1) / 2 * KV_BLOCK;
}

size_t LANES_NAME(attend_group_floats)(struct attend_shape shape)
{
    size_t n = group_rows(shape);

    return 2 * copy_floats(shape) + n * KV_BLOCK + rounded(n * shape.d_head) +
           4 * rounded(n);
}

size_t LANES_NAME(attend_rows_floats)(uint32_t n_row, struct attend_shape shape)
{
    return 2 * rounded(n_row) + rounded(n_row * attend_q_stride(shape)) +
           rounded((size_t)n_row * shape.d_head);
}

float *LANES_NAME(attend_place_group)(struct group *group,
                                      struct attend_shape shape, float *scratch)
{
    size_t n = group_rows(shape), d_head = shape.d_head;

    *group = (struct group){0};
    group->rotated = room(&scratch, copy_floats(shape));
    group->clean = room(&scratch, copy_floats(shape));
    group->p = room(&scratch, n * KV_BLOCK);
    group->out1 = room(&scratch, n * d_head);
    group->sum1 = room(&scratch, n);
    group->max1 = room(&scratch, n);
    group->keep = room(&scratch, n);
    group->take = room(&scratch, n);
    return scratch;
}

float *LANES_NAME(attend_place_rows)(struct rows *rows, float *scratch)
{
    const struct attend_shape shape = rows->args->shape;

    rows->sum = room(&scratch, rows->n_row);
    rows->max = room(&scratch, rows->n_row);
    rows->q = room(&scratch, rows->n_row * attend_q_stride(shape));
    rows->out = room(&scratch, (size_t)rows->n_row * shape.d_head);
    return scratch;
}

/* A block as the head of the rows has it. */
static const unsigned char *keys_of(const struct rows *rows, uint64_t block)
{
    return (const unsigned char *)rows->span->block[block] +
           kv_keys_at(rows->args->shape, rows->head);
}

static const unsigned char *values_of(const struct rows *rows, uint64_t block)
{
    return (const unsigned char *)rows->span->block[block] +
           kv_values_at(rows->args->shape, rows->head);
}

/* Bytes of a head's keys in a block, of which its values have no more. */
static size_t head_bytes(const struct rows *rows)
{
    return kv_keys_at(rows->args->shape, 1);
}

/* Ask for n lines of the next block's keys and values while this one is at
 * work: blocks lie apart in memory, where no hardware prefetcher follows. */
static void fetch(const struct rows *rows, uint64_t block, size_t first,
                  size_t n)
{
    const size_t end = (first + n) * LINE, last = head_bytes(rows);
    const unsigned char *k = keys_of(rows, block), *v = values_of(rows, block);

    for (size_t i = first * LINE; i < end && i < last; i += LINE) {
        _mm_prefetch((const char *)(k + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(v + i), _MM_HINT_T1);
    }
}

/* One group against one block. */
static void attend_group(struct group *g, uint64_t block)
{
    const struct rows *rows = g->rows;
    uint64_t seen =
        rows->position + g->first / rows->n_query + 1 - block * KV_BLOCK;

    g->is_start = block == 0 || rows->is_apart;
    g->is_whole = seen >= KV_BLOCK;
    g->n_key = g->is_whole ? KV_BLOCK : (uint32_t)seen;
    g->n_seen =
        g->is_whole ? KV_BLOCK : g->n_key + g->n_row / rows->n_query - 1;
    rows->kernel->group(g);
}

/* Asking for the next block while this one is at work pays where there is
 * work enough. Few rows are better off with the machine's own look-ahead. */
static bool is_fetching(const struct rows *rows, uint64_t block)
{
    uint64_t last = rows->position + rows->n_row / rows->n_query - 1;

    return rows->n_row >= FEW_ROWS && block < last / KV_BLOCK;
}

/* Few rows go through all heads of a block, then through the next block. */
static const void *next_keys(const struct rows *rows, uint64_t block)
{
    struct rows next = *rows;
    uint64_t last = rows->position + rows->n_row / rows->n_query - 1;

    next.head = (rows->head + 1) % rows->args->shape.n_kv_head;
    if (next.head == 0)
        block++;
    return rows->n_row < FEW_ROWS && block <= last / KV_BLOCK
               ? keys_of(&next, block)
               : NULL;
}

void LANES_NAME(attend_block)(const struct rows *rows, struct group *g,
                              uint64_t block)
{
    uint64_t end = rows->position + rows->n_row / rows->n_query;
    uint64_t at = rows->position, start = block * KV_BLOCK;
    uint32_t n_position =
        rows->n_query < GROUP_ROWS ? GROUP_ROWS / rows->n_query : 1;

    if (at < start)
        at = start;
    assert(at < end);
    size_t n_group = (end - at + n_position - 1) / n_position;
    size_t line = 0, slice = head_bytes(rows) / LINE / n_group + 1;
    bool fetches = is_fetching(rows, block);
    g->rows = rows;
    g->k = keys_of(rows, block);
    g->v = values_of(rows, block);
    g->next = next_keys(rows, block);
    if (fetches)
        fetch(rows, block + 1, 0, slice);
    rows->kernel->rotate(g, key_place_of(rows->span, block));
    while (at < end) {
        uint64_t stop = at + n_position, edge = (at / KV_BLOCK + 1) * KV_BLOCK;
        stop = stop < edge ? stop : edge;
        stop = stop < end ? stop : end;
        g->first = (uint32_t)(at - rows->position) * rows->n_query;
        g->n_row = (uint32_t)(stop - at) * rows->n_query;
        attend_group(g, block);
        at = stop;
        line += slice;
        if (fetches)
            fetch(rows, block + 1, line, slice);
    }
}
