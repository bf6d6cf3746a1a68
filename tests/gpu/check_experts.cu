/*
 * All of a layer's experts in one go: its bits are those of the operators that
 * it stands for (expert, swiglu, expert, ffn), which have checks of their own.
 * With "time", steps of the shape of Qwen3.5-35B-A3B beside the time in which
 * their weights can be read.
 */
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"
#include "tests/gpu/gpu_test.cuh"
#include "tests/gpu/rate.h"
#include "tests/gpu/small_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPERTS_MAX 256u
#define N_TIME 9
#define N_LAYER 6u /* more weights than a cache holds */

struct shape {
    uint32_t n_row, n_expert, n_chosen, n_in, n_ff, n_out, n_shared_ff;
};

/* One layer and its step, on the device. */
struct layer {
    struct linear gate_up[EXPERTS_MAX], down[EXPERTS_MAX], shared[3];
    void *block[2];
};
struct step {
    uint32_t n_place, n_used;
    uint32_t *row, *first;
    float *x;
    uint16_t *rounded;
};

static __global__ void fill(uint16_t *to, size_t n, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint32_t h = (uint32_t)i * 2654435761u ^ seed;

        h = (h ^ h >> 15) * 2246822519u;
        h ^= h >> 13; /* -1 .. 1, 1 / 32 of it */
        to[i] = (uint16_t)(__float_as_uint(((float)(h >> 8) * 0x1p-23f - 1.0f) *
                                           0.03125f) >>
                           16);
    }
}

/* Padded with zeros, as the host packs it; the sign and the size of a weight
 * are random. */
static void clear_padding(const struct linear *w)
{
    const size_t wide = linear_padded(w->n_in), high = linear_padded(w->n_out);
    uint16_t *to = (uint16_t *)w->panel;

    if (wide > w->n_in)
        test_cuda(cudaMemset2D(to + w->n_in, wide * 2, 0, (wide - w->n_in) * 2,
                               high));
    test_cuda(
        cudaMemset(to + w->n_out * wide, 0, (high - w->n_out) * wide * 2));
}

static size_t bytes_of(uint32_t n_out, uint32_t n_in)
{
    return linear_padded(n_out) * linear_padded(n_in) * 2;
}

static void *make_all(struct linear *w, uint32_t n, uint32_t n_out,
                      uint32_t n_in)
{
    static uint32_t seed;
    const size_t bytes = bytes_of(n_out, n_in);
    char *block = (char *)test_device(NULL, n * bytes);

    fill<<<256, 256>>>((uint16_t *)block, n * bytes / 2, ++seed * 77777u);
    for (uint32_t e = 0; e < n; e++) {
        memset(&w[e], 0, sizeof(w[e]));
        w[e].n_in = n_in;
        w[e].n_out = n_out;
        w[e].type = LINEAR_BF16;
        w[e].arithmetic = ARITHMETIC_MMA;
        w[e].panel = block + e * bytes;
        clear_padding(&w[e]);
    }
    return block;
}

static void make_layer(struct layer *l, const struct shape *s)
{
    l->block[0] = make_all(l->gate_up, s->n_expert, 2 * s->n_ff, s->n_in);
    l->block[1] = make_all(l->down, s->n_expert, s->n_out, s->n_ff);
    if (!s->n_shared_ff)
        return;
    (void)make_all(&l->shared[0], 1, s->n_shared_ff, s->n_in);
    (void)make_all(&l->shared[1], 1, s->n_shared_ff, s->n_in);
    (void)make_all(&l->shared[2], 1, s->n_out, s->n_shared_ff);
}

static void drop_layer(struct layer *l, const struct shape *s)
{
    cudaFree(l->block[0]);
    cudaFree(l->block[1]);
    for (uint32_t i = 0; i < 3 && s->n_shared_ff; i++)
        cudaFree(l->shared[i].panel);
}

/* Each row chooses different experts. */
static void make_step(struct step *t, const struct shape *s)
{
    const size_t n_x = (size_t)s->n_row * s->n_in;
    bool *is_chosen = (bool *)calloc(s->n_row, s->n_expert);
    uint32_t *row = (uint32_t *)malloc(s->n_row * s->n_chosen * sizeof(*row));
    uint32_t first[EXPERTS_MAX + 1], n = 0;
    uint16_t *rounded = (uint16_t *)malloc(n_x * sizeof(*rounded));
    float *x = (float *)malloc(n_x * sizeof(*x));

    for (uint32_t i = 0; i < s->n_row; i++)
        for (uint32_t k = 0; k < s->n_chosen;) {
            bool *at = &is_chosen[i * s->n_expert + test_below(s->n_expert)];

            k += !*at;
            *at = true;
        }
    t->n_used = 0;
    for (uint32_t e = 0; e < s->n_expert; e++) {
        first[e] = n;
        for (uint32_t i = 0; i < s->n_row; i++)
            if (is_chosen[i * s->n_expert + e])
                row[n++] = i;
        t->n_used += n > first[e];
    }
    first[s->n_expert] = t->n_place = n;
    for (size_t i = 0; i < n_x; i++) {
        rounded[i] = test_bf16(test_normal());
        x[i] = test_float(rounded[i]);
    }
    t->row = (uint32_t *)test_device(row, n * sizeof(*row));
    t->first = (uint32_t *)test_device(first, sizeof(first));
    t->x = (float *)test_device(x, n_x * sizeof(*x));
    t->rounded = (uint16_t *)test_device(rounded, n_x * sizeof(*rounded));
    free(is_chosen);
    free(row);
    free(rounded);
    free(x);
}

static void drop_step(struct step *t)
{
    cudaFree(t->row);
    cudaFree(t->first);
    cudaFree(t->x);
    cudaFree(t->rounded);
}

static void run(struct gpu *gpu, const struct shape *s, const struct layer *l,
                const struct step *t, float *y)
{
    struct experts_args a = {};

    a.y = y;
    a.y_stride = s->n_out;
    a.x_rounded = t->rounded;
    a.n_row = s->n_row;
    a.row = t->row;
    a.first = t->first;
    a.gate_up = l->gate_up;
    a.down = l->down;
    a.n_expert = s->n_expert;
    a.n_place = t->n_place;
    if (s->n_shared_ff) {
        a.gate = &l->shared[0];
        a.up = &l->shared[1];
        a.out = &l->shared[2];
    }
    cuda_experts(gpu, &a);
}

static void run_apart(struct gpu *gpu, const struct shape *s,
                      const struct layer *l, const struct step *t, float *y)
{
    float *wide = (float *)test_device(NULL, (size_t)t->n_place * 2 * s->n_ff *
                                                 sizeof(float));
    float *act = (float *)test_device(NULL, (size_t)t->n_place * s->n_ff *
                                                sizeof(float));
    struct expert_args a = {wide,       2 * s->n_ff, t->x,
                            s->n_in,    t->row,      t->first,
                            l->gate_up, s->n_expert, t->n_place};
    const struct expert_args down = {y,       s->n_out,    act,
                                     s->n_ff, NULL,        t->first,
                                     l->down, s->n_expert, t->n_place};
    const struct swiglu_args swiglu = {act,         s->n_ff,    wide,
                                       2 * s->n_ff, t->n_place, s->n_ff};
    const struct ffn_args ffn = {y + (size_t)t->n_place * s->n_out,
                                 s->n_out,
                                 t->x,
                                 s->n_in,
                                 s->n_row,
                                 &l->shared[0],
                                 &l->shared[1],
                                 &l->shared[2],
                                 NULL};

    cuda_expert(gpu, &a);
    cuda_swiglu(gpu, &swiglu);
    cuda_expert(gpu, &down);
    if (s->n_shared_ff)
        cuda_ffn(gpu, &ffn);
    test_cuda(cudaDeviceSynchronize());
    cudaFree(wide);
    cudaFree(act);
}

static int check(struct gpu *gpu, const struct shape *s)
{
    const size_t n_row =
        (size_t)s->n_row * (s->n_chosen + (s->n_shared_ff ? 1 : 0));
    const size_t bytes = n_row * s->n_out * sizeof(float);
    float *y[2] = {(float *)malloc(bytes), (float *)malloc(bytes)};
    float *far = (float *)test_device(NULL, bytes);
    static struct layer l;
    struct step t;
    size_t n_bad = 0;

    make_layer(&l, s);
    make_step(&t, s);
    for (int i = 0; i < 2; i++) {
        test_cuda(cudaMemset(far, 0xff, bytes));
        (i ? run_apart : run)(gpu, s, &l, &t, far);
        test_cuda(cudaMemcpy(y[i], far, bytes, cudaMemcpyDeviceToHost));
    }
    for (size_t i = 0; i < n_row * s->n_out; i++)
        n_bad += memcmp(&y[0][i], &y[1][i], 4) != 0 || y[0][i] != y[0][i];
    printf("%s %u rows, %u of %u experts, %u -> %u -> %u, shared %u: %zu of "
           "%zu differ\n",
           n_bad ? "FAILED" : "experts", s->n_row, s->n_chosen, s->n_expert,
           s->n_in, s->n_ff, s->n_out, s->n_shared_ff, n_bad, n_row * s->n_out);
    drop_layer(&l, s);
    drop_step(&t);
    cudaFree(far);
    free(y[0]);
    free(y[1]);
    return n_bad > 0;
}

/* ------------------------------------------------------------------ timing */

static int compare(const void *a, const void *b)
{
    const float s = *(const float *)a, t = *(const float *)b;

    return (s > t) - (s < t);
}

/* Microseconds of one of the layers in a graph. */
static double timed(struct gpu *gpu, const struct shape *s,
                    const struct layer *l, const struct step *t, float *y)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float ms[N_TIME];

    run(gpu, s, l, t, y); /* scratch memory grows */
    test_cuda(cudaDeviceSynchronize());
    test_cuda(
        cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 0; i < N_LAYER; i++)
        run(gpu, s, &l[i], t, y);
    test_cuda(cudaStreamEndCapture(gpu->stream, &graph));
    test_cuda(cudaGraphInstantiate(&exec, graph, 0));
    test_cuda(cudaEventCreate(&begin));
    test_cuda(cudaEventCreate(&end));
    for (int i = -2; i < N_TIME; i++) {
        test_cuda(cudaEventRecord(begin, gpu->stream));
        test_cuda(cudaGraphLaunch(exec, gpu->stream));
        test_cuda(cudaEventRecord(end, gpu->stream));
        test_cuda(cudaEventSynchronize(end));
        test_cuda(cudaEventElapsedTime(&ms[i < 0 ? 0 : i], begin, end));
    }
    test_cuda(cudaGraphExecDestroy(exec));
    test_cuda(cudaGraphDestroy(graph));
    test_cuda(cudaEventDestroy(begin));
    test_cuda(cudaEventDestroy(end));
    qsort(ms, N_TIME, sizeof(*ms), compare);
    return ms[N_TIME / 2] * 1e3 / N_LAYER;
}

static void time_step(struct gpu *gpu, uint32_t n_row, uint32_t n_expert)
{
    const struct shape s = {n_row, n_expert, 8, 2048, 512, 2048, 512};
    const double bytes = bytes_of(1024, 2048) + bytes_of(2048, 512);
    static struct layer l[N_LAYER];
    struct step t;
    float *y = (float *)test_device(NULL, (size_t)n_row * 9 * 2048 * 4);

    for (uint32_t i = 0; i < N_LAYER; i++)
        make_layer(&l[i], &s);
    make_step(&t, &s);
    const double us = timed(gpu, &s, l, &t, y);
    const double bound = (t.n_used + 1) * bytes / 3.0e6;

    rate_print(bound, us, "experts, %u rows, 8 of %u, %u used", n_row, n_expert,
               t.n_used);
    for (uint32_t i = 0; i < N_LAYER; i++)
        drop_layer(&l[i], &s);
    drop_step(&t);
    cudaFree(y);
}

int main(int argc, char **argv)
{
    static const struct shape SHAPE[] = {
        {1, 48, 8, 2048, 512, 2048, 512}, {1, 9, 2, 64, 24, 64, 32},
        {2, 8, 3, 128, 32, 65, 32},       {7, 48, 8, 256, 512, 300, 512},
        {64, 48, 8, 2048, 512, 512, 512}, {64, 5, 3, 512, 96, 128, 0},
        {33, 256, 8, 512, 128, 64, 128},  {65, 5, 3, 512, 96, 128, 96},
        {300, 48, 8, 512, 512, 512, 512}, {200, 6, 2, 64, 32, 64, 48}};
    static const uint32_t ROWS[] = {1, 4, 8, 16, 64, 512, 4096};
    struct gpu gpu = {};
    int n_failed = 0;

    small_device_init(&gpu);
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "time") == 0) {
        for (size_t i = 0; i < sizeof(ROWS) / sizeof(*ROWS); i++)
            time_step(&gpu, ROWS[i], 48);
        time_step(&gpu, 1, 256);
        time_step(&gpu, 64, 256);
        return 0;
    }
    /* With "small" what compute-sanitizer is done with in a minute. */
    const bool is_small = argc > 1 && strcmp(argv[1], "small") == 0;
    for (size_t i = 0; i < sizeof(SHAPE) / sizeof(*SHAPE); i++)
        if (!is_small || SHAPE[i].n_in <= 128)
            n_failed += check(&gpu, &SHAPE[i]);
    printf("%s\n", n_failed ? "FAILED" : "all checks passed");
    return n_failed > 0;
}
