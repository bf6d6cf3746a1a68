/*
 * The oracle is the definition of the nearest rank, counted out over all
 * samples: at least a share q of them is not above the quantile, and fewer are
 * not above anything less.
 */
#include "ops/samples.h"

#include <criterion/criterion.h>

static size_t count_up_to(const uint64_t *us, size_t n, uint64_t limit)
{
    size_t found = 0;

    for (size_t i = 0; i < n; i++)
        found += us[i] <= limit;
    return found;
}

Test(samples, a_quantile_is_the_least_sample_that_covers_its_share)
{
    static const double share[] = {0.001, 0.1, 0.25, 0.5, 0.9, 0.99, 0.999, 1};
    uint64_t us[211];
    uint32_t state = 12345;

    for (size_t n = 1; n <= 211; n += n < 4 ? 1 : 23) {
        struct samples samples;

        cr_assert(samples_init(&samples, n) == STATUS_OK);
        for (size_t i = 0; i < n; i++) {
            state = state * 1664525u + 1013904223u;
            us[i] = state >> 24; /* ties are common */
            samples_add(&samples, us[i]);
        }
        samples_sort(&samples);
        for (size_t k = 0; k < sizeof(share) / sizeof(share[0]); k++) {
            uint64_t q = samples_quantile(&samples, share[k]);
            double wanted = share[k] * (double)n;

            cr_expect((double)count_up_to(us, n, q) >= wanted, "%zu %g", n,
                      share[k]);
            cr_expect(q == 0 || (double)count_up_to(us, n, q - 1) < wanted,
                      "%zu %g", n, share[k]);
        }
        cr_expect(samples_quantile(&samples, 0) == samples.us[0]);
        samples_release(&samples);
    }
}

Test(samples, none_have_the_quantile_0_and_too_many_are_dropped)
{
    struct samples samples = {0};

    cr_expect(samples_quantile(&samples, 0.5) == 0);
    samples_add(&samples, 1); /* it has no room */
    cr_expect(samples.n == 0);
    cr_assert(samples_init(&samples, 2) == STATUS_OK);
    for (uint64_t i = 7; i < 10; i++)
        samples_add(&samples, i);
    cr_expect(samples.n == 2 && samples_quantile(&samples, 1) == 8);
    samples_clear(&samples);
    cr_expect(samples.n == 0);
    samples_release(&samples);
    samples_release(&samples);
}

Test(samples, more_room_keeps_what_is_there)
{
    struct samples samples = {0};

    for (size_t n = 1; n < 5000; n *= 3) {
        cr_assert(samples_reserve(&samples, n) == STATUS_OK);
        cr_assert_geq(samples.capacity, n);
        while (samples.n < n)
            samples_add(&samples, samples.n);
    }
    for (size_t i = 0; i < samples.n; i++)
        cr_assert_eq(samples.us[i], i);
    samples_release(&samples);
}
