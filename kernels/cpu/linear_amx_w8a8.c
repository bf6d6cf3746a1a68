/*
 * Products of W8A8 with AMX: one TDPBSSD is 16 rows by 16 outputs by 64 inner
 * steps of signed bytes, so two of them are a group, whose sums then leave
 * their tile to become floats and be scaled: a vector each of conversion, two
 * products and a sum for every row, about what the tiles take. Both go side by
 * side: while tiles multiply, what they made before is scaled, some rows after
 * each product of tiles.
 *
 * More than 16 rows: two tiles of rows by two panels, as in linear_amx.c, two
 * groups at a time, which halves how often scaled sums are read and written.
 * Rows of a unit stay in the second-level cache while panels pass by, BLOCK
 * groups of a pair of panels in the first.
 *
 * Up to 16 rows only read weights once: groups are one stream, from the first
 * panel to the last.
 */
#include "kernels/cpu/linear_amx_w8a8.h"

#include "kernels/cpu/amx.h"
#include "kernels/cpu/quads.h"

#include <assert.h>

#define INLINE static inline __attribute__((always_inline))
#define PANEL LINEAR_PANEL
#define LINE AMX_LINE
#define QUADS_A_TILE 16u
#define TILE_WORDS (AMX_ROWS * PANEL)
#define ROUND 2u /* groups between two visits of scaled sums */
#ifndef BLOCK
#define BLOCK 8u /* groups of a pair of panels that pass by all rows */
#endif
#ifndef UNIT_BYTES
#define UNIT_BYTES (1u << 20) /* of rows: half of the second-level cache */
#endif
#ifndef UNIT_ROWS
#define UNIT_ROWS 512u
#endif
#define UNIT_PANELS 16u
#ifndef FEW_AHEAD
#define FEW_AHEAD                                                              \
    6u /* groups from those in use to those that are asked for                 \
        */
#endif
#ifndef FEW_HINT
#define FEW_HINT _MM_HINT_T0
#endif
#define FEW_PANELS 8u
/* Up to so many go by AVX-512, which adds less to reading than tiles do. */
#ifndef VECTOR_ROWS
#define VECTOR_ROWS 3u
#endif
#ifndef FETCH_ROWS
#define FETCH_ROWS 1
#endif

typedef int32_t count_tile[AMX_ROWS][PANEL];
typedef float sum_tile[AMX_ROWS][PANEL];

/* Sums of groups of a square of tiles, 2 x 2, on their way to be scaled. */
struct due {
    const count_tile (*count)[4]; /* [n_group] */
    sum_tile *kept;               /* [4] */
    const struct linear_quads *quads[2];
    const struct quads_scale *x[2]; /* of the first row of each tile */
    uint32_t n_group;               /* 0: nothing is due */
    uint32_t tile, panel;
    bool is_first, is_last;
};

struct work {
    const struct product_tile *p;
    uint32_t n_panel, n_group;
    uint32_t n_tile;    /* of rows, even */
    uint32_t tile_rows; /* of every tile; the last one begins early enough */
    /* In the unit's scratch. */
    count_tile (*count)[ROUND][4]; /* of two rounds in turn */
    sum_tile (*kept)[4];           /* [n_tile / 2] */
    uint32_t turn;
    struct due due;
    const unsigned char *next[2]; /* panels that are asked for meanwhile */
    uint32_t next_lines;          /* of each in a round */
};

/* -------------------------------------------------------------------- rows */

/* The last tile shares rows with the one before; they are computed twice,
 * written once. */
static uint32_t first_row(const struct work *w, uint32_t tile)
{
    const uint32_t row = tile * w->tile_rows, last = w->p->n_row - w->tile_rows;

    return row < last ? row : last;
}

static const int8_t *row_at(const struct work *w, uint32_t row)
{
    return (const int8_t *)w->p->a + row * w->p->a_stride;
}

static const struct linear_quads *quads_at(const struct work *w, uint32_t panel,
                                           uint32_t group)
{
    const void *at = (const char *)w->p->b + panel * w->p->b_stride;

    return (const struct linear_quads *)at + group;
}

/* ------------------------------------------------------------------- scale */

static void put(const struct product_tile *p, uint32_t row, uint32_t panel,
                __m512 v)
{
    float *y = p->c + row * p->c_stride + panel * PANEL;
    const uint32_t left = p->n_col - panel * PANEL;
    const __mmask16 mask =
        left < PANEL ? (__mmask16)((1u << left) - 1u) : (__mmask16)0xffff;

    if (p->is_add)
        v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
    if (p->is_streamed && left >= PANEL)
        _mm512_stream_ps(y, v);
    else
        _mm512_mask_storeu_ps(y, mask, v);
}

INLINE __m512 scaled(const int32_t *count, float of_x, __m512 of_w, __m512 sum)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(count)),
                           _mm512_mul_ps(_mm512_set1_ps(of_x), of_w), sum);
}

/* n rows from `first` on of tile i of rows, in n_group groups. */
INLINE void scale_rows(const struct due *due, size_t stride, uint32_t i,
                       uint32_t first, uint32_t n, uint32_t n_group)
{
    const int32_t *count = due->count[0][2 * i][first];
    const char *row = (const char *)due->x[i] + first * stride;
    const __mmask16 mask = due->is_first ? 0 : 0xffff;
    float *kept = due->kept[2 * i][first];
    __m512 of_w[2][ROUND];

#pragma GCC unroll 4
    for (uint32_t j = 0; j < 2 * n_group; j++)
        of_w[j % 2][j / 2] = _mm512_load_ps(due->quads[j % 2][j / 2].scale);
    for (uint32_t r = 0; r < n; r++) {
        const struct quads_scale *x = (const void *)row;

#pragma GCC unroll 2
        for (uint32_t p = 0; p < 2; p++) {
            float *to = kept + p * TILE_WORDS;
            __m512 sum = _mm512_maskz_load_ps(mask, to);

#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_group; g++)
                sum = scaled(count + (4 * g + p) * TILE_WORDS, x[g].scale,
                             of_w[p][g], sum);
            _mm512_store_ps(to, sum);
        }
        count += PANEL;
        kept += PANEL;
        row += stride;
    }
}

/* Of what is due, part number `part` of n. */
INLINE void scale_part(const struct work *w, uint32_t part, uint32_t n)
{
    const uint32_t each = 2 * AMX_ROWS / n, first = part * each % AMX_ROWS;
    const uint32_t end =
        first + each < w->tile_rows ? first + each : w->tile_rows;
    const uint32_t n_row = end > first ? end - first : 0;

    if (w->due.n_group == ROUND)
        scale_rows(&w->due, w->p->a_stride, part * each / AMX_ROWS, first,
                   n_row, ROUND);
    else if (w->due.n_group)
        scale_rows(&w->due, w->p->a_stride, part * each / AMX_ROWS, first,
                   n_row, 1);
}

/* All groups of what was due are in `kept`: to where it belongs. */
static void put_square(const struct work *w)
{
    const struct due *due = &w->due;

    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t tile = due->tile + i / 2, first = first_row(w, tile);

        if (due->panel + i % 2 >= w->n_panel)
            continue;
        for (uint32_t r = tile * w->tile_rows - first; r < w->tile_rows; r++)
            put(w->p, first + r, due->panel + i % 2,
                _mm512_load_ps(due->kept[i][r]));
    }
}

/* --------------------------------------------------------------- many rows */

/* What follows: panels, by the second-level cache, and rows, by the first. */
INLINE void fetch_next(struct work *w)
{
    for (uint32_t i = 0; i < w->next_lines; i++) {
        _mm_prefetch((const char *)w->next[0], _MM_HINT_T1);
        _mm_prefetch((const char *)w->next[1], _MM_HINT_T1);
        w->next[0] += LINE;
        w->next[1] += LINE;
    }
}

INLINE void fetch_rows(const int8_t *a, size_t stride, uint32_t n)
{
    for (uint32_t r = 0; FETCH_ROWS && r < n; r++)
        _mm_prefetch((const char *)a + r * stride, _MM_HINT_T0);
}

/* A group of a square: rows a[i], quads b[p]; scale some of what is due. */
INLINE void multiply_group(struct work *w, const int8_t *const a[2],
                           const struct linear_quads *const b[2],
                           count_tile *count, uint32_t part, uint32_t n_part)
{
    const size_t stride = w->p->a_stride;

    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#pragma GCC unroll 2
    for (uint32_t k = 0; k < 2; k++, part += 4) {
        _tile_loadd(6, b[0]->q[k * QUADS_A_TILE], LINE);
        _tile_loadd(4, a[0] + k * LINE, stride);
        _tile_dpbssd(0, 4, 6);
        scale_part(w, part, n_part);
        fetch_rows(a[0] + LINEAR_GROUP + k * LINE, stride, AMX_ROWS);
        _tile_loadd(7, b[1]->q[k * QUADS_A_TILE], LINE);
        _tile_dpbssd(1, 4, 7);
        scale_part(w, part + 1, n_part);
        _tile_loadd(5, a[1] + k * LINE, stride);
        _tile_dpbssd(2, 5, 6);
        scale_part(w, part + 2, n_part);
        fetch_rows(a[1] + LINEAR_GROUP + k * LINE, stride, AMX_ROWS);
        _tile_dpbssd(3, 5, 7);
        scale_part(w, part + 3, n_part);
    }
    _tile_stored(0, count[0], LINE);
    _tile_stored(1, count[1], LINE);
    _tile_stored(2, count[2], LINE);
    _tile_stored(3, count[3], LINE);
    AMX_MEMORY_BARRIER();
}

/* Groups [first, first + n) of tiles of rows `tile` and the next by two panels;
 * and scale what is due, then this is. */
INLINE void run_round(struct work *w, uint32_t tile, uint32_t panel,
                      uint32_t first, uint32_t n)
{
    const int8_t *a[2] = {row_at(w, first_row(w, tile)),
                          row_at(w, first_row(w, tile + 1))};
    const uint32_t other = panel + 1 < w->n_panel ? panel + 1 : panel;
    const struct linear_quads *b[2] = {quads_at(w, panel, first),
                                       quads_at(w, other, first)};
    count_tile(*count)[4] = w->count[w->turn++ % 2];
    const struct due due = {
        .count = (const void *)count,
        .kept = w->kept[tile / 2],
        .quads = {b[0], b[1]},
        .x = {quads_scales(a[0], w->p->n_step) + first,
              quads_scales(a[1], w->p->n_step) + first},
        .n_group = n,
        .tile = tile,
        .panel = panel,
        .is_first = first == 0,
        .is_last = first + n == w->n_group,
    };

    fetch_next(w);
#pragma GCC unroll 2
    for (uint32_t g = 0; g < n; g++) {
        const int8_t *const at[2] = {a[0] + (first + g) * LINEAR_GROUP,
                                     a[1] + (first + g) * LINEAR_GROUP};
        const struct linear_quads *const quads[2] = {b[0] + g, b[1] + g};

        multiply_group(w, at, quads, count[g], g * 8, n * 8);
    }
    if (w->due.n_group && w->due.is_last)
        put_square(w);
    w->due = due;
}

static void plan_next(struct work *w, uint32_t panel, uint32_t first,
                      uint32_t n)
{
    const uint32_t n_line = n * (sizeof(struct linear_quads) / LINE);
    const uint32_t n_round = w->n_tile / 2 * ((n + ROUND - 1) / ROUND);
    const bool is_end = first + n == w->n_group;
    const uint32_t next = is_end ? panel + 2 : panel;

    for (uint32_t i = 0; i < 2; i++)
        w->next[i] =
            (const void *)quads_at(w, next + i, is_end ? 0 : first + n);
    w->next_lines = (n_line + n_round - 1) / n_round;
}

static void many_rows(struct work *w)
{
    for (uint32_t panel = 0; panel < w->n_panel; panel += 2)
        for (uint32_t first = 0; first < w->n_group; first += BLOCK) {
            const uint32_t left = w->n_group - first;
            const uint32_t n = left < BLOCK ? left : BLOCK;

            plan_next(w, panel, first, n);
            for (uint32_t tile = 0; tile < w->n_tile; tile += 2) {
                uint32_t g = 0;

                for (; g + ROUND <= n; g += ROUND)
                    run_round(w, tile, panel, first + g, ROUND);
                if (g < n)
                    run_round(w, tile, panel, first + g, 1);
            }
        }
    for (uint32_t part = 0; part < 8; part++)
        scale_part(w, part, 8);
    put_square(w);
}

static void run_many(const struct product_tile *p)
{
    struct work w = {
        .p = p,
        .n_panel = (p->n_col + PANEL - 1) / PANEL,
        .n_group = p->n_step / LINEAR_GROUP,
        .n_tile = 2 * ((p->n_row + 2 * AMX_ROWS - 1) / (2 * AMX_ROWS)),
        .count = p->scratch,
    };

    w.tile_rows = (p->n_row + w.n_tile - 1) / w.n_tile;
    w.kept = (void *)(w.count + 2);
    amx_configure(w.tile_rows);
    many_rows(&w);
    if (p->is_streamed)
        _mm_sfence(); /* no release store orders what was streamed */
}

/* ---------------------------------------------------------------- few rows */

struct few {
    const struct product_tile *p;
    const struct linear_quads *quads; /* of all panels, end to end */
    uint32_t n_group;                 /* of a panel */
    /* In the unit's scratch: counts of a round, and sums of a panel. */
    count_tile *count;
    float (*sum)[PANEL];
};

/* sum = fma(counts of group i, its scales, sum). */
INLINE void scale_group(const struct few *f, uint32_t i, const count_tile count)
{
    const __m512 of_w = _mm512_load_ps(f->quads[i].scale);
    const uint32_t at = i % f->n_group;
    const struct quads_scale *x =
        quads_scales((const int8_t *)f->p->a, f->p->n_step) + at;

    for (uint32_t r = 0; r < f->p->n_row; r++) {
        const __m512 before =
            at ? _mm512_load_ps(f->sum[r]) : _mm512_setzero_ps();

        _mm512_store_ps(f->sum[r], scaled(count[r], x->scale, of_w, before));
        x = (const void *)((const char *)x + f->p->a_stride);
    }
    for (uint32_t r = 0; at + 1 == f->n_group && r < f->p->n_row; r++)
        put(f->p, r, i / f->n_group, _mm512_load_ps(f->sum[r]));
}

INLINE void fetch_group(const struct linear_quads *quads)
{
    const char *at = (const char *)(quads + FEW_AHEAD);

#pragma GCC unroll 33
    for (size_t i = 0; i < sizeof(*quads); i += LINE)
        _mm_prefetch(at + i, FEW_HINT);
}

/* A group in tile `tile` of sums. */
#define FEW_GROUP(f, i, tile)                                                  \
    do {                                                                       \
        const int8_t *a = (const int8_t *)(f)->p->a +                          \
                          (size_t)((i) % (f)->n_group) * LINEAR_GROUP;         \
        const struct linear_quads *b = &(f)->quads[i];                         \
                                                                               \
        fetch_group(b);                                                        \
        _tile_zero(tile);                                                      \
        _tile_loadd(4, a, (f)->p->a_stride);                                   \
        _tile_loadd(6, b->q[0], LINE);                                         \
        _tile_dpbssd(tile, 4, 6);                                              \
        _tile_loadd(5, a + LINE, (f)->p->a_stride);                            \
        _tile_loadd(7, b->q[QUADS_A_TILE], LINE);                              \
        _tile_dpbssd(tile, 5, 7);                                              \
    } while (0)

/* Multiply groups i and, if there are two, i + 1; scale the two before. */
INLINE void few_round(const struct few *f, uint32_t i, uint32_t n)
{
    AMX_MEMORY_BARRIER();
    FEW_GROUP(f, i, 0);
    if (n == 2)
        FEW_GROUP(f, i + 1, 1);
    for (uint32_t g = 0; g < 2 && i; g++)
        scale_group(f, i - 2 + g, f->count[g]);
    AMX_MEMORY_BARRIER();
    _tile_stored(0, f->count[0], LINE);
    if (n == 2)
        _tile_stored(1, f->count[1], LINE);
    AMX_MEMORY_BARRIER();
}

static void run_few(const struct product_tile *p)
{
    const uint32_t n_panel = (p->n_col + PANEL - 1) / PANEL;
    struct few f = {.p = p,
                    .quads = p->b,
                    .n_group = p->n_step / LINEAR_GROUP,
                    .count = p->scratch};
    const uint32_t n = n_panel * f.n_group;
    uint32_t i = 0;

    assert(p->b_stride == f.n_group * sizeof(*f.quads));
    f.sum = (void *)(f.count + 2);
    amx_configure(p->n_row);
    for (; i + 2 <= n; i += 2)
        few_round(&f, i, 2);
    if (i < n)
        few_round(&f, i, 1);
    for (uint32_t g = n > 1 && n % 2 == 0 ? n - 2 : n - 1; g < n; g++)
        scale_group(&f, g, f.count[g % 2]);
}

/* ------------------------------------------------------------------- units */

void work_w8a8_amx(const struct product_tile *p)
{
    if (p->n_row <= VECTOR_ROWS)
        work_w8a8_vnni(p);
    else if (p->n_row <= AMX_ROWS)
        run_few(p);
    else
        run_many(p);
}

struct product_shape shape_w8a8_amx(uint32_t n_row, uint32_t n_step)
{
    const uint32_t fit = UNIT_BYTES / n_step / 32 * 32;

    if (n_row <= AMX_ROWS)
        return (struct product_shape){AMX_ROWS, FEW_PANELS};
    return (struct product_shape){fit < 64          ? 64
                                  : fit > UNIT_ROWS ? UNIT_ROWS
                                                    : fit,
                                  UNIT_PANELS};
}
