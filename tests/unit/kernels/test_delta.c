/*
 * The gated delta rule against its plain recurrence in double, one token at a
 * time with the full state, as the paper writes it:
 *     S <- e^g S;  d = beta (v - S^T k);  S <- S + k d^T;  o = S^T q
 * Then every backend, cut, batch and thread count against one call of ref,
 * by bits, outputs and all that a session keeps.
 */
#include "tests/unit/kernels/fixture.h"

enum { N_TOKEN = 195 };

static const struct delta_shape SHAPES[] = {
    {1, 1, 1, 1, 0},    {1, 2, 3, 16, 0},  {4, 8, 64, 64, 0},
    {3, 3, 96, 192, 0}, {2, 6, 63, 65, 0}, {1, 3, 16, 63, 0},
    {2, 2, 128, 17, 0}, {1, 2, 17, 3, 0},  {1, 1, 256, 128, 0},
    {1, 1, 65, 256, 0},
};

/* Relative to the largest output, of outputs and of the folded state: what one
 * rounding to bf16 of every factor of every product may do, 2^-9 each. */
static const double TOLERANCE[N_CPU_ARITHMETIC] = {
    [ARITHMETIC_FP32] = 1e-5,
    [ARITHMETIC_PAIR] = 5e-3,
    [ARITHMETIC_TILE] = 5e-3,
};

/* Every shape in every arithmetic. */
#define N_CASE (COUNT(SHAPES) * N_CPU_ARITHMETIC)

static struct delta_shape shape_of(size_t i)
{
    struct delta_shape shape = SHAPES[i % COUNT(SHAPES)];

    shape.arithmetic = (enum arithmetic)(i / COUNT(SHAPES));
    return shape;
}

struct session {
    struct delta_shape shape;
    size_t stride; /* of q | k | v rows */
    size_t out_stride;
    float *qkv, *beta, *log_decay;
    struct delta_state state;
    float *conv; /* weights, if qkv are rows before their convolution */
    uint32_t conv_width;
};

static uint32_t n_channel_of(struct delta_shape s)
{
    return 2 * s.n_k_head * s.d_k + s.n_v_head * s.d_v;
}

static size_t tail_floats(const struct session *s)
{
    return s->conv ? (size_t)(s->conv_width - 1) * n_channel_of(s->shape) : 0;
}

static size_t state_floats(struct delta_shape s)
{
    return (size_t)s.n_v_head * s.d_k * s.d_v;
}

/* Both rings in floats; of two bf16 each in PAIR and TILE. */
static size_t ring_k_floats(struct delta_shape s)
{
    const size_t rows =
        s.arithmetic == ARITHMETIC_FP32 ? s.d_k : (s.d_k + 1) / 2;

    return s.n_k_head * rows * GRID;
}

static size_t ring_u_floats(struct delta_shape s)
{
    const size_t rows = s.arithmetic == ARITHMETIC_FP32 ? GRID : GRID / 2;

    return s.n_v_head * rows * s.d_v;
}

static void session_init(struct session *s, struct delta_shape shape,
                         uint64_t seed)
{
    s->shape = shape;
    s->stride = 2 * (size_t)shape.n_k_head * shape.d_k +
                (size_t)shape.n_v_head * shape.d_v + 1;
    s->out_stride = (size_t)shape.n_v_head * shape.d_v + 2;
    s->qkv = filled(N_TOKEN * s->stride, seed);
    s->beta = filled((size_t)N_TOKEN * shape.n_v_head, seed + 1);
    s->log_decay = filled((size_t)N_TOKEN * shape.n_v_head, seed + 2);
    for (size_t i = 0; i < (size_t)N_TOKEN * shape.n_v_head; i++) {
        s->beta[i] = 0.5f + 0.5f * s->beta[i];
        s->log_decay[i] = 0.1f * (s->log_decay[i] - 1.0f);
        if (i % 41 == 40) /* a token that forgets everything */
            s->log_decay[i] = -150.0f;
        if (i % 7 == 3)
            s->log_decay[i] = 0.0f;
        if (i % 13 == 5) /* states fade until they are subnormal */
            s->log_decay[i] = -6.0f;
    }
    /* A row of zeros has no direction; the epsilon keeps it finite. */
    memset(s->qkv + 100 * s->stride, 0, s->stride * sizeof(float));
    s->state.s = room(state_floats(shape));
    s->state.ring_k = room(ring_k_floats(shape));
    s->state.ring_u = room(ring_u_floats(shape));
    s->state.ring_g = malloc((size_t)shape.n_v_head * GRID * sizeof(double));
    s->state.copy = NULL;
    s->state.made_of = NULL;
    s->state.tail = NULL;
    s->conv = NULL;
    if (shape.arithmetic != ARITHMETIC_FP32 && shape.d_k % 2 == 0 &&
        shape.d_v % 16 == 0) {
        s->state.copy = (uint32_t *)(void *)room(state_floats(shape) / 2);
        s->state.made_of = calloc(shape.n_v_head, sizeof(uint64_t));
    }
    cr_assert(s->state.ring_g != NULL);
}

/* Empty state; the ring holds `value`, which nobody may see. As two bf16 NAN is
 * one of those that stay and a zero. */
static void reset(struct session *s, float value)
{
    for (size_t i = 0; s->state.copy && i < state_floats(s->shape) / 2; i++)
        s->state.copy[i] = UINT32_MAX;
    if (s->state.copy)
        memset(s->state.made_of, 0, s->shape.n_v_head * sizeof(uint64_t));
    memset(s->state.s, 0, state_floats(s->shape) * sizeof(float));
    if (s->state.tail)
        memset(s->state.tail, 0, tail_floats(s) * sizeof(float));
    for (size_t i = 0; i < ring_k_floats(s->shape); i++)
        ((float *)s->state.ring_k)[i] = value;
    for (size_t i = 0; i < ring_u_floats(s->shape); i++)
        ((float *)s->state.ring_u)[i] = value;
    for (size_t i = 0; i < (size_t)s->shape.n_v_head * GRID; i++)
        s->state.ring_g[i] = (double)value;
}

static void state_free(struct delta_state *state)
{
    drop(state->s);
    drop(state->ring_k);
    drop(state->ring_u);
    if (state->copy)
        drop((float *)(void *)state->copy);
    if (state->tail)
        drop(state->tail);
    free(state->made_of);
    free(state->ring_g);
}

static void session_release(struct session *s)
{
    drop(s->qkv);
    if (s->conv)
        drop(s->conv);
    drop(s->beta);
    drop(s->log_decay);
    state_free(&s->state);
}

static size_t out_floats(const struct session *s)
{
    return N_TOKEN * s->out_stride;
}

static void run(const struct session *s, const struct backend *backend,
                struct pool *pool, uint32_t first, uint32_t n, float *out)
{
    struct delta_span span = {first, n, first, s->state};
    size_t n_k = (size_t)s->shape.n_k_head * s->shape.d_k;
    struct delta_args args = {.shape = s->shape,
                              .out = out,
                              .out_stride = s->out_stride,
                              .q = s->qkv,
                              .k = s->qkv + n_k,
                              .v = s->qkv + 2 * n_k,
                              .qkv_stride = s->stride,
                              .beta = s->beta,
                              .log_decay = s->log_decay,
                              .conv = s->conv,
                              .conv_width = s->conv_width,
                              .span = &span,
                              .n_span = 1};
    backend->delta(pool, &args);
}

/* The u of the first `used` tokens of one head, also of half a word. */
static void keep_u(float *to, const float *from, struct delta_shape shape,
                   size_t used)
{
    const size_t d_v = shape.d_v;

    if (shape.arithmetic == ARITHMETIC_FP32) {
        memcpy(to, from, used * d_v * sizeof(float));
        return;
    }
    memcpy(to, from, used / 2 * d_v * sizeof(float));
    for (size_t e = 0; e < d_v && used % 2; e++)
        memcpy(to + used / 2 * d_v + e, from + used / 2 * d_v + e,
               sizeof(uint16_t));
}

/* What a session keeps at its end, without the ring's unused entries. */
static struct delta_state kept(const struct session *s)
{
    struct delta_shape shape = s->shape;
    size_t used = N_TOKEN % GRID, n_u = ring_u_floats(shape) / shape.n_v_head;
    struct delta_state copy = {.s = copied(s->state.s, state_floats(shape)),
                               .ring_k = constant(ring_k_floats(shape), 0.0f),
                               .ring_u = constant(ring_u_floats(shape), 0.0f),
                               .ring_g =
                                   calloc((size_t)shape.n_v_head * GRID, 8)};
    cr_assert(copy.ring_g != NULL);
    if (s->state.tail)
        copy.tail = copied(s->state.tail, tail_floats(s));
    for (size_t d = 0; d < ring_k_floats(shape) / GRID; d++)
        memcpy((float *)copy.ring_k + d * GRID,
               (float *)s->state.ring_k + d * GRID, used * sizeof(float));
    for (size_t h = 0; h < shape.n_v_head; h++) {
        keep_u((float *)copy.ring_u + h * n_u,
               (float *)s->state.ring_u + h * n_u, shape, used);
        memcpy(copy.ring_g + h * GRID, s->state.ring_g + h * GRID,
               used * sizeof(double));
    }
    return copy;
}

/* The same bits and no NaN among them, of floats or of pairs of bf16. */
static void assert_same_ring(const struct session *s, const float *got,
                             const float *want, size_t n, const char *what)
{
    const uint16_t *half = (const uint16_t *)(const void *)got;

    if (s->shape.arithmetic == ARITHMETIC_FP32) {
        assert_same(got, want, n, what);
        return;
    }
    cr_assert(memcmp(got, want, n * sizeof(float)) == 0, "%s: rings differ",
              what);
    for (size_t i = 0; i < 2 * n; i++)
        cr_assert(half[i] % 0x8000 <= 0x7f80, "%s: NaN in a ring", what);
}

static void assert_kept(const struct session *s, const struct delta_state *want,
                        const char *what)
{
    struct delta_state got = kept(s);

    assert_same(got.s, want->s, state_floats(s->shape), what);
    assert_same_ring(s, got.ring_k, want->ring_k, ring_k_floats(s->shape),
                     what);
    assert_same_ring(s, got.ring_u, want->ring_u, ring_u_floats(s->shape),
                     what);
    cr_assert(memcmp(got.ring_g, want->ring_g,
                     (size_t)s->shape.n_v_head * GRID * sizeof(double)) == 0,
              "%s: log decays differ", what);
    if (got.tail)
        assert_same(got.tail, want->tail, tail_floats(s), what);
    state_free(&got);
}

static float *whole(struct session *s)
{
    float *out = constant(out_floats(s), 0.0f);

    reset(s, 0.0f);
    run(s, backend_ref_found(), NULL, 0, N_TOKEN, out);
    return out;
}

static void unit(double *y, const float *x, uint32_t n, double scale)
{
    double sum = 1e-6;

    for (uint32_t d = 0; d < n; d++)
        sum += (double)x[d] * (double)x[d];
    for (uint32_t d = 0; d < n; d++)
        y[d] = (double)x[d] / sqrt(sum) * scale;
}

/* One token of one head: state [d_k][d_v] forward, out [d_v]. */
static void oracle_step(const struct session *s, uint32_t t, size_t head,
                        double *state, double *out)
{
    uint32_t d_k = s->shape.d_k, d_v = s->shape.d_v;
    size_t g = head * s->shape.n_k_head / s->shape.n_v_head;
    size_t n_k = (size_t)s->shape.n_k_head * d_k;
    const float *row = s->qkv + t * s->stride;
    const float *v = row + 2 * n_k + head * d_v;
    double q[HEAD_DIM_MAX], k[HEAD_DIM_MAX];
    double decay = exp((double)s->log_decay[t * s->shape.n_v_head + head]);
    double beta = (double)s->beta[t * s->shape.n_v_head + head];

    unit(q, row + g * d_k, d_k, 1.0 / sqrt(d_k));
    unit(k, row + n_k + g * d_k, d_k, 1.0);
    for (uint32_t e = 0; e < d_v; e++) {
        double read = 0.0;
        for (uint32_t d = 0; d < d_k; d++) {
            state[d * d_v + e] *= decay;
            read += state[d * d_v + e] * k[d];
        }
        double delta = beta * ((double)v[e] - read);
        out[e] = 0.0;
        for (uint32_t d = 0; d < d_k; d++) {
            state[d * d_v + e] += k[d] * delta;
            out[e] += state[d * d_v + e] * q[d];
        }
    }
}

Test(delta, ref_is_the_papers_recurrence)
{
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s;
        session_init(&s, shape_of(i), 10 * i);
        const double bound = TOLERANCE[s.shape.arithmetic];
        float *out = whole(&s);
        size_t d_v = s.shape.d_v;
        double *state = malloc(s.shape.d_k * d_v * sizeof(double));
        double want[HEAD_DIM_MAX];
        for (size_t h = 0; h < s.shape.n_v_head; h++) {
            memset(state, 0, s.shape.d_k * d_v * sizeof(double));
            for (uint32_t t = 0; t < N_TOKEN; t++) {
                oracle_step(&s, t, h, state, want);
                assert_near(out + t * s.out_stride + h * d_v, want, d_v, bound,
                            "delta");
                if (t == N_TOKEN / GRID * GRID - 1)
                    assert_near(s.state.s + h * s.shape.d_k * d_v, state,
                                s.shape.d_k * d_v, bound, "state");
            }
        }
        free(state);
        drop(out);
        session_release(&s);
    }
}

static void check_cuts(struct session *s, const struct backend *backend,
                       struct pool *pool, const float *want,
                       const struct delta_state *want_kept)
{
    static const uint32_t CUTS[] = {1, 2, 7, 63, 64, 65, 130, N_TOKEN};
    char what[128];

    for (size_t c = 0; c < COUNT(CUTS); c++) {
        float *out = constant(out_floats(s), 0.0f);
        reset(s, NAN);
        for (uint32_t t = 0, end; t < N_TOKEN; t = end) {
            end = t + CUTS[c] < N_TOKEN ? t + CUTS[c] : N_TOKEN;
            run(s, backend, pool, t, end - t, out);
            /* Rows of other sessions may follow: they are left alone. */
            size_t done = end * s->out_stride;
            cr_assert(is_zero(out + done, out_floats(s) - done));
        }
        snprintf(what, sizeof(what),
                 "%s, arithmetic %d, %u/%u heads of %u x %u, cut %u",
                 backend->name, (int)s->shape.arithmetic, s->shape.n_k_head,
                 s->shape.n_v_head, s->shape.d_k, s->shape.d_v, CUTS[c]);
        assert_same(out, want, out_floats(s), what);
        assert_kept(s, want_kept, what);
        drop(out);
    }
}

Test(delta, every_backend_cut_and_thread_count_gives_refs_bits)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s;
        session_init(&s, shape_of(i), 10 * i);
        float *want = whole(&s);
        struct delta_state want_kept = kept(&s);
        EACH_BACKEND(backend)
        {
            if (backend == backend_ref_found()) {
                if (i % COUNT(SHAPES) < 2)
                    check_cuts(&s, backend, NULL, want, &want_kept);
                continue;
            }
            for (uint32_t p = 0; p < N_POOL; p++)
                check_cuts(&s, backend, pools[p], want, &want_kept);
        }
        state_free(&want_kept);
        drop(want);
        session_release(&s);
    }
    pools_destroy(pools);
}

/* s keeps raw rows, which ref convolves for `plain`; returns the tail that this
 * leaves. */
static float *convolve_apart(struct session *s, struct session *plain)
{
    float *tail;
    struct conv_span span = {.n_row = N_TOKEN};

    s->conv = filled((size_t)s->conv_width * n_channel_of(s->shape), 8);
    s->state.tail = room(tail_floats(s));
    tail = constant(tail_floats(s), 0.0f);
    span.tail = tail;
    backend_ref_found()->conv(
        NULL, &(struct conv_args){.y = plain->qkv,
                                  .y_stride = plain->stride,
                                  .x = s->qkv,
                                  .x_stride = s->stride,
                                  .weight = s->conv,
                                  .n_channel = n_channel_of(s->shape),
                                  .width = s->conv_width,
                                  .span = &span,
                                  .n_span = 1});
    return tail;
}

Test(delta, what_it_convolves_by_itself_has_the_bits_of_the_convolution)
{
    static const uint32_t WIDTH[] = {4, 2, 8, 1};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s, plain;
        session_init(&s, shape_of(i), 10 * i);
        session_init(&plain, shape_of(i), 10 * i);
        s.conv_width = WIDTH[i % COUNT(WIDTH)];
        float *tail = convolve_apart(&s, &plain), *want = whole(&plain);
        struct delta_state want_kept = kept(&plain);
        want_kept.tail = tail;
        EACH_BACKEND(backend)
        for (uint32_t p = 0; p < N_POOL && backend->delta_convolves; p++)
            check_cuts(&s, backend, pools[p], want, &want_kept);
        state_free(&want_kept);
        drop(want);
        session_release(&plain);
        session_release(&s);
    }
    pools_destroy(pools);
}

/* The second call begins at every place of the grid and crosses its points. */
static void check_every_cut(struct delta_shape shape)
{
    struct session s;
    session_init(&s, shape, 3);
    float *want = whole(&s);
    struct delta_state want_kept = kept(&s);

    EACH_BACKEND(backend)
    for (uint32_t cut = 1; cut < 2 * GRID && backend != backend_ref_found();
         cut++) {
        float *out = constant(out_floats(&s), 0.0f);
        reset(&s, NAN);
        run(&s, backend, NULL, 0, cut, out);
        run(&s, backend, NULL, cut, N_TOKEN - cut, out);
        assert_same(out, want, out_floats(&s), backend->name);
        assert_kept(&s, &want_kept, backend->name);
        drop(out);
    }
    state_free(&want_kept);
    drop(want);
    session_release(&s);
}

Test(delta, a_prompt_may_be_cut_at_every_position)
{
    for (size_t i = 4; i < N_CASE; i += COUNT(SHAPES))
        check_every_cut(shape_of(i));
}

/* A draft writes records behind the cursor; going back is moving the cursor,
 * and the records of another future leave no trace. */
static void check_draft(struct delta_shape shape)
{
    struct session s, draft;
    session_init(&s, shape, 1);
    session_init(&draft, shape, 77);
    float *want = whole(&s);
    struct delta_state want_kept = kept(&s);

    EACH_BACKEND(backend)
    {
        float *out = constant(out_floats(&s), 0.0f);
        float *lost = constant(out_floats(&s), 0.0f);
        struct session other = draft;
        other.state = s.state;
        reset(&s, 0.0f);
        run(&s, backend, NULL, 0, 130, out);
        run(&other, backend, NULL, 130, 9, lost);
        run(&s, backend, NULL, 130, 4, out);
        run(&other, backend, NULL, 134, 5, lost);
        run(&s, backend, NULL, 134, N_TOKEN - 134, out);
        assert_same(out, want, out_floats(&s), backend->name);
        assert_kept(&s, &want_kept, backend->name);
        drop(out);
        drop(lost);
    }
    state_free(&want_kept);
    drop(want);
    session_release(&s);
    session_release(&draft);
}

Test(delta, a_rejected_draft_leaves_no_trace)
{
    for (size_t i = 4; i < N_CASE; i += COUNT(SHAPES))
        check_draft(shape_of(i));
}

/* Sessions at unlike places of the grid in one batch. */
static void check_batch(struct delta_shape shape)
{
    static const uint32_t POSITION[] = {3, 60, 127}, N_ROW[] = {70, 1, 9};
    static const uint32_t FIRST_ROW[] = {10, 0, 1};
    struct session s[3], batch;
    struct pool *pools[N_POOL];
    float *want[3];

    pools_create(pools);
    session_init(&batch, shape, 9);
    for (size_t i = 0; i < 3; i++) {
        session_init(&s[i], shape, 100 * (i + 1));
        want[i] = whole(&s[i]);
        size_t n_v = s[i].shape.n_v_head;
        memcpy(batch.qkv + FIRST_ROW[i] * s[i].stride,
               s[i].qkv + POSITION[i] * s[i].stride,
               N_ROW[i] * s[i].stride * sizeof(float));
        memcpy(batch.beta + FIRST_ROW[i] * n_v, s[i].beta + POSITION[i] * n_v,
               N_ROW[i] * n_v * sizeof(float));
        memcpy(batch.log_decay + FIRST_ROW[i] * n_v,
               s[i].log_decay + POSITION[i] * n_v,
               N_ROW[i] * n_v * sizeof(float));
    }
    size_t n_k = (size_t)batch.shape.n_k_head * batch.shape.d_k;
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        float *out = constant(out_floats(&batch), 0.0f);
        struct delta_span span[3];
        for (size_t i = 0; i < 3; i++) {
            reset(&s[i], 0.0f);
            run(&s[i], backend, NULL, 0, POSITION[i], out);
            span[i] = (struct delta_span){FIRST_ROW[i], N_ROW[i], POSITION[i],
                                          s[i].state};
        }
        memset(out, 0, out_floats(&batch) * sizeof(float));
        struct delta_args args = {.shape = batch.shape,
                                  .out = out,
                                  .out_stride = batch.out_stride,
                                  .q = batch.qkv,
                                  .k = batch.qkv + n_k,
                                  .v = batch.qkv + 2 * n_k,
                                  .qkv_stride = batch.stride,
                                  .beta = batch.beta,
                                  .log_decay = batch.log_decay,
                                  .span = span,
                                  .n_span = 3};
        backend->delta(pools[p], &args);
        for (size_t i = 0; i < 3; i++)
            assert_same(out + FIRST_ROW[i] * batch.out_stride,
                        want[i] + POSITION[i] * batch.out_stride,
                        N_ROW[i] * batch.out_stride, backend->name);
        drop(out);
    }
    for (size_t i = 0; i < 3; i++) {
        drop(want[i]);
        session_release(&s[i]);
    }
    session_release(&batch);
    pools_destroy(pools);
}

Test(delta, a_batch_gives_each_session_its_own_bits)
{
    for (size_t i = 4; i < N_CASE; i += COUNT(SHAPES))
        check_batch(shape_of(i));
}

/* Summed in float, many small decays lose a tenth of the whole; header. */
Test(delta, log_decays_add_up_in_double)
{
    struct session s;
    session_init(&s, SHAPES[0], 1);
    for (size_t t = 0; t < GRID - 1; t++)
        s.log_decay[t] = t ? -1e-9f : -16.0f;

    EACH_BACKEND(backend)
    {
        float *out = constant(out_floats(&s), 0.0f);
        reset(&s, 0.0f);
        run(&s, backend, NULL, 0, GRID - 1, out);
        double want = -16.0 + (GRID - 2) * (double)-1e-9f;
        cr_assert(epsilon_eq(dbl, s.state.ring_g[GRID - 2], want, 1e-13), "%s",
                  backend->name);
        drop(out);
    }
    session_release(&s);
}
