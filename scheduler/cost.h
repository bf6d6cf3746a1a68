#ifndef SCHEDULER_COST_H
#define SCHEDULER_COST_H
/*
 * How long a pass of the model takes, before it is run: a fixed part, and so
 * much per row, per position that a row attends to, and per row of logits.
 * Passes of decode rows stream the weights and passes of prompts multiply by
 * them, so each kind has its own four coefficients. They are fitted to what
 * passes took: least squares of the relative error, older passes counting less
 * and less, held non-negative and near the machine's rough figures wherever
 * the passes so far do not tell them apart. A stalled pass moves a fit little;
 * a machine that has become slower moves it within some hundred passes.
 *
 * Pure: same calls, same bits.
 */
#include <stdbool.h>
#include <stdint.h>

#define COST_TERM 4u /* fixed, row, attended, logit */

enum cost_kind {
    COST_DECODE, /* one row of each session */
    COST_PROMPT, /* chunks of prompts */
};

struct cost_pass { /* what a pass does */
    enum cost_kind kind;
    uint32_t n_row, n_logit;
    double n_attended; /* positions, summed over rows: cost_attended() */
};

struct cost_fit {
    double weight[COST_TERM]; /* microseconds per unit, >= 0 */
    double prior[COST_TERM];  /* the same by the machine's rough figures */
    double moment[COST_TERM][COST_TERM], product[COST_TERM];
    double measured, expected; /* whose ratio corrects the prior as a whole */
    double spread; /* typical relative error: beyond some of it, an outlier */
    uint64_t n_pass;
};
struct cost {
    struct cost_fit decode, prompt;
};

/* Of the model and the machine, roughly: passes correct it. All above 0. */
struct cost_prior {
    double weight_bytes;   /* read by a pass of one row, the head included */
    double row_flop;       /* of one row without attention and head */
    double attended_flop;  /* of one row for one position it attends to */
    double attended_bytes; /* keys and values of one position */
    double logit_flop;     /* of one row of logits */
    double flop_per_us;    /* of the machine, in products of many rows */
    double byte_per_us;    /* of its memory */
};

void cost_init(struct cost *cost, const struct cost_prior *prior);
/* Learn from a pass that took `us`; nothing if us <= 0. */
void cost_observe(struct cost *cost, const struct cost_pass *pass, double us);
double cost_us(const struct cost *cost, const struct cost_pass *pass);

/* Positions that n rows from `position` on attend to. */
double cost_attended(uint64_t position, uint64_t n);
/* What n tokens from `position` on add to a pass of prompts. */
double cost_add_us(const struct cost *cost, uint64_t position, uint64_t n);
/* A prompt's tokens [from, to) in passes of pass_rows, alone; 0 if from >= to.
 */
double cost_prefill_us(const struct cost *cost, uint64_t from, uint64_t to,
                       uint32_t pass_rows);
/*
 * The longest chunk from `position` on, of at most n_max tokens, that adds at
 * most budget_us; it ends on the kernels' grid where it can. At least 1, but 0
 * if n_max is.
 */
uint64_t cost_chunk(const struct cost *cost, uint64_t position, uint64_t n_max,
                    double budget_us);
#endif
