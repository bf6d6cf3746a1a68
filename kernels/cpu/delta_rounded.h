#ifndef KERNELS_CPU_DELTA_ROUNDED_H
#define KERNELS_CPU_DELTA_ROUNDED_H
/*
 * The delta rule in PAIR and TILE (kernels/backend.h), compiled for each set of
 * vectors and once more for AVX-512 that rounds by instruction. Whose products
 * they are is the caller's matter.
 */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/product.h"

void LANES_NAME(delta_rounded)(struct pool *pool, const struct delta_args *args,
                               const struct product_kernels *kernels);

/* y = x / sqrt(sum x^2 + 1e-6) * scale, rounded after each product. */
struct delta_unit {
    v16 unit, scale;
};
LANES_INLINE struct delta_unit delta_unit(const float *x, uint32_t n,
                                          float scale)
{
    const float sum = v16_sum_squares(x, n) + 1e-6f;

    return (struct delta_unit){v16_set1(1.0f / __builtin_sqrtf(sum)),
                               v16_set1(scale)};
}

LANES_INLINE v16 delta_unit_part(struct delta_unit by, const float *x,
                                 uint32_t at, uint32_t n)
{
    v16 v = v16_mul(v16_load_part(x, at, n), by.unit);
    return v16_mul(v, by.scale);
}

struct delta_source; /* delta_rows.h */

/* One row of one k-head and its v-heads, index i in its grid chunk: reads S0
 * and the ring once, with products of its own. */
struct delta_one {
    const struct delta_args *args;
    const struct delta_source *source;
    const struct delta_state *state;
    uint32_t t; /* row of the span */
    size_t row; /* the same of the whole batch */
    uint32_t k_head, i;
    uint64_t chunk; /* position / GRID + 1 */
    bool is_step;   /* the span has no other row: a copy of S0 pays */
    /* Whose turn it is next on this thread, perhaps the same again. */
    const struct delta_state *next;
    uint32_t next_k_head;
};
void LANES_NAME(delta_one)(const struct delta_one *one);
#endif
