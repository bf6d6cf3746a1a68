#ifndef NODE_EVAL_DRAW_H
#define NODE_EVAL_DRAW_H
/*
 * The random choices of evaluation samples. Each is a pure function of what is
 * chosen, never of what was chosen before, so that a sample can be made longer
 * without changing its beginning, and is the same on every machine: whole
 * numbers from Philox, no libm.
 */
#include <stdint.h>

/* Whose choices: counter words of the generator. */
struct draw {
    uint64_t seed;
    uint32_t realm; /* a task, or what several tasks share */
    uint32_t index; /* sample, context */
};

/* What is chosen; each has numbers of its own. */
enum draw_what {
    DRAW_KEY,
    DRAW_VALUE,
    DRAW_PLACE,
    DRAW_ORDER,
    DRAW_WORD,
    DRAW_FILLER,
    DRAW_ROUND, /* inside draw_distinct() */
};

/* 128 bits, of the number-th choice of this kind. */
void draw_bits(const struct draw *draw, enum draw_what what, uint32_t number,
               uint32_t out[4]);

/* 0 .. n - 1, all equally likely but for n / 2^64; n >= 1. */
uint32_t draw_below(const struct draw *draw, enum draw_what what,
                    uint32_t number, uint32_t n);

/*
 * The number-th element of a random order of 0 .. n - 1: different numbers
 * (each below n) give different elements, and nothing is remembered.
 */
uint32_t draw_distinct(const struct draw *draw, enum draw_what what,
                       uint32_t number, uint32_t n);
#endif
