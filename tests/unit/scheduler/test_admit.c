/*
 * One load at a time and what must become of a request; costs are a
 * microsecond per prompt token and nothing else, so waits can be counted.
 */
#include "scheduler/admit.h"

#include <criterion/criterion.h>

struct fixture {
    struct cost cost;
    struct plan_rules rules;
    struct plan_request other[8];
    struct admit_share share[16];
    struct admit_load load;
    struct admit_limits limits;
    struct admit_request request;
};

static struct plan_request prompt(uint64_t n, int32_t priority)
{
    return (struct plan_request){.n_pending = n,
                                 .arrive_us = 1000,
                                 .target_us = 2000,
                                 .priority = priority};
}

static void init(struct fixture *f)
{
    *f = (struct fixture){
        .rules = {.now_us = 1000,
                  .pass_rows = 512,
                  .least_rows = 64,
                  .base_us = 100},
        .load = {.prompt_share = 1},
        .limits = {.max_queue = 4, .margin = 1, .max_bytes = 100},
        .request = {.work = prompt(50, 0), .bytes = 100}};
    f->cost.prompt.weight[1] = 1;
    f->rules.cost = &f->cost;
    f->load.request = f->other;
    f->load.share = f->share;
}

static struct admit_verdict judged(struct fixture *f)
{
    return admit(&f->request, &f->load, &f->limits, &f->rules);
}

Test(admit, an_empty_node_takes_it_at_once)
{
    struct fixture f;
    struct admit_verdict v;

    init(&f);
    v = judged(&f);
    cr_assert_eq(v.reason, ADMIT_OK);
    cr_assert_not(v.evicts);
    cr_assert_float_eq(v.wait_us, 0, 0);
    cr_assert_float_eq(v.first_us, 50, 1e-9);
    cr_assert_str_eq(admit_reason_text(v.reason), "");
}

/* What is ahead: higher ones whole, equals no more than it takes itself and a
 * bit, lower ones not at all. */
Test(admit, the_wait_is_what_goes_before_it)
{
    struct fixture f;

    init(&f);
    f.other[0] = prompt(1000, 1);
    f.other[1] = prompt(30, 0);
    f.other[2] = prompt(7000, 0);
    f.other[3] = prompt(5000, -1);
    f.load.n_request = 4;
    f.load.pass_us = 9;
    cr_assert_float_eq(judged(&f).wait_us, 9 + 1000 + 30 + (50 + 100), 1e-6);
    f.load.prompt_share = 0.5;
    cr_assert_float_eq(judged(&f).first_us, 2 * (1189 + 50), 1e-6);
    f.load.prompt_share = 1;
    f.load.n_waiting = 3; /* places are what is short */
    f.load.place_us = 1000;
    cr_assert_float_eq(judged(&f).wait_us, 9 + 4 * 1000, 1e-6);
}

/* Another tenant gets as much as the own one meanwhile, and what it is behind.
 */
Test(admit, tenants_take_turns_ahead_of_it)
{
    struct fixture f;
    struct fair *fair = NULL;
    uint32_t a, b;

    init(&f);
    cr_assert_eq(fair_create(8, &fair), STATUS_OK);
    f.rules.fair = fair;
    a = fair_enter(fair, "a");
    b = fair_enter(fair, "b");
    f.request.work.tenant = a;
    f.other[0] = prompt(7000, 0);
    f.other[0].tenant = b;
    f.load.n_request = 1;
    cr_assert_float_eq(judged(&f).wait_us, 50, 1e-6);
    fair_charge(fair, a, 400, 0);
    cr_assert_float_eq(judged(&f).wait_us, 450, 1e-6);
    fair_charge(fair, b, 420, 0);
    cr_assert_float_eq(judged(&f).wait_us, 30, 1e-6);
    fair_charge(fair, b, 8000, 0);
    cr_assert_float_eq(judged(&f).wait_us, 0, 1e-6);
    fair_destroy(fair);
}

Test(admit, refusals_say_why_and_when_to_come_back)
{
    struct fixture f;

    init(&f);
    f.request.bytes = 101;
    cr_assert_eq(judged(&f).reason, ADMIT_KV_MEMORY);
    cr_assert_eq(judged(&f).retry_ms, 0);
    f.request.bytes = 1;
    for (uint32_t i = 0; i < 4; i++)
        f.other[i] = prompt(1000, 0);
    f.load.n_request = f.load.n_waiting = 3;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.load.n_request = f.load.n_waiting = 4;
    cr_assert_eq(judged(&f).reason, ADMIT_QUEUE_FULL);
    cr_assert_gt(judged(&f).retry_ms, 0);
    f.limits.max_queue = 5; /* one place left: one of a tenant may wait */
    f.limits.tenant_free = 4;
    f.request.has_quota = true;
    cr_assert_eq(judged(&f).reason, ADMIT_TENANT_QUOTA);
    f.other[3].tenant = 7;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.request.has_quota = false;
    f.other[3].tenant = 0;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
}

Test(admit, a_deadline_that_will_be_missed_is_refused_at_once)
{
    struct fixture f;

    init(&f);
    f.other[0] = prompt(30, 0);
    f.load.n_request = f.load.n_waiting = 1;
    f.request.work.deadline_us = 1000 + 80;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.request.work.deadline_us--;
    cr_assert_eq(judged(&f).reason, ADMIT_DEADLINE);
    cr_assert_str_eq(admit_reason_text(ADMIT_DEADLINE), "DEADLINE");
    f.request.work.deadline_us = 1000 + 100;
    f.limits.margin = 1.3;
    cr_assert_eq(judged(&f).reason, ADMIT_DEADLINE);
    f.request.work.deadline_us = 3; /* it is over */
    f.limits.margin = 1;
    cr_assert_eq(judged(&f).reason, ADMIT_DEADLINE);
}

Test(admit, nobody_is_let_in_whom_anothers_deadline_cannot_bear)
{
    struct fixture f;
    struct plan_claim claim[8];

    init(&f);
    f.rules.claim = claim;
    f.rules.prompt_share = 1;
    f.other[0] = prompt(300, 0);
    f.other[0].deadline_us = 1000 + 340;
    f.load.n_request = 1;
    f.request.work.deadline_us = 1000 + 3000; /* behind it: 350 */
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.request.work.deadline_us = 1000 + 200; /* it would go before */
    cr_assert_eq(judged(&f).reason, ADMIT_DEADLINE);
    cr_assert(judged(&f).retry_ms > 0);
    f.other[0].deadline_us = 1000 + 350;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.other[0].deadline_us = 1000 + 290; /* it is late already */
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.other[0].deadline_us = 1000 + 340;
    f.other[0].priority = -1; /* nothing was promised */
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    /* Behind many with earlier deadlines, who by other rules come later. */
    for (uint32_t i = 0; i < 4; i++) {
        f.other[i] = prompt(300, 0);
        f.other[i].deadline_us = 1000 + 2000;
    }
    f.load.n_request = 4;
    f.request.work.deadline_us = 1000 + 2001;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.request.work.n_pending = 801;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.request.work.n_pending = 802;
    cr_assert_eq(judged(&f).reason, ADMIT_DEADLINE);
    f.request.work.n_pending = 50;
    f.load.n_waiting = 4;
    f.load.place_us = 400;
    f.request.work.deadline_us = 1000 + 1900;
    f.limits.max_queue = 8;
    cr_assert_eq(judged(&f).reason, ADMIT_DEADLINE, "five starts take 2000");
}

/*
 * The oracle is a clock: whoever arrives, in whatever order, with whatever
 * priority, a server that computes what plan_prompt() says is in time with all
 * whom admit() let in with a deadline.
 */
Test(admit, who_is_let_in_with_a_deadline_is_in_time)
{
    enum { N = 4000, LIVE = 64 };
    struct fixture f;
    struct plan_claim claim[LIVE + 1];
    struct plan_rank rank[LIVE];
    struct plan_chunk chunk[LIVE];
    struct plan_request live[LIVE];
    uint64_t state = 99, next_us = 1000, n_due = 0, n_refused = 0;
    uint32_t n = 0, n_arrived = 0;

    init(&f);
    f.rules.claim = claim;
    f.rules.prompt_share = 1;
    f.rules.pass_us = 64;
    f.rules.base_us = 50; /* short ones see little before them */
    f.rules.cut_grid = 4096;
    f.limits = (struct admit_limits){
        .max_queue = LIVE, .margin = 1.2, .max_bytes = 100};
    f.load.request = live;
    while (n_arrived < N || n > 0) {
        for (; n_arrived < N && next_us <= f.rules.now_us; n_arrived++) {
            struct plan_request r = {.arrive_us = next_us};
            state = state * 6364136223846793005u + 1442695040888963407u;
            bool is_long = state >> 62 == 0; /* and not pressed for time */
            r.n_pending = 2 + (state >> 33) % (is_long ? 3000 : 200);
            r.target_us = next_us + 1000 + 4 * r.n_pending;
            r.priority = (int32_t)(state >> 55) % 8 == 0;
            if (state >> 59 & 7)
                r.deadline_us = next_us + (is_long ? 5 * r.n_pending / 4 + 600
                                                   : 500 + (state >> 45) % 500);
            next_us += (state >> 21) % 250; /* four times what fits */
            f.request.work = r;
            f.load.n_request = n;
            if (n < LIVE && judged(&f).reason == ADMIT_OK)
                live[n++] = r;
            else
                n_refused++;
        }
        if (n == 0) {
            f.rules.now_us = next_us;
            continue;
        }
        uint32_t n_chunk = plan_prompt(live, n, &f.rules, rank, chunk);
        cr_assert(n_chunk > 0);
        for (uint32_t i = n_chunk; i-- > 0;) {
            struct plan_request *r = &live[chunk[i].entry];
            f.rules.now_us += chunk[i].n_token;
            r->position += chunk[i].n_token;
            r->n_pending -= chunk[i].n_token;
        }
        for (uint32_t i = n; i-- > 0;) {
            if (live[i].n_pending > 1) /* the last one is a decode row */
                continue;
            n_due += live[i].deadline_us > 0;
            cr_assert(!live[i].deadline_us ||
                          f.rules.now_us <= live[i].deadline_us,
                      "late by %lu", f.rules.now_us - live[i].deadline_us);
            live[i] = live[--n];
        }
    }
    cr_assert(n_due > N / 8 && n_refused > N / 8, "%lu in time, %lu refused",
              n_due, n_refused);
}

Test(admit, sheddable_work_is_refused_first_and_makes_room)
{
    struct fixture f;

    init(&f);
    for (uint32_t i = 0; i < 4; i++)
        f.other[i] = prompt(1000, -1);
    f.load.n_request = f.load.n_waiting = 2;
    f.limits.shed_wait_us = 299;
    f.limits.max_wait_us = 299;
    f.request.work.priority = -1;
    cr_assert_eq(judged(&f).reason, ADMIT_SHED);
    f.limits.shed_wait_us = 301;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.request.work.priority = 0; /* they do not stand in its way */
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    f.load.n_request = f.load.n_waiting = 4;
    f.load.n_sheddable = 4;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    cr_assert(judged(&f).evicts);
    f.request.work.priority = -1;
    f.limits.shed_wait_us = 0;
    cr_assert_eq(judged(&f).reason, ADMIT_QUEUE_FULL);
    f.load.n_request = f.load.n_waiting = 2;
    for (uint32_t i = 0; i < 4; i++)
        f.other[i].priority = 0;
    f.request.work.priority = 0;
    cr_assert_eq(judged(&f).reason, ADMIT_QUEUE_FULL); /* it waits too long */
}

/* A tenant's own sheddable work is no reason to refuse it anything else. */
Test(admit, what_can_be_shed_fills_no_tenants_share)
{
    struct fixture f;

    init(&f);
    for (uint32_t i = 0; i < 4; i++)
        f.other[i] = prompt(10, i < 3 ? -1 : 0);
    f.load.n_request = f.load.n_waiting = 4;
    f.load.n_sheddable = 3;
    f.limits.tenant_free = 1;
    f.request.has_quota = true;
    cr_assert_eq(judged(&f).reason, ADMIT_OK);
    cr_assert(judged(&f).evicts);
    f.request.work.priority = -1;
    cr_assert_eq(judged(&f).reason, ADMIT_TENANT_QUOTA);
    f.request.work.priority = 0;
    f.load.n_sheddable = 1; /* the others were started once */
    cr_assert_eq(judged(&f).reason, ADMIT_TENANT_QUOTA);
}

Test(admit, retries_are_spread_over_half_of_the_time)
{
    struct fixture f;
    uint32_t least = UINT32_MAX, most = 0;

    init(&f);
    for (uint32_t i = 0; i < 4; i++)
        f.other[i] = prompt(10000000, 1);
    f.load.n_request = f.load.n_waiting = 4;
    for (uint64_t reply = 1; reply <= 1000; reply++) {
        uint32_t ms;
        f.request.reply = reply;
        ms = judged(&f).retry_ms;
        cr_assert_eq(ms, judged(&f).retry_ms);
        least = ms < least ? ms : least;
        most = ms > most ? ms : most;
    }
    cr_assert(least >= 30000 && least < 30500, "%u", least);
    cr_assert(most <= 50000 && most > 49500, "%u", most);
}

Test(admit, pace_is_the_time_between_starts_while_some_wait)
{
    struct admit_pace pace = {0};

    admit_started(&pace, 100);
    admit_blocked(&pace, false, 100);
    cr_assert_float_eq(admit_place_us(&pace, 5000), 0, 0);
    admit_blocked(&pace, true, 1000);
    cr_assert_float_eq(admit_place_us(&pace, 1400), 400, 0);
    admit_started(&pace, 1500);
    admit_blocked(&pace, true, 1500);
    cr_assert_float_eq(admit_place_us(&pace, 1600), 500, 1e-9);
    for (uint64_t at = 1600; at < 40000; at += 100)
        admit_started(&pace, at);
    cr_assert_float_eq(admit_place_us(&pace, 39900), 100, 1);
    cr_assert_float_eq(admit_place_us(&pace, 90000), 50100, 1);
}

Test(admit, victims_are_sheddable_then_have_time_then_are_new)
{
    struct fixture f;

    init(&f);
    cr_assert_eq(admit_victim(f.other, 0, &f.rules), 0);
    f.other[0] = prompt(10, 0);
    f.other[1] = prompt(10, 0);
    f.other[1].arrive_us = 1001;
    f.other[1].target_us = 2001;
    cr_assert_eq(admit_victim(f.other, 2, &f.rules), 1);
    f.other[2] = prompt(500, 0); /* less slack */
    cr_assert_eq(admit_victim(f.other, 3, &f.rules), 1);
    f.other[0].target_us = 9000; /* more slack */
    cr_assert_eq(admit_victim(f.other, 3, &f.rules), 0);
    f.other[3] = prompt(900, -1);
    cr_assert_eq(admit_victim(f.other, 4, &f.rules), 3);
}
