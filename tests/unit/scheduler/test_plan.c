/*
 * Tables of what a step must bring, written by hand, then the rules that hold
 * for any plan on random entries, then whole runs: everything is served.
 */
#include "kernels/backend.h"
#include "scheduler/plan.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#define CUT 4096u

static uint32_t planned(const struct plan_entry *entry, uint32_t n,
                        uint64_t step, struct plan_chunk *out)
{
    static uint32_t order[256];
    struct plan_limits limits = {step, 256, CUT};

    return plan_step(entry, n, &limits, order, out);
}

struct row {
    const char *what;
    struct plan_entry entry[4]; /* until n_pending is 0 */
    struct plan_chunk want[4];  /* until n_token is 0 */
};

static const struct row table[] = {
    {"nothing to do", {{0, 0, 0}}, {{0, 0}}},
    {"one reply", {{500, 1, 9}}, {{0, 1}}},
    {"a prompt alone gets four shares", {{0, 5000, 9}}, {{0, 1024}}},
    {"a prompt's end is taken whole", {{1024, 1000, 9}}, {{0, 1000}}},
    {"one share beside a reply", {{0, 5000, 9}, {7, 1, 9}}, {{1, 1}, {0, 256}}},
    {"a chunk ends on the grid",
     {{30, 5000, 9}, {7, 1, 9}},
     {{1, 1}, {0, 226}}},
    {"no chunk crosses the cut", {{4000, 900, 9}}, {{0, 96}}},
    {"short prompts first",
     {{0, 9000, 9}, {0, 100, 9}, {7, 1, 9}},
     {{2, 1}, {0, 128}, {1, 100}}},
    {"the one served longest ago first",
     {{0, 9000, 9}, {640, 9000, 7}, {7, 1, 9}},
     {{2, 1}, {1, 256}}},
    {"passed over too long: before short ones",
     {{0, 9000, 1}, {0, 100, 9}, {7, 1, 9}},
     {{2, 1}, {0, 256}}},
    {"replies in order, all of them",
     {{1, 1, 9}, {0, 300, 9}, {9, 1, 2}},
     {{0, 1}, {2, 1}, {1, 256}}},
};

Test(plan, table)
{
    for (size_t r = 0; r < sizeof(table) / sizeof(table[0]); r++) {
        const struct row *row = &table[r];
        struct plan_chunk out[4];
        uint32_t n = 0, n_want = 0, got;
        while (n < 4 && row->entry[n].n_pending)
            n++;
        while (n_want < 4 && row->want[n_want].n_token)
            n_want++;
        got = planned(row->entry, n, 10, out);
        cr_assert_eq(got, n_want, "%s: %u chunks", row->what, got);
        for (uint32_t i = 0; i < got; i++) {
            cr_assert_eq(out[i].entry, row->want[i].entry, "%s", row->what);
            cr_assert_eq(out[i].n_token, row->want[i].n_token, "%s: %u",
                         row->what, out[i].n_token);
        }
    }
}

static uint64_t random_next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

Test(plan, rules_hold_for_any_entries)
{
    uint64_t random = 1;

    for (uint32_t round = 0; round < 3000; round++) {
        struct plan_entry entry[40];
        struct plan_chunk out[40];
        bool seen[40] = {false};
        uint32_t n = (uint32_t)(random_next(&random) % 41), n_chunk;
        uint64_t n_decode = 0, n_row = 0, n_prompt = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint64_t kind = random_next(&random) % 3;
            entry[i].position = random_next(&random) % 20000;
            entry[i].n_pending =
                kind == 0 ? 1 : 1 + random_next(&random) % (kind * 3000);
            entry[i].served_step = 100 - random_next(&random) % 20;
            n_decode += entry[i].n_pending == 1;
        }
        n_chunk = planned(entry, n, 101, out);
        for (uint32_t i = 0; i < n_chunk; i++) {
            const struct plan_entry *e = &entry[out[i].entry];
            uint64_t end = e->position + out[i].n_token;
            cr_assert_not(seen[out[i].entry]);
            seen[out[i].entry] = true;
            cr_assert(out[i].n_token >= 1 && out[i].n_token <= e->n_pending);
            cr_assert_eq(e->position / CUT, (end - 1) / CUT);
            cr_assert(i >= n_decode || e->n_pending == 1);
            if (e->n_pending > 1)
                n_prompt += out[i].n_token;
            n_row += out[i].n_token;
        }
        for (uint32_t i = 0; i < n; i++)
            cr_assert(entry[i].n_pending > 1 || seen[i]);
        cr_assert_leq(n_prompt, n_decode ? 256 : 1024);
        cr_assert_leq(n_row, plan_row_max(n, 256));
        cr_assert_eq(n_chunk > 0, n > 0);
    }
}

/* A stream of short prompts, ten steps' worth each step, beside a long one. */
Test(plan, nobody_starves)
{
    struct plan_entry entry[12];
    struct plan_chunk out[12];
    uint64_t step = 0;

    entry[0] = (struct plan_entry){0, 20000, 0};
    for (uint32_t i = 1; i < 12; i++)
        entry[i] = (struct plan_entry){0, 250, 0};
    while (entry[0].n_pending > 0) {
        uint32_t n = planned(entry, 12, ++step, out);
        for (uint32_t i = 0; i < n; i++) {
            struct plan_entry *e = &entry[out[i].entry];
            e->position += out[i].n_token;
            e->n_pending -= out[i].n_token;
            e->served_step = step;
            if (e->n_pending == 0 && e != &entry[0])
                *e = (struct plan_entry){0, 250, step};
        }
        cr_assert_lt(step, 1000);
    }
}
