#include "node.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CUT_GRID 4096u
#define LIVE_MAX 2048u
#define SLICE_PARTS 200u  /* a pass can be left after so many parts of it */
#define IDLE_SLICE 5000.0 /* microseconds, where nobody decodes */
#define MARK_US 1000000u
#define LEARN_PASSES 50u /* before errors of predictions count */

struct live {
    uint32_t id; /* in the trace */
    uint32_t tenant;
    uint64_t position, n_generated, n_done; /* prompt tokens computed */
    uint64_t last_us;
    bool is_started, is_in_pass;
};

struct node {
    const struct trace *trace;
    const struct node_options *options;
    struct node_report *report;
    struct cost cost;
    struct fair *fair;
    struct admit_pace pace;
    uint64_t now_us, random;
    uint32_t n_arrived, n_live, n_running;
    uint64_t n_token; /* promised to those that run */
    struct live live[LIVE_MAX];

    struct plan_chunk pass[LIVE_MAX]; /* under way; entry: of the trace */
    uint32_t n_pass;
    struct cost_pass pass_work;
    double pass_us, pass_left_us;

    struct plan_request request[LIVE_MAX];
    uint32_t index[LIVE_MAX], picked[LIVE_MAX];
    struct plan_rank rank[LIVE_MAX];
    struct plan_chunk chunk[LIVE_MAX];
    struct admit_share share[2 * LIVE_MAX];
    struct plan_claim claim[LIVE_MAX];
    double prompt_error, decode_error;
    uint64_t n_prompt_error, n_decode_error;
};

static double decode_us(const struct node *node);

static struct plan_rules rules_of(struct node *node)
{
    const struct node_options *o = node->options;

    return (struct plan_rules){.now_us = node->now_us,
                               .pass_rows = o->pass_rows,
                               .least_rows = o->least_rows,
                               .pass_us = o->pass_us,
                               .cut_grid = CUT_GRID,
                               .base_us = o->base_us,
                               .patience_us = 4 * o->limits.max_wait_us,
                               .prompt_share =
                                   plan_prompt_share(&o->pace, decode_us(node)),
                               .claim = node->claim,
                               .cost = &node->cost,
                               .fair = node->fair};
}

static void note(struct node *node, uint32_t what, uint64_t a, uint64_t b)
{
    uint64_t word[] = {what, a, b, node->now_us};

    for (uint32_t i = 0; i < 4; i++)
        node->report->digest =
            (node->report->digest ^ word[i]) * 0x100000001B3u;
}

static void grow(void *block, uint64_t n, uint64_t *capacity, size_t size)
{
    void **at = block;

    if (n < *capacity)
        return;
    *capacity = *capacity ? 2 * *capacity : 4096;
    *at = realloc(*at, *capacity * size);
    if (!*at)
        abort();
}

/* --- the truth --- */

static double truth_us(const struct machine *m, const struct cost_pass *pass)
{
    if (pass->kind == COST_DECODE)
        return m->decode_fixed + m->decode_row * pass->n_row +
               m->decode_attended * pass->n_attended + m->logit * pass->n_logit;
    return m->prompt_fixed + m->prompt_row * pass->n_row +
           m->prompt_attended * pass->n_attended + m->logit * pass->n_logit;
}

static double measured_us(struct node *node, const struct cost_pass *pass)
{
    const struct machine *m = &node->options->machine;
    double us = truth_us(m, pass);

    us *= 1 + m->noise * (2 * trace_uniform(&node->random) - 1);
    if (trace_uniform(&node->random) < m->stall)
        us *= 10;
    return us;
}

double node_alone_us(const struct node_options *o, uint32_t n_prompt)
{
    const struct machine *m = &o->machine;
    double n_pass = ceil((double)n_prompt / o->pass_rows);

    return m->prompt_fixed * n_pass + m->prompt_row * n_prompt +
           m->prompt_attended * cost_attended(0, n_prompt) + m->logit;
}

static void learn(struct node *node, const struct cost_pass *pass, double us)
{
    struct cost_fit *fit =
        pass->kind == COST_DECODE ? &node->cost.decode : &node->cost.prompt;

    if (fit->n_pass >= LEARN_PASSES) {
        double error = fabs(cost_us(&node->cost, pass) /
                                truth_us(&node->options->machine, pass) -
                            1);
        if (pass->kind == COST_DECODE) {
            node->decode_error += error;
            node->n_decode_error++;
        } else {
            node->prompt_error += error;
            node->n_prompt_error++;
        }
    }
    cost_observe(&node->cost, pass, us);
}

static void init_cost(struct node *node)
{
    const struct machine *m = &node->options->machine;
    double f = m->prior_factor;
    struct cost_prior prior = {.weight_bytes = m->decode_fixed * f,
                               .row_flop = m->prompt_row * f,
                               .attended_flop = m->prompt_attended * f,
                               .attended_bytes = m->decode_attended * f,
                               .logit_flop = m->logit * f,
                               .flop_per_us = 1,
                               .byte_per_us = 1};

    cost_init(&node->cost, &prior);
}

/* --- requests --- */

static const struct trace_request *asked(const struct node *node,
                                         const struct live *live)
{
    return &node->trace->request[live->id];
}

static struct result *result_of(struct node *node, const struct live *live)
{
    return &node->report->result[live->id];
}

static struct plan_request plan_of(struct node *node, const struct live *live)
{
    const struct trace_request *t = asked(node, live);
    bool is_prompt = live->n_done < t->n_prompt;

    return (struct plan_request){
        .begin = is_prompt ? 0 : live->position,
        .position = live->position,
        .n_pending = is_prompt ? t->n_prompt - live->n_done : 1,
        .arrive_us = t->arrive_us,
        .target_us = t->arrive_us + result_of(node, live)->target_us,
        .deadline_us = t->deadline_us ? t->arrive_us + t->deadline_us : 0,
        .priority = t->priority,
        .tenant = live->tenant};
}

static bool is_running(struct node *node, const struct live *live)
{
    enum outcome outcome = result_of(node, live)->outcome;

    return outcome == PREFILLING || outcome == DECODING;
}

static uint64_t promise(const struct trace_request *t)
{
    return (uint64_t)t->n_prompt + t->n_output;
}

static void leave(struct node *node, uint32_t at, enum outcome outcome)
{
    struct live *live = &node->live[at];

    if (is_running(node, live)) {
        node->n_running--;
        node->n_token -= promise(asked(node, live));
    }
    result_of(node, live)->outcome = outcome;
    result_of(node, live)->end_us = node->now_us;
    if (live->n_generated == 0)
        fair_satisfy(node->fair, live->tenant);
    fair_leave(node->fair, live->tenant);
    note(node, 1, live->id, (uint64_t)outcome);
    memmove(live, live + 1, (--node->n_live - at) * sizeof(*live));
}

/* --- arrivals --- */

static uint32_t gather(struct node *node, bool waits)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < node->n_live; i++)
        if (is_running(node, &node->live[i]) != waits) {
            node->index[n] = i;
            node->request[n++] = plan_of(node, &node->live[i]);
        }
    return n;
}

static double decode_us(const struct node *node)
{
    struct cost_pass work = {.kind = COST_DECODE};

    for (uint32_t i = 0; i < node->n_live; i++)
        if (node->report->result[node->live[i].id].outcome == DECODING) {
            work.n_row++;
            work.n_logit++;
            work.n_attended += (double)node->live[i].position;
        }
    return work.n_row ? cost_us(&node->cost, &work) : 0;
}

static bool is_sheddable(struct node *node, const struct live *live)
{
    return !live->is_started && asked(node, live)->priority < 0;
}

/* Behind n others, of those that wait the ones that can be shed, or the rest.
 */
static uint32_t gather_shed(struct node *node, uint32_t n, bool is_shed)
{
    for (uint32_t i = 0; i < node->n_live; i++) {
        const struct live *live = &node->live[i];
        if (is_running(node, live) || is_sheddable(node, live) != is_shed)
            continue;
        node->index[n] = i;
        node->request[n++] = plan_of(node, live);
    }
    return n;
}

static struct admit_load load_of(struct node *node)
{
    struct admit_load load = {
        .request = node->request,
        .share = node->share,
        .prompt_share =
            plan_prompt_share(&node->options->pace, decode_us(node)),
        .pass_us = node->n_pass ? node->pass_left_us : 0,
        .place_us = admit_place_us(&node->pace, node->now_us)};

    load.n_sheddable = gather_shed(node, 0, true);
    load.n_waiting = load.n_request =
        gather_shed(node, load.n_sheddable, false);
    for (uint32_t i = 0; i < node->n_live; i++)
        if (result_of(node, &node->live[i])->outcome == PREFILLING)
            node->request[load.n_request++] = plan_of(node, &node->live[i]);
    return load;
}

static void arrive(struct node *node, uint32_t id)
{
    const struct trace_request *t = &node->trace->request[id];
    struct result *result = &node->report->result[id];
    struct plan_rules rules = rules_of(node);
    struct live live = {.id = id, .tenant = fair_enter(node->fair, t->tenant)};
    struct admit_load load = load_of(node);
    struct admit_request request = {
        .has_quota = t->tenant[0] != 0, .bytes = promise(t), .reply = id};
    struct admit_verdict verdict;

    fair_want(node->fair, live.tenant);
    result->target_us = plan_target_us(&node->cost, 0, t->n_prompt, &rules,
                                       node->options->target_factor);
    if (t->deadline_us && t->deadline_us < result->target_us)
        result->target_us = t->deadline_us;
    request.work = plan_of(node, &live);
    verdict = admit(&request, &load, &node->options->limits, &rules);
    result->predicted_us = verdict.first_us;
    result->reason = verdict.reason;
    result->retry_ms = verdict.retry_ms;
    note(node, 2, id, (uint64_t)verdict.reason);
    if (verdict.reason != ADMIT_OK) {
        result->outcome = REFUSED;
        result->end_us = node->now_us;
        if (verdict.reason == ADMIT_QUEUE_FULL && t->priority >= 0 &&
            load.n_waiting >= node->options->limits.max_queue)
            node->report->shed_out_of_turn += load.n_sheddable > 0;
        fair_satisfy(node->fair, live.tenant);
        fair_leave(node->fair, live.tenant);
        return;
    }
    if (verdict.evicts)
        leave(
            node,
            node->index[admit_victim(node->request, load.n_sheddable, &rules)],
            EVICTED);
    assert(node->n_live < LIVE_MAX);
    node->live[node->n_live++] = live;
    if (load.n_waiting + 1 > node->report->most_waiting)
        node->report->most_waiting = load.n_waiting + 1;
}

static void mark(struct node *node)
{
    struct node_report *report = node->report;

    for (uint32_t i = 0; i < node->n_live; i++) {
        uint32_t tenant = node->live[i].tenant, n = 0;
        bool is_first = true;
        for (uint32_t j = 0; j < node->n_live; j++)
            if (node->live[j].tenant == tenant) {
                is_first &= j >= i;
                n += !is_running(node, &node->live[j]);
            }
        if (!is_first)
            continue;
        grow(&report->mark, report->n_mark, &report->mark_capacity,
             sizeof(*report->mark));
        report->mark[report->n_mark++] = (struct tenant_mark){
            node->now_us, tenant, fair_counter(node->fair, tenant), n};
    }
}

/* --- starts --- */

static void step_back(struct node *node, const struct plan_rules *rules)
{
    uint32_t n = 0, at;

    for (uint32_t i = 0; i < node->n_live; i++) {
        const struct live *live = &node->live[i];
        if (!is_running(node, live) || live->is_in_pass ||
            asked(node, live)->priority >= 0)
            continue;
        node->index[n] = i;
        node->request[n++] = plan_of(node, live);
    }
    if (n == 0)
        return;
    at = node->index[admit_victim(node->request, n, rules)];
    result_of(node, &node->live[at])->outcome = WAITING;
    result_of(node, &node->live[at])->n_preempted++;
    node->n_running--;
    node->n_token -= promise(asked(node, &node->live[at]));
    note(node, 3, node->live[at].id, 0);
}

static bool start(struct node *node, struct live *live)
{
    const struct trace_request *t = asked(node, live);
    struct result *result = result_of(node, live);

    if (node->n_running == node->options->max_running ||
        node->n_token + promise(t) > node->options->max_tokens)
        return false;
    node->n_running++;
    node->n_token += promise(t);
    result->outcome = live->n_done < t->n_prompt ? PREFILLING : DECODING;
    if (!live->is_started)
        result->start_us = node->now_us;
    live->is_started = true;
    admit_started(&node->pace, node->now_us);
    note(node, 4, live->id, 0);
    return true;
}

static void start_all(struct node *node)
{
    struct plan_rules rules = rules_of(node);
    uint32_t room = node->options->max_running - node->n_running;
    uint32_t n = gather(node, true), n_started = 0, n_order;
    bool needs_victim = false;

    rules.place_us = node->pace.is_blocked ? node->pace.mean_us : 0;
    n_order = plan_start(node->request, n, &rules, node->rank, room ? room : 1,
                         node->picked);
    for (uint32_t i = 0; i < n_order; i++) {
        struct live *live = &node->live[node->index[node->picked[i]]];
        if (!start(node, live)) {
            needs_victim = asked(node, live)->priority >= 0;
            break;
        }
        n_started++;
    }
    admit_blocked(&node->pace, n_started < n, node->now_us);
    if (needs_victim)
        step_back(node, &rules);
}

/* --- passes --- */

static void spend(struct node *node, double us)
{
    node->now_us += (uint64_t)(us + 0.5);
}

/* One more token of its output. True if that was the last. */
static bool speak(struct node *node, struct live *live)
{
    struct node_report *report = node->report;
    struct result *result = result_of(node, live);
    uint64_t gap = node->now_us - live->last_us;

    fair_charge(node->fair, live->tenant, 0, 1);
    if (live->n_generated++ == 0) {
        fair_satisfy(node->fair, live->tenant);
        result->first_us = node->now_us;
        result->outcome = DECODING;
    } else {
        grow(&report->gap_us, report->n_gap, &report->gap_capacity,
             sizeof(*report->gap_us));
        report->gap_us[report->n_gap++] = (double)gap;
        if (gap > result->worst_gap_us)
            result->worst_gap_us = gap;
    }
    live->last_us = node->now_us;
    return live->n_generated == asked(node, live)->n_output;
}

static void end_finished(struct node *node)
{
    for (uint32_t i = node->n_live; i-- > 0;)
        if (node->live[i].n_generated == asked(node, &node->live[i])->n_output)
            leave(node, i, DONE);
}

static bool run_decode(struct node *node)
{
    uint32_t n = 0;
    struct cost_pass work = {.kind = COST_DECODE};
    double us;

    for (uint32_t i = 0; i < node->n_live; i++)
        if (is_running(node, &node->live[i]) && !node->live[i].is_in_pass &&
            plan_of(node, &node->live[i]).n_pending == 1) {
            node->index[n++] = i;
            work.n_attended += (double)node->live[i].position;
        }
    if (n == 0)
        return false;
    work.n_row = work.n_logit = n;
    us = measured_us(node, &work);
    spend(node, us);
    learn(node, &work, us);
    node->report->n_decode_pass++;
    note(node, 5, n, work.n_row);
    for (uint32_t i = 0; i < n; i++) {
        struct live *live = &node->live[node->index[i]];
        live->position++;
        if (live->n_done < asked(node, live)->n_prompt) {
            live->n_done++;
            fair_charge(node->fair, live->tenant, 1, 0);
        }
        speak(node, live);
    }
    return true;
}

static void begin_pass(struct node *node)
{
    struct plan_rules rules = rules_of(node);
    uint32_t n = gather(node, false);

    node->n_pass =
        plan_prompt(node->request, n, &rules, node->rank, node->chunk);
    if (node->n_pass == 0)
        return;
    node->pass_work = (struct cost_pass){.kind = COST_PROMPT};
    for (uint32_t i = 0; i < node->n_pass; i++) {
        const struct plan_chunk *chunk = &node->chunk[i];
        struct live *live = &node->live[node->index[chunk->entry]];
        uint64_t left = node->request[chunk->entry].n_pending;
        assert(chunk->n_token >= 1 && chunk->n_token <= left);
        node->pass[i] = (struct plan_chunk){live->id, chunk->n_token};
        live->is_in_pass = true;
        node->pass_work.n_row += chunk->n_token;
        node->pass_work.n_attended +=
            cost_attended(live->position, chunk->n_token);
        node->pass_work.n_logit += chunk->n_token == left;
        note(node, 6, live->id, chunk->n_token);
    }
    node->pass_us = node->pass_left_us = measured_us(node, &node->pass_work);
}

static void end_pass(struct node *node)
{
    for (uint32_t i = 0; i < node->n_live; i++) {
        struct live *live = &node->live[i];
        for (uint32_t c = 0; live->is_in_pass && c < node->n_pass; c++) {
            if (node->pass[c].entry != live->id)
                continue;
            live->position += node->pass[c].n_token;
            live->n_done += node->pass[c].n_token;
            live->is_in_pass = false;
            fair_charge(node->fair, live->tenant, node->pass[c].n_token, 0);
            if (live->n_done == asked(node, live)->n_prompt)
                speak(node, live);
        }
    }
    learn(node, &node->pass_work, node->pass_us);
    node->n_pass = 0;
    node->report->n_pass++;
}

static bool run_slice(struct node *node)
{
    double decode = decode_us(node), part = node->pass_us / SLICE_PARTS, us;

    if (node->n_pass == 0)
        begin_pass(node);
    if (node->n_pass == 0)
        return false;
    us = decode > 0 ? plan_slice_us(&node->options->pace, decode) : IDLE_SLICE;
    us = part > 0 ? ceil(us / part) * part : us;
    if (us > node->pass_left_us - part / 2)
        us = node->pass_left_us;
    spend(node, us);
    node->pass_left_us -= us;
    if (node->pass_left_us <= 0)
        end_pass(node);
    return true;
}

void node_run(const struct trace *trace, const struct node_options *options,
              struct node_report *out)
{
    struct node *node = calloc(1, sizeof(*node));
    uint64_t next_mark_us = 0;

    *out = (struct node_report){.digest = 0xCBF29CE484222325u, .n = trace->n};
    out->result = calloc(trace->n + 1, sizeof(*out->result));
    if (!node || !out->result || fair_create(LIVE_MAX, &node->fair))
        abort();
    node->trace = trace;
    node->options = options;
    node->report = out;
    node->random = options->seed;
    init_cost(node);
    while (node->n_arrived < trace->n || node->n_live > 0) {
        bool runs;
        while (node->n_arrived < trace->n &&
               trace->request[node->n_arrived].arrive_us <= node->now_us)
            arrive(node, node->n_arrived++);
        for (; next_mark_us <= node->now_us; next_mark_us += MARK_US)
            mark(node);
        start_all(node);
        runs = run_decode(node);
        runs |= run_slice(node);
        end_finished(node);
        if (!runs && node->n_live == 0 && node->n_arrived < trace->n)
            node->now_us = trace->request[node->n_arrived].arrive_us;
    }
    out->end_us = node->now_us;
    out->decode_error = node->decode_error / (double)(node->n_decode_error + 1);
    out->prompt_error = node->prompt_error / (double)(node->n_prompt_error + 1);
    fair_destroy(node->fair);
    free(node);
}

void node_report_release(struct node_report *report)
{
    free(report->result);
    free(report->gap_us);
    free(report->mark);
    *report = (struct node_report){0};
}
