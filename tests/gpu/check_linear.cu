/*
 * The products of weights on the GPU, judged by
 *   an oracle: the product in double on the host, of the rounded inputs;
 *   a law: a row has the same bits among 1, 2, 3, ... rows, in every tile
 * shape; what must not be touched, is not: columns behind n_out, rows behind
 * n_row. Prints a line a check and ends with 1 if one failed.
 */
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"
#include "tests/gpu/gpu_test.cuh"
#include "tests/gpu/small_device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 1000u
#define BEHIND 4u      /* columns behind n_out in a row of y */
#define N_SAMPLE 1000u /* products that the oracle computes, a case */

static int n_failed;

static void judge(bool is_good, const char *what)
{
    if (!is_good) {
        printf("FAILED %s\n", what);
        n_failed = 1;
    }
}

/* Host and device copies of one product's inputs. */
struct data {
    uint32_t n_in, n_out;
    struct linear w;   /* on the device */
    double *host_w;    /* [n_out][n_in], what they stand for */
    float *x, *host_x; /* [ROWS][x_stride] */
    size_t x_stride, y_stride;
    float *y, *host_y;
};

/* As the host packs them: rows of bf16, padded. */
static void *pack_bf16(const float *from, double *host, struct linear *w)
{
    const size_t wide = linear_padded(w->n_in), high = linear_padded(w->n_out);
    uint16_t *to = (uint16_t *)calloc(wide * high, sizeof(*to));

    for (size_t o = 0; o < w->n_out; o++)
        for (size_t i = 0; i < w->n_in; i++) {
            to[o * wide + i] = test_bf16(from[o * w->n_in + i]);
            host[o * w->n_in + i] = (double)test_float(to[o * wide + i]);
        }
    w->panel = test_device(to, wide * high * sizeof(*to));
    return to;
}

static void *pack_f8(const float *from, double *host, struct linear *w)
{
    const struct linear_f8_shape shape = {w->n_in, w->n_out};
    const size_t n_block = linear_f8_n_block(w->n_in);
    uint8_t *to = (uint8_t *)calloc(1, linear_f8_bytes(shape));
    const float *scale = (const float *)(to + linear_f8_scales_at(shape));

    linear_f8_pack(to, shape, 0, w->n_out, from);
    for (size_t o = 0; o < w->n_out; o++)
        for (size_t i = 0; i < w->n_in; i++)
            host[o * w->n_in + i] =
                (double)linear_f8_float(to[o * n_block * 128 + i / 128 * 128 +
                                           linear_f8_place(i % 128)]) *
                (double)scale[o / 128 * n_block + i / 128];
    w->panel = test_device(to, linear_f8_bytes(shape));
    return to;
}

static void make_weights(struct linear *w, double *host, uint32_t n_out,
                         uint32_t n_in, enum linear_type type)
{
    const size_t n = (size_t)n_out * n_in;
    float *from = (float *)malloc(n * sizeof(*from));

    for (size_t i = 0; i < n; i++)
        from[i] = test_normal() / sqrtf((float)n_in);
    memset(w, 0, sizeof(*w));
    w->n_in = n_in;
    w->n_out = n_out;
    w->type = type;
    free(type == LINEAR_F8 ? pack_f8(from, host, w) : pack_bf16(from, host, w));
    free(from);
}

static void make(struct data *d, uint32_t n_out, uint32_t n_in,
                 enum linear_type type)
{
    d->n_in = n_in;
    d->n_out = n_out;
    d->x_stride = n_in + n_in % 3;
    d->y_stride = n_out + BEHIND;
    d->host_w = (double *)malloc((size_t)n_out * n_in * sizeof(double));
    make_weights(&d->w, d->host_w, n_out, n_in, type);
    d->host_x = (float *)malloc(ROWS * d->x_stride * sizeof(float));
    for (size_t i = 0; i < ROWS * d->x_stride; i++)
        d->host_x[i] = test_normal();
    d->x = (float *)test_device(d->host_x, ROWS * d->x_stride * sizeof(float));
    d->host_y = (float *)malloc((ROWS + 1) * d->y_stride * sizeof(float));
    d->y = (float *)test_device(NULL, (ROWS + 1) * d->y_stride * sizeof(float));
}

static void drop(struct data *d)
{
    cudaFree(d->w.panel);
    cudaFree(d->x);
    cudaFree(d->y);
    free(d->host_w);
    free(d->host_x);
    free(d->host_y);
}

/* y is filled with this before a run. */
static float before(size_t i)
{
    return (float)(i % 17) - 8.0f;
}

/* The rows that are written and one more. */
static size_t n_float(const struct data *d, uint32_t n_row)
{
    return (n_row + 1) * d->y_stride;
}

static void prepare(struct data *d, uint32_t n_row)
{
    for (size_t i = 0; i < n_float(d, n_row); i++)
        d->host_y[i] = before(i);
    test_write(d->y, d->host_y, n_float(d, n_row) * sizeof(float));
}

static void fetch(struct data *d, uint32_t n_row)
{
    test_read(d->host_y, d->y, n_float(d, n_row) * sizeof(float));
}

static double exact(const struct data *d, size_t row, size_t o, double *size)
{
    double sum = 0.0;

    *size = 0.0;
    for (size_t i = 0; i < d->n_in; i++) {
        const double product =
            (double)test_float(test_bf16(d->host_x[row * d->x_stride + i])) *
            d->host_w[o * d->n_in + i];

        sum += product;
        *size += fabs(product);
    }
    return sum;
}

/* A step of 16 inputs loses at most 2^-23 of what has come so far. */
static void judge_values(const struct data *d, uint32_t n_row, bool is_add,
                         const char *name)
{
    double off = 0.0, all = 0.0, worst = 0.0;

    for (uint32_t s = 0; s < N_SAMPLE; s++) {
        const size_t row = test_below(n_row), o = test_below(d->n_out);
        const size_t at = row * d->y_stride + o;
        double size;
        const double start = is_add ? before(at) : 0.0;
        const double want = exact(d, row, o, &size) + start;
        const double error = fabs(d->host_y[at] - want);
        const double bound =
            (size * (d->n_in / 16.0 + 2) + 2 * fabs(start)) * 0x1p-23;

        off += error * error;
        all += want * want;
        worst = fmax(worst, error / bound);
        if (!(error <= bound)) {
            worst = INFINITY;
            break;
        }
    }
    off = sqrt(off / all);
    printf("%-10s %s %6u x %5u, %4u rows: relative error %.1e, worst of bound "
           "%.2f\n",
           name, d->w.type == LINEAR_F8 ? "f8  " : "bf16", d->n_out, d->n_in,
           n_row, off, worst);
    judge(worst <= 1.0 && off < 1e-5, "values");
}

static void judge_rest(const struct data *d, uint32_t n_row, const char *name)
{
    for (size_t i = 0; i < n_float(d, n_row); i++)
        if ((i / d->y_stride >= n_row || i % d->y_stride >= d->n_out) &&
            d->host_y[i] != before(i)) {
            printf("%s: wrote [%zu, %zu]\n", name, i / d->y_stride,
                   i % d->y_stride);
            judge(false, "what must not be written");
            return;
        }
}

static void judge_same(const struct data *d, const float *whole, size_t first,
                       size_t n_row, const char *name)
{
    for (size_t r = 0; r < n_row; r++)
        if (memcmp(d->host_y + r * d->y_stride,
                   whole + (first + r) * d->y_stride,
                   d->n_out * sizeof(float)) != 0) {
            printf("%s: row %zu of %zu from %zu differs\n", name, r, n_row,
                   first);
            judge(false, "bits");
            return;
        }
}

/* ------------------------------------------------------- linear, linear_add */

static void run_linear(struct gpu *gpu, struct data *d, uint32_t first,
                       uint32_t n_row, bool is_add)
{
    struct linear_args a = {};

    a.y = d->y;
    a.y_stride = d->y_stride;
    a.x = d->x + first * d->x_stride;
    a.x_stride = d->x_stride;
    a.n_row = n_row;
    a.w = &d->w;
    prepare(d, n_row);
    if (is_add)
        cuda_linear_add(gpu, &a);
    else
        cuda_linear(gpu, &a);
    fetch(d, n_row);
}

static const uint32_t ROW_COUNT[] = {1,  2,  3,  7,   8,   16,  17,
                                     63, 64, 65, 127, 128, 129, 256};

static void check_linear(struct gpu *gpu, uint32_t n_out, uint32_t n_in,
                         enum linear_type type)
{
    struct data d;
    float *whole;

    make(&d, n_out, n_in, type);
    whole = (float *)malloc((ROWS + 1) * d.y_stride * sizeof(float));
    run_linear(gpu, &d, 0, ROWS, true);
    judge_values(&d, ROWS, true, "linear_add");
    judge_rest(&d, ROWS, "linear_add");
    run_linear(gpu, &d, 0, ROWS, false);
    judge_values(&d, ROWS, false, "linear");
    judge_rest(&d, ROWS, "linear");
    memcpy(whole, d.host_y, (ROWS + 1) * d.y_stride * sizeof(float));
    for (size_t i = 0; i < sizeof(ROW_COUNT) / sizeof(*ROW_COUNT); i++) {
        const uint32_t n = ROW_COUNT[i], first = (uint32_t)(i * 37 % 700);

        run_linear(gpu, &d, first, n, false);
        judge_same(&d, whole, first, n, "linear");
        judge_rest(&d, n, "linear");
    }
    free(whole);
    drop(&d);
}

static const struct product_shape *shapes_of(enum linear_type type,
                                             size_t *out_n)
{
    if (way_is_sm80())
        return sm80_shapes(type == LINEAR_F8, out_n);
    return type == LINEAR_F8 ? f8_shapes(out_n) : product_shapes(out_n);
}

static bool fits(const struct product_job *job, struct product_shape shape)
{
    if (way_is_sm80())
        return sm80_fits(job, shape);
    return job->is_f8 ? f8_fits(job, shape) : product_fits(job, shape);
}

/* Every shape of the table that fits, for few and many rows. */
static void check_shapes(struct gpu *gpu, uint32_t n_out, uint32_t n_in,
                         enum linear_type type)
{
    size_t n_shape, wide = linear_f8_n_block(n_in) * LINEAR_F8_BLOCK;
    const struct product_shape *shape = shapes_of(type, &n_shape);
    void *x = test_device(NULL, ROWS * wide * 2);
    void *placed = test_device(NULL, ROWS * wide * 2);
    struct product_job job = {};
    struct round_job round = {};
    struct data d;
    float *whole;

    make(&d, n_out, n_in, type);
    whole = (float *)malloc((ROWS + 1) * d.y_stride * sizeof(float));
    run_linear(gpu, &d, 0, ROWS, false);
    memcpy(whole, d.host_y, (ROWS + 1) * d.y_stride * sizeof(float));
    round.to = x;
    round.x = d.x;
    round.x_stride = d.x_stride;
    round.n_row = ROWS;
    round.n_in = n_in;
    round_launch(gpu, &round);
    round.to = placed;
    f8_place_launch(gpu, &round, NULL);
    job.y = d.y;
    job.y_stride = d.y_stride;
    job.n_out = n_out;
    job.n_in = n_in;
    job.x.n_matrix = 1;
    product_set_weights(&job, 0, &d.w);
    for (size_t i = 0; i < n_shape; i++)
        for (uint32_t n = 5; n < ROWS; n *= 10) {
            char name[80];

            job.x.n_row = job.n_row = n;
            job.is_placed = !shape[i].n_group;
            job.x.at = job.is_placed ? placed : x;
            job.x.stride = job.is_placed ? wide : linear_padded(n_in);
            if (!fits(&job, shape[i]))
                continue;
            snprintf(name, sizeof(name), "shape %u %u %u %u", shape[i].n_group,
                     shape[i].n, shape[i].n_box, shape[i].by);
            prepare(&d, n);
            product_run(gpu, &job, shape[i]);
            fetch(&d, n);
            judge_same(&d, whole, 0, n, name);
            judge_rest(&d, n, name);
        }
    free(whole);
    cudaFree(x);
    cudaFree(placed);
    drop(&d);
}

/* Number i is the float with these bits. */
static __global__ void compare_silu(unsigned long long *n_plain,
                                    unsigned long long *n_other)
{
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x;
         i < (uint64_t)1 << 32; i += (uint64_t)gridDim.x * blockDim.x) {
        const float x = __uint_as_float((uint32_t)i);

        if (!silu_is_plain(x))
            continue;
        if (__float_as_uint(silu_plain(x)) != __float_as_uint(scalar_silu(x)))
            atomicAdd(n_other, 1);
        if (i % 4096 == 0)
            atomicAdd(n_plain, 1);
    }
}

/* Every float there is. */
static void check_silu(void)
{
    unsigned long long n[2] = {};
    unsigned long long *found = (unsigned long long *)test_device(n, sizeof(n));

    compare_silu<<<1024, 256>>>(found, found + 1);
    test_read(n, found, sizeof(n));
    printf("silu       of some %llu million plain floats: %llu differ\n",
           n[0] * 4096 / 1000000, n[1]);
    judge(n[0] > 1000000000u / 4096 && n[1] == 0, "silu");
    cudaFree(found);
}

/* What is added to a y below the normal floats: the same in every shape,
 * whether it adds by an atomic operation or not. */
static void check_subnormals(struct gpu *gpu, enum linear_type type)
{
    const uint32_t n_out = 256, n_in = 128, n_row = 130;
    const size_t n = (size_t)n_row * n_out;
    const struct linear_f8_shape f8 = {n_in, n_out};
    size_t n_shape, bytes = linear_f8_bytes(f8) + n_in * n_out * 2;
    const struct product_shape *shape = shapes_of(type, &n_shape);
    void *zero = calloc(1, bytes);
    float *host = (float *)malloc(n * sizeof(float)), first = 0.0f;
    float *y = (float *)test_device(NULL, n * sizeof(float));
    struct product_job job = {};
    struct linear w = {};

    w.n_in = n_in;
    w.n_out = n_out;
    w.type = type;
    w.panel = test_device(zero, bytes);
    job.end = PRODUCT_ADD;
    job.y = y;
    job.y_stride = job.n_out = n_out;
    job.n_row = job.x.n_row = n_row;
    job.n_in = job.x.stride = n_in;
    job.x.n_matrix = 1;
    job.x.at = test_device(zero, n_row * n_in * 2);
    product_set_weights(&job, 0, &w);
    for (size_t s = 0; s < n_shape; s++) {
        job.is_placed = !shape[s].n_group;
        job.n_row = job.is_placed ? F8_FEW_ROWS : n_row;
        if (!fits(&job, shape[s]))
            continue;
        for (size_t i = 0; i < n; i++)
            host[i] = 1e-40f;
        test_write(y, host, n * sizeof(float));
        product_run(gpu, &job, shape[s]);
        test_read(host, y, n * sizeof(float));
        first = s ? first : host[0];
        for (size_t i = 0; i < job.n_row * n_out; i++)
            if (memcmp(&host[i], &first, sizeof(first)) != 0) {
                judge(false, "subnormals");
                break;
            }
    }
    printf("%-10s 1e-40 + 0 is %g\n", "subnormal", (double)first);
    free(host);
    free(zero);
    cudaFree(y);
    cudaFree(w.panel);
    cudaFree((void *)job.x.at);
}

/* --------------------------------------------------------------------- ffn */

struct ffn_data {
    struct data gate, up, down; /* x of gate, y of down */
};

static void run_ffn(struct gpu *gpu, struct ffn_data *d, uint32_t n_row,
                    bool is_add)
{
    struct ffn_args a = {};

    a.y = d->down.y;
    a.y_stride = d->down.y_stride;
    a.x = d->gate.x;
    a.x_stride = d->gate.x_stride;
    a.n_row = n_row;
    a.gate = &d->gate.w;
    a.up = &d->up.w;
    a.down = &d->down.w;
    prepare(&d->down, n_row);
    if (is_add)
        cuda_ffn_add(gpu, &a);
    else
        cuda_ffn(gpu, &a);
    fetch(&d->down, n_row);
}

/* The oracle: hidden rows from linear's results, in double; then the product of
 * what they are as bf16. One that lies near the middle of two may go to the
 * other one: 2^-8 of it. */
static void check_ffn(struct gpu *gpu, uint32_t n_in, uint32_t n_ff,
                      uint32_t n_out, enum linear_type type)
{
    struct ffn_data d;
    double off = 0.0, all = 0.0;
    float *gate, *whole;

    make(&d.gate, n_ff, n_in, type);
    make(&d.up, n_ff, n_in, type);
    make(&d.down, n_out, n_ff, type);
    cudaFree(d.up.x);
    d.up.x = (float *)test_device(d.gate.host_x,
                                  ROWS * d.gate.x_stride * sizeof(float));
    whole = (float *)malloc((ROWS + 1) * d.down.y_stride * sizeof(float));
    gate = (float *)malloc((ROWS + 1) * d.gate.y_stride * sizeof(float));
    run_ffn(gpu, &d, ROWS, false);
    judge_rest(&d.down, ROWS, "ffn");
    memcpy(whole, d.down.host_y, (ROWS + 1) * d.down.y_stride * sizeof(float));
    run_linear(gpu, &d.gate, 0, ROWS, false);
    memcpy(gate, d.gate.host_y, (ROWS + 1) * d.gate.y_stride * sizeof(float));
    run_linear(gpu, &d.up, 0, ROWS, false);
    for (size_t s = 0; s < 200; s++) {
        const size_t row = test_below(ROWS), o = test_below(n_out);
        double want = 0.0;

        for (size_t i = 0; i < n_ff; i++) {
            const double g = gate[row * d.gate.y_stride + i];
            const float hidden = (float)(g / (1.0 + exp(-g)) *
                                         d.up.host_y[row * d.up.y_stride + i]);

            want += (double)test_float(test_bf16(hidden)) *
                    d.down.host_w[o * n_ff + i];
        }
        off += pow(whole[row * d.down.y_stride + o] - want, 2);
        all += want * want;
    }
    off = sqrt(off / all);
    printf("%-10s %u -> %u -> %u: relative error %.1e\n", "ffn", n_in, n_ff,
           n_out, off);
    judge(off < 1e-4, "ffn");
    for (size_t i = 0; i < sizeof(ROW_COUNT) / sizeof(*ROW_COUNT); i++) {
        run_ffn(gpu, &d, ROW_COUNT[i], false);
        judge_same(&d.down, whole, 0, ROW_COUNT[i], "ffn");
        judge_rest(&d.down, ROW_COUNT[i], "ffn");
    }
    run_ffn(gpu, &d, ROWS, true);
    for (size_t i = 0; i < ROWS * d.down.y_stride; i++)
        if (i % d.down.y_stride < n_out &&
            d.down.host_y[i] != whole[i] + before(i)) {
            judge(false, "ffn_add");
            break;
        }
    free(gate);
    free(whole);
    drop(&d.gate);
    drop(&d.up);
    drop(&d.down);
}

/* ------------------------------------------------------------------ expert */

#define N_EXPERT 9u

/* Rows for each expert: none, one, a few, more than a tile. */
static uint32_t n_row_of(uint32_t expert, uint32_t most)
{
    static const uint32_t N[N_EXPERT] = {1, 0, 3, 200, 64, 65, 0, 129, 17};

    return N[expert] < most ? N[expert] : most;
}

/* linear() of the same rows and weights, itself judged above, is the oracle:
 * the bits must be its bits. */
static void check_expert(struct gpu *gpu, uint32_t n_out, uint32_t n_in,
                         uint32_t most, enum linear_type type)
{
    uint32_t first[N_EXPERT + 1] = {0}, row[ROWS], n_place = 0;
    struct expert_args a = {};
    struct linear w[N_EXPERT];
    struct data d;
    float *y;

    make(&d, n_out, n_in, type);
    a.n_expert = N_EXPERT;
    for (uint32_t e = 0; e < N_EXPERT; e++) {
        const uint32_t n = n_row_of(e, most);

        make_weights(&w[e], d.host_w, n_out, n_in, type);
        for (uint32_t i = 0; i < n; i++)
            row[n_place++] = i * 7 % ROWS;
        first[e + 1] = n_place;
    }
    a.y = d.y;
    a.y_stride = d.y_stride;
    a.x = d.x;
    a.x_stride = d.x_stride;
    a.row = (uint32_t *)test_device(row, sizeof(row));
    a.first = (uint32_t *)test_device(first, sizeof(first));
    a.w = w;
    a.n_place = n_place;
    prepare(&d, n_place);
    cuda_expert(gpu, &a);
    fetch(&d, n_place);
    judge_rest(&d, n_place, "expert");
    y = (float *)malloc((ROWS + 1) * d.y_stride * sizeof(float));
    memcpy(y, d.host_y, n_float(&d, n_place) * sizeof(float));
    for (uint32_t e = 0; e < N_EXPERT; e++)
        for (uint32_t i = first[e]; i < first[e + 1]; i++) {
            d.w.panel = w[e].panel;
            run_linear(gpu, &d, row[i], 1, false);
            judge_same(&d, y, i, 1, "expert");
        }
    printf("%-10s %u experts of %u x %u, %u places\n", "expert", N_EXPERT,
           n_out, n_in, n_place);
    free(y);
}

static void check_all(struct gpu *gpu, enum linear_type type, bool is_small)
{
    static const uint32_t OUT[] = {63, 1, 65, 1028, 4097},
                          IN[] = {96, 64, 1000, 4096};

    for (int i = 0; i < (is_small ? 1 : 5); i++)
        for (int j = 0; j < (is_small ? 1 : 4); j++)
            check_linear(gpu, OUT[i], IN[j], type);
    check_shapes(gpu, 65, 96, type);
    check_subnormals(gpu, type);
    check_ffn(gpu, 96, 65, 63, type);
    check_expert(gpu, 100, 160, 1, type);
    if (is_small)
        return;
    check_shapes(gpu, 1000, 1024, type);
    check_shapes(gpu, 4096, 512, type);
    check_ffn(gpu, 1024, 2816, 1000, type);
    check_expert(gpu, 100, 160, 300, type);
    check_expert(gpu, 768, 512, 300, type);
}

/* With "small" only what compute-sanitizer is done with in a minute. */
int main(int argc, char **argv)
{
    const bool is_small = argc > 1 && strcmp(argv[1], "small") == 0;
    struct gpu gpu = {};

    small_device_init(&gpu);
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    check_all(&gpu, LINEAR_BF16, is_small);
    check_all(&gpu, LINEAR_F8, is_small);
    if (!is_small)
        check_silu();
    printf("%s\n", n_failed ? "FAILED" : "all checks passed");
    return n_failed;
}
