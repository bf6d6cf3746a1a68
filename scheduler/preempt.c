#include "scheduler/engine_parts.h"

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

bool preempt_one(struct engine *engine, const struct request *request)
{
    /* Requests are in order of priority: the lowest goes first, and of equals
     * the newest. */
    for (struct request *r = engine->last; r; r = r->before) {
        if (!may_yield(r, request))
            continue;
        r->is_preempted = true;
        r->preempt_position = resident_position(r->session->resident);
        metric_add(engine->metrics.preemptions, 1);
        request_step_back(engine, r);
        return true;
    }
    return false;
}
