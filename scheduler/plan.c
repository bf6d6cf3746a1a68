#include "scheduler/plan.h"

#include "kernels/backend.h"

#include <stdlib.h>

uint32_t plan_row_max(uint32_t n_entry, uint32_t step_tokens)
{
    return n_entry + PLAN_IDLE_FACTOR * step_tokens;
}

/* 0: passed over too long; 1: ends within this step's share; 2: the rest. */
static uint32_t rank(const struct plan_entry *entry,
                     const struct plan_limits *limits)
{
    if (limits->step - entry->served_step > PLAN_WAIT_MAX)
        return 0;
    return entry->n_pending <= limits->step_tokens ? 1 : 2;
}

static bool is_before(const struct plan_entry *entry, uint32_t a, uint32_t b,
                      const struct plan_limits *limits)
{
    uint32_t rank_a = rank(&entry[a], limits), rank_b = rank(&entry[b], limits);

    if (rank_a != rank_b)
        return rank_a < rank_b;
    if (entry[a].served_step != entry[b].served_step)
        return entry[a].served_step < entry[b].served_step;
    return a < b;
}

/* Insertion sort: at most 256 prompts, mostly in order from step to step. */
static void sort(const struct plan_entry *entry,
                 const struct plan_limits *limits, uint32_t *order, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint32_t moving = order[i], at = i;
        while (at > 0 && is_before(entry, moving, order[at - 1], limits)) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = moving;
    }
}

/* A chunk of at most `budget` tokens that ends well. */
static uint64_t cut(const struct plan_entry *entry, uint64_t budget,
                    uint32_t cut_grid)
{
    uint64_t n = entry->n_pending, end;
    uint64_t to_grid = cut_grid - entry->position % cut_grid;

    if (n > to_grid)
        n = to_grid;
    if (n <= budget)
        return n;
    end = (entry->position + budget) / GRID * GRID;
    return end > entry->position ? end - entry->position : budget;
}

static int by_entry(const void *a, const void *b)
{
    const struct plan_chunk *x = a, *y = b;

    return (x->entry > y->entry) - (x->entry < y->entry);
}

uint32_t plan_step(const struct plan_entry *entry, uint32_t n_entry,
                   const struct plan_limits *limits, uint32_t *order,
                   struct plan_chunk *out)
{
    uint32_t n_chunk = 0, n_prompt = 0, n_decode;
    uint64_t budget = limits->step_tokens;

    for (uint32_t i = 0; i < n_entry; i++) {
        if (entry[i].n_pending == 1)
            out[n_chunk++] = (struct plan_chunk){i, 1};
        else
            order[n_prompt++] = i;
    }
    n_decode = n_chunk;
    if (n_decode == 0)
        budget *= PLAN_IDLE_FACTOR;
    sort(entry, limits, order, n_prompt);
    for (uint32_t i = 0; i < n_prompt && budget > 0; i++) {
        uint64_t n = cut(&entry[order[i]], budget, limits->cut_grid);
        out[n_chunk++] = (struct plan_chunk){order[i], (uint32_t)n};
        budget -= n;
    }
    qsort(out + n_decode, n_chunk - n_decode, sizeof(*out), by_entry);
    return n_chunk;
}
