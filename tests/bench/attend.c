/*
 * Attention, checked and measured without a model:
 *     bench_attend check [BACKEND]
 *     bench_attend rates BACKEND fp32|pair|tile THREADS
 * Like bench_linear it needs nothing but kernels/, node/peak and a C library.
 * Rates are medians of five, for rows behind a past of some tokens: many of one
 * session (prefill), or one each of several (decode). Each line holds the share
 * of the bounds that were measured at the beginning: of the arithmetic's
 * products, and of reading keys and values, of a past of that size.
 */
#include "base/clock.h"
#include "node/peak.h"
#include "tests/bench/check.h"
#include "tests/unit/kernels/attend_check.h"

#define N_RUN 5u
#define RUN_US 30000u
#define ROWS 256u
#define SESSIONS_MAX 8u

/* ------------------------------------------------------------------- rates */

static const struct attend_case SHAPE[] = {
    {{4, 2, 64, 0, 0}, 16},  /* godwit-tiny */
    {{8, 2, 256, 0, 0}, 64}, /* 0.8B */
    {{32, 8, 128, 0, 0}, 128},
};

/* Rows a session, sessions, tokens behind which they stand. */
static const struct {
    uint32_t n_row, n_session, past;
} POINT[] = {
    {ROWS, 1, 4096}, {ROWS, 1, 32768}, {1, 1, 4096},
    {1, 8, 4096},    {1, 1, 32768},    {1, 8, 32768},
};

struct bench {
    const struct backend *backend;
    struct pool *pool;
    struct attend_shape shape;
    struct rope_table table;
    struct attend_span span[SESSIONS_MAX];
    uint32_t n_session;
    size_t block_bytes;
    double flops, read; /* bounds, a second */
    float *q, *out;
    unsigned char *memory; /* blocks of all sessions */
    void **block;
};

/* Blocks of noise: any bytes whose exponents are small will do. */
static enum status open_bench(struct bench *b, const struct attend_case *c,
                              size_t point)
{
    const uint32_t n_block = POINT[point].past / KV_BLOCK + ROWS / KV_BLOCK;
    const size_t n_row = (size_t)ROWS * c->shape.n_head * c->shape.d_head;
    const size_t n_angle = (size_t)n_block * KV_BLOCK * c->n_rot / 2 + 1;
    uint64_t seed = 1;
    size_t n_byte;

    b->n_session = POINT[point].n_session;
    b->block_bytes = kv_block_bytes(b->shape);
    n_byte = b->n_session * n_block * b->block_bytes;
    b->memory = aligned_alloc(64, n_byte);
    b->block = malloc(b->n_session * n_block * sizeof(*b->block));
    b->q = product_floats(n_row, 2, PRODUCT_NOISE);
    b->out = malloc(n_row * sizeof(*b->out));
    b->table =
        (struct rope_table){c->n_rot, (uint64_t)n_block * KV_BLOCK,
                            product_floats(n_angle, 3, PRODUCT_NOISE),
                            product_floats(n_angle, 4, PRODUCT_NOISE), NULL};
    for (size_t i = 0; i < n_byte; i += sizeof(uint64_t)) {
        uint64_t bits = product_random(&seed) & 0x80ff80ff80ff80ffu;

        bits |= 0x3f003f003f003f00u;
        memcpy(b->memory + i, &bits, sizeof(bits));
    }
    for (uint32_t s = 0; s < b->n_session; s++) {
        void **block = b->block + (size_t)s * n_block;

        for (uint32_t i = 0; i < n_block; i++)
            block[i] = b->memory + ((size_t)s * n_block + i) * b->block_bytes;
        b->span[s] = (struct attend_span){s, POINT[point].n_row,
                                          POINT[point].past, block, NULL};
    }
    return peak_read_bytes(b->pool, n_byte, &b->read);
}

static void close_bench(struct bench *b)
{
    free(b->memory);
    free(b->block);
    free(b->q);
    free(b->out);
    free(b->table.cos);
    free(b->table.sin);
}

/* Microseconds of one call. */
static double time_calls(struct bench *b)
{
    const size_t stride = (size_t)b->shape.n_head * b->shape.d_head;
    const struct attend_args args = {.shape = b->shape,
                                     .out = b->out,
                                     .out_stride = stride,
                                     .q = b->q,
                                     .q_stride = stride,
                                     .table = &b->table,
                                     .scale = 0.01f,
                                     .span = b->span,
                                     .n_span = b->n_session};
    const struct clock *clock = clock_real();
    const uint64_t start = clock->now_us(clock);
    uint64_t now = start;
    uint32_t n = 0;

    for (; now - start < RUN_US; n++, now = clock->now_us(clock))
        b->backend->attend(b->pool, &args);
    return (double)(now - start) / n;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_rate(struct bench *b, size_t point)
{
    const uint32_t n_row = POINT[point].n_row, past = POINT[point].past;
    const double keys = past + (n_row + 1) / 2.0;
    double us[N_RUN], flops, read;

    (void)time_calls(b);
    for (uint32_t i = 0; i < N_RUN; i++)
        us[i] = time_calls(b);
    qsort(us, N_RUN, sizeof(us[0]), ascending);
    flops = 1e6 / us[N_RUN / 2] * 4 * keys * n_row * b->n_session *
            b->shape.n_head * b->shape.d_head;
    read = 1e6 / us[N_RUN / 2] * keys / KV_BLOCK * b->n_session *
           (double)b->block_bytes;
    printf("%s\t%s\t%u\t%u on %u of %u\t%u\t%u x %u\t%.1f\t%.0f\t%.0f\t%.1f\t"
           "%.0f\n",
           b->backend->name, arithmetic_id(b->shape.arithmetic),
           pool_n_thread(b->pool), b->shape.n_head, b->shape.n_kv_head,
           b->shape.d_head, past, b->n_session, n_row, us[N_RUN / 2],
           flops / 1e9, 100 * flops / b->flops, read / 1e9,
           100 * read / b->read);
    fflush(stdout);
}

static int rates(char **argv)
{
    static struct bench b;
    enum arithmetic arithmetic = strcmp(argv[3], "tile") == 0 ? ARITHMETIC_TILE
                                 : strcmp(argv[3], "pair") == 0
                                     ? ARITHMETIC_PAIR
                                     : ARITHMETIC_FP32;
    enum status st = backend_find(argv[2], &b.backend);

    if (st)
        return fail(argv[2]);
    if (pool_create((uint32_t)strtoul(argv[4], NULL, 10), &b.pool))
        return fail("pool");
    b.flops = peak_flops(b.pool,
                         peak_kind_of(b.backend->name, arithmetic, LINEAR_F32),
                         PEAK_RUNS);
    printf("# peak %.0f GFLOP/s\nbackend\tarithmetic\tthreads\theads\tpast\t"
           "sessions x rows\tus\tGFLOP/s\t%% of peak\tGB/s\t%% of read\n",
           b.flops / 1e9);
    for (size_t s = 0; s < PRODUCT_COUNT(SHAPE); s++)
        for (size_t i = 0; i < PRODUCT_COUNT(POINT) && !st; i++) {
            b.shape = SHAPE[s].shape;
            b.shape.arithmetic = arithmetic;
            st = open_bench(&b, &SHAPE[s], i);
            if (!st)
                print_rate(&b, i);
            close_bench(&b);
        }
    pool_destroy(b.pool);
    return st ? fail("rates") : 0;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "check") == 0)
        return check(argv[2], attend_check_all, "attentions");
    if (argc == 5 && strcmp(argv[1], "rates") == 0)
        return rates(argv);
    fprintf(stderr, "usage: bench_attend check [BACKEND]\n"
                    "       bench_attend rates BACKEND fp32|pair|tile "
                    "THREADS\n");
    return 2;
}
