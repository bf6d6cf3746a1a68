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
 * groups of a pair at a time.
 *
 * Up to 16 rows only read weights once: they take four panels at a time, whose
 * four streams from memory are asked for into the first-level cache.
 */
#include "kernels/cpu/linear_amx_w8a8.h"

#include "kernels/cpu/amx.h"
#include "kernels/cpu/quads.h"

#define INLINE static inline __attribute__((always_inline))
#define PANEL LINEAR_PANEL
#define LINE AMX_LINE
#define QUADS_A_TILE 16u
#define TILE_WORDS (AMX_ROWS * PANEL)
#define ROUND 2u  /* groups between two visits of scaled sums */
#define TURNS 16u /* of scaling in a round: one for each product of tiles */
#define BLOCK 16u /* groups of a pair of panels that pass by all rows */
#define UNIT_BYTES (512u << 10) /* of rows: more and they leave the cache */
#define UNIT_ROWS 512u
#define UNIT_PANELS 16u
#define FEW_AHEAD 2u  /* groups from those in use to those asked for */
#define FEW_PANELS 4u /* side by side */
#define FEW_TURNS 3u
/* Up to so many go by AVX-512, which adds less to reading than tiles do. */
#define VECTOR_ROWS 3u

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
    struct due due[2];            /* of the last round, and of the one before */
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

/* All groups of a square are in `kept`: to where it belongs. */
static void put_square(const struct work *w, const struct due *due)
{
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t tile = due->tile + i / 2, first = first_row(w, tile);

        if (due->panel + i % 2 >= w->n_panel)
            continue;
        for (uint32_t r = tile * w->tile_rows - first; r < w->tile_rows; r++)
            put(w->p, first + r, due->panel + i % 2,
                _mm512_load_ps(due->kept[i][r]));
    }
}

/*
 * Turn t of TURNS in which what is due is scaled during a round: first the
 * lower rows of the round before the last, then the upper rows of the last one,
 * whose sums left their tiles half a round ago at least. Sooner they are still
 * on their way, and a core whose other thread works looks no further ahead.
 */
INLINE void scale_turn(const struct work *w, uint32_t t)
{
    const uint32_t i = t < TURNS / 2 ? 1 : 0;
    const struct due *due = &w->due[i];
    const uint32_t each = AMX_ROWS / (TURNS / 2);
    const uint32_t first = t % (TURNS / 2) * each;
    const uint32_t end =
        first + each < w->tile_rows ? first + each : w->tile_rows;
    const uint32_t n = end > first ? end - first : 0;

    if (t == TURNS / 2 && w->due[1].n_group && w->due[1].is_last)
        put_square(w, &w->due[1]);
    if (due->n_group == ROUND)
        scale_rows(due, w->p->a_stride, i, first, n, ROUND);
    else if (due->n_group)
        scale_rows(due, w->p->a_stride, i, first, n, 1);
}

INLINE void scale_turns(const struct work *w, uint32_t from, uint32_t n)
{
#pragma GCC unroll 2
    for (uint32_t t = from * n; t < (from + 1) * n; t++)
        scale_turn(w, t);
}

/* --------------------------------------------------------------- many rows */

/* Panels that follow, by the second-level cache. */
INLINE void fetch_next(struct work *w)
{
    for (uint32_t i = 0; i < w->next_lines; i++) {
        _mm_prefetch((const char *)w->next[0], _MM_HINT_T1);
        _mm_prefetch((const char *)w->next[1], _MM_HINT_T1);
        w->next[0] += LINE;
        w->next[1] += LINE;
    }
}

/* A group of a square: rows a[i], quads b[p]; and with each of its eight
 * products n turns of scaling. */
INLINE void multiply_group(struct work *w, const int8_t *const a[2],
                           const struct linear_quads *const b[2],
                           count_tile *count, uint32_t turn, uint32_t n)
{
    const size_t stride = w->p->a_stride;

    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#pragma GCC unroll 2
    for (uint32_t k = 0; k < 2; k++, turn += 4) {
        _tile_loadd(6, b[0]->q[k * QUADS_A_TILE], LINE);
        _tile_loadd(4, a[0] + k * LINE, stride);
        _tile_dpbssd(0, 4, 6);
        scale_turns(w, turn, n);
        _tile_loadd(7, b[1]->q[k * QUADS_A_TILE], LINE);
        _tile_dpbssd(1, 4, 7);
        scale_turns(w, turn + 1, n);
        _tile_loadd(5, a[1] + k * LINE, stride);
        _tile_dpbssd(2, 5, 6);
        scale_turns(w, turn + 2, n);
        _tile_dpbssd(3, 5, 7);
        scale_turns(w, turn + 3, n);
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

        multiply_group(w, at, quads, count[g], g * 8, ROUND / n);
    }
    w->due[1] = w->due[0];
    w->due[0] = due;
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
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t t = 0; t < TURNS; t++)
            scale_turn(w, t);
        w->due[1] = w->due[0];
        w->due[0].n_group = 0;
    }
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
    uint32_t n_group;
    /* In the unit's scratch: counts of FEW_TURNS groups in turn, and sums. */
    count_tile (*count)[FEW_PANELS];
    sum_tile *sum; /* [FEW_PANELS] */
};

/* What one pass multiplies. */
struct pass {
    const unsigned char *b; /* quads of the first panel */
    uint32_t panel, n_panel;
};

INLINE const struct linear_quads *
few_quads(const struct few *f, struct pass pass, uint32_t panel, uint32_t group)
{
    const void *at = pass.b + panel * f->p->b_stride;

    return (const struct linear_quads *)at + group;
}

/* sum = fma(counts of a group, its scales, sum), of rows [first, end). */
INLINE void scale_few(const struct few *f, struct pass pass, uint32_t group,
                      uint32_t first, uint32_t end)
{
    const __mmask16 mask = group ? 0xffff : 0;
    const count_tile *count = (const void *)f->count[group % FEW_TURNS];

    for (uint32_t r = first; r < end; r++) {
        const int8_t *row = (const int8_t *)f->p->a + r * f->p->a_stride;
        const float of_x = quads_scales(row, f->p->n_step)[group].scale;

#pragma GCC unroll 4
        for (uint32_t p = 0; p < pass.n_panel; p++)
            _mm512_store_ps(
                f->sum[p][r],
                scaled(count[p][r], of_x,
                       _mm512_load_ps(few_quads(f, pass, p, group)->scale),
                       _mm512_maskz_load_ps(mask, f->sum[p][r])));
    }
}

/* With each of the products of a group some rows of the last but one, whose
 * counts have left their tiles. */
INLINE void few_turn(const struct few *f, struct pass pass, uint32_t group,
                     uint32_t turn)
{
    const uint32_t each = AMX_ROWS / (2 * pass.n_panel), first = turn * each;

    if (group >= 2)
        scale_few(f, pass, group - 2, first,
                  first + each < f->p->n_row ? first + each : f->p->n_row);
}

/* A tile of weights, and with the first one their scales. */
INLINE void fetch_tile(const struct linear_quads *quads, uint32_t k,
                       size_t ahead)
{
    const char *at = (const char *)quads->q[k * QUADS_A_TILE] + ahead;

#pragma GCC unroll 17
    for (ptrdiff_t i = k ? 0 : -1; i < (ptrdiff_t)QUADS_A_TILE; i++)
        _mm_prefetch(at + i * (ptrdiff_t)LINE, _MM_HINT_T0);
}

/* Behind the end of a panel comes the next one, which is here, too; what will
 * be needed is the one so many panels on. */
INLINE void multiply_few(const struct few *f, struct pass pass, uint32_t group)
{
    const size_t stride = f->p->a_stride;
    const int8_t *a = (const int8_t *)f->p->a + (size_t)group * LINEAR_GROUP;
    size_t ahead = FEW_AHEAD * sizeof(struct linear_quads);

    if (group + FEW_AHEAD >= f->n_group)
        ahead += (pass.n_panel - 1) * f->p->b_stride;
    amx_clear_sums();
#pragma GCC unroll 2
    for (uint32_t k = 0; k < 2; k++) {
        _tile_loadd(4, a + k * LINE, stride);
#define PANEL_BY(i, b_tile)                                                    \
    do {                                                                       \
        const struct linear_quads *b = few_quads(f, pass, i, group);           \
                                                                               \
        _tile_loadd(b_tile, b->q[k * QUADS_A_TILE], LINE);                     \
        _tile_dpbssd(i, 4, b_tile);                                            \
        fetch_tile(b, k, ahead);                                               \
        few_turn(f, pass, group, k *pass.n_panel + (i));                       \
    } while (0)
        PANEL_BY(0, 6);
        if (pass.n_panel > 1) {
            PANEL_BY(1, 7);
            PANEL_BY(2, 6);
            PANEL_BY(3, 7);
        }
#undef PANEL_BY
    }
}

INLINE void few_panels(const struct few *f, uint32_t panel, uint32_t n_panel)
{
    const struct pass pass = {
        .b = (const unsigned char *)f->p->b + panel * f->p->b_stride,
        .panel = panel,
        .n_panel = n_panel,
    };
    const uint32_t n_row = f->p->n_row;

    for (uint32_t g = 0; g < f->n_group; g++) {
        count_tile *count = f->count[g % FEW_TURNS];

        AMX_MEMORY_BARRIER();
        multiply_few(f, pass, g);
        AMX_MEMORY_BARRIER();
        _tile_stored(0, count[0], LINE);
        if (n_panel > 1) {
            _tile_stored(1, count[1], LINE);
            _tile_stored(2, count[2], LINE);
            _tile_stored(3, count[3], LINE);
        }
    }
    AMX_MEMORY_BARRIER();
    for (uint32_t g = f->n_group < 2 ? 0 : f->n_group - 2; g < f->n_group; g++)
        scale_few(f, pass, g, 0, n_row);
    for (uint32_t i = 0; i < n_panel; i++)
        for (uint32_t r = 0; r < n_row; r++)
            put(f->p, r, panel + i, _mm512_load_ps(f->sum[i][r]));
}

static void run_few(const struct product_tile *p)
{
    const uint32_t n_panel = (p->n_col + PANEL - 1) / PANEL;
    struct few f = {
        .p = p, .n_group = p->n_step / LINEAR_GROUP, .count = p->scratch};
    uint32_t panel = 0;

    f.sum = (void *)(f.count + FEW_TURNS);
    amx_configure(p->n_row);
    for (; panel + FEW_PANELS <= n_panel; panel += FEW_PANELS)
        few_panels(&f, panel, FEW_PANELS);
    for (; panel < n_panel; panel++)
        few_panels(&f, panel, 1);
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
        return (struct product_shape){AMX_ROWS, 2 * FEW_PANELS};
    return (struct product_shape){fit < 64          ? 64
                                  : fit > UNIT_ROWS ? UNIT_ROWS
                                                    : fit,
                                  UNIT_PANELS};
}
