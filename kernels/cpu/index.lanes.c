#include "kernels/index.h"
#include "kernels/cpu/ops.h"

#include <assert.h>

/*
 * Look-ups are bound by the way from memory: each index is read once, in order,
 * and all heads of a KV head meet it while it is near.
 */

LANES_INLINE v16 product_key(const float *q, const uint32_t *k, uint32_t d_head)
{
    v16 sum = v16_zero();

    for (uint32_t d = 0; d < d_head; d += INDEX_GROUP, k += LANES) {
        v16 high, low = v16_load_bf16(k, &high);

        sum = v16_add(sum, v16_mul(v16_load_part(q, d, d_head), low));
        if (d + LANES < d_head)
            sum = v16_add(sum,
                          v16_mul(v16_load_part(q, d + LANES, d_head), high));
    }
    return sum;
}

LANES_INLINE float score_keys(const float *q, const uint32_t *k,
                              uint32_t d_head, size_t n_word)
{
    v16 row[LANES];
    float score[LANES], best;

    static_assert(INDEX_CHOSEN <= LANES, "one fold");
    for (uint32_t i = 0; i < INDEX_CHOSEN; i++)
        row[i] = product_key(q, k + i * n_word, d_head);
    v16_fold_rows(row, INDEX_CHOSEN, score);
    best = score[0];
    for (uint32_t i = 1; i < INDEX_CHOSEN; i++)
        best = score[i] > best ? score[i] : best;
    return best;
}

LANES_INLINE float score_bounds(const float *q, const float *low,
                                uint32_t d_head)
{
    v16 sum = v16_zero();

    for (uint32_t d = 0; d < d_head; d += LANES) {
        v16 x = v16_load_part(q, d, d_head);
        v16 a = v16_mul(x, v16_load_part(low, d, d_head));
        v16 b = v16_mul(x, v16_load_part(low + d_head, d, d_head));

        sum = v16_add(sum, v16_max(a, b));
    }
    return v16_fold(sum);
}

LANES_INLINE v16 add_bounds(v16 sum, v16 x, v16 low, v16 high)
{
    return v16_add(sum, v16_max(v16_mul(x, low), v16_mul(x, high)));
}

LANES_INLINE float score_short(const float *q, const uint32_t *low,
                               uint32_t d_head, size_t n_word)
{
    v16 sum = v16_zero();

    for (uint32_t d = 0; d < d_head; d += INDEX_GROUP, low += LANES) {
        v16 low_next, high_next;
        v16 low_now = v16_load_bf16(low, &low_next);
        v16 high_now = v16_load_bf16(low + n_word, &high_next);

        sum = add_bounds(sum, v16_load_part(q, d, d_head), low_now, high_now);
        if (d + LANES < d_head)
            sum = add_bounds(sum, v16_load_part(q, d + LANES, d_head), low_next,
                             high_next);
    }
    return v16_fold(sum);
}

static float score(const struct kv_score_args *a, const char *index)
{
    const struct attend_shape shape = a->shape;
    const size_t n_word = index_key_words(shape);
    const size_t n_byte = index_scored_bytes(a);
    const uint32_t n_query = shape.n_head / shape.n_kv_head;
    float sum = 0.0f;

    for (uint32_t h = 0; h < shape.n_head; h++) {
        const float *q = a->q + (size_t)h * shape.d_head;
        const void *of_head = index + h / n_query * n_byte;

        if (a->kind == INDEX_KEYS)
            sum += score_keys(q, of_head, shape.d_head, n_word);
        else if (a->is_short)
            sum += score_short(q, of_head, shape.d_head, n_word);
        else
            sum += score_bounds(q, of_head, shape.d_head);
    }
    return sum;
}

/* Where one index ends the hardware does not know where the next one is. */
#define AHEAD 8u

static void fetch(const struct kv_score_args *a, uint64_t block)
{
    const char *index = a->index[block];
    const size_t n = a->shape.n_kv_head * index_scored_bytes(a);

    for (size_t at = 0; at < n; at += 64)
        __builtin_prefetch(index + at);
}

static void score_task(void *arg, uint32_t task, void *scratch)
{
    const struct kv_score_args *a = arg;
    const uint64_t first = a->first + (uint64_t)task * INDEX_TASK;
    const uint64_t end =
        first + INDEX_TASK < a->end ? first + INDEX_TASK : a->end;

    (void)scratch;
    for (uint64_t b = first; b < end; b++) {
        if (b + AHEAD < a->end)
            fetch(a, b + AHEAD);
        a->score[b - a->first] = score(a, a->index[b]);
    }
}

void LANES_NAME(kv_score)(struct pool *pool, const struct kv_score_args *args)
{
    const uint64_t n = args->end - args->first;

    assert(args->kind == INDEX_KEYS || args->kind == INDEX_BOUNDS);
    pool_run(n <= INDEX_TASK ? NULL : pool,
             (uint32_t)((n + INDEX_TASK - 1) / INDEX_TASK), score_task,
             (void *)args);
}
