#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>

/* One row and head of the attention, and a block. */
struct seen {
    const struct kv_mass_args *args;
    uint32_t row, head;
    uint64_t block;
    uint32_t n_key; /* of the block that are not behind the row */
};

static struct seen seen_of(const struct kv_mass_args *a, uint32_t row,
                           uint32_t head, uint64_t block)
{
    const uint64_t n = a->position + row + 1, before = block * KV_BLOCK;
    const uint64_t n_key = n > before ? n - before : 0;

    return (struct seen){a, row, head, block,
                         n_key < KV_BLOCK ? (uint32_t)n_key : KV_BLOCK};
}

/* Dimension d of key j as it lies there. */
static float key_at(const struct seen *it, size_t d, size_t j)
{
    const struct attend_shape shape = it->args->shape;
    const size_t head = it->head / (shape.n_head / shape.n_kv_head);
    const void *k =
        (const char *)it->args->block[it->block] + kv_keys_at(shape, head);

    if (shape.arithmetic == ARITHMETIC_FP32)
        return ((const float *)k)[d * KV_BLOCK + j];
    return scalar_from_bf16(
        ((const uint16_t *)k)[(d / 2 * KV_BLOCK + j) * 2 + d % 2]);
}

static float rotated(const struct seen *it, size_t d, size_t j)
{
    const struct rope_table *table = it->args->table;
    const size_t n_pair = table->n_rot / 2, i = d < n_pair ? d : d - n_pair;
    const size_t at = (it->block * n_pair + i) * KV_BLOCK + j;
    float x, y;

    if (d >= 2 * n_pair)
        return key_at(it, d, j);
    x = key_at(it, i, j);
    y = key_at(it, i + n_pair, j);
    return d < n_pair ? fmaf(x, table->cos[at], -(y * table->sin[at]))
                      : fmaf(y, table->cos[at], x * table->sin[at]);
}

static void scores(const struct seen *it, float out[KV_BLOCK])
{
    const size_t d_head = it->args->shape.d_head;
    const float *q =
        it->args->q + (it->row * it->args->shape.n_head + it->head) * d_head;

    for (size_t j = 0; j < it->n_key; j++) {
        float sum = 0.0f;

        for (size_t d = 0; d < d_head; d++)
            sum = fmaf(q[d], rotated(it, d, j), sum);
        out[j] = sum * it->args->scale;
    }
}

/* Of the scores, as exponentials above `max`. */
static float sum_above(const struct seen *it, const float *score, float max)
{
    float p[KV_BLOCK] = {0.0f};

    for (size_t j = 0; j < it->n_key; j++)
        p[j] = scalar_exp(score[j] - max);
    return scalar_sum(p, KV_BLOCK);
}

/* M and 1 / L of a row and head. */
static void measure(const struct kv_mass_args *a, uint32_t row, uint32_t head)
{
    const uint64_t last = (a->position + row) / KV_BLOCK;
    float *stat = a->stat + 2 * (row * a->shape.n_head + head);
    float all_max = 0.0f, all_sum = 0.0f, score[KV_BLOCK];

    for (uint64_t b = 0; b <= last; b++) {
        const struct seen it = seen_of(a, row, head, b);
        float max, sum, top;

        assert(it.n_key > 0);
        scores(&it, score);
        max = score[0];
        for (size_t j = 1; j < it.n_key; j++)
            max = score[j] > max ? score[j] : max;
        sum = sum_above(&it, score, max);
        top = b == 0 || max > all_max ? max : all_max;
        all_sum = b == 0 ? sum
                         : fmaf(all_sum, scalar_exp(all_max - top),
                                sum * scalar_exp(max - top));
        all_max = top;
    }
    stat[0] = all_max;
    stat[1] = 1.0f / all_sum;
}

void ref_kv_mass(struct pool *pool, const struct kv_mass_args *a)
{
    (void)pool;
    for (uint32_t row = 0; row < a->n_row; row++)
        for (uint32_t head = 0; head < a->shape.n_head; head++)
            measure(a, row, head);
    for (uint64_t b = a->first; b < a->end; b++) {
        float mass = 0.0f, score[KV_BLOCK];

        for (uint32_t head = 0; head < a->shape.n_head; head++)
            for (uint32_t row = 0; row < a->n_row; row++) {
                const float *stat =
                    a->stat + 2 * (row * a->shape.n_head + head);
                const struct seen it = seen_of(a, row, head, b);

                if (it.n_key == 0)
                    continue;
                scores(&it, score);
                mass += sum_above(&it, score, stat[0]) * stat[1];
            }
        a->mass[b - a->first] = mass;
    }
}
