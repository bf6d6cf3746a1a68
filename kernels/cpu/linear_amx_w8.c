/*
 * Few rows of TILE by W8 on a machine with tiles: up to 16, which only read
 * weights once, so what counts is that nothing keeps memory waiting. Groups of
 * weights are one stream, from the first panel to the last.
 *
 * Weights become bf16, exactly, by vectors, and reach tiles through memory. A
 * group is widened while the one before is multiplied, depth by depth in turn,
 * and the sums of the one before that are scaled: neither waits for what it has
 * just written. Widening takes 48 cycles a depth and a product of tiles is done
 * after 52, so one chain is enough.
 */
#include "kernels/cpu/linear_amx_w8.h"

#include "kernels/cpu/amx.h"

#include <assert.h>
#include <stdbool.h>

#define INLINE static inline __attribute__((always_inline))
#define PANEL LINEAR_PANEL
#define DEPTH_BYTES 1024u /* 32 steps of 16 outputs in bf16 */
#define GROUP_DEPTHS (LINEAR_GROUP / LINEAR_STEP)
#define GROUP_BYTES (GROUP_DEPTHS * DEPTH_BYTES)
#define AHEAD_GROUPS 6u /* from those in use to those that are asked for */

INLINE void fetch(const void *at)
{
    _mm_prefetch(at, _MM_HINT_T1);
}

struct few {
    const struct product_tile *p;
    const struct linear_group *group; /* of all panels, end to end */
    uint32_t n_group;                 /* of a panel */
    size_t a_bytes;                   /* from row to row */
    /* In the unit's scratch: groups and their sums on their way, in turn. */
    unsigned char (*wide)[GROUP_BYTES];
    float (*sum)[AMX_ROWS][PANEL];
    float (*kept)[PANEL];
};

/* ------------------------------------------------------------------- tiles */

/* A depth of a group as bf16. */
INLINE void widen_depth(const struct linear_group *group, uint32_t depth,
                        unsigned char *to)
{
    const int8_t(*q)[PANEL] = &group->q[depth * LINEAR_STEP];

    to += depth * DEPTH_BYTES;
#pragma GCC unroll 16
    for (uint32_t k = 0; k < LINEAR_STEP; k += 2) {
        if (k % 4 == 0)
            fetch((const char *)q[k] + AHEAD_GROUPS * sizeof(*group));
        _mm512_store_si512(to + k / 2 * AMX_LINE, widen_pair(&q[k]));
    }
}

INLINE void multiply_depth(const struct few *f, uint32_t i, uint32_t depth)
{
    const size_t at = i % f->n_group * GROUP_DEPTHS + depth;

    _tile_loadd(6, f->wide[i % 2] + depth * DEPTH_BYTES, AMX_LINE);
    _tile_loadd(4, (const unsigned char *)f->p->a + at * AMX_LINE, f->a_bytes);
    _tile_dpbf16ps(0, 4, 6);
}

/* --------------------------------------------------------------- all rows */

static void put(const struct few *f, uint32_t panel)
{
    const struct product_tile *p = f->p;
    const uint32_t left = p->n_col - panel * PANEL;
    const __mmask16 mask =
        left < PANEL ? (__mmask16)((1u << left) - 1u) : (__mmask16)0xffff;

    for (uint32_t r = 0; r < p->n_row; r++) {
        float *y = p->c + r * p->c_stride + panel * PANEL;
        __m512 v = _mm512_load_ps(f->kept[r]);

        if (p->is_add)
            v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
        _mm512_mask_storeu_ps(y, mask, v);
    }
}

/* kept = fma(sums of group i, its scales, kept). */
static void scale(const struct few *f, uint32_t i)
{
    const __m512 by = _mm512_load_ps(f->group[i].scale);
    const uint32_t at = i % f->n_group;

    for (uint32_t r = 0; r < f->p->n_row; r++) {
        const __m512 before =
            at ? _mm512_load_ps(f->kept[r]) : _mm512_setzero_ps();

        _mm512_store_ps(
            f->kept[r],
            _mm512_fmadd_ps(_mm512_load_ps(f->sum[i % 2][r]), by, before));
    }
    if (at + 1 == f->n_group)
        put(f, i / f->n_group);
}

/* Widen group i, multiply the one before, scale the one before that. */
INLINE void step(const struct few *f, uint32_t i, bool has_next, bool has_last)
{
    const struct linear_group *next = &f->group[i];

    if (has_next)
        fetch(next + AHEAD_GROUPS);
    if (has_last)
        _tile_zero(0);
    for (uint32_t depth = 0; depth < GROUP_DEPTHS; depth++) {
        if (has_last)
            multiply_depth(f, i - 1, depth);
        if (has_next)
            widen_depth(next, depth, f->wide[i % 2]);
    }
    if (i > 1)
        scale(f, i - 2);
    if (has_last)
        _tile_stored(0, f->sum[(i - 1) % 2], AMX_LINE);
    AMX_MEMORY_BARRIER();
}

static void all_rows(const struct few *f, uint32_t n)
{
    amx_configure(f->p->n_row);
    step(f, 0, true, false);
    for (uint32_t i = 1; i < n; i++)
        step(f, i, true, true);
    step(f, n, false, true);
    scale(f, n - 1);
}

void few_w8_amx(const struct product_tile *p)
{
    struct few f = {.p = p,
                    .group = p->b,
                    .n_group = p->n_step / LINEAR_GROUP,
                    .a_bytes = p->a_stride * sizeof(uint16_t),
                    .wide = p->scratch};
    const uint32_t n_panel = (p->n_col + PANEL - 1) / PANEL;

    assert(p->b_stride == f.n_group * sizeof(*f.group) && !p->onto.from);
    f.sum = (void *)(f.wide + 2);
    f.kept = (void *)(f.sum + 2);
    all_rows(&f, n_panel * f.n_group);
}
