#include "scheduler/plan.h"

#include "kernels/backend.h"

#include <assert.h>
#include <stdlib.h>

#define NOT_DUE UINT64_MAX
#define PATIENT (UINT64_MAX - 1) /* behind all that have a deadline */
#define TARGET_MAX 1e15          /* microseconds: 30 years */

static int by_entry(const void *a, const void *b)
{
    const struct plan_chunk *x = a, *y = b;

    return (x->entry > y->entry) - (x->entry < y->entry);
}

uint64_t plan_target_us(const struct cost *cost, uint64_t begin, uint64_t end,
                        const struct plan_rules *rules, double factor)
{
    double us = rules->base_us +
                factor * cost_prefill_us(cost, begin, end, rules->pass_rows);

    return us < 1 ? 1 : us < TARGET_MAX ? (uint64_t)us : (uint64_t)TARGET_MAX;
}

struct work { /* of one request, microseconds */
    double left, total, wait, target;
};

static struct work work_of(const struct plan_request *r,
                           const struct plan_rules *rules)
{
    uint64_t end = r->position + r->n_pending;
    struct work work = {
        .left =
            cost_prefill_us(rules->cost, r->position, end, rules->pass_rows),
        .total = cost_prefill_us(rules->cost, r->begin, end, rules->pass_rows)};

    assert(r->begin <= r->position && r->target_us > r->arrive_us);
    if (rules->now_us > r->arrive_us)
        work.wait = (double)(rules->now_us - r->arrive_us);
    work.target = (double)(r->target_us - r->arrive_us);
    return work;
}

static double slack_of(const struct work *work)
{
    double share = work->left / work->total;

    if (!(share > PLAN_SHARE_LEAST))
        share = PLAN_SHARE_LEAST;
    return 1 - (work->wait + work->left) / (work->target * share);
}

double plan_slack(const struct plan_request *request,
                  const struct plan_rules *rules)
{
    struct work work = work_of(request, rules);

    return slack_of(&work);
}

/* Has it a deadline that can be kept by so much work? */
static bool has_promise(const struct plan_request *r, double us,
                        const struct plan_rules *rules)
{
    return r->priority >= 0 && r->deadline_us > r->arrive_us &&
           (double)rules->now_us + us < (double)r->deadline_us;
}

static int by_deadline(const void *a, const void *b)
{
    const struct plan_claim *x = a, *y = b;

    if (x->deadline_us != y->deadline_us)
        return x->deadline_us > y->deadline_us ? 1 : -1;
    return x->entry > y->entry ? 1 : -1;
}

uint32_t plan_claims(const struct plan_request *request, uint32_t n,
                     const struct plan_rules *rules)
{
    uint32_t n_claim = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct plan_request *r = &request[i];
        double us =
            cost_prefill_us(rules->cost, r->position,
                            r->position + r->n_pending, rules->pass_rows) /
            rules->prompt_share;
        if (has_promise(r, us, rules))
            rules->claim[n_claim++] = (struct plan_claim){
                .deadline_us = r->deadline_us, .us = us, .entry = i};
    }
    qsort(rules->claim, n_claim, sizeof(*rules->claim), by_deadline);
    return n_claim;
}

/*
 * The last deadline before which the time is nearly full; 0: there is none.
 * All up to it are due: one of them alone would come too late behind another.
 */
static uint64_t urgent_us(const struct plan_request *request, uint32_t n,
                          const struct plan_rules *rules)
{
    uint32_t n_claim = rules->claim ? plan_claims(request, n, rules) : 0;
    uint64_t until_us = 0;
    double us = 0;

    for (uint32_t i = 0; i < n_claim; i++) {
        const struct plan_claim *claim = &rules->claim[i];
        us += claim->us > rules->place_us ? claim->us : rules->place_us;
        if ((double)rules->now_us + PLAN_HASTE * us >=
            (double)claim->deadline_us)
            until_us = claim->deadline_us;
    }
    return until_us;
}

/*
 * By when a request that goes before the others has to be done; NOT_DUE: it
 * does not. See the header.
 */
static uint64_t due_us(const struct plan_request *r, const struct work *work,
                       uint64_t until_us, const struct plan_rules *rules)
{
    bool is_late = work->wait + work->left >
                   PLAN_DUE * ((double)r->deadline_us - (double)r->arrive_us);

    if (has_promise(r, work->left, rules) &&
        (is_late || r->deadline_us <= until_us))
        return r->deadline_us;
    return r->priority >= 0 && rules->patience_us > 0 &&
                   work->wait > rules->patience_us + work->target
               ? PATIENT
               : NOT_DUE;
}

static void rank_all(const struct plan_request *request, uint32_t n,
                     const struct plan_rules *rules, struct plan_rank *out)
{
    uint64_t until_us = urgent_us(request, n, rules);

    for (uint32_t i = 0; i < n; i++) {
        const struct plan_request *r = &request[i];
        struct work work = work_of(r, rules);
        uint64_t us = due_us(r, &work, until_us, rules);
        out[i] = (struct plan_rank){
            .priority = us < NOT_DUE ? INT32_MAX : r->priority,
            .due_us = us,
            .counter = rules->fair ? fair_counter(rules->fair, r->tenant) : 0,
            .slack = slack_of(&work)};
    }
}

static bool goes_before(const struct plan_request *request,
                        const struct plan_rank *rank, uint32_t a, uint32_t b)
{
    if (rank[a].priority != rank[b].priority)
        return rank[a].priority > rank[b].priority;
    if (rank[a].due_us != rank[b].due_us)
        return rank[a].due_us < rank[b].due_us;
    if (rank[a].counter != rank[b].counter)
        return rank[a].counter < rank[b].counter;
    if (rank[a].slack < rank[b].slack || rank[a].slack > rank[b].slack)
        return rank[a].slack < rank[b].slack;
    if (request[a].arrive_us != request[b].arrive_us)
        return request[a].arrive_us < request[b].arrive_us;
    return a < b;
}

/* The first of those that are not taken; n if all are. */
static uint32_t first_of(const struct plan_request *request, uint32_t n,
                         const struct plan_rank *rank)
{
    uint32_t best = n;

    for (uint32_t i = 0; i < n; i++)
        if (!rank[i].is_taken &&
            (best == n || goes_before(request, rank, i, best)))
            best = i;
    return best;
}

/* Its tokens count for its tenant from here on, as they will for good. */
static void take(const struct plan_request *request, uint32_t n,
                 struct plan_rank *rank, uint32_t taken, uint64_t n_token)
{
    rank[taken].is_taken = true;
    for (uint32_t i = 0; i < n; i++)
        if (request[i].tenant == request[taken].tenant)
            rank[i].counter += FAIR_PROMPT * n_token;
}

uint32_t plan_start(const struct plan_request *request, uint32_t n,
                    const struct plan_rules *rules, struct plan_rank *rank,
                    uint32_t n_start, uint32_t *out)
{
    n_start = n_start < n ? n_start : n;
    rank_all(request, n, rules, rank);
    for (uint32_t i = 0; i < n_start; i++) {
        out[i] = first_of(request, n, rank);
        take(request, n, rank, out[i], request[out[i]].n_pending);
    }
    return n_start;
}

/* Its next chunk, of at most n_max tokens and left_us, if it is the first of
 * the pass of at least least_rows; 0: none fits. */
static uint64_t chunk_of(const struct plan_request *r,
                         const struct plan_rules *rules, uint64_t n_max,
                         double left_us, bool is_first)
{
    uint64_t to_cut = rules->cut_grid - r->position % rules->cut_grid;
    uint64_t n = r->n_pending < to_cut ? r->n_pending : to_cut, least, end;

    if (n > n_max) { /* whole blocks of the kernels, where there is one */
        end = (r->position + n_max) / GRID * GRID;
        n = end > r->position ? end - r->position : n_max;
    }
    least = is_first ? rules->least_rows : 1;
    if (n <= least || cost_add_us(rules->cost, r->position, least) > left_us) {
        if (is_first)
            return n < least ? n : least;
        return cost_add_us(rules->cost, r->position, 1) <= left_us;
    }
    return cost_chunk(rules->cost, r->position, n, left_us);
}

uint32_t plan_prompt(const struct plan_request *request, uint32_t n,
                     const struct plan_rules *rules, struct plan_rank *rank,
                     struct plan_chunk *out)
{
    double fixed_us = rules->cost->prompt.weight[0];
    double left_us = rules->pass_us - fixed_us;
    uint64_t left_rows = rules->pass_rows, got;
    uint32_t n_chunk = 0;

    if (left_us < PLAN_WORTH * fixed_us)
        left_us = PLAN_WORTH * fixed_us;
    rank_all(request, n, rules, rank);
    for (uint32_t i = 0; i < n; i++)
        rank[i].is_taken = request[i].n_pending == 1;
    while (left_rows > 0) {
        uint32_t next = first_of(request, n, rank);
        if (next == n)
            break;
        got = chunk_of(&request[next], rules, left_rows, left_us, n_chunk == 0);
        if (got == 0)
            break;
        left_us -= cost_add_us(rules->cost, request[next].position, got);
        left_rows -= got;
        out[n_chunk++] = (struct plan_chunk){next, (uint32_t)got};
        take(request, n, rank, next, got);
    }
    qsort(out, n_chunk, sizeof(*out), by_entry);
    return n_chunk;
}

double plan_slice_us(const struct plan_pace *pace, double decode_us)
{
    double us = pace->stretch * decode_us, room = pace->token_us - decode_us;

    us = us < room ? us : room;
    return us > pace->least_us ? us : pace->least_us;
}

double plan_step_slice_us(const struct plan_pace *pace, double decode_us,
                          double took_us, double lag_us)
{
    double slice_us = plan_slice_us(pace, decode_us);
    double us = slice_us + decode_us - took_us - lag_us;

    us = us > slice_us / 4 ? us : slice_us / 4;
    return us > pace->least_us ? us : pace->least_us;
}

double plan_prompt_share(const struct plan_pace *pace, double decode_us)
{
    double us;

    if (!(decode_us > 0))
        return 1;
    us = plan_slice_us(pace, decode_us);
    return us / (us + decode_us);
}
