/*
 * godwitd bench: tokens per second of a model on this machine, one TSV row per
 * point, beside the bound that no program could pass, measured in the same run.
 * Medians of several runs. "prefill" is a whole prompt, "frontier" the last
 * chunk of one, "decode" the bare model's steps; rows named "node ..." go
 * through the whole node with its journal on.
 */
#include "base/log.h"
#include "node/bench.h"
#include "node/bench_node.h"
#include "node/commands.h"
#include "node/subcommand.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define N_NODE_DECODE 128u /* tokens of each session through a node */
#define NODE_CONTEXT 512u  /* of each session's prompt */
#define CHUNK_MAX 16384u

static const struct setting ROW[] = {
    {.name = "model",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "DIR",
     .help = "Hugging Face directory of the model",
     .offset = offsetof(struct bench_options, model)},
    {.name = "synthetic",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "FILE",
     .help = "a config.json instead: random weights in its shape, in memory",
     .offset = offsetof(struct bench_options, synthetic)},
    SUBCOMMAND_MODEL_ROWS(offsetof(struct bench_options, choice)),
    {.name = "parts",
     .kind = SETTING_TEXT,
     .preset = "prefill,decode,node",
     .unit = "LIST",
     .help = "what to measure: prefill, decode, node",
     .offset = offsetof(struct bench_options, parts)},
    {.name = "contexts",
     .kind = SETTING_TEXT,
     .preset = "512,4096,32768",
     .unit = "LIST",
     .help = "tokens of prompts, and before decode steps; a past is filled in, "
             "not computed, where only what comes behind it is timed",
     .offset = offsetof(struct bench_options, contexts)},
    {.name = "batches",
     .kind = SETTING_TEXT,
     .preset = "1,8",
     .unit = "LIST",
     .help = "sessions that decode together",
     .offset = offsetof(struct bench_options, batches)},
    {.name = "sessions",
     .kind = SETTING_TEXT,
     .preset = "1,8,16,32",
     .unit = "LIST",
     .help = "sessions of the node rows, all at once",
     .offset = offsetof(struct bench_options, sessions)},
    {.name = "threads",
     .kind = SETTING_TEXT,
     .preset = "0",
     .unit = "LIST",
     .help = "worker threads, each number in turn; 0 for one per CPU",
     .offset = offsetof(struct bench_options, threads)},
    {.name = "chunk",
     .kind = SETTING_NUMBER,
     .preset = "1024",
     .min = 1,
     .max = CHUNK_MAX,
     .unit = "tokens",
     .help = "rows of a prompt that are computed together",
     .offset = offsetof(struct bench_options, chunk)},
    {.name = "runs",
     .kind = SETTING_NUMBER,
     .preset = "5",
     .min = 1,
     .max = BENCH_RUN_MAX,
     .unit = "runs",
     .help = "measurements of which the median is printed",
     .offset = offsetof(struct bench_options, runs)},
    {.name = "seconds",
     .kind = SETTING_NUMBER,
     .preset = "20",
     .min = 1,
     .max = 3600,
     .unit = "s",
     .help = "limit for a point: fewer runs, and no prompts that take longer",
     .offset = offsetof(struct bench_options, seconds)},
    {.name = "data",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "DIR",
     .help = "where the journal's scratch directory goes; /tmp if not given",
     .offset = offsetof(struct bench_options, data)},
};

static const struct settings SETTINGS = {
    .program = "godwitd bench",
    .about = "Print tokens per second beside the machine's bounds, as TSV.",
    .row = ROW,
    .n_row = sizeof(ROW) / sizeof(ROW[0]),
};

/* ---------------------------------------------------------------- options */

/* Numbers min .. max, divided by commas. */
static enum status read_list(const char *name, const char *text, uint64_t min,
                             uint64_t max, uint64_t out[BENCH_LIST_MAX],
                             uint32_t *out_n)
{
    uint32_t n = 0;

    for (const char *at = text; *at || !n;) {
        char *end;
        unsigned long long value;

        errno = 0;
        value = strtoull(at, &end, 10);
        if (end == at || (*end && *end != ',') || errno || value < min ||
            value > max || n == BENCH_LIST_MAX)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--%s is '%.64s', expected up to %u numbers %lu "
                               "to %lu, divided by commas",
                               name, text, BENCH_LIST_MAX, min, max);
        out[n++] = value;
        at = *end ? end + 1 : end;
    }
    *out_n = n;
    return STATUS_OK;
}

/* Is `part` one of the words of --parts? */
static bool has_part(const struct bench *bench, const char *part)
{
    const size_t n = strlen(part);
    const char *at = bench->options->parts;

    while (at && *at) {
        if (strncmp(at, part, n) == 0 && (at[n] == ',' || !at[n]))
            return true;
        at = strchr(at, ',');
        at += at != NULL;
    }
    return false;
}

static enum status check_parts(const char *text)
{
    static const char *const KNOWN[] = {"prefill", "decode", "node"};

    for (const char *at = text; *at;) {
        const size_t n = strcspn(at, ",");
        bool is_known = false;

        for (size_t i = 0; i < sizeof(KNOWN) / sizeof(KNOWN[0]); i++)
            is_known = is_known ||
                       (strlen(KNOWN[i]) == n && strncmp(at, KNOWN[i], n) == 0);
        if (!is_known)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--parts is '%.64s', expected some of: prefill, "
                               "decode, node",
                               text);
        at += n + (at[n] == ',');
    }
    return STATUS_OK;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

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

static enum status read_options(struct bench *bench,
                                uint64_t thread[BENCH_LIST_MAX],
                                uint32_t *out_n_thread)
{
    const struct bench_options *options = bench->options;
    const bool is_made = options->synthetic[0] != '\0';
    enum status st = check_parts(options->parts);

    if (!st && is_made == (options->model[0] != '\0'))
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "expected one of --model and --synthetic");
    if (!st)
        st = read_list("contexts", options->contexts, 1, 1u << 24,
                       bench->context, &bench->n_context);
    if (!st)
        st = read_list("batches", options->batches, 1, BENCH_BATCH_MAX,
                       bench->batch, &bench->n_batch);
    if (!st)
        st = read_list("sessions", options->sessions, 1, BENCH_NODE_SESSION_MAX,
                       bench->session, &bench->n_session);
    if (!st)
        st = read_list("threads", options->threads, 0, POOL_THREAD_MAX, thread,
                       out_n_thread);
    bench->model_name =
        last_part(is_made ? options->synthetic : options->model);
    name_machine(bench->machine, sizeof(bench->machine));
    return st;
}

/* ------------------------------------------------------------------- node */

/* Rates and latencies of all runs of one number of sessions. */
struct node_runs {
    double fill[BENCH_RUN_MAX], rate[BENCH_RUN_MAX];
    double ttft[2][BENCH_RUN_MAX], token[2][BENCH_RUN_MAX]; /* p50, p99 in us */
    uint32_t n;
    struct thread_times prefill_times, decode_times; /* of all runs */
};

/* Talk: who used the processors, per token. */
static void say_times(const char *what, uint32_t n_session,
                      const struct thread_times *times, double n_token)
{
    (void)fprintf(stderr, "godwitd bench: %s, %u sessions, us/token:", what,
                  n_session);
    for (uint32_t i = 0; i < times->n; i++)
        if ((double)times->of[i].ns > n_token) /* not for a nanosecond */
            (void)fprintf(stderr, " %s %.2f", times->of[i].name,
                          (double)times->of[i].ns / n_token / 1e3);
    (void)fputc('\n', stderr);
}

static enum status run_node(const struct bench *bench, struct bench_node *node,
                            uint32_t n_session, struct node_runs *runs)
{
    const uint64_t start_us = bench_now_us();
    enum status st = STATUS_OK;

    while (runs->n < bench->options->runs && !st) {
        struct bench_node_result result = {0};
        const uint32_t r = runs->n;

        if (r && bench_now_us() - start_us > bench->options->seconds * 1000000)
            break;
        st = bench_node_run(node, n_session, NODE_CONTEXT, N_NODE_DECODE,
                            &result);
        if (st)
            break;
        runs->fill[r] = result.prefill;
        runs->rate[r] = result.decode;
        for (int i = 0; i < 2; i++) {
            const double share = i ? 0.99 : 0.5;

            runs->ttft[i][r] =
                bench_percentile(result.ttft_us, result.n_session, share);
            runs->token[i][r] =
                bench_percentile(result.token_us, result.n_token, share);
        }
        runs->n++;
        thread_times_add(&runs->prefill_times, &(struct thread_times){0},
                         &result.prefill_times);
        thread_times_add(&runs->decode_times, &(struct thread_times){0},
                         &result.decode_times);
        bench_node_result_release(&result);
    }
    if (st)
        return st;
    say_times("prefill", n_session, &runs->prefill_times,
              (double)n_session * NODE_CONTEXT * runs->n);
    say_times("decode", n_session, &runs->decode_times,
              (double)n_session * (N_NODE_DECODE + 1) * runs->n);
    return STATUS_OK;
}

static enum status bench_session(struct bench *bench, struct bench_node *node,
                                 uint32_t n_session)
{
    const double n_prompt = (double)n_session * NODE_CONTEXT;
    struct point prefill = point_of("node prefill", NODE_CONTEXT, n_session);
    struct point decode =
        point_of("node decode", NODE_CONTEXT + N_NODE_DECODE / 2, n_session);
    struct work work = bench_prefill_work(bench->model, 0, NODE_CONTEXT);
    struct node_runs runs = {.n = 0};
    double bound;
    enum status st = run_node(bench, node, n_session, &runs);

    work.flops *= n_session;
    if (!st)
        st = bench_bound(bench, &work, &bound, &prefill.bound_kind);
    if (st)
        return st;
    prefill.rate = bench_median(runs.fill, runs.n);
    prefill.bound = n_prompt / bound;
    prefill.latency.ttft_p50_ms = bench_median(runs.ttft[0], runs.n) / 1e3;
    prefill.latency.ttft_p99_ms = bench_median(runs.ttft[1], runs.n) / 1e3;
    bench_print(bench, &prefill);

    work = bench_decode_work(bench->model, decode.context, n_session);
    st = bench_bound(bench, &work, &bound, &decode.bound_kind);
    if (st)
        return st;
    decode.rate = bench_median(runs.rate, runs.n);
    decode.bound = n_session / bound;
    decode.latency.token_p50_ms = bench_median(runs.token[0], runs.n) / 1e3;
    decode.latency.token_p99_ms = bench_median(runs.token[1], runs.n) / 1e3;
    bench_print(bench, &decode);
    return STATUS_OK;
}

static enum status bench_nodes(struct bench *bench)
{
    const struct bench_options *options = bench->options;
    struct bench_node *node = NULL;
    enum status st = bench_node_start(
        &(struct bench_node_options){
            .model = options->model,
            .synthetic = options->synthetic[0] ? options->synthetic : NULL,
            .choice = options->choice,
            .n_thread = pool_n_thread(bench->pool),
            .data = options->data},
        &node);

    if (!st) {
        bench->model = bench_node_model(node);
        bench->is_loaded = true;
        bench_measure_peaks(bench);
    }
    for (uint32_t i = 0; i < bench->n_session && !st; i++)
        st = bench_session(bench, node, (uint32_t)bench->session[i]);
    bench_node_stop(node);
    return st;
}

/* ---------------------------------------------------------------- command */

static enum status load(const struct bench_options *options, struct model **out)
{
    struct model_options model = {0};
    enum status st = model_options_find(&options->choice, &model);

    if (st)
        return st;
    if (model.backend->find_device)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "bench knows the bounds of CPUs alone, not those of "
                           "backend '%s': name another one (a GPU is measured "
                           "by tests/gpu/run.sh)",
                           model.backend->name);
    model.backend = stopwatch_backend(model.backend);
    return options->synthetic[0]
               ? model_load_synthetic(options->synthetic, SYNTHETIC_SEED,
                                      &model, out)
               : model_load(options->model, &model, out);
}

/* Points of the bare model, for each number of threads. */
static enum status bench_models(struct bench *bench, const uint64_t *thread,
                                uint32_t n_thread)
{
    struct model *model = NULL;
    enum status st = load(bench->options, &model);

    bench->model = model;
    bench->is_loaded = !st;
    for (uint32_t i = 0; i < n_thread && !st; i++) {
        st = pool_create(subcommand_threads(thread[i]), &bench->pool);
        if (st)
            break;
        bench_measure_peaks(bench);
        if (has_part(bench, "prefill"))
            st = bench_prefills(bench);
        if (!st && has_part(bench, "decode"))
            st = bench_decodes(bench);
        pool_destroy(bench->pool);
        bench->pool = NULL;
    }
    model_destroy(model);
    return st;
}

/* The node loads a model of its own, so the bare one is gone by then. */
static enum status bench_all(struct bench *bench, const uint64_t *thread,
                             uint32_t n_thread)
{
    enum status st = STATUS_OK;

    if (has_part(bench, "prefill") || has_part(bench, "decode"))
        st = bench_models(bench, thread, n_thread);
    for (uint32_t i = 0; i < n_thread && !st && has_part(bench, "node"); i++) {
        st = pool_create(subcommand_threads(thread[i]), &bench->pool);
        if (!st)
            st = bench_nodes(bench);
        pool_destroy(bench->pool);
        bench->pool = NULL;
    }
    return st;
}

int cmd_bench(int argc, char **argv)
{
    struct bench_options options;
    struct settings_store *store = NULL;
    struct bench bench = {.options = &options};
    uint64_t thread[BENCH_LIST_MAX];
    uint32_t n_thread = 0;
    int code;

    if (!subcommand_read(&SETTINGS, argc, argv, &options, &store, &code))
        return code;
    log_set_level(LOG_WARN); /* stdout is data, stderr only bad news */
    code = SUBCOMMAND_DONE;
    if (read_options(&bench, thread, &n_thread))
        code = subcommand_fail(&SETTINGS, SUBCOMMAND_BAD_INPUT);
    else if (bench_all(&bench, thread, n_thread))
        code =
            subcommand_fail(&SETTINGS, bench.is_loaded ? SUBCOMMAND_FAILED
                                                       : SUBCOMMAND_BAD_INPUT);
    settings_release(store);
    return code;
}
