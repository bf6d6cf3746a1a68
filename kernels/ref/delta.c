#include "kernels/ref/delta.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* y = x / sqrt(sum x^2 + 1e-6) */
static void normalise(float *y, const float *x, uint32_t n)
{
    float scale = 1.0f / sqrtf(scalar_sum_squares(x, n) + 1e-6f);

    for (uint32_t d = 0; d < n; d++)
        y[d] = x[d] * scale;
}

/* Chains over d of x[d] * (normalised key of ring token j)[d], j < n. */
REF_FUSED static void dot_ring(const struct ref_delta_row *h, const float *x,
                               size_t n, float *dot)
{
    const float *ring = h->ring_k;

    memset(dot, 0, n * sizeof(float));
    for (size_t d = 0; d < h->d_k; d++)
        for (size_t j = 0; j < n; j++)
            dot[j] = fmaf(x[d], ring[d * GRID + j], dot[j]);
}

float ref_delta_decay(const struct ref_delta_row *h, size_t j)
{
    return scalar_exp((float)(h->ring_g[h->i] - h->ring_g[j]));
}

REF_FUSED static void fold(const struct ref_delta_row *h)
{
    const float *k = h->ring_k, *u = h->ring_u;
    float whole = scalar_exp((float)h->ring_g[h->i]);

    float decay[GRID];

    for (size_t j = 0; j < GRID; j++)
        decay[j] = ref_delta_decay(h, j);
    for (size_t d = 0; d < h->d_k; d++) {
        float *s = h->s + d * h->d_v;

        for (size_t e = 0; e < h->d_v; e++)
            s[e] = whole * s[e];
        for (size_t j = 0; j < GRID; j++) {
            float aged = decay[j] * k[d * GRID + j];

            for (size_t e = 0; e < h->d_v; e++)
                s[e] = fmaf(aged, u[j * h->d_v + e], s[e]);
        }
    }
}

/* S0^T x */
REF_FUSED static void read_state(const struct ref_delta_row *h, const float *x,
                                 float *y)
{
    memset(y, 0, h->d_v * sizeof(float));
    for (size_t d = 0; d < h->d_k; d++)
        for (size_t e = 0; e < h->d_v; e++)
            y[e] = fmaf(x[d], h->s[d * h->d_v + e], y[e]);
}

REF_FUSED void ref_delta_plain(const struct ref_delta_row *h)
{
    size_t i = h->i;
    float *ring = h->ring_k, w[GRID], x[GRID];
    float of_k[HEAD_DIM_MAX], of_q[HEAD_DIM_MAX];

    for (size_t d = 0; d < h->d_k; d++)
        ring[d * GRID + i] = h->k[d];
    float since_grid = scalar_exp((float)h->ring_g[i]);
    dot_ring(h, h->k, i + 1, w);
    dot_ring(h, h->q, i + 1, x);
    for (size_t j = 0; j <= i; j++) {
        w[j] = ref_delta_decay(h, j) * w[j];
        x[j] = ref_delta_decay(h, j) * x[j];
    }
    read_state(h, h->k, of_k);
    read_state(h, h->q, of_q);
    for (size_t e = 0; e < h->d_v; e++) {
        float *u = (float *)h->ring_u + e;
        float r = fmaf(-since_grid, of_k[e], h->v[e]);
        for (size_t j = 0; j < i; j++)
            r = fmaf(-w[j], u[j * h->d_v], r);
        u[i * h->d_v] = h->beta * r;
        float o = since_grid * of_q[e];
        for (size_t j = 0; j <= i; j++)
            o = fmaf(x[j], u[j * h->d_v], o);
        h->out[e] = o;
    }
    if (i == GRID - 1)
        fold(h);
}

/* Dims of a key as its ring keeps them: whole pairs of bf16. */
static size_t ring_width(enum arithmetic arithmetic, size_t d_k)
{
    return arithmetic == ARITHMETIC_FP32 ? d_k : (d_k + 1) / 2 * 2;
}

static void *ring_at(void *ring, enum arithmetic arithmetic, size_t element)
{
    return (char *)ring + element * (arithmetic == ARITHMETIC_FP32
                                         ? sizeof(float)
                                         : sizeof(uint16_t));
}

static void delta_row(const struct delta_args *a, const struct delta_span *span,
                      uint32_t t)
{
    struct delta_shape shape = a->shape;
    const struct delta_state *state = &span->state;
    size_t row = span->first_row + t, at = row * a->qkv_stride;
    size_t d_k = shape.d_k, d_v = shape.d_v;
    size_t per_k = shape.n_v_head / shape.n_k_head;
    float q[HEAD_DIM_MAX], k[HEAD_DIM_MAX];
    float q_scale = 1.0f / sqrtf((float)d_k);

    for (size_t h = 0; h < shape.n_v_head; h++) {
        size_t g = h / per_k, i = (span->position + t) % GRID;
        normalise(q, a->q + at + g * d_k, shape.d_k);
        normalise(k, a->k + at + g * d_k, shape.d_k);
        for (size_t d = 0; d < d_k; d++)
            q[d] *= q_scale;
        struct ref_delta_row one = {
            .arithmetic = shape.arithmetic,
            .d_k = d_k,
            .d_v = d_v,
            .i = i,
            .s = state->s + h * d_k * d_v,
            .ring_k = ring_at(state->ring_k, shape.arithmetic,
                              g * ring_width(shape.arithmetic, d_k) * GRID),
            .ring_u = ring_at(state->ring_u, shape.arithmetic, h * GRID * d_v),
            .ring_g = state->ring_g + h * GRID,
            .q = q,
            .k = k,
            .v = a->v + at + h * d_v,
            .beta = a->beta[row * shape.n_v_head + h],
            .log_decay = a->log_decay[row * shape.n_v_head + h],
            .out = a->out + row * a->out_stride + h * d_v,
        };
        one.ring_g[i] = (i ? one.ring_g[i - 1] : 0.0) + (double)one.log_decay;
        if (shape.arithmetic == ARITHMETIC_FP32)
            ref_delta_plain(&one);
        else
            ref_delta_rounded(&one);
    }
}

void ref_delta(struct pool *pool, const struct delta_args *a)
{
    struct delta_shape shape = a->shape;

    (void)pool;
    assert(shape.d_k <= HEAD_DIM_MAX && shape.d_v <= HEAD_DIM_MAX);
    assert(shape.n_v_head % shape.n_k_head == 0);
    for (uint32_t i = 0; i < a->n_span; i++)
        for (uint32_t t = 0; t < a->span[i].n_row; t++)
            delta_row(a, &a->span[i], t);
}
