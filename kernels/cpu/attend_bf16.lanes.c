#include "kernels/cpu/attend_softmax.h"

#include <string.h>

/*
 * Attention in PAIR and TILE. What enters a product is bf16: q when it is
 * scaled, keys in their block or once more when they are rotated, weights when
 * they are made. Only the rotated dimensions are copied; a product takes up the
 * block itself behind them.
 */

/* Words in a row of k. */
static uint32_t n_key_pair(const struct rows *rows)
{
    return (rows->args->shape.d_head + 1) / 2;
}

/* Those that `rotated` has: in TILE whole steps, as long as there are any. */
static uint32_t n_near_pair(const struct rows *rows)
{
    uint32_t n = rows->args->table->n_rot / 2, all = n_key_pair(rows);

    if (rows->args->shape.arithmetic == ARITHMETIC_TILE)
        n = (n + BF16_STEP_PAIRS - 1) / BF16_STEP_PAIRS * BF16_STEP_PAIRS;
    return n < all ? n : all;
}

static void scale_rows(const struct rows *rows)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head;
    size_t stride = attend_q_stride(a->shape);
    v16 scale = v16_set1(a->scale);

    for (uint32_t r = 0; r < rows->n_row; r++) {
        const float *q = a->q + attend_row_at(rows, r, a->q_stride);
        uint16_t *to = (uint16_t *)rows->q + r * stride * 2;

        for (uint32_t d = 0; d < stride * 2; d += LANES)
            v16_store_bf16(
                to + d, d < d_head ? v16_mul(v16_load_part(q, d, d_head), scale)
                                   : v16_zero());
    }
}

LANES_INLINE v16 load_words(const uint32_t *x)
{
    return v16_load((const float *)(const void *)x);
}

LANES_INLINE void store_words(uint32_t *x, v16 words)
{
    v16_store((float *)(void *)x, words);
}

/* Angles of one pair of dimensions, and that pair of 16 keys; rotated in place
 * as rope does it. */
LANES_INLINE void rotate_pair(v16 c, v16 s, v16 *x, v16 *y)
{
    v16 was = *x;

    *x = v16_fms(was, c, v16_mul(*y, s));
    *y = v16_fma(*y, c, v16_mul(was, s));
}

/* Two pairs lie in the halves of two words. */
LANES_INLINE void rotate_even(const struct rope_table *table,
                              struct key_place place, const uint32_t *k,
                              uint32_t *to)
{
    const size_t n_pair = table->n_rot / 2, apart = n_pair / 2 * KV_BLOCK;
    const size_t angle = place.position / KV_BLOCK * n_pair * KV_BLOCK;

    for (size_t i = 0; i < n_pair / 2; i++) {
        const float *c0 = table->cos + angle + 2 * i * KV_BLOCK;
        const float *s0 = table->sin + angle + 2 * i * KV_BLOCK;
        const float *c1 = c0 + KV_BLOCK, *s1 = s0 + KV_BLOCK;

        for (size_t j = 0; j < KV_BLOCK; j += LANES) {
            const size_t at = i * KV_BLOCK + j;
            v16 x = load_words(k + at), x0 = v16_low(x), x1 = v16_high(x);
            v16 y = load_words(k + at + apart);
            v16 y0 = v16_low(y), y1 = v16_high(y);

            rotate_pair(attend_angles(c0, place, j),
                        attend_angles(s0, place, j), &x0, &y0);
            rotate_pair(attend_angles(c1, place, j),
                        attend_angles(s1, place, j), &x1, &y1);
            store_words(to + at, v16_words(x0, x1));
            store_words(to + at + apart, v16_words(y0, y1));
        }
    }
}

/* Dimension d of keys j to j + 15 as they lie in the block. */
LANES_INLINE v16 keys_at(const uint32_t *k, size_t d, size_t j)
{
    v16 words = load_words(k + d / 2 * KV_BLOCK + j);

    return d % 2 ? v16_high(words) : v16_low(words);
}

/* The same rotated. */
static v16 rotated_at(const struct rope_table *table, struct key_place place,
                      const uint32_t *k, size_t d, size_t j)
{
    const size_t n_pair = table->n_rot / 2, i = d < n_pair ? d : d - n_pair;
    const size_t at = (place.position / KV_BLOCK * n_pair + i) * KV_BLOCK;
    v16 x = keys_at(k, i, j), y = keys_at(k, i + n_pair, j);

    rotate_pair(attend_angles(table->cos + at, place, j),
                attend_angles(table->sin + at, place, j), &x, &y);
    return d < n_pair ? x : y;
}

/* An odd number of pairs: the halves of a word may be of both sorts. */
static void rotate_odd(const struct rope_table *table, struct key_place place,
                       const uint32_t *k, uint32_t *to)
{
    for (size_t d = 0; d < table->n_rot; d += 2)
        for (size_t j = 0; j < KV_BLOCK; j += LANES)
            store_words(to + d / 2 * KV_BLOCK + j,
                        v16_words(rotated_at(table, place, k, d, j),
                                  rotated_at(table, place, k, d + 1, j)));
}

static void rotate_keys(const struct group *g, struct key_place place)
{
    const struct rope_table *table = g->rows->args->table;
    const size_t n_word = table->n_rot / 2, n_near = n_near_pair(g->rows);
    const uint32_t *k = g->k;
    uint32_t *to = g->rotated;

    if (n_word % 2)
        rotate_odd(table, place, k, to);
    else if (place.is_flat)
        rotate_even(table, place, k, to);
    else
        rotate_even(table, (struct key_place){.position = place.position}, k,
                    to);
    memcpy(to + n_word * KV_BLOCK, k + n_word * KV_BLOCK,
           (n_near - n_word) * KV_BLOCK * sizeof(*k));
}

/* Scores of n_col keys. */
static void score(const struct group *g, uint32_t n_col)
{
    const struct rows *rows = g->rows;
    const size_t stride = attend_q_stride(rows->args->shape);
    const uint32_t n_near = n_near_pair(rows);

    rows->kernel->product(&(struct bf16_tile){
        .c = g->p,
        .c_stride = KV_BLOCK,
        .a = (const uint32_t *)rows->q + g->first * stride,
        .a_stride = stride,
        .b = g->rotated,
        .b_stride = KV_BLOCK,
        .far = (const uint32_t *)g->k + n_near * KV_BLOCK,
        .n_row = g->n_row,
        .n_col = n_col,
        .n_pair = n_key_pair(rows),
        .n_near = n_near,
        .next = rows->n_row < FEW_ROWS ? g->v : NULL,
    });
}

/* Rows [first, first + n_row) of the group by the first n_pair pairs of v. */
static void mix(const struct group *g, const uint32_t *v, uint32_t first,
                uint32_t n_row, uint32_t n_pair)
{
    const struct rows *rows = g->rows;
    const size_t d_head = rows->args->shape.d_head;

    rows->kernel->product(&(struct bf16_tile){
        .c = rows->out + (g->first + first) * d_head,
        .c_stride = d_head,
        .a = (const uint32_t *)(const void *)g->p + first * KV_BLOCK,
        .a_stride = KV_BLOCK,
        .b = v,
        .b_stride = d_head,
        .far = v,
        .n_row = n_row,
        .n_col = (uint32_t)d_head,
        .n_pair = n_pair,
        .n_near = n_pair,
        .next = g->next,
        .keep = g->is_start ? NULL : g->keep + first,
        .take = g->is_start ? NULL : g->take + first,
    });
}

/* Are the values of tokens [2 * first, 2 * end), and maybe of one before,
 * numbers? Zero times anything else is none. */
static bool are_finite(const uint32_t *v, size_t first, size_t end,
                       uint32_t d_head)
{
    const float *bits = (const float *)(const void *)v;
    v16 sum = v16_zero();

    for (size_t i = first; i < end; i++)
        for (uint32_t e = 0; e < d_head; e += LANES)
            sum = v16_dot(v16_load_part(bits + i * d_head, e, d_head),
                          v16_zero(), sum);
    return v16_fold(sum) == 0.0f;
}

/* The first n_key values of a block with zeros behind. */
static const uint32_t *clean_values(const struct group *g, uint32_t n_key)
{
    const size_t d_head = g->rows->args->shape.d_head;
    uint32_t *to = g->clean;

    memcpy(to, g->v, (n_key + 1) / 2 * d_head * sizeof(*to));
    memset(to + (n_key + 1) / 2 * d_head, 0,
           (KV_BLOCK - n_key) / 2 * d_head * sizeof(*to));
    for (size_t e = 0; e < d_head && n_key % 2; e++)
        to[n_key / 2 * d_head + e] &= 0xffffu;
    return to;
}

/*
 * Weighted values. Keys behind a row have a weight of zero, which leaves them
 * out unless a value is not finite (kernels/backend.h): then each position of
 * the group goes alone, by values that are zero behind it.
 */
static void mix_values(const struct group *g)
{
    const uint32_t n_query = g->rows->n_query;
    const uint32_t n_pair = (g->n_seen + 2 * BF16_STEP_PAIRS - 1) /
                            (2 * BF16_STEP_PAIRS) * BF16_STEP_PAIRS;

    if (g->n_key == 2 * n_pair ||
        are_finite(g->v, g->n_key / 2, n_pair, g->rows->args->shape.d_head)) {
        mix(g, g->v, 0, g->n_row, n_pair);
        return;
    }
    for (uint32_t r = 0; r < g->n_row; r += n_query)
        mix(g, clean_values(g, keys_seen(g, r, g->is_whole)), r, n_query,
            n_pair);
}

static void attend_group(struct group *g)
{
    score(g, (g->n_seen + LANES - 1) / LANES * LANES);
    weigh_and_merge(g, true);
    mix_values(g);
}

const struct attend_kernel LANES_NAME(attend_pair) = {
    .scale = scale_rows,
    .rotate = rotate_keys,
    .group = attend_group,
    .product = LANES_NAME(bf16_tile_pair),
};

#if defined(LANES_BF16)
const struct attend_kernel attend_tile_amx = {
    .scale = scale_rows,
    .rotate = rotate_keys,
    .group = attend_group,
    .product = bf16_tile_tile_amx,
};
#else
const struct attend_kernel LANES_NAME(attend_tile) = {
    .scale = scale_rows,
    .rotate = rotate_keys,
    .group = attend_group,
    .product = LANES_NAME(bf16_tile_tile),
};
#endif
