/* The backends of one instruction set, and of those that add products to it. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/index.h"
#include "kernels/move.h"
#include "kernels/state_cap.h"

/* All but those that are products. */
#define OPERATORS                                                              \
    .arithmetics = ARITHMETICS_CPU, .rms_norm = LANES_NAME(rms_norm),          \
    .gated_norm = LANES_NAME(gated_norm), .swiglu = LANES_NAME(swiglu),        \
    .embed = move_embed, .rope = LANES_NAME(rope),                             \
    .kv_append = LANES_NAME(kv_append), .kv_seal = index_seal,                 \
    .kv_score = LANES_NAME(kv_score), .kv_mass = LANES_NAME(kv_mass),          \
    .kv_match = LANES_NAME(kv_match), .surprise = LANES_NAME(surprise),        \
    .conv = LANES_NAME(conv), .delta_convolves = true,                         \
    .delta_gate = LANES_NAME(delta_gate), .state_cap = state_cap,              \
    .route = LANES_NAME(route), .combine = LANES_NAME(combine),                \
    .draw = LANES_NAME(draw), .peaks = LANES_NAME(peaks)

const struct backend LANES_NAME(backend) = {
    .name = LANES_TITLE,
    .is_supported = LANES_NAME(cpu_has),
    .linear = LANES_NAME(linear),
    .linear_add = LANES_NAME(linear_add),
    .expert = LANES_NAME(expert),
    .ffn = LANES_NAME(ffn),
    .ffn_add = LANES_NAME(ffn_add),
    .attend = LANES_NAME(attend),
    .delta = LANES_NAME(delta),
    OPERATORS,
};

#if defined(LANES_AVX512)
const struct backend backend_avx512_vnni = {
    .name = "avx512-vnni",
    .is_supported = cpu_has_avx512_vnni,
    .linear = linear_avx512_vnni,
    .linear_add = linear_add_avx512_vnni,
    .expert = expert_avx512_vnni,
    .ffn = ffn_avx512_vnni,
    .ffn_add = ffn_add_avx512_vnni,
    .attend = LANES_NAME(attend),
    .delta = LANES_NAME(delta),
    OPERATORS,
};

const struct backend backend_avx512_bf16 = {
    .name = "avx512-bf16",
    .is_supported = cpu_has_avx512_bf16,
    .arithmetic = ARITHMETIC_PAIR,
    .linear = linear_avx512_bf16,
    .linear_add = linear_add_avx512_bf16,
    .expert = expert_avx512_bf16,
    .ffn = ffn_avx512_bf16,
    .ffn_add = ffn_add_avx512_bf16,
    .attend = attend_avx512_bf16,
    .delta = delta_avx512_bf16,
    OPERATORS,
};

const struct backend backend_amx = {
    .name = "amx",
    .is_supported = cpu_has_amx,
    .arithmetic = ARITHMETIC_TILE,
    .linear = linear_amx,
    .linear_add = linear_add_amx,
    .expert = expert_amx,
    .ffn = ffn_amx,
    .ffn_add = ffn_add_amx,
    .attend = attend_amx,
    .delta = delta_amx,
    OPERATORS,
};
#endif
