/*
 * The delta rule and what stands around it, checked and measured without a
 * model:
 *     bench_delta check [BACKEND]
 *     bench_delta rates BACKEND fp32|pair|tile THREADS [MODEL]
 * It needs nothing but kernels/ and a C library, so that it also runs where the
 * instructions are and the node's libraries are not. Rates are the best of many
 * short runs, for one layer: a prompt of 512 rows, then decode of some sessions
 * in the middle of a chunk, whose states are as many as need come from memory.
 */
#include "base/clock.h"
#include "tests/bench/check.h"
#include "tests/unit/kernels/delta_check.h"

#define N_RUN 41u
#define PROMPT 512u
#define MEMORY_BYTES ((size_t)64 << 20) /* of states that decode passes */
#define N_SESSION_MAX 1024u
#define CONV_WIDTH 4u

/* ------------------------------------------------------------------- rates */

static const struct delta_shape MODEL[] = {
    {4, 8, 64, 64, 0},     /* godwit-tiny */
    {16, 16, 128, 128, 0}, /* 0.8B */
    {16, 32, 128, 128, 0}, /* 4B */
};

struct bench {
    const struct backend *backend;
    struct pool *pool;
    struct delta_session prompt;
    struct delta_session memory[N_SESSION_MAX];
    uint32_t n_memory, turn; /* sessions, and the next one to decode */
    uint32_t n_span;         /* of one decode step */
    float *fused, *weight, *tail;
};

typedef void work(struct bench *b);

static void run_prompt(struct bench *b)
{
    struct delta_session *s = &b->prompt;

    delta_call(s, b->backend, b->pool,
               &(struct delta_span){0, PROMPT, 0, s->state}, 1);
}

/* Of rows that are convolved where they are needed. */
static void run_raw(struct bench *b)
{
    struct delta_session raw = b->prompt;

    raw.qkv = b->fused;
    raw.conv = b->weight;
    delta_call(&raw, b->backend, b->pool,
               &(struct delta_span){0, PROMPT, 0, raw.state}, 1);
}

static void run_decode(struct bench *b)
{
    struct delta_span span[32];

    for (uint32_t i = 0; i < b->n_span; i++, b->turn++)
        span[i] = (struct delta_span){i, 1, GRID / 2,
                                      b->memory[b->turn % b->n_memory].state};
    delta_call(&b->prompt, b->backend, b->pool, span, b->n_span);
}

static void run_conv(struct bench *b)
{
    const struct delta_session *s = &b->prompt;
    const struct conv_span span = {0, PROMPT, b->tail};

    b->backend->conv(b->pool,
                     &(struct conv_args){.y = s->qkv,
                                         .y_stride = s->qkv_stride,
                                         .x = b->fused,
                                         .x_stride = s->qkv_stride,
                                         .weight = b->weight,
                                         .n_channel = (uint32_t)s->qkv_stride,
                                         .width = CONV_WIDTH,
                                         .span = &span,
                                         .n_span = 1});
}

static void run_norm(struct bench *b)
{
    const struct delta_session *s = &b->prompt;
    const struct norm_args norm = {.y = s->out,
                                   .y_stride = s->out_stride,
                                   .x = s->out,
                                   .x_stride = s->out_stride,
                                   .weight = b->weight,
                                   .n_row = PROMPT,
                                   .n_group = s->shape.n_v_head,
                                   .dim = s->shape.d_v,
                                   .eps = 1e-6f};

    b->backend->gated_norm(
        b->pool, &(struct gated_norm_args){norm, b->fused, s->qkv_stride});
}

/* Microseconds of the best run. */
static double best_us(struct bench *b, work *run)
{
    const struct clock *clock = clock_real();
    double best = INFINITY;

    for (uint32_t i = 0; i < N_RUN; i++) {
        const uint64_t start = clock->now_us(clock);

        run(b);
        best = fmin(best, (double)(clock->now_us(clock) - start));
    }
    return best;
}

static void print_rate(struct bench *b, const char *what, uint32_t n_row,
                       double bytes, work *run)
{
    const struct delta_shape s = b->prompt.shape;
    const double us = best_us(b, run);

    printf("%s\t%d\t%u\t%u/%u of %u x %u\t%s\t%u\t%.1f\t%.3f\t%.1f\n",
           b->backend->name, (int)s.arithmetic, pool_n_thread(b->pool),
           s.n_k_head, s.n_v_head, s.d_k, s.d_v, what, n_row, us, us / n_row,
           bytes / us / 1e3);
    fflush(stdout);
}

/* No zeros, which the system may keep in one page for all. */
static void fill(const struct delta_session *s)
{
    const struct delta_state *state = &s->state;

    for (size_t i = 0; i < s->s_bytes / sizeof(float); i++)
        state->s[i] = (float)(i % 17) * 0.01f;
    memset(state->ring_k, 0x3c, s->k_bytes);
    memset(state->ring_u, 0x3c, s->u_bytes);
    for (size_t i = 0; i < s->g_bytes / sizeof(double); i++)
        state->ring_g[i] = -1e-3 * (double)(i % GRID + 1);
}

static void measure(struct bench *b, struct delta_shape shape)
{
    const double read = (double)shape.n_v_head * shape.d_k * shape.d_v * 4;
    size_t n;

    b->prompt = delta_session(shape, PROMPT);
    n = b->prompt.qkv_stride;
    b->fused = product_floats(PROMPT * n, 4, PRODUCT_NOISE);
    b->weight = product_floats(CONV_WIDTH * n, 5, PRODUCT_NOISE);
    b->tail = product_floats(CONV_WIDTH * n, 6, PRODUCT_NOISE);
    b->n_memory = (uint32_t)((double)MEMORY_BYTES / read) + 32;
    for (uint32_t i = 0; i < b->n_memory; i++) {
        b->memory[i] = delta_session(shape, 1);
        fill(&b->memory[i]);
    }
    print_rate(b, "delta", PROMPT, 0, run_prompt);
    if (b->backend->delta_convolves)
        print_rate(b, "delta with conv", PROMPT, 0, run_raw);
    print_rate(b, "conv", PROMPT, 8.0 * PROMPT * (double)n, run_conv);
    print_rate(b, "gated norm", PROMPT, 0, run_norm);
    for (b->n_span = 1; b->n_span <= 32; b->n_span *= 8)
        print_rate(b, "decode", b->n_span, b->n_span * read, run_decode);
    for (uint32_t i = 0; i < b->n_memory; i++)
        delta_release(&b->memory[i]);
    delta_release(&b->prompt);
    free(b->fused);
    free(b->weight);
    free(b->tail);
}

static int rates(int argc, char **argv)
{
    static struct bench b;

    if (backend_find(argv[2], &b.backend))
        return fail(argv[2]);
    if (pool_create((uint32_t)strtoul(argv[4], NULL, 10), &b.pool))
        return fail("pool");
    printf("backend\tarithmetic\tthreads\theads\toperator\trows\tus\tus a row\t"
           "GB/s of states, of activations\n");
    for (size_t i = 0; i < PRODUCT_COUNT(MODEL); i++) {
        struct delta_shape shape = MODEL[i];

        if (argc > 5 && strtoul(argv[5], NULL, 10) != i)
            continue;
        shape.arithmetic = strcmp(argv[3], "tile") == 0   ? ARITHMETIC_TILE
                           : strcmp(argv[3], "pair") == 0 ? ARITHMETIC_PAIR
                                                          : ARITHMETIC_FP32;
        measure(&b, shape);
    }
    pool_destroy(b.pool);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "check") == 0)
        return check(argv[2], delta_check_all, "delta rules");
    if (argc >= 5 && strcmp(argv[1], "rates") == 0)
        return rates(argc, argv);
    fprintf(stderr, "usage: bench_delta check [BACKEND]\n"
                    "       bench_delta rates BACKEND fp32|pair|tile "
                    "THREADS [MODEL]\n");
    return 2;
}
