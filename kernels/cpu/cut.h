#ifndef KERNELS_CPU_CUT_H
#define KERNELS_CPU_CUT_H
/*
 * Whose rows are whose. An operator reads what the one before it wrote, and a
 * line that another core wrote comes at a sixth of the rate of one's own, after
 * 200 ns if the two cores share no cache. So in every operator that goes by
 * rows a thread has the same run of them, in tasks that others may take over.
 */
#include "kernels/pool.h"

struct cut {
    uint32_t n_row, n_thread, n_task;
};

/* Tasks of at most `most` rows, as many for each thread. */
static inline struct cut cut_rows(const struct pool *pool, uint32_t n_row,
                                  uint32_t most)
{
    const uint32_t n_thread = pool_n_thread(pool);
    const uint32_t n_each = (n_row + n_thread - 1) / n_thread;

    return (struct cut){n_row, n_thread, (n_each + most - 1) / most * n_thread};
}

/* Which of n things in a row task number `task` of n does: each thread's own
 * tasks do a run of them, from the first to the last. */
static inline uint32_t cut_turn(uint32_t task, uint32_t n, uint32_t n_thread)
{
    const uint32_t thread = task % n_thread, longer = n % n_thread;

    return thread * (n / n_thread) + (thread < longer ? thread : longer) +
           task / n_thread;
}

/* Rows [first, end), which may be none. */
struct cut_part {
    uint32_t first, end;
};

static inline struct cut_part cut_part(struct cut cut, uint32_t task)
{
    const uint64_t at = cut_turn(task, cut.n_task, cut.n_thread);

    return (struct cut_part){
        (uint32_t)(cut.n_row * at / cut.n_task),
        (uint32_t)(cut.n_row * (at + 1) / cut.n_task),
    };
}
#endif
