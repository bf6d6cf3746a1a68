/*
 * Products of TILE with AMX, whose dot product of tiles is that arithmetic
 * (kernels/linear.h): one TDPBF16PS is 16 rows by 16 outputs by a depth of 32
 * inner steps. It flushes by itself; the modes that product.h sets are for the
 * scales of W8 and for what is added to y.
 *
 * One tile of rows by four panels stands in four tiles of sums. Eight depths of
 * four panels fill two thirds of the first-level cache, and all rows of a unit
 * pass by them; two by two tiles would need half as many loads from the panels,
 * which are near, but twice as many of rows, which come from the second level
 * and are the bound. Sums wait in memory meanwhile, which costs no bits,
 * because a tile of sums is loaded as it was stored. Up to sixteen rows take
 * all depths at once, for they only read weights once. Rows are spread evenly
 * over their tiles: one configuration serves a unit.
 *
 * W8 weights become bf16, exactly, in the first-level cache; a group's sums
 * leave their tiles to be scaled.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define PANEL 16u
#define TILE_ROWS 16u
#define DEPTH_BYTES 1024u /* of one panel: 32 steps of 16 outputs in bf16 */
#define LINE 64u
#define DEPTHS 8u /* of a panel between two visits of a tile of rows */
#define GROUP_DEPTHS (LINEAR_GROUP / LINEAR_STEP)
#define SCALE_STRIDE (sizeof(struct linear_group) / sizeof(float))
#define UNIT_ROWS 256u
#define UNIT_PANELS 16u
#define WIDTH 4u /* panels that meet a tile of rows together */

/* LDTILECFG's operand. Intel SDM, volume 1, 18.2. */
struct tile_config {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t n_row[16];
};

typedef float sums[WIDTH][TILE_ROWS][PANEL];

/* What the micro-kernels of a unit share. */
struct work {
    const struct product_tile *p;
    uint32_t n_panel, n_depth, n_tile;
    uint32_t tile_rows;   /* of every tile; the last one begins early enough */
    uint32_t depth_bytes; /* of one panel as it lies in memory */
    bool is_w8;
    size_t a_bytes; /* from row to row */
    /* In the unit's scratch. */
    unsigned char (*wide)[DEPTHS * DEPTH_BYTES]; /* [WIDTH] */
    sums *group;                                 /* on their way from tiles */
    sums *kept;                                  /* [n_panel / WIDTH][n_tile] */
};

/* Some panels at some depths, and who comes next. */
struct block {
    const unsigned char *b[WIDTH];
    const float *scale[WIDTH]; /* of the first group; W8 */
    uint32_t panel, depth, n_depth;
    const unsigned char *next[WIDTH]; /* panels to be fetched meanwhile */
    uint32_t next_lines;              /* of each at each depth */
};

/* ------------------------------------------------------------------- tiles */

/* The compiler knows of no memory that tiles read or write. */
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

/* Tiles 0 to 3 are sums, 4 is rows, 5 to 7 are panels in turn. */
static void configure(uint32_t n_row)
{
    struct tile_config config = {.palette = 1};

    for (uint32_t i = 0; i < 8; i++) {
        config.row_bytes[i] = LINE;
        config.n_row[i] = (uint8_t)(i < 5 ? n_row : TILE_ROWS);
    }
    /* The whole struct is an operand, or its stores would be dropped. */
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

INLINE void fetch(struct block *x)
{
    for (uint32_t i = 0; i < x->next_lines; i++)
#pragma GCC unroll 4
        for (uint32_t p = 0; p < WIDTH; p++) {
            _mm_prefetch((const char *)x->next[p], _MM_HINT_T1);
            x->next[p] += LINE;
        }
}

/* Sums of n_depth depths from depth `first` of the block on, rows at a. */
INLINE void multiply(struct block *x, const unsigned char *a, size_t stride,
                     uint32_t first, uint32_t n_depth, uint32_t width)
{
    const size_t at = (size_t)first * DEPTH_BYTES;

    MEMORY_BARRIER();
    for (uint32_t k = 0; k < n_depth; k++) {
        _tile_loadd(4, a + (first + k) * LINE, stride);
        _tile_loadd(5, x->b[0] + at + k * DEPTH_BYTES, LINE);
        _tile_dpbf16ps(0, 4, 5);
        if (width > 1) {
            _tile_loadd(6, x->b[1] + at + k * DEPTH_BYTES, LINE);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (width > 2) {
            _tile_loadd(7, x->b[2] + at + k * DEPTH_BYTES, LINE);
            _tile_dpbf16ps(2, 4, 7);
        }
        if (width > 3) {
            _tile_loadd(5, x->b[3] + at + k * DEPTH_BYTES, LINE);
            _tile_dpbf16ps(3, 4, 5);
        }
        fetch(x);
    }
}

static void clear_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void load_sums(sums *s, uint32_t width)
{
    MEMORY_BARRIER();
    _tile_loadd(0, (*s)[0], LINE);
    if (width > 1)
        _tile_loadd(1, (*s)[1], LINE);
    if (width > 2)
        _tile_loadd(2, (*s)[2], LINE);
    if (width > 3)
        _tile_loadd(3, (*s)[3], LINE);
}

/* Tiles one `apart` from the other in memory, rows one `stride`, in floats. */
INLINE void store_sums(float *to, size_t apart, size_t stride, uint32_t width)
{
    stride *= sizeof(float);
    _tile_stored(0, to, stride);
    if (width > 1)
        _tile_stored(1, to + apart, stride);
    if (width > 2)
        _tile_stored(2, to + 2 * apart, stride);
    if (width > 3)
        _tile_stored(3, to + 3 * apart, stride);
    MEMORY_BARRIER();
}

INLINE void keep_sums(sums *s, uint32_t width)
{
    store_sums((*s)[0][0], sizeof((*s)[0]) / sizeof(float), PANEL, width);
}

/* ------------------------------------------------------------------ weights */

/* A group of one panel as bf16. A whole number below 128 fills the upper half
 * of its float, the lower is 0. */
static void widen(const struct linear_group *group, unsigned char *to)
{
    for (uint32_t k = 0; k < LINEAR_GROUP; k += 2) {
        __m512i even =
            _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)group->q[k]));
        __m512i odd = _mm512_cvtepi8_epi32(
            _mm_loadu_si128((const void *)group->q[k + 1]));

        even = _mm512_castps_si512(_mm512_cvtepi32_ps(even));
        odd = _mm512_castps_si512(_mm512_cvtepi32_ps(odd));
        _mm512_store_si512(to + k * PANEL * 2,
                           _mm512_or_si512(odd, _mm512_srli_epi32(even, 16)));
    }
}

static const unsigned char *panel_at(const struct work *w, uint32_t panel,
                                     uint32_t depth)
{
    return (const unsigned char *)w->p->b + panel * w->p->b_stride +
           (size_t)depth * w->depth_bytes;
}

/* The block's `width` panels at its depths, as bf16. */
static void take_panels(const struct work *w, struct block *x, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++) {
        const unsigned char *b = panel_at(w, x->panel + i, x->depth);
        const struct linear_group *group = (const void *)b;

        x->b[i] = b;
        if (!w->is_w8)
            continue;
        for (uint32_t g = 0; g < x->n_depth / GROUP_DEPTHS; g++)
            widen(&group[g], w->wide[i] + g * GROUP_DEPTHS * DEPTH_BYTES);
        x->scale[i] = group->scale;
        x->b[i] = w->wide[i];
    }
}

/* What comes behind these panels and depths is fetched while they pass by the
 * rows, a share of it at each step. */
static void plan_next(const struct work *w, struct block *x)
{
    const uint32_t n_line = x->n_depth * w->depth_bytes / LINE;
    const uint32_t n_step = w->n_tile * x->n_depth;
    uint32_t panel = x->panel + WIDTH, depth = x->depth;

    if (panel >= w->n_panel) {
        panel = 0;
        depth += x->n_depth;
    }
    if (depth >= w->n_depth)
        return;
    for (uint32_t i = 0; i < WIDTH; i++)
        x->next[i] = panel_at(
            w, panel + i < w->n_panel ? panel + i : w->n_panel - 1, depth);
    x->next_lines = (n_line + n_step - 1) / n_step;
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
 * rows that it shares with the one before are computed twice, added once. */
static uint32_t first_row(const struct work *w, uint32_t tile)
{
    const uint32_t row = tile * w->tile_rows, last = w->p->n_row - w->tile_rows;

    return row < last ? row : last;
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
        _mm512_mask_storeu_ps(y, mask, v);
    }
}

static void put_tiles(const struct work *w, sums *s, uint32_t tile,
                      uint32_t panel, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++)
        put_tile(w, (*s)[i], tile, panel + i);
}

/* ------------------------------------------------------------------ blocks */

/* A tile of rows meets a block of bf16. */
INLINE void meet(const struct work *w, struct block *x, uint32_t tile,
                 uint32_t width)
{
    const struct product_tile *p = w->p;
    const uint32_t first = first_row(w, tile);
    const unsigned char *a = (const unsigned char *)p->a + first * w->a_bytes +
                             (size_t)x->depth * LINE;
    sums *kept = &w->kept[x->panel / WIDTH * w->n_tile + tile];

    if (x->depth == 0)
        clear_sums();
    else
        load_sums(kept, width);
    multiply(x, a, w->a_bytes, 0, x->n_depth, width);
    if (x->depth + x->n_depth < w->n_depth) {
        keep_sums(kept, width);
    } else if (!p->is_add && (x->panel + width) * PANEL <= p->n_col) {
        store_sums(p->c + first * p->c_stride + x->panel * PANEL, PANEL,
                   p->c_stride, width);
    } else {
        keep_sums(w->group, width);
        put_tiles(w, w->group, tile, x->panel, width);
    }
}

/* The same of W8: sums of a group of 128 steps go from tiles to memory and
 * there to their scales, group by group. */
INLINE void meet_groups(const struct work *w, struct block *x, uint32_t tile,
                        uint32_t width)
{
    const unsigned char *a = (const unsigned char *)w->p->a +
                             first_row(w, tile) * w->a_bytes +
                             (size_t)x->depth * LINE;
    sums *kept = &w->kept[x->panel / WIDTH * w->n_tile + tile];

    for (uint32_t g = 0; g < x->n_depth / GROUP_DEPTHS; g++) {
        clear_sums();
        multiply(x, a, w->a_bytes, g * GROUP_DEPTHS, GROUP_DEPTHS, width);
        keep_sums(w->group, width);
        for (uint32_t i = 0; i < width; i++)
            scale_tile((*kept)[i], (*w->group)[i],
                       x->scale[i] + g * SCALE_STRIDE, w->tile_rows,
                       x->depth == 0 && g == 0);
    }
    if (x->depth + x->n_depth == w->n_depth)
        put_tiles(w, kept, tile, x->panel, width);
}

INLINE void all_rows(const struct work *w, struct block *x, uint32_t width)
{
    for (uint32_t tile = 0; tile < w->n_tile; tile++)
        if (w->is_w8)
            meet_groups(w, x, tile, width);
        else
            meet(w, x, tile, width);
}

static void run_block(const struct work *w, struct block *x, uint32_t width)
{
    take_panels(w, x, width);
    switch (width) {
    case 1:
        all_rows(w, x, 1);
        break;
    case 2:
        all_rows(w, x, 2);
        break;
    case 3:
        all_rows(w, x, 3);
        break;
    default:
        all_rows(w, x, 4);
    }
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
    const uint32_t n_depth = w.n_tile == 1 && !is_w8 ? w.n_depth : DEPTHS;

    w.tile_rows = (p->n_row + w.n_tile - 1) / w.n_tile;
    w.group = (void *)(w.wide + WIDTH);
    w.kept = w.group + 1;
    configure(w.tile_rows);
    for (uint32_t k = 0; k < w.n_depth; k += n_depth)
        for (uint32_t panel = 0; panel < w.n_panel; panel += WIDTH) {
            const uint32_t deep = w.n_depth - k, wide = w.n_panel - panel;
            struct block x = {.panel = panel,
                              .depth = k,
                              .n_depth = deep < n_depth ? deep : n_depth};

            if (w.n_tile > 1)
                plan_next(&w, &x);
            run_block(&w, &x, wide < WIDTH ? wide : WIDTH);
        }
    _tile_release();
}

static void tile_bf16(const struct product_tile *tile)
{
    run(tile, false);
}

static void tile_w8(const struct product_tile *tile)
{
    run(tile, true);
}

static struct product_shape shape(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    if (n_row <= TILE_ROWS)
        return (struct product_shape){TILE_ROWS, WIDTH};
    return (struct product_shape){UNIT_ROWS, UNIT_PANELS};
}

/* ------------------------------------------------------------- the backend */

const struct product_kernels product_kernels_amx = {
    .of = {[ARITHMETIC_TILE] = {[LINEAR_BF16] = {tile_bf16, take_bf16, 2,
                                                 shape},
                                [LINEAR_W8] = {tile_w8, take_bf16, 2, shape}}},
    .base = &product_kernels_avx512_bf16,
};

/* Few rows of W8 wait for weights that go through memory into tiles; by
 * AVX-512 they took half the time up to here, and the bits are the same. */
#define VECTOR_ROWS 4u

static const struct product_kernels *kernels_for(enum linear_type type,
                                                 uint32_t n_row)
{
    return type == LINEAR_W8 && n_row <= VECTOR_ROWS ? product_kernels_amx.base
                                                     : &product_kernels_amx;
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
