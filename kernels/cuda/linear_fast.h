#ifndef KERNELS_CUDA_LINEAR_FAST_H
#define KERNELS_CUDA_LINEAR_FAST_H
/*
 * Products of many rows by cuBLASLt, for ARITHMETIC_FAST alone: it chooses its
 * kernel by the number of rows and may split the inner dimension, so a row's
 * bits depend on the rows beside it. The same calls on the same GPU give the
 * same bits.
 */
#include "kernels/cuda/linear_launch.h"

/* Scratch that a job of so many rows wants, of `room` below; aligned to 256.
 * 0: such a job is not for cuBLASLt. */
size_t fast_room(const struct linear *w, uint32_t n_row);

/* Whether it was done; if not, product_run() has to. Needs fast_room(). */
bool fast_run(struct gpu *gpu, const struct product_job *job, void *room);
#endif
