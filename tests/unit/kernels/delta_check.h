#ifndef TESTS_UNIT_KERNELS_DELTA_CHECK_H
#define TESTS_UNIT_KERNELS_DELTA_CHECK_H
/*
 * The delta rule of one backend against ref by bits, in every arithmetic.
 * Without Criterion, so that the program in tests/bench can make the check on a
 * machine that has nothing but a C library. test_delta.c has the same law, and
 * more, over buffers that end at a guard page.
 */
#include "tests/unit/kernels/product_check.h"

#define DELTA_TOKENS 195u
#define DELTA_TAPS 4u

static const struct delta_shape DELTA_SHAPE[] = {
    {1, 1, 1, 1, 0},     {1, 2, 3, 16, 0},    {1, 2, 17, 65, 0},
    {2, 4, 63, 63, 0},   {4, 8, 64, 64, 0},   {1, 1, 65, 17, 0},
    {3, 3, 96, 192, 0},  {2, 2, 128, 128, 0}, {1, 1, 192, 96, 0},
    {1, 1, 256, 256, 0},
};
static const uint32_t DELTA_CUT[] = {DELTA_TOKENS, 1,  2,  15, 16,
                                     17,           31, 40, 64, 70};

/* Memory and inputs of one session. */
struct delta_session {
    struct delta_shape shape;
    size_t qkv_stride, out_stride;
    size_t s_bytes, k_bytes, u_bytes, g_bytes;
    float *qkv, *beta, *log_decay, *out;
    const float *conv; /* weights, if qkv are yet to be convolved */
    struct delta_state state;
};

static inline uint32_t delta_channels(struct delta_shape s)
{
    return 2 * s.n_k_head * s.d_k + s.n_v_head * s.d_v;
}

static inline size_t delta_tail_floats(struct delta_shape s)
{
    return (size_t)(DELTA_TAPS - 1) * delta_channels(s);
}

static inline size_t delta_out_bytes(const struct delta_session *s,
                                     uint32_t n_row)
{
    return n_row * s->out_stride * sizeof(float);
}

/* Empty state, rings full of NaN. */
static inline void delta_reset(struct delta_session *s)
{
    memset(s->state.s, 0, s->s_bytes);
    memset(s->state.ring_k, 0xff, s->k_bytes);
    memset(s->state.ring_u, 0xff, s->u_bytes);
    memset(s->state.ring_g, 0xff, s->g_bytes);
    memset(s->state.tail, 0, delta_tail_floats(s->shape) * sizeof(float));
}

static inline struct delta_session delta_session(struct delta_shape shape,
                                                 uint32_t n_row)
{
    const size_t element = shape.arithmetic == ARITHMETIC_FP32 ? 4 : 2;
    const size_t n_value = (size_t)shape.n_v_head * shape.d_v;
    struct delta_session s = {
        .shape = shape,
        /* Rows a power of two apart would meet in the same cache sets. */
        .qkv_stride = 2 * (size_t)shape.n_k_head * shape.d_k + n_value + 16,
        .out_stride = n_value + 16,
        .s_bytes = n_value * shape.d_k * sizeof(float),
        .k_bytes =
            element * shape.n_k_head * GRID *
            (shape.arithmetic == ARITHMETIC_FP32 ? shape.d_k
                                                 : (shape.d_k + 1) / 2 * 2),
        .u_bytes = element * n_value * GRID,
        .g_bytes = sizeof(double) * shape.n_v_head * GRID,
    };
    const size_t n_gate = (size_t)n_row * shape.n_v_head;

    s.qkv = product_floats(n_row * s.qkv_stride, 1, PRODUCT_NOISE);
    s.beta = product_floats(n_gate, 2, PRODUCT_NOISE);
    s.log_decay = product_floats(n_gate, 3, PRODUCT_NOISE);
    for (size_t i = 0; i < n_gate; i++) {
        s.beta[i] = 0.5f + 0.5f * s.beta[i];
        /* A chunk in which every token counts to its end, then others. */
        s.log_decay[i] = i < (size_t)GRID * shape.n_v_head
                             ? 0.001f * (s.log_decay[i] - 1.0f)
                         : i % 41 == 40 ? -150.0f
                         : i % 13 == 5  ? -6.0f
                                        : 0.1f * (s.log_decay[i] - 1.0f);
    }
    s.out = calloc(1, delta_out_bytes(&s, n_row));
    s.state.s = malloc(s.s_bytes);
    s.state.ring_k = malloc(s.k_bytes);
    s.state.ring_u = malloc(s.u_bytes);
    s.state.ring_g = malloc(s.g_bytes);
    s.state.tail = product_floats(delta_tail_floats(shape), 4, PRODUCT_NOISE);
    delta_reset(&s);
    return s;
}

static inline void delta_release(struct delta_session *s)
{
    free(s->qkv);
    free(s->beta);
    free(s->log_decay);
    free(s->out);
    free(s->state.s);
    free(s->state.ring_k);
    free(s->state.ring_u);
    free(s->state.ring_g);
    free(s->state.tail);
}

/* Rows of the session's inputs for spans that are the caller's. */
static inline void delta_call(const struct delta_session *s,
                              const struct backend *backend, struct pool *pool,
                              const struct delta_span *span, uint32_t n_span)
{
    const size_t n_key = (size_t)s->shape.n_k_head * s->shape.d_k;

    backend->delta(pool, &(struct delta_args){.shape = s->shape,
                                              .out = s->out,
                                              .out_stride = s->out_stride,
                                              .q = s->qkv,
                                              .k = s->qkv + n_key,
                                              .v = s->qkv + 2 * n_key,
                                              .qkv_stride = s->qkv_stride,
                                              .beta = s->beta,
                                              .log_decay = s->log_decay,
                                              .conv = s->conv,
                                              .conv_width = DELTA_TAPS,
                                              .span = span,
                                              .n_span = n_span});
}

/* All tokens, `cut` at a time. */
static inline void delta_play(struct delta_session *s,
                              const struct backend *backend, struct pool *pool,
                              uint32_t cut)
{
    delta_reset(s);
    memset(s->out, 0, delta_out_bytes(s, DELTA_TOKENS));
    for (uint32_t t = 0, n; t < DELTA_TOKENS; t += n) {
        n = DELTA_TOKENS - t < cut ? DELTA_TOKENS - t : cut;
        delta_call(s, backend, pool, &(struct delta_span){t, n, t, s->state},
                   1);
    }
}

/* Outputs show whatever the rings hold; state and tail are compared by
 * themselves. */
static inline bool delta_same(const struct delta_session *got,
                              const struct delta_session *want,
                              const char *name, uint32_t cut)
{
    const size_t n = DELTA_TOKENS * got->out_stride;
    const size_t at = product_difference(got->out, want->out, n);
    const bool is_same =
        at == n && memcmp(got->state.s, want->state.s, got->s_bytes) == 0 &&
        memcmp(got->state.tail, want->state.tail,
               delta_tail_floats(got->shape) * sizeof(float)) == 0;

    if (!is_same)
        printf("%s, arithmetic %d, %u/%u heads of %u x %u, %s rows, cut %u: "
               "row %zu of %u differs first\n",
               name, (int)got->shape.arithmetic, got->shape.n_k_head,
               got->shape.n_v_head, got->shape.d_k, got->shape.d_v,
               got->conv ? "raw" : "convolved", cut, at / got->out_stride,
               DELTA_TOKENS);
    return is_same;
}

/* What ref makes of all tokens, the raw ones convolved before. */
static inline void delta_want(struct delta_session *want,
                              const struct delta_session *raw,
                              const struct backend *ref)
{
    const struct conv_span span = {0, DELTA_TOKENS, raw->state.tail};

    if (raw->conv)
        ref->conv(NULL,
                  &(struct conv_args){.y = want->qkv,
                                      .y_stride = want->qkv_stride,
                                      .x = raw->qkv,
                                      .x_stride = raw->qkv_stride,
                                      .weight = raw->conv,
                                      .n_channel = delta_channels(raw->shape),
                                      .width = DELTA_TAPS,
                                      .span = &span,
                                      .n_span = 1});
    delta_play(want, ref, NULL, DELTA_TOKENS);
    memcpy(want->state.tail, raw->state.tail,
           delta_tail_floats(raw->shape) * sizeof(float));
}

/* How many plays of one shape differ from ref; conv: the weights, or NULL. */
static inline size_t delta_check(struct delta_shape shape, const float *conv,
                                 const struct backend *backend,
                                 const struct backend *ref,
                                 struct pool *const *pool, size_t n_pool)
{
    struct delta_session want = delta_session(shape, DELTA_TOKENS);
    struct delta_session got = delta_session(shape, DELTA_TOKENS);
    size_t n_bad = 0;

    got.conv = conv;
    delta_want(&want, &got, ref);
    for (size_t c = 0; c < PRODUCT_COUNT(DELTA_CUT); c++) {
        delta_play(&got, backend, pool[c % n_pool], DELTA_CUT[c]);
        n_bad += !delta_same(&got, &want, backend->name, DELTA_CUT[c]);
    }
    delta_release(&want);
    delta_release(&got);
    return n_bad;
}

/* How many plays differ from ref. */
static inline size_t delta_check_all(const struct backend *backend,
                                     const struct backend *ref,
                                     struct pool *const *pool, size_t n_pool)
{
    size_t n_bad = 0;

    for (size_t i = 0; i < PRODUCT_COUNT(DELTA_SHAPE) * N_CPU_ARITHMETIC; i++) {
        struct delta_shape shape = DELTA_SHAPE[i / N_CPU_ARITHMETIC];
        float *conv = product_floats((size_t)DELTA_TAPS * delta_channels(shape),
                                     5, PRODUCT_NOISE);

        shape.arithmetic = (enum arithmetic)(i % N_CPU_ARITHMETIC);
        n_bad += delta_check(shape, NULL, backend, ref, pool, n_pool);
        if (backend->delta_convolves)
            n_bad += delta_check(shape, conv, backend, ref, pool, n_pool);
        free(conv);
    }
    return n_bad;
}
#endif
