/*
 * FP8 weights, judged by all 256 values of the format written down from its
 * definition: the nearest one is found by looking at each.
 */
#include "kernels/linear_f8.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Sign, 4 bits of exponent with a bias of 7, 3 of mantissa; no infinities. */
static double value(unsigned q)
{
    const double size = q >> 3 & 15
                            ? ldexp(8 + (q & 7), (int)(q >> 3 & 15) - 10)
                            : ldexp(q & 7, -9);

    return q & 0x80 ? -size : size;
}

/* Of two that are equally near, the even one. */
static unsigned nearest(double x)
{
    unsigned best = signbit(x) ? 0x80 : 0;
    const unsigned first = best;

    for (unsigned q = first; q < first + 0x7f; q++) {
        const double here = fabs(value(q) - x), there = fabs(value(best) - x);

        if (here < there || (here == there && q % 2 == 0))
            best = q;
    }
    return best;
}

Test(linear_f8, every_value_stands_for_what_the_format_says)
{
    for (unsigned q = 0; q < 256; q++)
        if ((q & 0x7f) != 0x7f) {
            cr_assert(eq(dbl, linear_f8_float((uint8_t)q), value(q)));
            cr_assert(eq(u8, linear_f8_round((float)value(q)), (uint8_t)q));
        }
}

Test(linear_f8, rounds_to_the_nearest_and_ties_to_even)
{
    uint32_t state = 1;

    for (int i = 0; i < 200000; i++) {
        state = state * 1664525u + 1013904223u;
        /* Many ties: few bits of mantissa. */
        const float x =
            ldexpf((float)(state >> 25), (int)(state >> 8 & 15) - 14);
        const float signed_x = state & 1 ? -x : x;

        cr_assert(eq(u8, linear_f8_round(signed_x), (uint8_t)nearest(signed_x)),
                  "%a", (double)signed_x);
    }
}

Test(linear_f8, packs_blocks_with_their_scales)
{
    const struct linear_f8_shape shape = {.n_in = 200, .n_out = 130};
    float *w = calloc((size_t)130 * 200, sizeof(*w));
    unsigned char *packed = calloc(1, linear_f8_bytes(shape));
    const float *scale =
        (const float *)(const void *)(packed + linear_f8_scales_at(shape));

    cr_assert(eq(sz, linear_f8_bytes(shape), 256 * 256 + 4 * sizeof(float)));
    for (size_t i = 0; i < 130 * 200; i++)
        w[i] = (float)((int)(i * 7919 % 1001) - 500) * 0x1p-10f;
    w[3 * 200 + 130] = 8.96f; /* largest of block (0, 1) */
    w[129 * 200 + 5] = INFINITY;
    for (size_t o = 128; o < 130; o++)
        for (size_t i = 128; i < 200; i++)
            w[o * 200 + i] = FLT_MIN;
    linear_f8_pack(packed, shape, 0, 128, w);
    linear_f8_pack(packed, shape, 128, 2, w + (size_t)128 * 200);
    cr_assert(eq(flt, scale[1], 8.96f / 448.0f));
    cr_assert(isnan(scale[2]));
    cr_assert(eq(flt, scale[3], 0.0f));
    for (size_t o = 0; o < 256; o++)
        for (size_t i = 0; i < 256; i++) {
            const float s = scale[o / 128 * 2 + i / 128];
            const bool is_there = o < 130 && i < 200 && s > 0.0f;
            const float x = is_there ? w[o * 200 + i] * (1.0f / s) : 0.0f;

            cr_assert(
                eq(u8, packed[o * 256 + i], is_there ? (uint8_t)nearest(x) : 0),
                "[%zu, %zu]", o, i);
        }
    free(packed);
    free(w);
}
