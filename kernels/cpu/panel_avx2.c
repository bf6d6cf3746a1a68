/*
 * Products with packed weights by AVX2: see panel.h. Register tiles of up to 12
 * chains (6 rows by 16 outputs): their fused multiply-adds keep two of four
 * pipes busy, and widening weights goes through the others, so that every tile
 * widens for itself. What counts beside them is the number of instructions: a
 * core that another machine shares takes three a cycle. Sums start and end in
 * the first-level cache.
 */
#include "kernels/cpu/panel.h"

#include <string.h>

#define HEIGHT_MAX 6u
#define WIDTH_MAX 4u
#define HALF (LANES / 2)
/* Steps. While one passes, the next is asked for; at the end of the panels, the
 * first of those that come then. */
#define STRETCH LINEAR_GROUP
/* Rows that pass by some panels before the next are taken. */
#define ROWS_MAX 48u

#define FAR_GROUPS 8u
#define UNIT_PANELS 8u /* of one row */

/* What a cell is: constants where it is inlined. */
struct shape {
    enum linear_type type;
    enum arithmetic order;
    uint32_t height, width; /* rows, panels */
};

/* Some steps of some panels that meet some rows. */
struct cell {
    const float *a; /* rows */
    size_t a_stride;
    const unsigned char *b; /* packed */
    size_t b_stride;
    ptrdiff_t ahead; /* bytes from the last stretch to what comes then */
    float *sum;      /* [height] rows, the panels side by side */
    size_t sum_stride;
    uint32_t n; /* steps */
};

typedef __m256 sums[HEIGHT_MAX][2 * WIDTH_MAX];

/* Where a cell stands. Row r of a from a base every third row: x86 addresses
 * base + 2 * stride. */
struct cursor {
    const float *a[2];
    size_t a_stride;
    const unsigned char *b;
    size_t b_stride;
    ptrdiff_t ahead; /* bytes from b to what is asked for */
};
#define ROW(at, r) ((at)->a[(r) / 3] + (r) % 3 * (at)->a_stride)

#define EACH_ROW _Pragma("GCC unroll 6") for (uint32_t r = 0; r < height; r++)
#define EACH_HALF                                                              \
    _Pragma("GCC unroll 8") for (uint32_t h = 0; h < 2 * width; h++)

LANES_INLINE uint32_t step_bytes(enum linear_type type)
{
    return type == LINEAR_W8 ? LANES : 2 * LANES;
}

/* Half h of the panels' weights of step k. */
LANES_INLINE __m256 weights(const struct cursor *at, struct shape shape,
                            uint32_t k, uint32_t h)
{
    const unsigned char *b = at->b + h / 2 * at->b_stride;
    const uint32_t half = h % 2;

    if (shape.type == LINEAR_W8) {
        const void *q = b + k * LANES + half * HALF;

        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(q)));
    }
    b += k / 2 * 4 * LANES + half * 4 * HALF;

    __m256i words = _mm256_loadu_si256((const void *)b);

    if (k % 2)
        return v8_high(_mm256_castsi256_ps(words));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

/* _mm256_fmadd_ps() in place: gcc likes to put sums elsewhere, until it has no
 * register left and keeps some in memory. */
LANES_INLINE __m256 onto(__m256 x, __m256 w, __m256 sum)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
    return sum;
}

/* Step k from where the cursor stands. Tall tiles keep weights in registers
 * while rows pass by, wide ones the rows. */
LANES_INLINE void step(const struct cursor *at, struct shape shape, uint32_t k,
                       sums sum)
{
    const uint32_t height = shape.height, width = shape.width;

    if (width == 1) {
        const __m256 a = weights(at, shape, k, 0);
        const __m256 b = weights(at, shape, k, 1);

        EACH_ROW
        {
            const __m256 x = _mm256_set1_ps(ROW(at, r)[k]);

            sum[r][0] = onto(x, a, sum[r][0]);
            sum[r][1] = onto(x, b, sum[r][1]);
        }
    } else {
        __m256 x[3];

        EACH_ROW x[r] = _mm256_set1_ps(ROW(at, r)[k]);
        EACH_HALF
        {
            const __m256 w = weights(at, shape, k, h);

            EACH_ROW sum[r][h] = onto(x[r], w, sum[r][h]);
        }
    }
    if (shape.type == LINEAR_BF16)
        __asm__ volatile("" ::: "memory"); /* or words of two steps wait */
}

enum steps { BOTH, EVEN, ODD };

/* Steps k and k + 1, or one of them. */
LANES_INLINE void pair(const struct cursor *at, struct shape shape,
                       enum steps which, uint32_t k, sums sum)
{
    if (which == ODD || (which == BOTH && shape.order == ARITHMETIC_PAIR))
        step(at, shape, k + 1, sum);
    if (which != ODD)
        step(at, shape, k, sum);
    if (which == BOTH && shape.order == ARITHMETIC_FP32)
        step(at, shape, k + 1, sum);
}

/* A line of each panel: two steps of BF16, four of W8. */
LANES_INLINE void fetch(const struct cursor *at, struct shape shape,
                        uint32_t offset)
{
    const char *b = (const char *)at->b + at->ahead + offset;

#pragma GCC unroll 4
    for (uint32_t p = 0; p < shape.width; p++)
        _mm_prefetch(b + p * at->b_stride, _MM_HINT_T0);
}

LANES_INLINE void advance(struct cursor *at, struct shape shape, uint32_t n)
{
    at->a[0] += n;
    at->a[1] += n;
    at->b += n * step_bytes(shape.type);
}

/* n / 2 pairs of steps. */
LANES_INLINE void run_pairs(struct cursor *at, uint32_t n, struct shape shape,
                            enum steps which, sums sum)
{
    for (uint32_t k = 0; k + 3 < n; k += 4) {
        if (which != ODD)
            fetch(at, shape, 0);
        pair(at, shape, which, 0, sum);
        if (which != ODD && shape.type == LINEAR_BF16)
            fetch(at, shape, 2 * step_bytes(shape.type));
        pair(at, shape, which, 2, sum);
        advance(at, shape, 4);
    }
    if (n & 2) {
        pair(at, shape, which, 0, sum);
        advance(at, shape, 2);
    }
}

LANES_INLINE void clear(uint32_t height, uint32_t width, sums sum)
{
    EACH_ROW EACH_HALF sum[r][h] = _mm256_setzero_ps();
}

/* Up to a stretch, onto `sum`. */
LANES_INLINE void run_steps(struct cursor *at, uint32_t n, struct shape shape,
                            sums sum)
{
    const uint32_t height = shape.height, width = shape.width;

    if (shape.order != ARITHMETIC_TILE) {
        run_pairs(at, n, shape, BOTH, sum);
        if (n % 2) /* of FP32 alone, and the last of all */
            step(at, shape, 0, sum);
        return;
    }
    for (uint32_t k = 0; k < n; k += LINEAR_STEP) {
        struct cursor again = *at;
        sums even, odd;

        clear(height, width, even);
        run_pairs(at, LINEAR_STEP, shape, EVEN, even);
        clear(height, width, odd);
        run_pairs(&again, LINEAR_STEP, shape, ODD, odd);
        EACH_ROW EACH_HALF sum[r][h] =
            _mm256_add_ps(sum[r][h], _mm256_add_ps(even[r][h], odd[r][h]));
    }
}

/* A stretch of BF16 goes on where the one before it ended. */
LANES_INLINE void run_bf16(const struct cell *cell, struct cursor *at,
                           struct shape shape)
{
    const uint32_t height = shape.height, width = shape.width;
    sums sum;

    EACH_ROW EACH_HALF sum[r][h] =
        _mm256_loadu_ps(cell->sum + r * cell->sum_stride + h * HALF);
    for (uint32_t left = cell->n; left > STRETCH; left -= STRETCH)
        run_steps(at, STRETCH, shape, sum);
    at->ahead = cell->ahead;
    run_steps(at, (cell->n - 1) % STRETCH + 1, shape, sum);
    EACH_ROW EACH_HALF _mm256_storeu_ps(
        cell->sum + r * cell->sum_stride + h * HALF, sum[r][h]);
}

/* A stretch of W8 is a group: its sum from zero is scaled onto the others. */
LANES_INLINE void run_w8(const struct cell *cell, struct cursor *at,
                         struct shape shape)
{
    const uint32_t height = shape.height, width = shape.width;
    const unsigned char *b = cell->b;

    for (uint32_t k = 0; k < cell->n; k += LINEAR_GROUP) {
        const uint32_t left = cell->n - k;
        sums sum;

        clear(height, width, sum);
        if (left <= LINEAR_GROUP)
            at->ahead = cell->ahead;
        fetch(at, shape, 0); /* what the scales moved forward */
        at->b = b + sizeof(float[LINEAR_PANEL]);
        run_steps(at, left < LINEAR_GROUP ? left : LINEAR_GROUP, shape, sum);
        EACH_HALF
        {
            const void *scale = b + h / 2 * cell->b_stride;
            const __m256 s =
                _mm256_loadu_ps((const float *)scale + h % 2 * HALF);

            EACH_ROW
            {
                float *to = cell->sum + r * cell->sum_stride + h * HALF;

                _mm256_storeu_ps(
                    to, _mm256_fmadd_ps(sum[r][h], s, _mm256_loadu_ps(to)));
            }
        }
        b += sizeof(struct linear_group);
        at->b = b;
    }
}

LANES_INLINE size_t stretch_bytes(enum linear_type type)
{
    return type == LINEAR_W8 ? sizeof(struct linear_group)
                             : (size_t)STRETCH * step_bytes(type);
}

LANES_INLINE void run_cell(const struct cell *cell, struct shape shape)
{
    struct cursor at = {.a = {cell->a, cell->a + 3 * cell->a_stride},
                        .a_stride = cell->a_stride,
                        .b = cell->b,
                        .b_stride = cell->b_stride,
                        .ahead = (ptrdiff_t)stretch_bytes(shape.type)};

    if (shape.type == LINEAR_W8)
        run_w8(cell, &at, shape);
    else
        run_bf16(cell, &at, shape);
}

/* -------------------------------------------------------------- dispatch */

#define CASE(h, w)                                                             \
    case (w)*16 + (h):                                                         \
        run_cell(cell, (struct shape){type, order, h, w});                     \
        return;

#define DISPATCH(name, fixed_type, fixed_order)                                \
    static void name(const struct cell *cell, uint32_t height, uint32_t width) \
    {                                                                          \
        const enum linear_type type = fixed_type;                              \
        const enum arithmetic order = fixed_order;                             \
        switch (width * 16 + height) {                                         \
            CASE(1, 1)                                                         \
            CASE(1, 2)                                                         \
            CASE(1, 3)                                                         \
            CASE(1, 4)                                                         \
            CASE(2, 1)                                                         \
            CASE(2, 2)                                                         \
            CASE(3, 1)                                                         \
            CASE(3, 2)                                                         \
            CASE(4, 1)                                                         \
            CASE(5, 1)                                                         \
            CASE(6, 1)                                                         \
        }                                                                      \
    }
DISPATCH(fp32_bf16, LINEAR_BF16, ARITHMETIC_FP32)
DISPATCH(pair_bf16, LINEAR_BF16, ARITHMETIC_PAIR)
DISPATCH(tile_bf16, LINEAR_BF16, ARITHMETIC_TILE)
DISPATCH(fp32_w8, LINEAR_W8, ARITHMETIC_FP32)
DISPATCH(pair_w8, LINEAR_W8, ARITHMETIC_PAIR)
DISPATCH(tile_w8, LINEAR_W8, ARITHMETIC_TILE)

typedef void cell_work(const struct cell *cell, uint32_t height,
                       uint32_t width);

struct kind {
    enum linear_type type;
    enum arithmetic order;
    cell_work *work;
};

/* Panels side by side: few rows have few chains in one. */
static uint32_t width_of(uint32_t n_row)
{
    return n_row == 1 ? 4 : n_row <= 3 || n_row == 8 ? 2 : 1;
}

/* Some rows by some panels, whose sums wait here. */
struct block {
    const struct product_tile *t;
    const struct kind *kind;
    uint32_t row, n_row, panel, n_panel, n; /* steps */
    float *sum;
};

/* Eight rows are 6 by one panel and by the next, then 2 by both: 4 and 4 have
 * no more than 8 chains each. */
static void run_eight(const struct block *block, struct cell cell)
{
    struct cell six = cell;

    for (uint32_t p = 0; p < block->n_panel; p++) {
        six.ahead = cell.ahead;
        if (p + 1 < block->n_panel)
            six.ahead -= (ptrdiff_t)((block->n_panel - 1) * cell.b_stride);
        block->kind->work(&six, 6, 1);
        six.b += cell.b_stride;
        six.sum += LANES;
    }
    cell.a += 6 * cell.a_stride;
    cell.sum += 6 * cell.sum_stride;
    block->kind->work(&cell, 2, block->n_panel);
}

static void run_rows(const struct block *block, struct cell cell)
{
    const uint32_t n_tile = (block->n_row + HEIGHT_MAX - 1) / HEIGHT_MAX;
    const uint32_t height = block->n_row / n_tile;
    const uint32_t n_higher = block->n_row % n_tile;

    for (uint32_t i = 0; i < n_tile; i++) {
        const uint32_t h = height + (i < n_higher);

        block->kind->work(&cell, h, block->n_panel);
        cell.a += h * cell.a_stride;
        cell.sum += h * cell.sum_stride;
    }
}

static void put(const struct block *block)
{
    const struct product_tile *t = block->t;
    const uint32_t column = block->panel * LANES;
    const uint32_t width = block->n_panel * LANES;
    const uint32_t left = t->n_col - column;
    const uint32_t n_col = left < width ? left : width;

    for (uint32_t r = 0; r < block->n_row; r++)
        for (uint32_t i = 0; i < n_col; i += LANES) {
            const size_t row = block->row + r;
            float *c = t->c + row * t->c_stride + column + i;
            v16 y = v16_load(block->sum + (size_t)r * width + i);

            if (t->is_add)
                y = v16_add(v16_load_part(c, 0, n_col - i), y);
            if (t->onto.from)
                y = panel_onto(product_onto_at(t->onto, row, column + i),
                               n_col - i, y);
            v16_store_part(c, y, 0, n_col - i);
        }
}

static void run_block(const struct block *block)
{
    const struct product_tile *t = block->t;
    const size_t stretches =
        (block->n - 1) / STRETCH * stretch_bytes(block->kind->type);
    const struct cell cell = {
        .a = (const float *)t->a + block->row * t->a_stride,
        .a_stride = t->a_stride,
        .b = (const unsigned char *)t->b + block->panel * t->b_stride,
        .b_stride = t->b_stride,
        .ahead = (ptrdiff_t)(block->n_panel * t->b_stride - stretches),
        .sum = block->sum,
        .sum_stride = (size_t)block->n_panel * LANES,
        .n = block->n,
    };

    memset(block->sum, 0, block->n_row * cell.sum_stride * sizeof(*block->sum));
    if (block->n_row == 8)
        run_eight(block, cell);
    else
        run_rows(block, cell);
    put(block);
}

/* Few groups come from a cache, where four panels at once are faster. */
static bool is_far(const struct product_tile *t, const struct kind *kind)
{
    return t->n_row == 1 && kind->type == LINEAR_W8 &&
           t->n_step >= FAR_GROUPS * LINEAR_GROUP;
}

/*
 * One row by the two halves of the panels side by side: two runs of memory that
 * lie apart are read faster than neighbours are. Returns how many panels.
 */
static uint32_t run_halves(const struct block *block, uint32_t n_panel)
{
    const struct product_tile *t = block->t;
    const uint32_t half = n_panel / 2;
    const size_t stretches =
        (block->n - 1) / STRETCH * stretch_bytes(block->kind->type);

    for (uint32_t p = 0; p < half; p++) {
        const struct cell cell = {
            .a = (const float *)t->a + block->row * t->a_stride,
            .b = (const unsigned char *)t->b + p * t->b_stride,
            .b_stride = half * t->b_stride,
            .ahead = (ptrdiff_t)(t->b_stride - stretches),
            .sum = block->sum,
            .n = block->n,
        };

        memset(block->sum, 0, 2 * LANES * sizeof(*block->sum));
        block->kind->work(&cell, 1, 2);
        for (uint32_t i = 0; i < 2; i++) {
            struct block part = *block;

            part.panel = p + i * half;
            part.n_panel = 1;
            part.sum += i * LANES;
            put(&part);
        }
    }
    return 2 * half;
}

static void run(const struct product_tile *t, const struct kind *kind)
{
    const uint32_t n_panel = (t->n_col + LANES - 1) / LANES;
    float sum[ROWS_MAX * LANES] __attribute__((aligned(64)));
    struct block block = {
        .t = t,
        .kind = kind,
        .n = kind->order == ARITHMETIC_FP32 ? t->n_in : t->n_step,
        .sum = sum,
    };

    for (block.row = 0; block.row < t->n_row; block.row += block.n_row) {
        const uint32_t left = t->n_row - block.row;

        block.n_row = left < ROWS_MAX ? left : ROWS_MAX;
        block.panel = is_far(t, kind) ? run_halves(&block, n_panel) : 0;
        for (; block.panel < n_panel; block.panel += block.n_panel) {
            block.n_panel = width_of(block.n_row);
            if (block.n_panel > n_panel - block.panel)
                block.n_panel = n_panel - block.panel;
            run_block(&block);
        }
    }
}

#define WORK(name, type, order)                                                \
    void LANES_NAME(panel_##name)(const struct product_tile *tile)             \
    {                                                                          \
        run(tile, &(struct kind){type, order, name});                          \
    }
WORK(fp32_bf16, LINEAR_BF16, ARITHMETIC_FP32)
WORK(pair_bf16, LINEAR_BF16, ARITHMETIC_PAIR)
WORK(tile_bf16, LINEAR_BF16, ARITHMETIC_TILE)
WORK(fp32_w8, LINEAR_W8, ARITHMETIC_FP32)
WORK(pair_w8, LINEAR_W8, ARITHMETIC_PAIR)
WORK(tile_w8, LINEAR_W8, ARITHMETIC_TILE)

struct product_shape LANES_NAME(panel_shape)(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){ROWS_MAX,
                                  n_row == 1 ? UNIT_PANELS : width_of(n_row)};
}

struct product_shape LANES_NAME(panel_shape_tile)(uint32_t n_row,
                                                  uint32_t n_step)
{
    return LANES_NAME(panel_shape)(n_row, n_step);
}
