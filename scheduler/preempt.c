#include "scheduler/engine_calls.h"

/* Not twice without progress in between, or two could take turns for ever. */
static bool may_yield(const struct request *request, const struct request *to)
{
    if (request->phase != REQUEST_RUNNING || request->is_in_pass ||
        request->priority >= to->priority)
        return false;
    return !request->is_preempted ||
           resident_position(request->session->resident) >=
               request->preempt_position + PREEMPT_PROGRESS;
}

/* Requests are in order of priority: the lowest goes first, and of equals the
 * newest. */
static struct request *find(const struct engine *engine,
                            const struct request *to)
{
    struct request *r = engine->last;

    while (r && !may_yield(r, to))
        r = r->before;
    return r;
}

bool preempt_finds(const struct engine *engine, const struct request *request)
{
    return find(engine, request) != NULL;
}

bool preempt_one(struct engine *engine, const struct request *request)
{
    struct request *victim = find(engine, request);

    if (!victim)
        return false;
    victim->is_preempted = true;
    victim->preempt_position = resident_position(victim->session->resident);
    metric_add(engine->metrics.preemptions, 1);
    request_step_back(engine, victim);
    return true;
}
