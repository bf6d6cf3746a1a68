#ifndef KERNELS_CUDA_VIEW_MASS_CUH
#define KERNELS_CUDA_VIEW_MASS_CUH
/*
 * The scores of a look-up with INDEX_MASS: kv_mass of kernels/backend.h, by its
 * bits. It comes once in a session's life and never in a step that is recorded.
 */
#include "kernels/cuda/device.h"

extern "C" {
#include "kernels/backend.h"
}

#include <stddef.h>

struct view_mass_call {
    const struct kv_view_args *args;
    const struct kv_view *view; /* on the host; its rows are the last ones */
    const float *queries;       /* [n_sum][n_head, d_head], as the view's, with
                                   the queries of its rows; on the device */
    float *score;               /* [end - first] */
    void *scratch;              /* [view_mass_bytes()], aligned to 256 */
};

size_t view_mass_bytes(const struct attend_shape *shape,
                       const struct kv_view *view);
void view_mass(struct gpu *gpu, const struct view_mass_call *call);
#endif
