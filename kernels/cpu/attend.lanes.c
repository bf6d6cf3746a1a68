#include "kernels/cpu/ops.h"
#include "kernels/cpu/tile.h"

#include <assert.h>
#include <math.h>

/* Rows of one task: positions times the query heads of one KV head. */
#define TASK_ROWS 128u

/*
 * Task: one KV head and some consecutive positions of one span, all in one
 * block of the grid, so that only their last block of keys is cut by the
 * causal mask. Rows are [position][query head]. Each block of keys is rotated
 * once into scratch and met by all rows.
 */
struct job {
    const struct attend_args *args;
    uint32_t n_query;    /* query heads of one KV head */
    uint32_t n_position; /* most positions of one task; divides KV_BLOCK */
};

struct rows {
    const struct attend_args *args;
    const struct attend_span *span;
    uint32_t head;             /* KV head */
    uint32_t n_query, n_row;   /* n_row = positions * n_query */
    uint64_t position;         /* of the first row */
    float *q;                  /* [n_row, d_head] times scale */
    float *k;                  /* [n_rot, KV_BLOCK] rotated keys */
    float *p;                  /* [n_row, KV_BLOCK] scores, then weights */
    float *out, *sum, *max;    /* [n_row, d_head], [n_row], [n_row]: all */
    float *out1, *sum1, *max1; /* the same of one block */
};

/* Room in scratch, a whole number of cache lines. */
static float *take(float **scratch, size_t n)
{
    float *start = *scratch;
    *scratch += (n + LANES - 1) / LANES * LANES;
    return start;
}

static void place(struct rows *rows, float *scratch)
{
    float *const start = scratch;
    size_t n_row = rows->n_row, d_head = rows->args->shape.d_head;

    rows->q = take(&scratch, n_row * d_head);
    rows->k = take(&scratch, d_head * KV_BLOCK);
    rows->p = take(&scratch, n_row * KV_BLOCK);
    rows->out = take(&scratch, n_row * d_head);
    rows->out1 = take(&scratch, n_row * d_head);
    rows->sum = take(&scratch, n_row);
    rows->sum1 = take(&scratch, n_row);
    rows->max = take(&scratch, n_row);
    rows->max1 = take(&scratch, n_row);
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

/* The rotated part of a block of keys, lanes are keys. */
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
}

/* Scores of n_col keys of a block: the chain over d runs through the rotated
 * dimensions in scratch and goes on in the block itself. */
static void score(const struct rows *rows, const float *k, uint32_t n_col)
{
    uint32_t d_head = rows->args->shape.d_head;
    uint32_t n_rot = rows->args->table->n_rot;
    struct tile tile = {.c = rows->p,
                        .c_stride = KV_BLOCK,
                        .a = rows->q,
                        .a_stride = d_head,
                        .b = rows->k,
                        .b_stride = KV_BLOCK,
                        .b_group = LANES,
                        .n_row = rows->n_row,
                        .n_col = n_col,
                        .n_k = n_rot};

    if (n_rot) {
        LANES_NAME(tile_set)(&tile);
        if (n_rot == d_head)
            return;
    }
    tile.a = rows->q + n_rot;
    tile.b = k + (size_t)n_rot * KV_BLOCK;
    tile.n_k = d_head - n_rot;
    if (n_rot)
        LANES_NAME(tile_onto)(&tile);
    else
        LANES_NAME(tile_set)(&tile);
}

/* Scores of one row to weights, with their maximum and sum. Keys behind n_key
 * hold anything; they become zero, which no sum notices. */
static void weigh(float *p, uint32_t n_key, float *max, float *sum)
{
    v16 none = v16_set1(-INFINITY), largest = none, total = v16_zero();

    for (uint32_t j = 0; j < n_key; j += LANES)
        largest = v16_max(largest, v16_first(v16_load(p + j), none, n_key - j));
    *max = v16_largest(largest);
    v16 shift = v16_set1(*max);
    for (uint32_t j = 0; j < n_key; j += LANES) {
        v16 w = v16_exp(v16_sub(v16_load(p + j), shift));
        w = v16_first(w, v16_zero(), n_key - j);
        v16_store(p + j, w);
        total = v16_add(total, w);
    }
    *sum = v16_fold(total);
}

/* Weighted values of rows first .. first + n_row - 1 over n_key keys. */
static void mix_values(const struct rows *rows, const float *v, uint32_t first,
                       uint32_t n_row, uint32_t n_key, float *out)
{
    size_t d_head = rows->args->shape.d_head;
    struct tile tile = {.c = out + first * d_head,
                        .c_stride = d_head,
                        .a = rows->p + (size_t)first * KV_BLOCK,
                        .a_stride = KV_BLOCK,
                        .b = v,
                        .b_stride = d_head,
                        .b_group = LANES,
                        .n_row = n_row,
                        .n_col = (uint32_t)d_head,
                        .n_k = n_key};
    LANES_NAME(tile_set)(&tile);
}

/* Ask for the next block's keys and values while this one is at work: blocks
 * lie apart in memory, where no hardware prefetcher follows. */
static void fetch(const struct rows *rows, uint64_t block)
{
    struct attend_shape shape = rows->args->shape;
    size_t head_floats = (size_t)shape.d_head * KV_BLOCK;
    const float *k = rows->span->block[block] + rows->head * head_floats;
    const float *v = k + shape.n_kv_head * head_floats;

    for (size_t i = 0; i < head_floats; i += LANES) {
        _mm_prefetch((const char *)(k + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(v + i), _MM_HINT_T1);
    }
}

/* All rows against one block; the results go to max, sum, out. */
static void attend_block(const struct rows *rows, uint64_t block, float *max,
                         float *sum, float *out)
{
    struct attend_shape shape = rows->args->shape;
    size_t head_floats = (size_t)shape.d_head * KV_BLOCK;
    const float *k = rows->span->block[block] + rows->head * head_floats;
    const float *v = k + shape.n_kv_head * head_floats;
    uint64_t seen = rows->position + 1 - block * KV_BLOCK; /* by the first */
    bool is_whole = seen >= KV_BLOCK;
    uint32_t n_position = rows->n_row / rows->n_query;
    uint32_t n_col = KV_BLOCK;

    if (!is_whole) /* what the last row sees, to whole vectors */
        n_col = (uint32_t)(seen + n_position - 1 + LANES - 1) / LANES * LANES;
    if (block < rows->position / KV_BLOCK)
        fetch(rows, block + 1);
    rotate_keys(rows, k, block);
    score(rows, k, n_col);
    for (uint32_t r = 0; r < rows->n_row; r++) {
        uint32_t n_key =
            is_whole ? KV_BLOCK : (uint32_t)seen + r / rows->n_query;
        weigh(rows->p + (size_t)r * KV_BLOCK, n_key, &max[r], &sum[r]);
    }
    if (is_whole) {
        mix_values(rows, v, 0, rows->n_row, KV_BLOCK, out);
        return;
    }
    /* A key that a row does not see is left out, not multiplied by zero:
     * what lies there must not reach even the sign of a zero. */
    for (uint32_t t = 0; t < n_position; t++)
        mix_values(rows, v, t * rows->n_query, rows->n_query,
                   (uint32_t)seen + t, out);
}

/* One block's results into those of all blocks before it. */
static void merge(const struct rows *rows)
{
    uint32_t n_row = rows->n_row, d_head = rows->args->shape.d_head;
    float *a = rows->p, *c = a + ((size_t)n_row + LANES) / LANES * LANES;

    for (uint32_t r = 0; r < n_row; r += LANES) {
        v16 old = v16_load_part(rows->max, r, n_row);
        v16 new = v16_load_part(rows->max1, r, n_row);
        v16 max = v16_max(old, new);
        v16 va = v16_exp(v16_sub(old, max)), vc = v16_exp(v16_sub(new, max));
        v16 sum = v16_mul(v16_load_part(rows->sum1, r, n_row), vc);
        sum = v16_fma(v16_load_part(rows->sum, r, n_row), va, sum);
        v16_store_part(rows->max, max, r, n_row);
        v16_store_part(rows->sum, sum, r, n_row);
        v16_store(a + r, va);
        v16_store(c + r, vc);
    }
    for (uint32_t r = 0; r < n_row; r++) {
        float *out = rows->out + (size_t)r * d_head;
        const float *out1 = rows->out1 + (size_t)r * d_head;
        v16 va = v16_set1(a[r]), vc = v16_set1(c[r]);
        for (uint32_t e = 0; e < d_head; e += LANES) {
            v16 one = v16_mul(v16_load_part(out1, e, d_head), vc);
            one = v16_fma(v16_load_part(out, e, d_head), va, one);
            v16_store_part(out, one, e, d_head);
        }
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
    place(&rows, scratch);
    scale_queries(&rows);
    attend_block(&rows, 0, rows.max, rows.sum, rows.out);
    for (uint64_t block = 1; block <= first / KV_BLOCK; block++) {
        attend_block(&rows, block, rows.max1, rows.sum1, rows.out1);
        merge(&rows);
    }
    finish(&rows);
}

void LANES_NAME(attend)(struct pool *pool, const struct attend_args *args)
{
    struct attend_shape shape = args->shape;
    struct job job = {.args = args,
                      .n_query = shape.n_head / shape.n_kv_head,
                      .n_position = KV_BLOCK};
    uint64_t n_fma = 0;
    uint32_t n_task = 0;

    assert(shape.d_head <= HEAD_DIM_MAX);
    assert(args->table->n_rot <= shape.d_head);
    assert(shape.n_head % shape.n_kv_head == 0);
    while (job.n_position > 1 && job.n_position * job.n_query > TASK_ROWS)
        job.n_position /= 2;
    for (uint32_t i = 0; i < args->n_span; i++) {
        const struct attend_span *span = &args->span[i];
        uint64_t n_key = span->position + span->n_row;
        assert(n_key <= args->table->n_position);
        n_task += n_piece(span, job.n_position) * shape.n_kv_head;
        n_fma += span->n_row * n_key * shape.n_head * shape.d_head / 8;
    }
    pool_run(pool_for_fmas(pool, n_fma), n_task, attend_task, &job);
}
