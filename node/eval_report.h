#ifndef NODE_EVAL_REPORT_H
#define NODE_EVAL_REPORT_H
/*
 * Scores as rows: TSV with one row per task, length and depth, and one over all
 * depths; samples as text or JSON; and a picture (eval_plot.c).
 */
#include "node/eval_fit.h"
#include "node/eval_run.h"
#include "node/eval_score.h"

#include <stdio.h>

#define EVAL_DEPTH_ALL UINT32_MAX

/* What all rows of one run have in common. */
struct eval_about {
    const char *model, *numerics, *policy;
    uint64_t seed;
    uint32_t n_depth;
};

/* Outcomes of one task at one length and, unless EVAL_DEPTH_ALL, one depth. */
struct eval_tally {
    const struct eval_task *task;
    uint32_t length, depth; /* depth: step of n_depth */
    uint32_t n_sample, n_hit, n_expected;
    uint64_t n_token; /* of all prompts */
};

void eval_tally_add(struct eval_tally *tally,
                    const struct eval_outcome *outcome);

/* Hits of what was expected, and the trials that its interval counts: samples,
   or positions where a task has thousands of those. */
double eval_share(const struct eval_tally *tally);
uint64_t eval_trials(const struct eval_tally *tally);

/* "0.25", or "-" for EVAL_DEPTH_ALL. */
void eval_format_depth(uint32_t depth, uint32_t n_depth, char out[16]);

/* Hits and of are what scores are made of, so rows can be added up later. */
extern const char eval_row_header[]; /* without its newline */
void eval_report_header(FILE *to);
void eval_report_row(const struct eval_about *about,
                     const struct eval_tally *tally, FILE *to);

/*
 * Read rows back, behind those that `table` has, to draw runs together.
 *   INVALID_ARGUMENT    no such header, a line that is no row, an unknown task,
 *                       rows of another model, policy or number of depths, too
 *                       many: "x.tsv line 3: ..."; table keeps what it has
 */
#define EVAL_ROW_MAX 8192u
struct eval_table {
    struct eval_about about; /* of the first row; its texts are below */
    char model[128], numerics[128], policy[POLICY_TEXT_SIZE];
    struct eval_tally *row; /* [EVAL_ROW_MAX], the caller's */
    uint32_t n_row;
};
MUST_CHECK enum status eval_read_rows(const char *name, FILE *from,
                                      struct eval_table *table);

/* A sample for people, and as one line of JSON; one line for each answer.
 *   RESOURCE_EXHAUSTED  no memory; INTERNAL  the file cannot be written */
MUST_CHECK enum status eval_show_text(const struct eval_item *item,
                                      const struct eval_prompt *prompt,
                                      FILE *to);
MUST_CHECK enum status eval_show_json(const struct eval_item *item,
                                      const struct eval_prompt *prompt,
                                      FILE *to);
MUST_CHECK enum status eval_show_answer(const struct eval_item *item,
                                        const struct eval_prompt *prompt,
                                        const struct eval_outcome *outcome,
                                        FILE *to);

/*
 * An SVG: a row for each task, a column for each length, both in the order of
 * their first tally; in each cell the score over a strip of its depths.
 */
void eval_plot(const struct eval_about *about, const struct eval_tally *tally,
               uint32_t n_tally, FILE *to);
#endif
