#ifndef KERNELS_CPU_BF16_TILE_H
#define KERNELS_CPU_BF16_TILE_H
/*
 * The micro-kernels behind products of activations in PAIR and TILE: rows of
 * bf16 by a matrix whose words hold two inner steps of one output, as blocks
 * of keys and of values lie in memory. Packed weights have panel.h.
 *
 *     sum[r][o] = the arithmetic's sum over all pairs, from zero; plus +0
 *
 * Lanes are outputs, so that neither the height of a register tile nor its
 * width shows in a bit. TILE needs n_pair and n_near in whole LINEAR_STEPs but
 * at the end, where what is missing counts as zero.
 */
#include <stddef.h>
#include <stdint.h>

/* Pairs of TILE that are summed up apart. */
#define BF16_STEP_PAIRS 16u

struct bf16_tile {
    float *c; /* [n_row] rows of n_col */
    size_t c_stride;
    const uint32_t *a; /* [n_row] rows of n_pair words */
    size_t a_stride;
    const uint32_t *b; /* [n_pair] rows of n_col words */
    size_t b_stride;
    /* From pair n_near on, b lies here instead, with the same stride. */
    const uint32_t *far;
    uint32_t n_row, n_col, n_pair, n_near;
    /* What is read next, as many bytes as b has or less: asked for meanwhile
     * at the pace at which b is read. NULL: nothing. */
    const unsigned char *next;
    /* NULL: c = sum. Or [n_row]: c = fma(c, keep, sum * take). */
    const float *keep, *take;
};

/* What columns from `first` on ask for. */
static inline const unsigned char *bf16_tile_next(const struct bf16_tile *tile,
                                                  uint32_t first)
{
    return tile->next
               ? tile->next + (size_t)first * tile->n_pair * sizeof(*tile->b)
               : NULL;
}

typedef void bf16_tile_work(const struct bf16_tile *tile);

/* PAIR and TILE by each set of instructions. */
bf16_tile_work bf16_tile_pair_avx2, bf16_tile_pair_avx512,
    bf16_tile_pair_avx512_bf16, bf16_tile_tile_avx2, bf16_tile_tile_avx512,
    bf16_tile_tile_amx;
#endif
