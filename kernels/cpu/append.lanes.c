/* kv_append of whole vectors: four tokens at a time where they are bf16, and
 * whatever else by kernels/move.c. */
#include "kernels/cpu/cut.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/pairs.h"
#include "kernels/move.h"

#define TOKENS 4u

struct job {
    const struct kv_append_args *args;
    uint32_t n_task, n_thread;
};

/* Some tokens' rows of a head. */
struct rows {
    const float *x;
    size_t stride;
};

/* Dims [d, d + LANES): words of two dims, a line of a block's tokens each. */
static void put_keys(uint32_t *to, struct rows k, size_t d)
{
    uint32_t word[TOKENS][LANES / 2];

    for (size_t t = 0; t < TOKENS; t++)
        pairs_store_row((uint16_t *)(void *)word[t],
                        v16_load(k.x + t * k.stride + d));
    for (size_t i = 0; i < LANES / 2; i += TOKENS)
        pairs_turn(to + (d / 2 + i) * KV_BLOCK, KV_BLOCK, word[0] + i,
                   LANES / 2);
}

/* Words of two tokens, a row of dims each. */
static void put_values(uint32_t *to, struct rows v, size_t d, size_t d_head)
{
    for (size_t t = 0; t < TOKENS; t += 2)
        pairs_store(to + t / 2 * d_head + d, v16_load(v.x + t * v.stride + d),
                    v16_load(v.x + (t + 1) * v.stride + d));
}

/* Rows r and the three behind it, which lie in one block. */
static void append_some(const struct kv_append_args *a,
                        const struct attend_span *span, size_t head, size_t r)
{
    const size_t d_head = a->shape.d_head, row = span->first_row + r;
    const uint64_t p = span->position + r;
    unsigned char *block = span->block[p / KV_BLOCK];
    const struct rows k = {a->k + row * a->k_stride + head * d_head,
                           a->k_stride};
    const struct rows v = {a->v + row * a->v_stride + head * d_head,
                           a->v_stride};
    uint32_t *to_k = (void *)(block + kv_keys_at(a->shape, head));
    uint32_t *to_v = (void *)(block + kv_values_at(a->shape, head));

    for (size_t d = 0; d < d_head; d += LANES) {
        put_keys(to_k + p % KV_BLOCK, k, d);
        put_values(to_v + p % KV_BLOCK / 2 * d_head, v, d, d_head);
    }
}

static bool has_vectors(struct attend_shape shape)
{
    return shape.kv != KV_INT8 && shape.d_head % LANES == 0 &&
           (shape.arithmetic == ARITHMETIC_PAIR ||
            shape.arithmetic == ARITHMETIC_TILE);
}

/* One KV head of one span. */
static void append_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct kv_append_args *a = job->args;
    const uint32_t at = cut_turn(task, job->n_task, job->n_thread);
    const struct attend_span *span = &a->span[at / a->shape.n_kv_head];
    const size_t head = at % a->shape.n_kv_head;

    (void)scratch;
    for (size_t r = 0, n; r < span->n_row; r += n) {
        n = (span->position + r) % TOKENS || span->n_row - r < TOKENS ? 1
                                                                      : TOKENS;
        if (n == TOKENS)
            append_some(a, span, head, r);
        else
            move_kv_append_row(a, span, head, r);
    }
}

void LANES_NAME(kv_append)(struct pool *pool, const struct kv_append_args *args)
{
    struct job job = {.args = args,
                      .n_task = args->n_span * args->shape.n_kv_head};

    if (!has_vectors(args->shape)) {
        move_kv_append(pool, args);
        return;
    }
    pool = move_kv_append_pool(pool, args);
    job.n_thread = pool_n_thread(pool);
    pool_run(pool, job.n_task, append_task, &job);
}
