#include "kernels/move.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <string.h>

static void embed_row(void *arg, uint32_t row, void *scratch)
{
    const struct embed_args *a = arg;
    const unsigned char *table = a->table;
    size_t dim = a->dim, first = (size_t)a->token[row] * dim;
    float *y = a->y + row * dim;

    (void)scratch;
    if (a->type == LINEAR_F32) {
        memcpy(y, table + first * sizeof(float), dim * sizeof(float));
        return;
    }
    for (size_t i = 0; i < dim; i++) {
        uint16_t bits;
        memcpy(&bits, table + (first + i) * sizeof(bits), sizeof(bits));
        y[i] = scalar_from_bf16(bits);
    }
}

void move_embed(struct pool *pool, const struct embed_args *args)
{
    /* A few rows cost less than waking a thread. */
    struct pool *run_on = args->n_row < 16 ? NULL : pool;

    pool_run(run_on, args->n_row, embed_row, (void *)args);
}

size_t kv_block_bytes(struct attend_shape shape)
{
    return 2 * (size_t)shape.n_kv_head * shape.d_head * KV_BLOCK *
           sizeof(float);
}

/* Task: one KV head of one span. */
static void append_head(void *arg, uint32_t task, void *scratch)
{
    const struct kv_append_args *a = arg;
    size_t d_head = a->shape.d_head, n_kv = a->shape.n_kv_head;
    const struct attend_span *span = &a->span[task / n_kv];
    size_t head = task % n_kv;

    (void)scratch;
    for (size_t r = 0; r < span->n_row; r++) {
        uint64_t p = span->position + r;
        size_t row = span->first_row + r, at = p % KV_BLOCK;
        float *block = span->block[p / KV_BLOCK];
        float *to_k = block + head * d_head * KV_BLOCK + at;
        float *to_v = block + (n_kv + head) * d_head * KV_BLOCK + at * d_head;
        const float *k = a->k + row * a->k_stride + head * d_head;
        const float *v = a->v + row * a->v_stride + head * d_head;
        for (size_t d = 0; d < d_head; d++)
            to_k[d * KV_BLOCK] = k[d];
        memcpy(to_v, v, d_head * sizeof(float));
    }
}

void move_kv_append(struct pool *pool, const struct kv_append_args *args)
{
    uint32_t n_row = 0;

    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    pool_run(n_row < 16 ? NULL : pool, args->n_span * args->shape.n_kv_head,
             append_head, (void *)args);
}
