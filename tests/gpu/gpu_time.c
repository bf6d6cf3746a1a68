/*
 * Steps of a model of a real shape, weights random: decode of 1, 8 and 64
 * sessions beside the time that their bytes take at the copy's bandwidth, and
 * prefill beside the time that its FLOPs take at PEAK_FLOPS. Then where the
 * time goes, operator by operator, each waited for, which adds some
 * microseconds to it. Blocks hold random numbers; states are empty, as no
 * kernel's time depends on values.
 */
#include "kernels/device.h"
#include "kernels/scalar.h"
#include "model/pass.h"
#include "state/memory.h"
#include "tests/gpu/gpu_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PEAK_FLOPS 790e12 /* dense bf16 of an H100, as its tests reach it */
#define COPY_BYTES ((size_t)1 << 30)
#define N_SESSION 64u
#define ROW_MAX 8192u
#define N_RUN 9u
#define GB 1e9

struct bench {
    struct model *model;
    struct device *device;
    struct workspace *workspace;
    struct memory *memory[N_SESSION];
    double copy_rate; /* bytes a second, read and written */
    uint32_t token[ROW_MAX];
};

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ----------------------------------------------------------------- operators
 */

enum op {
#define DEVICE_OPERATOR(name, type) OP_##name,
    DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
        N_OP
};

static const char *const OP_NAME[N_OP] = {
#define DEVICE_OPERATOR(name, type) #name,
    DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
};

/* One for the program, as operators get no context: node/stopwatch.h. */
static const struct backend *real;
static bool is_timing;
static double seconds[N_OP];

#define DEVICE_OPERATOR(name, type)                                            \
    static void timed_##name(struct pool *pool, const struct type *args)       \
    {                                                                          \
        const double start = now();                                            \
                                                                               \
        real->name(pool, args);                                                \
        if (is_timing && !device_wait(pool_device(pool)))                      \
            seconds[OP_##name] += now() - start;                               \
    }
DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR

static struct backend timed_backend(void)
{
    struct backend timed = *real;

#define DEVICE_OPERATOR(name, type) timed.name = timed_##name;
    DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
    return timed;
}

static void print_operators(const char *what, double whole)
{
    double all = 0;

    for (int i = 0; i < N_OP; i++)
        all += seconds[i];
    printf("%s by operator (%.2f ms, one by one %.2f):", what, 1e3 * whole,
           1e3 * all);
    for (int i = 0; i < N_OP; i++)
        if (seconds[i] > 0.004 * all)
            printf(" %s %.1f%%", OP_NAME[i], 100 * seconds[i] / all);
    printf("\n");
    memset(seconds, 0, sizeof(seconds));
}

/* ---------------------------------------------------------------------- life
 */

static enum status measure_copy(struct bench *bench)
{
    void *a = NULL, *b = NULL;
    double best = 1e9;
    enum status st = device_take(bench->device, COPY_BYTES, &a);

    if (!st)
        st = device_take(bench->device, COPY_BYTES, &b);
    for (uint32_t i = 0; i < N_RUN && !st; i++) {
        const double start = now();

        for (uint32_t k = 0; k < 8; k++)
            device_copy(bench->device, k % 2 ? a : b, k % 2 ? b : a,
                        COPY_BYTES);
        st = device_wait(bench->device);
        if (now() - start < best)
            best = now() - start;
    }
    device_give(bench->device, a);
    device_give(bench->device, b);
    bench->copy_rate = 8 * 2 * (double)COPY_BYTES / best;
    return st;
}

static enum status open_bench(const char *backend, const char *config,
                              const struct gpu_time_what *what,
                              uint64_t n_context, struct bench *bench)
{
    const struct model_choice choice = {.backend = backend,
                                        .numerics = what->numerics,
                                        .weight_format = what->format,
                                        .kv_format = what->kv};
    struct model_options options = {.n_context = 0};
    static struct backend timed;
    const double start = now();
    enum status st = model_options_find(&choice, &options);

    if (st)
        return st;
    real = options.backend;
    timed = timed_backend();
    options.backend = &timed;
    options.n_context = n_context;
    st = model_load_synthetic(config, 1, &options, &bench->model);
    if (st)
        return st;
    bench->device = model_device(bench->model);
    st = workspace_create(bench->model, ROW_MAX, N_SESSION, N_SESSION,
                          &bench->workspace);
    for (uint32_t i = 0; i < ROW_MAX; i++)
        bench->token[i] =
            (i * 2654435761u >> 7) % model_config(bench->model)->n_vocab;
    if (!st)
        st = measure_copy(bench);
    printf("%s: %.2f GB of weights, made and loaded in %.1f s; copy %.2f TB/s; "
           "%s\n",
           config, (double)model_weight_bytes(bench->model) / GB, now() - start,
           bench->copy_rate / 1e12, model_numerics(bench->model));
    return st;
}

static void drop_memories(struct bench *bench)
{
    for (uint32_t i = 0; i < N_SESSION; i++) {
        memory_destroy(bench->memory[i]);
        bench->memory[i] = NULL;
    }
}

/* ------------------------------------------------------------------ memories
 */

/* Numbers in -0.5 .. 0.5 in a host copy of one block, then in all blocks. */
static enum status fill_layer(struct bench *bench, struct memory *memory,
                              uint32_t layer, uint64_t n_token)
{
    const size_t bytes = model_plan(bench->model, layer)->block_bytes;
    uint16_t *pattern;

    if (!bytes)
        return STATUS_OK;
    pattern = malloc(bytes);
    if (!pattern)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory");
    for (size_t i = 0; i < bytes / 2; i++)
        pattern[i] = scalar_to_bf16(
            (float)((uint32_t)i * 2654435761u >> 8) * 0x1p-24f - 0.5f);
    device_write(bench->device, memory_block(memory, layer, 0), pattern, bytes);
    for (uint64_t b = 1; b * KV_BLOCK < n_token; b++)
        device_copy(bench->device, memory_block(memory, layer, b),
                    memory_block(memory, layer, 0), bytes);
    free(pattern);
    return STATUS_OK;
}

/* n sessions that stand behind n_token tokens. */
static enum status open_memories(struct bench *bench, uint32_t n,
                                 uint64_t n_token)
{
    drop_memories(bench);
    for (uint32_t s = 0; s < n; s++) {
        enum status st = memory_create(bench->model, &bench->memory[s]);

        if (!st)
            st = memory_reserve(bench->memory[s], n_token);
        for (uint32_t i = 0;
             i < model_config(bench->model)->n_layer && !st && n_token; i++)
            st = fill_layer(bench, bench->memory[s], i, n_token);
        if (st)
            return st;
        memory_advance(bench->memory[s], n_token);
    }
    return STATUS_OK;
}

static double state_bytes(const struct bench *bench)
{
    double n = 0;

    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++)
        n += (double)model_plan(bench->model, i)->state_bytes;
    return n;
}

static double past_bytes(const struct bench *bench, uint64_t n_token)
{
    double n = 0;

    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++)
        n += (double)model_plan(bench->model, i)->block_bytes;
    return n * (double)n_token / KV_BLOCK;
}

/* --------------------------------------------------------------------- steps
 */

/* n_row rows for each of n sessions; seconds to *out. */
static enum status step(struct bench *bench, uint32_t n, uint32_t n_row,
                        uint32_t n_logit, double *out)
{
    struct span span[N_SESSION];
    uint32_t row[N_SESSION];
    double start;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t position = memory_position(bench->memory[i]);
        const enum status st =
            memory_reserve(bench->memory[i], position + n_row);

        if (st)
            return st;
        row[i] = (i + 1) * n_row - 1;
        span[i] = (struct span){.first_row = i * n_row,
                                .n_row = n_row,
                                .position = position,
                                .layer = memory_layers(bench->memory[i])};
    }
    start = now();
    if (!model_forward(bench->model, NULL, bench->workspace,
                       &(struct batch){.token = bench->token,
                                       .n_row = n * n_row,
                                       .span = span,
                                       .n_span = n,
                                       .logit_row = row,
                                       .n_logit = n_logit,
                                       .is_sampled = true}))
        return status_cause()->code;
    *out = now() - start;
    for (uint32_t i = 0; i < n; i++)
        memory_advance(bench->memory[i], n_row);
    return STATUS_OK;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Over a whole chunk of the grid, so that folds of states are among them. */
#define N_STEP (3 * GRID)

static enum status time_decode(struct bench *bench, uint32_t n,
                               uint64_t n_token)
{
    double took[N_STEP], sum = 0, whole, bytes;
    enum status st = open_memories(bench, n, n_token);

    for (uint32_t i = 0; i < GRID && !st; i++) /* direct, recorded, warm */
        st = step(bench, n, 1, n, &took[0]);
    for (uint32_t i = 0; i < N_STEP && !st; i++) {
        st = step(bench, n, 1, n, &took[i]);
        sum += took[i];
    }
    if (st)
        return st;
    qsort(took, N_STEP, sizeof(took[0]), by_size);
    whole = sum / N_STEP;
    bytes = (double)model_step_bytes(bench->model, n) +
            n * (state_bytes(bench) + past_bytes(bench, n_token));
    printf("decode %2u x %6lu | bound %7.3f ms | mean %7.3f median %7.3f p99 "
           "%7.3f ms | share %4.1f %% | %8.1f tokens/s\n",
           n, n_token, 1e3 * bytes / bench->copy_rate, 1e3 * whole,
           1e3 * took[N_STEP / 2], 1e3 * took[N_STEP * 99 / 100],
           100 * bytes / bench->copy_rate / whole, n / whole);
    is_timing = true;
    st = step(bench, n, 1, 0, &whole); /* without logits it is not recorded */
    is_timing = false;
    if (!st)
        print_operators("  ", whole);
    return st;
}

static enum status time_prefill(struct bench *bench, uint64_t n_token,
                                uint32_t n_row)
{
    double took[N_RUN], flops = 0, whole;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < 4 && !st; i++) {
        st = open_memories(bench, 1, n_token);
        if (!st)
            st = step(bench, 1, n_row, 1, &took[i]);
    }
    if (st)
        return st;
    qsort(took, 4, sizeof(took[0]), by_size);
    whole = took[1];
    flops = (model_row_flops(bench->model) - model_logit_flops(bench->model)) *
            n_row;
    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++)
        flops += model_plan(bench->model, i)->past_flops * n_row *
                 ((double)n_token + 0.5 * n_row);
    printf("prefill %5u behind %6lu | bound %8.2f ms | %8.2f ms | %5.1f "
           "TFLOP/s, share %4.1f %% | %8.0f tokens/s\n",
           n_row, n_token, 1e3 * flops / PEAK_FLOPS, 1e3 * whole,
           flops / whole / 1e12, 100 * flops / PEAK_FLOPS / whole,
           n_row / whole);
    st = open_memories(bench, 1, n_token);
    is_timing = true;
    if (!st)
        st = step(bench, 1, n_row, 1, &whole);
    is_timing = false;
    if (!st)
        print_operators("  ", whole);
    return st;
}

static enum status time_all_decode(struct bench *bench)
{
    static const uint32_t N[] = {1, 8, N_SESSION};
    enum status st = STATUS_OK;

    for (size_t i = 0; i < sizeof(N) / sizeof(*N) && !st; i++)
        st = time_decode(bench, N[i], 4096);
    return st;
}

/* ---------------------------------------------------------------------- swap
 */

#define N_DECODING 8u
#define SWAP_TOKENS 32768u
#define SWAP_ROUNDS 6u /* there and back, by turns */

/* As the engine asks (scheduler/swap.c): runs of pieces, few under way. */
#define CARRY_BYTES ((size_t)32 << 20)
#define CARRY_AHEAD 4u

static uint64_t ask(struct device *shuttle, struct memory *to,
                    const struct memory *from, uint64_t *n_asked)
{
    uint64_t end = *n_asked;
    size_t bytes = 0;

    while (end < memory_n_piece(from) && bytes < CARRY_BYTES)
        bytes += memory_piece_bytes(from, end++);
    memory_carry(to, from, *n_asked, end - *n_asked);
    *n_asked = end;
    return device_mark(shuttle);
}

/* All of `from`, beside steps of the others if `took` has room for them. */
static enum status carry(struct bench *bench, struct memory *to,
                         const struct memory *from, double *took, uint32_t *n)
{
    struct device *shuttle = device_shuttle(bench->device);
    uint64_t n_asked = 0, marked = 0, reached = 0;
    enum status st = STATUS_OK;

    while (!st && (n_asked < memory_n_piece(from) || reached < marked)) {
        bool is_there = false;

        while (n_asked < memory_n_piece(from) &&
               marked - reached < CARRY_AHEAD) {
            const bool is_first = n_asked == 0;

            device_follow(shuttle, bench->device);
            marked = ask(shuttle, to, from, &n_asked);
            if (is_first)
                reached = marked - 1;
        }
        if (took && *n < N_STEP)
            st = step(bench, N_DECODING, 1, N_DECODING, &took[(*n)++]);
        if (!st)
            st = device_reached(shuttle, reached + 1, &is_there);
        reached += !st && is_there;
    }
    return st;
}

static void print_steps(const char *what, double *took, uint32_t n)
{
    if (n == 0)
        return;
    qsort(took, n, sizeof(took[0]), by_size);
    printf("%s: %u steps, median %.3f p99 %.3f ms\n", what, n,
           1e3 * took[n / 2], 1e3 * took[n * 99 / 100]);
}

/* Out and back, with and without steps beside it; then steps alone. */
static enum status carry_all(struct bench *bench, struct memory *aside)
{
    struct memory *far = bench->memory[N_DECODING];
    double took[N_STEP], alone[N_STEP], start, bytes = 0, whole[2];
    uint32_t n = 0;
    enum status st = STATUS_OK;

    for (uint64_t i = 0; i < memory_n_piece(far); i++)
        bytes += (double)memory_piece_bytes(far, i);
    for (uint32_t i = 0; i < SWAP_ROUNDS && !st; i++) {
        start = now();
        st = carry(bench, i % 2 ? far : aside, i % 2 ? aside : far, NULL, &n);
        whole[i % 2] = now() - start;
    }
    for (uint32_t i = 0; i < N_STEP && !st; i++)
        st = step(bench, N_DECODING, 1, N_DECODING, &alone[i]);
    for (uint32_t i = 0; i < 1000 && n < N_STEP && !st; i++)
        st = carry(bench, i % 2 ? far : aside, i % 2 ? aside : far, took, &n);
    if (st)
        return st;
    printf("swap of %.2f GB: out %.1f GB/s, back %.1f GB/s\n", bytes / GB,
           bytes / whole[0] / GB, bytes / whole[1] / GB);
    print_steps("decode of 8 x 4096 alone", alone, N_STEP);
    print_steps("decode of 8 x 4096 beside swaps", took, n);
    return STATUS_OK;
}

/* Eight sessions decode while a ninth of SWAP_TOKENS leaves and comes back. */
static enum status time_swap(struct bench *bench)
{
    struct memory *aside = NULL;
    struct rooms *rooms = NULL;
    void *host = NULL;
    size_t bytes;
    enum status st = open_memories(bench, N_DECODING, 4096);

    if (!st)
        st = memory_create(bench->model, &bench->memory[N_DECODING]);
    if (!st)
        st = memory_reserve(bench->memory[N_DECODING], SWAP_TOKENS);
    if (st)
        return st;
    memory_advance(bench->memory[N_DECODING], SWAP_TOKENS);
    bytes = 2 * memory_bytes(bench->memory[N_DECODING]) + ((size_t)1 << 24);
    st = device_take_host(bench->device, bytes, &host);
    if (!st)
        st = rooms_create_in(host, bytes, &rooms);
    if (!st)
        st = memory_create_aside(bench->model, rooms, &aside);
    if (!st)
        st = memory_reserve(aside, SWAP_TOKENS);
    if (!st)
        st = carry_all(bench, aside);
    memory_destroy(aside);
    rooms_destroy(rooms);
    device_give_host(bench->device, host);
    return st;
}

static enum status time_all_prefill(struct bench *bench)
{
    enum status st = time_prefill(bench, 0, 2048);

    if (!st)
        st = time_prefill(bench, 0, 8192);
    if (!st)
        st = time_prefill(bench, 32768, 2048);
    return st;
}

static int close_bench(struct bench *bench, const char *config, enum status st)
{
    drop_memories(bench);
    workspace_destroy(bench->workspace);
    if (bench->model)
        model_destroy(bench->model);
    return st ? gpu_fail(config) : 0;
}

int gpu_time(const char *backend, const char *config,
             const struct gpu_time_what *what)
{
    static struct bench bench;
    enum status st = open_bench(backend, config, what, 65536, &bench);

    if (!st && strcmp(what->part, "swap") == 0)
        return close_bench(&bench, config, time_swap(&bench));
    if (!st && strcmp(what->part, "prefill") != 0)
        st = time_all_decode(&bench);
    if (!st && strcmp(what->part, "decode") != 0)
        st = time_all_prefill(&bench);
    return close_bench(&bench, config, st);
}

int gpu_prefill(const char *backend, const char *config, char **depth,
                uint32_t n_depth)
{
    const struct gpu_time_what what = {"prefill", "bf16", "auto", "auto"};
    static struct bench bench;
    uint64_t n_context = 0;
    enum status st;

    for (uint32_t i = 0; i < n_depth; i++) {
        const uint64_t n = strtoull(depth[i], NULL, 10) + ROW_MAX;

        n_context = n > n_context ? n : n_context;
    }
    st = open_bench(backend, config, &what, n_context, &bench);
    for (uint32_t i = 0; i < n_depth && !st; i++)
        st = time_prefill(&bench, strtoull(depth[i], NULL, 10), ROW_MAX);
    return close_bench(&bench, config, st);
}
