/*
 * FP8 weights, judged by all 256 values of the format written down from its
 * definition: the nearest one is found by looking at each.
 */
#include "kernels/backend.h"
#include "kernels/linear_f8.h"
#include "kernels/scalar.h"

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

/* What mma.m16n8k16 gives lane t of A's row: PTX ISA, its table of a0 .. a7. */
Test(linear_f8, a_lane_finds_its_inputs_side_by_side)
{
    static const size_t OF_BYTE[4] = {8, 0, 9, 1};

    for (size_t half = 0; half < 2; half++)
        for (size_t t = 0; t < 4; t++)
            for (size_t s = 0; s < 4; s++)
                for (size_t b = 0; b < 4; b++)
                    cr_assert(eq(sz,
                                 linear_f8_place((half * 4 + s) * 16 + 2 * t +
                                                 OF_BYTE[b]),
                                 half * 64 + t * 16 + s * 4 + b));
}

Test(linear_f8, packs_blocks_with_their_scales)
{
    const struct linear_f8_shape shape = {.n_in = 200, .n_out = 130};
    float *w = calloc((size_t)130 * 200, sizeof(*w));
    unsigned char *packed = calloc(1, linear_f8_bytes(shape));
    const float *scale =
        (const float *)(const void *)(packed + linear_f8_scales_at(shape));

    cr_assert(eq(sz, linear_f8_bytes(shape), 256 * 256 + LINEAR_F8_ALIGN));
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
                eq(u8,
                   packed[o * 256 + i / 128 * 128 + linear_f8_place(i % 128)],
                   is_there ? (uint8_t)nearest(x) : 0),
                "[%zu, %zu]", o, i);
        }
    free(packed);
    free(w);
}

/* The sum of q over one block, then its scale by one fma, in float; the sum in
 * double is what all orders are near to. */
Test(linear_f8, a_product_scales_the_sum_of_each_block)
{
    enum { IN = 300, OUT = 140 };
    const struct linear_f8_shape shape = {.n_in = IN, .n_out = OUT};
    float *w = calloc((size_t)OUT * IN, sizeof(*w)), x[IN], y[OUT];
    const struct backend *ref;

    cr_assert(eq(int, backend_find("ref", &ref), STATUS_OK));
    for (size_t i = 0; i < (size_t)OUT * IN; i++)
        w[i] = (float)((int)(i * 7919 % 2003) - 1001) * 0x1p-12f;
    for (size_t i = 0; i < IN; i++)
        x[i] = (float)((int)(i * 613 % 1009) - 504) * 0x1p-9f;
    for (int order = 0; order < N_CPU_ARITHMETIC; order++) {
        struct linear packed;

        cr_assert(
            eq(int,
               linear_init(IN, OUT, LINEAR_F8, (enum arithmetic)order, &packed),
               STATUS_OK));
        linear_f8_pack(packed.panel, shape, 0, OUT, w);
        ref->linear(NULL,
                    &(struct linear_args){y, OUT, x, IN, 1, &packed, NULL});
        for (size_t o = 0; o < OUT; o++) {
            const uint8_t *q = (uint8_t *)packed.panel + o * 384;
            const float *scale =
                (const float *)(const void *)((char *)packed.panel +
                                              linear_f8_scales_at(shape)) +
                o / 128 * 3;
            double sum = 0, size = 0;
            float acc = 0;

            for (size_t b = 0; b < 3; b++) {
                float g = 0;

                for (size_t i = 128 * b; i < 128 * b + 128 && i < IN; i++) {
                    const double v =
                        value(q[128 * b + linear_f8_place(i % 128)]);
                    const float in =
                        order == ARITHMETIC_FP32
                            ? x[i]
                            : scalar_from_bf16(scalar_to_bf16(x[i]));

                    g = fmaf(in, (float)v, g);
                    sum += (double)in * v * (double)scale[b];
                    size += fabs((double)in * v * (double)scale[b]);
                }
                acc = fmaf(g, scale[b], acc);
            }
            if (order == ARITHMETIC_FP32)
                cr_assert(eq(flt, y[o], acc));
            cr_assert(fabs((double)y[o] - sum) < 1e-6 * size);
        }
        linear_release(&packed);
    }
    free(w);
}
