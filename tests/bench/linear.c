/*
 * Products of packed weights, checked and measured without a model:
 *     bench_linear check [BACKEND]
 *     bench_linear rates BACKEND fp32|pair|tile THREADS [ROWS ...]
 * It needs nothing but kernels/, node/peak and a C library, so that it also
 * runs where the instructions are and the node's libraries are not. Rates are
 * medians of five; weights are as many as a model's, so that they come from
 * where a model's would. Each line holds the share of the bounds that were
 * measured at the beginning, of arithmetic and of reading.
 */
#include "base/clock.h"
#include "node/peak.h"
#include "tests/bench/check.h"
#include "tests/unit/kernels/product_check.h"

#define N_RUN 5u
#define RUN_US 8000u
#define ROWS_MAX 512u
#define N_ROWS 8
#define N_COPY_MAX 512u

/* ------------------------------------------------------------------- rates */

/* Products of a model, and how many bytes of weights it has around them. */
static const struct {
    uint32_t n_in, n_out;
    size_t model_bytes;
} SHAPE[] = {
    {256, 1536, (size_t)19 << 20}, /* godwit-tiny */
    {768, 256, (size_t)19 << 20},
    {1024, 7168, (size_t)512 << 20}, /* 0.8B, some of it */
    {3584, 1024, (size_t)512 << 20},
};
#define N_SHAPE PRODUCT_COUNT(SHAPE)

static const char *const NAME[N_LINEAR_TYPE] = {"f32", "bf16", "w8", "w8a8"};

struct bench {
    const struct backend *backend;
    enum arithmetic arithmetic;
    struct pool *pool;
    double flops[N_LINEAR_TYPE], read[N_SHAPE]; /* bounds, a second */
    struct linear copy[N_COPY_MAX];
    uint32_t n_copy;
    float *x, *y;
};

/* The random values of one panel in every panel. */
static enum status make_copies(struct bench *b, size_t shape,
                               enum linear_type type)
{
    const uint32_t n_in = SHAPE[shape].n_in, n_out = SHAPE[shape].n_out;
    float *w = product_floats((size_t)n_in * LINEAR_PANEL, 1, PRODUCT_NOISE);
    enum status st = STATUS_OK;
    size_t bytes = 0;

    b->n_copy = 0;
    while (b->n_copy < N_COPY_MAX && bytes < SHAPE[shape].model_bytes) {
        struct linear *to = &b->copy[b->n_copy];

        st = linear_init(n_in, n_out, type, b->arithmetic, to);
        if (st)
            break;
        b->n_copy++;
        linear_pack_f32(to, 0, LINEAR_PANEL, w);
        for (size_t at = linear_panel_bytes(to); at < linear_bytes(to);
             at += linear_panel_bytes(to))
            memcpy((char *)to->panel + at, to->panel, linear_panel_bytes(to));
        bytes += linear_bytes(to);
    }
    free(w);
    return st;
}

/* Microseconds of one product, copies in turn. */
static double time_products(struct bench *b, uint32_t n_row, uint32_t *at)
{
    const struct clock *clock = clock_real();
    const uint64_t start = clock->now_us(clock);
    uint64_t now = start;
    uint32_t n = 0;

    for (; now - start < RUN_US; n++, now = clock->now_us(clock)) {
        const struct linear *w = &b->copy[(*at)++ % b->n_copy];

        b->backend->linear(b->pool,
                           &(struct linear_args){b->y, w->n_out, b->x, w->n_in,
                                                 n_row, w, NULL});
    }
    return (double)(now - start) / n;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_rate(struct bench *b, size_t shape, enum linear_type type,
                       uint32_t n_row)
{
    const double n_fma = (double)SHAPE[shape].n_in * SHAPE[shape].n_out * n_row;
    double us[N_RUN], flops, read;
    uint32_t at = 0;

    (void)time_products(b, n_row, &at);
    for (uint32_t i = 0; i < N_RUN; i++)
        us[i] = time_products(b, n_row, &at);
    qsort(us, N_RUN, sizeof(us[0]), ascending);
    flops = 2e6 * n_fma / us[N_RUN / 2];
    read = 1e6 * (double)linear_bytes(&b->copy[0]) / us[N_RUN / 2];
    printf("%s\t%s\t%u\t%u -> %u\t%s\t%u\t%.1f\t%.0f\t%.0f\t%.1f\t%.0f\n",
           b->backend->name, arithmetic_id(b->arithmetic),
           pool_n_thread(b->pool), SHAPE[shape].n_in, SHAPE[shape].n_out,
           NAME[type], n_row, us[N_RUN / 2], flops / 1e9,
           100 * flops / b->flops[type], read / 1e9,
           100 * read / b->read[shape]);
    fflush(stdout);
}

static enum status measure_bounds(struct bench *b)
{
    enum status st = STATUS_OK;

    printf("# peak GFLOP/s");
    for (enum linear_type t = 0; t < N_LINEAR_TYPE; t++) {
        const enum peak_kind kind =
            peak_kind_of(b->backend->name, b->arithmetic, t);

        b->flops[t] = t && t != LINEAR_W8A8
                          ? b->flops[0]
                          : peak_flops(b->pool, kind, PEAK_RUNS);
        printf(", %s %.0f", NAME[t], b->flops[t] / 1e9);
    }
    for (size_t s = 0; s < N_SHAPE && !st; s++) {
        st = peak_read_bytes(b->pool, SHAPE[s].model_bytes, &b->read[s]);
        printf(", %zu MB read at %.1f GB/s", SHAPE[s].model_bytes >> 20,
               b->read[s] / 1e9);
    }
    printf("\nbackend\tarithmetic\tthreads\tshape\tweights\trows\tus\tGFLOP/s\t"
           "%% of peak\tGB/s\t%% of read\n");
    return st;
}

static enum status measure(struct bench *b, const uint32_t *rows, int n)
{
    enum status st = measure_bounds(b);

    for (size_t s = 0; s < N_SHAPE; s++)
        for (int type = LINEAR_BF16; type <= LINEAR_W8A8 && !st; type++) {
            st = make_copies(b, s, (enum linear_type)type);
            for (int i = 0; i < n && !st; i++)
                print_rate(b, s, (enum linear_type)type, rows[i]);
            for (uint32_t i = 0; i < b->n_copy; i++)
                linear_release(&b->copy[i]);
        }
    return st;
}

static int rates(int argc, char **argv)
{
    static const uint32_t USUAL[N_ROWS] = {1, 2, 4, 8, 16, 64, 256, 512};
    static struct bench b;
    uint32_t rows[N_ROWS];
    enum status st;
    int n = 0;

    if (backend_find(argv[2], &b.backend))
        return fail(argv[2]);
    b.arithmetic = strcmp(argv[3], "tile") == 0   ? ARITHMETIC_TILE
                   : strcmp(argv[3], "pair") == 0 ? ARITHMETIC_PAIR
                                                  : ARITHMETIC_FP32;
    if (pool_create((uint32_t)strtoul(argv[4], NULL, 10), &b.pool))
        return fail("pool");
    for (; n < N_ROWS && 5 + n < argc; n++)
        rows[n] = (uint32_t)strtoul(argv[5 + n], NULL, 10) % (ROWS_MAX + 1);
    b.x = product_floats((size_t)ROWS_MAX * 3584, 2, PRODUCT_NOISE);
    b.y = malloc(sizeof(float) * ROWS_MAX * 7168);
    st = n ? measure(&b, rows, n) : measure(&b, USUAL, N_ROWS);
    pool_destroy(b.pool);
    free(b.x);
    free(b.y);
    return st ? fail("rates") : 0;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "check") == 0)
        return check(argv[2], product_check_all, "products");
    if (argc >= 5 && strcmp(argv[1], "rates") == 0)
        return rates(argc, argv);
    fprintf(stderr, "usage: bench_linear check [BACKEND]\n"
                    "       bench_linear rates BACKEND fp32|pair|tile THREADS "
                    "[ROWS ...]\n");
    return 2;
}
