/*
 * A machine whose passes take what we say: the fit has to find it out.
 */
#include "kernels/backend.h"
#include "scheduler/cost.h"

#include <criterion/criterion.h>
#include <math.h>

static const struct cost_prior prior = {.weight_bytes = 1e9,
                                        .row_flop = 1e9,
                                        .attended_flop = 1e5,
                                        .attended_bytes = 1e4,
                                        .logit_flop = 5e8,
                                        .flop_per_us = 1e6,
                                        .byte_per_us = 1e4};

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static struct cost_pass any_prompt(uint64_t *random)
{
    uint32_t n = 1 + (uint32_t)(next(random) % 512);

    return (struct cost_pass){.kind = COST_PROMPT,
                              .n_row = n,
                              .n_logit = (uint32_t)(next(random) % 2),
                              .n_attended =
                                  cost_attended(next(random) % 50000, n)};
}

/* Four times the prior, but attention, which takes as the prior says. */
static double truth(const struct cost_pass *p)
{
    return 400000 + 4000.0 * p->n_row + 0.1 * p->n_attended +
           2000.0 * p->n_logit;
}

static void teach(struct cost *cost, uint64_t *random, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct cost_pass pass = any_prompt(random);
        double noise = 0.9 + 0.2 * (double)(next(random) % 1000) / 1000;
        cost_observe(cost, &pass, truth(&pass) * noise);
    }
}

static double worst_error(const struct cost *cost)
{
    uint64_t random = 99;
    double worst = 0;

    for (uint32_t i = 0; i < 200; i++) {
        struct cost_pass pass = any_prompt(&random);
        double error = fabs(cost_us(cost, &pass) / truth(&pass) - 1);
        worst = error > worst ? error : worst;
    }
    return worst;
}

Test(cost, begins_with_the_prior)
{
    struct cost cost;
    struct cost_pass pass = {COST_DECODE, 2, 1, 300};

    cost_init(&cost, &prior);
    cr_assert_float_eq(cost_us(&cost, &pass), 1e5 + 2 * 1000 + 300 * 1 + 500,
                       1e-6);
    pass.kind = COST_PROMPT;
    cr_assert_float_eq(cost_us(&cost, &pass), 1e5 + 2 * 1000 + 300 * 0.1 + 500,
                       1e-6);
}

Test(cost, learns_what_passes_take)
{
    struct cost cost;
    uint64_t random = 1;

    cost_init(&cost, &prior);
    teach(&cost, &random, 200);
    cr_assert_lt(worst_error(&cost), 0.1, "%f", worst_error(&cost));
    cr_assert_eq(cost.decode.n_pass, 0);
}

/* One pass says how fast the machine is, in what it did and did not do. */
Test(cost, the_first_pass_corrects_the_prior_as_a_whole)
{
    struct cost cost;
    struct cost_pass pass = {COST_PROMPT, 512, 1, 1e5}, longer = pass;
    double before;

    longer.n_attended = 1e8;
    cost_init(&cost, &prior);
    before = cost_us(&cost, &longer);
    cost_observe(&cost, &pass, 5 * cost_us(&cost, &pass));
    cr_assert_float_eq(cost_us(&cost, &longer), 5 * before, 0.3 * before);
}

Test(cost, a_stalled_pass_moves_little_and_a_slower_machine_is_noticed)
{
    struct cost cost;
    uint64_t random = 1;
    struct cost_pass pass = {COST_PROMPT, 300, 0, 1e6};
    double before;

    cost_init(&cost, &prior);
    teach(&cost, &random, 200);
    before = cost_us(&cost, &pass);
    cost_observe(&cost, &pass, 1000 * before);
    cr_assert_lt(cost_us(&cost, &pass), 1.1 * before);
    for (uint32_t i = 0; i < 250; i++) {
        pass = any_prompt(&random);
        cost_observe(&cost, &pass, 3 * truth(&pass));
    }
    for (uint32_t i = 0; i < 20; i++) {
        pass = any_prompt(&random);
        cr_assert_float_eq(cost_us(&cost, &pass) / truth(&pass), 3, 0.3);
    }
}

Test(cost, weights_stay_finite_and_not_negative)
{
    struct cost cost;
    uint64_t random = 3;

    cost_init(&cost, &prior);
    for (uint32_t i = 0; i < 3000; i++) {
        struct cost_pass pass = any_prompt(&random);
        /* Longer passes take less: no plane with such weights exists. */
        cost_observe(&cost, &pass, 1e9 / (1 + pass.n_attended));
        cost_observe(&cost, &pass, i % 3 ? NAN : -1);
        for (uint32_t k = 0; k < COST_TERM; k++)
            cr_assert(cost.prompt.weight[k] >= 0 &&
                      isfinite(cost.prompt.weight[k]));
    }
}

Test(cost, attended_counts_each_row_and_itself)
{
    cr_assert_float_eq(cost_attended(0, 1), 1, 0);
    cr_assert_float_eq(cost_attended(10, 3), 11 + 12 + 13, 0);
}

/* By trying them all. */
Test(cost, a_chunk_is_the_longest_that_fits)
{
    struct cost cost;
    uint64_t random = 5;

    cost_init(&cost, &prior);
    for (uint32_t round = 0; round < 500; round++) {
        uint64_t position = next(&random) % 3000, most = next(&random) % 300;
        uint64_t longest = 0, n, end;
        double budget = (double)(next(&random) % 400000);
        for (uint64_t i = 1; i <= most; i++)
            if (cost_add_us(&cost, position, i) <= budget)
                longest = i;
        n = cost_chunk(&cost, position, most, budget);
        if (longest == most) {
            cr_assert_eq(n, most);
            continue;
        }
        longest = longest ? longest : 1;
        end = (position + longest) / GRID * GRID;
        cr_assert_eq(n, end > position ? end - position : longest);
    }
}

Test(cost, a_prefill_is_the_sum_of_its_passes)
{
    struct cost cost;
    double sum = 0;

    cost_init(&cost, &prior);
    for (uint64_t at = 100; at < 1700; at += 512) {
        uint64_t n = 1700 - at < 512 ? 1700 - at : 512;
        struct cost_pass pass = {COST_PROMPT, (uint32_t)n, at + n == 1700,
                                 cost_attended(at, n)};
        sum += cost_us(&cost, &pass);
    }
    cr_assert_float_eq(cost_prefill_us(&cost, 100, 1700, 512), sum, 1e-6 * sum);
    cr_assert_float_eq(cost_prefill_us(&cost, 5, 5, 512), 0, 0);
}
