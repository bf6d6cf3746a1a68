#include "kernels/cpu/delta_rounded.h"
#include "kernels/cpu/delta_rows.h"
#include "kernels/cpu/in_order.h"
#include "kernels/cpu/ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define FETCH_AHEAD 6u /* rows */

/* The triangle next to the diagonal of a whole tile's rows stays in registers.
 * The higher tiles of AVX-512 go row by row: nobody measured it there. */
#if defined(LANES_AVX512)
#define TRIANGLE_PAYS false
#else
#define TRIANGLE_PAYS true
#endif

/*
 * Task: one k-head of one span with its v-heads. Rows are taken in parts that
 * end at grid points, so that within a part the state S0 stands still and
 * everything is a product: rows x value dimensions over d for the reads of
 * S0, rows x ring tokens over d for the dots, rows x value dimensions over
 * ring tokens for u and o, d x value dimensions over ring tokens for the fold.
 * Only the triangle next to the diagonal goes row by row.
 */
struct part {
    const struct delta_args *args;
    const struct delta_span *span;
    const struct delta_source *source;
    uint32_t k_head;
    uint32_t t;     /* first row, of the span */
    size_t row;     /* the same of the whole batch */
    uint32_t first; /* its index in the grid chunk */
    uint32_t n_row;
    float *ring_k;     /* [d_k][GRID] of this k-head */
    float *kq;         /* [2 n_row][d_k]: normalised keys, then queries */
    float *dot;        /* [2 n_row][GRID]: k_i . k_j, then q_i . k_j */
    float *read;       /* [2 n_row][d_v]: a, then c */
    float *w, *x;      /* [n_row][GRID]: -w_ij and x_ij */
    float *since_grid; /* [GRID] exp(G_j) */
    float *aged_k;     /* [d_k][GRID] exp(G_63 - G_j) k_j, for the fold */
    float *room[2];    /* of convolved rows: k, then v; q */
};

/* A row alone is bound by the way of its state and rings from memory. */
static bool is_alone(const struct part *part)
{
    return IN_ORDER_PAYS && part->n_row == 1;
}

/* One v-head of a part. */
struct head {
    float *s;  /* [d_k][d_v] */
    float *u;  /* [GRID][d_v] */
    double *g; /* [GRID] */
    struct delta_rows v;
    float *out; /* rows of out_stride */
    uint32_t d_v;
    size_t at; /* v-head, index into beta and log_decay */
};

static float *take(float **scratch, size_t n)
{
    float *start = *scratch;
    *scratch += (n + LANES - 1) / LANES * LANES;
    return start;
}

static void place(struct part *part, float *scratch)
{
    float *const start = scratch;
    const struct delta_shape shape = part->args->shape;
    const uint32_t d_max = shape.d_k > shape.d_v ? shape.d_k : shape.d_v;
    size_t n = part->n_row, d_k = shape.d_k;

    part->kq = take(&scratch, 2 * n * d_k);
    part->dot = take(&scratch, 2 * n * GRID);
    part->read = take(&scratch, 2 * n * shape.d_v);
    part->w = take(&scratch, n * GRID);
    part->x = take(&scratch, n * GRID);
    part->since_grid = take(&scratch, GRID);
    part->aged_k = take(&scratch, d_k * GRID);
    part->room[0] = take(&scratch, n * delta_row_floats(d_max));
    part->room[1] = take(&scratch, n * delta_row_floats(shape.d_k));
    assert((size_t)(scratch - start) * sizeof(float) <= POOL_SCRATCH_BYTES);
}

/* y = x / sqrt(sum x^2 + 1e-6) * scale, rounded after each product. */
static void normalise(float *y, const float *x, uint32_t n, float scale)
{
    v16 unit = v16_set1(1.0f / sqrtf(v16_sum_squares(x, n) + 1e-6f));
    v16 last = v16_set1(scale);

    for (uint32_t d = 0; d < n; d += LANES) {
        v16 v = v16_mul(v16_load_part(x, d, n), unit);
        v16_store_part(y, v16_mul(v, last), d, n);
    }
}

/*
 * Keys of n rows into the ring, whose lanes are tokens. Four rows at a time are
 * 16 bytes side by side; left to itself the compiler scatters single floats,
 * which costs several times as much.
 */
static void store_keys(float *ring, const float *k, uint32_t d_k, uint32_t n)
{
    uint32_t r = 0;

    for (; r + 4 <= n; r += 4, k += 4 * (size_t)d_k)
        for (size_t d = 0; d < d_k; d++) {
            const float four[4] = {k[d], k[d_k + d], k[2 * d_k + d],
                                   k[3 * d_k + d]};
            memcpy(ring + d * GRID + r, four, sizeof(four));
        }
    for (; r < n; r++, k += d_k)
        for (size_t d = 0; d < d_k; d++) {
            ring[d * GRID + r] = k[d];
            __asm__ volatile("" ::: "memory"); /* no scatter */
        }
}

/* Dots of n rows of x with the ring's first n_seen tokens. */
static void dot_tile(const struct part *part, float *dot, const float *x,
                     uint32_t n, uint32_t n_seen)
{
    const uint32_t d_k = part->args->shape.d_k;

    LANES_NAME(tile_set)
    (&(struct tile){.c = dot,
                    .c_stride = GRID,
                    .a = x,
                    .a_stride = d_k,
                    .b = part->ring_k,
                    .b_stride = GRID,
                    .b_group = LANES,
                    .n_row = n,
                    .n_col = (n_seen + LANES - 1) / LANES * LANES,
                    .n_k = d_k});
}

/* Row r reads up to its own. */
static void dot_rows(const struct part *part, float *dot, const float *x)
{
    const uint32_t n = part->n_row;

    for (uint32_t r = 0; r < n; r += LANES_ROWS) {
        uint32_t end = r + LANES_ROWS < n ? r + LANES_ROWS : n;

        dot_tile(part, dot + (size_t)r * GRID,
                 x + (size_t)r * part->args->shape.d_k, end - r,
                 part->first + end);
    }
}

static void fetch(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += LANES)
        _mm_prefetch((const char *)(x + i), _MM_HINT_T0);
}

/* Rows lie pages apart, where the processor foresees nothing: ask early for
 * what row r brings of this k-head and its v-heads. */
static void fetch_row(const struct part *part, size_t r)
{
    const struct delta_args *a = part->args;
    const uint32_t per_k = a->shape.n_v_head / a->shape.n_k_head;
    const size_t row = (part->row + r) * a->qkv_stride;
    const size_t n_v = (size_t)per_k * a->shape.d_v;

    if (r >= part->n_row || a->conv) /* the convolution asks itself */
        return;
    fetch(a->k + row + (size_t)part->k_head * a->shape.d_k, a->shape.d_k);
    fetch(a->q + row + (size_t)part->k_head * a->shape.d_k, a->shape.d_k);
    fetch(a->v + row + part->k_head * n_v, (uint32_t)n_v);
}

/* Of a row alone: what its state begins with is read next. */
static void dot_alone(const struct part *part)
{
    const struct delta_shape shape = part->args->shape;
    const size_t head =
        (size_t)part->k_head * (shape.n_v_head / shape.n_k_head);

    in_order(&(struct tile){.c = part->dot,
                            .c_stride = GRID,
                            .a = part->kq,
                            .a_stride = shape.d_k,
                            .b = part->ring_k,
                            .b_stride = GRID,
                            .n_row = 2,
                            .n_col = part->first / LANES * LANES + LANES,
                            .n_k = shape.d_k},
             true,
             in_order_first(part->span->state.s + head * shape.d_k * shape.d_v,
                            shape.d_v, shape.d_k, shape.d_v));
}

/* Normalise keys and queries, put the keys into the ring and take all dots. */
static void prepare(const struct part *part)
{
    const struct delta_args *a = part->args;
    uint32_t d_k = a->shape.d_k, n = part->n_row;
    float q_scale = 1.0f / sqrtf((float)d_k);
    float *k = part->kq, *q = part->kq + (size_t)n * d_k;
    const size_t at = (size_t)part->k_head * d_k;
    struct delta_rows k_rows, q_rows;

    if (is_alone(part)) /* where the key goes, before others of the ring */
        in_order_ask((struct in_order_rows){
            part->ring_k + part->first / LANES * LANES, GRID, d_k, LANES});
    k_rows =
        delta_rows(part->source, a->k + at, d_k, part->t, n, part->room[0]);
    q_rows =
        delta_rows(part->source, a->q + at, d_k, part->t, n, part->room[1]);
    for (size_t r = 0; r < n; r++) {
        fetch_row(part, r + FETCH_AHEAD);
        normalise(k + r * d_k, k_rows.at + r * k_rows.stride, d_k, 1.0f);
        normalise(q + r * d_k, q_rows.at + r * q_rows.stride, d_k, q_scale);
    }
    store_keys(part->ring_k + part->first, k, d_k, n);
    if (is_alone(part)) { /* the key, and the query behind it */
        dot_alone(part);
        return;
    }
    dot_rows(part, part->dot, k);
    dot_rows(part, part->dot + (size_t)n * GRID, q);
}

/* Decays, -w and x of every row; a and c out of the state. */
static void weigh(const struct part *part, const struct head *head)
{
    const struct delta_args *a = part->args;
    uint32_t n = part->n_row, n_v_head = a->shape.n_v_head;
    struct tile tile = {.c = part->read,
                        .c_stride = a->shape.d_v,
                        .a = part->kq,
                        .a_stride = a->shape.d_k,
                        .b = head->s,
                        .b_stride = a->shape.d_v,
                        .b_group = LANES,
                        .n_row = 2 * n,
                        .n_col = a->shape.d_v,
                        .n_k = a->shape.d_k};

    for (uint32_t r = 0; r < n; r++) {
        uint32_t i = part->first + r;
        double before = i ? head->g[i - 1] : 0.0;
        float step = a->log_decay[(part->row + r) * n_v_head + head->at];
        head->g[i] = before + (double)step;
        const float *kk = part->dot + (size_t)r * GRID;
        const float *qk = part->dot + (size_t)(n + r) * GRID;
        /* Tokens behind i hold anything; nobody reads their lanes. */
        for (uint32_t j = 0; j <= i; j += LANES) {
            v16 decay = v16_exp(v16_difference(head->g[i], head->g + j));
            v16 w = v16_mul(decay, v16_load(kk + j));
            v16 x = v16_mul(decay, v16_load(qk + j));
            v16_store(part->w + (size_t)r * GRID + j, v16_negate(w));
            v16_store(part->x + (size_t)r * GRID + j, x);
        }
    }
    for (uint32_t j = part->first / LANES * LANES; j < part->first + n;
         j += LANES) {
        /* -(0 - G) is G to the last bit. */
        v16 g = v16_negate(v16_difference(0.0, head->g + j));
        v16_store(part->since_grid + j, v16_exp(g));
    }
    if (is_alone(part))
        in_order(&tile, true,
                 in_order_first(head->u, head->d_v, part->first, head->d_v));
    else
        LANES_NAME(tile_set)(&tile);
}

/* y[r] goes on over ring tokens [0, end) for n_row rows of weights. */
static void add_ring(const struct head *head, float *y, size_t y_stride,
                     const float *weight, uint32_t n_row, uint32_t end)
{
    struct tile tile = {.c = y,
                        .c_stride = y_stride,
                        .a = weight,
                        .a_stride = GRID,
                        .b = head->u,
                        .b_stride = head->d_v,
                        .b_group = LANES,
                        .n_row = n_row,
                        .n_col = head->d_v,
                        .n_k = end};
    LANES_NAME(tile_onto)(&tile);
}

/* One row goes on over ring tokens [from, end), then times scale. */
static void finish_row(const struct head *head, float *y, const float *weight,
                       uint32_t from, uint32_t end, float scale)
{
    uint32_t d_v = head->d_v;

    for (uint32_t e = 0; e < d_v; e += LANES) {
        v16 sum = v16_load_part(y, e, d_v);
        for (uint32_t j = from; j < end; j++)
            sum =
                v16_fma(v16_set1(weight[j]),
                        v16_load_part(head->u + (size_t)j * d_v, e, d_v), sum);
        v16_store_part(y, v16_mul(sum, v16_set1(scale)), e, d_v);
    }
}

static bool has_triangle(const struct head *head, uint32_t n_row)
{
    return TRIANGLE_PAYS && n_row == LANES_ROWS && head->d_v % LANES == 0;
}

/* finish_row() of the u of so many rows; w: of the first of them, from its own
 * token on. */
static void solve_triangle(const struct head *head, float *u, const float *w,
                           const float *beta, size_t beta_stride)
{
    const size_t d_v = head->d_v;

    for (uint32_t e = 0; e < d_v; e += LANES, u += LANES) {
        v16 sum[LANES_ROWS];

#pragma GCC unroll 6
        for (uint32_t r = 0; r < LANES_ROWS; r++)
            sum[r] = v16_load(u + r * d_v);
#pragma GCC unroll 6
        for (uint32_t j = 0; j < LANES_ROWS; j++) {
            sum[j] = v16_mul(sum[j], v16_set1(beta[j * beta_stride]));
            v16_store(u + j * d_v, sum[j]);
#pragma GCC unroll 6
            for (uint32_t r = j + 1; r < LANES_ROWS; r++)
                sum[r] = v16_fma(v16_set1(w[r * GRID + j]), sum[j], sum[r]);
        }
    }
}

/* finish_row() of their answers, which the first of them does not need. */
static void answer_triangle(const struct head *head, float *out,
                            size_t out_stride, const float *x, const float *u)
{
    const size_t d_v = head->d_v;

    for (uint32_t e = 0; e < d_v; e += LANES, out += LANES, u += LANES) {
        v16 sum[LANES_ROWS];

#pragma GCC unroll 6
        for (uint32_t r = 1; r < LANES_ROWS; r++)
            sum[r] = v16_load(out + r * out_stride);
#pragma GCC unroll 6
        for (uint32_t j = 1; j < LANES_ROWS; j++) {
            const v16 one = v16_load(u + j * d_v);
#pragma GCC unroll 6
            for (uint32_t r = j; r < LANES_ROWS; r++)
                sum[r] = v16_fma(v16_set1(x[r * GRID + j]), one, sum[r]);
            v16_store(out + j * out_stride, sum[j]);
        }
    }
}

/* u of all rows: forward substitution, a tile of rows at a time; rows of out
 * are asked for, which come next. */
static void solve(const struct part *part, const struct head *head)
{
    const struct delta_args *a = part->args;
    uint32_t d_v = a->shape.d_v, n = part->n_row;
    size_t n_v_head = a->shape.n_v_head;

    for (uint32_t r = 0; r < n; r++) {
        uint32_t i = part->first + r;
        const float *v = head->v.at + r * head->v.stride;
        const float *read = part->read + (size_t)r * d_v;
        v16 decay = v16_set1(part->since_grid[i]);
        for (uint32_t e = 0; e < d_v; e += LANES)
            v16_store_part(head->u + (size_t)i * d_v,
                           v16_fnma(decay, v16_load_part(read, e, d_v),
                                    v16_load_part(v, e, d_v)),
                           e, d_v);
    }
    for (uint32_t r = 0; r < n; r += LANES_ROWS) {
        uint32_t end = r + LANES_ROWS < n ? r + LANES_ROWS : n;
        uint32_t known = part->first + r;
        float *u = head->u + (size_t)known * d_v;
        const float *w = part->w + (size_t)r * GRID;
        for (uint32_t t = r; TRIANGLE_PAYS && t < end; t++)
            fetch(head->out + (part->row + t) * a->out_stride, d_v);
        add_ring(head, u, d_v, w, end - r, known);
        if (has_triangle(head, end - r)) {
            solve_triangle(head, u, w + known,
                           a->beta + (part->row + r) * n_v_head + head->at,
                           n_v_head);
            continue;
        }
        for (uint32_t t = r; t < end; t++, u += d_v, w += GRID)
            finish_row(head, u, w, known, part->first + t,
                       a->beta[(part->row + t) * n_v_head + head->at]);
    }
}

/* o of all rows, now that every u is known; a tile's rows stay in the cache
 * from first to last, because rows of out may lie on the same few sets. */
static void answer(const struct part *part, const struct head *head)
{
    const struct delta_args *a = part->args;
    uint32_t d_v = a->shape.d_v, n = part->n_row;

    for (uint32_t r = 0; r < n; r += LANES_ROWS) {
        uint32_t end = r + LANES_ROWS < n ? r + LANES_ROWS : n;
        uint32_t seen = part->first + r + 1; /* by the tile's first row */
        float *out = head->out + (part->row + r) * a->out_stride;
        const float *x = part->x + (size_t)r * GRID;

        for (uint32_t t = r; t < end; t++) {
            const float *read = part->read + (size_t)(n + t) * d_v;
            v16 decay = v16_set1(part->since_grid[part->first + t]);
            for (uint32_t e = 0; e < d_v; e += LANES)
                v16_store_part(out + (t - r) * a->out_stride,
                               v16_mul(decay, v16_load_part(read, e, d_v)), e,
                               d_v);
        }
        add_ring(head, out, a->out_stride, x, end - r, seen);
        if (has_triangle(head, end - r)) {
            answer_triangle(head, out, a->out_stride, x + seen - 1,
                            head->u + (size_t)(seen - 1) * d_v);
            continue;
        }
        for (uint32_t t = r; t < end; t++, out += a->out_stride, x += GRID)
            finish_row(head, out, x, seen, part->first + t + 1, 1.0f);
    }
}

/* u and o of a row alone, which both go on while the ring passes by. */
static void solve_and_answer(const struct part *part, const struct head *head)
{
    const struct delta_args *a = part->args;
    const uint32_t d_v = a->shape.d_v, i = part->first;
    const float *v = head->v.at;
    float *u = head->u + (size_t)i * d_v;
    float *out = head->out + part->row * a->out_stride;
    float *r = part->read, *o = r + d_v;
    const v16 decay = v16_set1(part->since_grid[i]), x = v16_set1(part->x[i]);
    const v16 beta =
        v16_set1(a->beta[part->row * a->shape.n_v_head + head->at]);

    for (uint32_t e = 0; e < d_v; e += LANES) {
        v16_store_part(
            r,
            v16_fnma(decay, v16_load_part(r, e, d_v), v16_load_part(v, e, d_v)),
            e, d_v);
        v16_store_part(o, v16_mul(decay, v16_load_part(o, e, d_v)), e, d_v);
    }
    const struct tile ring = {.c = r,
                              .c_stride = d_v,
                              .a = part->w,
                              .a_stride = (size_t)(part->x - part->w),
                              .b = head->u,
                              .b_stride = d_v,
                              .n_row = 2,
                              .n_col = d_v,
                              .n_k = i};
    in_order(&ring, false, (struct in_order_rows){0});
    for (uint32_t e = 0; e < d_v; e += LANES) {
        const v16 one = v16_mul(v16_load_part(r, e, d_v), beta);

        v16_store_part(u, one, e, d_v);
        v16_store_part(out, v16_fma(x, one, v16_load_part(o, e, d_v)), e, d_v);
    }
}

/* The ring of a full chunk into the state. */
static void fold(const struct part *part, const struct head *head)
{
    const struct delta_args *a = part->args;
    uint32_t d_k = a->shape.d_k, d_v = a->shape.d_v;
    v16 whole = v16_set1(part->since_grid[GRID - 1]);
    struct tile tile = {.c = head->s,
                        .c_stride = d_v,
                        .a = part->aged_k,
                        .a_stride = GRID,
                        .b = head->u,
                        .b_stride = d_v,
                        .b_group = LANES,
                        .n_row = d_k,
                        .n_col = d_v,
                        .n_k = GRID};

    for (uint32_t j = 0; j < GRID; j += LANES) {
        v16 age = v16_exp(v16_difference(head->g[GRID - 1], head->g + j));
        for (size_t d = 0; d < d_k; d++)
            v16_store(part->aged_k + d * GRID + j,
                      v16_mul(age, v16_load(part->ring_k + d * GRID + j)));
    }
    for (size_t d = 0; d < d_k; d++) {
        float *s = head->s + d * d_v;
        for (uint32_t e = 0; e < d_v; e += LANES)
            v16_store_part(s, v16_mul(whole, v16_load_part(s, e, d_v)), e, d_v);
    }
    LANES_NAME(tile_onto)(&tile);
}

static void run_part(const struct part *part)
{
    const struct delta_args *a = part->args;
    struct delta_shape shape = a->shape;
    const struct delta_state *state = &part->span->state;
    size_t per_k = shape.n_v_head / shape.n_k_head;
    size_t d_k = shape.d_k, d_v = shape.d_v;

    prepare(part);
    for (size_t h = part->k_head * per_k; h < (part->k_head + 1) * per_k; h++) {
        struct head head = {.s = state->s + h * d_k * d_v,
                            .u = (float *)state->ring_u + h * GRID * d_v,
                            .g = state->ring_g + h * GRID,
                            .v = delta_rows(part->source, a->v + h * d_v,
                                            shape.d_v, part->t, part->n_row,
                                            part->room[0]),
                            .out = a->out + h * d_v,
                            .d_v = shape.d_v,
                            .at = h};
        weigh(part, &head);
        if (is_alone(part)) {
            solve_and_answer(part, &head);
        } else {
            solve(part, &head);
            answer(part, &head);
        }
        if (part->first + part->n_row == GRID)
            fold(part, &head);
    }
}

static void delta_task(void *arg, uint32_t task, void *scratch)
{
    const struct delta_args *a = arg;
    const struct delta_span *span = &a->span[task / a->shape.n_k_head];
    const struct delta_source source = delta_source(a, span);
    uint32_t n_row;

    for (uint32_t t = 0; t < span->n_row; t += n_row) {
        uint32_t first = (uint32_t)((span->position + t) % GRID);
        n_row = GRID - first;
        if (n_row > span->n_row - t)
            n_row = span->n_row - t;
        struct part part = {.args = a,
                            .span = span,
                            .source = &source,
                            .k_head = task % a->shape.n_k_head,
                            .t = t,
                            .row = (size_t)span->first_row + t,
                            .first = first,
                            .n_row = n_row};
        part.ring_k = (float *)span->state.ring_k +
                      (size_t)part.k_head * a->shape.d_k * GRID;
        place(&part, scratch);
        run_part(&part);
    }
    delta_keep_tail(&source, task % a->shape.n_k_head);
}

void LANES_NAME(delta)(struct pool *pool, const struct delta_args *args)
{
    struct delta_shape shape = args->shape;
    uint64_t n_row = 0;

    if (shape.arithmetic != ARITHMETIC_FP32) {
        LANES_NAME(delta_rounded)(pool, args, &LANES_NAME(product_kernels));
        return;
    }
    assert(shape.d_k <= HEAD_DIM_MAX && shape.d_v <= HEAD_DIM_MAX);
    assert(shape.n_v_head % shape.n_k_head == 0);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    pool =
        pool_for_fmas(pool, n_row * shape.n_v_head * shape.d_k * shape.d_v / 4);
    pool_run(pool, args->n_span * shape.n_k_head, delta_task, (void *)args);
}
