#include "kernels/cpu/ops.h"
#include "kernels/cpu/tile.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Rows of one task at most: positions times the query heads of one KV head.
 * Many rows pay well for a block's way from memory and for its rotation. */
#define TASK_ROWS 512u
#define TASKS_A_THREAD 2u /* at least, before tasks grow to TASK_ROWS */

/* Rows that go together through one block. Their queries, weights and results
 * stay in the first-level cache beside the block's keys and values. */
#define GROUP_ROWS 32u

/* Fewer rows than this read the unrotated dimensions of keys in place, because
 * a copy would cost more than a second pass over the scores. */
#define COPY_ROWS 16u

/*
 * Task: one KV head and some consecutive positions of one span. Rows are
 * [position][query head]. Each block of keys is rotated once into scratch and
 * met by all rows that see it, group by group. The positions of a group lie in
 * one block of the grid, so that only its last block of keys is cut by the
 * causal mask.
 */
struct job {
    const struct attend_args *args;
    uint32_t n_query;    /* query heads of one KV head */
    uint32_t n_position; /* most positions of one task; a power of two */
};

struct rows {
    const struct attend_args *args;
    const struct attend_span *span;
    uint32_t head;           /* KV head */
    uint32_t n_query, n_row; /* n_row = positions * n_query */
    uint64_t position;       /* of the first row */
    float *q;                /* [n_row, d_head] times scale */
    float *k;                /* [d_head, KV_BLOCK] keys, rotated */
    float *out, *sum, *max;  /* [n_row, d_head], [n_row], [n_row]: all */
};

/* Rows of one group against one block. */
struct group {
    const struct rows *rows;
    uint32_t first, n_row;     /* rows of the task */
    uint32_t n_key;            /* that the first row sees */
    bool is_whole;             /* all rows see all keys */
    const float *k, *v;        /* of the block */
    float *p;                  /* [n_row, KV_BLOCK] scores, then weights */
    float *out1, *sum1, *max1; /* of this block alone */
    float *keep, *take;        /* [n_row] factors of a merge */
};

/* Room in scratch, a whole number of cache lines. */
static float *room(float **scratch, size_t n)
{
    float *start = *scratch;
    *scratch += (n + LANES - 1) / LANES * LANES;
    return start;
}

static void place(struct rows *rows, struct group *group, float *scratch)
{
    float *const start = scratch;
    size_t n_row = rows->n_row, d_head = rows->args->shape.d_head;
    size_t n = rows->n_query > GROUP_ROWS ? rows->n_query : GROUP_ROWS;

    group->rows = rows;
    rows->k = room(&scratch, d_head * KV_BLOCK);
    group->p = room(&scratch, n * KV_BLOCK);
    group->out1 = room(&scratch, n * d_head);
    group->sum1 = room(&scratch, n);
    group->max1 = room(&scratch, n);
    group->keep = room(&scratch, n);
    group->take = room(&scratch, n);
    rows->sum = room(&scratch, n_row);
    rows->max = room(&scratch, n_row);
    rows->q = room(&scratch, n_row * d_head);
    rows->out = room(&scratch, n_row * d_head);
    assert((size_t)(scratch - start) * sizeof(float) <= POOL_SCRATCH_BYTES);
}

/* Query row r in args, or its result: same place in both matrices. */
static size_t row_at(const struct rows *rows, uint32_t r, size_t stride)
{
    size_t row = rows->span->first_row + r / rows->n_query +
                 (rows->position - rows->span->position);
    size_t head = (size_t)rows->head * rows->n_query + r % rows->n_query;
    return row * stride + head * rows->args->shape.d_head;
}

static void scale_queries(const struct rows *rows)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head;
    v16 scale = v16_set1(a->scale);

    for (uint32_t r = 0; r < rows->n_row; r++) {
        const float *q = a->q + row_at(rows, r, a->q_stride);
        for (uint32_t d = 0; d < d_head; d += LANES)
            v16_store_part(rows->q + (size_t)r * d_head,
                           v16_mul(v16_load_part(q, d, d_head), scale), d,
                           d_head);
    }
}

/* A block of keys with its leading dimensions rotated, lanes are keys. */
static void rotate_keys(const struct rows *rows, const float *k, uint64_t block)
{
    const struct rope_table *table = rows->args->table;
    uint32_t n_pair = table->n_rot / 2;

    for (size_t i = 0; i < n_pair; i++) {
        size_t first = i * KV_BLOCK, second = (i + n_pair) * KV_BLOCK;
        size_t angle = (block * n_pair + i) * KV_BLOCK;
        for (size_t j = 0; j < KV_BLOCK; j += LANES) {
            v16 c = v16_load(table->cos + angle + j);
            v16 s = v16_load(table->sin + angle + j);
            v16 x = v16_load(k + first + j), y = v16_load(k + second + j);
            v16_store(rows->k + first + j, v16_fms(x, c, v16_mul(y, s)));
            v16_store(rows->k + second + j, v16_fma(y, c, v16_mul(x, s)));
        }
    }
    if (rows->n_row >= COPY_ROWS)
        memcpy(rows->k + (size_t)table->n_rot * KV_BLOCK,
               k + (size_t)table->n_rot * KV_BLOCK,
               (rows->args->shape.d_head - table->n_rot) *
                   (KV_BLOCK * sizeof(float)));
}

/* Scores of n_col keys. Few rows: the chain over d runs through the rotated
 * dimensions in scratch and goes on in the block itself. */
static void score(const struct group *g, uint32_t n_col)
{
    const struct rows *rows = g->rows;
    uint32_t d_head = rows->args->shape.d_head;
    uint32_t n_rot = rows->args->table->n_rot;
    struct tile tile = {.c = g->p,
                        .c_stride = KV_BLOCK,
                        .a = rows->q + (size_t)g->first * d_head,
                        .a_stride = d_head,
                        .b = rows->k,
                        .b_stride = KV_BLOCK,
                        .b_group = LANES,
                        .n_row = g->n_row,
                        .n_col = n_col,
                        .n_k = rows->n_row < COPY_ROWS ? n_rot : d_head};

    if (tile.n_k) {
        LANES_NAME(tile_set)(&tile);
        if (tile.n_k == d_head)
            return;
    }
    tile.a += n_rot;
    tile.b = g->k + (size_t)n_rot * KV_BLOCK;
    tile.n_k = d_head - n_rot;
    if (n_rot)
        LANES_NAME(tile_onto)(&tile);
    else
        LANES_NAME(tile_set)(&tile);
}

/* Keys that row r of a group sees. */
LANES_INLINE uint32_t keys_seen(const struct group *g, uint32_t r,
                                bool is_whole)
{
    return is_whole ? KV_BLOCK : g->n_key + r / g->rows->n_query;
}

/*
 * Scores of up to 16 rows from first on to weights, with their maxima and
 * sums. Keys that a row does not see hold anything; they become zero, which
 * no sum notices. No score is above its maximum, so no exp overflows.
 */
LANES_INLINE void weigh(const struct group *g, uint32_t first, uint32_t n_row,
                        bool is_whole)
{
    v16 none = v16_set1(-INFINITY), row[LANES];
    float *p = g->p + (size_t)first * KV_BLOCK;

    for (uint32_t r = 0; r < n_row; r++) {
        uint32_t n_key = keys_seen(g, first + r, is_whole);
        v16 max = none;
#pragma GCC unroll 4
        for (uint32_t j = 0; j < KV_BLOCK; j += LANES)
            if (j < n_key)
                max = v16_max(max, v16_first(v16_load(p + r * KV_BLOCK + j),
                                             none, n_key - j));
        row[r] = max;
    }
    v16_largest_rows(row, n_row, g->max1 + first);
    for (uint32_t r = 0; r < n_row; r++) {
        uint32_t n_key = keys_seen(g, first + r, is_whole);
        v16 shift = v16_set1(g->max1[first + r]), sum = v16_zero();
#pragma GCC unroll 4
        for (uint32_t j = 0; j < KV_BLOCK; j += LANES) {
            if (j >= n_key)
                break;
            v16 w = v16_sub(v16_load(p + r * KV_BLOCK + j), shift);
            w = v16_first(v16_exp_small(w), v16_zero(), n_key - j);
            v16_store(p + r * KV_BLOCK + j, w);
            sum = v16_add(sum, w);
        }
        row[r] = sum;
    }
    v16_fold_rows(row, n_row, g->sum1 + first);
}

static void weigh_all(const struct group *g)
{
    for (uint32_t r = 0; r < g->n_row; r += LANES) {
        uint32_t n = g->n_row - r < LANES ? g->n_row - r : LANES;
        if (g->is_whole)
            weigh(g, r, n, true);
        else
            weigh(g, r, n, false);
    }
}

/* The product of a group's weights with the values, for tile_xxx(). */
static struct tile values_tile(const struct group *g, float *out)
{
    size_t d_head = g->rows->args->shape.d_head;
    return (struct tile){.c = out,
                         .c_stride = d_head,
                         .a = g->p,
                         .a_stride = KV_BLOCK,
                         .b = g->v,
                         .b_stride = d_head,
                         .b_group = LANES,
                         .n_row = g->n_row,
                         .n_col = (uint32_t)d_head,
                         .n_k = g->is_whole ? KV_BLOCK : g->n_key,
                         .keep = g->keep,
                         .take = g->take};
}

/*
 * Weighted values. A key that a row does not see is left out, not multiplied
 * by zero: what lies there must not reach even the sign of a zero. So all rows
 * go through the keys that the first one sees, and later ones go on alone.
 */
static void mix_values(const struct group *g, float *out)
{
    size_t d_head = g->rows->args->shape.d_head;
    uint32_t n_query = g->rows->n_query;
    struct tile tile = values_tile(g, out);

    LANES_NAME(tile_set)(&tile);
    if (g->is_whole)
        return;
    tile.a += g->n_key;
    tile.b = g->v + g->n_key * d_head;
    tile.n_row = n_query;
    for (uint32_t r = n_query; r < g->n_row; r += n_query) {
        tile.a += (size_t)n_query * KV_BLOCK;
        tile.c += n_query * d_head;
        tile.n_k = r / n_query;
        LANES_NAME(tile_onto)(&tile);
    }
}

/* The maxima and sums of one block into those of all blocks before it, and
 * the factors with which the results follow. */
static void merge_sums(const struct group *g)
{
    uint32_t n_row = g->n_row;
    float *max = g->rows->max + g->first, *sum = g->rows->sum + g->first;

    for (uint32_t r = 0; r < n_row; r += LANES) {
        v16 old = v16_load_part(max, r, n_row);
        v16 new = v16_load_part(g->max1, r, n_row);
        v16 top = v16_max(old, new);
        v16 keep = v16_exp(v16_sub(old, top));
        v16 take = v16_exp(v16_sub(new, top));
        v16 all = v16_mul(v16_load_part(g->sum1, r, n_row), take);
        all = v16_fma(v16_load_part(sum, r, n_row), keep, all);
        v16_store_part(max, top, r, n_row);
        v16_store_part(sum, all, r, n_row);
        v16_store(g->keep + r, keep);
        v16_store(g->take + r, take);
    }
}

/* The results likewise, after a cut block. A whole one never lies apart: its
 * product merges as it leaves the registers. */
static void merge_values(const struct group *g, float *out)
{
    uint32_t d_head = g->rows->args->shape.d_head;

    mix_values(g, g->out1);
    for (uint32_t r = 0; r < g->n_row; r++, out += d_head) {
        const float *out1 = g->out1 + (size_t)r * d_head;
        v16 keep = v16_set1(g->keep[r]), take = v16_set1(g->take[r]);
        for (uint32_t e = 0; e < d_head; e += LANES) {
            v16 one = v16_mul(v16_load_part(out1, e, d_head), take);
            one = v16_fma(v16_load_part(out, e, d_head), keep, one);
            v16_store_part(out, one, e, d_head);
        }
    }
}

/* Ask for n lines of the next block's keys and values while this one is at
 * work: blocks lie apart in memory, where no hardware prefetcher follows. */
static void fetch(const struct rows *rows, uint64_t block, size_t first,
                  size_t n)
{
    struct attend_shape shape = rows->args->shape;
    size_t head_floats = (size_t)shape.d_head * KV_BLOCK;
    const float *k = rows->span->block[block] + rows->head * head_floats;
    const float *v = k + shape.n_kv_head * head_floats;

    for (size_t i = first * LANES; i < (first + n) * LANES && i < head_floats;
         i += LANES) {
        _mm_prefetch((const char *)(k + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(v + i), _MM_HINT_T1);
    }
}

/* One group against one block. */
static void attend_group(struct group *g, uint64_t block)
{
    const struct rows *rows = g->rows;
    uint64_t first = rows->position + g->first / rows->n_query;
    uint64_t seen = first + 1 - block * KV_BLOCK;
    uint32_t n_col = KV_BLOCK;
    float *out = rows->out + (size_t)g->first * rows->args->shape.d_head;

    g->is_whole = seen >= KV_BLOCK;
    if (!g->is_whole) { /* what the last row sees, to whole vectors */
        g->n_key = (uint32_t)seen;
        n_col = g->n_key + g->n_row / rows->n_query - 1;
        n_col = (n_col + LANES - 1) / LANES * LANES;
    }
    score(g, n_col);
    if (block == 0) { /* the start of the merge */
        struct group start = *g;
        start.max1 = rows->max + g->first;
        start.sum1 = rows->sum + g->first;
        weigh_all(&start);
        mix_values(&start, out);
        return;
    }
    weigh_all(g);
    merge_sums(g);
    if (g->is_whole) {
        struct tile tile = values_tile(g, out);
        LANES_NAME(tile_merge)(&tile);
    } else {
        merge_values(g, out);
    }
}

/* All rows that see a block. Rows before it stay out. */
static void attend_block(const struct rows *rows, struct group *g,
                         uint64_t block)
{
    struct attend_shape shape = rows->args->shape;
    size_t head_floats = (size_t)shape.d_head * KV_BLOCK;
    uint64_t end = rows->position + rows->n_row / rows->n_query;
    uint64_t at = rows->position, start = block * KV_BLOCK;
    uint32_t n_position =
        rows->n_query < GROUP_ROWS ? GROUP_ROWS / rows->n_query : 1;

    if (at < start)
        at = start;
    assert(at < end); /* a block that no row sees is never asked for */
    size_t n_group = (end - at + n_position - 1) / n_position;
    size_t line = 0, slice = head_floats / LANES / n_group + 1;
    bool is_last = block == (end - 1) / KV_BLOCK;
    g->k = rows->span->block[block] + rows->head * head_floats;
    g->v = g->k + shape.n_kv_head * head_floats;
    if (!is_last)
        fetch(rows, block + 1, 0, slice);
    rotate_keys(rows, g->k, block);
    while (at < end) {
        uint64_t stop = at + n_position, edge = (at / KV_BLOCK + 1) * KV_BLOCK;
        stop = stop < edge ? stop : edge;
        stop = stop < end ? stop : end;
        g->first = (uint32_t)(at - rows->position) * rows->n_query;
        g->n_row = (uint32_t)(stop - at) * rows->n_query;
        attend_group(g, block);
        at = stop;
        line += slice;
        if (!is_last)
            fetch(rows, block + 1, line, slice);
    }
}

static void finish(const struct rows *rows)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head;

    for (uint32_t r = 0; r < rows->n_row; r++) {
        float *to = a->out + row_at(rows, r, a->out_stride);
        const float *out = rows->out + (size_t)r * d_head;
        v16 scale = v16_set1(1.0f / rows->sum[r]);
        for (uint32_t e = 0; e < d_head; e += LANES)
            v16_store_part(to, v16_mul(v16_load_part(out, e, d_head), scale), e,
                           d_head);
    }
}

/* Pieces of `n` aligned positions that a span touches. */
static uint32_t n_piece(const struct attend_span *span, uint32_t n)
{
    if (span->n_row == 0)
        return 0;
    return (uint32_t)((span->position + span->n_row - 1) / n -
                      span->position / n + 1);
}

static void attend_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct attend_args *a = job->args;
    const struct attend_span *span = a->span;
    uint32_t n_kv = a->shape.n_kv_head, n = job->n_position;

    while (task >= n_piece(span, n) * n_kv)
        task -= n_piece(span++, n) * n_kv;
    uint64_t first = (span->position / n + task / n_kv) * n, end = first + n;
    if (first < span->position)
        first = span->position;
    if (end > span->position + span->n_row)
        end = span->position + span->n_row;
    struct rows rows = {.args = a,
                        .span = span,
                        .head = task % n_kv,
                        .n_query = job->n_query,
                        .n_row = (uint32_t)(end - first) * job->n_query,
                        .position = first};
    struct group group = {0};
    place(&rows, &group, scratch);
    scale_queries(&rows);
    for (uint64_t block = 0; block <= (end - 1) / KV_BLOCK; block++)
        attend_block(&rows, &group, block);
    finish(&rows);
}

/* The largest tasks that are enough, but none below a block's positions for
 * their number alone: small ones rotate keys too often. */
static uint32_t choose_tasks(struct job *job, uint32_t n_enough)
{
    const struct attend_args *a = job->args;
    uint32_t n = 1, n_task = 0;

    while (n * 2 * job->n_query <= TASK_ROWS)
        n *= 2;
    for (;; n /= 2) {
        n_task = 0;
        for (uint32_t i = 0; i < a->n_span; i++)
            n_task += n_piece(&a->span[i], n) * a->shape.n_kv_head;
        if (n_task >= n_enough || n <= KV_BLOCK / 2)
            break;
    }
    job->n_position = n;
    return n_task;
}

void LANES_NAME(attend)(struct pool *pool, const struct attend_args *args)
{
    struct attend_shape shape = args->shape;
    struct job job = {.args = args, .n_query = shape.n_head / shape.n_kv_head};
    uint64_t n_fma = 0;
    uint32_t n_task = 0;

    assert(shape.d_head <= HEAD_DIM_MAX);
    assert(args->table->n_rot <= shape.d_head);
    assert(shape.n_head % shape.n_kv_head == 0);
    for (uint32_t i = 0; i < args->n_span; i++) {
        const struct attend_span *span = &args->span[i];
        uint64_t n_key = span->position + span->n_row;
        assert(n_key <= args->table->n_position);
        n_fma += span->n_row * n_key * shape.n_head * shape.d_head / 8;
    }
    pool = pool_for_fmas(pool, n_fma);
    n_task = choose_tasks(&job, TASKS_A_THREAD * pool_n_thread(pool));
    pool_run(pool, n_task, attend_task, &job);
}
