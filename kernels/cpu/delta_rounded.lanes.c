#include "kernels/cpu/cut.h"
#include "kernels/cpu/delta_part.h"
#include "kernels/cpu/ops.h"

#include <assert.h>
#include <math.h>

#if defined(LANES_BF16)
#include "kernels/cpu/cpu.h"
#endif

#define FETCH_AHEAD 6u /* rows */

static void fetch(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += LANES)
        _mm_prefetch((const char *)(x + i), _MM_HINT_T1);
}

/*
 * Rows lie pages apart, where the processor foresees nothing, and all of a
 * chunk's at once would wait for one another: what the next part brings is
 * asked for row by row while this part computes. Part row r, which may be
 * behind it.
 */
static bool is_brought(const struct part *p, size_t r)
{
    return p->row + r < (size_t)p->span->first_row + p->span->n_row;
}

static void fetch_keys(const struct part *p, size_t r)
{
    const struct delta_args *a = p->args;
    const size_t at =
        (p->row + r) * a->qkv_stride + (size_t)p->k_head * a->shape.d_k;

    if (!is_brought(p, r))
        return;
    fetch(a->k + at, a->shape.d_k);
    fetch(a->q + at, a->shape.d_k);
}

static void fetch_values(const struct part *p, const struct head *head,
                         size_t r)
{
    if (is_brought(p, r))
        fetch(p->args->v + (p->row + r) * p->args->qkv_stride +
                  head->at * p->args->shape.d_v,
              p->args->shape.d_v);
}

/* One row of k or q, normalised and scaled, in elements; a key whose elements
 * are floats is wanted as bf16, too. */
LANES_INLINE void put_unit(const struct part *p, size_t at, const float *x,
                           float scale, bool is_half)
{
    const uint32_t d_k = p->args->shape.d_k;
    const struct delta_unit by = delta_unit(x, d_k, scale);
    const bool is_key = at < (size_t)p->n_row * p->n_step;

    for (uint32_t d = 0; d < d_k; d += LANES) {
        const v16 v = delta_unit_part(by, x, d, d_k);

        put(is_half, p->kq, at + d, v);
        if (!is_half && is_key)
            pairs_store_row(p->k + at + d, v);
    }
    for (uint32_t d = (d_k + LANES - 1) / LANES * LANES; d < p->n_step;
         d += LANES) {
        put(is_half, p->kq, at + d, v16_zero());
        if (!is_half && is_key)
            pairs_store_row(p->k + at + d, v16_zero());
    }
}

LANES_INLINE void put_units(const struct part *p, bool is_half)
{
    const struct delta_args *a = p->args;
    const float q_scale = 1.0f / sqrtf((float)a->shape.d_k);
    const size_t at = (size_t)p->k_head * a->shape.d_k;
    const struct delta_rows k = delta_rows(p->source, a->k + at, a->shape.d_k,
                                           p->t, p->n_row, p->k_room);
    const struct delta_rows q = delta_rows(p->source, a->q + at, a->shape.d_k,
                                           p->t, p->n_row, p->q_room);

    for (size_t r = 0; r < p->n_row; r++) {
        if (!a->conv) /* which asks itself */
            fetch_keys(p, r + FETCH_AHEAD);
        put_unit(p, r * p->n_step, k.at + r * k.stride, 1.0f, is_half);
        put_unit(p, (p->n_row + r) * p->n_step, q.at + r * q.stride, q_scale,
                 is_half);
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
            .is_near = true,
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
    LANES_NAME(delta_load_keys)(p);
    if (has_halves(p))
        put_units(p, true);
    else
        put_units(p, false);
    LANES_NAME(delta_turn_keys)(p);
    if (p->end < GRID)
        LANES_NAME(delta_store_keys)(p);
    for (uint32_t i = p->first, end; i < p->end; i = end) {
        end = block_end(p, i);
        dot_block(p, i, end);
    }
}

/* a and c of all rows. */
static void read_state(const struct part *p)
{
    const uint32_t d_v = p->args->shape.d_v;

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
                                          .is_near = true,
                                          .scratch = p->scratch});
}

/* Decays from the grid point to tokens [from, end). */
static void since_grid(const struct part *p, const struct head *head,
                       uint32_t from)
{
    for (uint32_t j = from; j < p->end; j += LANES) {
        /* -(0 - G) is G to the last bit. */
        v16 whole = v16_negate(v16_difference(0.0, head->g + j));
        v16_store(p->since_grid + j, v16_exp(whole));
    }
}

/* The rows' cumulative log decays, and the decays since the grid point. */
static void add_decays(const struct part *p, const struct head *head)
{
    const uint32_t n_v_head = p->args->shape.n_v_head;
    const float *step = p->args->log_decay + p->row * n_v_head + head->at;
    double g = p->first ? head->g[p->first - 1] : 0.0;

    for (uint32_t i = p->first; i < p->end; i++, step += n_v_head) {
        g = g + (double)*step;
        head->g[i] = g;
    }
    since_grid(p, head, 0);
}

/* Weights of every row. Those of its own block stay floats. */
LANES_INLINE void weigh(const struct part *p, const struct head *head,
                        bool is_half)
{
    for (uint32_t r = 0; r < p->n_row; r++) {
        const uint32_t i = p->first + r, near = i / DELTA_BLOCK * DELTA_BLOCK;
        const size_t at = (size_t)r * GRID;
        const float *kk = p->dot + at, *qk = kk + (size_t)p->n_row * GRID;
        const double g = head->g[i];

        if (head->at % p->n_each == 0)
            fetch_keys(p, (size_t)p->n_row + r);
        fetch(head->out + (p->row + r) * p->args->out_stride,
              p->args->shape.d_v);
        for (uint32_t j = 0; j < near; j += LANES) {
            v16 decay = v16_exp(v16_difference(g, head->g + j));
            put(is_half, p->far, at + j, v16_mul(decay, v16_load(kk + j)));
            put(is_half, p->x, at + j, v16_mul(decay, v16_load(qk + j)));
        }
        /* Tokens behind i hold anything; nobody reads their w. */
        v16 decay = v16_exp(v16_difference(g, head->g + near));
        v16 x = v16_mul(decay, v16_load(qk + near));
        v16_store(p->w + (size_t)r * DELTA_BLOCK,
                  v16_mul(decay, v16_load(kk + near)));
        put(is_half, p->far, at + near, v16_zero());
        put(is_half, p->x, at + near, v16_first(x, v16_zero(), i + 1 - near));
        for (uint32_t j = near + LANES; j < GRID; j += LANES) {
            put(is_half, p->far, at + j, v16_zero());
            put(is_half, p->x, at + j, v16_zero());
        }
    }
}

/* Part rows [r, r + n_row) of weights times u of the first n_step tokens. */
struct ring_sum {
    const void *weight;
    uint32_t r, n_row, n_step;
    float *c;
    size_t c_stride;
    struct product_onto onto;
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
        .onto = sum.onto,
        .is_near = true,
        .scratch = p->scratch});
}

/* Rows [low, high) of the block that begins at token `near`. */
struct block {
    uint32_t near, low, high;
};

/* Panels side by side, constants where they are inlined but for the first. Of
 * several all are whole; n: lanes of the last. */
struct side {
    uint32_t panel, width, n;
};

/* What of r of row i is known before its block: n outputs from e on. */
LANES_INLINE v16 begin_row(const struct part *p, const struct head *head,
                           struct block block, uint32_t i, struct side side)
{
    const uint32_t d_v = p->args->shape.d_v, e = side.panel * LANES;
    const size_t r = block.near + i - p->first;
    const float *v = head->v.at + r * head->v.stride + e;
    const v16 read = v16_load_part(p->read + r * d_v + e, 0, side.n);
    const v16 decay = v16_set1(p->since_grid[block.near + i]);
    const v16 sum =
        v16_fnma(decay, v16_add(read, v16_zero()), v16_load_part(v, 0, side.n));

    if (!block.near)
        return sum;
    return v16_sub(sum, v16_add(v16_load_part(p->acc + i * d_v + e, 0, side.n),
                                v16_zero()));
}

LANES_INLINE bool is_of(struct block block, uint32_t i)
{
    return i >= block.low && i < block.high;
}

/* Rows whose r are in registers, of SIDE panels. */
#if defined(LANES_AVX512)
#define ROWS (DELTA_BLOCK / 4u)
#define SIDE 4u
#else
#define ROWS (DELTA_BLOCK / 2u)
#define SIDE 1u
#endif

/* Row j of u in the panels, by pairs: of a word whose other half is no row of
 * the block, that half stays what it was. */
LANES_INLINE void take_u(const struct part *p, struct side side,
                         struct block block, uint32_t j, v16 u[2][SIDE])
{
#pragma GCC unroll 4
    for (uint32_t k = 0; k < side.width; k++)
        u[0][k] = v16_load_bf16(u_at(p, side.panel + k, (block.near + j) / 2),
                                &u[1][k]);
}

LANES_INLINE void put_u(const struct part *p, struct side side,
                        struct block block, uint32_t j, v16 u[2][SIDE])
{
#pragma GCC unroll 4
    for (uint32_t k = 0; k < side.width; k++)
        pairs_store_rounded(u_at(p, side.panel + k, (block.near + j) / 2),
                            u[0][k], u[1][k]);
}

/*
 * u of rows [at, at + ROWS) of a block for some panels. Once u of a row is
 * known it goes into all rows behind it, so that no row waits for a long chain;
 * each still meets its predecessors in ascending order.
 */
LANES_INLINE void solve_rows(const struct part *p, const struct head *head,
                             struct side side, struct block block, uint32_t at)
{
    const size_t n_v_head = p->args->shape.n_v_head;
    const size_t first = p->row + block.near - p->first; /* its row 0 */
    const float *beta = p->args->beta + first * n_v_head + head->at;
    const float *w = p->w + ((size_t)block.near - p->first) * DELTA_BLOCK;
    v16 r[ROWS][SIDE], u[2][SIDE];

#pragma GCC unroll 8
    for (uint32_t i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (uint32_t k = 0; k < side.width; k++)
            r[i][k] = is_of(block, at + i)
                          ? begin_row(p, head, block, at + i,
                                      (struct side){side.panel + k, 1, side.n})
                          : v16_zero();
#pragma GCC unroll 16
    for (uint32_t j = 0; j < at + ROWS; j++) {
        const bool is_new = j >= at && is_of(block, j);

        if (j >= block.high)
            break;
        if (j % 2 == 0)
            take_u(p, side, block, j, u);
#pragma GCC unroll 4
        for (uint32_t k = 0; k < side.width; k++)
            if (is_new)
                u[j % 2][k] = pairs_round(
                    v16_mul(v16_set1(beta[j * n_v_head]), r[j - at][k]));
        if (is_new && (j % 2 == 1 || j + 1 == block.high))
            put_u(p, side, block, j, u);
#pragma GCC unroll 8
        for (uint32_t i = 0; i < ROWS; i++) {
            if (at + i <= j || !is_of(block, at + i))
                continue;
            const v16 by = v16_set1(w[(at + i) * DELTA_BLOCK + j]);
#pragma GCC unroll 4
            for (uint32_t k = 0; k < side.width; k++)
                r[i][k] = v16_fnma(by, u[j % 2][k], r[i][k]);
        }
    }
}

LANES_INLINE void solve_side(const struct part *p, const struct head *head,
                             struct side side, struct block block)
{
#pragma GCC unroll 4
    for (uint32_t at = 0; at < DELTA_BLOCK; at += ROWS)
        solve_rows(p, head, side, block, at);
}

LANES_INLINE void solve_block(const struct part *p, const struct head *head,
                              struct block block)
{
    const uint32_t d_v = p->args->shape.d_v;
    uint32_t e = 0;

    for (; (e + SIDE) * LANES <= d_v; e += SIDE)
        solve_side(p, head, (struct side){e, SIDE, LANES}, block);
    for (; e < p->n_panel; e++)
        solve_side(p, head, (struct side){e, 1, d_v - e * LANES}, block);
}

/* u of all rows: forward substitution, former blocks by a product. */
static void solve(const struct part *p, const struct head *head)
{
    const size_t d_v = p->args->shape.d_v;

    for (uint32_t from = p->first, end; from < p->end; from = end) {
        const uint32_t near = from / DELTA_BLOCK * DELTA_BLOCK;

        end = block_end(p, from);
        const struct block block = {near, from - near, end - near};
        const struct block whole = {near, 0, DELTA_BLOCK};
        if (near)
            sum_ring(p, (struct ring_sum){.weight = p->far,
                                          .r = from - p->first,
                                          .n_row = end - from,
                                          .n_step = (near + LINEAR_STEP - 1) /
                                                    LINEAR_STEP * LINEAR_STEP,
                                          .c = p->acc + block.low * d_v,
                                          .c_stride = d_v});
        if (end - from == DELTA_BLOCK)
            solve_block(p, head, whole);
        else
            solve_block(p, head, block);
    }
}

/* o of part rows [r, r + n_row), which see no token from n_step on. */
static void answer_rows(const struct part *p, const struct head *head,
                        uint32_t r, uint32_t n_row, uint32_t n_step)
{
    const struct delta_args *a = p->args;
    const uint32_t d_v = a->shape.d_v;
    const struct product_onto reads = {.from = p->read +
                                               ((size_t)p->n_row + r) * d_v,
                                       .from_stride = d_v,
                                       .keep = p->since_grid + p->first + r,
                                       .keep_stride = 1};

    for (uint32_t i = 0; i < n_row; i++)
        fetch_values(p, head, (size_t)p->n_row + r + i);
    sum_ring(p, (struct ring_sum){.weight = p->x,
                                  .r = r,
                                  .n_row = n_row,
                                  .n_step = n_step,
                                  .c = head->out + (p->row + r) * a->out_stride,
                                  .c_stride = a->out_stride,
                                  .onto = reads});
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
LANES_INLINE void age_keys(const struct part *p, const v16 *age, uint32_t d,
                           uint32_t end, bool is_half)
{
    for (uint32_t j = 0; j < GRID; j += LANES)
        for (uint32_t k = d; k < end; k += 2) {
            v16 high, low = v16_load_bf16(key_at(p, k / 2, j), &high);
            const size_t at = (size_t)(k - d) * GRID + j;

            low = v16_mul(age[j / LANES], low);
            high = v16_mul(age[j / LANES], high);
            put(is_half, p->aged, at, low);
            put(is_half, p->aged, at + GRID, high);
        }
}

/* The ring of a full chunk into the state, FOLD_ROWS dims at a time. */
static void fold(const struct part *p, const struct head *head)
{
    const uint32_t d_k = p->args->shape.d_k, d_v = p->args->shape.d_v;
    v16 age[GRID / LANES];

    for (uint32_t j = 0; j < GRID; j += LANES)
        age[j / LANES] =
            v16_exp(v16_difference(head->g[GRID - 1], head->g + j));
    for (uint32_t d = 0, end; d < d_k; d = end) {
        float *s = head->s + (size_t)d * d_v;

        end = d_k - d < FOLD_ROWS ? d_k : d + FOLD_ROWS;
        if (has_halves(p))
            age_keys(p, age, d, end, true);
        else
            age_keys(p, age, d, end, false);
        sum_ring(p,
                 (struct ring_sum){.weight = p->aged,
                                   .n_row = end - d,
                                   .n_step = GRID,
                                   .c = s,
                                   .c_stride = d_v,
                                   .onto = {.from = s,
                                            .from_stride = d_v,
                                            .keep = p->since_grid + GRID - 1}});
    }
}

/* ------------------------------------------------------------------- tasks */

static struct head head_of(const struct part *p, uint32_t i)
{
    const struct delta_args *a = p->args;
    const struct delta_state *state = &p->span->state;
    const size_t h = (size_t)p->k_head * p->n_each + i;
    const size_t d_k = a->shape.d_k, d_v = a->shape.d_v;

    return (struct head){.s = state->s + h * d_k * d_v,
                         .u = (uint32_t *)state->ring_u + h * WORDS * d_v,
                         .g = state->ring_g + h * GRID,
                         .out = a->out + h * d_v,
                         .at = h};
}

static void run_part(const struct part *p)
{
    prepare(p);
    for (uint32_t i = 0; i < p->n_each; i++) {
        struct head head = head_of(p, i);

        LANES_NAME(delta_take_state)(p, &head);
        read_state(p);
        add_decays(p, &head);
        if (has_halves(p))
            weigh(p, &head, true);
        else
            weigh(p, &head, false);
        LANES_NAME(delta_load_u)(p, &head);
        head.v =
            delta_rows(p->source, p->args->v + head.at * p->args->shape.d_v,
                       p->args->shape.d_v, p->t, p->n_row, p->v_room);
        solve(p, &head);
        answer(p, &head);
        if (p->end < GRID)
            LANES_NAME(delta_store_u)(p, &head);
        else
            fold(p, &head);
    }
}

/* What run_part() leaves out when a row of its own filled the chunk. */
static void fold_rings(const struct part *p)
{
    LANES_NAME(delta_load_keys)(p);
    for (uint32_t i = 0; i < p->n_each; i++) {
        const struct head head = head_of(p, i);

        since_grid(p, &head, GRID - LANES);
        LANES_NAME(delta_load_u)(p, &head);
        fold(p, &head);
    }
}

struct job {
    const struct delta_args *args;
    struct product_kernel kernel;
    uint32_t n_task, n_thread;
};

/* at: of all heads of all spans the one that is computed. */
static void run_one(const struct job *job, uint32_t at, bool is_last,
                    const struct delta_source *source, uint32_t row)
{
    const struct delta_span *span =
        &job->args->span[at / job->args->shape.n_k_head];
    const uint32_t n_k_head = job->args->shape.n_k_head;
    const uint32_t next = is_last ? at : at + 1;

    LANES_NAME(delta_one)
    (&(struct delta_one){
        .args = job->args,
        .source = source,
        .state = &span->state,
        .t = row,
        .row = (size_t)span->first_row + row,
        .k_head = at % n_k_head,
        .i = (uint32_t)((span->position + row) % GRID),
        .chunk = (span->position + row) / GRID + 1,
        .is_step = span->n_row == 1,
        .next = &job->args->span[next / n_k_head].state,
        .next_k_head = next % n_k_head,
    });
}

static void task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct delta_args *a = job->args;
    const uint32_t at = cut_turn(task, job->n_task, job->n_thread);
    const struct delta_span *span = &a->span[at / a->shape.n_k_head];
    const struct delta_source source = delta_source(a, span);
    uint32_t n_row;

    for (uint32_t t = 0; t < span->n_row; t += n_row) {
        const uint32_t first = (uint32_t)((span->position + t) % GRID);
        struct part part = {.args = a,
                            .span = span,
                            .source = &source,
                            .kernel = job->kernel,
                            .k_head = at % a->shape.n_k_head,
                            .n_each = a->shape.n_v_head / a->shape.n_k_head,
                            .t = t,
                            .row = (size_t)span->first_row + t,
                            .first = first,
                            .n_step = (a->shape.d_k + LINEAR_STEP - 1) /
                                      LINEAR_STEP * LINEAR_STEP,
                            .n_panel = (a->shape.d_v + LANES - 1) / LANES};

        n_row = GRID - first < span->n_row - t ? GRID - first : span->n_row - t;
        part.n_row = n_row;
        part.end = first + n_row;
        if (t + 1 == span->n_row) {
            run_one(job, at, job->n_task - task <= job->n_thread, &source, t);
            if (part.end == GRID) {
                part.first = GRID;
                LANES_NAME(delta_place)(&part, scratch);
                fold_rings(&part);
            }
        } else {
            LANES_NAME(delta_place)(&part, scratch);
            run_part(&part);
        }
    }
    delta_keep_tail(&source, at % a->shape.n_k_head);
}

void LANES_NAME(delta_rounded)(struct pool *pool, const struct delta_args *args,
                               const struct product_kernels *kernels)
{
    const struct delta_shape shape = args->shape;
    const struct linear weights = {.type = LINEAR_BF16,
                                   .arithmetic = shape.arithmetic};
    struct job job = {.args = args,
                      .kernel = *product_kernel_of(kernels, &weights),
                      .n_task = args->n_span * shape.n_k_head};
    uint64_t n_row = 0;

    assert(shape.d_k <= HEAD_DIM_MAX && shape.d_v <= HEAD_DIM_MAX);
    assert(shape.n_v_head % shape.n_k_head == 0);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    pool =
        pool_for_fmas(pool, n_row * shape.n_v_head * shape.d_k * shape.d_v / 4);
    job.n_thread = pool_n_thread(pool);
    pool_run(pool, job.n_task, task, &job);
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
