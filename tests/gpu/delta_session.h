#ifndef TESTS_GPU_DELTA_SESSION_H
#define TESTS_GPU_DELTA_SESSION_H
/* Sessions of the delta rule on a GPU, their tokens random, for its check and
 * its times. */
#include "kernels/cuda/delta.cuh"
#include "kernels/cuda/ops.h"
#include "tests/gpu/small_device.h"

#include <math.h>
#include <string.h>

#define COUNT(x) (sizeof(x) / sizeof(*(x)))

static struct gpu gpu;
static uint64_t seed = 1;

static float noise(void) /* in [-1, 1) */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

static void *on_device(const void *host, size_t bytes)
{
    void *p;

    must(cudaMalloc(&p, bytes), "memory");
    if (host)
        must(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), "copy");
    return p;
}

static void to_host(void *host, const void *device, size_t bytes)
{
    must(cudaStreamSynchronize(gpu.stream), "kernels");
    must(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "copy");
}

/* Inputs of a session's tokens and its state, on the device. */
struct session {
    struct delta_shape shape;
    uint32_t n_token;
    size_t stride, out_stride; /* of v, and of out */
    uint16_t *host_unit, *unit;
    float *host_v, *host_beta, *host_decay; /* the same here */
    float *v, *beta, *decay, *out;
    struct delta_state state;
};

static size_t s_bytes(struct delta_shape s)
{
    return (size_t)s.n_v_head * s.d_k * s.d_v * 4;
}

static size_t k_bytes(struct delta_shape s)
{
    return (size_t)s.n_k_head * GRID * s.d_k * 2;
}

static size_t u_bytes(struct delta_shape s)
{
    return (size_t)s.n_v_head * GRID * ring_stride(s.d_v) * 2;
}

static size_t g_bytes(struct delta_shape s)
{
    return (size_t)s.n_v_head * GRID * 8;
}

static size_t gate_bytes(const struct session *s)
{
    return (size_t)s->n_token * s->shape.n_v_head * 4;
}

static size_t unit_bytes(const struct session *s)
{
    return s->n_token * unit_stride(s->shape) * 2;
}

static size_t v_bytes(const struct session *s)
{
    return s->n_token * s->stride * 4;
}

static void state_init(struct delta_state *state, struct delta_shape shape)
{
    state->s = (float *)on_device(NULL, s_bytes(shape));
    state->ring_k = on_device(NULL, k_bytes(shape));
    state->ring_u = on_device(NULL, u_bytes(shape));
    state->ring_g = (double *)on_device(NULL, g_bytes(shape));
}

static void state_release(struct delta_state *state)
{
    cudaFree(state->s);
    cudaFree(state->ring_k);
    cudaFree(state->ring_u);
    cudaFree(state->ring_g);
}

/* Nothing past yet; the ring is full of NaN, which nobody may see. */
static void reset(const struct session *s)
{
    must(cudaMemset(s->state.s, 0, s_bytes(s->shape)), "reset");
    must(cudaMemset(s->state.ring_k, 0xff, k_bytes(s->shape)), "reset");
    must(cudaMemset(s->state.ring_u, 0xff, u_bytes(s->shape)), "reset");
    must(cudaMemset(s->state.ring_g, 0xff, g_bytes(s->shape)), "reset");
    must(cudaMemset(s->out, 0xff, s->n_token * s->out_stride * 4), "reset");
}

static float a_decay(size_t i)
{
    if (i % 41 == 40) /* a token that forgets everything */
        return -150.0f;
    if (i % 13 == 5)
        return -6.0f;
    return i % 7 == 3 ? 0.0f : 0.05f * (noise() - 1.0f);
}

/* To nearest, ties to even. */
static uint16_t to_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float of_bf16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float wide;

    memcpy(&wide, &bits, 4);
    return wide;
}

/* A direction of d dims, or none. */
static void make_unit(uint16_t *to, uint32_t d, double scale)
{
    float x[128];
    double sum = 1e-6;

    for (uint32_t i = 0; i < d; i++) {
        x[i] = noise();
        sum += (double)x[i] * x[i];
    }
    for (uint32_t i = 0; i < d; i++)
        to[i] = to_bf16((float)(x[i] / sqrt(sum) * scale));
}

static void make_units(const struct session *s)
{
    const struct delta_shape shape = s->shape;
    const uint32_t n_head = 2 * shape.n_k_head;

    for (size_t i = 0; i < (size_t)s->n_token * n_head; i++)
        make_unit(s->host_unit + i * shape.d_k, shape.d_k,
                  i % n_head < shape.n_k_head ? 1.0 / sqrt(shape.d_k) : 1.0);
}

static struct session session_of(struct delta_shape shape, uint32_t n_token)
{
    struct session s = {};

    s.shape = shape;
    s.n_token = n_token;
    s.stride = (size_t)shape.n_v_head * shape.d_v + 4;
    s.out_stride = (size_t)shape.n_v_head * shape.d_v + 8;
    s.host_unit = (uint16_t *)malloc(unit_bytes(&s));
    s.host_v = (float *)malloc(v_bytes(&s));
    s.host_beta = (float *)malloc(gate_bytes(&s));
    s.host_decay = (float *)malloc(gate_bytes(&s));
    make_units(&s);
    for (size_t i = 0; i < v_bytes(&s) / 4; i++)
        s.host_v[i] = noise();
    for (size_t i = 0; i < gate_bytes(&s) / 4; i++) {
        s.host_beta[i] = 0.5f + 0.5f * noise();
        s.host_decay[i] = a_decay(i);
    }
    if (n_token > 100) { /* a row of zeros has no direction */
        memset(s.host_unit + 100 * unit_stride(shape), 0,
               unit_stride(shape) * 2);
        memset(s.host_v + 100 * s.stride, 0, s.stride * 4);
    }
    s.unit = (uint16_t *)on_device(s.host_unit, unit_bytes(&s));
    s.v = (float *)on_device(s.host_v, v_bytes(&s));
    s.beta = (float *)on_device(s.host_beta, gate_bytes(&s));
    s.decay = (float *)on_device(s.host_decay, gate_bytes(&s));
    s.out = (float *)on_device(NULL, n_token * s.out_stride * 4);
    state_init(&s.state, shape);
    return s;
}

static void session_release(struct session *s)
{
    free(s->host_unit);
    free(s->host_v);
    free(s->host_beta);
    free(s->host_decay);
    cudaFree(s->unit);
    cudaFree(s->v);
    cudaFree(s->beta);
    cudaFree(s->decay);
    cudaFree(s->out);
    state_release(&s->state);
}

static struct delta_args args_of(const struct session *s,
                                 const struct delta_span *span, uint32_t n_span)
{
    struct delta_args a = {};

    a.shape = s->shape;
    a.out = s->out;
    a.out_stride = s->out_stride;
    a.v = s->v;
    a.qkv_stride = s->stride;
    a.unit = s->unit;
    a.beta = s->beta;
    a.log_decay = s->decay;
    a.span = span;
    a.n_span = n_span;
    return a;
}

/* Rows first .. of the session, which is at that position. */
static void run(const struct session *s, uint32_t first, uint32_t n)
{
    const struct delta_span span = {first, n, first, s->state};
    const struct delta_args a = args_of(s, &span, 1);

    cuda_delta(&gpu, &a);
}
#endif
