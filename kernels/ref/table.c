#include "kernels/move.h"
#include "kernels/ref/ref.h"

static bool is_supported(void)
{
    return true;
}

const struct backend backend_ref = {
    .name = "ref",
    .is_supported = is_supported,
    .linear = ref_linear,
    .linear_add = ref_linear_add,
    .rms_norm = ref_rms_norm,
    .gated_norm = ref_gated_norm,
    .swiglu = ref_swiglu,
    .gate = ref_gate,
    .embed = move_embed,
    .rope = ref_rope,
    .kv_append = move_kv_append,
    .attend = ref_attend,
    .conv = ref_conv,
    .delta_gate = ref_delta_gate,
    .delta = ref_delta,
    .route = ref_route,
    .expert = ref_expert,
    .combine = ref_combine,
    .draw = ref_draw,
    .peaks = ref_peaks,
};
