#ifndef KERNELS_CUDA_OPS_H
#define KERNELS_CUDA_OPS_H
/* The operators of kernels/backend.h on a GPU, with device pointers. */
#include "kernels/cuda/device.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DEVICE_OPERATOR(name, type)                                            \
    void cuda_##name(struct gpu *gpu, const struct type *args);
DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR

/* linear of weights in panels with the fp32 chain: a router's product, which no
 * matrix unit may round. */
void cuda_linear_plain(struct gpu *gpu, const struct linear_args *args);

/* Head dims of cuda_delta(), and delta for others. Which it is decides how unit
 * rows are summed, too. */
static inline bool cuda_delta_has(struct delta_shape shape)
{
    return (shape.d_k == 64 || shape.d_k == 96 || shape.d_k == 128) &&
           shape.d_v % 64 == 0;
}
void cuda_delta_plain(struct gpu *gpu, const struct delta_args *args);

/* attend for rotations that cuda_attend() does not have. */
void cuda_attend_plain(struct gpu *gpu, const struct attend_args *args);

/* What ARITHMETIC_FAST needs: cuBLASLt, looked up when it is first asked for.
 *   FAILED_PRECONDITION  it is not there: what to install */
enum status cuda_fast_prepare(char out_why[DEVICE_WHY_SIZE]);

#ifdef __cplusplus
}
#endif
#endif
