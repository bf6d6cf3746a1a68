#include "node/eval_run.h"

#include "node/eval_score.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void eval_outcome_release(struct eval_outcome *outcome)
{
    free(outcome->answer);
    memset(outcome, 0, sizeof(*outcome));
}

/* One prompt and where its outcome goes. */
struct member {
    const struct eval_prompt *prompt;
    struct eval_outcome *outcome;
};

struct run {
    struct eval_runner *runner;
    const struct eval_task *task;
};

static enum status feed(const struct run *run, const struct ids *ids,
                        uint64_t until, const float **out)
{
    struct solo *solo = run->runner->solo;
    const uint64_t from = memory_position(solo->memory);

    assert(from < until && until <= ids->n);
    run->runner->n_computed += until - from;
    return solo_feed(solo, ids->id + from, until - from, out);
}

/* ----------------------------------------------------------------- answers */

/* Greedy tokens to `to`, up to the first special one. */
static enum status generate(const struct run *run, const float *logit, FILE *to)
{
    const struct tokenizer *tokenizer = run->runner->tokenizer;
    struct solo *solo = run->runner->solo;
    const uint32_t n_vocab = model_config(solo->model)->n_vocab;
    struct detokenizer detokenizer = {0};
    char piece[DETOKENIZER_OUT_MAX];

    for (uint32_t i = 0; i < run->task->n_answer; i++) {
        const uint32_t token = solo_argmax(logit, n_vocab);

        if (tokenizer_is_special(tokenizer, token))
            break;
        (void)fwrite(
            piece, 1,
            detokenizer_push(&detokenizer, tokenizer, token, true, piece), to);
        if (i + 1 < run->task->n_answer) {
            const enum status st = solo_feed(solo, &token, 1, &logit);

            if (st)
                return st;
        }
    }
    (void)fwrite(piece, 1, detokenizer_finish(&detokenizer, piece), to);
    return STATUS_OK;
}

/* The rest of a prompt is read for an excerpt, and that instead of it. */
static enum status feed_excerpt(const struct run *run, const struct ids *ids,
                                const float **out)
{
    struct solo *solo = run->runner->solo;
    uint32_t *chosen = malloc(ids->n * sizeof(*chosen)), n = 0;
    enum status st;

    if (!chosen)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for an excerpt of %zu tokens", ids->n);
    st = solo_choose(solo, &run->runner->excerpt, ids, chosen, &n);
    for (uint32_t i = 0; i < n; i++)
        chosen[i] = ids->id[chosen[i]];
    if (!st)
        st = solo_feed(solo, chosen, n, out);
    free(chosen);
    return st;
}

/* What is left of one prompt, then its answer, judged. */
static enum status finish(const struct run *run, const struct member *member)
{
    struct eval_outcome *outcome = member->outcome;
    const struct eval_expected *expected = &member->prompt->expected;
    const float *logit;
    FILE *to;
    enum status st;

    memory_end_prompt(run->runner->solo->memory, member->prompt->ids.n);
    st = run->runner->excerpt.n_keep
             ? feed_excerpt(run, &member->prompt->ids, &logit)
             : feed(run, &member->prompt->ids, member->prompt->ids.n, &logit);
    if (st)
        return st;
    to = open_memstream(&outcome->answer, &outcome->n_answer);
    if (!to)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for an answer");
    st = generate(run, logit, to);
    if (fclose(to) && !st)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for an answer");
    if (st)
        return st;
    outcome->n_expected = expected->n;
    outcome->n_hit = eval_hits(run->task->score, outcome->answer,
                               outcome->n_answer, expected);
    return STATUS_OK;
}

/* ----------------------------------------------------------------- sharing */

static int compare_ids(const void *a, const void *b)
{
    const struct ids *x = &((const struct member *)a)->prompt->ids;
    const struct ids *y = &((const struct member *)b)->prompt->ids;
    const size_t n = x->n < y->n ? x->n : y->n;

    for (size_t i = 0; i < n; i++)
        if (x->id[i] != y->id[i])
            return x->id[i] < y->id[i] ? -1 : 1;
    return (x->n > y->n) - (x->n < y->n);
}

/*
 * Tokens that all n sorted members begin with: what the first and the last one
 * share. At most all but one of a prompt, whose last token gives its logits.
 */
static uint64_t n_common(const struct member *member, uint32_t n)
{
    const struct ids *a = &member[0].prompt->ids;
    const struct ids *b = &member[n - 1].prompt->ids;
    const uint64_t most = (a->n < b->n ? a->n : b->n) - 1;
    uint64_t i = 0;

    while (i < most && a->id[i] == b->id[i])
        i++;
    return i;
}

/* From `from`, the end of the members that have its token at `at`, too. */
static uint32_t class_end(const struct member *member, uint32_t n,
                          uint32_t from, uint64_t at)
{
    uint32_t to = from + 1;

    while (to < n &&
           member[to].prompt->ids.id[at] == member[from].prompt->ids.id[at])
        to++;
    return to;
}

static enum status walk(const struct run *run, struct member *member,
                        uint32_t n);

/* The same from a copy of the solo's memory, which stays as it is. */
static enum status walk_fork(const struct run *run, struct member *member,
                             uint32_t n)
{
    struct solo *solo = run->runner->solo;
    struct memory *trunk = solo->memory, *branch = NULL;
    enum status st = solo_fork(solo, &branch);

    if (st)
        return st;
    solo->memory = branch;
    st = walk(run, member, n);
    memory_destroy(solo->memory);
    solo->memory = trunk;
    return st;
}

/*
 * Members, sorted, that all begin with what the solo has consumed: go on to
 * where they part, fork for all groups but the largest, and follow that one.
 * A fork has at most half of the members, so log2(n) memories are alive.
 */
static enum status walk(const struct run *run, struct member *member,
                        uint32_t n)
{
    struct solo *solo = run->runner->solo;
    enum status st = STATUS_OK;

    while (n > 1 && !st) {
        const uint64_t at = n_common(member, n);
        /* One prompt ends here: then each goes on alone. */
        const bool is_end = class_end(member, n, 0, at) == n;
        uint32_t largest = 0, n_largest = 0, to;
        const float *logit;

        if (at > memory_position(solo->memory))
            st = feed(run, &member->prompt->ids, at, &logit);
        for (uint32_t i = 0; i < n; i = to) {
            to = is_end ? i + 1 : class_end(member, n, i, at);
            if (to - i > n_largest) {
                largest = i;
                n_largest = to - i;
            }
        }
        for (uint32_t i = 0; i < n && !st; i = to) {
            to = is_end ? i + 1 : class_end(member, n, i, at);
            if (i != largest)
                st = walk_fork(run, member + i, to - i);
        }
        member += largest;
        n = n_largest;
    }
    return st ? st : finish(run, member);
}

/* --------------------------------------------------------------- positions */

struct positions {
    const struct eval_mqar *mqar;
    struct eval_outcome *outcome;
    uint32_t n_vocab;
};

static void take(void *arg, uint64_t first_token, uint32_t n_row,
                 const float *logit)
{
    struct positions *positions = (struct positions *)arg;
    const struct eval_mqar *mqar = positions->mqar;

    for (uint32_t i = 0; i < mqar->n_pair; i++) {
        const uint64_t at = mqar->position[i];

        if (at >= first_token && at - first_token < n_row)
            positions->outcome->n_hit +=
                solo_argmax(logit + (at - first_token) * positions->n_vocab,
                            positions->n_vocab) == mqar->value[i];
    }
}

static enum status run_positions(const struct run *run,
                                 const struct member *member)
{
    struct solo *solo = run->runner->solo;
    const struct ids *ids = &member->prompt->ids;
    struct positions positions = {&member->prompt->mqar, member->outcome,
                                  model_config(solo->model)->n_vocab};

    member->outcome->n_expected = member->prompt->mqar.n_pair;
    run->runner->n_computed += ids->n;
    return solo_feed_all(solo, ids->id, ids->n, take, &positions);
}

enum status eval_run(struct eval_runner *runner, const struct eval_task *task,
                     const struct eval_prompt *prompt, uint32_t n,
                     struct eval_outcome *outcome)
{
    const struct run run = {runner, task};
    struct member member[EVAL_SAMPLE_MAX];
    enum status st = STATUS_OK;

    assert(n >= 1 && n <= EVAL_SAMPLE_MAX);
    for (uint32_t i = 0; i < n; i++) {
        member[i] = (struct member){&prompt[i], &outcome[i]};
        outcome[i].n_prompt = (uint32_t)prompt[i].ids.n;
        runner->n_token += prompt[i].ids.n;
    }
    if (task->score != EVAL_POSITIONS && runner->shares) {
        qsort(member, n, sizeof(*member), compare_ids);
        st = solo_restart(runner->solo);
        return st ? st : walk(&run, member, n);
    }
    for (uint32_t i = 0; i < n && !st; i++) {
        st = solo_restart(runner->solo);
        if (!st && task->score == EVAL_POSITIONS)
            st = run_positions(&run, &member[i]);
        else if (!st)
            st = walk(&run, &member[i], 1);
    }
    return st;
}
