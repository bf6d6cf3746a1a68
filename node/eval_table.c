/*
 * Rows of earlier runs, read back from their TSV.
 */
#include "node/eval_report.h"

#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 1024u
#define N_FIELD 16u

enum field {
    FIELD_MODEL = 1,
    FIELD_NUMERICS,
    FIELD_POLICY,
    FIELD_SEED,
    FIELD_DEPTHS,
    FIELD_TASK,
    FIELD_LENGTH,
    FIELD_DEPTH,
    FIELD_SAMPLES,
    FIELD_HITS,
    FIELD_OF,
    FIELD_TOKENS = 15,
};

/* The fields of a line, which is cut at its tabs; false unless N_FIELD. */
static bool split(char *line, char *field[N_FIELD])
{
    uint32_t n = 0;

    for (char *at = line; at; n++) {
        if (n == N_FIELD)
            return false;
        field[n] = at;
        at = strchr(at, '\t');
        if (at)
            *at++ = '\0';
    }
    return n == N_FIELD;
}

static bool read_number(const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    const unsigned long long value = strtoull(text, &end, 10);

    *out = value;
    return end != text && !*end && *text != '-' && value <= max;
}

/* The step whose text this is; false if none has it. */
static bool read_depth(const char *text, uint32_t n_depth, uint32_t *out)
{
    char step[16];

    *out = EVAL_DEPTH_ALL;
    if (strcmp(text, "-") == 0)
        return true;
    for (uint32_t i = 0; i < n_depth; i++) {
        eval_format_depth(i, n_depth, step);
        *out = i;
        if (strcmp(text, step) == 0)
            return true;
    }
    return false;
}

/* What the first row says of all rows; false if a later one says otherwise. */
static bool belongs(char *const field[N_FIELD], uint64_t n_depth, uint64_t seed,
                    struct eval_table *table)
{
    if (table->n_row)
        return strcmp(field[FIELD_MODEL], table->model) == 0 &&
               strcmp(field[FIELD_POLICY], table->policy) == 0 &&
               n_depth == table->about.n_depth;
    (void)snprintf(table->model, sizeof(table->model), "%s",
                   field[FIELD_MODEL]);
    (void)snprintf(table->numerics, sizeof(table->numerics), "%s",
                   field[FIELD_NUMERICS]);
    (void)snprintf(table->policy, sizeof(table->policy), "%s",
                   field[FIELD_POLICY]);
    table->about = (struct eval_about){table->model, table->numerics,
                                       table->policy, seed, (uint32_t)n_depth};
    return true;
}

static enum status read_row(char *line, struct eval_table *table)
{
    char *field[N_FIELD];
    uint64_t n_depth, seed, length, n_sample, n_hit, n_expected;
    struct eval_tally tally = {.n_sample = 0};
    enum status st;

    if (!split(line, field) ||
        !read_number(field[FIELD_SEED], UINT64_MAX, &seed) ||
        !read_number(field[FIELD_DEPTHS], EVAL_DEPTH_MAX, &n_depth) ||
        !read_number(field[FIELD_LENGTH], UINT32_MAX, &length) ||
        !read_number(field[FIELD_SAMPLES], UINT32_MAX, &n_sample) ||
        !read_number(field[FIELD_OF], UINT32_MAX, &n_expected) ||
        !read_number(field[FIELD_HITS], n_expected, &n_hit) ||
        !read_number(field[FIELD_TOKENS], UINT64_MAX, &tally.n_token) ||
        !n_depth ||
        !read_depth(field[FIELD_DEPTH], (uint32_t)n_depth, &tally.depth))
        return status_fail(STATUS_INVALID_ARGUMENT, "no row of an evaluation");
    st = eval_task_find(field[FIELD_TASK], strlen(field[FIELD_TASK]),
                        &tally.task);
    if (st)
        return status_fail(STATUS_INVALID_ARGUMENT, "no task '%.64s'",
                           field[FIELD_TASK]);
    if (table->n_row == EVAL_ROW_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT, "more than %u rows",
                           EVAL_ROW_MAX);
    if (!belongs(field, n_depth, seed, table))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "another model, policy or number of depths than in "
                           "the first row");
    tally.length = (uint32_t)length;
    tally.n_sample = (uint32_t)n_sample;
    tally.n_hit = (uint32_t)n_hit;
    tally.n_expected = (uint32_t)n_expected;
    table->row[table->n_row++] = tally;
    return STATUS_OK;
}

enum status eval_read_rows(const char *name, FILE *from,
                           struct eval_table *table)
{
    char line[LINE_BYTES], reason[LINE_BYTES];

    for (uint32_t n = 1; fgets(line, sizeof(line), from); n++) {
        enum status st = STATUS_OK;

        line[strcspn(line, "\n")] = '\0';
        if (n > 1)
            st = read_row(line, table);
        else if (strcmp(line, eval_row_header) != 0)
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "not the header of an evaluation");
        if (st) {
            (void)snprintf(reason, sizeof(reason), "%s", status_reason());
            return status_fail(st, "%s line %u: %s", name, n, reason);
        }
    }
    if (ferror(from))
        return status_fail(STATUS_INVALID_ARGUMENT, "%s cannot be read", name);
    return STATUS_OK;
}
