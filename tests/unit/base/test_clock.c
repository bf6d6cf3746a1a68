/* Calendar times are judged by `date -u`, whose seconds stand in the table. */
#include "base/clock.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

Test(clock, real_monotonic_time_never_goes_back)
{
    const struct clock *clock = clock_real();
    uint64_t before = clock->now_us(clock);

    for (int i = 0; i < 1000; i++) {
        uint64_t now = clock->now_us(clock);

        cr_assert(ge(u64, now, before));
        before = now;
    }
    cr_assert(gt(u64, before, 0));
}

Test(clock, real_wall_time_is_of_this_age)
{
    const struct clock *clock = clock_real();
    uint64_t now_ms = clock->wall_ms(clock);

    cr_assert(gt(u64, now_ms, 1577836800000u)); /* 2020 */
    cr_assert(lt(u64, now_ms, 4102444800000u)); /* 2100 */
}

Test(clock, simulated_time_moves_only_when_told)
{
    struct clock_simulated clock;

    clock_simulated_init(&clock);
    cr_assert(eq(u64, clock.base.now_us(&clock.base), 0));
    cr_assert(eq(u64, clock.base.wall_ms(&clock.base), 0));
    clock_simulated_advance(&clock, 1999);
    clock_simulated_advance(&clock, 1500);
    cr_assert(eq(u64, clock.base.now_us(&clock.base), 3499));
    cr_assert(eq(u64, clock.base.wall_ms(&clock.base), 3));
    cr_assert(eq(u64, clock.base.now_us(&clock.base), 3499));
}

Test(clock, times_are_written_as_rfc_3339)
{
    static const struct {
        uint64_t wall_ms;
        const char *text;
    } CASE[] = {
        {0, "1970-01-01T00:00:00.000Z"},
        {946684799999u, "1999-12-31T23:59:59.999Z"},
        {951827696007u, "2000-02-29T12:34:56.007Z"},
        {1767225600123u, "2026-01-01T00:00:00.123Z"},
        {4107542400000u, "2100-03-01T00:00:00.000Z"},
        {253402300799999u, "9999-12-31T23:59:59.999Z"},
        {253402300800000u, "9999-12-31T23:59:59.999Z"}, /* year 10000 */
        {UINT64_MAX, "9999-12-31T23:59:59.999Z"},
    };
    char out[26];

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        out[25] = 'x';
        clock_format(CASE[i].wall_ms, out);
        cr_assert_str_eq(out, CASE[i].text);
        cr_assert(eq(chr, out[25], 'x'));
    }
}
