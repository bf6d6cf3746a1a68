#include "kernels/cpu/delta_part.h"

#include <assert.h>
#include <string.h>

static void *take(char **scratch, size_t n, size_t element_bytes)
{
    char *start = *scratch;
    *scratch += (n * element_bytes + 63) / 64 * 64;
    return start;
}

void LANES_NAME(delta_place)(struct part *p, char *scratch)
{
    char *const start = scratch;
    const size_t n = p->n_row, element = p->kernel.element_bytes;
    const size_t d_v = p->args->shape.d_v, word = sizeof(uint32_t);
    const size_t n_word = (size_t)p->n_panel * LANES * p->n_step / 2;
    const size_t n_unit = 2 * n * delta_row_floats(p->args->shape.d_k);

    p->k_room = (float *)(void *)scratch;
    p->q_room = p->k_room + n * delta_row_floats(p->args->shape.d_k);
    p->s = take(&scratch, n_word > n_unit ? n_word : n_unit, word);
    p->v_room = take(&scratch, n * delta_row_floats(p->args->shape.d_v), word);
    p->kq = take(&scratch, 2 * n * p->n_step, element);
    p->k = element == sizeof(*p->k)
               ? p->kq
               : take(&scratch, n * p->n_step, sizeof(*p->k));
    p->key = take(&scratch, (size_t)GRID * p->n_step / 2, word);
    p->u = take(&scratch, (size_t)p->n_panel * LANES * WORDS, word);
    p->dot = take(&scratch, 2 * n * GRID, sizeof(float));
    p->read = take(&scratch, 2 * n * d_v, sizeof(float));
    p->w = take(&scratch, n * DELTA_BLOCK, sizeof(float));
    p->far = take(&scratch, n * GRID, element);
    p->x = take(&scratch, n * GRID, element);
    p->acc = take(&scratch, DELTA_BLOCK * d_v, sizeof(float));
    p->aged = take(&scratch, (size_t)FOLD_ROWS * GRID, element);
    p->since_grid = take(&scratch, GRID, sizeof(float));
    p->scratch = start + POOL_SCRATCH_BYTES - PRODUCT_SCRATCH_BYTES;
    assert(scratch <= (char *)p->scratch);
}

static uint32_t *ring_of_keys(const struct part *p)
{
    const size_t n_pair = (p->args->shape.d_k + 1) / 2;

    return (uint32_t *)p->span->state.ring_k + p->k_head * n_pair * GRID;
}

/* What the ring has of this chunk; the padding is zero. */
void LANES_NAME(delta_load_keys)(const struct part *p)
{
    const size_t n_pair = (p->args->shape.d_k + 1) / 2;
    const uint32_t *ring = ring_of_keys(p);

    for (size_t j = 0; j < GRID; j += LANES) {
        for (size_t d = 0; d < n_pair && j < p->first; d++)
            memcpy(key_at(p, d, j), ring + d * GRID + j, LANES * sizeof(*ring));
        if (n_pair < p->n_step / 2)
            memset(key_at(p, n_pair, j), 0,
                   (p->n_step / 2 - n_pair) * LANES * sizeof(*ring));
    }
}

/* The part's keys, whose lanes are tokens, four at a time where they stand
 * together. */
void LANES_NAME(delta_turn_keys)(const struct part *p)
{
    const uint32_t *k = (const uint32_t *)(const void *)p->k;
    const uint32_t n_pair = p->n_step / 2;
    uint32_t n;

    for (uint32_t j = p->first; j < p->end; j += n, k += (size_t)n * n_pair) {
        n = j % 4 || j + 4 > p->end ? 1 : 4;
        if (n == 4)
            for (uint32_t d = 0; d < n_pair; d += 4)
                pairs_turn(key_at(p, d, j), LANES, k + d, n_pair);
        else
            for (uint32_t d = 0; d < n_pair; d++)
                *key_at(p, d, j) = k[d];
    }
}

void LANES_NAME(delta_store_keys)(const struct part *p)
{
    const size_t n_pair = (p->args->shape.d_k + 1) / 2;
    uint32_t *ring = ring_of_keys(p);

    for (size_t d = 0; d < n_pair; d++)
        for (size_t j = p->first, n; j < p->end; j += n) {
            n = LANES - j % LANES < p->end - j ? LANES - j % LANES : p->end - j;
            memcpy(ring + d * GRID + j, key_at(p, d, j), n * sizeof(*ring));
        }
}

/* 16 words of a row of u, or as many as there are; whole rows go fast. */
static void copy_words(uint32_t *to, const uint32_t *from, uint32_t n)
{
    if (n >= LANES)
        memcpy(to, from, LANES * sizeof(*to));
    else
        memcpy(to, from, n * sizeof(*to));
}

/* Words of known tokens, a half of the last perhaps; zero behind them. */
void LANES_NAME(delta_load_u)(const struct part *p, const struct head *head)
{
    const uint32_t d_v = p->args->shape.d_v, n_word = (p->first + 1) / 2;

    if (n_word < WORDS || d_v % LANES)
        memset(p->u, 0, (size_t)p->n_panel * WORDS * LANES * sizeof(*p->u));
    for (uint32_t m = 0; m < n_word; m++)
        for (uint32_t e = 0; e < d_v; e += LANES)
            copy_words(u_at(p, e / LANES, m), head->u + (size_t)m * d_v + e,
                       d_v - e);
    for (uint32_t e = 0; e < d_v && p->first % 2; e++)
        u_at(p, e / LANES, n_word - 1)[e % LANES] &= UINT16_MAX;
}

void LANES_NAME(delta_store_u)(const struct part *p, const struct head *head)
{
    const uint32_t d_v = p->args->shape.d_v;

    for (uint32_t m = p->first / 2; m < (p->end + 1) / 2; m++)
        for (uint32_t e = 0; e < d_v; e += LANES)
            copy_words(head->u + (size_t)m * d_v + e, u_at(p, e / LANES, m),
                       d_v - e);
}

/* S0 as a right side, from memory. */
void LANES_NAME(delta_take_state)(const struct part *p, const struct head *head)
{
    const uint32_t d_k = p->args->shape.d_k, d_v = p->args->shape.d_v;

    for (uint32_t d = 0; d < p->n_step; d += 2) {
        const float *s = head->s + (size_t)d * d_v;

        for (uint32_t e = 0; e < d_v; e += LANES) {
            v16 low = d < d_k ? v16_load_part(s, e, d_v) : v16_zero();
            v16 high =
                d + 1 < d_k ? v16_load_part(s + d_v, e, d_v) : v16_zero();
            pairs_store(s_at(p, e / LANES, d / 2), low, high);
        }
    }
}
