#include "node/eval_report.h"

#include "base/json.h"

#include <string.h>

const char eval_row_header[] =
    "version\tmodel\tnumerics\tpolicy\tseed\tdepths\ttask\tlength\tdepth\t"
    "samples\thits\tof\tscore\tlow\thigh\tprompt_tokens";

void eval_tally_add(struct eval_tally *tally,
                    const struct eval_outcome *outcome)
{
    tally->n_sample++;
    tally->n_hit += outcome->n_hit;
    tally->n_expected += outcome->n_expected;
    tally->n_token += outcome->n_prompt;
}

double eval_share(const struct eval_tally *tally)
{
    return tally->n_expected ? (double)tally->n_hit / (double)tally->n_expected
                             : 0;
}

uint64_t eval_trials(const struct eval_tally *tally)
{
    return tally->task->score == EVAL_POSITIONS ? tally->n_expected
                                                : tally->n_sample;
}

void eval_format_depth(uint32_t depth, uint32_t n_depth, char out[16])
{
    if (depth == EVAL_DEPTH_ALL)
        (void)snprintf(out, 16, "-");
    else
        (void)snprintf(out, 16, "%.2f",
                       n_depth == 1 ? 0.5
                                    : (double)depth / (double)(n_depth - 1));
}

void eval_report_header(FILE *to)
{
    fprintf(to, "%s\n", eval_row_header);
}

void eval_report_row(const struct eval_about *about,
                     const struct eval_tally *tally, FILE *to)
{
    const double share = eval_share(tally);
    const struct eval_interval interval =
        eval_wilson(share, eval_trials(tally));
    char depth[16];

    eval_format_depth(tally->depth, about->n_depth, depth);
    fprintf(to, "%s\t%s\t%s\t%s\t%lu\t%u\t", GODWIT_VERSION, about->model,
            about->numerics, about->policy, about->seed, about->n_depth);
    fprintf(to, "%s\t%u\t%s\t%u\t%u\t%u\t%.3f\t%.3f\t%.3f\t%lu\n",
            tally->task->name, tally->length, depth, tally->n_sample,
            tally->n_hit, tally->n_expected, share, interval.low, interval.high,
            tally->n_token);
}

/* ------------------------------------------------------------------ samples */

static const char *score_name(enum eval_score score)
{
    switch (score) {
    case EVAL_CONTAINS:
        return "contains";
    case EVAL_FIRST_INTEGER:
        return "first_integer";
    case EVAL_WORD:
        return "word";
    case EVAL_POSITIONS:
        break;
    }
    return "positions";
}

enum status eval_show_text(const struct eval_item *item,
                           const struct eval_prompt *prompt, FILE *to)
{
    fprintf(to,
            "task: %s, %s\nprompt: %zu tokens, %u units\nanswer: %u tokens "
            "at most, judged by %s\n",
            item->task->name, item->task->about, prompt->ids.n, prompt->n_unit,
            item->task->n_answer, score_name(item->task->score));
    if (prompt->text) {
        fprintf(to, "expected:");
        for (uint32_t i = 0; i < prompt->expected.n; i++)
            fprintf(to, " %s", prompt->expected.text[i]);
        fprintf(to, "\n\n");
        (void)fwrite(prompt->text, 1, prompt->n_text, to);
        fprintf(to, "\n");
    } else {
        fprintf(to, "expected (position:id):");
        for (uint32_t i = 0; i < prompt->mqar.n_pair; i++)
            fprintf(to, " %u:%u", prompt->mqar.position[i],
                    prompt->mqar.value[i]);
        fprintf(to, "\n\n");
        for (size_t i = 0; i < prompt->ids.n; i++)
            fprintf(to, "%s%u", i ? " " : "", prompt->ids.id[i]);
        fprintf(to, "\n");
    }
    return ferror(to) ? status_fail(STATUS_INTERNAL, "cannot write the sample")
                      : STATUS_OK;
}

static json_t *json_ids(const uint32_t *id, size_t n)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n && list; i++)
        if (json_array_append_new(list, json_integer(id[i]))) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

static json_t *json_expected(const struct eval_expected *expected)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < expected->n && list; i++)
        if (json_array_append_new(list, json_string(expected->text[i]))) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

/* What names a sample; NULL when memory is out. */
static json_t *json_item(const struct eval_item *item,
                         const struct eval_prompt *prompt)
{
    json_t *line = json_object();

    if (!line ||
        json_object_set_new(line, "task", json_string(item->task->name)) ||
        json_object_set_new(line, "length", json_integer(item->length)) ||
        json_object_set_new(line, "index", json_integer(item->index)) ||
        json_object_set_new(line, "depth_step",
                            item->task->has_depth
                                ? json_integer(item->depth.step)
                                : json_null()) ||
        json_object_set_new(line, "tokens",
                            json_integer((json_int_t)prompt->ids.n)) ||
        json_object_set_new(line, "expected",
                            json_expected(&prompt->expected))) {
        json_decref(line);
        return NULL;
    }
    return line;
}

static enum status dump(json_t *line, bool is_whole, FILE *to)
{
    enum status st = STATUS_OK;

    if (!line || !is_whole)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a line");
    else if (json_dumpf(line, to, JSON_COMPACT) || fputc('\n', to) < 0)
        st = status_fail(STATUS_INTERNAL, "cannot write the line");
    json_decref(line);
    return st;
}

enum status eval_show_json(const struct eval_item *item,
                           const struct eval_prompt *prompt, FILE *to)
{
    const struct eval_mqar *mqar = &prompt->mqar;
    json_t *line = json_item(item, prompt);
    const bool is_whole =
        line &&
        !json_object_set_new(line, "units", json_integer(prompt->n_unit)) &&
        !json_object_set_new(line, "score",
                             json_string(score_name(item->task->score))) &&
        !json_object_set_new(line, "answer_tokens",
                             json_integer(item->task->n_answer)) &&
        !json_object_set_new(line, "prompt",
                             prompt->text
                                 ? json_stringn(prompt->text, prompt->n_text)
                                 : json_null()) &&
        !json_object_set_new(line, "ids",
                             json_ids(prompt->ids.id, prompt->ids.n)) &&
        !json_object_set_new(line, "positions",
                             json_ids(mqar->position, mqar->n_pair)) &&
        !json_object_set_new(line, "values",
                             json_ids(mqar->value, mqar->n_pair));

    return dump(line, is_whole, to);
}

enum status eval_show_answer(const struct eval_item *item,
                             const struct eval_prompt *prompt,
                             const struct eval_outcome *outcome, FILE *to)
{
    json_t *line = json_item(item, prompt);
    const bool is_whole =
        line &&
        !json_object_set_new(
            line, "answer",
            outcome->answer ? json_stringn(outcome->answer, outcome->n_answer)
                            : json_null()) &&
        !json_object_set_new(line, "hits", json_integer(outcome->n_hit)) &&
        !json_object_set_new(line, "of", json_integer(outcome->n_expected));

    return dump(line, is_whole, to);
}
