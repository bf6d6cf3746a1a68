#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H
/*
 * Time as a value that is passed in, so that tests own it. Monotonic time
 * orders and limits; wall time is only shown and stored.
 */
#include <stdint.h>

struct clock {
    uint64_t (*now_us)(const struct clock *clock);  /* monotonic */
    uint64_t (*wall_ms)(const struct clock *clock); /* since 1970, UTC */
};

/* The machine's clock; a constant. */
const struct clock *clock_real(void);

/* A clock that stands until it is moved. `base` is its first member. */
struct clock_simulated {
    struct clock base;
    _Atomic uint64_t us; /* both times start at 0 */
};
void clock_simulated_init(struct clock_simulated *clock);
void clock_simulated_advance(struct clock_simulated *clock, uint64_t us);

/* 2026-01-01T00:00:00.123Z; out has at least 25 bytes. */
void clock_format(uint64_t wall_ms, char *out);
#endif
