/*
 * What the products of weights take on this GPU, beside what bounds them: the
 * bytes of weights and rows at the rate at which a kernel reads memory here, or
 * the operations at PEAK. Weights are random and pass through memory so that
 * none of them is in the L2 cache; launches are those of a graph, one product
 * behind the other. x comes as rows of bf16, as norms and gates leave it; y is
 * float. Medians of seven. "fast" is ARITHMETIC_FAST, where cuBLASLt is.
 */
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"
#include "tests/gpu/gpu_test.cuh"
#include "tests/gpu/rate.h"
#include "tests/gpu/small_device.h"

#define PEAK 790e6 /* operations a microsecond, bf16: measured, 8192 cubed */
#define ARENA ((size_t)2600 << 20) /* bytes of weights */
#define ROWS_MAX 8192u
#define N_TIME 7
#define N_EXPERT 128u
#define N_CHOSEN 8u

static struct gpu gpu;
static unsigned char *arena;
static float *x, *y;
static uint16_t *x_rounded;
static double read_rate; /* bytes a microsecond */
static bool has_fast;

/* ------------------------------------------------------------------ memory */

static __device__ uint64_t mixed(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Small bf16 numbers, two a word; as e4m3 they are numbers, too. */
static __global__ void fill_weights(uint32_t *to, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        const uint64_t z = mixed(i + 1);

        to[i] = round_pair(((int32_t)z >> 8) * 0x1p-28f,
                           ((int32_t)(z >> 32) >> 8) * 0x1p-28f);
    }
}

static __global__ void fill_rows(float *to, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = ((int32_t)mixed(i + 7) >> 8) * 0x1p-23f;
}

static __global__ void read_all(float *to, const float4 *from, size_t n)
{
    float sum = 0.0f;

    for (size_t i = blockIdx.x * (size_t)2048 + threadIdx.x; i < n;
         i += (size_t)gridDim.x * 2048)
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float4 v = from[i + k * 256];

            sum += v.x + v.y + v.z + v.w;
        }
    if (sum == 12345.0f)
        *to = sum;
}

/* ------------------------------------------------------------------ timing */

static int compare(const void *a, const void *b)
{
    const float s = *(const float *)a, t = *(const float *)b;

    return (s > t) - (s < t);
}

/* Microseconds of one of n calls of a graph. */
static double timed(void (*call)(const void *job, uint32_t i), const void *job,
                    uint32_t n)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float ms[N_TIME];

    call(job, 0); /* scratch memory grows */
    test_cuda(cudaDeviceSynchronize());
    test_cuda(
        cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 0; i < n; i++)
        call(job, i);
    test_cuda(cudaStreamEndCapture(gpu.stream, &graph));
    test_cuda(cudaGraphInstantiate(&exec, graph, 0));
    test_cuda(cudaEventCreate(&begin));
    test_cuda(cudaEventCreate(&end));
    test_cuda(cudaGraphLaunch(exec, gpu.stream));
    for (int i = 0; i < N_TIME; i++) {
        test_cuda(cudaEventRecord(begin, gpu.stream));
        test_cuda(cudaGraphLaunch(exec, gpu.stream));
        test_cuda(cudaEventRecord(end, gpu.stream));
        test_cuda(cudaEventSynchronize(end));
        test_cuda(cudaEventElapsedTime(&ms[i], begin, end));
    }
    test_cuda(cudaGraphExecDestroy(exec));
    test_cuda(cudaGraphDestroy(graph));
    test_cuda(cudaEventDestroy(begin));
    test_cuda(cudaEventDestroy(end));
    qsort(ms, N_TIME, sizeof(*ms), compare);
    return ms[N_TIME / 2] * 1e3 / n;
}

static uint32_t n_call(double bound)
{
    return bound < 100 ? 20 : bound < 600 ? 6 : 3;
}

static void call_read(const void *job, uint32_t i)
{
    (void)job;
    read_all<<<gpu.n_sm * 4, 256, 0, gpu.stream>>>(
        y, (const float4 *)(arena + i % 2 * (ARENA / 2)), ARENA / 32);
}

/* ------------------------------------------------------------------ linear */

struct shape {
    uint32_t n_out, n_in, n_row;
    enum linear_type type;
    enum arithmetic arithmetic;
};

static size_t weight_bytes(const struct shape *s)
{
    const struct linear_f8_shape f8 = {s->n_in, s->n_out};
    const size_t bytes = s->type == LINEAR_F8 ? linear_f8_bytes(f8)
                                              : linear_padded(s->n_out) *
                                                    linear_padded(s->n_in) * 2;

    return (bytes + 1023) / 1024 * 1024;
}

/* Weights number i, from which those of the next numbers differ. */
static struct linear weights(const struct shape *s, uint32_t i)
{
    struct linear w = {};

    w.n_in = s->n_in;
    w.n_out = s->n_out;
    w.type = s->type;
    w.arithmetic = s->arithmetic;
    w.panel = arena + i % (ARENA / weight_bytes(s)) * weight_bytes(s);
    return w;
}

static void call_linear(const void *job, uint32_t i)
{
    const struct shape *s = (const struct shape *)job;
    const struct linear w = weights(s, i);
    struct linear_args a = {};

    a.y = y;
    a.y_stride = s->n_out;
    a.x = x;
    a.x_stride = s->n_in;
    a.x_rounded = x_rounded;
    a.n_row = s->n_row;
    a.w = &w;
    cuda_linear(&gpu, &a);
}

static double bound(const struct shape *s, double n_matrix)
{
    const double one = (double)s->n_out * s->n_in;
    const double bytes = n_matrix * weight_bytes(s) +
                         (double)s->n_row * (2.0 * s->n_in + 4.0 * s->n_out);
    const double memory = bytes / read_rate;
    const double multiply = 2.0 * one * s->n_row * n_matrix / PEAK;

    return memory > multiply ? memory : multiply;
}

static void time_shape(const char *what, const struct shape *s)
{
    const double b = bound(s, 1);

    rate_print(b, timed(call_linear, s, n_call(b)), "%s, %u to %u, %u rows",
               what, s->n_in, s->n_out, s->n_row);
}

static void time_linear(uint32_t n_out, uint32_t n_in)
{
    static const uint32_t ROWS[] = {1,   8,   16,   32,   64,      128,
                                    256, 512, 1024, 2048, ROWS_MAX};

    for (size_t i = 0; i < sizeof(ROWS) / sizeof(*ROWS); i++) {
        struct shape s = {n_out, n_in, ROWS[i], LINEAR_BF16, ARITHMETIC_MMA};

        if ((size_t)n_out * ROWS[i] > (size_t)ROWS_MAX * 12288)
            continue;
        time_shape("product", &s);
        s.type = LINEAR_F8;
        time_shape("product f8", &s);
        s.type = LINEAR_BF16;
        s.arithmetic = ARITHMETIC_FAST;
        if (has_fast && ROWS[i] > 64)
            time_shape("product fast", &s);
    }
}

/* --------------------------------------------------------------- ffn, expert
 */

static void call_ffn(const void *job, uint32_t i)
{
    const struct shape *s = (const struct shape *)job;
    const struct shape turned = {s->n_in, s->n_out, s->n_row, s->type};
    const struct linear gate = weights(s, 3 * i), up = weights(s, 3 * i + 1);
    const struct linear down = weights(&turned, 3 * i + 2);
    struct ffn_args a = {};

    a.y = y;
    a.y_stride = s->n_in;
    a.x = x;
    a.x_stride = s->n_in;
    a.x_rounded = x_rounded;
    a.n_row = s->n_row;
    a.gate = &gate;
    a.up = &up;
    a.down = &down;
    cuda_ffn_add(&gpu, &a);
}

static void time_ffn(void)
{
    static const uint32_t ROWS[] = {1, 8, 64, 1024, ROWS_MAX};

    for (size_t i = 0; i < sizeof(ROWS) / sizeof(*ROWS); i++) {
        const struct shape s = {12288, 4096, ROWS[i], LINEAR_BF16,
                                ARITHMETIC_MMA};
        const struct shape f8 = {12288, 4096, ROWS[i], LINEAR_F8,
                                 ARITHMETIC_MMA};
        const double b = bound(&s, 3), b8 = bound(&f8, 3);
        const double us = timed(call_ffn, &s, n_call(b));
        const double us8 = timed(call_ffn, &f8, n_call(b));

        rate_print(b, us, "ffn_add, 4096 to 12288 to 4096, %u rows", ROWS[i]);
        rate_print(b8, us8, "ffn_add f8, 4096 to 12288 to 4096, %u rows",
                   ROWS[i]);
    }
}

struct routed {
    struct shape shape;    /* of one expert; n_row counts places */
    uint32_t *row, *first; /* on the device */
    uint32_t n_used;
};

static void call_expert(const void *job, uint32_t i)
{
    const struct routed *r = (const struct routed *)job;
    static struct linear w[N_EXPERT];
    struct expert_args a = {};

    for (uint32_t e = 0; e < N_EXPERT; e++)
        w[e] = weights(&r->shape, i * N_EXPERT + e);
    a.y = y;
    a.y_stride = r->shape.n_out;
    a.x = x;
    a.x_stride = r->shape.n_in;
    a.row = r->row;
    a.first = r->first;
    a.w = w;
    a.n_expert = N_EXPERT;
    a.n_place = r->shape.n_row;
    cuda_expert(&gpu, &a);
}

/* Each row chooses N_CHOSEN different experts. */
static void route(struct routed *r, uint32_t n_row)
{
    bool *is_chosen = (bool *)calloc(n_row, N_EXPERT);
    uint32_t *row = (uint32_t *)malloc(n_row * N_CHOSEN * sizeof(*row));
    uint32_t first[N_EXPERT + 1], n = 0;

    for (uint32_t i = 0; i < n_row; i++)
        for (uint32_t k = 0; k < N_CHOSEN;) {
            bool *at = &is_chosen[i * N_EXPERT + test_below(N_EXPERT)];

            k += !*at;
            *at = true;
        }
    r->n_used = 0;
    for (uint32_t e = 0; e < N_EXPERT; e++) {
        first[e] = n;
        for (uint32_t i = 0; i < n_row; i++)
            if (is_chosen[i * N_EXPERT + e])
                row[n++] = i;
        r->n_used += n > first[e];
    }
    first[N_EXPERT] = n;
    r->row = (uint32_t *)test_device(row, n * sizeof(*row));
    r->first = (uint32_t *)test_device(first, sizeof(first));
    free(is_chosen);
    free(row);
}

/* Outside a graph, in which staged arrays of the small device do not last. */
static void time_expert(void)
{
    static const uint32_t ROWS[] = {16, 64, 512, ROWS_MAX};

    for (size_t i = 0; i < sizeof(ROWS) / sizeof(*ROWS); i++) {
        struct routed r = {
            {1536, 2048, ROWS[i] * N_CHOSEN, LINEAR_BF16, ARITHMETIC_MMA}};
        cudaEvent_t begin, end;
        float ms[N_TIME];

        route(&r, ROWS[i]);
        test_cuda(cudaEventCreate(&begin));
        test_cuda(cudaEventCreate(&end));
        for (int k = -1; k < N_TIME; k++) {
            test_cuda(cudaEventRecord(begin, gpu.stream));
            for (uint32_t c = 0; c < 4; c++)
                call_expert(&r, c);
            test_cuda(cudaEventRecord(end, gpu.stream));
            test_cuda(cudaEventSynchronize(end));
            test_cuda(cudaEventElapsedTime(&ms[k < 0 ? 0 : k], begin, end));
        }
        qsort(ms, N_TIME, sizeof(*ms), compare);
        const double us = ms[N_TIME / 2] * 1e3 / 4;
        const double memory =
            (double)r.n_used * weight_bytes(&r.shape) / read_rate;
        const double multiply =
            2.0 * r.shape.n_row * r.shape.n_out * r.shape.n_in / PEAK;
        const double b = memory > multiply ? memory : multiply;

        rate_print(b, us,
                   "expert, 128 of 2048 to 1536, 8 chosen, %u rows, %u used",
                   ROWS[i], r.n_used);
    }
}

int main(void)
{
    const size_t n_float = (size_t)ROWS_MAX * 12288;
    char why[DEVICE_WHY_SIZE];

    small_device_init(&gpu);
    arena = (unsigned char *)test_device(NULL, ARENA);
    x = (float *)test_device(NULL, n_float * sizeof(float));
    y = (float *)test_device(NULL, n_float * sizeof(float));
    x_rounded = (uint16_t *)test_device(NULL, n_float * sizeof(uint16_t));
    fill_weights<<<1024, 256>>>((uint32_t *)arena, ARENA / 4);
    fill_rows<<<1024, 256>>>(x, n_float);
    test_cuda(cudaDeviceSynchronize());
    fill_weights<<<1024, 256>>>((uint32_t *)x_rounded, n_float / 2);
    has_fast = cuda_fast_prepare(why) == STATUS_OK;
    read_rate = ARENA / 2 / timed(call_read, NULL, 4);
    printf("reads: %.0f GB/s\n", read_rate / 1e3);
    time_linear(4096, 4096);
    time_linear(12288, 4096);
    time_linear(4096, 12288);
    time_linear(151936, 4096);
    time_linear(64, 4096);
    time_ffn();
    time_expert();
    return 0;
}
