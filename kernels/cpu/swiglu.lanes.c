/*
 * Between the two products of a feed-forward half: silu(gate) * up, rows as the
 * next product takes them. One call for all rows of a unit of work.
 */
#include "kernels/cpu/pairs.h"
#include "kernels/cpu/panel.h"

/* How results are written; a constant where it is inlined. */
enum form { FLOATS, ROUNDED, HALVES };

LANES_INLINE void put(enum form form, void *row, v16 v, uint32_t at, uint32_t n)
{
    if (form == HALVES)
        pairs_store_row((uint16_t *)row + at, v);
    else if (form == ROUNDED)
        v16_store((float *)row + at, pairs_round(v));
    else
        v16_store_part(row, v, at, n);
}

/* Rows go one behind another without a call between them, so that the chain of
 * one's exp and division runs beside the next one's. */
LANES_INLINE void run(const struct product_swiglu *s, enum form form)
{
    for (size_t r = 0; r < s->n_row; r++) {
        const float *gate = s->gate + r * s->stride;
        const float *up = s->up + r * s->stride;

        for (uint32_t i = 0; i < s->n_step; i += LANES) {
            const uint32_t n = i < s->n_col ? s->n_col - i : 0;
            const v16 v = v16_silu(v16_load_part(gate + i, 0, n));

            put(form, (char *)s->to + r * s->to_bytes,
                v16_mul(v, v16_load_part(up + i, 0, n)), i, s->n_step);
        }
    }
}

#if defined(LANES_BF16)
void LANES_NAME(swiglu_halves)(const struct product_swiglu *swiglu)
{
    run(swiglu, HALVES);
}
#else
void LANES_NAME(swiglu_floats)(const struct product_swiglu *swiglu)
{
    run(swiglu, FLOATS);
}

void LANES_NAME(swiglu_rounded)(const struct product_swiglu *swiglu)
{
    run(swiglu, ROUNDED);
}
#endif
