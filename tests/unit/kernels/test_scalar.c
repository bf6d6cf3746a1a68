/*
 * Each function is held to long double libm in units of the last place of the
 * true value, over sweeps dense enough to meet every binade many times.
 */
#include "kernels/scalar.h"

#include "tests/unit/kernels/fixture.h"

#include <float.h>

/* Distance of got from want in units in the last place of want. */
static double ulps(float got, long double want)
{
    int exponent;

    frexpl(want, &exponent);
    if (exponent < -125)
        exponent = -125;
    return (double)(fabsl((long double)got - want) /
                    ldexpl(1.0L, exponent - 24));
}

typedef float function(float x);
typedef long double oracle(long double x);

static double worst(function *f, oracle *truth, float from, float to,
                    unsigned n)
{
    double most = 0.0;

    for (unsigned i = 0; i <= n; i++) {
        float x = (float)(from + ((double)to - (double)from) * i / n);
        most = fmax(most, ulps(f(x), truth(x)));
    }
    return most;
}

static long double sigmoid_true(long double x)
{
    return 1.0L / (1.0L + expl(-x));
}

static long double silu_true(long double x)
{
    return x / (1.0L + expl(-x));
}

static long double softplus_true(long double x)
{
    return x > 20.0L ? x : log1pl(expl(x));
}

Test(scalar, exp_is_within_two_ulp)
{
    cr_assert(le(dbl, worst(scalar_exp, expl, -87.3f, 88.7f, 2000000), 2.0));
    cr_assert(le(dbl, worst(scalar_exp, expl, -1.0f, 1.0f, 2000000), 2.0));
    cr_assert(le(dbl, worst(scalar_exp, expl, -1e-4f, 1e-4f, 100000), 1.0));
}

Test(scalar, exp_ends_in_zero_and_infinity)
{
    cr_assert(eq(flt, scalar_exp(0.0f), 1.0f));
    cr_assert(eq(flt, scalar_exp(-0.0f), 1.0f));
    cr_assert(eq(flt, scalar_exp(-87.34f), 0.0f));
    cr_assert(eq(flt, scalar_exp(-INFINITY), 0.0f));
    cr_assert(eq(flt, scalar_exp(88.73f), INFINITY));
    cr_assert(eq(flt, scalar_exp(INFINITY), INFINITY));
    cr_assert(isnan(scalar_exp(NAN)));
    cr_assert(ge(flt, scalar_exp(-87.33f), FLT_MIN)); /* never subnormal */
    cr_assert(isfinite(scalar_exp(88.72f)));
}

Test(scalar, sigmoid_silu_and_softplus_follow_libm)
{
    cr_assert(le(
        dbl, worst(scalar_sigmoid, sigmoid_true, -87.0f, 87.0f, 1000000), 4.0));
    cr_assert(
        le(dbl, worst(scalar_silu, silu_true, -80.0f, 87.0f, 1000000), 5.0));
    /* Far below zero softplus is e^x; 1 + e^x alone would have no bit of it. */
    cr_assert(le(dbl,
                 worst(scalar_softplus, softplus_true, -87.0f, 25.0f, 1000000),
                 4.0));
}

Test(scalar, log_is_within_two_ulp)
{
    cr_assert(le(dbl, worst(scalar_log, logl, 0.5f, 2.0f, 2000000), 2.0));
    cr_assert(le(dbl, worst(scalar_log, logl, 1.0f, 1e9f, 1000000), 2.0));
    for (int e = -125; e < 128; e++)
        cr_assert(le(dbl,
                     worst(scalar_log, logl, ldexpf(1.0f, e - 1),
                           ldexpf(1.9f, e - 1), 1000),
                     2.0));
}

Test(scalar, bf16_and_f16_widen_exactly)
{
    cr_assert(eq(flt, scalar_from_bf16(0x3f80), 1.0f));
    cr_assert(eq(flt, scalar_from_bf16(0xc049), -3.140625f));
    for (unsigned bits = 0; bits < 65536; bits++) {
        unsigned exponent = bits >> 10 & 31u, fraction = bits & 1023u;
        double sign = bits >> 15 ? -1.0 : 1.0, want;
        float got = scalar_from_f16((uint16_t)bits);
        if (exponent == 31 && fraction) {
            cr_assert(isnan(got));
            continue;
        }
        want = exponent == 31 ? INFINITY
               : exponent == 0
                   ? fraction / 1024.0 * 0x1p-14
                   : ldexp(1.0 + fraction / 1024.0, (int)exponent - 15);
        cr_assert(eq(dbl, (double)got, sign * want), "bits %x", bits);
        cr_assert(eq(int, !!signbit(got), bits >> 15));
    }
}

/* The order written down by hand for 19 elements, not by a loop over lanes. */
Test(scalar, sums_go_by_sixteen_lanes)
{
    float x[19], l[16];
    for (int i = 0; i < 19; i++)
        x[i] = noise(1, (uint64_t)i) * ldexpf(1.0f, i % 7);
    memcpy(l, x, sizeof(l));
    l[0] = x[0] + x[16];
    l[1] = x[1] + x[17];
    l[2] = x[2] + x[18];
    float want =
        (((l[0] + l[8]) + (l[4] + l[12])) + ((l[2] + l[10]) + (l[6] + l[14]))) +
        (((l[1] + l[9]) + (l[5] + l[13])) + ((l[3] + l[11]) + (l[7] + l[15])));
    float got = scalar_sum(x, 19);
    assert_same(&got, &want, 1, "sum of 19");
    got = scalar_sum(x, 0);
    cr_assert(eq(flt, got, 0.0f));

    double true_sum = 0.0;
    float *y = filled(1000, 2);
    for (int i = 0; i < 1000; i++)
        true_sum += (double)y[i] * (double)y[i];
    cr_assert(epsilon_eq(dbl, (double)scalar_sum_squares(y, 1000), true_sum,
                         1e-6 * true_sum));
    drop(y);
}
