/* The delta rule in PAIR and TILE; kernels/backend.h has the steps. */
#include "kernels/ref/delta.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>
#include <string.h>

/* A row or column of a product, rounded, +0 behind its end. */
struct operand {
    float x[HEAD_DIM_MAX];
};

static float rounded(float x)
{
    return scalar_from_bf16(scalar_to_bf16(x));
}

/* The right side of LINEAR_PANEL products, +0 where nothing is. */
struct side {
    float w[HEAD_DIM_MAX][LINEAR_PANEL];
};

static size_t whole_steps(size_t n)
{
    return (n + LINEAR_STEP - 1) / LINEAR_STEP * LINEAR_STEP;
}

static void clear(struct side *side, size_t n)
{
    memset(side->w, 0, whole_steps(n) * sizeof(side->w[0]));
}

static void products(const struct ref_delta_row *h, const struct operand *x,
                     const struct side *side, size_t n, float *out)
{
    const struct ref_steps steps = {side->w[0], LINEAR_PANEL, whole_steps(n)};

    memset(out, 0, LINEAR_PANEL * sizeof(float));
    ref_products(x->x, &steps, h->arithmetic, out);
    for (size_t o = 0; o < LINEAR_PANEL; o++)
        out[o] += 0.0f;
}

static size_t panel_end(size_t first, size_t n)
{
    return n - first < LINEAR_PANEL ? n : first + LINEAR_PANEL;
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

/* The keys of a panel of ring tokens, up to the row's own. */
static void read_keys(const struct ref_delta_row *h, size_t first,
                      struct side *side)
{
    clear(side, h->d_k);
    for (size_t j = first; j < panel_end(first, h->i + 1); j++)
        for (size_t d = 0; d < h->d_k; d++)
            side->w[d][j - first] = scalar_from_bf16(*key_at(h, j, d));
}

/* A panel of outputs of the state. */
static void read_state(const struct ref_delta_row *h, size_t first,
                       struct side *side)
{
    clear(side, h->d_k);
    for (size_t d = 0; d < h->d_k; d++)
        for (size_t e = first; e < panel_end(first, h->d_v); e++)
            side->w[d][e - first] = rounded(h->s[d * h->d_v + e]);
}

/* A panel of outputs of the u of ring tokens j .. n - 1. */
static void read_u(const struct ref_delta_row *h, size_t first, size_t j,
                   size_t n, struct side *side)
{
    for (; j < n; j++)
        for (size_t e = first; e < panel_end(first, h->d_v); e++)
            side->w[j][e - first] = scalar_from_bf16(*u_at(h, j, e));
}

/* Both halves of the last pair are written, also where d_k is odd. */
static void keep_key(const struct ref_delta_row *h, const struct operand *k)
{
    for (size_t d = 0; d < (h->d_k + 1) / 2 * 2; d++)
        *key_at(h, h->i, d) = scalar_to_bf16(k->x[d]);
}

REF_FUSED static void fold(const struct ref_delta_row *h)
{
    const float whole = scalar_exp((float)h->ring_g[h->i]);
    float decay[GRID], out[LINEAR_PANEL];
    struct side u;

    for (size_t j = 0; j < GRID; j++)
        decay[j] = ref_delta_decay(h, j);
    for (size_t first = 0; first < h->d_v; first += LINEAR_PANEL) {
        clear(&u, GRID);
        read_u(h, first, 0, GRID, &u);
        for (size_t d = 0; d < h->d_k; d++) {
            float *s = &h->s[d * h->d_v];
            struct operand aged;

            for (size_t j = 0; j < GRID; j++)
                aged.x[j] =
                    rounded(decay[j] * scalar_from_bf16(*key_at(h, j, d)));
            products(h, &aged, &u, GRID, out);
            for (size_t e = first; e < panel_end(first, h->d_v); e++)
                s[e] = fmaf(whole, s[e], out[e - first]);
        }
    }
}

/* Products with keys, what w_ij and x_ij are in kernels/backend.h. */
static void weigh(const struct ref_delta_row *h, const struct operand *x,
                  float *w)
{
    float out[LINEAR_PANEL];
    struct side keys;

    for (size_t first = 0; first <= h->i; first += LINEAR_PANEL) {
        read_keys(h, first, &keys);
        products(h, x, &keys, h->d_k, out);
        for (size_t j = first; j < panel_end(first, h->i + 1); j++)
            w[j] = ref_delta_decay(h, j) * out[j - first];
    }
}

REF_FUSED void ref_delta_rounded(const struct ref_delta_row *h)
{
    const size_t i = h->i, near = i / DELTA_BLOCK * DELTA_BLOCK;
    const float since_grid = scalar_exp((float)h->ring_g[i]);
    const struct operand k = take(h->k, h->d_k), q = take(h->q, h->d_k);
    float w[GRID], x[GRID], of_k[LINEAR_PANEL], of_q[LINEAR_PANEL];
    float of_u[LINEAR_PANEL];
    struct side side;

    keep_key(h, &k);
    weigh(h, &k, w);
    weigh(h, &q, x);
    const struct operand far = take(w, near), all = take(x, i + 1);
    for (size_t first = 0; first < h->d_v; first += LINEAR_PANEL) {
        read_state(h, first, &side);
        products(h, &k, &side, h->d_k, of_k);
        products(h, &q, &side, h->d_k, of_q);
        clear(&side, i + 1);
        read_u(h, first, 0, near, &side);
        products(h, &far, &side, near, of_u);
        for (size_t e = first; e < panel_end(first, h->d_v); e++) {
            float r = fmaf(-since_grid, of_k[e - first], h->v[e]);

            r = r - of_u[e - first];
            for (size_t j = near; j < i; j++)
                r = fmaf(-w[j], scalar_from_bf16(*u_at(h, j, e)), r);
            *u_at(h, i, e) = scalar_to_bf16(h->beta * r);
        }
        read_u(h, first, near, i + 1, &side);
        products(h, &all, &side, i + 1, of_u);
        for (size_t e = first; e < panel_end(first, h->d_v); e++)
            h->out[e] = fmaf(since_grid, of_q[e - first], of_u[e - first]);
    }
    if (i == GRID - 1)
        fold(h);
}
