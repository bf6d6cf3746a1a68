#ifndef TESTS_GPU_ATTEND_SESSION_CUH
#define TESTS_GPU_ATTEND_SESSION_CUH
/*
 * What the checks of attention share: sessions with blocks and rows, calls of
 * the operators, random numbers, times. Blocks begin as NaNs, so a read of what
 * nobody wrote shows.
 */
extern "C" {
#include "kernels/backend.h"
}
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"
#include "tests/gpu/recorded_device.h"

#include <cuda_bf16.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-2 /* of a head's output, by norms; bf16 rounds to 2^-9 */

static uint64_t seed = 1;
static uint32_t draw(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

/* Roughly normal. */
static __device__ float normal(uint64_t i)
{
    uint64_t z = i * 0x9e3779b97f4a7c15u, sum = 0;
    for (int j = 0; j < 4; j++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        sum += (z >> 32) & 0xffff;
    }
    return ((float)sum / 65536.0f - 2.0f) * 1.7f;
}

static __global__ void fill(float *x, size_t n, uint64_t start, float scale)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = normal(start + i) * scale;
}

static __global__ void fill_bf16(__nv_bfloat16 *x)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    x[i] = __float2bfloat16(normal(i));
}

static uint64_t n_number; /* so many have been drawn */

static float *numbers(size_t n, float scale)
{
    float *x;

    CUDA(cudaMalloc((void **)&x, n * sizeof(float)));
    fill<<<(unsigned)((n + 255) / 256), 256>>>(x, n, n_number, scale);
    n_number += n;
    return x;
}

static __global__ void stretch(float *x, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i < n && i % 13 == 0)
        x[i] *= 40.0f;
}

/* Gates, some so large that their sigmoid is 0 or 1, or hardly a number. */
static float *gates(size_t n)
{
    float *x = numbers(n, 3.0f);

    stretch<<<(unsigned)((n + 255) / 256), 256>>>(x, n);
    return x;
}

struct shape {
    uint32_t n_kv_head, group, d_head, n_rot;
};

static struct attend_shape shape_of(struct shape s)
{
    struct attend_shape shape = {.n_head = s.n_kv_head * s.group,
                                 .n_kv_head = s.n_kv_head,
                                 .d_head = s.d_head};
    return shape;
}

static double inv_freq(struct shape s, uint32_t i)
{
    return pow(1e6, -2.0 * i / s.n_rot);
}

static struct rope_table table_make(struct shape s, uint64_t n_position)
{
    struct rope_table t = {s.n_rot, (n_position + 63) / 64 * 64, NULL, NULL};
    size_t n = t.n_position * (s.n_rot / 2);
    float *c = (float *)malloc(n * 4), *sine = (float *)malloc(n * 4);

    for (uint64_t p = 0; p < t.n_position; p++)
        for (uint32_t i = 0; i < s.n_rot / 2; i++) {
            size_t at = (p / 64 * (s.n_rot / 2) + i) * 64 + p % 64;
            double angle = (double)p * inv_freq(s, i);
            c[at] = (float)cos(angle);
            sine[at] = (float)sin(angle);
        }
    CUDA(cudaMalloc((void **)&t.cos, n * 4 + 4));
    CUDA(cudaMalloc((void **)&t.sin, n * 4 + 4));
    CUDA(cudaMemcpy(t.cos, c, n * 4, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(t.sin, sine, n * 4, cudaMemcpyHostToDevice));
    free(c);
    free(sine);
    return t;
}

static void table_release(struct rope_table *t)
{
    cudaFree(t->cos);
    cudaFree(t->sin);
}

/* The blocks of a session, not in order, and the rows of its tokens. */
struct session {
    uint32_t n_token;
    float *q, *k, *v, *out; /* [n_token] rows */
    unsigned char *block;
    size_t block_bytes, n_block;
    void **table;
};

static void session_clear(struct session *s)
{
    CUDA(cudaMemset(s->block, 0xff, s->n_block * s->block_bytes));
}

/* Queries this much steeper raise M all the time, and leave rows whose scores
 * are all far below zero; what bf16 rounds off them weighs as much more. */
static float steep = 1.0f;

static struct session session_make(struct shape shape, uint32_t n_token)
{
    struct session s = {.n_token = n_token};
    size_t d = shape.d_head <= 64 ? 64 : shape.d_head <= 128 ? 128 : 256;
    size_t n_q = (size_t)n_token * shape.n_kv_head * shape.group * shape.d_head;
    size_t n_k = (size_t)n_token * shape.n_kv_head * shape.d_head;

    s.q = numbers(n_q, 1.5f * steep);
    s.k = numbers(n_k, 1.0f);
    s.v = numbers(n_k, 1.0f);
    CUDA(cudaMalloc((void **)&s.out, n_q * sizeof(float)));
    s.block_bytes = 2 * shape.n_kv_head * d * 128;
    s.n_block = (n_token + 63) / 64;
    CUDA(cudaMalloc((void **)&s.block, s.n_block * s.block_bytes));
    CUDA(cudaMalloc((void **)&s.table, s.n_block * sizeof(void *)));
    void **table = (void **)malloc(s.n_block * sizeof(void *));
    for (size_t i = 0; i < s.n_block; i++) /* 7 is no divisor, or one block */
        table[i] =
            s.block + (s.n_block % 7 ? i * 7 % s.n_block : i) * s.block_bytes;
    CUDA(cudaMemcpy(s.table, table, s.n_block * sizeof(void *),
                    cudaMemcpyHostToDevice));
    free(table);
    session_clear(&s);
    return s;
}

static void session_release(struct session *s)
{
    cudaFree(s->q);
    cudaFree(s->k);
    cudaFree(s->v);
    cudaFree(s->out);
    cudaFree(s->block);
    cudaFree(s->table);
}

/* One call for spans of which row r of all lies at q + r * width. */
struct rows {
    float *q, *k, *v, *out;
    float *gate;       /* or NULL */
    uint16_t *rounded; /* or NULL */
};
static void append(struct gpu *gpu, struct shape shape, struct rows rows,
                   const struct attend_span *span, uint32_t n_span)
{
    size_t n_k = (size_t)shape.n_kv_head * shape.d_head;
    struct kv_append_args args = {
        shape_of(shape), rows.k, rows.v, n_k, n_k, span, n_span};
    cuda_kv_append(gpu, &args);
}

/* But for the spans. */
static struct attend_args attend_args_of(struct shape shape,
                                         const struct rope_table *table,
                                         struct rows rows)
{
    size_t n_q = (size_t)shape.n_kv_head * shape.group * shape.d_head;
    struct attend_args args = {.shape = shape_of(shape),
                               .out = rows.out,
                               .out_stride = n_q,
                               .out_rounded = rows.rounded,
                               .gate = rows.gate,
                               .gate_stride = n_q,
                               .q = rows.q,
                               .q_stride = n_q,
                               .table = table,
                               .scale = 1.0f / sqrtf((float)shape.d_head)};
    return args;
}

static void attend(struct gpu *gpu, struct shape shape,
                   const struct rope_table *table, struct rows rows,
                   const struct attend_span *span, uint32_t n_span)
{
    struct attend_args args = attend_args_of(shape, table, rows);

    args.span = span;
    args.n_span = n_span;
    cuda_attend(gpu, &args);
}

static struct rows rows_of(const struct session *s)
{
    struct rows rows = {s->q, s->k, s->v, s->out};
    return rows;
}

static float *fetch(const float *x, size_t n)
{
    float *y = (float *)malloc(n * sizeof(float));
    CUDA(cudaMemcpy(y, x, n * sizeof(float), cudaMemcpyDeviceToHost));
    return y;
}

/* Ways to end a row, bits. */
enum { GATED = 1, ROUNDED = 2, N_END = 4 };
static const char *const END_NAME[N_END] = {"plain", "gated", "rounded",
                                            "gated and rounded"};

static float bf16(float x)
{
    return __bfloat162float(__float2bfloat16(x));
}

/* Floats [at, at + n) of results. */
static float *fetch_results(struct rows rows, size_t at, size_t n)
{
    if (!rows.rounded)
        return fetch(rows.out + at, n);
    float *y = (float *)malloc(n * sizeof(float));
    __nv_bfloat16 *x = (__nv_bfloat16 *)malloc(n * sizeof(*x));
    CUDA(cudaMemcpy(x, rows.rounded + at, n * sizeof(*x),
                    cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++)
        y[i] = __bfloat162float(x[i]);
    free(x);
    return y;
}

static __global__ void gate_rows(float *x, const float *gate, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = x[i] * scalar_sigmoid(gate[i]);
}

/* What plain results come to; gate: on the device, or NULL. */
static float *ended(const float *plain, const float *gate, size_t n,
                    bool is_rounded)
{
    float *x, *y;

    CUDA(cudaMalloc((void **)&x, n * sizeof(float)));
    CUDA(cudaMemcpy(x, plain, n * sizeof(float), cudaMemcpyHostToDevice));
    if (gate)
        gate_rows<<<(unsigned)((n + 255) / 256), 256>>>(x, gate, n);
    y = fetch(x, n);
    cudaFree(x);
    for (size_t i = 0; i < n && is_rounded; i++)
        y[i] = fabsf(y[i]) < FLT_MIN ? copysignf(0.0f, y[i]) : bf16(y[i]);
    return y;
}

static int compare_float(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float median_ms(float *ms, int n)
{
    qsort(ms, (size_t)n, sizeof(ms[0]), compare_float);
    return ms[n / 2];
}

#define N_TIME 9
#endif
