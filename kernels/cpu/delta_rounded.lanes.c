#include "kernels/cpu/delta_rounded.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/pairs.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#if defined(LANES_BF16)
#include "kernels/cpu/cpu.h"
#endif

#define FETCH_AHEAD 6u /* rows */
#define FOLD_ROWS 64u  /* dims of S0 at once */
#define WORDS (GRID / 2u)

/*
 * Task: one k-head of one span with its v-heads. Rows are taken in parts that
 * end at grid points, so that within a part the state S0 stands still and all
 * but the triangle next to the diagonal are products, given to the kernel that
 * multiplies activations with packed weights: left sides are rows of its
 * elements, right sides panels of words like LINEAR_BF16. The rings are such
 * right sides but for their panels; a part works on copies, whose steps
 * behind the part are zero, and a chunk that it fills never sees the rings.
 */
struct part {
    const struct delta_args *args;
    const struct delta_span *span;
    struct product_kernel kernel;
    uint32_t k_head;
    size_t row;          /* first row, of the whole batch */
    uint32_t first, end; /* indices in the grid chunk */
    uint32_t n_row;
    uint32_t n_step;   /* d_k with its padding */
    uint32_t n_panel;  /* of d_v */
    void *kq;          /* [2 n_row][n_step]: keys, then queries */
    uint16_t *k;       /* [n_row][n_step]: keys again, as bf16 */
    uint32_t *key;     /* [GRID / 16][n_step / 2][16] */
    uint32_t *s;       /* [n_panel][n_step / 2][16] */
    uint32_t *u;       /* [n_panel][WORDS][16] */
    float *dot;        /* [2 n_row][GRID]: k_i . k_j, then q_i . k_j */
    float *read;       /* [2 n_row][d_v]: a, then c */
    float *w;          /* [n_row][GRID] */
    void *far, *x;     /* [n_row][GRID]: ~w_ij of former blocks, ~x_ij */
    float *acc;        /* [DELTA_BLOCK][d_v] */
    float *near;       /* [DELTA_BLOCK][n_panel][16]: u of this block */
    void *aged;        /* [FOLD_ROWS][GRID] exp(G_63 - G_j) k_j, for the fold */
    float *folded;     /* [FOLD_ROWS][d_v] */
    float *since_grid; /* [GRID] exp(G_j) */
    void *scratch;     /* the kernel's */
};

/* One v-head of a part. */
struct head {
    float *s;       /* [d_k][d_v] */
    uint32_t *u;    /* [WORDS][d_v] of its ring */
    double *g;      /* [GRID] */
    const float *v; /* rows of qkv_stride */
    float *out;     /* rows of out_stride */
    size_t at;      /* v-head, index into beta and log_decay */
};

static void *take(char **scratch, size_t n, size_t element_bytes)
{
    char *start = *scratch;
    *scratch += (n * element_bytes + 63) / 64 * 64;
    return start;
}

static void place(struct part *p, char *scratch)
{
    char *const start = scratch;
    const size_t n = p->n_row, element = p->kernel.element_bytes;
    const size_t d_v = p->args->shape.d_v, word = sizeof(uint32_t);

    p->kq = take(&scratch, 2 * n * p->n_step, element);
    p->k = element == sizeof(*p->k)
               ? p->kq
               : take(&scratch, n * p->n_step, sizeof(*p->k));
    p->key = take(&scratch, (size_t)GRID * p->n_step / 2, word);
    p->s = take(&scratch, (size_t)p->n_panel * LANES * p->n_step / 2, word);
    p->u = take(&scratch, (size_t)p->n_panel * LANES * WORDS, word);
    p->dot = take(&scratch, 2 * n * GRID, sizeof(float));
    p->read = take(&scratch, 2 * n * d_v, sizeof(float));
    p->w = take(&scratch, n * GRID, sizeof(float));
    p->far = take(&scratch, n * GRID, element);
    p->x = take(&scratch, n * GRID, element);
    p->acc = take(&scratch, DELTA_BLOCK * d_v, sizeof(float));
    p->near =
        take(&scratch, (size_t)DELTA_BLOCK * p->n_panel * LANES, sizeof(float));
    p->aged = take(&scratch, (size_t)FOLD_ROWS * GRID, element);
    p->folded = take(&scratch, FOLD_ROWS * d_v, sizeof(float));
    p->since_grid = take(&scratch, GRID, sizeof(float));
    p->scratch = start + POOL_SCRATCH_BYTES - PRODUCT_SCRATCH_BYTES;
    assert(scratch <= (char *)p->scratch);
}

/* Rounded, into a left side's elements from `at` on. */
LANES_INLINE void put(const struct part *p, void *rows, size_t at, v16 v)
{
    if (p->kernel.element_bytes == sizeof(uint16_t))
        pairs_store_row((uint16_t *)rows + at, v);
    else
        v16_store((float *)rows + at, pairs_round(v));
}

static const void *element_at(const struct part *p, const void *rows, size_t at)
{
    return (const char *)rows + at * p->kernel.element_bytes;
}

/* ------------------------------------------------------------------- rings */

/* Word `pair` of token j in the panels of keys. */
static uint32_t *key_at(const struct part *p, size_t pair, size_t j)
{
    return p->key + (j / LANES * (p->n_step / 2) + pair) * LANES + j % LANES;
}

static uint32_t *u_at(const struct part *p, size_t panel, size_t word)
{
    return p->u + (panel * WORDS + word) * LANES;
}

static uint32_t *ring_of_keys(const struct part *p)
{
    const size_t n_pair = (p->args->shape.d_k + 1) / 2;

    return (uint32_t *)p->span->state.ring_k + p->k_head * n_pair * GRID;
}

/* What the ring has of this chunk; the padding is zero. */
static void load_keys(const struct part *p)
{
    const size_t n_pair = (p->args->shape.d_k + 1) / 2;
    const uint32_t *ring = ring_of_keys(p);

    for (size_t j = 0; j < GRID; j += LANES) {
        for (size_t d = 0; d < n_pair && j < p->first; d++)
            memcpy(key_at(p, d, j), ring + d * GRID + j, LANES * sizeof(*ring));
        if (n_pair < p->n_step / 2)
            memset(key_at(p, n_pair, j), 0,
                   (p->n_step / 2 - n_pair) * LANES * sizeof(*ring));
    }
}

/* The part's keys, whose lanes are tokens, four at a time where they stand
 * together. */
static void turn_keys(const struct part *p)
{
    const uint32_t *k = (const uint32_t *)(const void *)p->k;
    const uint32_t n_pair = p->n_step / 2;
    uint32_t n;

    for (uint32_t j = p->first; j < p->end; j += n, k += (size_t)n * n_pair) {
        n = j % 4 || j + 4 > p->end ? 1 : 4;
        if (n == 4)
            for (uint32_t d = 0; d < n_pair; d += 4)
                pairs_turn(key_at(p, d, j), LANES, k + d, n_pair);
        else
            for (uint32_t d = 0; d < n_pair; d++)
                *key_at(p, d, j) = k[d];
    }
}

static void store_keys(const struct part *p)
{
    const size_t n_pair = (p->args->shape.d_k + 1) / 2;
    uint32_t *ring = ring_of_keys(p);

    for (size_t d = 0; d < n_pair; d++)
        for (size_t j = p->first, n; j < p->end; j += n) {
            n = LANES - j % LANES < p->end - j ? LANES - j % LANES : p->end - j;
            memcpy(ring + d * GRID + j, key_at(p, d, j), n * sizeof(*ring));
        }
}

/* Words of known tokens, a half of the last perhaps; zero behind them. */
static void load_u(const struct part *p, const struct head *head)
{
    const uint32_t d_v = p->args->shape.d_v, n_word = (p->first + 1) / 2;

    memset(p->u, 0, (size_t)p->n_panel * WORDS * LANES * sizeof(*p->u));
    for (uint32_t m = 0; m < n_word; m++) {
        const uint32_t keep = 2 * m + 1 < p->first ? UINT32_MAX : UINT16_MAX;
        const uint32_t *from = head->u + (size_t)m * d_v;

        for (uint32_t e = 0; e < d_v; e++)
            u_at(p, e / LANES, m)[e % LANES] = from[e] & keep;
    }
}

static void store_u(const struct part *p, const struct head *head)
{
    const uint32_t d_v = p->args->shape.d_v;

    for (uint32_t m = p->first / 2; m < (p->end + 1) / 2; m++)
        for (uint32_t e = 0; e < d_v; e += LANES)
            memcpy(head->u + (size_t)m * d_v + e, u_at(p, e / LANES, m),
                   (d_v - e < LANES ? d_v - e : LANES) * sizeof(*head->u));
}

/* ------------------------------------------------------------------- steps */

static void fetch(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += LANES)
        _mm_prefetch((const char *)(x + i), _MM_HINT_T0);
}

/* Rows lie pages apart, where the processor foresees nothing: ask early for
 * what row r brings of this k-head and its v-heads. */
static void fetch_row(const struct part *p, size_t r)
{
    const struct delta_args *a = p->args;
    const uint32_t per_k = a->shape.n_v_head / a->shape.n_k_head;
    const size_t row = (p->row + r) * a->qkv_stride;
    const size_t n_v = (size_t)per_k * a->shape.d_v;

    if (r >= p->n_row)
        return;
    fetch(a->k + row + (size_t)p->k_head * a->shape.d_k, a->shape.d_k);
    fetch(a->q + row + (size_t)p->k_head * a->shape.d_k, a->shape.d_k);
    fetch(a->v + row + p->k_head * n_v, (uint32_t)n_v);
}

/* One row of k or q, normalised and scaled, in elements and, for keys that are
 * not that already, in bf16. */
static void put_unit(const struct part *p, size_t at, const float *x,
                     float scale, bool is_key)
{
    const uint32_t d_k = p->args->shape.d_k;
    const struct delta_unit by = delta_unit(x, d_k, scale);

    for (uint32_t d = 0; d < p->n_step; d += LANES) {
        v16 v = d < d_k ? delta_unit_part(by, x, d, d_k) : v16_zero();
        put(p, p->kq, at + d, v);
        if (is_key && (void *)p->k != p->kq)
            pairs_store_row(p->k + at + d, v);
    }
}

/* Dots of the part's rows of one block with all tokens up to that block. */
static void dot_block(const struct part *p, uint32_t from, uint32_t end)
{
    for (uint32_t side = 0; side < 2; side++) {
        const size_t r = side * p->n_row + from - p->first;

        p->kernel.work(&(struct product_tile){
            .c = p->dot + r * GRID,
            .c_stride = GRID,
            .a = element_at(p, p->kq, r * p->n_step),
            .a_stride = p->n_step,
            .b = p->key,
            .b_stride = (size_t)p->n_step / 2 * LANES * sizeof(*p->key),
            .n_row = end - from,
            .n_col = (end + LANES - 1) / LANES * LANES,
            .n_in = p->n_step,
            .n_step = p->n_step,
            .scratch = p->scratch});
    }
}

static uint32_t block_end(const struct part *p, uint32_t from)
{
    const uint32_t end = from / DELTA_BLOCK * DELTA_BLOCK + DELTA_BLOCK;

    return end < p->end ? end : p->end;
}

/* Normalise keys and queries, turn the keys into a right side and take all
 * dots. */
static void prepare(const struct part *p)
{
    const struct delta_args *a = p->args;
    const float q_scale = 1.0f / sqrtf((float)a->shape.d_k);

    load_keys(p);
    for (size_t r = 0; r < p->n_row; r++) {
        const size_t at =
            (p->row + r) * a->qkv_stride + (size_t)p->k_head * a->shape.d_k;

        fetch_row(p, r + FETCH_AHEAD);
        put_unit(p, r * p->n_step, a->k + at, 1.0f, true);
        put_unit(p, (p->n_row + r) * p->n_step, a->q + at, q_scale, false);
    }
    turn_keys(p);
    if (p->end < GRID)
        store_keys(p);
    for (uint32_t i = p->first, end; i < p->end; i = end) {
        end = block_end(p, i);
        dot_block(p, i, end);
    }
}

/* S0 as a right side; a and c of all rows out of it. */
static void read_state(const struct part *p, const struct head *head)
{
    const uint32_t d_k = p->args->shape.d_k, d_v = p->args->shape.d_v;

    for (uint32_t e = 0; e < d_v; e += LANES) {
        uint32_t *to = p->s + (size_t)e * p->n_step / 2;

        for (uint32_t d = 0; d < p->n_step; d += 2, to += LANES) {
            const float *s = head->s + (size_t)d * d_v;
            v16 low = d < d_k ? v16_load_part(s, e, d_v) : v16_zero();
            v16 high =
                d + 1 < d_k ? v16_load_part(s + d_v, e, d_v) : v16_zero();
            pairs_store(to, low, high);
        }
    }
    p->kernel.work(&(struct product_tile){.c = p->read,
                                          .c_stride = d_v,
                                          .a = p->kq,
                                          .a_stride = p->n_step,
                                          .b = p->s,
                                          .b_stride = (size_t)p->n_step / 2 *
                                                      LANES * sizeof(*p->s),
                                          .n_row = 2 * p->n_row,
                                          .n_col = d_v,
                                          .n_in = p->n_step,
                                          .n_step = p->n_step,
                                          .scratch = p->scratch});
}

/* Decays and weights of every row. */
static void weigh(const struct part *p, const struct head *head)
{
    const struct delta_args *a = p->args;

    for (uint32_t r = 0; r < p->n_row; r++) {
        const uint32_t i = p->first + r, near = i / DELTA_BLOCK * DELTA_BLOCK;
        const double before = i ? head->g[i - 1] : 0.0;
        const float step =
            a->log_decay[(p->row + r) * a->shape.n_v_head + head->at];
        const size_t at = (size_t)r * GRID;
        const float *qk = p->dot + (size_t)p->n_row * GRID + at;

        head->g[i] = before + (double)step;
        /* Tokens behind i hold anything; nobody reads their w. */
        for (uint32_t j = 0; j < GRID; j += LANES) {
            v16 w = v16_zero(), x = v16_zero();
            if (j <= i) {
                v16 decay = v16_exp(v16_difference(head->g[i], head->g + j));
                w = v16_mul(decay, v16_load(p->dot + at + j));
                x = v16_mul(decay, v16_load(qk + j));
                x = v16_first(x, v16_zero(), i + 1 - j);
                v16_store(p->w + at + j, w);
            }
            put(p, p->far, at + j, j < near ? w : v16_zero());
            put(p, p->x, at + j, x);
        }
    }
    for (uint32_t j = 0; j < p->end; j += LANES) {
        /* -(0 - G) is G to the last bit. */
        v16 g = v16_negate(v16_difference(0.0, head->g + j));
        v16_store(p->since_grid + j, v16_exp(g));
    }
}

/* Part rows [r, r + n_row) of weights times u of the first n_step tokens. */
struct ring_sum {
    const void *weight;
    uint32_t r, n_row, n_step;
    float *c;
    size_t c_stride;
};

static void sum_ring(const struct part *p, struct ring_sum sum)
{
    p->kernel.work(&(struct product_tile){
        .c = sum.c,
        .c_stride = sum.c_stride,
        .a = element_at(p, sum.weight, (size_t)sum.r * GRID),
        .a_stride = GRID,
        .b = p->u,
        .b_stride = WORDS * LANES * sizeof(*p->u),
        .n_row = sum.n_row,
        .n_col = p->args->shape.d_v,
        .n_in = sum.n_step,
        .n_step = sum.n_step,
        .scratch = p->scratch});
}

/* Vectors that go side by side down a row of the triangle. */
#define SIDE 4u

/* u of row i for `width` panels from `panel` on; that of the tokens from
 * `near` on lies in p->near. */
LANES_INLINE void solve_panels(const struct part *p, const struct head *head,
                               uint32_t i, uint32_t panel, uint32_t width)
{
    const struct delta_args *a = p->args;
    const uint32_t d_v = a->shape.d_v, near = i / DELTA_BLOCK * DELTA_BLOCK;
    const size_t r = i - p->first, row = p->row + r,
                 stride = p->n_panel * LANES;
    const float *w = p->w + r * GRID + near;
    const v16 decay = v16_set1(p->since_grid[i]), zero = v16_zero();
    const v16 beta = v16_set1(a->beta[row * a->shape.n_v_head + head->at]);
    float *u = p->near + panel * LANES;
    v16 sum[SIDE];

#pragma GCC unroll 4
    for (uint32_t k = 0; k < width; k++) {
        const uint32_t e = (panel + k) * LANES;
        v16 read = v16_load_part(p->read + r * d_v, e, d_v);
        v16 acc = v16_load_part(p->acc + (i - near) * d_v, e, d_v);
        v16 v = v16_load_part(head->v + row * a->qkv_stride, e, d_v);
        sum[k] = v16_fnma(decay, v16_add(read, zero), v);
        if (near)
            sum[k] = v16_sub(sum[k], v16_add(acc, zero));
    }
    for (uint32_t j = 0; j < i - near; j++, u += stride) {
        const v16 by = v16_set1(w[j]);
#pragma GCC unroll 4
        for (uint32_t k = 0; k < width; k++)
            sum[k] = v16_fnma(by, v16_load(u + k * LANES), sum[k]);
    }
#pragma GCC unroll 4
    for (uint32_t k = 0; k < width; k++) {
        uint32_t *word = u_at(p, panel + k, i / 2);
        v16 high, low = v16_load_bf16(word, &high);

        sum[k] = pairs_round(v16_mul(beta, sum[k]));
        v16_store(u + k * LANES, sum[k]);
        if (i % 2)
            pairs_store(word, low, sum[k]);
        else
            pairs_store(word, sum[k], high);
    }
}

/* u of a block's rows that the ring had before. */
static void widen_near(const struct part *p, uint32_t near)
{
    float *u = p->near;

    for (uint32_t j = near; j < p->first; j++)
        for (uint32_t e = 0; e < p->n_panel; e++, u += LANES) {
            v16 high, low = v16_load_bf16(u_at(p, e, j / 2), &high);
            v16_store(u, j % 2 ? high : low);
        }
}

/* u of all rows: forward substitution, former blocks by a product, the rows of
 * a block one by one. */
static void solve(const struct part *p, const struct head *head)
{
    widen_near(p, p->first / DELTA_BLOCK * DELTA_BLOCK);
    for (uint32_t from = p->first, end; from < p->end; from = end) {
        const uint32_t near = from / DELTA_BLOCK * DELTA_BLOCK;
        const size_t d_v = p->args->shape.d_v;

        end = block_end(p, from);
        if (near)
            sum_ring(p, (struct ring_sum){.weight = p->far,
                                          .r = from - p->first,
                                          .n_row = end - from,
                                          .n_step = (near + LINEAR_STEP - 1) /
                                                    LINEAR_STEP * LINEAR_STEP,
                                          .c = p->acc + (from - near) * d_v,
                                          .c_stride = d_v});
        for (uint32_t i = from; i < end; i++) {
            uint32_t e = 0;

            for (; e + SIDE <= p->n_panel; e += SIDE)
                solve_panels(p, head, i, e, SIDE);
            for (; e < p->n_panel; e++)
                solve_panels(p, head, i, e, 1);
        }
    }
}

/* o of part rows [r, r + n_row), which see no token from n_step on. */
static void answer_rows(const struct part *p, const struct head *head,
                        uint32_t r, uint32_t n_row, uint32_t n_step)
{
    const struct delta_args *a = p->args;
    const uint32_t d_v = a->shape.d_v;
    float *out = head->out + (p->row + r) * a->out_stride;

    sum_ring(p, (struct ring_sum){p->x, r, n_row, n_step, out, a->out_stride});
    for (uint32_t end = r + n_row; r < end; r++, out += a->out_stride) {
        const float *read = p->read + (size_t)(p->n_row + r) * d_v;
        const v16 decay = v16_set1(p->since_grid[p->first + r]);

        for (uint32_t e = 0; e < d_v; e += LANES) {
            v16 c = v16_add(v16_load_part(read, e, d_v), v16_zero());
            v16 ring = v16_add(v16_load_part(out, e, d_v), v16_zero());
            v16_store_part(out, v16_fma(decay, c, ring), e, d_v);
        }
    }
}

/* o of all rows, now that every u is known; blocks of 32 steps that a row does
 * not see are left out, which shows in no bit. */
static void answer(const struct part *p, const struct head *head)
{
    const uint32_t half = p->first < LINEAR_STEP ? LINEAR_STEP - p->first : 0;
    const uint32_t n = p->n_row < half ? p->n_row : half;

    if (n)
        answer_rows(p, head, 0, n, LINEAR_STEP);
    if (n < p->n_row)
        answer_rows(p, head, n, p->n_row - n, GRID);
}

/* Keys of dims [d, end), aged, as a left side. */
static void age_keys(const struct part *p, const struct head *head, uint32_t d,
                     uint32_t end)
{
    for (uint32_t j = 0; j < GRID; j += LANES) {
        const v16 age = v16_exp(v16_difference(head->g[GRID - 1], head->g + j));

        for (uint32_t k = d; k < end; k += 2) {
            v16 high, low = v16_load_bf16(key_at(p, k / 2, j), &high);
            const size_t at = (size_t)(k - d) * GRID + j;

            put(p, p->aged, at, v16_mul(age, low));
            put(p, p->aged, at + GRID, v16_mul(age, high));
        }
    }
}

/* The ring of a full chunk into the state, FOLD_ROWS dims at a time. */
static void fold(const struct part *p, const struct head *head)
{
    const uint32_t d_k = p->args->shape.d_k, d_v = p->args->shape.d_v;
    const v16 whole = v16_set1(p->since_grid[GRID - 1]);

    for (uint32_t d = 0, end; d < d_k; d = end) {
        end = d_k - d < FOLD_ROWS ? d_k : d + FOLD_ROWS;
        age_keys(p, head, d, end);
        sum_ring(p,
                 (struct ring_sum){p->aged, 0, end - d, GRID, p->folded, d_v});
        for (uint32_t k = d; k < end; k++) {
            const float *sum = p->folded + (size_t)(k - d) * d_v;
            float *s = head->s + (size_t)k * d_v;

            for (uint32_t e = 0; e < d_v; e += LANES) {
                v16 ring = v16_add(v16_load_part(sum, e, d_v), v16_zero());
                v16 old = v16_load_part(s, e, d_v);
                v16_store_part(s, v16_fma(whole, old, ring), e, d_v);
            }
        }
    }
}

/* ------------------------------------------------------------------- tasks */

static void run_part(const struct part *p)
{
    const struct delta_args *a = p->args;
    const struct delta_shape shape = a->shape;
    const struct delta_state *state = &p->span->state;
    const size_t per_k = shape.n_v_head / shape.n_k_head;
    const size_t d_k = shape.d_k, d_v = shape.d_v;

    prepare(p);
    for (size_t h = p->k_head * per_k; h < (p->k_head + 1) * per_k; h++) {
        const struct head head = {.s = state->s + h * d_k * d_v,
                                  .u = (uint32_t *)state->ring_u +
                                       h * WORDS * d_v,
                                  .g = state->ring_g + h * GRID,
                                  .v = a->v + h * d_v,
                                  .out = a->out + h * d_v,
                                  .at = h};
        read_state(p, &head);
        weigh(p, &head);
        load_u(p, &head);
        solve(p, &head);
        answer(p, &head);
        if (p->end < GRID)
            store_u(p, &head);
        else
            fold(p, &head);
    }
}

/* One last row that fills no chunk. */
static bool is_alone(const struct delta_span *span, uint32_t t)
{
    return t + 1 == span->n_row && (span->position + t) % GRID != GRID - 1;
}

struct job {
    const struct delta_args *args;
    struct product_kernel kernel;
};

static void task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct delta_args *a = job->args;
    const struct delta_span *span = &a->span[task / a->shape.n_k_head];
    uint32_t n_row;

    for (uint32_t t = 0; t < span->n_row; t += n_row) {
        const uint32_t first = (uint32_t)((span->position + t) % GRID);
        struct part part = {.args = a,
                            .span = span,
                            .kernel = job->kernel,
                            .k_head = task % a->shape.n_k_head,
                            .row = (size_t)span->first_row + t,
                            .first = first,
                            .n_step = (a->shape.d_k + LINEAR_STEP - 1) /
                                      LINEAR_STEP * LINEAR_STEP,
                            .n_panel = (a->shape.d_v + LANES - 1) / LANES};

        if (is_alone(span, t)) {
            LANES_NAME(delta_one)
            (&(struct delta_one){a, &span->state, part.row, part.k_head, first},
             scratch);
            return;
        }
        n_row = GRID - first < span->n_row - t ? GRID - first : span->n_row - t;
        part.n_row = n_row;
        part.end = first + n_row;
        place(&part, scratch);
        run_part(&part);
    }
}

void LANES_NAME(delta_rounded)(struct pool *pool, const struct delta_args *args,
                               const struct product_kernels *kernels)
{
    const struct delta_shape shape = args->shape;
    struct job job = {
        args, product_kernel_of(kernels, shape.arithmetic, LINEAR_BF16)};
    uint64_t n_row = 0;

    assert(shape.d_k <= HEAD_DIM_MAX && shape.d_v <= HEAD_DIM_MAX);
    assert(shape.n_v_head % shape.n_k_head == 0);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    pool =
        pool_for_fmas(pool, n_row * shape.n_v_head * shape.d_k * shape.d_v / 4);
    pool_run(pool, args->n_span * shape.n_k_head, task, &job);
}

#if defined(LANES_BF16)
void delta_avx512_bf16(struct pool *pool, const struct delta_args *args)
{
    if (args->shape.arithmetic == ARITHMETIC_FP32)
        delta_avx512(pool, args);
    else
        delta_rounded_avx512_bf16(pool, args, &product_kernels_avx512_bf16);
}

void delta_amx(struct pool *pool, const struct delta_args *args)
{
    if (args->shape.arithmetic == ARITHMETIC_FP32)
        delta_avx512(pool, args);
    else
        delta_rounded_avx512_bf16(pool, args, &product_kernels_amx);
}
#endif
