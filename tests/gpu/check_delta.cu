/*
 * The recurrent layer on the GPU, without the node:
 *     check_delta check [SHAPE]  against the recurrence in double, and by bits
 *     check_delta rates          times beside what memory allows
 * It judges outputs and folded states by an oracle in double that shares no
 * line with the kernels: the rule token by token, its keys and queries rounded
 * to bf16. Then by bits: a prompt in one call, against the same rows in calls
 * of other sizes, alone and beside other sessions; outputs, state and ring.
 *
 *     nvcc -std=c++17 -O3 -fmad=false -I. \
 *         -gencode=arch=compute_90a,code=sm_90a \
 *         tests/gpu/check_delta.cu kernels/cuda/{delta,conv}*.cu
 */
#include "kernels/cuda/delta.cuh"
#include "kernels/cuda/ops.h"
#include "tests/gpu/small_device.h"

#include <math.h>
#include <string.h>

#define COUNT(x) (sizeof(x) / sizeof(*(x)))
#define TOLERANCE 1e-2 /* of the largest: factors rounded to 2^-9 each */

static struct gpu gpu;
static int n_failed, n_checked;

static void claim(bool is_true, const char *what, struct delta_shape s,
                  double got)
{
    n_checked++;
    if (is_true)
        return;
    n_failed++;
    printf("FAILED: %s (%g), %u/%u heads of %u x %u\n", what, got, s.n_k_head,
           s.n_v_head, s.d_k, s.d_v);
}

static uint64_t seed = 1;

static float noise(void) /* in [-1, 1) */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

static float to_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &bits, 4);
    return x;
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

/* --------------------------------------------------------------- sessions */

/* Inputs of a session's tokens and its state, on the device. */
struct session {
    struct delta_shape shape;
    uint32_t n_token;
    size_t stride, out_stride;
    float *host_qkv, *host_beta, *host_decay; /* the same here */
    float *qkv, *beta, *decay, *out;
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
    return (size_t)s.n_v_head * GRID * s.d_v * 2;
}

static size_t g_bytes(struct delta_shape s)
{
    return (size_t)s.n_v_head * GRID * 8;
}

static size_t gate_bytes(const struct session *s)
{
    return (size_t)s->n_token * s->shape.n_v_head * 4;
}

static void state_init(struct delta_state *state, struct delta_shape shape)
{
    state->s = (float *)on_device(NULL, s_bytes(shape));
    state->ring_k = on_device(NULL, k_bytes(shape));
    state->ring_u = on_device(NULL, u_bytes(shape));
    state->ring_g = (double *)on_device(NULL, g_bytes(shape));
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

static struct session session_of(struct delta_shape shape, uint32_t n_token)
{
    struct session s = {};
    size_t n;

    s.shape = shape;
    s.n_token = n_token;
    s.stride = 2 * (size_t)shape.n_k_head * shape.d_k +
               (size_t)shape.n_v_head * shape.d_v + 4;
    s.out_stride = (size_t)shape.n_v_head * shape.d_v + 8;
    n = (size_t)n_token * s.stride;
    s.host_qkv = (float *)malloc(n * 4);
    s.host_beta = (float *)malloc(gate_bytes(&s));
    s.host_decay = (float *)malloc(gate_bytes(&s));
    for (size_t i = 0; i < n; i++)
        s.host_qkv[i] = noise();
    for (size_t i = 0; i < gate_bytes(&s) / 4; i++) {
        s.host_beta[i] = 0.5f + 0.5f * noise();
        s.host_decay[i] = a_decay(i);
    }
    if (n_token > 100) /* a row of zeros has no direction */
        memset(s.host_qkv + 100 * s.stride, 0, s.stride * 4);
    s.qkv = (float *)on_device(s.host_qkv, n * 4);
    s.beta = (float *)on_device(s.host_beta, gate_bytes(&s));
    s.decay = (float *)on_device(s.host_decay, gate_bytes(&s));
    s.out = (float *)on_device(NULL, n_token * s.out_stride * 4);
    state_init(&s.state, shape);
    return s;
}

static void session_release(struct session *s)
{
    free(s->host_qkv);
    free(s->host_beta);
    free(s->host_decay);
    cudaFree(s->qkv);
    cudaFree(s->beta);
    cudaFree(s->decay);
    cudaFree(s->out);
    cudaFree(s->state.s);
    cudaFree(s->state.ring_k);
    cudaFree(s->state.ring_u);
    cudaFree(s->state.ring_g);
}

static struct delta_args args_of(const struct session *s,
                                 const struct delta_span *span, uint32_t n_span)
{
    const size_t n_key = (size_t)s->shape.n_k_head * s->shape.d_k;
    struct delta_args a = {};

    a.shape = s->shape;
    a.out = s->out;
    a.out_stride = s->out_stride;
    a.q = s->qkv;
    a.k = s->qkv + n_key;
    a.v = s->qkv + 2 * n_key;
    a.qkv_stride = s->stride;
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

/* ----------------------------------------------------------------- oracle */

static void unit(double *y, const float *x, uint32_t n, double scale)
{
    double sum = 1e-6;

    for (uint32_t d = 0; d < n; d++)
        sum += (double)x[d] * x[d];
    for (uint32_t d = 0; d < n; d++)
        y[d] = to_bf16((float)(x[d] / sqrt(sum) * scale));
}

/* S <- e^g S;  d = beta (v - S^T k);  S <- S + k d^T;  o = S^T q */
static void step(double *s, const double *k, const double *q, const float *v,
                 double beta, double log_decay, struct delta_shape shape,
                 double *o)
{
    const uint32_t d_v = shape.d_v;
    const double aged = exp(log_decay);

    for (uint32_t e = 0; e < d_v; e++) {
        double past = 0.0;

        for (uint32_t d = 0; d < shape.d_k; d++)
            past += (s[d * d_v + e] *= aged) * k[d];
        o[e] = 0.0;
        for (uint32_t d = 0; d < shape.d_k; d++)
            o[e] += (s[d * d_v + e] += k[d] * beta * (v[e] - past)) * q[d];
    }
}

/* Largest differences of outputs and, at the last grid point, of the state,
 * relative to the largest. */
static void check_oracle(const struct session *s, const float *out,
                         const float *state)
{
    const struct delta_shape shape = s->shape;
    const uint32_t d_k = shape.d_k, d_v = shape.d_v;
    const size_t n_key = (size_t)shape.n_k_head * d_k;
    double *sum = (double *)malloc((size_t)d_k * d_v * 8);
    double off = 0.0, most = 1e-6, state_off = 0.0, state_most = 1e-6;
    double q[128], k[128], o[192];

    for (uint32_t h = 0; h < shape.n_v_head; h++) {
        const uint32_t g = h / (shape.n_v_head / shape.n_k_head);

        memset(sum, 0, (size_t)d_k * d_v * 8);
        for (uint32_t t = 0; t < s->n_token; t++) {
            const float *row = s->host_qkv + t * s->stride;
            const size_t at = (size_t)t * shape.n_v_head + h;

            unit(q, row + g * d_k, d_k, 1.0 / sqrt(d_k));
            unit(k, row + n_key + g * d_k, d_k, 1.0);
            step(sum, k, q, row + 2 * n_key + h * d_v, s->host_beta[at],
                 s->host_decay[at], shape, o);
            for (uint32_t e = 0; e < d_v; e++) {
                const double got = out[t * s->out_stride + h * d_v + e];

                off = got - o[e] == got - o[e] ? fmax(off, fabs(got - o[e]))
                                               : INFINITY;
                most = fmax(most, fabs(o[e]));
            }
            if (t + 1 != s->n_token / GRID * GRID)
                continue;
            for (size_t i = 0; i < (size_t)d_k * d_v; i++) {
                const double got = state[h * (size_t)d_k * d_v + i];

                state_off =
                    got == got ? fmax(state_off, fabs(got - sum[i])) : INFINITY;
                state_most = fmax(state_most, fabs(sum[i]));
            }
        }
    }
    printf("%u/%u heads of %u x %u, %u tokens: outputs off %.1e of %.2f, state "
           "%.1e of %.2f\n",
           shape.n_k_head, shape.n_v_head, d_k, d_v, s->n_token, off, most,
           state_off, state_most);
    claim(off < TOLERANCE * most, "outputs", shape, off / most);
    claim(state_off < TOLERANCE * state_most, "state", shape,
          state_off / state_most);
    free(sum);
}

/* ------------------------------------------------------------------- bits */

/* What a session has after some rows, without the ring's unused entries. */
struct kept {
    char *bytes;
    size_t n, n_out;
};

static struct kept kept(const struct session *s, uint32_t n_row)
{
    const struct delta_shape shape = s->shape;
    const size_t used = n_row % GRID;
    const size_t out = (size_t)s->n_token * s->out_stride * 4;
    struct kept it = {};
    char *at;

    it.n_out = out;
    it.n =
        out + s_bytes(shape) + k_bytes(shape) + u_bytes(shape) + g_bytes(shape);
    at = it.bytes = (char *)calloc(1, it.n);
    to_host(at, s->out, (size_t)n_row * s->out_stride * 4);
    at += out;
    to_host(at, s->state.s, s_bytes(shape));
    at += s_bytes(shape);
    for (uint32_t h = 0; h < shape.n_k_head && used; h++)
        to_host(at + h * GRID * shape.d_k * 2,
                (char *)s->state.ring_k + h * GRID * shape.d_k * 2,
                used * shape.d_k * 2);
    at += k_bytes(shape);
    for (uint32_t h = 0; h < shape.n_v_head && used; h++) {
        to_host(at + h * GRID * shape.d_v * 2,
                (char *)s->state.ring_u + h * GRID * shape.d_v * 2,
                used * shape.d_v * 2);
        to_host(at + u_bytes(shape) + h * GRID * 8,
                (char *)s->state.ring_g + h * GRID * 8, used * 8);
    }
    return it;
}

static void check_same(const struct session *s, const struct kept *want,
                       uint32_t n_row, const char *what)
{
    struct kept got = kept(s, n_row);
    size_t n_off = 0, first = 0;

    for (size_t i = got.n; i-- > 0;)
        if (got.bytes[i] != want->bytes[i]) {
            n_off++;
            first = i;
        }
    if (n_off)
        printf("  %s: %zu of %zu bytes differ, first at %zu (outputs end at "
               "%zu; row of %zu)\n",
               what, n_off, got.n, first, got.n_out, s->out_stride * 4);
    claim(n_off == 0, what, s->shape, (double)n_off);
    free(got.bytes);
}

static void check_cuts(const struct session *s, const struct kept *want)
{
    static const uint32_t CUTS[] = {1, 2, 4, 5, 7, 16, 17, 63, 64, 65, 130};
    char what[64];

    for (size_t c = 0; c < COUNT(CUTS); c++) {
        reset(s);
        for (uint32_t t = 0; t < s->n_token; t += CUTS[c])
            run(s, t, CUTS[c] < s->n_token - t ? CUTS[c] : s->n_token - t);
        snprintf(what, sizeof(what), "calls of %u rows", CUTS[c]);
        check_same(s, want, s->n_token, what);
    }
    reset(s);
    for (uint32_t t = 0, n; t < s->n_token; t += n) {
        n = 1 + (uint32_t)(fabsf(noise()) * (noise() > 0 ? 8.0f : 90.0f));
        n = n < s->n_token - t ? n : s->n_token - t;
        run(s, t, n);
    }
    check_same(s, want, s->n_token, "calls of any size");
}

/* Before each call a draft of other tokens at its position, which is rejected:
 * not across a grid point, behind which there is no way back. */
static void check_rejected(const struct session *s, const struct kept *want)
{
    struct session draft = *s;

    draft.out = (float *)on_device(NULL, s->n_token * s->out_stride * 4);
    reset(s);
    for (uint32_t t = 0, n; t < s->n_token; t += n) {
        const uint32_t room = GRID - t % GRID, left = s->n_token - t;
        const struct delta_span span = {
            s->n_token / 3, 1 + t % 12 < room ? 1 + t % 12 : 1, t, s->state};
        const struct delta_args a = args_of(&draft, &span, 1);

        if (room > 1)
            cuda_delta(&gpu, &a);
        n = 1 + t % 5 < left ? 1 + t % 5 : left;
        run(s, t, n);
    }
    check_same(s, want, s->n_token, "after rejected drafts");
    cudaFree(draft.out);
}

/*
 * Three sessions with the same tokens, each with its own number of rows in each
 * call, some with many, some with few, and rows of a call in any order.
 */
static void check_batches(struct session *s, const struct kept *want)
{
    enum { N = 3 };
    struct session other[N];
    uint32_t done[N] = {0};

    for (uint32_t i = 0; i < N; i++) {
        other[i] = *s;
        if (i)
            state_init(&other[i].state, s->shape);
        other[i].out = (float *)on_device(NULL, s->n_token * s->out_stride * 4);
        reset(&other[i]);
    }
    for (uint32_t turn = 0; turn < 1000; turn++) {
        struct session batch = *s;
        struct delta_span span[N];
        uint32_t n_span = 0, n_row = 0, who[N];

        for (uint32_t i = N; i-- > 0;) {
            uint32_t n = turn % 3 == i % 3 ? 40 + turn % 60 : 1 + turn % 3;

            n = n < s->n_token - done[i] ? n : s->n_token - done[i];
            if (n == 0)
                continue;
            who[n_span] = i;
            span[n_span++] =
                (struct delta_span){n_row, n, done[i], other[i].state};
            n_row += n;
        }
        if (n_span == 0)
            break;
        batch.qkv = (float *)on_device(NULL, n_row * s->stride * 4);
        batch.beta = (float *)on_device(NULL, n_row * s->shape.n_v_head * 4);
        batch.decay = (float *)on_device(NULL, n_row * s->shape.n_v_head * 4);
        batch.out = (float *)on_device(NULL, n_row * s->out_stride * 4);
        must(cudaMemset(batch.out, 0xff, n_row * s->out_stride * 4), "batch");
        for (uint32_t i = 0; i < n_span; i++) {
            const size_t to = span[i].first_row, from = span[i].position;
            const size_t n = span[i].n_row, n_v = s->shape.n_v_head;

            cudaMemcpy(batch.qkv + to * s->stride, s->qkv + from * s->stride,
                       n * s->stride * 4, cudaMemcpyDeviceToDevice);
            cudaMemcpy(batch.beta + to * n_v, s->beta + from * n_v, n * n_v * 4,
                       cudaMemcpyDeviceToDevice);
            cudaMemcpy(batch.decay + to * n_v, s->decay + from * n_v,
                       n * n_v * 4, cudaMemcpyDeviceToDevice);
        }
        must(cudaDeviceSynchronize(), "batch");
        const struct delta_args a = args_of(&batch, span, n_span);
        cuda_delta(&gpu, &a);
        must(cudaStreamSynchronize(gpu.stream), "batch");
        for (uint32_t i = 0; i < n_span; i++) {
            cudaMemcpy(other[who[i]].out + span[i].position * s->out_stride,
                       batch.out + span[i].first_row * s->out_stride,
                       span[i].n_row * s->out_stride * 4,
                       cudaMemcpyDeviceToDevice);
            done[who[i]] += span[i].n_row;
        }
        cudaFree(batch.qkv);
        cudaFree(batch.beta);
        cudaFree(batch.decay);
        cudaFree(batch.out);
    }
    must(cudaDeviceSynchronize(), "batch");
    for (uint32_t i = 0; i < N; i++) {
        check_same(&other[i], want, s->n_token, "beside other sessions");
        cudaFree(other[i].out);
        if (i) {
            cudaFree(other[i].state.s);
            cudaFree(other[i].state.ring_k);
            cudaFree(other[i].state.ring_u);
            cudaFree(other[i].state.ring_g);
        }
    }
}

/* All shapes, or the one named. */
static void check_delta(const char *only)
{
    static const struct delta_shape SHAPES[] = {
        {4, 8, 64, 64, ARITHMETIC_FP32},  {2, 4, 128, 128, ARITHMETIC_FP32},
        {3, 3, 96, 192, ARITHMETIC_FP32}, {1, 4, 128, 64, ARITHMETIC_FP32},
        {1, 3, 96, 128, ARITHMETIC_FP32}, {1, 1, 64, 192, ARITHMETIC_FP32},
    };
    static const uint32_t TOKENS[] = {195, 130, 1000, 65, 64, 63};

    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        if (only && strtoul(only, NULL, 10) != i)
            continue;
        struct session s = session_of(SHAPES[i], TOKENS[i]);
        struct kept want;

        reset(&s);
        run(&s, 0, s.n_token);
        want = kept(&s, s.n_token);
        check_oracle(&s, (const float *)want.bytes,
                     (const float *)(want.bytes + want.n_out));
        check_cuts(&s, &want);
        check_rejected(&s, &want);
        check_batches(&s, &want);
        free(want.bytes);
        session_release(&s);
    }
}

/* ------------------------------------------------------- what stands around */

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* A conv in one call and in calls of some rows, and the tail behind them. */
static void check_conv(uint32_t width)
{
    enum { N_CHANNEL = 132, N_TOKEN = 150, N_KEPT = 7 * N_CHANNEL };
    static const uint32_t CUTS[] = {N_TOKEN, 1, 2, 3, 16, 17, 63};
    static float x[N_TOKEN * N_CHANNEL], y[N_TOKEN * N_CHANNEL];
    static float first[N_TOKEN * N_CHANNEL], w[8 * N_CHANNEL], tail[N_KEPT];
    const size_t bytes = sizeof(x), tail_bytes = (width - 1) * N_CHANNEL * 4;
    double off = 0.0;
    bool is_same = true;

    for (size_t i = 0; i < COUNT(x); i++)
        x[i] = noise();
    for (size_t i = 0; i < COUNT(w); i++)
        w[i] = noise();
    float *on_x = (float *)on_device(x, bytes);
    float *on_y = (float *)on_device(NULL, bytes);
    float *on_w = (float *)on_device(w, sizeof(w));
    float *on_tail = (float *)on_device(NULL, sizeof(tail));
    for (size_t c = 0; c < COUNT(CUTS); c++) {
        must(cudaMemset(on_tail, 0, sizeof(tail)), "tail");
        must(cudaMemset(on_y, 0xff, bytes), "conv");
        for (uint32_t t = 0; t < N_TOKEN; t += CUTS[c]) {
            const uint32_t left = N_TOKEN - t;
            const struct conv_span span = {t, CUTS[c] < left ? CUTS[c] : left,
                                           on_tail};
            const struct conv_args a = {on_y,      N_CHANNEL, on_x,
                                        N_CHANNEL, on_w,      N_CHANNEL,
                                        width,     &span,     1};

            cuda_conv(&gpu, &a);
        }
        to_host(c ? y : first, on_y, bytes);
        to_host(tail, on_tail, sizeof(tail));
        is_same = is_same && (c == 0 || memcmp(y, first, bytes) == 0) &&
                  memcmp(tail, x + (N_TOKEN - width + 1) * N_CHANNEL,
                         tail_bytes) == 0;
    }
    for (uint32_t t = 0; t < N_TOKEN; t++)
        for (uint32_t c = 0; c < N_CHANNEL; c++) {
            double sum = 0.0;

            for (uint32_t i = 0; i < width && i <= t; i++)
                sum += (double)w[(width - 1 - i) * N_CHANNEL + c] *
                       x[(t - i) * N_CHANNEL + c];
            off =
                fmax(off, fabs(first[t * N_CHANNEL + c] - sum * sigmoid(sum)));
        }
    claim(off < 2e-6 && is_same, "conv", (struct delta_shape){0}, off);
    cudaFree(on_x);
    cudaFree(on_y);
    cudaFree(on_w);
    cudaFree(on_tail);
}

static void check_gates(void)
{
    enum { N_ROW = 67, N_HEAD = 3, N = N_ROW * N_HEAD };
    static float a[N], b[N], beta[N], log_decay[N];
    static const float scale[N_HEAD] = {-0.3f, -7.0f, -1.0f};
    static const float bias[N_HEAD] = {0.5f, -9.0f, 19.0f};
    double off = 0.0;

    for (size_t i = 0; i < N; i++) {
        a[i] = noise() * 6.0f;
        b[i] = noise() * 6.0f;
    }
    const struct delta_gate_args args = {
        (float *)on_device(NULL, sizeof(a)),
        (float *)on_device(NULL, sizeof(a)),
        (float *)on_device(a, sizeof(a)),
        (float *)on_device(b, sizeof(b)),
        N_HEAD,
        N_HEAD,
        (float *)on_device(scale, sizeof(scale)),
        (float *)on_device(bias, sizeof(bias)),
        N_ROW,
        N_HEAD};
    cuda_delta_gate(&gpu, &args);
    to_host(beta, args.beta, sizeof(beta));
    to_host(log_decay, args.log_decay, sizeof(log_decay));
    for (size_t i = 0; i < N; i++) {
        const double x = (double)a[i] + bias[i % N_HEAD];
        const double want = scale[i % N_HEAD] * log1p(exp(x));

        off = fmax(off, fabs(beta[i] - sigmoid(b[i])) / sigmoid(b[i]));
        off = fmax(off, fabs(log_decay[i] - want) / fabs(want));
    }
    claim(off < 2e-6, "gates", (struct delta_shape){0}, off);
}

static void check_norm(uint32_t dim)
{
    enum { N_ROW = 5, N_GROUP = 3, MOST = 256, N = N_ROW * N_GROUP * MOST };
    static float x[N], z[N], y[N], w[MOST];
    const uint32_t stride = N_GROUP * dim;
    struct gated_norm_args a = {};
    double off = 0.0;

    for (size_t i = 0; i < N; i++) {
        x[i] = noise();
        z[i] = noise() * 4.0f;
        w[i % MOST] = noise();
    }
    a.norm.x = a.norm.y = (float *)on_device(x, sizeof(x));
    a.norm.x_stride = a.norm.y_stride = a.z_stride = stride;
    a.norm.weight = (float *)on_device(w, sizeof(w));
    a.norm.n_row = N_ROW;
    a.norm.n_group = N_GROUP;
    a.norm.dim = dim;
    a.norm.eps = 1e-6f;
    a.z = (float *)on_device(z, sizeof(z));
    cuda_gated_norm(&gpu, &a);
    to_host(y, a.norm.y, sizeof(y));
    for (uint32_t g = 0; g < N_ROW * N_GROUP; g++) {
        double sum = 0.0;

        for (uint32_t i = 0; i < dim; i++)
            sum += (double)x[g * dim + i] * x[g * dim + i];
        for (uint32_t i = 0; i < dim; i++) {
            const size_t at = (size_t)g * dim + i;
            const double want =
                x[at] / sqrt(sum / dim + 1e-6) * w[i] * z[at] * sigmoid(z[at]);

            off = fmax(off, fabs(y[at] - want));
        }
    }
    claim(off < 1e-5, "norm", (struct delta_shape){0}, off);
}

/* ------------------------------------------------------------------ rates */

#define N_RUN 9

typedef void work(void *arg, uint32_t turn);

/* Median microseconds of a turn, over N_RUN runs of n_turn turns. */
static double median_us(work *run, void *arg, uint32_t n_turn)
{
    cudaEvent_t begin, end;
    float ms[N_RUN];

    must(cudaEventCreate(&begin), "event");
    must(cudaEventCreate(&end), "event");
    for (int i = -2; i < N_RUN; i++) {
        must(cudaEventRecord(begin, gpu.stream), "event");
        for (uint32_t t = 0; t < n_turn; t++)
            run(arg, t);
        must(cudaEventRecord(end, gpu.stream), "event");
        must(cudaEventSynchronize(end), "run");
        if (i >= 0)
            cudaEventElapsedTime(&ms[i], begin, end);
    }
    for (int i = 1; i < N_RUN; i++)
        for (int j = i; j > 0 && ms[j] < ms[j - 1]; j--) {
            const float swap = ms[j];

            ms[j] = ms[j - 1];
            ms[j - 1] = swap;
        }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return 1e3 * ms[N_RUN / 2] / n_turn;
}

struct bench {
    struct session *s;
    struct delta_many many;
    struct delta_args few[64];
    struct conv_args conv;
    struct gated_norm_args norm;
    void *from, *to;
    size_t bytes;
};

static void run_copy(void *arg, uint32_t turn)
{
    struct bench *b = (struct bench *)arg;

    (void)turn;
    cudaMemcpyAsync(b->to, b->from, b->bytes, cudaMemcpyDeviceToDevice,
                    gpu.stream);
}

static void run_prompt(void *arg, uint32_t turn)
{
    struct bench *b = (struct bench *)arg;

    (void)turn;
    run(b->s, 0, b->s->n_token);
}

static void run_prepare(void *arg, uint32_t turn)
{
    (void)turn;
    delta_prepare(&gpu, &((struct bench *)arg)->many);
}

static void run_recur(void *arg, uint32_t turn)
{
    (void)turn;
    delta_recur(&gpu, &((struct bench *)arg)->many);
}

static void run_few(void *arg, uint32_t turn)
{
    struct bench *b = (struct bench *)arg;

    delta_few(&gpu, &b->few[turn], b->s->n_token);
}

static void run_conv(void *arg, uint32_t turn)
{
    (void)turn;
    cuda_conv(&gpu, &((struct bench *)arg)->conv);
}

static void run_norm(void *arg, uint32_t turn)
{
    (void)turn;
    cuda_gated_norm(&gpu, &((struct bench *)arg)->norm);
}

static void print_rate(const char *what, double bytes, double rate, double us)
{
    printf("%-44s %9.1f %9.1f %6.1f %%\n", what, bytes / rate * 1e6, us,
           100.0 * bytes / rate * 1e6 / us);
}

/* The two kernels apart, of all chunks at once. */
static void rate_kernels(struct bench *b, double rate)
{
    const struct delta_shape shape = b->s->shape;
    const uint32_t n_chunk = b->s->n_token / GRID;
    const struct delta_span span = {0, b->s->n_token, 0, b->s->state};
    const double rows = (double)b->s->n_token * 4;
    const double tiles =
        (double)n_chunk * shape.n_k_head * 2 * tile_bytes(shape.d_k);
    const double heads =
        (double)n_chunk * shape.n_v_head * sizeof(struct chunk_head);

    b->many.args = args_of(b->s, &span, 1);
    b->many.args.span =
        (const struct delta_span *)on_device(&span, sizeof(span));
    b->many.n_chunk = n_chunk;
    b->many.tile = (char *)on_device(NULL, (size_t)tiles);
    b->many.head = (struct chunk_head *)on_device(NULL, (size_t)heads);
    print_rate("  prepare (rows in; tiles and weights out)",
               rows * shape.n_k_head * 2 * shape.d_k + tiles + heads, rate,
               median_us(run_prepare, b, 1));
    print_rate("  recur (tiles, weights, v in; outputs out)",
               rows * shape.n_v_head * 2 * shape.d_v + tiles + heads, rate,
               median_us(run_recur, b, 1));
    cudaFree(b->many.tile);
    cudaFree(b->many.head);
}

static void rate_prompt(uint32_t n_token, double rate)
{
    struct session s = session_of(
        (struct delta_shape){16, 32, 128, 128, ARITHMETIC_FP32}, n_token);
    struct bench b = {};
    char what[64];
    const double rows = (double)n_token * 4 * (2 * 16 + 2 * 32) * 128;

    b.s = &s;
    reset(&s);
    snprintf(what, sizeof(what), "delta, %u tokens (float rows in and out)",
             n_token);
    print_rate(what, rows, rate, median_us(run_prompt, &b, 1));
    rate_kernels(&b, rate);
    session_release(&s);
}

/* Sessions in the middle of their chunks; as many sets as no cache holds. */
static void rate_few(uint32_t n_span, uint32_t n_row, uint32_t at, double rate)
{
    const struct delta_shape shape = {16, 32, 128, 128, ARITHMETIC_FP32};
    const uint32_t n_set = 256 / n_span < 3    ? 3
                           : 256 / n_span > 64 ? 64
                                               : 256 / n_span;
    struct session s = session_of(shape, n_span * n_row);
    struct delta_span *span =
        (struct delta_span *)malloc(n_span * sizeof(*span));
    struct bench b = {};
    struct session rows = s;
    const double ring = (at % GRID) * 2.0 * (32 * 128 + 16 * 128);
    const double state = (double)s_bytes(shape);
    char what[64];

    for (uint32_t set = 0; set < n_set; set++) {
        for (uint32_t i = 0; i < n_span; i++) {
            struct delta_state *state_of = &span[i].state;

            state_init(state_of, shape);
            cudaMemset(state_of->s, 0x3c, s_bytes(shape));
            cudaMemset(state_of->ring_k, 0x3c, k_bytes(shape));
            cudaMemset(state_of->ring_u, 0x3c, u_bytes(shape));
            cudaMemset(state_of->ring_g, 0, g_bytes(shape));
            span[i].first_row = i * n_row;
            span[i].n_row = n_row;
            span[i].position = at;
        }
        b.few[set] = args_of(&s, span, n_span);
        b.few[set].span =
            (const struct delta_span *)on_device(span, n_span * sizeof(*span));
    }
    must(cudaDeviceSynchronize(), "sets");
    rows.n_token = n_row;
    b.s = &rows;
    snprintf(what, sizeof(what), "decode, %u x %u rows at %u of a chunk",
             n_span, n_row, at);
    print_rate(what, n_span * (state + ring), rate,
               median_us(run_few, &b, n_set));
    free(span);
    for (uint32_t set = 0; set < n_set; set++) {
        struct delta_span *of =
            (struct delta_span *)malloc(n_span * sizeof(*of));

        to_host(of, b.few[set].span, n_span * sizeof(*of));
        for (uint32_t i = 0; i < n_span; i++) {
            cudaFree(of[i].state.s);
            cudaFree(of[i].state.ring_k);
            cudaFree(of[i].state.ring_u);
            cudaFree(of[i].state.ring_g);
        }
        free(of);
    }
    session_release(&s);
}

static void rate_around(uint32_t n_token, double rate)
{
    const uint32_t n_channel = 8192, n_value = 4096;
    const size_t bytes = (size_t)n_token * n_channel * 4;
    struct conv_span span = {0, n_token, NULL};
    struct bench b = {};
    float *x = (float *)on_device(NULL, bytes),
          *y = (float *)on_device(NULL, bytes);

    cudaMemset(x, 0x3c, bytes);
    cudaMemset(y, 0x3c, bytes);
    span.tail = (float *)on_device(NULL, 3 * n_channel * 4);
    b.conv = (struct conv_args){y,
                                n_channel,
                                x,
                                n_channel,
                                (float *)on_device(NULL, 4 * n_channel * 4),
                                n_channel,
                                4,
                                &span,
                                1};
    print_rate("conv, 8192 channels, 4096 rows", 2.0 * bytes, rate,
               median_us(run_conv, &b, 1));
    b.norm.norm.x = x;
    b.norm.norm.y = y;
    b.norm.norm.x_stride = b.norm.norm.y_stride = n_value;
    b.norm.norm.weight = b.conv.weight;
    b.norm.norm.n_row = n_token;
    b.norm.norm.n_group = 32;
    b.norm.norm.dim = 128;
    b.norm.z = x + (size_t)n_token * n_value;
    b.norm.z_stride = n_value;
    print_rate("gated norm, 32 groups of 128, 4096 rows", 1.5 * bytes, rate,
               median_us(run_norm, &b, 1));
    cudaFree(x);
    cudaFree(y);
}

static double copy_rate(void)
{
    struct bench b = {};

    b.bytes = (size_t)1 << 30;
    b.from = on_device(NULL, b.bytes);
    b.to = on_device(NULL, b.bytes);
    cudaMemset(b.from, 0x3c, b.bytes);
    const double rate = 2.0 * b.bytes / median_us(run_copy, &b, 1) * 1e6;
    cudaFree(b.from);
    cudaFree(b.to);
    return rate;
}

static void rates(void)
{
    const double rate = copy_rate();

    printf("copy %.2f TB/s\n%-44s %9s %9s %8s\n", rate / 1e12, "", "bound us",
           "us", "share");
    rate_prompt(32768, rate);
    rate_prompt(4096, rate);
    rate_few(1, 1, 32, rate);
    rate_few(8, 1, 32, rate);
    rate_few(64, 1, 0, rate);
    rate_few(64, 1, 32, rate);
    rate_few(64, 1, 63, rate);
    rate_few(64, 4, 32, rate);
    rate_few(8, 16, 32, rate);
    rate_around(4096, rate);
}

int main(int argc, char **argv)
{
    const bool is_rates = argc > 1 && strcmp(argv[1], "rates") == 0;

    if (argc < 2 || (!is_rates && strcmp(argv[1], "check"))) {
        fprintf(stderr, "usage: check_delta check [SHAPE]|rates\n");
        return 2;
    }
    small_device_init(&gpu);
    if (is_rates) {
        rates();
        return 0;
    }
    check_delta(argv[2]);
    for (uint32_t width = 1; width <= CONV_WIDTH_MAX; width++)
        check_conv(width);
    check_gates();
    for (uint32_t dim = 64; dim <= 256; dim += 64)
        check_norm(dim);
    printf("%d of %d checks failed\n", n_failed, n_checked);
    return n_failed != 0;
}
