#ifndef KERNELS_CPU_IN_ORDER_H
#define KERNELS_CPU_IN_ORDER_H
/*
 * A product of few rows whose right side comes from afar: it is read once,
 * front to back and in whole rows of up to 64 floats, each of which all rows of
 * the left side meet before the next few KiB. That is what the processor's own
 * look-ahead follows; tiles of several rows by fewer columns, and asking early
 * besides, were slower (docs/performance/cpu-kernels.md).
 */
#include "kernels/cpu/tile.h"

#include <stdbool.h>

/* Nobody measured it with AVX-512. */
#if defined(LANES_AVX512)
#define IN_ORDER_PAYS false
#else
#define IN_ORDER_PAYS true
#endif
#define IN_ORDER_FLOATS 4096u /* of the right side at once: half of L1 */
#define IN_ORDER_WIDTH 4u     /* vectors */

/* One row's sums of `width` vectors from column e on go over n steps; of one
 * vector some lanes may not exist. */
LANES_INLINE void in_order_sums(const struct tile *t, const float *a,
                                const float *b, float *c, uint32_t e,
                                uint32_t n, uint32_t width, bool is_start)
{
    const uint32_t last = t->n_col - e;
    v16 sum[IN_ORDER_WIDTH];

#pragma GCC unroll 4
    for (uint32_t p = 0; p < width; p++)
        sum[p] = is_start    ? v16_zero()
                 : width > 1 ? v16_load(c + e + p * LANES)
                             : v16_load_part(c + e, 0, last);
    b += e;
    for (uint32_t k = 0; k < n; k++, b += t->b_stride) {
        const v16 x = v16_set1(a[k]);
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++)
            sum[p] = v16_fma(x,
                             width > 1 ? v16_load(b + p * LANES)
                                       : v16_load_part(b, 0, last),
                             sum[p]);
    }
#pragma GCC unroll 4
    for (uint32_t p = 0; p < width; p++)
        if (width > 1)
            v16_store(c + e + p * LANES, sum[p]);
        else
            v16_store_part(c + e, sum[p], 0, last);
}

LANES_INLINE void in_order_row(const struct tile *t, const float *a,
                               const float *b, float *c, uint32_t n,
                               bool is_start)
{
    uint32_t e = 0;

    for (; e + IN_ORDER_WIDTH * LANES <= t->n_col; e += IN_ORDER_WIDTH * LANES)
        in_order_sums(t, a, b, c, e, n, IN_ORDER_WIDTH, is_start);
    for (; e < t->n_col; e += LANES)
        in_order_sums(t, a, b, c, e, n, 1, is_start);
}

/* tile_set() if is_start, else tile_onto(), of a plain right side. */
LANES_INLINE void in_order(const struct tile *t, bool is_start)
{
    const size_t row = t->b_stride > 1 ? t->b_stride : 1;
    const uint32_t most =
        row < IN_ORDER_FLOATS ? IN_ORDER_FLOATS / (uint32_t)row : 1;
    const float *b = t->b;

    for (uint32_t k = 0, n; k < t->n_k; k += n, is_start = false) {
        n = t->n_k - k < most ? t->n_k - k : most;
        for (uint32_t r = 0; r < t->n_row; r++) {
            const float *a = t->a + r * t->a_stride + k;
            float *c = t->c + r * t->c_stride;

            if (is_start)
                in_order_row(t, a, b, c, n, true);
            else
                in_order_row(t, a, b, c, n, false);
        }
        b += n * t->b_stride;
    }
}
#endif
