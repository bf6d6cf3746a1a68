#include "base/clock.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

/* 9999-12-31T23:59:59.999Z, the last time that fits the format. */
#define WALL_MS_MAX 253402300799999u

static uint64_t real_now_us(const struct clock *clock)
{
    struct timespec t;

    (void)clock;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static uint64_t real_wall_ms(const struct clock *clock)
{
    struct timespec t;

    (void)clock;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

const struct clock *clock_real(void)
{
    static const struct clock REAL = {real_now_us, real_wall_ms};

    return &REAL;
}

static uint64_t simulated_now_us(const struct clock *clock)
{
    return ((const struct clock_simulated *)clock)->us;
}

static uint64_t simulated_wall_ms(const struct clock *clock)
{
    return ((const struct clock_simulated *)clock)->us / 1000u;
}

void clock_simulated_init(struct clock_simulated *clock)
{
    clock->base = (struct clock){simulated_now_us, simulated_wall_ms};
    atomic_init(&clock->us, 0);
}

void clock_simulated_advance(struct clock_simulated *clock, uint64_t us)
{
    (void)atomic_fetch_add(&clock->us, us);
}

/* Write `value` as n_digit decimal digits. */
static void put_digits(char *out, int n_digit, uint64_t value)
{
    for (int i = n_digit - 1; i >= 0; i--) {
        out[i] = (char)('0' + value % 10);
        value /= 10;
    }
}

void clock_format(uint64_t wall_ms, char *out)
{
    struct tm tm = {0};
    time_t seconds;

    if (wall_ms > WALL_MS_MAX)
        wall_ms = WALL_MS_MAX;
    seconds = (time_t)(wall_ms / 1000u);
    (void)gmtime_r(&seconds, &tm);
    memcpy(out, "0000-00-00T00:00:00.000Z", 25);
    put_digits(out, 4, (uint64_t)tm.tm_year + 1900u);
    put_digits(out + 5, 2, (uint64_t)tm.tm_mon + 1u);
    put_digits(out + 8, 2, (uint64_t)tm.tm_mday);
    put_digits(out + 11, 2, (uint64_t)tm.tm_hour);
    put_digits(out + 14, 2, (uint64_t)tm.tm_min);
    put_digits(out + 17, 2, (uint64_t)tm.tm_sec);
    put_digits(out + 20, 3, wall_ms % 1000u);
}
