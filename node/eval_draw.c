#include "node/eval_draw.h"

#include "kernels/philox.h"

#include <assert.h>

#define FEISTEL_ROUNDS 6u

void draw_bits(const struct draw *draw, enum draw_what what, uint32_t number,
               uint32_t out[4])
{
    const uint32_t counter[4] = {number, (uint32_t)what, draw->index,
                                 draw->realm};
    const uint32_t key[2] = {(uint32_t)draw->seed,
                             (uint32_t)(draw->seed >> 32)};

    philox(counter, key, out);
}

uint32_t draw_below(const struct draw *draw, enum draw_what what,
                    uint32_t number, uint32_t n)
{
    uint32_t word[4];

    assert(n);
    draw_bits(draw, what, number, word);
    return (uint32_t)(((uint64_t)word[0] * n + ((uint64_t)word[1] * n >> 32)) >>
                      32);
}

/* What a half is mixed with in one round. */
static uint32_t round_word(const struct draw *draw, enum draw_what what,
                           uint32_t round, uint32_t half)
{
    const struct draw inner = {.seed = draw->seed ^ (uint64_t)what << 56 ^
                                       (uint64_t)round << 48,
                               .realm = draw->realm,
                               .index = draw->index};
    uint32_t word[4];

    draw_bits(&inner, DRAW_ROUND, half, word);
    return word[0];
}

/*
 * A Feistel network permutes the 2^(2h) numbers around n; walking on until one
 * is below n permutes those (Black and Rogaway 2002). Fewer than 4 n numbers
 * are walked, so the walk is 4 steps long on average, and it always ends.
 */
uint32_t draw_distinct(const struct draw *draw, enum draw_what what,
                       uint32_t number, uint32_t n)
{
    uint32_t half_bits = 1, mask;
    uint64_t at = number;

    assert(number < n);
    while ((uint64_t)1 << (2 * half_bits) < n)
        half_bits++;
    mask = ((uint32_t)1 << half_bits) - 1;
    do {
        uint32_t left = (uint32_t)(at >> half_bits);
        uint32_t right = (uint32_t)at & mask;

        for (uint32_t round = 0; round < FEISTEL_ROUNDS; round++) {
            const uint32_t next =
                left ^ (round_word(draw, what, round, right) & mask);

            left = right;
            right = next;
        }
        at = (uint64_t)left << half_bits | right;
    } while (at >= n);
    return (uint32_t)at;
}
