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

/* Keep the best by insertion; what is equal stays behind. */
static void insert(struct tops *to, uint32_t id, float x)
{
    uint32_t i = to->n;

    if (i == TOPS_MAX && !(x > to->value[i - 1]))
        return;
    if (i == TOPS_MAX)
        i--;
    else
        to->n++;
    for (; i > 0 && x > to->value[i - 1]; i--) {
        to->value[i] = to->value[i - 1];
        to->id[i] = to->id[i - 1];
    }
    to->value[i] = x;
    to->id[i] = id;
}

void ref_tops(struct pool *pool, const struct tops_args *a)
{
    (void)pool;
    for (uint32_t r = 0; r < a->n_row; r++) {
        const float *x = a->logit + r * a->logit_stride;
        struct tops *to = &a->to[r];

        to->n = 0;
        to->mass = 0;
        for (uint32_t i = 0; i < a->n; i++)
            if (x[i] > -INFINITY)
                insert(to, i, x[i]);
        to->is_all = to->n < TOPS_MAX;
        for (uint32_t i = 0; i < a->n && to->n; i++)
            if (x[i] > -INFINITY)
                to->mass += (double)scalar_exp(x[i] - to->value[0]);
    }
}
