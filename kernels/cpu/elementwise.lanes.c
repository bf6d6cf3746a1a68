/* Operators of one pass over rows: norms, gates, rotation. */
#include "kernels/cpu/cut.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/panel.h"

#include <assert.h>
#include <math.h>

/* Rows of one task at most: small enough to share out, large enough to be worth
 * it. */
#define TASK_ROWS 8u

/* Some rows of an operator for each task. */
struct job {
    const void *args;
    struct cut cut;
};

/* Rows of `width` floats each. */
static void run_rows(struct pool *pool, uint32_t n_row, uint64_t width,
                     pool_work *work, const void *args)
{
    struct pool *by = pool_for_floats(pool, n_row * width);
    struct job job = {args, cut_rows(by, n_row, TASK_ROWS)};

    pool_run(by, job.cut.n_task, work, &job);
}

/* z: what gates the group by its silu, or NULL. */
LANES_INLINE void norm_group(float *y, const float *x, const float *z,
                             const struct norm_args *a)
{
    float sum = v16_sum_squares(x, a->dim);
    v16 scale = v16_set1(1.0f / sqrtf(sum / (float)a->dim + a->eps));

    for (uint32_t i = 0; i < a->dim; i += LANES) {
        v16 v = v16_mul(v16_load_part(x, i, a->dim), scale);
        v = v16_mul(v, v16_load_part(a->weight, i, a->dim));
        if (z)
            v = v16_mul(v, v16_silu(v16_load_part(z, i, a->dim)));
        v16_store_part(y, v, i, a->dim);
    }
}

static void norm_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct cut_part part = cut_part(job->cut, task);
    const struct norm_args *a = job->args;

    (void)scratch;
    for (size_t r = part.first; r < part.end; r++)
        for (size_t g = 0; g < a->n_group; g++)
            norm_group(a->y + r * a->y_stride + g * a->dim,
                       a->x + r * a->x_stride + g * a->dim, NULL, a);
}

void LANES_NAME(rms_norm)(struct pool *pool, const struct norm_args *args)
{
    run_rows(pool, args->n_row, (uint64_t)args->n_group * args->dim, norm_task,
             args);
}

static void gated_norm_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct cut_part part = cut_part(job->cut, task);
    const struct gated_norm_args *a = job->args;
    const struct norm_args *n = &a->norm;

    (void)scratch;
    for (size_t r = part.first; r < part.end; r++)
        for (size_t g = 0; g < n->n_group; g++)
            norm_group(n->y + r * n->y_stride + g * n->dim,
                       n->x + r * n->x_stride + g * n->dim,
                       a->z + r * a->z_stride + g * n->dim, n);
}

void LANES_NAME(gated_norm)(struct pool *pool,
                            const struct gated_norm_args *args)
{
    const struct norm_args *n = &args->norm;

    run_rows(pool, n->n_row, (uint64_t)n->n_group * n->dim, gated_norm_task,
             args);
}

static void swiglu_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct cut_part part = cut_part(job->cut, task);
    const struct swiglu_args *a = job->args;

    (void)scratch;
    LANES_NAME(swiglu_floats)
    (&(struct product_swiglu){.to = a->y + part.first * a->y_stride,
                              .to_bytes = a->y_stride * sizeof(*a->y),
                              .gate = a->x + part.first * a->x_stride,
                              .up = a->x + part.first * a->x_stride + a->n_ff,
                              .stride = a->x_stride,
                              .n_row = part.end - part.first,
                              .n_col = a->n_ff,
                              .n_step = a->n_ff});
}

void LANES_NAME(swiglu)(struct pool *pool, const struct swiglu_args *args)
{
    run_rows(pool, args->n_row, (uint64_t)args->n_ff, swiglu_task, args);
}

static void delta_gate_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct cut_part part = cut_part(job->cut, task);
    const struct delta_gate_args *d = job->args;
    uint32_t n = d->n_v_head;

    (void)scratch;
    for (size_t r = part.first; r < part.end; r++) {
        const float *a = d->a + r * d->a_stride, *b = d->b + r * d->b_stride;
        for (uint32_t h = 0; h < n; h += LANES) {
            v16 beta = v16_sigmoid(v16_load_part(b, h, n));
            v16 step = v16_add(v16_load_part(a, h, n),
                               v16_load_part(d->dt_bias, h, n));
            v16 decay = v16_mul(v16_load_part(d->decay_scale, h, n),
                                v16_softplus(step));
            v16_store_part(d->beta + r * n, beta, h, n);
            v16_store_part(d->log_decay + r * n, decay, h, n);
        }
    }
}

void LANES_NAME(delta_gate)(struct pool *pool,
                            const struct delta_gate_args *args)
{
    run_rows(pool, args->n_row, (uint64_t)args->n_v_head, delta_gate_task,
             args);
}

static void rotate_head(float *head, const float *cosine, const float *sine,
                        uint32_t n_pair)
{
    for (uint32_t i = 0; i < n_pair; i += LANES) {
        v16 c = v16_load_part(cosine, i, n_pair);
        v16 s = v16_load_part(sine, i, n_pair);
        v16 x = v16_load_part(head, i, n_pair);
        v16 y = v16_load_part(head + n_pair, i, n_pair);
        v16 new_x = v16_fms(x, c, v16_mul(y, s));
        v16 new_y = v16_fma(y, c, v16_mul(x, s));
        v16_store_part(head, new_x, i, n_pair);
        v16_store_part(head + n_pair, new_y, i, n_pair);
    }
}

static void rope_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct cut_part part = cut_part(job->cut, task);
    const struct rope_args *a = job->args;
    const struct rope_table *table = a->table;
    uint32_t n_pair = table->n_rot / 2;
    float *cosine = scratch, *sine = cosine + n_pair;

    for (size_t r = part.first; r < part.end; r++) {
        uint64_t p = a->position[r];
        assert(p < table->n_position);
        size_t at = p / KV_BLOCK * n_pair * KV_BLOCK + p % KV_BLOCK;
        for (size_t i = 0; i < n_pair; i++) {
            cosine[i] = table->cos[at + i * KV_BLOCK];
            sine[i] = table->sin[at + i * KV_BLOCK];
        }
        for (size_t h = 0; h < a->n_head; h++)
            rotate_head(a->x + r * a->x_stride + h * a->d_head, cosine, sine,
                        n_pair);
    }
}

void LANES_NAME(rope)(struct pool *pool, const struct rope_args *args)
{
    assert(args->table->n_rot <= args->d_head);
    assert(args->d_head <= HEAD_DIM_MAX);
    run_rows(pool, args->n_row, (uint64_t)args->n_head * args->d_head,
             rope_task, args);
}
