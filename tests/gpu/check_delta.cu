/*
 * The recurrent layer on the GPU, without the node:
 *     check_delta check [SHAPE]
 * It judges outputs and folded states by an oracle in double that shares no
 * line with the kernels: the rule token by token. Then by bits: a prompt in one
 * call, against the same rows in calls of other sizes, alone, beside other
 * sessions and after rejected drafts; outputs, state and ring. Rings begin full
 * of NaN.
 *
 *     nvcc -std=c++17 -O3 -fmad=false -I. \
 *         -gencode=arch=compute_90a,code=sm_90a \
 *         tests/gpu/check_delta.cu kernels/cuda/{delta*,conv*,way,driver}.cu
 */
#include "kernels/cuda/conv.cuh"
#include "tests/gpu/delta_session.h"

#define TOLERANCE 1e-2 /* of the largest: factors rounded to 2^-9 each */

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

/* ----------------------------------------------------------------- oracle */

static void widen(double *y, const uint16_t *x, uint32_t n)
{
    for (uint32_t d = 0; d < n; d++)
        y[d] = of_bf16(x[d]);
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
            const uint16_t *unit = s->host_unit + t * 2 * n_key + g * d_k;
            const size_t at = (size_t)t * shape.n_v_head + h;

            widen(q, unit, d_k);
            widen(k, unit + n_key, d_k);
            step(sum, k, q, s->host_v + t * s->stride + h * d_v,
                 s->host_beta[at], s->host_decay[at], shape, o);
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
        const size_t bytes = ring_stride(shape.d_v) * 2;

        to_host(at + h * GRID * bytes,
                (char *)s->state.ring_u + h * GRID * bytes, used * bytes);
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

/* A batch of some sessions' next rows: the inputs that stand for them in
 * `from`, one span behind the other. */
static struct session gathered(const struct session *from,
                               const struct delta_span *span, uint32_t n_span)
{
    const size_t n_v = from->shape.n_v_head, n_unit = unit_stride(from->shape);
    const size_t n_row = span[n_span - 1].first_row + span[n_span - 1].n_row;
    struct session batch = *from;

    batch.unit = (uint16_t *)on_device(NULL, n_row * n_unit * 2);
    batch.v = (float *)on_device(NULL, n_row * from->stride * 4);
    batch.beta = (float *)on_device(NULL, n_row * n_v * 4);
    batch.decay = (float *)on_device(NULL, n_row * n_v * 4);
    batch.out = (float *)on_device(NULL, n_row * from->out_stride * 4);
    must(cudaMemset(batch.out, 0xff, n_row * from->out_stride * 4), "batch");
    for (uint32_t i = 0; i < n_span; i++) {
        const size_t to = span[i].first_row, at = span[i].position;
        const size_t n = span[i].n_row;

        cudaMemcpy(batch.unit + to * n_unit, from->unit + at * n_unit,
                   n * n_unit * 2, cudaMemcpyDeviceToDevice);
        cudaMemcpy(batch.v + to * from->stride, from->v + at * from->stride,
                   n * from->stride * 4, cudaMemcpyDeviceToDevice);
        cudaMemcpy(batch.beta + to * n_v, from->beta + at * n_v, n * n_v * 4,
                   cudaMemcpyDeviceToDevice);
        cudaMemcpy(batch.decay + to * n_v, from->decay + at * n_v, n * n_v * 4,
                   cudaMemcpyDeviceToDevice);
    }
    must(cudaDeviceSynchronize(), "batch");
    return batch;
}

static void batch_release(struct session *batch)
{
    cudaFree(batch->unit);
    cudaFree(batch->v);
    cudaFree(batch->beta);
    cudaFree(batch->decay);
    cudaFree(batch->out);
}

#define N_BESIDE 3u

/* One call with rows of all that are not done, many of some and few of others.
 * False when all are done. */
static bool run_beside(struct session other[N_BESIDE], uint32_t done[N_BESIDE],
                       uint32_t turn)
{
    struct delta_span span[N_BESIDE];
    uint32_t n_span = 0, n_row = 0, who[N_BESIDE];
    const size_t out_stride = other->out_stride;

    for (uint32_t i = N_BESIDE; i-- > 0;) {
        const uint32_t left = other[i].n_token - done[i];
        uint32_t n = turn % 3 == i % 3 ? 40 + turn % 60 : 1 + turn % 3;

        n = n < left ? n : left;
        if (n == 0)
            continue;
        who[n_span] = i;
        span[n_span++] = (struct delta_span){n_row, n, done[i], other[i].state};
        n_row += n;
    }
    if (n_span == 0)
        return false;
    struct session batch = gathered(&other[0], span, n_span);
    const struct delta_args a = args_of(&batch, span, n_span);
    cuda_delta(&gpu, &a);
    must(cudaStreamSynchronize(gpu.stream), "batch");
    for (uint32_t i = 0; i < n_span; i++) {
        cudaMemcpy(other[who[i]].out + span[i].position * out_stride,
                   batch.out + span[i].first_row * out_stride,
                   span[i].n_row * out_stride * 4, cudaMemcpyDeviceToDevice);
        done[who[i]] += span[i].n_row;
    }
    batch_release(&batch);
    return true;
}

/* Sessions with the same tokens and each with its own number of rows in each
 * call. */
static void check_batches(const struct session *s, const struct kept *want)
{
    struct session other[N_BESIDE];
    uint32_t done[N_BESIDE] = {0}, turn = 0;

    for (uint32_t i = 0; i < N_BESIDE; i++) {
        other[i] = *s;
        state_init(&other[i].state, s->shape);
        other[i].out = (float *)on_device(NULL, s->n_token * s->out_stride * 4);
        reset(&other[i]);
    }
    while (turn < 1000 && run_beside(other, done, turn))
        turn++;
    must(cudaDeviceSynchronize(), "batch");
    for (uint32_t i = 0; i < N_BESIDE; i++) {
        check_same(&other[i], want, s->n_token, "beside other sessions");
        cudaFree(other[i].out);
        state_release(&other[i].state);
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

/* A convolution's inputs and what it leaves, here and there. */
#define CONV_TOKENS 150u
#define CONV_CHANNELS_MAX 900u
#define CONV_MAX (CONV_TOKENS * CONV_CHANNELS_MAX)

struct conv_case {
    uint32_t width, n_channel;
    struct delta_shape shape;
    float x[CONV_MAX], y[CONV_MAX], w[CONV_WIDTH_MAX * CONV_CHANNELS_MAX];
    float tail[CONV_WIDTH_MAX * CONV_CHANNELS_MAX];
    uint16_t unit[CONV_MAX];
    float *on_x, *on_y, *on_w, *on_tail;
    uint16_t *on_unit;
};

static size_t conv_bytes(const struct conv_case *c)
{
    return (size_t)CONV_TOKENS * c->n_channel * 4;
}

static uint32_t conv_n_unit(const struct conv_case *c)
{
    return (uint32_t)unit_stride(c->shape);
}

static void conv_init(struct conv_case *c)
{
    const size_t bytes = conv_bytes(c);

    for (size_t i = 0; i < bytes / 4; i++)
        c->x[i] = noise();
    memset(c->x + 100 * (size_t)c->n_channel, 0, 20 * (size_t)c->n_channel * 4);
    for (size_t i = 0; i < (size_t)c->width * c->n_channel; i++)
        c->w[i] = noise();
    c->on_x = (float *)on_device(c->x, bytes);
    c->on_y = (float *)on_device(NULL, bytes);
    c->on_w = (float *)on_device(c->w, sizeof(c->w));
    c->on_tail = (float *)on_device(NULL, sizeof(c->tail));
    c->on_unit = (uint16_t *)on_device(NULL, bytes / 2);
}

static void conv_release(struct conv_case *c)
{
    cudaFree(c->on_x);
    cudaFree(c->on_y);
    cudaFree(c->on_w);
    cudaFree(c->on_tail);
    cudaFree(c->on_unit);
}

/* From nothing, in calls of some rows; outputs, unit rows and the tail. */
static void convolve(struct conv_case *c, uint32_t cut, bool has_unit)
{
    must(cudaMemset(c->on_tail, 0, sizeof(c->tail)), "tail");
    must(cudaMemset(c->on_y, 0xff, conv_bytes(c)), "conv");
    must(cudaMemset(c->on_unit, 0xff, conv_bytes(c) / 2), "conv");
    for (uint32_t t = 0; t < CONV_TOKENS; t += cut) {
        const uint32_t left = CONV_TOKENS - t;
        const struct conv_span span = {t, cut < left ? cut : left, c->on_tail};
        const struct conv_args a = {c->on_y,  c->n_channel,
                                    c->on_x,  c->n_channel,
                                    c->on_w,  c->n_channel,
                                    c->width, &span,
                                    1,        has_unit ? c->on_unit : NULL,
                                    c->shape};

        cuda_conv(&gpu, &a);
    }
    to_host(c->y, c->on_y, conv_bytes(c));
    to_host(c->unit, c->on_unit, conv_bytes(c) / 2);
    to_host(c->tail, c->on_tail, sizeof(c->tail));
}

static bool has_tail(const struct conv_case *c)
{
    return memcmp(c->tail,
                  c->x + (CONV_TOKENS - c->width + 1) * (size_t)c->n_channel,
                  (c->width - 1) * (size_t)c->n_channel * 4) == 0;
}

/* By an oracle in double, then by bits over cuts. */
static void check_conv(struct conv_case *c)
{
    static const uint32_t CUTS[] = {1, 2, 3, 16, 17, 63};
    float *first = (float *)malloc(conv_bytes(c));
    double off = 0.0;

    convolve(c, CONV_TOKENS, false);
    memcpy(first, c->y, conv_bytes(c));
    for (uint32_t t = 0; t < CONV_TOKENS; t++)
        for (uint32_t n = 0; n < c->n_channel; n++) {
            double sum = 0.0;

            for (uint32_t i = 0; i < c->width && i <= t; i++)
                sum += (double)c->w[(c->width - 1 - i) * c->n_channel + n] *
                       c->x[(t - i) * c->n_channel + n];
            off = fmax(off,
                       fabs(first[t * c->n_channel + n] - sum * sigmoid(sum)));
        }
    claim(off < 2e-6 && has_tail(c), "conv", c->shape, off);
    for (size_t i = 0; i < COUNT(CUTS); i++) {
        convolve(c, CUTS[i], false);
        claim(memcmp(c->y, first, conv_bytes(c)) == 0 && has_tail(c),
              "conv in cuts", c->shape, CUTS[i]);
    }
    free(first);
}

/* The sum of a head's squares in the order of a warp's tree, 4 dims a lane, or
 * where cuda_delta() has no such heads as a chain. */
static float squares_of(const float *x, struct delta_shape shape)
{
    float sum[32] = {0.0f};

    if (!cuda_delta_has(shape)) {
        for (uint32_t d = 0; d < shape.d_k; d++)
            sum[0] = fmaf(x[d], x[d], sum[0]);
        return sum[0];
    }
    for (uint32_t i = 0; i < shape.d_k / 4; i++, x += 4)
        sum[i] =
            fmaf(x[3], x[3], fmaf(x[2], x[2], fmaf(x[1], x[1], x[0] * x[0])));
    for (uint32_t step = 16; step; step /= 2)
        for (uint32_t i = 0; i < step; i++)
            sum[i] = sum[i] + sum[i + step];
    return sum[0];
}

/* Whether unit rows are those of the float rows `y`, and what is behind the
 * heads has stayed. */
static bool has_units(const struct conv_case *c, const float *y)
{
    const uint32_t n_unit = conv_n_unit(c), d_k = c->shape.d_k;
    const float q_scale = 1.0f / sqrtf((float)d_k);

    for (uint32_t t = 0; t < CONV_TOKENS; t++) {
        const float *row = y + (size_t)t * c->n_channel;

        for (uint32_t n = 0; n < n_unit; n++) {
            const uint32_t head = n / d_k;
            const float scale =
                1.0f / sqrtf(squares_of(row + head * d_k, c->shape) + 1e-6f);
            float want = row[n] * scale;

            if (head < c->shape.n_k_head)
                want = want * q_scale;
            if (c->unit[(size_t)t * n_unit + n] != to_bf16(want))
                return false;
        }
        if (memcmp(c->y + (size_t)t * c->n_channel, row + n_unit,
                   (c->n_channel - n_unit) * 4) != 0)
            return false;
    }
    return true;
}

/* By bits, from the floats that the convolution gives without. */
static void check_unit(struct conv_case *c)
{
    static const uint32_t CUTS[] = {CONV_TOKENS, 1, 2, 5, 16, 17, 63};
    float *y = (float *)malloc(conv_bytes(c));

    convolve(c, CONV_TOKENS, false);
    memcpy(y, c->y, conv_bytes(c));
    for (size_t i = 0; i < COUNT(CUTS); i++) {
        convolve(c, CUTS[i], true);
        claim(has_units(c, y) && has_tail(c), "unit rows", c->shape, CUTS[i]);
    }
    free(y);
}

static void check_convs(void)
{
    static const struct delta_shape SHAPES[] = {
        {2, 4, 128, 64, ARITHMETIC_FP32}, {3, 3, 64, 128, ARITHMETIC_FP32},
        {1, 2, 96, 64, ARITHMETIC_FP32},  {3, 3, 96, 64, ARITHMETIC_FP32},
        {2, 2, 16, 16, ARITHMETIC_FP32},  {1, 2, 64, 20, ARITHMETIC_FP32},
        {1, 1, 200, 8, ARITHMETIC_FP32},
    };
    static struct conv_case c;

    for (c.width = 1; c.width <= CONV_WIDTH_MAX; c.width++) {
        c.n_channel = 132;
        conv_init(&c);
        check_conv(&c);
        conv_release(&c);
    }
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        c.width = 1 + (uint32_t)(i + 3) % CONV_WIDTH_MAX;
        c.shape = SHAPES[i];
        c.n_channel = conv_n_unit(&c) + SHAPES[i].n_v_head * SHAPES[i].d_v;
        conv_init(&c);
        check_unit(&c);
        conv_release(&c);
    }
}

static __device__ bool differs(float a, float b)
{
    return __float_as_uint(a) != __float_as_uint(b);
}

/* Of all floats that may come. */
static __global__ void count_roots_off(uint32_t *n_off)
{
    const float x = __uint_as_float(blockIdx.x * blockDim.x + threadIdx.x);

    if (!(x < 1e-6f) && differs(conv_inverse_root(x), 1.0f / __fsqrt_rn(x)) &&
        !(x != x))
        atomicAdd(n_off, 1);
}

static void check_roots(void)
{
    uint32_t n_off = 0;
    uint32_t *const at = (uint32_t *)on_device(&n_off, sizeof(n_off));

    count_roots_off<<<1u << 23, 256>>>(at);
    must(cudaDeviceSynchronize(), "all floats");
    to_host(&n_off, at, sizeof(n_off));
    claim(n_off == 0, "inverse roots", (struct delta_shape){0}, n_off);
    cudaFree(at);
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

int main(int argc, char **argv)
{
    small_device_init(&gpu);
    check_delta(argc > 2 ? argv[2] : NULL);
    check_convs();
    check_roots();
    check_gates();
    for (uint32_t dim = 64; dim <= 256; dim += 64)
        check_norm(dim);
    printf("%d of %d checks failed\n", n_failed, n_checked);
    return n_failed != 0;
}
