#include "scheduler/engine_calls.h"

#include <stdlib.h>
#include <string.h>

/*
 * Rough figures of a machine for the first predictions, on the fast side: who
 * is let in teaches the node better, who is refused teaches it nothing.
 */
#define FLOP_PER_US 1e5 /* per thread */
#define BYTE_PER_US 1e4 /* per thread */

#define PASS_LEAST 64u    /* rows that a pass may have whatever they cost */
#define PASS_US 200000.0  /* else it is planned to take so long at most */
#define TARGET_FACTOR 4.0 /* of what a prompt takes alone, beside base_us */
#define TENANT_FREE 4u    /* admit_limits.tenant_free */
/* admit_limits.margin: a neighbour on the machine may take a third of it. */
#define MARGIN 1.5
#define PATIENCE 4.0 /* plan_rules.patience_us in waits let in */
#define STRETCH 0.7  /* plan_pace.stretch */
#define SLICE_LEAST_US 200.0
#define REPLY_NEW 0.03125 /* of the newest reply in schedule.reply_share */
#define LATE_RETRY_MS 1000u
#define LAG_NEW 0.0625 /* share of the newest step in schedule.lag_us */

static struct cost_prior prior_of(const struct engine *engine)
{
    const struct model *model = engine->options.model;
    const struct pool *pool = engine->options.pool;
    double n_thread = pool ? pool_n_thread(pool) : 1;
    double logit_flop = model_logit_flops(model), attended = 1;

    for (uint32_t i = 0; i < engine->config->n_layer; i++)
        attended += (double)model_plan(model, i)->block_bytes / KV_BLOCK;
    return (struct cost_prior){
        .weight_bytes = (double)model_step_bytes(model, 1) + 1,
        .row_flop = model_row_flops(model) - logit_flop + 1,
        .attended_flop = 2 * attended, /* four queries to a key of 4 bytes */
        .attended_bytes = attended,
        .logit_flop = logit_flop + 1,
        .flop_per_us = FLOP_PER_US * n_thread,
        .byte_per_us = BYTE_PER_US * n_thread};
}

enum status schedule_init(struct engine *engine)
{
    const struct engine_options *o = &engine->options;
    struct cost_prior prior = prior_of(engine);
    struct schedule *s = &engine->schedule;
    enum status st;

    s->n_request_max = o->max_queue + 4 * o->max_running;
    s->work = calloc(s->n_request_max, sizeof(*s->work));
    s->request = calloc(s->n_request_max, sizeof(struct request *));
    s->rank = calloc(s->n_request_max, sizeof(*s->rank));
    s->chunk = calloc(s->n_request_max, sizeof(*s->chunk));
    s->claim = calloc(s->n_request_max, sizeof(*s->claim));
    if (!s->work || !s->request || !s->rank || !s->chunk || !s->claim)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a queue of %u requests",
                           o->max_queue);
    st = fair_create(s->n_request_max + 1, &s->fair);
    if (st)
        return st;
    s->share = calloc(fair_places(s->fair), sizeof(*s->share));
    if (!s->share)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the shares of %u tenants",
                           fair_places(s->fair));
    cost_init(&s->cost, &prior);
    s->pace = (struct plan_pace){
        .stretch = STRETCH,
        .token_us = o->inter_token_us ? (double)o->inter_token_us : 1e18,
        .least_us = SLICE_LEAST_US};
    return STATUS_OK;
}

void schedule_release(struct engine *engine)
{
    struct schedule *s = &engine->schedule;

    free(s->work);
    free(s->request);
    free(s->rank);
    free(s->chunk);
    free(s->claim);
    free(s->share);
    fair_destroy(s->fair);
    memset(s, 0, sizeof(*s));
}

static struct plan_rules rules_of(const struct engine *engine)
{
    const struct schedule *s = &engine->schedule;

    return (struct plan_rules){
        .now_us = engine_now_us(engine),
        .pass_rows = SCHEDULE_ROWS,
        .least_rows = PASS_LEAST,
        .pass_us = PASS_US,
        .cut_grid = SNAPSHOT_GRID,
        .base_us = (double)engine->options.first_token_us,
        .patience_us = PATIENCE * (double)engine->options.max_wait_us,
        .prompt_share = plan_prompt_share(&s->pace, (double)s->decode_us),
        .claim = s->claim,
        .cost = &s->cost,
        .fair = s->fair};
}

/* What it has to consume; of one that loads as far as can be known. */
static void extent_of(const struct request *r, uint64_t *position,
                      uint64_t *end)
{
    uint64_t n = r->session->n_token;

    if (r->phase != REQUEST_LOADING) {
        *position = resident_position(r->session->resident);
        *end = request_target(r);
    } else {
        *position = r->session->resident
                        ? resident_position(r->session->resident)
                    : n ? n - 1
                        : 0;
        *end = n + (r->command ? r->n_input : 0);
    }
    if (*end <= *position)
        *end = *position + 1;
}

/* The deadline is the whole reply's: when its first token has to be there. */
static uint64_t first_by_us(const struct request *r)
{
    if (!r->deadline_us)
        return 0;
    return r->deadline_us > r->arrive_us + r->reply_us
               ? r->deadline_us - r->reply_us
               : r->arrive_us + 1;
}

static struct plan_request work_of(const struct request *r)
{
    uint64_t position, end;

    extent_of(r, &position, &end);
    return (struct plan_request){.begin =
                                     r->begin < position ? r->begin : position,
                                 .position = position,
                                 .n_pending = end - position,
                                 .arrive_us = r->arrive_us,
                                 .target_us = r->target_us,
                                 .deadline_us = first_by_us(r),
                                 .priority = r->priority,
                                 .tenant = r->tenant};
}

static void list(struct schedule *s, uint32_t *n, struct request *request)
{
    s->request[*n] = request;
    s->work[(*n)++] = work_of(request);
}

static bool is_waiting(const struct request *r)
{
    return r->phase != REQUEST_RUNNING && !r->is_paused;
}

/* Whose stream has begun is not shed: its client was told yes. */
static bool is_sheddable(const struct request *r)
{
    return is_waiting(r) && r->priority < 0 && !r->is_started;
}

/* --- who gets the next place in the batch, and who the next rows --- */

struct request *schedule_next(struct engine *engine)
{
    struct schedule *s = &engine->schedule;
    struct plan_rules rules;
    uint32_t n = 0, first;

    for (struct request *r = engine->first; r; r = r->after) {
        if (!request_may_start(r))
            continue;
        list(s, &n, r);
        if (request_comes_first(r) && r->priority == s->request[0]->priority)
            return r;
    }
    rules = rules_of(engine);
    rules.place_us = s->place.is_blocked ? s->place.mean_us : 0;
    return plan_start(s->work, n, &rules, s->rank, 1, &first)
               ? s->request[first]
               : NULL;
}

void schedule_started(struct engine *engine)
{
    admit_started(&engine->schedule.place, engine_now_us(engine));
}

void schedule_blocked(struct engine *engine)
{
    bool is_blocked = false;

    for (const struct request *r = engine->first; r && !is_blocked;
         r = r->after)
        is_blocked = request_may_start(r);
    admit_blocked(&engine->schedule.place, is_blocked, engine_now_us(engine));
}

void schedule_entrant(struct engine *engine, struct request *request)
{
    list(&engine->schedule, &engine->n_entrant, request);
}

uint32_t schedule_prompt(struct engine *engine)
{
    struct schedule *s = &engine->schedule;
    struct plan_rules rules = rules_of(engine);

    return plan_prompt(s->work, engine->n_entrant, &rules, s->rank, s->chunk);
}

static struct cost_pass pass_of(const struct engine *engine,
                                const struct lane *lane)
{
    bool is_prompt = lane == &engine->prompt;
    struct cost_pass pass = {.kind = is_prompt ? COST_PROMPT : COST_DECODE,
                             .n_row = lane->batch.n_row,
                             .n_logit = lane->batch.n_logit};

    for (uint32_t i = 0; i < lane->batch.n_span; i++)
        pass.n_attended +=
            cost_attended(lane->span[i].position, lane->span[i].n_row);
    return pass;
}

void schedule_step(struct engine *engine, const struct lane *lane)
{
    struct schedule *s = &engine->schedule;
    struct cost_pass pass = pass_of(engine, lane);
    uint64_t now_us = engine_now_us(engine);
    double lag_us = (double)(now_us - s->step_us) - (double)s->decode_us -
                    (double)s->slice_us;

    if (s->decode_us && s->slice_us) {
        lag_us = lag_us > 0 ? lag_us : 0;
        lag_us = lag_us < (double)s->slice_us ? lag_us : (double)s->slice_us;
        s->lag_us += LAG_NEW * (lag_us - s->lag_us);
    }
    s->expected_us = cost_us(&s->cost, &pass);
    s->step_us = now_us;
    s->slice_us = 0;
}

/* Does somebody wait for the engine? */
static bool is_called(const void *caller)
{
    const struct engine_options *o = caller;

    return ring_count(o->inbox) > 0 || ring_count(o->done) > 0;
}

/* What is carried is looked at, and an image that waits for the store thread's
 * rest goes when that is over: or long slices would save less. */
static uint64_t linger_us(const struct engine *engine, uint64_t until_us)
{
    const uint64_t save_us = engine->next_save_us;
    uint64_t us = SLICE_LINGER_US;

    if (engine->swap.first)
        return 0;
    if (!engine->images || save_us == UINT64_MAX) /* its end calls */
        return us;
    if (save_us <= until_us)
        return 0;
    return save_us - until_us < us ? save_us - until_us : us;
}

struct pass_slice schedule_slice(struct engine *engine)
{
    struct schedule *s = &engine->schedule;
    struct pass_slice slice = {.clock = engine->options.clock,
                               .until_us = engine_now_us(engine)};

    if (s->decode_us > 0) {
        s->slice_us = (uint64_t)plan_step_slice_us(
            &s->pace, s->expected_us, (double)s->decode_us, s->lag_us);
        slice.until_us += s->slice_us;
        return slice;
    }
    slice.until_us += SLICE_IDLE_US;
    slice.linger_us = linger_us(engine, slice.until_us);
    slice.is_called = is_called;
    slice.caller = &engine->options;
    return slice;
}

void schedule_observe(struct engine *engine, const struct lane *lane)
{
    struct cost_pass pass = pass_of(engine, lane);

    if (lane->batch.n_layer) /* it would make others look cheap */
        return;
    cost_observe(&engine->schedule.cost, &pass, (double)lane->busy_us);
}

void schedule_charge(struct engine *engine, const struct request *request,
                     const struct lane *lane, uint32_t n_token)
{
    bool is_prompt = lane == &engine->prompt;

    fair_charge(engine->schedule.fair, request->tenant, is_prompt ? n_token : 0,
                is_prompt ? 0 : n_token);
}

/* --- who may come in --- */

/* Time between two starts, as long as nothing is known of it. */
static double place_guess_us(const struct engine *engine)
{
    uint32_t n = engine->options.max_running;
    struct cost_pass pass = {.kind = COST_DECODE, .n_row = n, .n_logit = n};

    return cost_us(&engine->schedule.cost, &pass) *
           engine->options.default_max_tokens / n;
}

static double place_us(const struct engine *engine, uint32_t n_waiting)
{
    const struct admit_pace *place = &engine->schedule.place;
    double us, since_us = admit_place_us(place, engine_now_us(engine));

    if (!place->is_blocked &&
        engine->n_running + n_waiting < engine->options.max_running)
        return 0;
    us = place->mean_us > 0 ? place->mean_us : place_guess_us(engine);
    return us > since_us ? us : since_us;
}

static struct admit_load load_of(struct engine *engine)
{
    struct schedule *s = &engine->schedule;
    struct admit_load load = {.request = s->work, .share = s->share};
    struct cost_pass pass;

    for (struct request *r = engine->first; r; r = r->after)
        if (is_sheddable(r))
            list(s, &load.n_request, r);
    load.n_sheddable = load.n_request;
    for (struct request *r = engine->first; r; r = r->after)
        if (is_waiting(r) && !is_sheddable(r))
            list(s, &load.n_request, r);
    load.n_waiting = load.n_request;
    for (struct request *r = engine->first; r; r = r->after)
        if (r->phase == REQUEST_RUNNING && !r->prefilled_us)
            list(s, &load.n_request, r);
    load.prompt_share = plan_prompt_share(&s->pace, (double)s->decode_us);
    if (engine->prompt.is_under_way) {
        pass = pass_of(engine, &engine->prompt);
        load.pass_us =
            cost_us(&s->cost, &pass) - (double)engine->prompt.busy_us;
        load.pass_us = load.pass_us > 0 ? load.pass_us : 0;
    }
    load.place_us = place_us(engine, load.n_waiting);
    return load;
}

/* With the cause as it was just given. */
static void shed(struct engine *engine, struct request *request,
                 uint32_t retry_ms)
{
    status_because(admit_reason_text(ADMIT_SHED));
    status_retry(retry_ms);
    gauges_reject(engine, status_cause());
    request_fail(engine, request, FINISH_ERROR, status_cause());
}

/* In favour of somebody who is not sheddable; the load is as it was judged. */
static void shed_one(struct engine *engine, uint32_t retry_ms)
{
    const struct schedule *s = &engine->schedule;
    struct plan_rules rules = rules_of(engine);
    uint32_t victim = admit_victim(s->work, s->load.n_sheddable, &rules);

    status_fail(STATUS_RESOURCE_EXHAUSTED,
                "sheddable request made room for another in the queue");
    shed(engine, s->request[victim], retry_ms);
}

static enum status refuse(const struct engine *engine,
                          const struct admit_request *request,
                          const struct admit_verdict *verdict,
                          const char *tenant)
{
    const struct admit_load *load = &engine->schedule.load;
    char subject[STATUS_WORD_SIZE] = "tenant:";

    switch (verdict->reason) {
    case ADMIT_KV_MEMORY:
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "session may grow to %zu bytes, limit %zu: ask for fewer "
                    "tokens, or give the node more memory",
                    request->bytes, engine->options.session_bytes);
        break;
    case ADMIT_TENANT_QUOTA:
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "tenant has its share of the queue, where %u requests "
                    "wait, limit %u",
                    load->n_waiting, engine->options.max_queue);
        strncat(subject, tenant, sizeof(subject) - strlen(subject) - 1);
        status_field(subject);
        break;
    default:
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "%u requests wait, limit %u, and a first token would come "
                    "in %.1f s",
                    load->n_waiting, engine->options.max_queue,
                    verdict->first_us * 1e-6);
        break;
    }
    if (verdict->retry_ms)
        status_retry(verdict->retry_ms);
    return status_because(admit_reason_text(verdict->reason));
}

/* Then nobody is the worse for letting it try, and the node learns from it. */
static bool is_alone(const struct admit_load *load)
{
    return load->n_request == 0 && load->place_us <= 0;
}

static struct admit_limits limits_of(const struct engine *engine,
                                     const struct admit_load *load)
{
    const struct engine_options *o = &engine->options;
    struct admit_limits limits = {.max_queue = o->max_queue,
                                  .tenant_free = TENANT_FREE,
                                  .margin = MARGIN,
                                  .max_bytes = o->session_bytes};

    if (is_alone(load))
        return limits;
    limits.max_wait_us = (double)o->max_wait_us;
    limits.shed_wait_us = (double)o->first_token_us;
    return limits;
}

/* Of a reply as full as replies have lately been, in a batch as full as it can
 * get, beside prompts. */
static uint64_t reply_us(const struct engine *engine,
                         const struct request *request, uint64_t end)
{
    const struct schedule *s = &engine->schedule;
    uint64_t n_row = engine->n_request < engine->options.max_running
                         ? engine->n_request + 1
                         : engine->options.max_running;
    struct cost_pass pass = {.kind = COST_DECODE,
                             .n_row = (uint32_t)n_row,
                             .n_logit = (uint32_t)n_row,
                             .n_attended = (double)n_row * (double)end};
    double us = cost_us(&s->cost, &pass);

    us += plan_slice_us(&s->pace, us);
    return (uint64_t)(s->reply_share * (double)request->n_reply * us);
}

void schedule_replied(struct engine *engine, const struct request *request,
                      uint64_t n_token)
{
    struct schedule *s = &engine->schedule;

    if (request->n_reply > 0)
        s->reply_share +=
            REPLY_NEW *
            ((double)n_token / (double)request->n_reply - s->reply_share);
}

/* Also who has a place in the batch, for no token of it was sent. */
void schedule_shed_late(struct engine *engine)
{
    struct plan_rules rules = rules_of(engine);

    for (struct request *r = engine->first, *after; r; r = after) {
        struct plan_request work;
        double us;

        after = r->after;
        if (!r->deadline_us || r->priority >= 0 || r->prefilled_us ||
            r->is_in_pass || r->is_paused)
            continue;
        work = work_of(r);
        us = cost_prefill_us(&engine->schedule.cost, work.position,
                             work.position + work.n_pending, rules.pass_rows) /
             rules.prompt_share;
        if ((double)rules.now_us + us <= (double)work.deadline_us)
            continue;
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "sheddable request waited until its deadline could not be "
                    "met any more");
        shed(engine, r, LATE_RETRY_MS);
    }
}

static enum status check(struct engine *engine, struct request *request,
                         const char *tenant)
{
    struct schedule *s = &engine->schedule;
    struct plan_rules rules = rules_of(engine);
    struct admit_request asked = {.has_quota = tenant[0] != '\0',
                                  .bytes = request->promise,
                                  .reply = request->reply};
    struct admit_limits limits;
    struct admit_verdict verdict;
    uint64_t position, end;

    extent_of(request, &position, &end);
    request->begin = position;
    request->arrive_us = rules.now_us;
    request->target_us = rules.now_us + plan_target_us(&s->cost, position, end,
                                                       &rules, TARGET_FACTOR);
    request->reply_us = reply_us(engine, request, end);
    asked.work = work_of(request);
    if (asked.work.deadline_us > rules.now_us &&
        asked.work.deadline_us < request->target_us)
        request->target_us = asked.work.target_us = asked.work.deadline_us;
    s->load = load_of(engine);
    limits = limits_of(engine, &s->load);
    if (is_alone(&s->load))
        asked.work.deadline_us = 0;
    verdict = admit(&asked, &s->load, &limits, &rules);
    if (verdict.reason == ADMIT_OK && engine->n_request >= s->n_request_max) {
        verdict.reason = ADMIT_QUEUE_FULL; /* of those with a slow reader */
        verdict.retry_ms = 1000;
    }
    if (verdict.reason != ADMIT_OK)
        return refuse(engine, &asked, &verdict, tenant);
    request->predicted_us =
        verdict.first_us < 1 ? 1 : (uint64_t)verdict.first_us;
    if (verdict.evicts)
        shed_one(engine, 1000);
    return STATUS_OK;
}

enum status schedule_admit(struct engine *engine, struct request *request,
                           const char *tenant)
{
    struct fair *fair = engine->schedule.fair;
    enum status st;

    request->tenant = fair_enter(fair, tenant);
    fair_want(fair, request->tenant);
    st = check(engine, request, tenant);
    if (st)
        schedule_leave(engine, request);
    return st;
}

void schedule_prefilled(struct engine *engine, struct request *request)
{
    request->prefilled_us = engine_now_us(engine);
    fair_satisfy(engine->schedule.fair, request->tenant);
}

void schedule_leave(struct engine *engine, const struct request *request)
{
    if (!request->prefilled_us)
        fair_satisfy(engine->schedule.fair, request->tenant);
    fair_leave(engine->schedule.fair, request->tenant);
}
