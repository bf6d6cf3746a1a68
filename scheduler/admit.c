#include "scheduler/admit.h"

#include <assert.h>

#define RETRY_LEAST_MS 100.0
#define RETRY_MOST_MS 60000.0
#define PACE_KEEP 0.95 /* of the mean time between two starts, per start */

struct ahead { /* of the new request */
    double us;
    double n_waiting;
};

static double left_us(const struct plan_request *r,
                      const struct plan_rules *rules)
{
    return cost_prefill_us(rules->cost, r->position, r->position + r->n_pending,
                           rules->pass_rows);
}

static uint32_t tenant_of(const struct plan_request *r,
                          const struct plan_rules *rules)
{
    return rules->fair ? r->tenant : 0;
}

/*
 * What is computed of another one of its tenant and priority before it: all of
 * a shorter one; of a longer one about as much as it takes itself, for slack
 * is relative and a short one passes a long one.
 */
static double own_ahead_us(double other_us, double self_us,
                           const struct plan_rules *rules)
{
    double most = self_us + rules->base_us;

    return other_us < most ? other_us : most;
}

/*
 * What another tenant gets meanwhile: as much as the own one, more if it was
 * served less before, less if more, and no more than what it has.
 */
static void add_tenant(const struct admit_share *other, double gap,
                       const struct admit_share *own, struct ahead *ahead)
{
    double us = own->us, n = own->n_waiting + 1.0;

    us += gap * other->us / other->n_token;
    us = us < other->us ? us : other->us;
    ahead->us += us > 0 ? us : 0;
    ahead->n_waiting += n < other->n_waiting ? n : other->n_waiting;
}

static struct ahead ahead_of(const struct plan_request *self, double self_us,
                             const struct admit_load *load,
                             const struct plan_rules *rules)
{
    uint32_t n_tenant = rules->fair ? fair_places(rules->fair) : 1;
    uint32_t own = tenant_of(self, rules);
    struct admit_share *share = load->share;
    struct ahead ahead = {0, 0};

    for (uint32_t t = 0; t < n_tenant; t++)
        share[t] = (struct admit_share){0, 0, 0};
    for (uint32_t i = 0; i < load->n_request; i++) {
        const struct plan_request *r = &load->request[i];
        uint32_t t = tenant_of(r, rules);
        double us = left_us(r, rules);
        bool is_waiting = i < load->n_waiting;
        if (r->priority > self->priority) {
            ahead.us += us;
            ahead.n_waiting += is_waiting;
        } else if (r->priority == self->priority) {
            share[t].us += t == own ? own_ahead_us(us, self_us, rules) : us;
            share[t].n_token += (double)r->n_pending;
            share[t].n_waiting += is_waiting;
        }
    }
    ahead.us += share[own].us;
    ahead.n_waiting += share[own].n_waiting;
    share[own].us += self_us;
    for (uint32_t t = 0; t < n_tenant; t++)
        if (t != own && share[t].n_token > 0)
            add_tenant(&share[t],
                       (double)fair_counter(rules->fair, own) -
                           (double)fair_counter(rules->fair, t),
                       &share[own], &ahead);
    return ahead;
}

static void predict(const struct admit_request *request,
                    const struct admit_load *load,
                    const struct plan_rules *rules, struct admit_verdict *out)
{
    double self_us = left_us(&request->work, rules);
    struct ahead ahead = ahead_of(&request->work, self_us, load, rules);
    double compute = ahead.us / load->prompt_share;
    double place = load->place_us * (ahead.n_waiting + 1);

    assert(load->prompt_share > 0);
    out->wait_us = load->pass_us / load->prompt_share +
                   (place > compute ? place : compute);
    out->first_us = out->wait_us + self_us / load->prompt_share;
}

static uint32_t retry_ms(double us, uint64_t reply)
{
    /* The golden ratio's multiples spread replies evenly over 0.75 .. 1.25. */
    double part = (double)(reply * 0x9E3779B97F4A7C15u >> 11) * 0x1p-53;
    double ms = us / 1000;

    ms = ms > RETRY_LEAST_MS ? ms : RETRY_LEAST_MS;
    ms = ms < RETRY_MOST_MS ? ms : RETRY_MOST_MS;
    return (uint32_t)(ms * (0.75 + 0.5 * part));
}

static bool has_tenant_room(const struct admit_request *request,
                            const struct admit_load *load,
                            const struct admit_limits *limits)
{
    /* Those that it could take the place of do not stand in its way. */
    uint32_t first = request->work.priority < 0 ? 0 : load->n_sheddable;
    uint32_t n_waiting = load->n_waiting - first;
    uint64_t left =
        limits->max_queue > n_waiting ? limits->max_queue - n_waiting : 0;
    uint64_t n = 0;

    if (!request->has_quota || !limits->tenant_free)
        return true;
    for (uint32_t i = first; i < load->n_waiting; i++)
        n += load->request[i].tenant == request->work.tenant;
    return n == 0 || n < left * limits->tenant_free;
}

static double claim_us(const struct plan_claim *claim,
                       const struct admit_load *load)
{
    bool waits_longer =
        claim->entry < load->n_waiting && claim->us < load->place_us;

    return waits_longer ? load->place_us : claim->us;
}

/* What is too much of so much work to be done by then; not above 0: it fits. */
static double excess_of(double us, uint64_t deadline_us, double margin,
                        const struct plan_rules *rules)
{
    return margin * us + (double)rules->now_us - (double)deadline_us;
}

/*
 * What is too much of the work by some deadline if the new one comes among them
 * and each is served before those with later ones: that of the new one, or of
 * one behind it that would be in time without it.
 */
static double deadline_excess(const struct admit_request *request,
                              const struct admit_load *load,
                              const struct admit_limits *limits,
                              const struct plan_rules *rules)
{
    const struct plan_request *self = &request->work;
    double self_us = left_us(self, rules) / load->prompt_share;
    double us = load->pass_us / load->prompt_share, most, excess;
    uint32_t n = plan_claims(load->request, load->n_request, rules), i;

    self_us = self_us > load->place_us ? self_us : load->place_us;
    for (i = 0; i < n && rules->claim[i].deadline_us <= self->deadline_us; i++)
        us += claim_us(&rules->claim[i], load);
    most = excess_of(us + self_us, self->deadline_us, limits->margin, rules);
    for (; i < n; i++) {
        const struct plan_claim *claim = &rules->claim[i];
        us += claim_us(claim, load);
        excess =
            excess_of(us + self_us, claim->deadline_us, limits->margin, rules);
        if (excess > most && excess_of(us, claim->deadline_us, 1, rules) <= 0)
            most = excess;
    }
    return most;
}

/* The first reason there is; *out_excess_us: how much too long the wait is. */
static enum admit_reason
reason_of(const struct admit_request *request, const struct admit_load *load,
          const struct admit_limits *limits, const struct plan_rules *rules,
          const struct admit_verdict *predicted, double *out_excess_us)
{
    bool is_sheddable = request->work.priority < 0;
    double us = predicted->first_us * limits->margin, most;

    *out_excess_us = predicted->wait_us;
    if (request->bytes > limits->max_bytes)
        return ADMIT_KV_MEMORY;
    if (!has_tenant_room(request, load, limits))
        return ADMIT_TENANT_QUOTA;
    if (load->n_waiting >= limits->max_queue &&
        (is_sheddable || load->n_sheddable == 0))
        return ADMIT_QUEUE_FULL;
    if (request->work.deadline_us) {
        most = request->work.deadline_us > rules->now_us
                   ? (double)(request->work.deadline_us - rules->now_us)
                   : 0;
        *out_excess_us = us - most;
        if (us > most)
            return ADMIT_DEADLINE;
        if (!is_sheddable && rules->claim) {
            *out_excess_us = deadline_excess(request, load, limits, rules);
            if (*out_excess_us > 0)
                return ADMIT_DEADLINE;
        }
    }
    us = predicted->wait_us * limits->margin;
    most = is_sheddable ? limits->shed_wait_us : limits->max_wait_us;
    *out_excess_us = us - most;
    if (most > 0 && us > most)
        return is_sheddable ? ADMIT_SHED : ADMIT_QUEUE_FULL;
    return ADMIT_OK;
}

struct admit_verdict admit(const struct admit_request *request,
                           const struct admit_load *load,
                           const struct admit_limits *limits,
                           const struct plan_rules *rules)
{
    struct admit_verdict verdict = {.reason = ADMIT_OK};
    double excess_us;

    predict(request, load, rules, &verdict);
    verdict.reason =
        reason_of(request, load, limits, rules, &verdict, &excess_us);
    if (verdict.reason == ADMIT_OK)
        verdict.evicts = load->n_waiting >= limits->max_queue;
    else if (verdict.reason != ADMIT_KV_MEMORY)
        verdict.retry_ms = retry_ms(excess_us, request->reply);
    return verdict;
}

const char *admit_reason_text(enum admit_reason reason)
{
    static const char *const text[] = {
        "", "QUEUE_FULL", "KV_MEMORY", "TENANT_QUOTA", "DEADLINE", "SHED"};

    return text[reason];
}

void admit_started(struct admit_pace *pace, uint64_t now_us)
{
    double us = (double)(now_us - pace->last_us);

    if (pace->is_blocked)
        pace->mean_us = pace->mean_us > 0
                            ? PACE_KEEP * pace->mean_us + (1 - PACE_KEEP) * us
                            : us;
    pace->last_us = now_us;
}

void admit_blocked(struct admit_pace *pace, bool is_blocked, uint64_t now_us)
{
    if (is_blocked && !pace->is_blocked)
        pace->last_us = now_us;
    pace->is_blocked = is_blocked;
}

double admit_place_us(const struct admit_pace *pace, uint64_t now_us)
{
    double since = (double)(now_us - pace->last_us);

    if (!pace->is_blocked)
        return 0;
    return since > pace->mean_us ? since : pace->mean_us;
}

static bool yields_before(const struct plan_request *request, uint32_t a,
                          uint32_t b, const struct plan_rules *rules)
{
    const struct plan_request *x = &request[a], *y = &request[b];
    double slack_x = plan_slack(x, rules), slack_y = plan_slack(y, rules);

    if ((x->priority < 0) != (y->priority < 0))
        return x->priority < 0;
    if (slack_x < slack_y || slack_x > slack_y)
        return slack_x > slack_y;
    return x->arrive_us > y->arrive_us;
}

uint32_t admit_victim(const struct plan_request *request, uint32_t n,
                      const struct plan_rules *rules)
{
    uint32_t victim = 0;

    for (uint32_t i = 1; i < n; i++)
        if (yields_before(request, i, victim, rules))
            victim = i;
    return n ? victim : n;
}
