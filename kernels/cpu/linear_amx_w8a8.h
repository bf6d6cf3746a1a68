#ifndef KERNELS_CPU_LINEAR_AMX_W8A8_H
#define KERNELS_CPU_LINEAR_AMX_W8A8_H
/* What linear_amx.c has of W8A8: products of bytes by tiles. */
#include "kernels/cpu/product.h"

product_work work_w8a8_amx;
struct product_shape shape_w8a8_amx(uint32_t n_row, uint32_t n_step);
#endif
