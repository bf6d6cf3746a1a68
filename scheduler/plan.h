#ifndef SCHEDULER_PLAN_H
#define SCHEDULER_PLAN_H
/*
 * Which rows the next step brings: a pure function of what waits. Every
 * session whose log is one token ahead of its memory gets one row (decode);
 * the rest of the step is shared by prompts in chunks, so that a long prompt
 * never stalls running replies (chunked prefill and stall-free batching:
 * Agrawal et al. 2024, arXiv:2403.02310). Where a chunk ends cannot be seen in
 * any result (E2); ends on the grid only save work.
 */
#include <stdbool.h>
#include <stdint.h>

/* Steps that a prompt may be passed over before it goes in front of all. */
#define PLAN_WAIT_MAX 8u
/* Prompts get so many times step_tokens when no reply waits for its next. */
#define PLAN_IDLE_FACTOR 4u

struct plan_entry {       /* one session with something to consume */
    uint64_t position;    /* tokens that its memory has consumed */
    uint64_t n_pending;   /* tokens to consume, at least 1 */
    uint64_t served_step; /* when it last got rows; or was started */
};

struct plan_chunk {
    uint32_t entry;
    uint32_t n_token; /* the entry's next so many tokens, at least 1 */
};

struct plan_limits {
    uint64_t step;        /* number of this step, above all served_step */
    uint32_t step_tokens; /* prompt tokens while others decode */
    uint32_t cut_grid;    /* no chunk crosses a multiple of this */
};

/* Rows that plan_step() gives at most for n entries. */
uint32_t plan_row_max(uint32_t n_entry, uint32_t step_tokens);

/*
 * out: [n_entry], at most one chunk per entry, one-token chunks first, each
 * group in ascending order of entry. Returns how many. order: [n_entry]
 * scratch. Not 0 unless n_entry is.
 */
uint32_t plan_step(const struct plan_entry *entry, uint32_t n_entry,
                   const struct plan_limits *limits, uint32_t *order,
                   struct plan_chunk *out);
#endif
