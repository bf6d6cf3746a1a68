#include "kernels/cpu/attend_softmax.h"
#include "kernels/cpu/in_order.h"

#include <string.h>

/*
 * Attention in FP32. Few rows read the unrotated dimensions of keys in place,
 * because a copy would cost more than a second pass over the scores, and values
 * from front to back.
 */

/* Keys whose values few rows take at once: they fit the first-level cache. */
#define FEW_KEYS 16u

/* So few that each of them may pass over keys and values by itself. */
static bool is_in_order(const struct rows *rows)
{
    return IN_ORDER_PAYS && rows->n_row < FEW_ROWS;
}

static void scale_rows(const struct rows *rows)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head;
    v16 scale = v16_set1(a->scale);

    for (uint32_t r = 0; r < rows->n_row; r++) {
        const float *q = a->q + attend_row_at(rows, r, a->q_stride);
        for (uint32_t d = 0; d < d_head; d += LANES)
            v16_store_part((float *)rows->q + (size_t)r * d_head,
                           v16_mul(v16_load_part(q, d, d_head), scale), d,
                           d_head);
    }
}

/* A block of keys with its leading dimensions rotated, lanes are keys. */
static void rotate_keys(const struct group *g, struct key_place place)
{
    const struct rows *rows = g->rows;
    const struct rope_table *table = rows->args->table;
    const float *k = g->k;
    float *to = g->rotated;
    uint32_t n_pair = table->n_rot / 2;

    for (size_t i = 0; i < n_pair; i++) {
        size_t first = i * KV_BLOCK, second = (i + n_pair) * KV_BLOCK;
        size_t angle = (place.position / KV_BLOCK * n_pair + i) * KV_BLOCK;
        for (size_t j = 0; j < KV_BLOCK; j += LANES) {
            v16 c = attend_angles(table->cos + angle, place, j);
            v16 s = attend_angles(table->sin + angle, place, j);
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

/* What few rows read behind a block's keys, and behind its values. */
static struct in_order_rows values_first(const struct group *g)
{
    const uint32_t d_head = g->rows->args->shape.d_head;

    return in_order_first(g->v, d_head, g->is_whole ? KV_BLOCK : g->n_key,
                          d_head);
}

static struct in_order_rows keys_first(const struct group *g)
{
    const uint32_t d_head = g->rows->args->shape.d_head;

    return in_order_first(g->next, KV_BLOCK, g->next ? d_head : 0, KV_BLOCK);
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
                        .a = (const float *)rows->q + (size_t)g->first * d_head,
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
    tile.b = (const float *)g->k + (size_t)n_rot * KV_BLOCK;
    tile.n_k = d_head - n_rot;
    if (is_in_order(rows))
        in_order(&tile, n_rot == 0, values_first(g));
    else if (n_rot)
        LANES_NAME(tile_onto)(&tile);
    else
        LANES_NAME(tile_set)(&tile);
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

    if (is_in_order(g->rows))
        in_order(&tile, true, keys_first(g));
    else if (g->n_row < FEW_ROWS)
        mix_in_order(tile);
    else
        LANES_NAME(tile_set)(&tile);
    if (g->is_whole)
        return;
    tile.a += g->n_key;
    tile.b = (const float *)g->v + g->n_key * d_head;
    tile.n_row = n_query;
    for (uint32_t r = n_query; r < g->n_row; r += n_query) {
        tile.a += (size_t)n_query * KV_BLOCK;
        tile.c += n_query * d_head;
        tile.n_k = r / n_query;
        LANES_NAME(tile_onto)(&tile);
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

/* One group against one block. */
static void attend_group(struct group *g)
{
    float *out = g->rows->out + (size_t)g->first * g->rows->args->shape.d_head;

    score(g, (g->n_seen + LANES - 1) / LANES * LANES);
    weigh_and_merge(g, false);
    if (g->is_start) {
        mix_values(g, out);
    } else if (g->is_whole && g->n_row >= FEW_ROWS) {
        struct tile tile = values_tile(g, out);
        LANES_NAME(tile_merge)(&tile);
    } else {
        merge_values(g, out);
    }
}

const struct attend_kernel LANES_NAME(attend_f32) = {
    .scale = scale_rows,
    .rotate = rotate_keys,
    .group = attend_group,
};
