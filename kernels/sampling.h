#ifndef KERNELS_SAMPLING_H
#define KERNELS_SAMPLING_H
/* Operators of kernels/backend.h on logits: what choosing tokens, and judging
 * them, asks for. */
#include <stddef.h>
#include <stdint.h>

/*
 * For the sampler, on the calling thread: which token wins a draw,
 *     argmax over i of (x[i] - max) / temperature + g_i,  the lowest i of
 * equals g_i = -log(-log(u)),  u = ((word >> 9) + 1/2) 2^-23 with word i % 4 of
 * philox() with counter (position's low half, its high half, i / 4, 0) and the
 * seed's halves as key. A token whose first term is -inf or NaN takes no part;
 * DRAW_NONE if none does. (Gumbel-max, Maddison et al. 2014, arXiv:1411.0030.)
 */
#define DRAW_NONE UINT32_MAX
struct draw_args {
    const float *x; /* [n] */
    uint32_t n;
    float max, temperature;
    uint64_t seed, position;
};

/* peak[b] is the largest of x[PEAK_BLOCK b ..]; NaN counts as minus infinity.
 */
#define PEAK_BLOCK 64u
struct peaks_args {
    float *peak; /* [n / PEAK_BLOCK, rounded up] */
    const float *x;
    uint32_t n;
};

/*
 * For the sampler, of rows that lie on a device: the best of each, so that not
 * all logits need to go to the host. Best first, of equals the lower id first;
 * NaN and minus infinity take no part.
 */
#define TOPS_MAX 128u
struct tops {
    uint32_t n, is_all; /* listed; are those all that take part? */
    float value[TOPS_MAX];
    uint32_t id[TOPS_MAX];
    double mass; /* sum of exp(x - value[0]), in any order */
};
struct tops_args {
    struct tops *to; /* [n_row]; n is 0 too where it was too much to list */
    const float *logit;
    size_t logit_stride;
    uint32_t n_row, n;
};

/*
 * How much tokens surprise, each after a row of n finite logits x:
 *   -log P(token) = log(L) + (M - x[token])
 * M the largest x, L the scalar_sum of exp(x - M), logarithm as scalar_log().
 */
struct surprise_args {
    float *surprise;       /* [n_row] */
    const uint32_t *token; /* [n_row] below n */
    const float *logit;
    size_t logit_stride;
    uint32_t n_row, n;
};
#endif
