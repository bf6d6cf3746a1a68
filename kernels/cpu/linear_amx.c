/*
 * Products of TILE with AMX, whose dot product of tiles is that arithmetic
 * (kernels/linear.h): one TDPBF16PS is 16 rows by 16 outputs by a depth of 32
 * inner steps. It flushes by itself; the modes that product.h sets are for the
 * scales of W8 and for what is added to y.
 *
 * Two tiles of rows by two panels stand in four tiles of sums, so that each
 * tile loaded is used twice. Rows of a unit stay in the second-level cache
 * while its panels pass by, a pair at a time. What bounds this is not the tiles
 * but how few lines a core can wait for at once, so whatever may wait is asked
 * for early: rows, by the first-level cache, AHEAD depths before their tile is
 * loaded; the next panels, by the second-level one, while these pass by the
 * rows. Sums leave their tiles as seldom as possible, after DEPTHS; those of
 * more depths wait in memory meanwhile, for GROUP_PANELS at a time, which costs
 * no bits, because a tile of sums is loaded as it was stored.
 *
 * Sixteen rows and fewer take four panels at once and all depths, for they only
 * read weights once. Four streams from memory, asked for into the first-level
 * cache, are a quarter faster there than what the core foresees by itself, and
 * than one or two. Rows are spread evenly over their tiles: one configuration
 * serves a unit.
 *
 * W8 weights become bf16, exactly, in scratch, once for all rows of a unit; a
 * group's sums leave their tiles to be scaled. Few rows of them are
 * linear_amx_w8.c.
 */
#include "kernels/cpu/amx.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear_amx_w8.h"
#include "kernels/cpu/linear_amx_w8a8.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/quads.h"

#define INLINE static inline __attribute__((always_inline))
#define PANEL 16u
#define TILE_ROWS AMX_ROWS
#define DEPTH_BYTES 1024u /* of one panel: 32 steps of 16 outputs in bf16 */
#define LINE AMX_LINE
#define DEPTHS 32u      /* of a panel between two visits of a tile of rows */
#define GROUP_PANELS 8u /* whose sums wait together */
#define AHEAD 3u        /* depths */
#define FEW_AHEAD 2u    /* the same of weights that few rows meet */
#define GROUP_DEPTHS (LINEAR_GROUP / LINEAR_STEP)
#define SCALE_STRIDE (sizeof(struct linear_group) / sizeof(float))
#define UNIT_ROWS 512u /* fill half of the second-level cache */
#define DEEP_ROWS 256u /* where one pass of DEPTHS is not all */
#define UNIT_PANELS 16u
#define FEW_PANELS 4u
#define FEW_PANELS_W8 8u

/* Up to 2 x 2 or 1 x 4 tiles of sums, and what the micro-kernels share. */
typedef float sums[4][TILE_ROWS][PANEL];

struct work {
    const struct product_tile *p;
    uint32_t n_panel, n_depth, n_tile;
    uint32_t tile_rows;   /* of every tile; the last one begins early enough */
    uint32_t depth_bytes; /* of one panel as it lies in memory */
    bool is_w8;
    size_t a_bytes; /* from row to row */
    /* In the unit's scratch. */
    unsigned char (*wide)[DEPTHS * DEPTH_BYTES]; /* of a pair of panels */
    const float *scale[2]; /* of the first group of wide */
    sums *group;           /* a group's sums on their way */
    sums *kept;            /* [GROUP_PANELS / 2][n_tile / 2] */
};

/* What one micro-kernel multiplies. */
struct block {
    const unsigned char *a[2]; /* tiles of rows */
    const unsigned char *b[FEW_PANELS];
    uint32_t depth, n_depth;
    const unsigned char *next[2]; /* panels to be fetched meanwhile */
    uint32_t next_lines;          /* of each at each depth */
};

/* ------------------------------------------------------------------- tiles */

INLINE void fetch_panels(struct block *x)
{
    for (uint32_t i = 0; i < x->next_lines; i++) {
        _mm_prefetch((const char *)x->next[0], _MM_HINT_T1);
        _mm_prefetch((const char *)x->next[1], _MM_HINT_T1);
        x->next[0] += LINE;
        x->next[1] += LINE;
    }
}

/* Half a tile of rows that will be loaded AHEAD depths later; behind the last
 * depth it is what lies there. */
INLINE void fetch_rows(const struct work *w, const unsigned char *a)
{
    for (uint32_t i = 0; i < TILE_ROWS / 2; i++)
        _mm_prefetch((const char *)a + i * w->a_bytes, _MM_HINT_T0);
}

/* Sums are tiles 0, 1 of the first rows and 2, 3 of the second; rows are tiles
 * 4 and 5, panels 6 and 7. */
INLINE void multiply_square(const struct work *w, struct block *x, bool has_a1,
                            bool has_b1)
{
    const size_t stride = w->a_bytes, half = stride * (TILE_ROWS / 2);

    AMX_MEMORY_BARRIER();
    for (uint32_t k = 0; k < x->n_depth; k++) {
        const unsigned char *a0 = x->a[0] + k * LINE;
        const unsigned char *a1 = x->a[1] + k * LINE;

        _tile_loadd(6, x->b[0] + k * DEPTH_BYTES, LINE);
        _tile_loadd(4, a0, stride);
        _tile_dpbf16ps(0, 4, 6);
        fetch_rows(w, a0 + AHEAD * LINE);
        if (has_b1) {
            _tile_loadd(7, x->b[1] + k * DEPTH_BYTES, LINE);
            _tile_dpbf16ps(1, 4, 7);
        }
        fetch_rows(w, a0 + AHEAD * LINE + half);
        if (has_a1) {
            _tile_loadd(5, a1, stride);
            _tile_dpbf16ps(2, 5, 6);
            fetch_rows(w, a1 + AHEAD * LINE);
            if (has_b1)
                _tile_dpbf16ps(3, 5, 7);
            fetch_rows(w, a1 + AHEAD * LINE + half);
        }
        fetch_panels(x);
    }
}

/* A tile of weights. */
INLINE void fetch_tile(const unsigned char *b)
{
#pragma GCC unroll 16
    for (uint32_t i = 0; i < DEPTH_BYTES; i += LINE)
        _mm_prefetch((const char *)b + i, _MM_HINT_T0);
}

/* Sums are tiles 0 to 3 for as many panels; rows are tile 4. Behind the end of
 * a panel comes the next one, which is here, too; what will be needed is the
 * one so many panels on. */
INLINE void multiply_few(const struct work *w, const struct block *x,
                         uint32_t n_panel, bool is_near)
{
    const size_t stride = w->a_bytes;
    const size_t more = (n_panel - 1) * w->p->b_stride;

    AMX_MEMORY_BARRIER();
    for (uint32_t k = 0; k < x->n_depth; k++) {
        const size_t at = k * DEPTH_BYTES;
        const size_t ahead = at + FEW_AHEAD * DEPTH_BYTES +
                             (k + FEW_AHEAD < x->n_depth ? 0 : more);

        _tile_loadd(4, x->a[0] + k * LINE, stride);
#define PANEL_BY(i, b_tile)                                                    \
    do {                                                                       \
        _tile_loadd(b_tile, x->b[i] + at, LINE);                               \
        _tile_dpbf16ps(i, 4, b_tile);                                          \
        if (!is_near)                                                          \
            fetch_tile(x->b[i] + ahead);                                       \
    } while (0)
        PANEL_BY(0, 6);
        if (n_panel > 1) {
            PANEL_BY(1, 7);
            PANEL_BY(2, 6);
            PANEL_BY(3, 7);
        }
#undef PANEL_BY
    }
}

static void load_sums(sums *s)
{
    AMX_MEMORY_BARRIER();
    _tile_loadd(0, (*s)[0], LINE);
    _tile_loadd(1, (*s)[1], LINE);
    _tile_loadd(2, (*s)[2], LINE);
    _tile_loadd(3, (*s)[3], LINE);
}

static void store_sums(sums *s)
{
    _tile_stored(0, (*s)[0], LINE);
    _tile_stored(1, (*s)[1], LINE);
    _tile_stored(2, (*s)[2], LINE);
    _tile_stored(3, (*s)[3], LINE);
    AMX_MEMORY_BARRIER();
}

/* ------------------------------------------------------------------ weights */

/* A group of one panel as bf16. */
static void widen(const struct linear_group *group, unsigned char *to)
{
    for (uint32_t k = 0; k < LINEAR_GROUP; k += 2)
        _mm512_store_si512(to + k * PANEL * 2, widen_pair(&group->q[k]));
}

static const unsigned char *panel_at(const struct work *w, uint32_t panel,
                                     uint32_t depth)
{
    return (const unsigned char *)w->p->b + panel * w->p->b_stride +
           (size_t)depth * w->depth_bytes;
}

/* n_panel panels from `panel` on, n_depth depths from `depth` on. */
static void take_panels(struct work *w, struct block *x, uint32_t panel,
                        uint32_t n_panel, uint32_t depth, uint32_t n_depth)
{
    x->n_depth = n_depth;
    for (uint32_t i = 0; i < n_panel; i++) {
        const unsigned char *b = panel_at(w, panel + i, depth);
        const struct linear_group *group = (const void *)b;

        x->b[i] = b;
        if (!w->is_w8)
            continue;
        for (uint32_t g = 0; g < n_depth / GROUP_DEPTHS; g++)
            widen(&group[g], w->wide[i] + g * GROUP_DEPTHS * DEPTH_BYTES);
        w->scale[i] = group->scale;
        x->b[i] = w->wide[i];
    }
    if (n_panel == 1) /* never multiplied */
        x->b[1] = x->b[0];
}

/* -------------------------------------------------------------------- sums */

/* kept = fma(a group's sums, its scales, kept), of n_row rows. */
static void scale_tile(float (*kept)[PANEL], float (*sum)[PANEL],
                       const float *scale, uint32_t n_row, bool is_first)
{
    const __m512 by = _mm512_loadu_ps(scale);

    for (uint32_t r = 0; r < n_row; r++) {
        const __m512 before =
            is_first ? _mm512_setzero_ps() : _mm512_load_ps(kept[r]);

        _mm512_store_ps(kept[r],
                        _mm512_fmadd_ps(_mm512_load_ps(sum[r]), by, before));
    }
}

/* The last tile begins early enough to have as many rows as the others; the
 * rows that it shares with the one before are computed twice, written once. */
static uint32_t first_row(const struct work *w, uint32_t tile)
{
    const uint32_t row = tile * w->tile_rows, last = w->p->n_row - w->tile_rows;

    return row < last ? row : last;
}

static const unsigned char *rows_of_tile(const struct work *w, uint32_t tile,
                                         uint32_t depth)
{
    return (const unsigned char *)w->p->a + first_row(w, tile) * w->a_bytes +
           (size_t)depth * LINE;
}

INLINE __m512 onto(struct product_onto by, __mmask16 mask, __m512 sum)
{
    return _mm512_fmadd_ps(_mm512_set1_ps(*by.keep),
                           _mm512_maskz_loadu_ps(mask, by.from),
                           _mm512_add_ps(sum, _mm512_setzero_ps()));
}

static void put_tile(const struct work *w, float (*sum)[PANEL], uint32_t tile,
                     uint32_t panel)
{
    const struct product_tile *p = w->p;
    const uint32_t first = first_row(w, tile), left = p->n_col - panel * PANEL;
    const __mmask16 mask =
        left < PANEL ? (__mmask16)((1u << left) - 1u) : (__mmask16)0xffff;

    for (uint32_t r = tile * w->tile_rows - first; r < w->tile_rows; r++) {
        float *y = p->c + (first + r) * p->c_stride + panel * PANEL;
        __m512 v = _mm512_load_ps(sum[r]);

        if (p->is_add)
            v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
        if (p->onto.from)
            v = onto(product_onto_at(p->onto, first + r, panel * PANEL), mask,
                     v);
        if (p->is_streamed && left >= PANEL)
            _mm512_stream_ps(y, v);
        else
            _mm512_mask_storeu_ps(y, mask, v);
    }
}

/* May sums of panels up to `end` go from their tiles to their places? Rows that
 * two tiles share are then written twice, the same both times. */
static bool is_direct(const struct work *w, uint32_t end)
{
    return !w->is_w8 && !w->p->is_add && !w->p->onto.from &&
           !w->p->is_streamed && end * PANEL <= w->p->n_col;
}

static float *place_of(const struct work *w, uint32_t tile, uint32_t panel)
{
    return w->p->c + first_row(w, tile) * w->p->c_stride + panel * PANEL;
}

/* ---------------------------------------------------------------- few rows */

static void store_few(const struct work *w, uint32_t panel, uint32_t n_panel)
{
    const size_t stride = w->p->c_stride * sizeof(float);
    float *c = place_of(w, 0, panel);

    _tile_stored(0, c, stride);
    if (n_panel > 1) {
        _tile_stored(1, c + PANEL, stride);
        _tile_stored(2, c + 2 * PANEL, stride);
        _tile_stored(3, c + 3 * PANEL, stride);
    }
    AMX_MEMORY_BARRIER();
}

INLINE void few_panels(struct work *w, uint32_t panel, uint32_t n_panel)
{
    struct block x = {.a = {rows_of_tile(w, 0, 0)}};

    take_panels(w, &x, panel, n_panel, 0, w->n_depth);
    amx_clear_sums();
    if (w->p->is_near)
        multiply_few(w, &x, n_panel, true);
    else
        multiply_few(w, &x, n_panel, false);
    if (is_direct(w, panel + n_panel)) {
        store_few(w, panel, n_panel);
        return;
    }
    store_sums(w->group);
    for (uint32_t i = 0; i < n_panel; i++)
        put_tile(w, (*w->group)[i], 0, panel + i);
}

static void few_rows(struct work *w)
{
    uint32_t panel = 0;

    for (; panel + FEW_PANELS <= w->n_panel; panel += FEW_PANELS)
        few_panels(w, panel, FEW_PANELS);
    for (; panel < w->n_panel; panel++)
        few_panels(w, panel, 1);
}

/* --------------------------------------------------------------- many rows */

/* Sums of a group of 128 steps from tiles to memory and there to their scales,
 * group by group. */
INLINE void multiply_groups(struct work *w, struct block *x, sums *kept,
                            bool is_first, bool has_a1, bool has_b1)
{
    struct block part = *x;

    part.n_depth = GROUP_DEPTHS;
    for (uint32_t g = 0; g < x->n_depth / GROUP_DEPTHS; g++) {
        amx_clear_sums();
        multiply_square(w, &part, has_a1, has_b1);
        store_sums(w->group);
        for (uint32_t i = 0; i < 4; i++)
            if ((has_a1 || i < 2) && (has_b1 || i % 2 == 0))
                scale_tile((*kept)[i], (*w->group)[i],
                           w->scale[i % 2] + g * SCALE_STRIDE, w->tile_rows,
                           is_first && g == 0);
        for (uint32_t i = 0; i < 2; i++) {
            part.a[i] += GROUP_DEPTHS * LINE;
            part.b[i] += GROUP_DEPTHS * DEPTH_BYTES;
        }
    }
    x->next[0] = part.next[0];
    x->next[1] = part.next[1];
}

static void store_square(const struct work *w, uint32_t tile, uint32_t panel,
                         bool has_a1, bool has_b1)
{
    const size_t stride = w->p->c_stride * sizeof(float);
    float *c = place_of(w, tile, panel);

    _tile_stored(0, c, stride);
    if (has_b1)
        _tile_stored(1, c + PANEL, stride);
    if (has_a1) {
        c = place_of(w, tile + 1, panel);
        _tile_stored(2, c, stride);
        if (has_b1)
            _tile_stored(3, c + PANEL, stride);
    }
    AMX_MEMORY_BARRIER();
}

/* Tiles of rows `tile` and the next by the panels of x. */
INLINE void square(struct work *w, struct block *x, uint32_t tile,
                   uint32_t panel, bool has_a1, bool has_b1)
{
    const uint32_t depth = x->depth, pair = panel % GROUP_PANELS / 2;
    const bool is_last = depth + x->n_depth == w->n_depth;
    sums *kept = &w->kept[pair * ((w->n_tile + 1) / 2) + tile / 2];
    sums *out = is_last && !w->is_w8 ? w->group : kept;

    x->a[0] = rows_of_tile(w, tile, depth);
    x->a[1] = rows_of_tile(w, has_a1 ? tile + 1 : tile, depth);
    if (w->is_w8) {
        multiply_groups(w, x, kept, depth == 0, has_a1, has_b1);
    } else {
        if (depth == 0)
            amx_clear_sums();
        else
            load_sums(kept);
        multiply_square(w, x, has_a1, has_b1);
        if (is_last && is_direct(w, panel + (has_b1 ? 2 : 1))) {
            store_square(w, tile, panel, has_a1, has_b1);
            return;
        }
        store_sums(out);
    }
    for (uint32_t i = 0; i < 4 && is_last; i++)
        if ((has_a1 || i < 2) && (has_b1 || i % 2 == 0))
            put_tile(w, (*out)[i], tile + i / 2, panel + i % 2);
}

INLINE void all_rows(struct work *w, struct block *x, uint32_t panel,
                     bool has_b1)
{
    uint32_t tile = 0;

    for (; tile + 1 < w->n_tile; tile += 2)
        square(w, x, tile, panel, true, has_b1);
    if (tile < w->n_tile)
        square(w, x, tile, panel, false, has_b1);
}

/* What comes behind these panels and depths of a group is fetched while they
 * pass by the rows, a share of it at each step; last, what lies behind the
 * group, which the next one or the next unit begins with. */
static void plan_next(const struct work *w, struct block *x, uint32_t panel,
                      uint32_t end)
{
    const uint32_t n_line = x->n_depth * w->depth_bytes / LINE;
    const uint32_t n_step = (w->n_tile + 1) / 2 * x->n_depth;
    uint32_t next = panel + 2, depth = x->depth;

    if (next >= end && depth + x->n_depth < w->n_depth) {
        next = panel / GROUP_PANELS * GROUP_PANELS;
        depth += x->n_depth;
    } else if (next >= end) {
        next = end;
        depth = 0;
    }
    x->next[0] = panel_at(w, next, depth);
    x->next[1] = panel_at(w, next + 1, depth);
    x->next_lines = (n_line + n_step - 1) / n_step;
}

/* Panels [first, end), whose sums wait together. */
static void group_of_panels(struct work *w, uint32_t first, uint32_t end)
{
    for (uint32_t k = 0; k < w->n_depth; k += DEPTHS) {
        const uint32_t left = w->n_depth - k;

        for (uint32_t panel = first; panel < end; panel += 2) {
            const bool has_b1 = panel + 1 < end;
            struct block x = {.depth = k};

            take_panels(w, &x, panel, has_b1 ? 2 : 1, k,
                        left < DEPTHS ? left : DEPTHS);
            plan_next(w, &x, panel, end);
            if (has_b1)
                all_rows(w, &x, panel, true);
            else
                all_rows(w, &x, panel, false);
        }
    }
}

static void many_rows(struct work *w)
{
    for (uint32_t i = 0; i < w->n_panel; i += GROUP_PANELS)
        group_of_panels(w, i,
                        w->n_panel - i < GROUP_PANELS ? w->n_panel
                                                      : i + GROUP_PANELS);
}

/* ----------------------------------------------------------------- product */

static void run(const struct product_tile *p, bool is_w8)
{
    struct work w = {
        .p = p,
        .n_panel = (p->n_col + PANEL - 1) / PANEL,
        .n_depth = p->n_step / LINEAR_STEP,
        .n_tile = (p->n_row + TILE_ROWS - 1) / TILE_ROWS,
        .depth_bytes =
            is_w8 ? sizeof(struct linear_group) / GROUP_DEPTHS : DEPTH_BYTES,
        .is_w8 = is_w8,
        .a_bytes = p->a_stride * sizeof(uint16_t),
        .wide = p->scratch,
    };

    w.tile_rows = (p->n_row + w.n_tile - 1) / w.n_tile;
    w.group = (void *)(w.wide + 2);
    w.kept = w.group + 1;
    amx_configure(w.tile_rows);
    if (w.n_tile == 1)
        few_rows(&w);
    else
        many_rows(&w);
    if (p->is_streamed)
        _mm_sfence(); /* no release store orders what was streamed */
}

static void tile_bf16(const struct product_tile *tile)
{
    run(tile, false);
}

static void tile_w8(const struct product_tile *tile)
{
    if (tile->n_row <= TILE_ROWS)
        few_w8_amx(tile);
    else
        run(tile, true);
}

/* Deep rows come anew for each group of panels, as weights do for each block of
 * rows: a square unit has least of both. */
static struct product_shape shape_w8(uint32_t n_row, uint32_t n_step)
{
    const bool is_deep = n_step > DEPTHS * LINEAR_STEP;

    if (n_row <= TILE_ROWS)
        return (struct product_shape){TILE_ROWS, FEW_PANELS_W8};
    return (struct product_shape){is_deep ? DEEP_ROWS : UNIT_ROWS, UNIT_PANELS};
}

static struct product_shape shape_bf16(uint32_t n_row, uint32_t n_step)
{
    if (n_row <= TILE_ROWS)
        return (struct product_shape){TILE_ROWS, FEW_PANELS};
    return shape_w8(n_row, n_step);
}

/* ------------------------------------------------------------- the backend */

/* Others often use the physical cores of machines that have tiles, so threads
 * run unlike. */
#define TASKS_A_THREAD 4u

const struct product_kernels product_kernels_amx = {
    .of = {[ARITHMETIC_TILE] = {[LINEAR_BF16] = {tile_bf16, take_bf16,
                                                 swiglu_halves_avx512_bf16, 2,
                                                 shape_bf16, TASKS_A_THREAD},
                                [LINEAR_W8] = {tile_w8, take_bf16,
                                               swiglu_halves_avx512_bf16, 2,
                                               shape_w8, TASKS_A_THREAD}},
           [ARITHMETIC_FP32] = {[LINEAR_W8A8] = {work_w8a8_amx,
                                                 quads_take_avx512,
                                                 quads_swiglu_avx512, 1,
                                                 shape_w8a8_amx, TASKS_A_THREAD,
                                                 0,
                                                 sizeof(struct quads_scale)}}},
    .base = &product_kernels_avx512_bf16,
};

/* Very few rows go by AVX-512, whose bits are the same: it reads bf16 sooner,
 * and what it adds to widening W8 is less than what tiles add. */
#define VECTOR_ROWS_BF16 1u
#define VECTOR_ROWS_W8 3u

static const struct product_kernels *kernels_for(enum linear_type type,
                                                 uint32_t n_row)
{
    const uint32_t n_vector = type == LINEAR_W8A8 ? 0 /* it chooses itself */
                              : type == LINEAR_W8 ? VECTOR_ROWS_W8
                                                  : VECTOR_ROWS_BF16;

    return n_row <= n_vector ? product_kernels_amx.base : &product_kernels_amx;
}

void linear_amx(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, false, kernels_for(args->w->type, args->n_row));
}

void linear_add_amx(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, true, kernels_for(args->w->type, args->n_row));
}

void expert_amx(struct pool *pool, const struct expert_args *args)
{
    product_expert(pool, args, &product_kernels_amx);
}

void ffn_amx(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, false, kernels_for(args->gate->type, args->n_row));
}

void ffn_add_amx(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, true, kernels_for(args->gate->type, args->n_row));
}
