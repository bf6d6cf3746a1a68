#ifndef KERNELS_CUDA_ATTEND_SM80_CUH
#define KERNELS_CUDA_ATTEND_SM80_CUH
/*
 * Attention on GPUs without wgmma, bulk copies and clusters: see
 * attend_sm80.cu.
 */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/device.h"

/* Spans of one kind, few rows or many, at most as many as attend_widen() takes;
 * their tables are set to what was widened. */
void attend_sm80(struct gpu *gpu, const struct attend_shape *shape,
                 const struct attend_frame *frame, struct attend_span *span,
                 uint32_t n_span, bool is_many);
#endif
