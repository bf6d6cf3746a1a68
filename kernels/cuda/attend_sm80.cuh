#ifndef KERNELS_CUDA_ATTEND_SM80_CUH
#define KERNELS_CUDA_ATTEND_SM80_CUH
/*
 * The calls of attend_few.cuh and attend_many.cuh on GPUs without wgmma, bulk
 * copies and clusters. Blocks of int8 are widened before both, and few_call has
 * tiles of SM80_FEW_ROWS packed rows.
 */
#include "kernels/cuda/attend_few.cuh"
#include "kernels/cuda/attend_many.cuh"

#define SM80_FEW_ROWS 16u

void attend_few_sm80(cudaStream_t stream, const struct few_call *call);
void attend_many_sm80(cudaStream_t stream, const struct many_call *call);
#endif
