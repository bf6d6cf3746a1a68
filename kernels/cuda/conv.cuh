#ifndef KERNELS_CUDA_CONV_CUH
#define KERNELS_CUDA_CONV_CUH
/* What conv.cu and conv_plain.cu, and their check, have in common. */
#include "kernels/backend.h"
#include "kernels/cuda/device.h"

#include <float.h>

/*
 * 1 / sqrt(sum), each step rounded, of a sum >= 1e-6: what the compiler makes
 * of both where exponents stay in their range, without its branches, at which a
 * warp would wait. tests/gpu/check_delta.cu compares all floats.
 */
static __device__ __forceinline__ float conv_inverse_root(float sum)
{
    float r, inverse;

    if (!(sum <= FLT_MAX))
        return sum > FLT_MAX ? 0.0f : sum; /* infinite; no number */
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(sum));
    const float near = sum * r;
    const float root = __fmaf_rn(__fmaf_rn(-near, near, sum), 0.5f * r, near);
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(root));
    return __fmaf_rn(inverse, __fmaf_rn(-root, inverse, 1.0f), inverse);
}

/* The queries and keys alone, for head dims that cuda_delta() does not have.
 * span: on the device. */
void conv_unit_plain(struct gpu *gpu, const struct conv_args *args);
#endif
