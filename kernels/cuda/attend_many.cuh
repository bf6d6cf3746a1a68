#ifndef KERNELS_CUDA_ATTEND_MANY_CUH
#define KERNELS_CUDA_ATTEND_MANY_CUH
/*
 * Attention of many rows, 128 packed rows a CTA, by wgmma. See attend_many.cu.
 */
#include "kernels/cuda/attend.cuh"

#define MANY_ROWS 128u /* of a CTA: two warpgroups of 64 */

struct many_span {
    struct attend_span span;
    size_t q_at, k_at; /* bytes into the scratch: its queries and its keys */
};

/* Bytes of scratch that a span needs for them. */
size_t many_q_bytes(const struct attend_frame *frame, uint32_t n_row);
size_t many_k_bytes(const struct attend_frame *frame, uint64_t n_key);

struct many_call {
    struct attend_frame frame;
    const struct many_span *span; /* on the device */
    uint32_t n_span;
    uint32_t n_row_max; /* of a span */
    uint64_t n_key_max;
    unsigned char *scratch;
};
void attend_many(cudaStream_t stream, const struct many_call *call);
#endif
