/* The backend of one instruction set. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/move.h"

const struct backend LANES_NAME(backend) = {
    .name = LANES_TITLE,
    .is_supported = LANES_NAME(cpu_has),
    .linear = LANES_NAME(linear),
    .linear_add = LANES_NAME(linear_add),
    .rms_norm = LANES_NAME(rms_norm),
    .gated_norm = LANES_NAME(gated_norm),
    .swiglu = LANES_NAME(swiglu),
    .gate = LANES_NAME(gate),
    .embed = move_embed,
    .rope = LANES_NAME(rope),
    .kv_append = move_kv_append,
    .attend = LANES_NAME(attend),
    .conv = LANES_NAME(conv),
    .delta_gate = LANES_NAME(delta_gate),
    .delta = LANES_NAME(delta),
    .route = LANES_NAME(route),
    .expert = LANES_NAME(expert),
    .combine = LANES_NAME(combine),
    .draw = LANES_NAME(draw),
    .peaks = LANES_NAME(peaks),
};
