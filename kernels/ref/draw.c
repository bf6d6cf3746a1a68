/* What the sampler asks of a vocabulary: who wins a draw, largest values. */
#include "kernels/philox.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <math.h>

uint32_t ref_draw(const struct draw_args *a)
{
    const uint32_t key[2] = {(uint32_t)a->seed, (uint32_t)(a->seed >> 32)};
    uint32_t winner = DRAW_NONE, word[4];
    float most = -INFINITY;

    for (uint32_t i = 0; i < a->n; i++) {
        const uint32_t counter[4] = {(uint32_t)a->position,
                                     (uint32_t)(a->position >> 32), i / 4, 0};
        float x = (a->x[i] - a->max) / a->temperature;

        if (i % 4 == 0)
            philox(counter, key, word);
        x += -scalar_log(-scalar_log(philox_unit(word[i % 4])));
        if (x > most) {
            most = x;
            winner = i;
        }
    }
    return winner;
}

void ref_peaks(const struct peaks_args *a)
{
    for (uint32_t i = 0; i < a->n; i += PEAK_BLOCK) {
        float most = -INFINITY;

        for (uint32_t j = i; j < a->n && j < i + PEAK_BLOCK; j++)
            most = a->x[j] > most ? a->x[j] : most;
        a->peak[i / PEAK_BLOCK] = most;
    }
}
