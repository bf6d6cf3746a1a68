#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H
/*
 * The one micro-kernel behind every product of floats: F32 linear layers,
 * attention scores and values, the delta rule's reads and folds. Packed BF16
 * and W8 weights have panel.h.
 *
 *     c[r][o] = fma(a[r][n-1], b[n-1][o], ... fma(a[r][0], b[0][o], start))
 *
 * Lanes are outputs and the loop over k is one chain in ascending order, so
 * that neither the height of a register tile nor its width shows in a bit.
 * Vector p of 16 outputs at step k lies at b + k * b_stride + p * b_group:
 * b_group is 16 for a plain matrix and a panel's size for packed weights.
 * Plain matrices may end inside a vector; panels are padded.
 */
#include "kernels/cpu/lanes.h"

#include <stdbool.h>
#include <stddef.h>

struct tile {
    float *c; /* [n_row] rows of n_col; must not overlap what is read */
    size_t c_stride;
    const float *a; /* [n_row] rows of n_k */
    size_t a_stride;
    const void *b;            /* floats */
    size_t b_stride, b_group; /* in 4-byte elements */
    uint32_t n_row, n_col, n_k;
    const float *keep, *take; /* [n_row], for tile_merge() alone */
};

/* start = 0 */
void LANES_NAME(tile_set)(const struct tile *tile);
/* start = c */
void LANES_NAME(tile_onto)(const struct tile *tile);
/* start = 0, and the result is added to c */
void LANES_NAME(tile_add)(const struct tile *tile);
/* start = 0, and c = fma(c, keep[r], result * take[r]) */
void LANES_NAME(tile_merge)(const struct tile *tile);

/* Vectors side by side in a register tile of n_row rows. */
uint32_t LANES_NAME(tile_width)(uint32_t n_row);
#endif
