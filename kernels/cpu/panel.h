#ifndef KERNELS_CPU_PANEL_H
#define KERNELS_CPU_PANEL_H
/*
 * Micro-kernels of products with packed weights, BF16 and W8, in each of the
 * three arithmetics (kernels/linear.h): lanes are outputs, so that neither the
 * height nor the width of a register tile shows in a bit. PAIR and TILE are
 * made of fused multiply-adds; their rows come rounded, as floats.
 */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/product.h"

void LANES_NAME(panel_fp32_bf16)(const struct product_tile *tile);
void LANES_NAME(panel_pair_bf16)(const struct product_tile *tile);
void LANES_NAME(panel_tile_bf16)(const struct product_tile *tile);
void LANES_NAME(panel_fp32_w8)(const struct product_tile *tile);
void LANES_NAME(panel_pair_w8)(const struct product_tile *tile);
void LANES_NAME(panel_tile_w8)(const struct product_tile *tile);

/* For FP32 and PAIR; TILE needs two sums an output. */
struct product_shape LANES_NAME(panel_shape)(uint32_t n_row, uint32_t n_step);
struct product_shape LANES_NAME(panel_shape_tile)(uint32_t n_row,
                                                  uint32_t n_step);

/* A sum onto what it goes onto. */
LANES_INLINE v16 panel_onto(struct product_onto by, uint32_t left, v16 sum)
{
    return v16_fma(v16_set1(*by.keep), v16_load_part(by.from, 0, left),
                   v16_add(sum, v16_zero()));
}

product_gate LANES_NAME(swiglu_floats), LANES_NAME(swiglu_rounded);
#endif
