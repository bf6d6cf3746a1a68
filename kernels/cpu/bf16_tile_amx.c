/*
 * Products of activations in TILE with AMX, whose dot product of tiles is that
 * arithmetic: one TDPBF16PS is 16 rows by 16 outputs by 16 words of two inner
 * steps, which are read where they lie. Two tiles of rows by two of outputs
 * stand in four tiles of sums, so that each tile loaded is used twice; up to 16
 * rows take four tiles of outputs at once. Rows are spread evenly over their
 * tiles. Sums leave by memory, where vectors add +0 and merge.
 *
 * What fills no whole tile of words goes by vectors of AVX-512.
 */
#include "kernels/cpu/bf16_tile.h"

#include "kernels/cpu/amx.h"

#include <stdbool.h>

#define INLINE static inline __attribute__((always_inline))
#define COLUMNS 16u

struct work {
    const struct bf16_tile *t;
    uint32_t n_tile;
    uint32_t tile_rows; /* of every tile; the last one begins early enough */
    _Alignas(64) float sum[4][AMX_ROWS][COLUMNS];
};

/* The last tile begins early enough to have as many rows as the others; the
 * rows that it shares with the one before are computed twice, written once. */
static uint32_t first_row(const struct work *w, uint32_t tile)
{
    const uint32_t row = tile * w->tile_rows, last = w->t->n_row - w->tile_rows;

    return row < last ? row : last;
}

static const uint32_t *rows_at(const struct work *w, uint32_t tile)
{
    return w->t->a + first_row(w, tile) * w->t->a_stride;
}

/* Words of pair k on, of outputs `column` on. */
static const uint32_t *words_at(const struct bf16_tile *t, uint32_t k,
                                uint32_t column)
{
    const uint32_t *b = k < t->n_near ? t->b + k * t->b_stride
                                      : t->far + (k - t->n_near) * t->b_stride;

    return b + column;
}

/* Sums are tiles 0, 1 of the first rows and 2, 3 of the second. */
INLINE void multiply_square(const struct work *w, uint32_t tile,
                            uint32_t column, bool has_a1, bool has_b1)
{
    const struct bf16_tile *t = w->t;
    const uint32_t *a0 = rows_at(w, tile);
    const uint32_t *a1 = rows_at(w, has_a1 ? tile + 1 : tile);
    const size_t a_bytes = t->a_stride * sizeof(*t->a);
    const size_t b_bytes = t->b_stride * sizeof(*t->b);

    AMX_MEMORY_BARRIER();
    for (uint32_t k = 0; k < t->n_pair; k += BF16_STEP_PAIRS) {
        const uint32_t *b = words_at(t, k, column);

        _tile_loadd(6, b, b_bytes);
        _tile_loadd(4, a0 + k, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (has_b1) {
            _tile_loadd(7, b + COLUMNS, b_bytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (has_a1) {
            _tile_loadd(5, a1 + k, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
            if (has_b1)
                _tile_dpbf16ps(3, 5, 7);
        }
    }
}

/* As many lines of what is read next as a tile of words has. */
INLINE const unsigned char *fetch(const unsigned char *next)
{
    if (!next)
        return NULL;
    for (uint32_t i = 0; i < AMX_ROWS; i++)
        _mm_prefetch((const char *)next + i * AMX_LINE, _MM_HINT_T0);
    return next + AMX_ROWS * AMX_LINE;
}

/* Sums are tiles 0 to 3 of one tile of rows. */
INLINE void multiply_few(const struct work *w, uint32_t column)
{
    const struct bf16_tile *t = w->t;
    const uint32_t *a = rows_at(w, 0);
    const size_t a_bytes = t->a_stride * sizeof(*t->a);
    const size_t b_bytes = t->b_stride * sizeof(*t->b);
    const unsigned char *next = bf16_tile_next(t, column);

    AMX_MEMORY_BARRIER();
    for (uint32_t k = 0; k < t->n_pair; k += BF16_STEP_PAIRS) {
        const uint32_t *b = words_at(t, k, column);

        _tile_loadd(4, a + k, a_bytes);
        _tile_loadd(6, b, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        next = fetch(next);
        _tile_loadd(7, b + COLUMNS, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
        next = fetch(next);
        _tile_loadd(6, b + 2 * COLUMNS, b_bytes);
        _tile_dpbf16ps(2, 4, 6);
        next = fetch(next);
        _tile_loadd(7, b + 3 * COLUMNS, b_bytes);
        _tile_dpbf16ps(3, 4, 7);
        next = fetch(next);
    }
}

static void store_sums(struct work *w)
{
    _tile_stored(0, w->sum[0], AMX_LINE);
    _tile_stored(1, w->sum[1], AMX_LINE);
    _tile_stored(2, w->sum[2], AMX_LINE);
    _tile_stored(3, w->sum[3], AMX_LINE);
    AMX_MEMORY_BARRIER();
}

/* One tile of sums to the results. */
static void put_tile(const struct work *w, uint32_t i, uint32_t tile,
                     uint32_t column)
{
    const struct bf16_tile *t = w->t;
    const uint32_t first = first_row(w, tile);

    for (uint32_t r = tile * w->tile_rows - first; r < w->tile_rows; r++) {
        const uint32_t row = first + r;
        float *c = t->c + row * t->c_stride + column;
        __m512 y =
            _mm512_add_ps(_mm512_load_ps(w->sum[i][r]), _mm512_setzero_ps());

        if (t->keep)
            y = _mm512_fmadd_ps(_mm512_loadu_ps(c),
                                _mm512_set1_ps(t->keep[row]),
                                _mm512_mul_ps(y, _mm512_set1_ps(t->take[row])));
        _mm512_storeu_ps(c, y);
    }
}

INLINE void square(struct work *w, uint32_t tile, uint32_t column, bool has_a1,
                   bool has_b1)
{
    amx_clear_sums();
    multiply_square(w, tile, column, has_a1, has_b1);
    store_sums(w);
    for (uint32_t i = 0; i < 4; i++)
        if ((has_a1 || i < 2) && (has_b1 || i % 2 == 0))
            put_tile(w, i, tile + i / 2, column + i % 2 * COLUMNS);
}

INLINE void all_rows(struct work *w, uint32_t column, bool has_b1)
{
    uint32_t tile = 0;

    for (; tile + 1 < w->n_tile; tile += 2)
        square(w, tile, column, true, has_b1);
    if (tile < w->n_tile)
        square(w, tile, column, false, has_b1);
}

void bf16_tile_tile_amx(const struct bf16_tile *t)
{
    uint32_t column = 0;
    struct work w; /* whose sums need no zeros */

    if (t->n_pair % BF16_STEP_PAIRS || t->n_near % BF16_STEP_PAIRS ||
        t->n_col % COLUMNS) {
        bf16_tile_tile_avx512(t);
        return;
    }
    w.t = t;
    w.n_tile = (t->n_row + AMX_ROWS - 1) / AMX_ROWS;
    w.tile_rows = (t->n_row + w.n_tile - 1) / w.n_tile;
    amx_configure(w.tile_rows);
    if (w.n_tile == 1)
        for (; column + 4 * COLUMNS <= t->n_col; column += 4 * COLUMNS) {
            amx_clear_sums();
            multiply_few(&w, column);
            store_sums(&w);
            for (uint32_t i = 0; i < 4; i++)
                put_tile(&w, i, 0, column + i * COLUMNS);
        }
    for (; column + 2 * COLUMNS <= t->n_col; column += 2 * COLUMNS)
        all_rows(&w, column, true);
    if (column < t->n_col)
        all_rows(&w, column, false);
}
