/* Rows of W8A8: linear_quantise() on vectors, of rows of x and of what lies
 * between the products of a feed-forward half. */
#include "kernels/cpu/quads.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define VECTORS (LINEAR_GROUP / LANES)
#define Q_MAX 127.0f

static const struct quads_scale BROKEN = {NAN, 0, 0};

/* A group. That x is finite shows in x * 0; adding and subtracting 1.5 * 2^23
 * rounds to whole numbers, whose sums are exact. */
LANES_INLINE void put(const v16 x[VECTORS], int8_t *q, struct quads_scale *to)
{
    const v16 magic = v16_set1(0x1.8p+23f);
    v16 most = v16_zero(), zero = v16_zero(), sum = v16_zero();
    v16 size = v16_zero(), by;
    float scale;

    for (uint32_t i = 0; i < VECTORS; i++) {
        most = v16_max(most, v16_max(x[i], v16_negate(x[i])));
        zero = v16_fma(x[i], v16_zero(), zero);
    }
    if (v16_fold(zero) != 0.0f) {
        memset(q, 0, LINEAR_GROUP);
        *to = BROKEN;
        return;
    }
    scale = v16_largest(most) / Q_MAX;
    scale = scale < FLT_MIN ? 0.0f : scale;
    by = v16_set1(scale > 0.0f ? 1.0f / scale : 0.0f);
    for (uint32_t i = 0; i < VECTORS; i++) {
        const v16 near = v16_add(v16_mul(x[i], by), magic);
        const v16 whole = v16_sub(near, magic);

        v16_store_i8(q + i * LANES, whole);
        sum = v16_add(sum, whole);
        size = v16_add(size, v16_max(whole, v16_negate(whole)));
    }
    to->scale = scale;
    to->sum = (int16_t)v16_fold(sum);
    to->below = (int16_t)(0.5f * v16_fold(v16_sub(size, sum)));
}

/* Vector i of x[0 .. n), zeros behind the end. */
LANES_INLINE v16 load(const float *x, uint32_t i, uint32_t n)
{
    return v16_load_part(x, i < n ? i : n, n);
}

void LANES_NAME(quads_take)(void *to, const float *x, uint32_t n,
                            uint32_t n_step)
{
    int8_t *q = to;
    struct quads_scale *scale = (void *)(q + n_step);

    for (uint32_t at = 0; at < n_step; at += LINEAR_GROUP) {
        v16 part[VECTORS];

        for (uint32_t i = 0; i < VECTORS; i++)
            part[i] = load(x, at + i * LANES, n);
        put(part, q + at, scale++);
    }
}

void LANES_NAME(quads_swiglu)(const struct product_swiglu *s)
{
    for (size_t r = 0; r < s->n_row; r++) {
        const float *gate = s->gate + r * s->stride;
        const float *up = s->up + r * s->stride;
        int8_t *q = (int8_t *)s->to + r * s->to_bytes;
        struct quads_scale *scale =
            (void *)((char *)s->to_group + r * s->to_bytes);

        for (uint32_t at = 0; at < s->n_step; at += LINEAR_GROUP) {
            v16 part[VECTORS];

            for (uint32_t i = 0; i < VECTORS; i++)
                part[i] =
                    v16_mul(v16_silu(load(gate, at + i * LANES, s->n_col)),
                            load(up, at + i * LANES, s->n_col));
            put(part, q + at, scale++);
        }
    }
}
