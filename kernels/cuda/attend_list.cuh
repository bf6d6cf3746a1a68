#ifndef KERNELS_CUDA_ATTEND_LIST_CUH
#define KERNELS_CUDA_ATTEND_LIST_CUH
/*
 * Attention of many spans with lists of blocks of their own, by wgmma. See
 * attend_list.cu.
 */
#include "kernels/cuda/attend.cuh"

#define LIST_ROWS 64u /* packed rows of a tile */

struct list_call {
    struct attend_frame frame;
    const struct attend_span *span; /* on the device */
    uint32_t n_span;
    uint32_t n_tile; /* the most tiles of a span */
    uint32_t n_cta;  /* that share the tiles */
    unsigned char *scratch;
};

/* Bytes of scratch: O of past chains. */
size_t list_bytes(const struct attend_frame *frame, uint32_t n_cta);
void attend_list(cudaStream_t stream, const struct list_call *call);
#endif
