/*
 * What sessions have in memory, in bytes: all of it, and of that the states of
 * fixed size, which have a budget of their own.
 */
#include "scheduler/engine_calls.h"

/* Of its memory, those that others may have, too. */
static size_t shared_bytes(const struct session *session)
{
    const struct resident *resident = session->resident;

    return resident && resident->memory ? memory_shared_bytes(resident->memory)
                                        : 0;
}

static size_t bytes_now(const struct engine *engine,
                        const struct session *session)
{
    const struct resident *resident = session->resident;
    size_t n;

    if (!resident)
        return 0;
    n = sizeof(*resident) + resident->tokens.n * sizeof(uint32_t);
    if (!resident->memory)
        return n;
    if (swap_comes_back(resident))
        return resident_bytes(engine, session, resident->tokens.n);
    return n + (swap_is_aside(resident) ? 0 : memory_bytes(resident->memory));
}

size_t charge_state_bytes(const struct engine *engine,
                          const struct session *session)
{
    return memory_bytes_for(engine->options.model, &session->policy, 0);
}

/* Of the memory that it has, or that bytes are counted for. */
static void charge_states(struct engine *engine, struct session *session,
                          size_t bytes)
{
    const struct resident *resident = session->resident;
    const size_t state = charge_state_bytes(engine, session);
    const uint64_t n = resident ? resident->tokens.n : session->n_token;
    const bool has =
        (resident && resident->memory && !swap_is_aside(resident)) ||
        bytes >= sizeof(*resident) + n * sizeof(uint32_t) + state;
    const size_t now = bytes && has ? state : 0;

    engine->state_charged += now - session->state_charge;
    if (resident && resident->leaves)
        engine->state_leaving += now - session->state_charge;
    session->state_charge = now;
}

void charge_bytes(struct engine *engine, struct session *session, size_t bytes)
{
    const size_t shared = shared_bytes(session);

    charge_states(engine, session, bytes);
    bytes = bytes > shared ? bytes - shared : 0;
    engine->charged += bytes - session->charge;
    if (session->resident && session->resident->leaves)
        engine->leaving += bytes - session->charge;
    session->charge = bytes;
}

size_t charge_holds(const struct session *session)
{
    return session->charge + shared_bytes(session);
}

size_t charge_total(const struct engine *engine)
{
    const struct pager *pager = engine->options.pager;

    return engine->charged + engine->shared_bytes +
           (pager ? pager_shared_bytes(pager) : 0);
}

void charge_settle(struct engine *engine, struct session *session)
{
    paged_count_shared(session->resident);
    charge_bytes(engine, session, bytes_now(engine, session));
}

/* Those of which somebody has begun to share pages have more than they need
 * be charged for. */
void charge_settle_shared(struct engine *engine)
{
    const struct pager *pager = engine->options.pager;

    if (!pager || pager_shared_bytes(pager) == engine->pages_settled)
        return;
    engine->pages_settled = pager_shared_bytes(pager);
    for (struct session *s = engine->oldest; s; s = s->newer)
        if (!s->resident->leaves && paged_is(engine, s))
            charge_settle(engine, s);
}

void charge_leaving(struct engine *engine, struct session *session)
{
    session->resident->leaves = true;
    engine->leaving += session->charge;
    engine->state_leaving += session->state_charge;
}

bool charge_is_over(const struct engine *engine, size_t bytes, size_t states,
                    bool counts_leaving)
{
    const struct engine_options *o = &engine->options;
    const size_t goes = counts_leaving ? 0 : engine->leaving;
    const size_t states_go = counts_leaving ? 0 : engine->state_leaving;

    return charge_total(engine) - goes + bytes > o->session_bytes ||
           (o->state_bytes && states &&
            engine->state_charged - states_go + states > o->state_bytes);
}
