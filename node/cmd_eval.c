/*
 * godwitd eval: what a model finds again in its context. Samples are made from
 * a seed, run greedily, and counted per task, length and depth; docs/EVAL.md.
 * Nothing here depends on the number of threads or on what ran before.
 */
#include "base/clock.h"
#include "base/log.h"
#include "node/commands.h"
#include "node/eval_report.h"
#include "node/subcommand.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LIST_MAX 64u
#define LENGTH_LIMIT (1u << 24)
#define POLICY_LIST_MAX 16u

struct eval_options {
    const char *model, *tasks, *lengths, *policy, *gemfilter;
    const char *out, *plot, *answers, *rows, *show;
    struct model_choice choice;
    uint64_t depths, samples, first, seed, threads;
    bool share, json, list;
};

static const struct setting ROW[] = {
    {.name = "model",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "DIR",
     .help = "Hugging Face directory of the model",
     .offset = offsetof(struct eval_options, model)},
    {.name = "tasks",
     .kind = SETTING_TEXT,
     .preset = "all",
     .unit = "LIST",
     .help = "tasks to run, divided by commas; --list names them",
     .offset = offsetof(struct eval_options, tasks)},
    {.name = "lengths",
     .kind = SETTING_TEXT,
     .preset = "1024,4096",
     .unit = "LIST",
     .help = "tokens of the prompts, at most",
     .offset = offsetof(struct eval_options, lengths)},
    {.name = "depths",
     .kind = SETTING_NUMBER,
     .preset = "5",
     .min = 1,
     .max = EVAL_DEPTH_MAX,
     .unit = "depths",
     .help = "places of what is asked for, evenly from start to end",
     .offset = offsetof(struct eval_options, depths)},
    {.name = "samples",
     .kind = SETTING_NUMBER,
     .preset = "10",
     .min = 1,
     .max = EVAL_SAMPLE_MAX,
     .unit = "samples",
     .help = "of each task and length; depths take turns",
     .offset = offsetof(struct eval_options, samples)},
    {.name = "first",
     .kind = SETTING_NUMBER,
     .preset = "0",
     .max = EVAL_SAMPLE_MAX - 1,
     .unit = "sample",
     .help = "the first of these samples, by its number: programs can share "
             "out those of a row",
     .offset = offsetof(struct eval_options, first)},
    {.name = "seed",
     .kind = SETTING_NUMBER,
     .preset = "1",
     .max = 4294967295.0,
     .unit = "",
     .help = "of all samples",
     .offset = offsetof(struct eval_options, seed)},
    {.name = "policy",
     .kind = SETTING_TEXT,
     .preset = "full",
     .unit = "LIST",
     .help = "what softmax layers see of the past, one run after the "
             "other: " POLICY_NAMES
             ", with parameters as in infllm:pick=512:step=8",
     .offset = offsetof(struct eval_options, policy)},
    {.name = "gemfilter",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "TOKENS[,layer=N][,pool=N]",
     .help = "answer from so many tokens of each prompt, chosen by what an "
             "early softmax layer attends to at its end",
     .offset = offsetof(struct eval_options, gemfilter)},
    SUBCOMMAND_MODEL_ROWS(offsetof(struct eval_options, choice)),
    {.name = "threads",
     .kind = SETTING_NUMBER,
     .preset = "0",
     .max = POOL_THREAD_MAX,
     .unit = "threads",
     .help = "worker threads; 0 for one per CPU",
     .offset = offsetof(struct eval_options, threads)},
    {.name = "share",
     .kind = SETTING_SWITCH,
     .preset = "true",
     .unit = "",
     .help = "compute what prompts begin with in common once; changes no score",
     .offset = offsetof(struct eval_options, share)},
    {.name = "out",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "FILE",
     .help = "where the TSV goes; stdout if not given",
     .offset = offsetof(struct eval_options, out)},
    {.name = "plot",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "FILE",
     .help = "write a picture of the scores there, as SVG",
     .offset = offsetof(struct eval_options, plot)},
    {.name = "answers",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "FILE",
     .help = "write each sample's answer there, as JSON lines",
     .offset = offsetof(struct eval_options, answers)},
    {.name = "rows",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "FILES",
     .help =
         "TSV files of earlier runs, divided by commas: plot them together, "
         "run nothing",
     .offset = offsetof(struct eval_options, rows)},
    {.name = "list",
     .kind = SETTING_SWITCH,
     .preset = "false",
     .unit = "",
     .help = "print the tasks, run nothing",
     .offset = offsetof(struct eval_options, list)},
    {.name = "show",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "TASK",
     .help = "print a sample of this task, run nothing",
     .offset = offsetof(struct eval_options, show)},
    {.name = "json",
     .kind = SETTING_SWITCH,
     .preset = "false",
     .unit = "",
     .help = "with --show: all samples of all lengths, as JSON lines",
     .offset = offsetof(struct eval_options, json)},
};

static const struct settings SETTINGS = {
    .program = "godwitd eval",
    .about = "Ask a model for what its context holds; print scores with 95 % "
             "intervals as TSV.",
    .row = ROW,
    .n_row = sizeof(ROW) / sizeof(ROW[0]),
};

/* One run: what to do, and where to. */
struct eval {
    const struct eval_options *options;
    const struct eval_task *task[LIST_MAX];
    uint32_t length[LIST_MAX];
    struct policy policy[POLICY_LIST_MAX];
    uint32_t n_task, n_length, n_policy, n_sample, n_depth;
    struct tokenizer *tokenizer; /* owned */
    struct eval_tally *tally;    /* all rows; owned */
    uint32_t n_tally;
    FILE *out, *plot, *answers; /* owned but for stdout; NULL: not wanted */
    bool is_running;            /* what fails now is no matter of input */
};

/* ----------------------------------------------------------------- options */

static enum status read_tasks(const char *list, struct eval *eval)
{
    const bool is_all = strcmp(list, "all") == 0;
    uint32_t n = 0;

    for (; is_all && n < eval_n_task(); n++)
        eval->task[n] = eval_task_at(n);
    for (const char *at = list; !is_all;) {
        const size_t n_name = strcspn(at, ",");
        enum status st;

        if (n == LIST_MAX)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--tasks has more than %u tasks", LIST_MAX);
        st = eval_task_find(at, n_name, &eval->task[n++]);
        if (st)
            return st;
        if (!at[n_name])
            break;
        at += n_name + 1;
    }
    eval->n_task = n;
    return STATUS_OK;
}

static enum status read_lengths(const char *list, struct eval *eval)
{
    uint32_t n = 0;

    for (const char *at = list;;) {
        char *end;
        unsigned long long value;

        errno = 0;
        value = strtoull(at, &end, 10);
        if (end == at || *at == '-' || (*end && *end != ',') || errno ||
            value < EVAL_LENGTH_MIN || value > LENGTH_LIMIT || n == LIST_MAX)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--lengths is '%.64s', expected up to %u "
                               "numbers %u to %u, divided by commas",
                               list, LIST_MAX, EVAL_LENGTH_MIN, LENGTH_LIMIT);
        eval->length[n++] = (uint32_t)value;
        if (!*end)
            break;
        at = end + 1;
    }
    eval->n_length = n;
    return STATUS_OK;
}

static enum status read_policies(const char *list, struct eval *eval)
{
    uint32_t n = 0;

    for (const char *at = list;;) {
        const size_t n_text = strcspn(at, ",");
        char text[POLICY_TEXT_SIZE];
        enum status st;

        if (n == POLICY_LIST_MAX || n_text >= sizeof(text))
            return status_fail(
                STATUS_INVALID_ARGUMENT,
                "--policy is '%.64s', expected up to %u policies "
                "of at most %zu characters, divided by commas",
                list, POLICY_LIST_MAX, sizeof(text) - 1);
        (void)snprintf(text, sizeof(text), "%.*s", (int)n_text, at);
        st = policy_parse(text, &eval->policy[n++]);
        if (st)
            return st;
        if (!at[n_text])
            break;
        at += n_text + 1;
    }
    eval->n_policy = n;
    if (n > 1 && eval->options->plot[0])
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--plot is of one policy, --policy has %u", n);
    return STATUS_OK;
}

static enum status read_options(struct eval *eval)
{
    const struct eval_options *options = eval->options;
    enum status st;

    eval->n_sample = (uint32_t)options->samples;
    eval->n_depth = (uint32_t)options->depths;
    if (!options->model[0])
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--model is required, but for --list and --rows");
    if (options->json && !options->show[0])
        return status_fail(STATUS_INVALID_ARGUMENT, "--json is of --show");
    if (options->gemfilter[0] && strcmp(options->policy, "full") != 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--gemfilter is of --policy full");
    st = read_tasks(options->show[0] ? options->show : options->tasks, eval);
    if (!st)
        st = read_lengths(options->lengths, eval);
    if (!st)
        st = read_policies(options->policy, eval);
    if (!st)
        st = tokenizer_load(options->model, &eval->tokenizer);
    return st;
}

static enum status open_file(const char *path, FILE **out)
{
    FILE *file;

    if (!path[0])
        return STATUS_OK;
    file = fopen(path, "we");
    if (!file)
        return status_fail(STATUS_INVALID_ARGUMENT, "cannot write %s: %s", path,
                           strerror(errno));
    *out = file;
    return STATUS_OK;
}

static enum status close_file(FILE *file, enum status st)
{
    bool is_bad;

    if (!file)
        return st;
    is_bad = ferror(file);
    is_bad = (file == stdout ? fflush(file) : fclose(file)) || is_bad;
    if (is_bad && !st)
        st = status_fail(STATUS_INTERNAL, "cannot write all of the output");
    return st;
}

/* ----------------------------------------------------------------- samples */

static void list_tasks(void)
{
    printf("task\tdepths\tanswer_tokens\tabout\n");
    for (uint32_t i = 0; i < eval_n_task(); i++) {
        const struct eval_task *task = eval_task_at(i);

        printf("%s\t%s\t%u\t%s\n", task->name, task->has_depth ? "yes" : "no",
               task->n_answer, task->about);
    }
}

static enum status show_sample(const struct eval *eval,
                               const struct eval_item *item)
{
    struct eval_prompt prompt = {0};
    enum status st = eval_fit(eval->tokenizer, item, &prompt);

    if (!st)
        st = eval->options->json ? eval_show_json(item, &prompt, stdout)
                                 : eval_show_text(item, &prompt, stdout);
    eval_prompt_release(&prompt);
    return st;
}

/* The first sample for people, all of them as JSON. */
static enum status show(const struct eval *eval)
{
    const uint32_t n_length = eval->options->json ? eval->n_length : 1;
    const uint32_t n_sample = eval->options->json ? eval->n_sample : 1;
    enum status st = STATUS_OK;

    for (uint32_t t = 0; t < eval->n_task; t++)
        for (uint32_t l = 0; l < n_length; l++)
            for (uint32_t i = 0; i < n_sample && !st; i++) {
                const struct eval_item item =
                    eval_item(eval->task[t], eval->options->seed,
                              (uint32_t)eval->options->first + i, eval->n_depth,
                              eval->length[l]);

                st = show_sample(eval, &item);
            }
    return st;
}

/* ----------------------------------------------------------- earlier runs */

static enum status read_files(const char *list, struct eval_table *table)
{
    enum status st = STATUS_OK;

    for (const char *at = list; !st;) {
        const size_t n = strcspn(at, ",");
        char path[4096];
        FILE *file;

        (void)snprintf(path, sizeof(path), "%.*s", (int)n, at);
        file = n < sizeof(path) ? fopen(path, "re") : NULL;
        if (!file)
            return status_fail(STATUS_INVALID_ARGUMENT, "cannot read '%s'",
                               path);
        st = eval_read_rows(path, file, table);
        (void)fclose(file);
        if (!at[n])
            break;
        at += n + 1;
    }
    return st;
}

static enum status plot_rows(struct eval *eval)
{
    struct eval_table table = {.row = calloc(EVAL_ROW_MAX, sizeof(*table.row))};
    enum status st;

    if (!eval->options->plot[0])
        st = status_fail(STATUS_INVALID_ARGUMENT, "--rows needs --plot");
    else if (!table.row)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for the rows");
    else
        st = read_files(eval->options->rows, &table);
    if (!st && !table.n_row)
        st = status_fail(STATUS_INVALID_ARGUMENT, "no row in '%.256s'",
                         eval->options->rows);
    if (!st)
        st = open_file(eval->options->plot, &eval->plot);
    if (!st)
        eval_plot(&table.about, table.row, table.n_row, eval->plot);
    st = close_file(eval->plot, st);
    free(table.row);
    return st;
}

/* ------------------------------------------------------------------ running */

/* Before hours are spent: all lengths fit the model, all tasks the lengths. */
static enum status check_lengths(const struct eval *eval,
                                 const struct model *model)
{
    const uint64_t n_context = model_n_context(model);
    uint32_t shortest = UINT32_MAX;
    enum status st = STATUS_OK;

    for (uint32_t l = 0; l < eval->n_length; l++) {
        if (eval->length[l] + EVAL_ANSWER_MAX > n_context)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--lengths has %u, and with an answer of %u "
                               "tokens that is beyond the model's context of "
                               "%lu",
                               eval->length[l], EVAL_ANSWER_MAX, n_context);
        if (eval->length[l] < shortest)
            shortest = eval->length[l];
    }
    if (tokenizer_n_token(eval->tokenizer) > model_config(model)->n_vocab)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "the tokenizer has %u tokens, the model %u",
                           tokenizer_n_token(eval->tokenizer),
                           model_config(model)->n_vocab);
    for (uint32_t t = 0; t < eval->n_task && !st; t++) {
        const struct eval_item item = eval_item(
            eval->task[t], eval->options->seed, 0, eval->n_depth, shortest);
        struct eval_prompt prompt = {0};

        st = eval_fit(eval->tokenizer, &item, &prompt);
        eval_prompt_release(&prompt);
    }
    return st;
}

/* Rows of one task and length: its depths, then all of them. */
static void count(struct eval *eval, const struct eval_about *about,
                  const struct eval_item *item,
                  const struct eval_outcome *outcome)
{
    const uint32_t n_depth = item[0].depth.n_step;
    struct eval_tally all = {.task = item[0].task,
                             .length = item[0].length,
                             .depth = EVAL_DEPTH_ALL};

    for (uint32_t d = 0; d < n_depth && item[0].task->has_depth; d++) {
        struct eval_tally tally = all;

        tally.depth = d;
        for (uint32_t i = 0; i < eval->n_sample; i++)
            if (item[i].depth.step == d)
                eval_tally_add(&tally, &outcome[i]);
        if (tally.n_sample == 0)
            continue;
        eval_report_row(about, &tally, eval->out);
        eval->tally[eval->n_tally++] = tally;
    }
    for (uint32_t i = 0; i < eval->n_sample; i++)
        eval_tally_add(&all, &outcome[i]);
    eval_report_row(about, &all, eval->out);
    eval->tally[eval->n_tally++] = all;
    (void)fflush(eval->out);
}

static enum status run_cell(struct eval *eval, struct eval_runner *runner,
                            const struct eval_about *about,
                            const struct eval_item *item)
{
    const uint32_t n = eval->n_sample;
    struct eval_prompt *prompt;
    struct eval_outcome *outcome;
    enum status st = STATUS_OK;

    assert(n >= 1);
    prompt = calloc(n, sizeof(*prompt));
    outcome = calloc(n, sizeof(*outcome));
    if (!prompt || !outcome)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %u samples",
                         n);
    for (uint32_t i = 0; i < n && !st; i++)
        st = eval_fit(eval->tokenizer, &item[i], &prompt[i]);
    if (!st)
        st = eval_run(runner, item[0].task, prompt, n, outcome);
    for (uint32_t i = 0; i < n && !st && eval->answers; i++)
        st = eval_show_answer(&item[i], &prompt[i], &outcome[i], eval->answers);
    if (!st && eval->answers)
        (void)fflush(eval->answers);
    if (!st)
        count(eval, about, item, outcome);
    for (uint32_t i = 0; i < n; i++) {
        if (prompt)
            eval_prompt_release(&prompt[i]);
        if (outcome)
            eval_outcome_release(&outcome[i]);
    }
    free(prompt);
    free(outcome);
    return st;
}

/* The line of progress behind a task and length. */
static void tell(const struct eval *eval, const char *policy, uint32_t n_done,
                 uint64_t us)
{
    const struct eval_tally *all = &eval->tally[eval->n_tally - 1];

    fprintf(stderr, "%s: %u of %u: %s, %s at %u tokens: %.3f, %.1f s\n",
            SETTINGS.program, n_done, eval->n_task * eval->n_length, policy,
            all->task->name, all->length, eval_share(all), (double)us * 1e-6);
}

static enum status run_cells(struct eval *eval, struct eval_runner *runner,
                             const struct eval_about *about)
{
    const struct clock *clock = clock_real();
    struct eval_item item[EVAL_SAMPLE_MAX];

    for (uint32_t t = 0; t < eval->n_task; t++)
        for (uint32_t l = 0; l < eval->n_length; l++) {
            const uint64_t begin = clock->now_us(clock);
            enum status st;

            for (uint32_t i = 0; i < eval->n_sample; i++)
                item[i] = eval_item(eval->task[t], about->seed,
                                    (uint32_t)eval->options->first + i,
                                    eval->n_depth, eval->length[l]);
            st = run_cell(eval, runner, about, item);
            if (st)
                return st;
            tell(eval, about->policy, t * eval->n_length + l + 1,
                 clock->now_us(clock) - begin);
        }
    return STATUS_OK;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

/* Rows name it in the policy's place. */
static enum status run_excerpt(struct eval *eval, struct eval_runner *runner,
                               const struct eval_about *about)
{
    char text[EXCERPT_TEXT_SIZE], name[EXCERPT_TEXT_SIZE + 16];
    struct eval_about its = *about;
    enum status st = excerpt_parse(eval->options->gemfilter, &runner->excerpt);

    if (!st)
        st = excerpt_check(runner->solo->model, &runner->excerpt);
    if (st)
        return st;
    excerpt_format(&runner->excerpt, text);
    (void)snprintf(name, sizeof(name), "gemfilter:%s", text);
    its.policy = name;
    st = run_cells(eval, runner, &its);
    if (!st && eval->plot)
        eval_plot(&its, eval->tally, eval->n_tally, eval->plot);
    return st;
}

/* All of them under one policy after the other. */
static enum status run_policies(struct eval *eval, struct eval_runner *runner,
                                const struct eval_about *about)
{
    const struct config *config = model_config(runner->solo->model);
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < eval->n_policy && !st; i++) {
        char text[POLICY_TEXT_SIZE];
        struct eval_about its = *about;

        policy_end_turns(&eval->policy[i], config->eos, config->n_eos);
        policy_format(&eval->policy[i], text);
        its.policy = text;
        runner->solo->policy = eval->policy[i];
        st = run_cells(eval, runner, &its);
        if (!st && eval->plot)
            eval_plot(&its, eval->tally, eval->n_tally, eval->plot);
    }
    return st;
}

static enum status run(struct eval *eval, const struct engine_parts *parts)
{
    const struct eval_options *options = eval->options;
    const struct eval_about about = {.model = last_part(options->model),
                                     .numerics = model_numerics(parts->model),
                                     .seed = options->seed,
                                     .n_depth = eval->n_depth};
    struct solo solo = {0};
    struct eval_runner runner = {
        .solo = &solo, .tokenizer = eval->tokenizer, .shares = options->share};
    const size_t n_row = (size_t)eval->n_policy * eval->n_task *
                         eval->n_length * ((size_t)eval->n_depth + 1);
    enum status st = solo_init(parts->model, parts->pool, &solo);

    assert(n_row >= 1);
    eval->tally = calloc(n_row, sizeof(*eval->tally));
    if (!st && !eval->tally)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for the rows");
    if (!st) {
        eval_report_header(eval->out);
        st = options->gemfilter[0] ? run_excerpt(eval, &runner, &about)
                                   : run_policies(eval, &runner, &about);
    }
    if (!st)
        fprintf(stderr, "%s: prompts of %lu tokens, %lu of them computed\n",
                SETTINGS.program, runner.n_token, runner.n_computed);
    solo_release(&solo);
    free(eval->tally);
    return st;
}

static enum status load_and_run(struct eval *eval)
{
    const struct eval_options *options = eval->options;
    struct engine_parts parts = {0};
    enum status st = engine_parts_init(options->model, &options->choice,
                                       options->threads, &parts);

    if (!st)
        st = check_lengths(eval, parts.model);
    if (!st)
        st = open_file(options->out, &eval->out);
    if (!st)
        st = open_file(options->plot, &eval->plot);
    if (!st)
        st = open_file(options->answers, &eval->answers);
    eval->is_running = !st;
    if (!st)
        st = run(eval, &parts);
    st = close_file(eval->out, st);
    st = close_file(eval->plot, st);
    st = close_file(eval->answers, st);
    engine_parts_release(&parts);
    return st;
}

int cmd_eval(int argc, char **argv)
{
    struct eval_options options;
    struct settings_store *store = NULL;
    struct eval eval = {.options = &options, .out = stdout};
    enum status st;
    int code;

    if (!subcommand_read(&SETTINGS, argc, argv, &options, &store, &code))
        return code;
    log_set_level(LOG_WARN); /* stdout is data, stderr progress and bad news */
    code = SUBCOMMAND_DONE;
    if (options.list) {
        list_tasks();
        settings_release(store);
        return code;
    }
    if (options.rows[0])
        st = plot_rows(&eval);
    else
        st = read_options(&eval);
    if (!st && !options.rows[0])
        st = options.show[0] ? show(&eval) : load_and_run(&eval);
    if (st)
        code =
            subcommand_fail(&SETTINGS, eval.is_running ? SUBCOMMAND_FAILED
                                                       : SUBCOMMAND_BAD_INPUT);
    tokenizer_destroy(eval.tokenizer);
    settings_release(store);
    return code;
}
