/*
 * godwitd bench: tokens per second of this model on this machine, one TSV row
 * per point, beside the bound that no program could pass: bytes of a step over
 * the read bandwidth, or operations over the fma peak, whichever is lower, both
 * measured here. Medians of several runs. Rows named "node ..." go through the
 * whole node with its journal on; the others are the bare model.
 */
#include "base/clock.h"
#include "base/log.h"
#include "node/bench_node.h"
#include "node/commands.h"
#include "node/peak.h"
#include "node/solo.h"
#include "node/subcommand.h"

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define RUN_MAX 99u
#define BATCH_MAX 8u
#define N_DECODE 32u               /* steps of a decode run */
#define N_NODE_DECODE 256u         /* tokens of each session through a node */
#define LONG_PREFILL 16384u        /* from here on fewer runs */
#define LONG_BUDGET_US 40000000ull /* time for them together */

struct bench_options {
    const char *model, *data;
    struct model_choice choice;
    uint64_t threads, runs;
};

static const struct setting ROW[] = {
    {.name = "model",
     .kind = SETTING_TEXT,
     .unit = "DIR",
     .help = "Hugging Face directory of the model",
     .offset = offsetof(struct bench_options, model)},
    SUBCOMMAND_MODEL_ROWS(offsetof(struct bench_options, choice)),
    {.name = "data",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "DIR",
     .help = "where the journal's scratch directory goes; /tmp if not given",
     .offset = offsetof(struct bench_options, data)},
    {.name = "threads",
     .kind = SETTING_NUMBER,
     .preset = "0",
     .max = POOL_THREAD_MAX,
     .unit = "threads",
     .help = "worker threads; 0 for one per CPU",
     .offset = offsetof(struct bench_options, threads)},
    {.name = "runs",
     .kind = SETTING_NUMBER,
     .preset = "5",
     .min = 1,
     .max = RUN_MAX,
     .unit = "runs",
     .help = "measurements of which the median is printed",
     .offset = offsetof(struct bench_options, runs)},
};

static const struct settings SETTINGS = {
    .program = "godwitd bench",
    .about = "Print tokens per second beside the machine's bounds, as TSV.",
    .row = ROW,
    .n_row = sizeof(ROW) / sizeof(ROW[0]),
};

/* One measured point. */
struct point {
    const char *what; /* "prefill", "decode" */
    uint64_t context; /* tokens before the measured ones, or of the prompt */
    uint32_t n_session;
    double rate, bound; /* tokens per second */
    const char *bound_kind;
};

struct bench {
    const struct bench_options *options;
    const struct model *model;
    struct pool *pool;
    const char *model_name; /* last part of the directory's name */
    char machine[128];
    double flops; /* per second, at most */
};

/* ---------------------------------------------------------------- machine */

/* "model name" of /proc/cpuinfo; "unknown" elsewhere. */
static void name_machine(char *out, size_t n_bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];

    (void)snprintf(out, n_bytes, "unknown");
    while (file && fgets(line, sizeof(line), file)) {
        const char *colon = strchr(line, ':');

        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = '\0';
        (void)snprintf(out, n_bytes, "%s", colon + 2);
        break;
    }
    if (file)
        (void)fclose(file);
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

static uint64_t now_us(void)
{
    const struct clock *clock = clock_real();

    return clock->now_us(clock);
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *rate, uint32_t n)
{
    qsort(rate, n, sizeof(*rate), compare_doubles);
    return n % 2 ? rate[n / 2] : 0.5 * (rate[n / 2 - 1] + rate[n / 2]);
}

static void print_header(void)
{
    printf("version\tmachine\tbackend\tthreads\tmodel\twhat\tcontext\tbatch\t"
           "tokens_per_s\tbound_tokens_per_s\tbound_kind\tfraction\n");
}

static void print_point(const struct bench *bench, const struct point *point)
{
    printf("%s\t%s\t%s\t%u\t%s\t%s\t%lu\t%u\t%.1f\t%.1f\t%s\t%.3f\n",
           GODWIT_VERSION, bench->machine, model_backend(bench->model)->name,
           pool_n_thread(bench->pool), bench->model_name, point->what,
           point->context, point->n_session, point->rate, point->bound,
           point->bound_kind, point->rate / point->bound);
    (void)fflush(stdout);
}

/* ----------------------------------------------------------------- bounds */

static double past_flops(const struct model *model)
{
    double n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        n += model_plan(model, i)->past_flops;
    return n;
}

/* Only the last row of a prompt needs logits. */
static double prefill_bound(const struct bench *bench, uint64_t n_token)
{
    const double n = (double)n_token;
    const double each =
        model_row_flops(bench->model) - model_logit_flops(bench->model);
    const double flops = n * each + model_logit_flops(bench->model) +
                         past_flops(bench->model) * n * (n + 1) / 2;

    return n * bench->flops / flops;
}

/*
 * What a decode step reads of a session, on average: its states, the half of
 * its rings that is in use, its keys and values.
 */
static double session_read_bytes(const struct model *model, double context)
{
    double n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);

        n += (double)plan->state_bytes +
             (double)plan->block_bytes * context / KV_BLOCK;
        for (uint32_t f = 0; f < plan->n_field; f++) {
            const struct mixer_field *field = &plan->field[f];
            double half = field->type == FIELD_F64 ? 4 : 2;

            for (uint32_t d = 0; d < field->n_dim; d++)
                half *= field->dim[d];
            if (strncmp(field->name, "ring_", 5) == 0)
                n -= half;
        }
    }
    return n;
}

/*
 * Weights are read once a step, each session's memory too; how fast, depends on
 * which cache holds all of it, so that is measured at this size.
 */
static enum status bound_decode(const struct bench *bench, struct point *point)
{
    const double n = point->n_session;
    const double context = (double)point->context + N_DECODE / 2.0;
    const double bytes =
        (double)model_step_bytes(bench->model, point->n_session) +
        n * session_read_bytes(bench->model, context);
    const double flops = n * (model_row_flops(bench->model) +
                              past_flops(bench->model) * context);
    double bandwidth;
    const enum status st =
        peak_read_bytes(bench->pool, (size_t)bytes, &bandwidth);

    if (st)
        return st;
    point->bound = n * bandwidth / bytes;
    point->bound_kind = "memory";
    if (n * bench->flops / flops < point->bound) {
        point->bound = n * bench->flops / flops;
        point->bound_kind = "arithmetic";
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- prefill */

/* Any tokens do: no kernel's time depends on values. */
static uint32_t some_token(const struct model *model, uint64_t i)
{
    return (uint32_t)((i * 2654435761u >> 7) % model_config(model)->n_vocab);
}

static enum status prefill_run(struct solo *solo, const uint32_t *token,
                               uint64_t n_token, double *out_rate)
{
    const float *logit;
    enum status st = solo_restart(solo);
    uint64_t start;

    if (st)
        return st;
    start = now_us();
    st = solo_feed(solo, token, n_token, &logit);
    *out_rate = 1e6 * (double)n_token / (double)(now_us() - start + 1);
    return st;
}

static enum status bench_prefill(const struct bench *bench, uint64_t n_token)
{
    struct point point = {.what = "prefill",
                          .context = n_token,
                          .n_session = 1,
                          .bound_kind = "arithmetic"};
    const uint64_t start = now_us();
    struct solo solo = {0};
    uint32_t *token = malloc(n_token * sizeof(*token)), n_run = 0;
    double rate[RUN_MAX];
    enum status st;

    st = token ? solo_init(bench->model, bench->pool, &solo)
               : status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "no memory for %lu tokens", n_token);
    for (uint64_t i = 0; i < n_token && token; i++)
        token[i] = some_token(bench->model, i);
    while (!st && n_run < bench->options->runs) {
        const bool is_late = now_us() - start > LONG_BUDGET_US;

        if (n_run && n_token >= LONG_PREFILL && is_late)
            break;
        st = prefill_run(&solo, token, n_token, &rate[n_run++]);
    }
    if (!st) {
        point.rate = median(rate, n_run);
        point.bound = prefill_bound(bench, n_token);
        print_point(bench, &point);
    }
    solo_release(&solo);
    free(token);
    return st;
}

/* ----------------------------------------------------------------- decode */

struct decode {
    const struct bench *bench;
    struct workspace *workspace;
    struct memory *memory[BATCH_MAX];
    uint32_t token[BATCH_MAX]; /* said last, by each session */
};

static void decode_release(struct decode *decode)
{
    for (uint32_t i = 0; i < BATCH_MAX; i++)
        memory_destroy(decode->memory[i]);
    workspace_destroy(decode->workspace);
}

static enum status decode_init(const struct bench *bench, struct decode *out)
{
    enum status st = workspace_create(bench->model, SOLO_CHUNK, BATCH_MAX,
                                      BATCH_MAX, &out->workspace);

    out->bench = bench;
    for (uint32_t i = 0; i < BATCH_MAX && !st; i++)
        st = memory_create(bench->model, &out->memory[i]);
    return st;
}

/* Bring session i to `context` tokens. */
static enum status decode_fill(struct decode *decode, uint32_t i,
                               uint64_t context)
{
    const struct model *model = decode->bench->model;
    struct memory *memory = decode->memory[i];
    uint32_t token[SOLO_CHUNK];
    enum status st = memory_reserve(memory, context);

    while (!st && memory_position(memory) < context) {
        const uint64_t position = memory_position(memory);
        const uint64_t left = context - position;
        const uint32_t n = left < SOLO_CHUNK ? (uint32_t)left : SOLO_CHUNK;

        for (uint32_t t = 0; t < n; t++)
            token[t] = some_token(model, position + t + 1000ull * i);
        (void)model_forward(
            model, decode->bench->pool, decode->workspace,
            &(struct batch){.token = token,
                            .n_row = n,
                            .span =
                                &(struct span){.n_row = n,
                                               .position = position,
                                               .layer = memory_layers(memory)},
                            .n_span = 1});
        memory_advance(memory, n);
    }
    return st;
}

/* One greedy token for each of the first n sessions. */
static enum status decode_step(struct decode *decode, uint32_t n)
{
    const struct model *model = decode->bench->model;
    const uint32_t n_vocab = model_config(model)->n_vocab;
    struct span span[BATCH_MAX];
    uint32_t row[BATCH_MAX];
    const float *logit;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t position = memory_position(decode->memory[i]);
        const enum status st = memory_reserve(decode->memory[i], position + 1);

        if (st)
            return st;
        row[i] = i;
        span[i] = (struct span){.first_row = i,
                                .n_row = 1,
                                .position = position,
                                .layer = memory_layers(decode->memory[i])};
    }
    logit = model_forward(model, decode->bench->pool, decode->workspace,
                          &(struct batch){.token = decode->token,
                                          .n_row = n,
                                          .span = span,
                                          .n_span = n,
                                          .logit_row = row,
                                          .n_logit = n});
    for (uint32_t i = 0; i < n; i++) {
        decode->token[i] = solo_argmax(logit + (size_t)i * n_vocab, n_vocab);
        memory_advance(decode->memory[i], 1);
    }
    return STATUS_OK;
}

/* Contexts grow while runs go on, by less than a tenth at the longest. */
static enum status bench_decode(struct decode *decode, uint64_t context,
                                uint32_t n_session)
{
    struct point point = {
        .what = "decode", .context = context, .n_session = n_session};
    double rate[RUN_MAX];
    enum status st = decode_step(decode, n_session); /* warms up */

    for (uint32_t r = 0; r < decode->bench->options->runs && !st; r++) {
        const uint64_t start = now_us();

        for (uint32_t i = 0; i < N_DECODE && !st; i++)
            st = decode_step(decode, n_session);
        rate[r] = 1e6 * N_DECODE * n_session / (double)(now_us() - start + 1);
    }
    if (st)
        return st;
    point.rate = median(rate, (uint32_t)decode->bench->options->runs);
    st = bound_decode(decode->bench, &point);
    if (!st)
        print_point(decode->bench, &point);
    return st;
}

static enum status bench_decodes(const struct bench *bench)
{
    static const uint64_t CONTEXT[] = {512, 4096};
    struct decode decode = {0};
    enum status st = decode_init(bench, &decode);

    for (size_t c = 0; c < 2 && !st; c++) {
        for (uint32_t i = 0; i < BATCH_MAX && !st; i++)
            st = decode_fill(&decode, i, CONTEXT[c]);
        if (!st)
            st = bench_decode(&decode, CONTEXT[c], 1);
        if (!st)
            st = bench_decode(&decode, CONTEXT[c], BATCH_MAX);
    }
    decode_release(&decode);
    return st;
}

/* ------------------------------------------------------------------- node */

static enum status bench_session(const struct bench *bench,
                                 struct bench_node *node, uint32_t n_session)
{
    const uint64_t context = 512;
    struct point prefill = {.what = "node prefill",
                            .context = context,
                            .n_session = n_session,
                            .bound = prefill_bound(bench, context),
                            .bound_kind = "arithmetic"};
    struct point decode = {.what = "node decode",
                           .context = context + N_NODE_DECODE / 2,
                           .n_session = n_session};
    double fill[RUN_MAX], rate[RUN_MAX];
    const uint32_t n = (uint32_t)bench->options->runs;
    enum status st = STATUS_OK;

    for (uint32_t r = 0; r < n && !st; r++)
        st = bench_node_run(node, n_session, context, N_NODE_DECODE, &fill[r],
                            &rate[r]);
    if (st)
        return st;
    prefill.rate = median(fill, n);
    decode.rate = median(rate, n);
    st = bound_decode(bench, &decode);
    if (st)
        return st;
    print_point(bench, &prefill);
    print_point(bench, &decode);
    return STATUS_OK;
}

static enum status bench_whole(const struct bench *bench)
{
    struct bench_node *node = NULL;
    enum status st = bench_node_start(
        &(struct bench_node_options){.model = bench->options->model,
                                     .choice = bench->options->choice,
                                     .n_thread = bench->options->threads,
                                     .data = bench->options->data},
        &node);

    if (!st)
        st = bench_session(bench, node, 1);
    if (!st)
        st = bench_session(bench, node, BATCH_MAX);
    bench_node_stop(node);
    return st;
}

/* ---------------------------------------------------------------- command */

static enum status bench_all(struct bench *bench)
{
    static const uint64_t PROMPT[] = {512, 4096, 32768};
    double bandwidth;
    enum status st;

    name_machine(bench->machine, sizeof(bench->machine));
    bench->flops = peak_flops(bench->pool, model_backend(bench->model)->name);
    st = peak_read_bytes(bench->pool, model_step_bytes(bench->model, 1),
                         &bandwidth);
    if (st)
        return st;
    fprintf(stderr,
            "%s: fma peak %.1f GFLOP/s, reads of %.1f MB at %.1f GB/s\n",
            SETTINGS.program, bench->flops / 1e9,
            (double)model_step_bytes(bench->model, 1) / 1e6, bandwidth / 1e9);
    print_header();
    for (size_t i = 0; i < sizeof(PROMPT) / sizeof(PROMPT[0]) && !st; i++)
        if (PROMPT[i] <= model_n_context(bench->model))
            st = bench_prefill(bench, PROMPT[i]);
    if (!st)
        st = bench_decodes(bench);
    return st ? st : bench_whole(bench);
}

int cmd_bench(int argc, char **argv)
{
    struct bench_options options;
    struct settings_store *store = NULL;
    struct engine_parts parts = {0};
    struct bench bench = {.options = &options};
    int code;

    if (!subcommand_read(&SETTINGS, argc, argv, &options, &store, &code))
        return code;
    log_set_level(LOG_WARN); /* stdout is data, stderr only bad news */
    code = SUBCOMMAND_DONE;
    if (engine_parts_init(options.model, &options.choice, options.threads,
                          &parts)) {
        code = subcommand_fail(&SETTINGS, SUBCOMMAND_BAD_INPUT);
    } else {
        bench.model = parts.model;
        bench.pool = parts.pool;
        bench.model_name = last_part(options.model);
        if (bench_all(&bench))
            code = subcommand_fail(&SETTINGS, SUBCOMMAND_FAILED);
    }
    engine_parts_release(&parts);
    settings_release(store);
    return code;
}
