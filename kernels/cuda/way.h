#ifndef KERNELS_CUDA_WAY_H
#define KERNELS_CUDA_WAY_H
/*
 * capability.h for the GPU at hand. Where the ways part:
 *   product_shape_of(), product_run()   linear_launch.cu | linear_sm80.cu
 *   cuda_experts(): all of a step at once, or by a list  | always by a list
 *   launch_batch()                      attend_few.cu, attend_many.cu,
 *                                       attend_list.cu |
 *                                       attend_sm80.cu
 *   cuda_delta(), of few rows or little shared memory: delta_few.cu, with
 *                                       clusters | in pieces, delta_sm80.cu
 *   launches that may begin early       yes | no
 * WAY_SM80_ALONE makes a library that goes this way on every GPU: for tests,
 * since Hopper runs both and must find the same bits.
 */
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

bool way_is_sm80(void);

/* Shared memory that a CTA may have, here and on every GPU of WAY_SM80. */
#define WAY_SHARED_LEAST (99u * 1024)
uint32_t way_shared_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
