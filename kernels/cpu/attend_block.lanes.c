#include "kernels/cpu/attend.h"
#include "kernels/cpu/tile.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Rows that go together through one block. Their queries, weights and results
 * stay in the first-level cache beside the block's keys and values. The
 * positions of a group lie in one block of the grid, so that only its last
 * block of keys is cut by the causal mask. */
#define GROUP_ROWS 32u

/* Fewer rows than this are bound by the way from memory. They read the
 * unrotated dimensions of keys in place, because a copy would cost more than a
 * second pass over the scores, and values from front to back. */
#define FEW_ROWS 16u

/* Keys whose values few rows take at once: they fit the first-level cache. */
#define FEW_KEYS 16u

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

size_t LANES_NAME(attend_group_floats)(struct attend_shape shape)
{
    size_t n = group_rows(shape), d_head = shape.d_head;

    return (d_head + n) * KV_BLOCK + rounded(n * d_head) + 4 * rounded(n);
}

size_t LANES_NAME(attend_rows_floats)(uint32_t n_row, uint32_t d_head)
{
    return 2 * rounded(n_row) + 2 * rounded((size_t)n_row * d_head);
}

float *LANES_NAME(attend_place_group)(struct group *group,
                                      struct attend_shape shape, float *scratch)
{
    size_t n = group_rows(shape), d_head = shape.d_head;

    *group = (struct group){0};
    group->rotated = room(&scratch, d_head * KV_BLOCK);
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
    size_t n = (size_t)rows->n_row * rows->args->shape.d_head;

    rows->sum = room(&scratch, rows->n_row);
    rows->max = room(&scratch, rows->n_row);
    rows->q = room(&scratch, n);
    rows->out = room(&scratch, n);
    return scratch;
}

void LANES_NAME(attend_scale)(const struct rows *rows)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head;
    v16 scale = v16_set1(a->scale);

    for (uint32_t r = 0; r < rows->n_row; r++) {
        const float *q = a->q + attend_row_at(rows, r, a->q_stride);
        for (uint32_t d = 0; d < d_head; d += LANES)
            v16_store_part(rows->q + (size_t)r * d_head,
                           v16_mul(v16_load_part(q, d, d_head), scale), d,
                           d_head);
    }
}

/* A block of keys with its leading dimensions rotated, lanes are keys. */
static void rotate_keys(const struct group *g, uint64_t block)
{
    const struct rows *rows = g->rows;
    const struct rope_table *table = rows->args->table;
    const float *k = g->k;
    float *to = g->rotated;
    uint32_t n_pair = table->n_rot / 2;

    for (size_t i = 0; i < n_pair; i++) {
        size_t first = i * KV_BLOCK, second = (i + n_pair) * KV_BLOCK;
        size_t angle = (block * n_pair + i) * KV_BLOCK;
        for (size_t j = 0; j < KV_BLOCK; j += LANES) {
            v16 c = v16_load(table->cos + angle + j);
            v16 s = v16_load(table->sin + angle + j);
            v16 x = v16_load(k + first + j), y = v16_load(k + second + j);
            v16_store(to + first + j, v16_fms(x, c, v16_mul(y, s)));
            v16_store(to + second + j, v16_fma(y, c, v16_mul(x, s)));
        }
    }
    if (rows->n_row >= FEW_ROWS)
        memcpy(to + (size_t)table->n_rot * KV_BLOCK,
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
                        .b = g->rotated,
                        .b_stride = KV_BLOCK,
                        .b_group = LANES,
                        .n_row = g->n_row,
                        .n_col = n_col,
                        .n_k = rows->n_row < FEW_ROWS ? n_rot : d_head};

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

/* tile_set() by some keys after the others, so that the values are read as
 * they lie in memory; where columns are few, they are anyway. */
static void mix_in_order(struct tile tile)
{
    const uint32_t n_k = tile.n_k;

    tile.n_k = n_k < FEW_KEYS ? n_k : FEW_KEYS;
    LANES_NAME(tile_set)(&tile);
    for (uint32_t k = FEW_KEYS; k < n_k; k += FEW_KEYS) {
        tile.a += FEW_KEYS;
        tile.b = (const float *)tile.b + FEW_KEYS * tile.b_stride;
        tile.n_k = n_k - k < FEW_KEYS ? n_k - k : FEW_KEYS;
        LANES_NAME(tile_onto)(&tile);
    }
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

    if (g->n_row < FEW_ROWS)
        mix_in_order(tile);
    else
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

/* The results likewise, after a cut block or for few rows. Others never lie
 * apart: their product merges as it leaves the registers. */
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
    const float *k =
        (const float *)rows->span->block[block] + rows->head * head_floats;
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
    if (block == 0 || rows->is_apart) { /* the start of a merge */
        struct group start = *g;
        start.max1 = rows->max + g->first;
        start.sum1 = rows->sum + g->first;
        weigh_all(&start);
        mix_values(&start, out);
        return;
    }
    weigh_all(g);
    merge_sums(g);
    if (g->is_whole && g->n_row >= FEW_ROWS) {
        struct tile tile = values_tile(g, out);
        LANES_NAME(tile_merge)(&tile);
    } else {
        merge_values(g, out);
    }
}

/* Asking for the next block while this one is at work pays where there is
 * work enough. Few rows are better off with the machine's own look-ahead. */
static bool is_fetching(const struct rows *rows, uint64_t block)
{
    uint64_t last = rows->position + rows->n_row / rows->n_query - 1;

    return rows->n_row >= FEW_ROWS && block < last / KV_BLOCK;
}

void LANES_NAME(attend_block)(const struct rows *rows, struct group *g,
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
    assert(at < end);
    size_t n_group = (end - at + n_position - 1) / n_position;
    size_t line = 0, slice = head_floats / LANES / n_group + 1;
    bool fetches = is_fetching(rows, block);
    g->rows = rows;
    g->k = (const float *)rows->span->block[block] + rows->head * head_floats;
    g->v = g->k + shape.n_kv_head * head_floats;
    if (fetches)
        fetch(rows, block + 1, 0, slice);
    rotate_keys(g, block);
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
