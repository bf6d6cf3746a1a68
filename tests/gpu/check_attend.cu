/*
 * Attention on the GPU, standalone: is it right, is it exact, how fast.
 *
 * Judges: softmax in double on the CPU over the rounded inputs (an oracle that
 * knows no blocks, chains or steps), then laws in bits: a prompt in one piece,
 * cut anywhere, row by row, beside other spans and as a recorded step. Blocks
 * begin as NaNs, so a read of what nobody wrote shows.
 *
 *     check_attend check          every shape; exit status 0 if all hold
 *     check_attend short          fewer lengths
 *     check_attend least [D]      for compute-sanitizer, heads of D dims alone
 *     check_attend time           tables of times and bounds
 *     check_attend prompts        one of them
 *     check_attend long           the long ones of it
 *     check_attend prompt D Q KV N  heads of D dims, a prompt of N tokens
 *     check_attend steps          the other
 */
#include "kernels/cuda/attend.cuh"
#include "tests/gpu/attend_session.cuh"
#include "tests/gpu/rate.h"

/* How rows end now, and with what. */
static uint32_t ending;
static float *all_gates;
static uint16_t *all_rounded;

static struct rows rows_now(const struct session *s)
{
    struct rows rows = rows_of(s);

    rows.gate = ending & GATED ? all_gates : NULL;
    rows.rounded = ending & ROUNDED ? all_rounded : NULL;
    return rows;
}

/* Rows [from, to) at once; is_new: append them first. */
static void run(struct gpu *gpu, struct shape shape,
                const struct rope_table *table, struct session *s,
                uint32_t from, uint32_t to, bool is_new)
{
    struct attend_span span = {from, to - from, from, s->table};

    if (is_new)
        append(gpu, shape, rows_of(s), &span, 1);
    attend(gpu, shape, table, rows_now(s), &span, 1);
}

/* Error of one row and head against softmax in double. */
static double error_of(struct shape shape, const float *q, const float *k,
                       const float *v, const float *out, uint32_t row,
                       uint32_t head)
{
    uint32_t d = shape.d_head, n_q = shape.n_kv_head * shape.group * d;
    uint32_t n_k = shape.n_kv_head * d, half = shape.n_rot / 2;
    double *p = (double *)malloc((row + 1) * sizeof(double)), max = -1e300;
    double sum = 0, wrong = 0, norm = 0;
    const float *x = q + (size_t)row * n_q + (size_t)head * d;

    for (uint32_t t = 0; t <= row; t++) {
        const float *y = k + (size_t)t * n_k + head / shape.group * d;
        double s = 0;
        for (uint32_t e = 0; e < d; e++) {
            double z = bf16(y[e]);
            if (e < 2 * half) {
                double angle = (double)t * inv_freq(shape, e % half);
                double other = bf16(y[e < half ? e + half : e - half]);
                z = z * cos(angle) + (e < half ? -1 : 1) * other * sin(angle);
            }
            s += z * bf16(x[e] * (1.0f / sqrtf((float)d)));
        }
        p[t] = s;
        max = s > max ? s : max;
    }
    for (uint32_t t = 0; t <= row; t++)
        sum += p[t] = exp(p[t] - max);
    for (uint32_t e = 0; e < d; e++) {
        double o = 0;
        for (uint32_t t = 0; t <= row; t++)
            o += p[t] * bf16(v[(size_t)t * n_k + head / shape.group * d + e]);
        o /= sum;
        double diff = o - out[(size_t)row * n_q + (size_t)head * d + e];
        wrong += diff * diff;
        norm += o * o;
    }
    free(p);
    return isfinite(wrong) ? sqrt(wrong / norm) : 1e9;
}

static uint32_t n_bad;
static uint64_t digest = 1469598103934665603u; /* FNV-1a of all results */

static void expect(bool is_good, struct shape s, uint32_t n, const char *law)
{
    if (is_good)
        return;
    if (++n_bad <= 20)
        printf("FAILED d %u kv %u group %u tokens %u, %s: %s\n", s.d_head,
               s.n_kv_head, s.group, n, END_NAME[ending], law);
}

/* Rows of `out` are those of `whole`, bit for bit. */
static bool is_same(const struct session *s, struct shape shape,
                    const float *whole, uint32_t from, uint32_t to)
{
    size_t n_q = (size_t)shape.n_kv_head * shape.group * shape.d_head;
    float *out = fetch_results(rows_now(s), from * n_q, (to - from) * n_q);
    bool same =
        !memcmp(out, whole + from * n_q, (to - from) * n_q * sizeof(float));
    free(out);
    return same;
}

static void poison(struct session *s, struct shape shape)
{
    size_t n_q = (size_t)shape.n_kv_head * shape.group * shape.d_head;
    CUDA(cudaMemset(s->out, 0xff, s->n_token * n_q * sizeof(float)));
    if (ending & ROUNDED)
        CUDA(cudaMemset(all_rounded, 0xff,
                        s->n_token * n_q * sizeof(*all_rounded)));
}

static double check_oracle(struct shape shape, const struct session *s,
                           const float *whole)
{
    uint32_t n = s->n_token, n_head = shape.n_kv_head * shape.group;
    size_t n_k = (size_t)shape.n_kv_head * shape.d_head;
    float *q = fetch(s->q, n * n_k * shape.group), *k = fetch(s->k, n * n_k);
    float *v = fetch(s->v, n * n_k);
    double worst = 0;

    for (uint32_t i = 0; i < 5; i++) {
        uint32_t row = i == 0 ? n - 1 : draw(n);
        double e = error_of(shape, q, k, v, whole, row, draw(n_head));
        worst = e > worst ? e : worst;
    }
    free(q);
    free(k);
    free(v);
    return worst;
}

/* Cuts of every size, in order. */
static void check_cut(struct gpu *gpu, struct shape shape,
                      const struct rope_table *table, struct session *s,
                      const float *whole)
{
    session_clear(s);
    poison(s, shape);
    for (uint32_t from = 0, to; from < s->n_token; from = to) {
        to = from + 1 + draw(draw(2) ? 6 : 400);
        to = to < s->n_token ? to : s->n_token;
        run(gpu, shape, table, s, from, to, true);
    }
    expect(is_same(s, shape, whole, 0, s->n_token), shape, s->n_token, "cut");
}

static uint32_t n_single = 130; /* first rows that come one by one */

/* Row by row, the first ones from nothing, then some with what lies behind. */
static void check_single(struct gpu *gpu, struct shape shape,
                         const struct rope_table *table, struct session *s,
                         const float *whole)
{
    uint32_t n = s->n_token, first = n < n_single ? n : n_single;

    poison(s, shape);
    for (uint32_t p = n; p-- > first;) {
        if ((p % 37 || n_single == 4) && p % 1024 > 2 && p + 3 < n)
            continue;
        run(gpu, shape, table, s, p, p + 1, false);
        expect(is_same(s, shape, whole, p, p + 1), shape, p, "one row");
    }
    session_clear(s);
    for (uint32_t p = 0; p < first; p++)
        run(gpu, shape, table, s, p, p + 1, true);
    expect(is_same(s, shape, whole, 0, first), shape, n, "row by row");
}

/* Spans of several sessions in one call, few rows and many, in one matrix. */
static void check_beside(struct gpu *gpu, struct shape shape,
                         const struct rope_table *table, struct session *s,
                         const float *whole)
{
    uint32_t n = s->n_token, n_other = 90, at = 0;
    struct session other = session_make(shape, n_other);
    size_t n_q = (size_t)shape.n_kv_head * shape.group * shape.d_head;
    uint32_t n_mine = n < 70 ? n : draw(2) ? 3 : 70;
    uint32_t n_row = n_mine + n_other;
    float *q = numbers((n_row + 3) * n_q, 1.0f);
    float *out = numbers((n_row + 3) * n_q, 1.0f);
    struct attend_span span[5];
    struct rows rows = {q, NULL, NULL, out, NULL, NULL};
    uint32_t how = ending;

    ending = 0;
    run(gpu, shape, table, s, 0, n, true);
    run(gpu, shape, table, &other, 0, n_other, true);
    ending = how;
    uint32_t size[5] = {1, 2, n_mine, 70, 17}, here = 0;
    for (uint32_t i = 0; i < 5; i++) {
        bool is_mine = i == 2;
        uint64_t position = is_mine ? n - n_mine : draw(n_other - size[i]);
        span[i] = {at, size[i], position, is_mine ? s->table : other.table};
        here = is_mine ? at : here;
        at += size[i];
    }
    CUDA(cudaMemcpy(q + here * n_q, s->q + (n - n_mine) * n_q,
                    n_mine * n_q * sizeof(float), cudaMemcpyDeviceToDevice));
    if (how & GATED) {
        rows.gate = gates(n_row * n_q);
        CUDA(cudaMemcpy(rows.gate + here * n_q, all_gates + (n - n_mine) * n_q,
                        n_mine * n_q * sizeof(float),
                        cudaMemcpyDeviceToDevice));
    }
    if (how & ROUNDED)
        CUDA(cudaMalloc((void **)&rows.rounded, n_row * n_q * sizeof(float)));
    for (int recorded = 0; recorded < 2; recorded++) {
        CUDA(cudaMemset(out, 0xff, n_row * n_q * sizeof(float)));
        gpu->is_recording = recorded;
        gpu->block_bound = 128;
        attend(gpu, shape, table, rows, span, 5);
        gpu->is_recording = false;
        poison(s, shape);
        if (how & ROUNDED)
            CUDA(cudaMemcpy(
                all_rounded + (n - n_mine) * n_q, rows.rounded + here * n_q,
                n_mine * n_q * sizeof(uint16_t), cudaMemcpyDeviceToDevice));
        CUDA(cudaMemcpy(s->out + (n - n_mine) * n_q, out + here * n_q,
                        n_mine * n_q * sizeof(float),
                        cudaMemcpyDeviceToDevice));
        expect(is_same(s, shape, whole, n - n_mine, n), shape, n,
               recorded ? "beside others, recorded" : "beside others");
    }
    cudaFree(q);
    cudaFree(out);
    cudaFree(rows.gate);
    cudaFree(rows.rounded);
    session_release(&other);
}

/* Rows that are gated, rounded and both, from the plain results. All that is
 * drawn for them is given back. */
static void check_ends(struct gpu *gpu, struct shape shape,
                       const struct rope_table *table, struct session *s,
                       const float *plain)
{
    const uint64_t seed_was = seed, n_number_was = n_number;
    uint32_t n = s->n_token;
    size_t n_all = (size_t)n * shape.n_kv_head * shape.group * shape.d_head;

    all_gates = gates(n_all);
    CUDA(cudaMalloc((void **)&all_rounded, n_all * sizeof(*all_rounded)));
    for (ending = 1; ending < N_END; ending++) {
        float *whole = ended(plain, ending & GATED ? all_gates : NULL, n_all,
                             ending & ROUNDED);

        poison(s, shape);
        run(gpu, shape, table, s, 0, n, true);
        expect(is_same(s, shape, whole, 0, n), shape, n, "as plain rows");
        if (n < 200)
            check_single(gpu, shape, table, s, whole);
        check_cut(gpu, shape, table, s, whole);
        check_beside(gpu, shape, table, s, whole);
        free(whole);
    }
    ending = 0;
    cudaFree(all_gates);
    cudaFree(all_rounded);
    seed = seed_was;
    n_number = n_number_was;
}

/* gate_some() of all floats. */
static __global__ void gate_all(uint32_t *n_other)
{
    uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    float x[8], gate[8];

    for (uint32_t i = 0; i < 8; i++) {
        x[i] = 1.0f;
        gate[i] = __uint_as_float(first + i);
    }
    gate_some<8>(x, gate);
    for (uint32_t i = 0; i < 8; i++) {
        float y = scalar_sigmoid(gate[i]);

        if (__float_as_uint(x[i]) != __float_as_uint(y) && y == y)
            atomicAdd(n_other, 1);
    }
}

static void check_gates(void)
{
    uint32_t *far, n_other = 1;

    CUDA(cudaMalloc((void **)&far, sizeof(*far)));
    CUDA(cudaMemset(far, 0, sizeof(*far)));
    gate_all<<<1u << 21, 256>>>(far);
    CUDA(cudaMemcpy(&n_other, far, sizeof(n_other), cudaMemcpyDeviceToHost));
    cudaFree(far);
    n_bad += n_other != 0;
    printf("gates: %u floats have another sigmoid\n", n_other);
}

static double check_shape(struct gpu *gpu, struct shape shape, uint32_t n)
{
    struct rope_table table = table_make(shape, n + 64);
    struct session s = session_make(shape, n);
    size_t n_q = (size_t)shape.n_kv_head * shape.group * shape.d_head;

    poison(&s, shape);
    run(gpu, shape, &table, &s, 0, n, true);
    CUDA(cudaDeviceSynchronize());
    float *whole = fetch(s.out, n * n_q);
    for (size_t i = 0; i < n * n_q * sizeof(float); i++)
        digest = (digest ^ ((unsigned char *)whole)[i]) * 1099511628211u;
    double error = check_oracle(shape, &s, whole);
    expect(error < TOLERANCE * steep, shape, n, "oracle");
    check_single(gpu, shape, &table, &s, whole);
    check_cut(gpu, shape, &table, &s, whole);
    check_beside(gpu, shape, &table, &s, whole);
    check_ends(gpu, shape, &table, &s, whole);
    CUDA(cudaDeviceSynchronize());
    free(whole);
    session_release(&s);
    table_release(&table);
    return error;
}

enum extent { LEAST, SHORT, FULL };

static int check_all(struct gpu *gpu, enum extent extent, uint32_t d_head)
{
    static const uint32_t length[] = {1, 63, 64, 65, 127, 128, 129, 1000, 4097};
    static const uint32_t few[] = {1, 65, 129};
    static const uint32_t head[][2] = {
        {64, 16}, {96, 96}, {128, 128}, {256, 64}};
    static const uint32_t group[] = {1, 2, 3, 4, 8};
    const uint32_t *n = extent == FULL ? length : few;
    uint32_t n_length = extent == FULL ? 9 : 3;
    uint32_t first_group = extent == LEAST ? 4 : 0;

    n_single = extent == LEAST ? 4 : 130;
    if (extent != LEAST)
        check_gates();
    for (uint32_t i = 0; i < 4; i++) {
        double worst = 0;
        uint32_t bad = n_bad;
        if (d_head && head[i][0] != d_head)
            continue;
        for (uint32_t g = first_group; g < 5; g++)
            for (uint32_t j = 0; j < n_length; j++) {
                struct shape shape = {1 + g % 3, group[g], head[i][0],
                                      head[i][1]};
                double e = check_shape(gpu, shape, n[j]);
                worst = e > worst ? e : worst;
                CUDA(cudaGetLastError());
            }
        steep = 10.0f;
        check_shape(gpu, {2, 2, head[i][0], head[i][1]}, n[n_length - 1]);
        steep = 1.0f;
        printf("check d %3u: largest error %.2e, %u failures\n", head[i][0],
               worst, n_bad - bad);
    }
    printf("%s, digest of the results %016llx\n",
           n_bad ? "CHECKS FAILED" : "all checks hold",
           (unsigned long long)digest);
    return n_bad != 0;
}

static double copy_bytes_us = 3.0e6; /* bytes read and written a microsecond */

/* A prompt's last n_row rows of n_token, of one session. */
static void time_prefill(struct gpu *gpu, struct shape shape, uint32_t n_token,
                         uint32_t n_row)
{
    struct rope_table table = table_make(shape, n_token + 64);
    struct session s = session_make(shape, n_token);
    cudaEvent_t from, to;
    float ms[N_TIME];
    struct attend_span all = {0, n_token, 0, s.table};
    struct attend_span span = {n_token - n_row, n_row, n_token - n_row,
                               s.table};
    double head = (double)shape.n_kv_head * shape.group;
    double pairs =
        (double)n_row * (n_token - n_row) + n_row * (double)n_row / 2;
    double flop = 4 * pairs * shape.d_head * head;

    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    append(gpu, shape, rows_of(&s), &all, 1);
    for (int i = -2; i < N_TIME; i++) {
        CUDA(cudaEventRecord(from, gpu->stream));
        attend(gpu, shape, &table, rows_of(&s), &span, 1);
        CUDA(cudaEventRecord(to, gpu->stream));
        CUDA(cudaEventSynchronize(to));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    rate_print(flop / 790e6, median_ms(ms, N_TIME) * 1e3,
               "attention, %u dims, %.0f/%u heads, rows %u of %u", shape.d_head,
               head, shape.n_kv_head, n_row, n_token);
    session_release(&s);
    table_release(&table);
}

/* A step of n_layer layers: n_seq sessions of n_token tokens, of which n_row
 * are new. */
struct step {
    uint32_t n_layer, n_seq, n_token, n_row;
    size_t n_block; /* of a session and layer */
    void **block;   /* all blocks, on the device */
    struct rows rows;
};

static void attend_layers(struct gpu *gpu, struct shape shape,
                          const struct rope_table *table,
                          const struct step *step)
{
    struct attend_span span[64];

    for (uint32_t l = 0; l < step->n_layer; l++) {
        for (uint32_t i = 0; i < step->n_seq; i++) {
            struct attend_span one = {
                i * step->n_row, step->n_row, step->n_token - step->n_row,
                step->block + ((size_t)l * step->n_seq + i) * step->n_block};
            span[i] = one;
        }
        attend(gpu, shape, table, step->rows, span, step->n_seq);
    }
}

/* The step as a graph, staged once and for all. */
static cudaGraphExec_t record(struct gpu *gpu, struct shape shape,
                              const struct rope_table *table,
                              const struct step *step)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    gpu->is_recording = true;
    for (gpu->block_bound = 1; gpu->block_bound < step->n_block;)
        gpu->block_bound *= 2;
    gpu->staged = 0;
    attend_layers(gpu, shape, table, step);
    CUDA(cudaStreamSynchronize(gpu->stream));
    gpu->staged = 0;
    gpu->is_frozen = true;
    CUDA(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeGlobal));
    attend_layers(gpu, shape, table, step);
    CUDA(cudaStreamEndCapture(gpu->stream, &graph));
    gpu->is_recording = gpu->is_frozen = false;
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return exec;
}

static void time_decode(struct gpu *gpu, struct shape shape, struct step step)
{
    struct rope_table table = table_make(shape, step.n_token + 64);
    size_t d = shape.d_head <= 64 ? 64 : shape.d_head <= 128 ? 128 : 256;
    size_t bytes = 2 * shape.n_kv_head * d * 128;
    size_t n_q = (size_t)shape.n_kv_head * shape.group * shape.d_head;
    unsigned char *block;
    cudaEvent_t from, to;
    float ms[N_TIME];

    step.n_block = (step.n_token + 63) / 64;
    size_t n_all = step.n_block * step.n_seq * step.n_layer;
    void **host = (void **)malloc(n_all * sizeof(void *));
    step.rows.q = numbers(step.n_seq * step.n_row * n_q, 1.5f);
    step.rows.out = numbers(step.n_seq * step.n_row * n_q, 1.5f);
    CUDA(cudaMalloc((void **)&block, n_all * bytes));
    CUDA(cudaMalloc((void **)&step.block, n_all * sizeof(void *)));
    fill_bf16<<<(unsigned)(n_all * bytes / 512), 256>>>((__nv_bfloat16 *)block);
    for (size_t i = 0; i < n_all; i++)
        host[i] = block + i * bytes;
    CUDA(cudaMemcpy(step.block, host, n_all * sizeof(void *),
                    cudaMemcpyHostToDevice));
    free(host);
    cudaGraphExec_t exec = record(gpu, shape, &table, &step);
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    for (int i = -3; i < N_TIME; i++) {
        CUDA(cudaEventRecord(from, gpu->stream));
        CUDA(cudaGraphLaunch(exec, gpu->stream));
        CUDA(cudaEventRecord(to, gpu->stream));
        CUDA(cudaEventSynchronize(to));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    double us = median_ms(ms, N_TIME) * 1e3 / step.n_layer;
    double bound = (double)step.n_seq * step.n_token * shape.n_kv_head *
                   shape.d_head * 4 / copy_bytes_us;
    rate_print(bound, us,
               "attention, %u dims, %u/%u heads, step of %u x %u rows at %u",
               shape.d_head, shape.n_kv_head * shape.group, shape.n_kv_head,
               step.n_seq, step.n_row, step.n_token);
    CUDA(cudaGraphExecDestroy(exec));
    cudaFree(block);
    cudaFree(step.block);
    cudaFree(step.rows.q);
    cudaFree(step.rows.out);
    table_release(&table);
}

static void time_copy(struct gpu *gpu)
{
    size_t n = (size_t)1 << 31;
    unsigned char *a, *b;
    cudaEvent_t from, to;
    float ms[N_TIME];

    CUDA(cudaMalloc((void **)&a, n));
    CUDA(cudaMalloc((void **)&b, n));
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    for (int i = -2; i < N_TIME; i++) {
        CUDA(cudaEventRecord(from, gpu->stream));
        CUDA(cudaMemcpyAsync(a, b, n, cudaMemcpyDeviceToDevice, gpu->stream));
        CUDA(cudaEventRecord(to, gpu->stream));
        CUDA(cudaEventSynchronize(to));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    copy_bytes_us = 2.0 * (double)n / median_ms(ms, N_TIME) / 1e3;
    printf("copy: %.0f GB/s read and written\n", copy_bytes_us / 1e3);
    cudaFree(a);
    cudaFree(b);
}

static const struct shape d64 = {16, 1, 64, 64}, d128 = {16, 1, 128, 128};
static const struct shape g128 = {4, 8, 128, 128}, d256 = {8, 1, 256, 64};
static const struct shape g256 = {4, 4, 256, 64};

static void time_one(struct gpu *gpu, char **number)
{
    uint32_t d = (uint32_t)atoi(number[0]), q = (uint32_t)atoi(number[1]);
    uint32_t kv = (uint32_t)atoi(number[2]), n = (uint32_t)atoi(number[3]);
    struct shape shape = {kv, q / kv, d, d > 128 ? 64 : d};

    time_prefill(gpu, shape, n, n);
}

static void time_long(struct gpu *gpu)
{
    time_prefill(gpu, d64, 16384, 16384);
    time_prefill(gpu, d128, 16384, 16384);
    time_prefill(gpu, g128, 16384, 16384);
    time_prefill(gpu, d256, 16384, 16384);
    time_prefill(gpu, g256, 16384, 16384);
}

static void time_prompts(struct gpu *gpu)
{
    time_long(gpu);
    time_prefill(gpu, g256, 4096, 4096);
    time_prefill(gpu, g256, 65536, 2048);
    time_prefill(gpu, g256, 65536, 16);
}

static void time_steps(struct gpu *gpu)
{
    static const struct {
        struct shape shape;
        struct step step; /* layers, sessions, tokens, new rows */
    } point[] = {
        {g256, {3, 64, 4096, 1}},  {g256, {3, 1, 131072, 1}},
        {g256, {4, 1, 32768, 1}},  {g256, {16, 1, 4096, 1}},
        {g256, {16, 1, 512, 1}},   {g256, {3, 8, 16384, 1}},
        {g256, {3, 1, 131072, 4}}, {g256, {16, 1, 4096, 4}},
        {g256, {16, 1, 4096, 16}}, {g256, {4, 16, 4096, 4}},
        {g128, {3, 64, 4096, 1}},
    };

    for (size_t i = 0; i < sizeof(point) / sizeof(point[0]); i++)
        time_decode(gpu, point[i].shape, point[i].step);
}

int main(int argc, char **argv)
{
    static struct gpu gpu;
    const char *what = argc > 1 ? argv[1] : "check";
    uint32_t d_head = argc > 2 ? (uint32_t)atoi(argv[2]) : 0; /* or all */

    gpu_init(&gpu);
    if (!strcmp(what, "check"))
        return check_all(&gpu, FULL, d_head);
    if (!strcmp(what, "short"))
        return check_all(&gpu, SHORT, d_head);
    if (!strcmp(what, "least")) /* where each access is checked */
        return check_all(&gpu, LEAST, d_head);
    if (!strcmp(what, "prompt") && argc == 6) {
        time_one(&gpu, argv + 2);
        return 0;
    }
    if (!strcmp(what, "long")) {
        time_long(&gpu);
        return 0;
    }
    time_copy(&gpu);
    if (strcmp(what, "steps"))
        time_prompts(&gpu);
    if (strcmp(what, "prompts"))
        time_steps(&gpu);
    return 0;
}
