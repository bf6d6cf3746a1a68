#ifndef KERNELS_CPU_QUADS_H
#define KERNELS_CPU_QUADS_H
/*
 * Products of W8A8 (kernels/linear.h). A row of x is n_step bytes q, as
 * linear_quantise() makes them, and behind them n_step / LINEAR_GROUP times
 * struct quads_scale. Rows begin on cache lines, an odd number of them apart
 * (product_form_of()).
 *
 * d of a group is a whole number, and what follows is rounded alike everywhere:
 * a micro-kernel may sum it in any order and by any instruction.
 */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/product.h"

/* Of a group of a row. */
struct quads_scale {
    float scale;
    int16_t sum;   /* of all its q: for who makes weights unsigned */
    int16_t below; /* of those below 0, without sign: for who flips weights */
};

/* The scales of a row as a micro-kernel has it. */
static inline const struct quads_scale *quads_scales(const int8_t *row,
                                                     uint32_t n_step)
{
    return (const struct quads_scale *)(const void *)(row + n_step);
}

/* Rows, for every kernel of W8A8: the take() and the swiglu of product.h. */
void LANES_NAME(quads_take)(void *to, const float *x, uint32_t n,
                            uint32_t n_step);
product_gate LANES_NAME(quads_swiglu);

/* The micro-kernel, for machines without dot products of bytes. */
product_work LANES_NAME(quads_work);
struct product_shape LANES_NAME(quads_shape)(uint32_t n_row, uint32_t n_step);
#endif
