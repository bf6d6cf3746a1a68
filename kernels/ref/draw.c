/* What the sampler asks of a vocabulary: random words, largest values. */
#include "kernels/philox.h"
#include "kernels/ref/ref.h"

#include <math.h>

void ref_draw(const struct draw_args *a)
{
    const uint32_t key[2] = {(uint32_t)a->seed, (uint32_t)(a->seed >> 32)};

    for (uint32_t i = 0; i < a->n_group; i++) {
        const uint32_t counter[4] = {(uint32_t)a->position,
                                     (uint32_t)(a->position >> 32),
                                     a->first + i, 0};
        philox(counter, key, a->word + 4 * (size_t)i);
    }
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
