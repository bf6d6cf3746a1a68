#include "kernels/flush.h"
#include "kernels/index.h"
#include "kernels/move.h"
#include "kernels/ref/ref.h"
#include "kernels/state_cap.h"

static bool is_supported(void)
{
    return true;
}

/* An operator under the flush modes. It lives in another file, so that nothing
 * of it moves out of them. */
#define FLUSHED(name, type)                                                    \
    static void name(struct pool *pool, const struct type *args)               \
    {                                                                          \
        const uint32_t before = flush_begin();                                 \
                                                                               \
        ref_##name(pool, args);                                                \
        flush_end(before);                                                     \
    }
FLUSHED(kv_score, kv_score_args)
FLUSHED(kv_mass, kv_mass_args)
FLUSHED(surprise, surprise_args)
FLUSHED(kv_match, kv_match_args)
FLUSHED(linear, linear_args)
FLUSHED(linear_add, linear_args)
FLUSHED(ffn, ffn_args)
FLUSHED(ffn_add, ffn_args)
FLUSHED(rms_norm, norm_args)
FLUSHED(gated_norm, gated_norm_args)
FLUSHED(swiglu, swiglu_args)
FLUSHED(rope, rope_args)
FLUSHED(attend, attend_args)
FLUSHED(conv, conv_args)
FLUSHED(delta_gate, delta_gate_args)
FLUSHED(delta, delta_args)
FLUSHED(route, route_args)
FLUSHED(expert, expert_args)
FLUSHED(combine, combine_args)

const struct backend backend_ref = {
    .name = "ref",
    .is_supported = is_supported,
    .arithmetics = ARITHMETICS_CPU,
    .has_f8 = true,
    .has_kv_int8 = true,
    .linear = linear,
    .linear_add = linear_add,
    .ffn = ffn,
    .ffn_add = ffn_add,
    .rms_norm = rms_norm,
    .gated_norm = gated_norm,
    .swiglu = swiglu,
    .embed = move_embed,
    .rope = rope,
    .kv_append = move_kv_append,
    .kv_seal = index_seal,
    .kv_score = kv_score,
    .kv_mass = kv_mass,
    .surprise = surprise,
    .kv_match = kv_match,
    .attend = attend,
    .conv = conv,
    .delta_gate = delta_gate,
    .delta = delta,
    .state_cap = state_cap,
    .route = route,
    .expert = expert,
    .combine = combine,
    .tops = ref_tops,
    .draw = ref_draw,
    .peaks = ref_peaks,
};
