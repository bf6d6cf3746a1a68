/*
 * Whose prompt goes next and how much of it: tables by hand where a token
 * costs a microsecond, then rules for any requests.
 */
#include "kernels/backend.h"
#include "scheduler/plan.h"

#include <criterion/criterion.h>

struct fixture {
    struct cost cost;
    struct plan_rules rules;
    struct plan_rank rank[64];
    struct plan_chunk out[64];
};

static void init(struct fixture *f)
{
    *f = (struct fixture){.rules = {.now_us = 100000,
                                    .pass_rows = 512,
                                    .least_rows = 64,
                                    .pass_us = 1000,
                                    .cut_grid = 4096,
                                    .base_us = 100}};
    f->cost.prompt.weight[1] = 1;
    f->rules.cost = &f->cost;
}

static struct plan_request prompt(uint64_t position, uint64_t n_pending)
{
    return (struct plan_request){.position = position,
                                 .n_pending = n_pending,
                                 .arrive_us = 100000,
                                 .target_us = 100100 + 4 * n_pending};
}

static uint32_t planned(struct fixture *f, const struct plan_request *r,
                        uint32_t n)
{
    return plan_prompt(r, n, &f->rules, f->rank, f->out);
}

Test(plan, a_pass_holds_what_its_rows_and_time_allow)
{
    struct fixture f;
    struct plan_request r[4] = {prompt(0, 5000)};

    init(&f);
    cr_assert_eq(planned(&f, r, 0), 0);
    cr_assert_eq(planned(&f, r, 1), 1);
    cr_assert_eq(f.out[0].n_token, 512);
    r[0].position = 30; /* to the grid */
    cr_assert_eq(planned(&f, r, 1), 1);
    cr_assert_eq(f.out[0].n_token, 482);
    r[0].position = 4000; /* not over the cut */
    planned(&f, r, 1);
    cr_assert_eq(f.out[0].n_token, 96);
    r[0].position = 0;
    f.rules.pass_us = 200;
    planned(&f, r, 1);
    cr_assert_eq(f.out[0].n_token, 192);
    f.rules.pass_us = 3; /* but so many are always worth it */
    planned(&f, r, 1);
    cr_assert_eq(f.out[0].n_token, 64);
    f.cost.prompt.weight[0] = 40; /* as much as the fixed part is worth */
    planned(&f, r, 1);
    cr_assert_eq(f.out[0].n_token, 320);
    r[0] = prompt(0, 1);
    cr_assert_eq(planned(&f, r, 1), 0);
}

Test(plan, short_prompts_share_a_pass)
{
    struct fixture f;
    struct plan_request r[4] = {prompt(0, 5000), prompt(0, 100), prompt(9, 1),
                                prompt(0, 50)};

    init(&f);
    for (uint32_t i = 0; i < 4; i++)
        r[i].arrive_us -= 60, r[i].target_us -= 60;
    cr_assert_eq(planned(&f, r, 4), 3);
    cr_assert_eq(f.out[0].entry, 0);
    cr_assert_eq(f.out[0].n_token, 320); /* 362, to the grid */
    cr_assert_eq(f.out[1].entry, 1);
    cr_assert_eq(f.out[1].n_token, 100);
    cr_assert_eq(f.out[2].entry, 3);
    cr_assert_eq(f.out[2].n_token, 50);
}

static uint32_t first(struct fixture *f, const struct plan_request *r,
                      uint32_t n)
{
    uint32_t out[1];

    cr_assert_eq(plan_start(r, n, &f->rules, f->rank, 1, out), 1);
    return out[0];
}

Test(plan, the_order_is_priority_tenant_slack_arrival)
{
    struct fixture f;
    struct fair *fair = NULL;
    struct plan_request r[2] = {prompt(0, 500), prompt(0, 500)};

    init(&f);
    cr_assert_eq(first(&f, r, 2), 0);
    r[1].arrive_us--;
    r[1].target_us--;
    cr_assert_eq(first(&f, r, 2), 1);
    r[0].target_us -= 1000; /* less slack */
    cr_assert_eq(first(&f, r, 2), 0);
    cr_assert_eq(fair_create(4, &fair), STATUS_OK);
    f.rules.fair = fair;
    r[0].tenant = fair_enter(fair, "a");
    r[1].tenant = fair_enter(fair, "b");
    fair_charge(fair, r[0].tenant, 1, 0);
    cr_assert_eq(first(&f, r, 2), 1);
    r[0].priority = 1;
    cr_assert_eq(first(&f, r, 2), 0);
    fair_destroy(fair);
}

Test(plan, tokens_of_a_pass_count_for_its_tenants_at_once)
{
    struct fixture f;
    struct fair *fair = NULL;
    struct plan_request r[4];
    uint32_t out[4];

    init(&f);
    cr_assert_eq(fair_create(4, &fair), STATUS_OK);
    f.rules.fair = fair;
    for (uint32_t i = 0; i < 4; i++) {
        r[i] = prompt(0, 100);
        r[i].tenant = fair_enter(fair, i < 3 ? "a" : "b");
    }
    cr_assert_eq(plan_start(r, 4, &f.rules, f.rank, 4, out), 4);
    cr_assert_eq(out[0], 0);
    cr_assert_eq(out[1], 3);
    cr_assert_eq(out[2], 1);
    cr_assert_eq(plan_start(r, 4, &f.rules, f.rank, 9, out), 4);
    fair_destroy(fair);
}

Test(plan, promises_go_before_priority)
{
    struct fixture f;
    struct plan_request r[2] = {prompt(0, 500), prompt(0, 500)};

    init(&f);
    r[0].priority = 100;
    r[1].arrive_us = 90000;
    r[1].target_us = r[1].deadline_us = 120000; /* a third is spent */
    cr_assert_eq(first(&f, r, 2), 0);
    r[1].target_us = r[1].deadline_us = 110500;
    cr_assert_eq(first(&f, r, 2), 1);
    r[1].priority = -1;
    cr_assert_eq(first(&f, r, 2), 0);
    r[1].priority = 0;
    r[1].deadline_us = 100400; /* it cannot be kept */
    r[1].target_us = 90300;
    cr_assert_eq(first(&f, r, 2), 0);
    f.rules.patience_us = 9701;
    cr_assert_eq(first(&f, r, 2), 0);
    f.rules.patience_us = 9699;
    cr_assert_eq(first(&f, r, 2), 1);
}

Test(plan, who_is_due_goes_by_deadline_and_patience_comes_behind)
{
    struct fixture f;
    struct plan_request r[3] = {prompt(0, 500), prompt(0, 500), prompt(0, 500)};

    init(&f);
    for (uint32_t i = 0; i < 3; i++) {
        r[i].arrive_us = 90000;
        r[i].target_us = 92000;
    }
    f.rules.patience_us = 1000; /* all are */
    r[1].deadline_us = 109000;
    r[2].deadline_us = 108000;
    cr_assert_eq(first(&f, r, 3), 2);
    r[2].deadline_us = 110000;
    cr_assert_eq(first(&f, r, 3), 1);
    r[1].deadline_us = r[2].deadline_us = 100400; /* they cannot be kept */
    r[0].priority = 1;                            /* patience counts alike */
    r[0].target_us = 91999;
    cr_assert_eq(first(&f, r, 3), 0);
}

Test(plan, full_time_before_a_deadline_makes_all_up_to_it_due)
{
    struct fixture f;
    struct plan_claim claim[4];
    struct plan_request r[4] = {prompt(0, 10), prompt(0, 1000), prompt(0, 1000),
                                prompt(0, 1000)};

    init(&f);
    f.rules.claim = claim;
    f.rules.prompt_share = 0.5; /* so each of the long ones takes 2000 */
    r[0].priority = 100;
    r[1].deadline_us = 100000 + 9000;
    r[2].deadline_us = 100000 + 8000;
    r[3].deadline_us = 100000 + 60000;
    for (uint32_t i = 1; i < 4; i++)
        r[i].target_us = r[i].deadline_us;
    cr_assert_eq(first(&f, r, 4), 0);
    cr_assert_eq(plan_claims(r, 4, &f.rules), 3);
    cr_assert_eq(claim[0].entry, 2);
    cr_assert_eq(claim[1].entry, 1);
    cr_assert_float_eq(claim[1].us, 2000, 1e-6);
    /* 1.6 times 4000 do not fit: neither can wait, the earlier one first. */
    r[1].deadline_us = 100000 + 6300;
    r[2].deadline_us = 100000 + 6000;
    cr_assert_eq(first(&f, r, 4), 2);
    f.rules.prompt_share = 1;
    cr_assert_eq(first(&f, r, 4), 0);
    f.rules.place_us = 2000; /* nor can two starts */
    cr_assert_eq(first(&f, r, 4), 2);
    r[2].priority = -1; /* to whom nothing was promised */
    cr_assert_eq(first(&f, r, 4), 0);
}

/* Of two equals the one under way goes on; a short one passes both. */
Test(plan, equals_one_by_one_and_short_ones_at_once)
{
    struct fixture f;
    struct plan_request r[3] = {prompt(0, 50000), prompt(0, 50000),
                                prompt(0, 10)};
    uint32_t n_switch = 0, last = 0;

    init(&f);
    r[2].arrive_us = 200000; /* not there at first */
    r[2].target_us = 200140;
    while (r[0].n_pending > 1 || r[1].n_pending > 1) {
        planned(&f, r, 2);
        n_switch += f.out[0].entry != last;
        last = f.out[0].entry;
        r[last].position += f.out[0].n_token;
        r[last].n_pending -= f.out[0].n_token;
        f.rules.now_us += f.out[0].n_token;
        if (r[last].n_pending == 0)
            r[last].n_pending = 1;
        if (f.rules.now_us >= 200000)
            break;
    }
    cr_assert_leq(n_switch, 2, "%u", n_switch);
    r[0] = prompt(40000, 10000);
    r[0].begin = 0;
    r[0].target_us = r[0].arrive_us + 100 + 4 * 50000;
    r[2] = prompt(0, 10);
    f.rules.now_us = r[2].arrive_us + 140;
    planned(&f, r, 3);
    cr_assert_eq(f.out[f.out[0].entry != 2 ? 1 : 0].entry, 2);
}

Test(plan, slices_keep_the_pace)
{
    struct plan_pace pace = {.stretch = 0.5, .token_us = 100, .least_us = 4};

    cr_assert_float_eq(plan_slice_us(&pace, 20), 10, 1e-9);
    cr_assert_float_eq(plan_slice_us(&pace, 80), 20, 1e-9);
    cr_assert_float_eq(plan_slice_us(&pace, 2), 4, 1e-9);
    cr_assert_float_eq(plan_slice_us(&pace, 200), 4, 1e-9);
    cr_assert_float_eq(plan_prompt_share(&pace, 0), 1, 0);
    cr_assert_float_eq(plan_prompt_share(&pace, 20), 1.0 / 3, 1e-9);
}

Test(plan, a_step_is_as_long_as_planned_whatever_its_decode_pass_took)
{
    struct plan_pace pace = {.stretch = 0.5, .token_us = 1e9, .least_us = 1};

    /* 100 and its slice of 50 are the step; what is spent is not there. */
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 100, 0), 50, 1e-9);
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 120, 0), 30, 1e-9);
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 90, 0), 60, 1e-9);
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 110, 15), 25, 1e-9);
    /* But prompts never stop. */
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 1000, 0), 12.5, 1e-9);
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 100, 1000), 12.5, 1e-9);
    pace.least_us = 20;
    cr_assert_float_eq(plan_step_slice_us(&pace, 100, 1000, 0), 20, 1e-9);
}

Test(plan, targets_are_length_aware)
{
    struct fixture f;

    init(&f);
    cr_assert_eq(plan_target_us(&f.cost, 10, 260, &f.rules, 4), 1100);
    f.rules.base_us = 0;
    cr_assert_eq(plan_target_us(&f.cost, 10, 10, &f.rules, 4), 1);
    f.cost.prompt.weight[1] = 1e300;
    cr_assert_gt(plan_target_us(&f.cost, 0, 10, &f.rules, 4), 1000000000000u);
}

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

Test(plan, rules_hold_for_any_requests)
{
    uint64_t random = 1;

    for (uint32_t round = 0; round < 2000; round++) {
        struct fixture f;
        struct plan_request r[40];
        bool seen[40] = {false};
        uint32_t n = (uint32_t)(next(&random) % 41), n_chunk, n_prompt = 0;
        uint64_t n_row = 0;
        init(&f);
        f.rules.pass_us = (double)(next(&random) % 800);
        for (uint32_t i = 0; i < n; i++) {
            r[i] = prompt(next(&random) % 9000, 1 + next(&random) % 900);
            r[i].priority = (int32_t)(next(&random) % 3) - 1;
            n_prompt += r[i].n_pending > 1;
        }
        n_chunk = planned(&f, r, n);
        cr_assert_eq(n_chunk > 0, n_prompt > 0);
        for (uint32_t i = 0; i < n_chunk; i++) {
            const struct plan_request *e = &r[f.out[i].entry];
            uint64_t end = e->position + f.out[i].n_token;
            cr_assert(i == 0 || f.out[i].entry > f.out[i - 1].entry);
            cr_assert_not(seen[f.out[i].entry]);
            seen[f.out[i].entry] = true;
            cr_assert(e->n_pending > 1 && f.out[i].n_token >= 1 &&
                      f.out[i].n_token <= e->n_pending);
            cr_assert_eq(e->position / 4096, (end - 1) / 4096);
            n_row += f.out[i].n_token;
        }
        cr_assert_leq(n_row, 512);
        cr_assert((double)n_row <= f.rules.pass_us || n_chunk <= 1);
    }
}
