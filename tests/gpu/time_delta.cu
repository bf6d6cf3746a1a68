/*
 * Times of the recurrent layer on the GPU, without the node: medians of nine
 * runs, each beside what its bytes take at the rate of a copy in the same run.
 * Bytes: the rows that go in and out, what prepare leaves for recur, the states
 * and the rings that decode reads. States are as many as no cache holds.
 */
#include "tests/gpu/delta_session.h"
#include "tests/gpu/rate.h"

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
    rate_print(bytes / rate * 1e6, us, "recurrent layer: %s", what);
}

/* The two kernels apart, of all chunks at once. */
static void rate_kernels(struct bench *b, double rate)
{
    const struct delta_shape shape = b->s->shape;
    const uint32_t n_chunk = b->s->n_token / GRID;
    const struct delta_span span = {0, b->s->n_token, 0, b->s->state};
    const double rows = (double)b->s->n_token * 4;
    const double units = (double)unit_bytes(b->s);
    const double heads =
        (double)n_chunk * shape.n_v_head * offsetof(struct chunk_head, g);

    b->many.args = args_of(b->s, &span, 1);
    b->many.args.span =
        (const struct delta_span *)on_device(&span, sizeof(span));
    b->many.n_chunk = n_chunk;
    delta_many_tiles(&b->many, b->s->n_token);
    b->many.tile =
        (char *)on_device(NULL, (size_t)b->many.n_tile * shape.n_k_head * 2 *
                                    tile_bytes(shape.d_k));
    b->many.head = (struct chunk_head *)on_device(
        NULL, (size_t)n_chunk * shape.n_v_head * sizeof(struct chunk_head));
    print_rate("  prepare (unit rows in; weights out)", units + heads, rate,
               median_us(run_prepare, b, 1));
    print_rate("  recur (unit rows, weights, v in; outputs out)",
               rows * shape.n_v_head * 2 * shape.d_v + units + heads, rate,
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
    const double rows = (double)n_token * (2 * 2 * 16 + 4 * 2 * 32) * 128;

    b.s = &s;
    reset(&s);
    snprintf(what, sizeof(what), "delta, %u tokens (rows in and out)", n_token);
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
    const double ring = (at % GRID) * 2.0 * (32 * ring_stride(128) + 16 * 128);
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
        for (uint32_t i = 0; i < n_span; i++)
            state_release(&of[i].state);
        free(of);
    }
    session_release(&s);
}

/* What stands around the rule, of 16 k-heads and 32 v-heads of 128; each
 * session has as many rows. */
static void rate_conv(uint32_t n_span, uint32_t n_row, double rate)
{
    const struct delta_shape shape = {16, 32, 128, 128, ARITHMETIC_FP32};
    const uint32_t n_unit = (uint32_t)unit_stride(shape), n_value = 4096;
    const uint32_t n_channel = n_unit + n_value;
    const size_t n = (size_t)n_span * n_row;
    const double bytes = 4.0 * n_channel * n + 2.0 * n_unit * n +
                         4.0 * n_value * n +
                         2.0 * 3 * 4 * n_channel * n_span; /* the tails */
    struct conv_span span[64];
    struct bench b = {};
    char what[64];

    for (uint32_t i = 0; i < n_span; i++) {
        span[i].first_row = i * n_row;
        span[i].n_row = n_row;
        span[i].tail = (float *)on_device(NULL, (size_t)3 * 4 * n_channel);
        cudaMemset(span[i].tail, 0x3c, (size_t)3 * 4 * n_channel);
    }
    b.conv.x = (float *)on_device(NULL, n * n_channel * 4);
    cudaMemset((void *)b.conv.x, 0x3c, n * n_channel * 4);
    b.conv.y = (float *)on_device(NULL, n * n_value * 4);
    b.conv.unit = (uint16_t *)on_device(NULL, n * n_unit * 2);
    b.conv.weight = (float *)on_device(NULL, (size_t)4 * 4 * n_channel);
    b.conv.x_stride = b.conv.n_channel = n_channel;
    b.conv.y_stride = n_value;
    b.conv.width = 4;
    b.conv.span = span;
    b.conv.n_span = n_span;
    b.conv.shape = shape;
    gpu.staged = 0;
    cuda_conv(&gpu, &b.conv);
    gpu.is_repeating = true;
    snprintf(what, sizeof(what), "conv, %u channels, %u x %u rows", n_channel,
             n_span, n_row);
    print_rate(what, bytes, rate, median_us(run_conv, &b, n > 64 ? 1 : 24));
    gpu.is_repeating = false;
    for (uint32_t i = 0; i < n_span; i++)
        cudaFree(span[i].tail);
    cudaFree((void *)b.conv.x);
    cudaFree((void *)b.conv.weight);
    cudaFree(b.conv.y);
    cudaFree(b.conv.unit);
}

static void rate_norm(uint32_t n_row, double rate)
{
    const uint32_t n_value = 4096;
    const size_t bytes = (size_t)n_row * n_value * 4;
    struct bench b = {};

    b.norm.norm.x = (float *)on_device(NULL, bytes);
    b.norm.z = (float *)on_device(NULL, bytes);
    b.norm.norm.y = (float *)on_device(NULL, bytes);
    cudaMemset((void *)b.norm.norm.x, 0x3c, bytes);
    cudaMemset((void *)b.norm.z, 0x3c, bytes);
    b.norm.norm.x_stride = b.norm.norm.y_stride = n_value;
    b.norm.norm.weight = b.norm.z;
    b.norm.norm.n_row = n_row;
    b.norm.norm.n_group = 32;
    b.norm.norm.dim = 128;
    b.norm.z_stride = n_value;
    print_rate("gated norm, 32 groups of 128, 4096 rows", 3.0 * bytes, rate,
               median_us(run_norm, &b, 1));
    cudaFree((void *)b.norm.norm.x);
    cudaFree((void *)b.norm.z);
    cudaFree(b.norm.norm.y);
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

int main(void)
{
    small_device_init(&gpu);
    const double rate = copy_rate();

    printf("copy: %.0f GB/s read and written\n", rate / 1e9);
    rate_prompt(32768, rate);
    rate_prompt(4096, rate);
    rate_few(1, 1, 32, rate);
    rate_few(8, 1, 32, rate);
    rate_few(64, 1, 0, rate);
    rate_few(64, 1, 32, rate);
    rate_few(64, 1, 63, rate);
    rate_few(64, 4, 32, rate);
    rate_few(8, 16, 32, rate);
    rate_conv(1, 4096, rate);
    rate_conv(1, 1, rate);
    rate_conv(8, 1, rate);
    rate_conv(64, 1, rate);
    rate_conv(8, 4, rate);
    rate_conv(8, 16, rate);
    rate_norm(4096, rate);
    return 0;
}
