/* The delta rule in PAIR and TILE; kernels/backend.h has the steps. */
#include "kernels/ref/delta.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

/* A row or column of a product, rounded, +0 behind its end. */
struct operand {
    float x[HEAD_DIM_MAX];
};

static float rounded(float x)
{
    return scalar_from_bf16(scalar_to_bf16(x));
}

static float product(const struct ref_delta_row *h, const struct operand *a,
                     const struct operand *b, size_t n)
{
    n = (n + LINEAR_STEP - 1) / LINEAR_STEP * LINEAR_STEP;
    return ref_products(a->x, b->x, n, h->arithmetic, 0.0f) + 0.0f;
}

/* Dim d of ring token j's key, and output e of its u. */
static uint16_t *key_at(const struct ref_delta_row *h, size_t j, size_t d)
{
    return (uint16_t *)h->ring_k + (d / 2 * GRID + j) * 2 + d % 2;
}

static uint16_t *u_at(const struct ref_delta_row *h, size_t j, size_t e)
{
    return (uint16_t *)h->ring_u + (j / 2 * h->d_v + e) * 2 + j % 2;
}

static struct operand take(const float *x, size_t n)
{
    struct operand it = {0};

    for (size_t i = 0; i < n; i++)
        it.x[i] = rounded(x[i]);
    return it;
}

static struct operand key_of(const struct ref_delta_row *h, size_t j)
{
    struct operand it = {0};

    for (size_t d = 0; d < h->d_k; d++)
        it.x[d] = scalar_from_bf16(*key_at(h, j, d));
    return it;
}

/* Output e of the u of ring tokens 0 .. n - 1. */
static struct operand u_of(const struct ref_delta_row *h, size_t n, size_t e)
{
    struct operand it = {0};

    for (size_t j = 0; j < n; j++)
        it.x[j] = scalar_from_bf16(*u_at(h, j, e));
    return it;
}

static struct operand state_of(const struct ref_delta_row *h, size_t e)
{
    struct operand it = {0};

    for (size_t d = 0; d < h->d_k; d++)
        it.x[d] = rounded(h->s[d * h->d_v + e]);
    return it;
}

/* Both halves of the last pair are written, also where d_k is odd. */
static void keep_key(const struct ref_delta_row *h, const struct operand *k)
{
    for (size_t d = 0; d < (h->d_k + 1) / 2 * 2; d++)
        *key_at(h, h->i, d) = scalar_to_bf16(k->x[d]);
}

static void fold(const struct ref_delta_row *h)
{
    const float whole = scalar_exp((float)h->ring_g[h->i]);

    for (size_t d = 0; d < h->d_k; d++) {
        struct operand aged = {0};

        for (size_t j = 0; j < GRID; j++)
            aged.x[j] = rounded(ref_delta_decay(h, j) *
                                scalar_from_bf16(*key_at(h, j, d)));
        for (size_t e = 0; e < h->d_v; e++) {
            const struct operand u = u_of(h, GRID, e);
            float *s = &h->s[d * h->d_v + e];

            *s = fmaf(whole, *s, product(h, &aged, &u, GRID));
        }
    }
}

void ref_delta_rounded(const struct ref_delta_row *h)
{
    const size_t i = h->i, near = i / DELTA_BLOCK * DELTA_BLOCK;
    const float since_grid = scalar_exp((float)h->ring_g[i]);
    const struct operand k = take(h->k, h->d_k), q = take(h->q, h->d_k);
    float w[GRID], x[GRID];

    keep_key(h, &k);
    for (size_t j = 0; j <= i; j++) {
        const struct operand key = key_of(h, j);

        w[j] = ref_delta_decay(h, j) * product(h, &k, &key, h->d_k);
        x[j] = ref_delta_decay(h, j) * product(h, &q, &key, h->d_k);
    }
    const struct operand far = take(w, near), all = take(x, i + 1);
    for (size_t e = 0; e < h->d_v; e++) {
        const struct operand s = state_of(h, e), past = u_of(h, near, e);
        float r = fmaf(-since_grid, product(h, &k, &s, h->d_k), h->v[e]);

        r = r - product(h, &far, &past, near);
        for (size_t j = near; j < i; j++)
            r = fmaf(-w[j], scalar_from_bf16(*u_at(h, j, e)), r);
        *u_at(h, i, e) = scalar_to_bf16(h->beta * r);
        const struct operand u = u_of(h, i + 1, e);
        h->out[e] = fmaf(since_grid, product(h, &q, &s, h->d_k),
                         product(h, &all, &u, i + 1));
    }
    if (i == GRID - 1)
        fold(h);
}
