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

void LANES_NAME(draw)(const struct draw_args *a)
{
    for (uint32_t first = 0; first < a->n_group; first += LANES) {
        uint32_t k0 = (uint32_t)a->seed, k1 = (uint32_t)(a->seed >> 32);
        uint32_t n = a->n_group - first < LANES ? a->n_group - first : LANES;
        struct words w;

        for (uint32_t i = 0; i < LANES; i++) {
            w.c[0][i] = (uint32_t)a->position;
            w.c[1][i] = (uint32_t)(a->position >> 32);
            w.c[2][i] = a->first + first + i;
            w.c[3][i] = 0;
        }
        for (int r = 0; r < PHILOX_ROUNDS; r++) {
            round_of(&w, k0, k1);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < 4; j++)
                a->word[4 * (size_t)(first + i) + j] = w.c[j][i];
    }
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
