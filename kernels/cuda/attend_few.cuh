#ifndef KERNELS_CUDA_ATTEND_FEW_CUH
#define KERNELS_CUDA_ATTEND_FEW_CUH
/*
 * Attention of few rows with a long past, 8 packed rows a cluster, by mma.
 * See attend_few.cu.
 */
#include "kernels/cuda/attend.cuh"

#define FEW_ROWS 8u

struct few_call {
    struct attend_frame frame;
    const struct attend_span *span; /* on the device */
    uint32_t n_span;
    uint32_t n_row;   /* packed rows of a tile: FEW_ROWS or twice as many */
    uint32_t n_tile;  /* the most tiles of a span */
    uint32_t n_chain; /* no span's past has more */
    uint32_t n_sm;
    float *part; /* few_part_bytes() */
};

/* The chains' results between the two kernels; 0 if there is but one chain. */
size_t few_part_bytes(const struct few_call *call);
void attend_few(cudaStream_t stream, const struct few_call *call);
#endif
