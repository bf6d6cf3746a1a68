#ifndef KERNELS_CPU_OPS_H
#define KERNELS_CPU_OPS_H
/* The operators of one instruction set, for its table (table.lanes.c). */
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"

void LANES_NAME(linear)(struct pool *pool, const struct linear_args *args);
void LANES_NAME(linear_add)(struct pool *pool, const struct linear_args *args);
void LANES_NAME(ffn)(struct pool *pool, const struct ffn_args *args);
void LANES_NAME(ffn_add)(struct pool *pool, const struct ffn_args *args);
void LANES_NAME(rms_norm)(struct pool *pool, const struct norm_args *args);
void LANES_NAME(gated_norm)(struct pool *pool,
                            const struct gated_norm_args *args);
void LANES_NAME(swiglu)(struct pool *pool, const struct swiglu_args *args);
void LANES_NAME(rope)(struct pool *pool, const struct rope_args *args);
void LANES_NAME(kv_append)(struct pool *pool,
                           const struct kv_append_args *args);
void LANES_NAME(attend)(struct pool *pool, const struct attend_args *args);
void LANES_NAME(kv_score)(struct pool *pool, const struct kv_score_args *args);
void LANES_NAME(kv_mass)(struct pool *pool, const struct kv_mass_args *args);
void LANES_NAME(surprise)(struct pool *pool, const struct surprise_args *args);
void LANES_NAME(kv_match)(struct pool *pool, const struct kv_match_args *args);
void LANES_NAME(conv)(struct pool *pool, const struct conv_args *args);
void LANES_NAME(delta_gate)(struct pool *pool,
                            const struct delta_gate_args *args);
void LANES_NAME(delta)(struct pool *pool, const struct delta_args *args);
void LANES_NAME(route)(struct pool *pool, const struct route_args *args);
void LANES_NAME(expert)(struct pool *pool, const struct expert_args *args);
void LANES_NAME(combine)(struct pool *pool, const struct combine_args *args);
uint32_t LANES_NAME(draw)(const struct draw_args *args);
void LANES_NAME(peaks)(const struct peaks_args *args);

/*
 * Waking and joining workers costs about a microsecond. Less work than this
 * stays on the caller: vector fused multiply-adds of a product, or floats that
 * pass through an elementwise operator. Constants of the operator's shape, so
 * never a matter of load.
 */
#define OPS_FMAS_MIN 4096u
#define OPS_FLOATS_MIN 4096u

static inline struct pool *pool_for_fmas(struct pool *pool, uint64_t n_fma)
{
    return n_fma < OPS_FMAS_MIN ? NULL : pool;
}

static inline struct pool *pool_for_floats(struct pool *pool, uint64_t n_float)
{
    return n_float < OPS_FLOATS_MIN ? NULL : pool;
}
#endif
