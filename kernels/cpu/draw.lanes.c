#include "kernels/cpu/ops.h"
#include "kernels/philox.h"

/*
 * philox() for LANES counters side by side. Plain loops over whole numbers,
 * which the compiler turns into vectors; there is nothing to round.
 */
struct words {
    uint32_t c[4][LANES];
};

LANES_INLINE void round_of(struct words *w, uint32_t k0, uint32_t k1)
{
    for (uint32_t i = 0; i < LANES; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * w->c[0][i];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * w->c[2][i];
        w->c[0][i] = (uint32_t)(p1 >> 32) ^ w->c[1][i] ^ k0;
        w->c[1][i] = (uint32_t)p1;
        w->c[2][i] = (uint32_t)(p0 >> 32) ^ w->c[3][i] ^ k1;
        w->c[3][i] = (uint32_t)p0;
    }
}

/* u of the block's PEAK_BLOCK tokens: LANES counters of four words each. */
LANES_INLINE void units(const struct draw_args *a, uint32_t block, float *u)
{
    uint32_t k0 = (uint32_t)a->seed, k1 = (uint32_t)(a->seed >> 32);
    struct words w;

    _Static_assert(PEAK_BLOCK == 4 * LANES, "a block is LANES counters");
    for (uint32_t i = 0; i < LANES; i++) {
        w.c[0][i] = (uint32_t)a->position;
        w.c[1][i] = (uint32_t)(a->position >> 32);
        w.c[2][i] = block * LANES + i;
        w.c[3][i] = 0;
    }
    for (int r = 0; r < PHILOX_ROUNDS; r++) {
        round_of(&w, k0, k1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (uint32_t i = 0; i < LANES; i++)
        for (uint32_t j = 0; j < 4; j++)
            u[4 * i + j] = philox_unit(w.c[j][i]);
}

/* g is below this: that of the largest u, and room for what rounding does. */
#define GUMBEL_BOUND 16.7f

/* Blocks that would lose with the largest g draw no words. */
uint32_t LANES_NAME(draw)(const struct draw_args *a)
{
    const v16 low = v16_set1(-__builtin_inff()), max = v16_set1(a->max);
    const v16 temperature = v16_set1(a->temperature);
    float most = -__builtin_inff(), u[PEAK_BLOCK], y[PEAK_BLOCK];
    uint32_t winner = DRAW_NONE;

    for (uint32_t i = 0; i < a->n; i += PEAK_BLOCK) {
        const uint32_t n = a->n - i < PEAK_BLOCK ? a->n - i : PEAK_BLOCK;
        v16 x[4], top = low;

        for (uint32_t k = 0; k < 4; k++) {
            x[k] = k * LANES < n ? v16_load_part(a->x + i, k * LANES, n) : low;
            x[k] = v16_div(v16_sub(x[k], max), temperature);
            if (n < (k + 1) * LANES)
                x[k] = v16_first(x[k], low, n < k * LANES ? 0 : n - k * LANES);
            top = v16_max(x[k], top);
        }
        if (v16_largest(top) + GUMBEL_BOUND <= most)
            continue;
        units(a, i / PEAK_BLOCK, u);
        top = low;
        for (uint32_t k = 0; k < 4; k++) {
            v16 g = v16_log(v16_negate(v16_log(v16_load(u + k * LANES))));

            x[k] = v16_add(x[k], v16_negate(g));
            v16_store(y + k * LANES, x[k]);
            top = v16_max(x[k], top);
        }
        if (!(v16_largest(top) > most))
            continue;
        most = v16_largest(top);
        for (winner = 0; y[winner] != most; winner++)
            ;
        winner += i;
    }
    return winner;
}

/* max(x, most) gives `most` where x is NaN. */
void LANES_NAME(peaks)(const struct peaks_args *a)
{
    const v16 low = v16_set1(-__builtin_inff());

    for (uint32_t i = 0; i < a->n; i += PEAK_BLOCK) {
        v16 most = low;

        for (uint32_t j = i; j < a->n && j < i + PEAK_BLOCK; j += LANES) {
            v16 x = v16_load_part(a->x, j, a->n);

            if (a->n - j < LANES)
                x = v16_first(x, low, a->n - j);
            most = v16_max(x, most);
        }
        a->peak[i / PEAK_BLOCK] = v16_largest(most);
    }
}
