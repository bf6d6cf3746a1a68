#include "kernels/ref/ref.h"
#include "kernels/routing.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>

static void softmax(const float *logit, uint32_t n, float *w)
{
    float most = logit[0], sum;

    for (uint32_t e = 1; e < n; e++)
        most = logit[e] > most ? logit[e] : most;
    for (uint32_t e = 0; e < n; e++)
        w[e] = scalar_exp(logit[e] - most);
    sum = scalar_sum(w, n);
    for (uint32_t e = 0; e < n; e++)
        w[e] /= sum;
}

void ref_route(struct pool *pool, const struct route_args *a)
{
    float w[EXPERT_MAX];

    (void)pool;
    assert(a->to.n_expert <= EXPERT_MAX);
    for (uint32_t r = 0; r < a->to.n_row; r++) {
        softmax(a->logit + r * a->logit_stride, a->to.n_expert, w);
        routing_choose(a, r, w);
    }
    routing_group(&a->to);
}

/* Rows that lie one after the other at once, chosen ones one by one. */
void ref_expert(struct pool *pool, const struct expert_args *a)
{
    for (uint32_t e = 0; e < a->n_expert; e++) {
        const size_t n_row = a->row ? 1 : a->first[e + 1] - a->first[e];

        for (size_t i = a->first[e]; i < a->first[e + 1]; i += n_row) {
            const size_t row = a->row ? a->row[i] : i;

            ref_linear(pool,
                       &(struct linear_args){.y = a->y + i * a->y_stride,
                                             .y_stride = a->y_stride,
                                             .x = a->x + row * a->x_stride,
                                             .x_stride = a->x_stride,
                                             .n_row = (uint32_t)n_row,
                                             .w = &a->w[e]});
        }
    }
}

static float combined(const struct combine_args *a, size_t row, size_t d)
{
    const size_t n = a->by->n_chosen;
    float s = 0.0f;

    for (size_t i = row * n; i < (row + 1) * n; i++)
        s = fmaf(a->by->weight[i], a->x[a->by->place[i] * a->x_stride + d], s);
    if (!a->shared)
        return s;
    return fmaf(scalar_sigmoid(a->shared_gate[row * a->gate_stride]),
                a->shared[row * a->shared_stride + d], s);
}

void ref_combine(struct pool *pool, const struct combine_args *a)
{
    (void)pool;
    for (size_t row = 0; row < a->by->n_row; row++)
        for (size_t d = 0; d < a->dim; d++)
            a->y[row * a->y_stride + d] += combined(a, row, d);
}
