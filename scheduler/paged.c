/*
 * Sessions of whose KV blocks only some are in RAM: state/paging.h. The engine
 * never waits for a disk on their behalf. A row is computed when what it sees
 * is in RAM, which is known when the row before is done; a prompt's pass stops
 * where it sees what is not, and goes on when that is there. Blocks leave RAM
 * when they are stored, so a session that has too many others is saved before
 * it may bring more.
 */
#include "scheduler/engine_calls.h"

static struct paging *paging_of(const struct resident *resident)
{
    return resident && resident->memory ? memory_paging(resident->memory)
                                        : NULL;
}

bool paged_is(const struct engine *engine, const struct session *session)
{
    const struct resident *resident = session->resident;

    if (resident && resident->memory)
        return paging_of(resident) != NULL;
    return engine->options.pager && policy_is_bounded(&session->policy) &&
           session->durability != DURABILITY_NONE && session->name[0];
}

bool paged_may_fork(const struct resident *resident)
{
    const struct paging *paging = paging_of(resident);

    return !paging || paging_may_fork(paging);
}

/* Of one session. */
static size_t page_bytes(const struct engine *engine,
                         const struct policy *policy)
{
    const size_t least = paging_least(engine->options.model, policy);

    return engine->options.page_bytes > least ? engine->options.page_bytes
                                              : least;
}

enum status paged_begin(const struct engine *engine,
                        const struct session *session, struct memory *memory)
{
    const struct policy *policy = &session->policy;

    if (!engine->options.pager || !paged_is(engine, session))
        return STATUS_OK;
    return memory_page(memory, engine->options.pager,
                       page_bytes(engine, policy));
}

size_t paged_bytes(const struct engine *engine, const struct session *session,
                   uint64_t n_token)
{
    return paging_of(session->resident)
               ? memory_grown_bytes(session->resident->memory, n_token)
               : paged_fresh_bytes(engine, session, n_token);
}

size_t paged_fresh_bytes(const struct engine *engine,
                         const struct session *session, uint64_t n_token)
{
    return memory_paged_bytes(engine->options.model, &session->policy,
                              page_bytes(engine, &session->policy), n_token);
}

void paged_begin_turn(const struct engine *engine, struct request *request)
{
    const struct session *session = request->session;
    struct paging *paging = paging_of(session->resident);
    size_t most;

    if (!paging)
        return;
    paging_limit(paging, UINT64_MAX);
    most = resident_bytes(engine, session, request->n_most);
    if (most > charge_holds(session) &&
        charge_is_over(engine, most - charge_holds(session), 0, true)) {
        paging_limit(paging, request->n_most / KV_BLOCK + 1);
        most = resident_bytes(engine, session, request->n_most);
    }
    request->promise = most;
}

bool paged_trim(struct session *session)
{
    struct resident *resident = session->resident;

    return paging_of(resident) && !resident->image && !resident->is_saving &&
           paging_trim(paging_of(resident));
}

void paged_count_shared(const struct resident *resident)
{
    if (paging_of(resident))
        paging_count_shared(paging_of(resident));
}

void paged_stored(struct session *session, uint64_t n_token,
                  const struct log_path *base)
{
    struct paging *paging = paging_of(session->resident);

    if (!paging)
        return;
    paging_stored(paging, n_token / KV_BLOCK, base, session_log(session));
    session->resident->is_short = false;
}

/* Are its blocks of a log that is kept for this session? */
static bool is_own(const struct session *session,
                   const struct snapshot_source *source)
{
    for (uint32_t p = 0; p < session->n_piece; p++)
        if (uid_equal(source->uid, session->piece[p].log) &&
            source->position <= session->piece[p].end)
            return true;
    return false;
}

void paged_sources(const struct engine *engine, const struct session *session,
                   struct prefix_answer *answer)
{
    const uint64_t n_page = paging_most(engine->options.model, &session->policy,
                                        page_bytes(engine, &session->policy));
    uint32_t n = 0;

    for (uint32_t i = 0; i < answer->n_hit; i++) {
        const struct snapshot_source *hit = &answer->hit[i];

        if (!is_own(session, hit) && hit->position / KV_BLOCK >= n_page)
            continue;
        if (n == 0 || is_own(session, hit) == is_own(session, answer->hit))
            answer->hit[n++] = *hit;
    }
    answer->n_hit = n;
}

void paged_fetch(const struct session *session, struct memory *memory,
                 const struct snapshot_source *best)
{
    if (memory_paging(memory) && !is_own(session, best))
        paging_adopt(memory_paging(memory));
}

void paged_fetched(struct session *session,
                   const struct snapshot_source *source)
{
    struct resident *resident = session->resident;
    const struct paging *paging = paging_of(resident);

    if (!paging || !is_own(session, source)) /* it has stored nothing of it */
        return;
    resident->snapshot_position = source->position;
    resident->snapshot_chain = source->chain;
    resident->base = *paging_base(paging);
    if (!uid_equal(source->uid, session_log(session)))
        log_pieces_add(&resident->base, source->uid,
                       source->position / KV_BLOCK * KV_BLOCK);
}

void paged_forget(const struct engine *engine, struct resident *resident)
{
    if (!paging_of(resident))
        return;
    resident->snapshot_position = 0;
    resident->snapshot_chain = engine->empty_chain;
    resident->base = (struct log_path){0};
    resident->is_short = false;
}

bool paged_has(const struct resident *resident, uint64_t from)
{
    const struct paging *paging = paging_of(resident);

    return !paging || from / KV_BLOCK >= paging_n_stored(paging);
}

size_t paged_in_ram(const struct resident *resident, uint32_t layer,
                    uint64_t n_block, const struct mixer_plan *plan)
{
    const struct paging *paging = paging_of(resident);

    return paging ? paging_in_ram(paging, layer) : n_block * plan->block_bytes;
}

struct paging_use paged_use(const struct resident *resident, uint32_t layer)
{
    const struct paging *paging = paging_of(resident);

    return paging ? paging_use(paging, layer) : (struct paging_use){0};
}

void paged_lose(struct resident *resident)
{
    struct paging *paging = paging_of(resident);

    if (paging)
        paging_lose(paging);
}

bool paged_is_lost(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    const struct paging *paging = paging_of(session->resident);

    if (!paging || !paging_is_lost(paging))
        return false;
    resident_forget(engine, session);
    if (request->n_lost++ == 0) {
        request_step_back(engine, request);
        return true;
    }
    status_fail(STATUS_UNAVAILABLE,
                "stored blocks of the session cannot be read");
    status_because("STORE_UNREADABLE");
    request_fail(engine, request, FINISH_ERROR, status_cause());
    return true;
}

/* Nothing more before it is saved. */
static void save_first(struct engine *engine, struct session *session)
{
    session->resident->is_short = true;
    (void)resident_save(engine, session, true);
}

/* Positions up to the end of the last block that has room, or could have. */
static uint64_t room(const struct paging *paging, uint64_t position)
{
    return (paging_n_block(paging) + paging_room(paging)) * KV_BLOCK - position;
}

uint64_t paged_room(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    const struct paging *paging = paging_of(session->resident);
    const uint64_t position = resident_position(session->resident);
    uint64_t n;

    if (!paging)
        return UINT64_MAX;
    if (paged_is_lost(engine, request))
        return 0;
    n = room(paging, position);
    if (n == 0)
        save_first(engine, session);
    return n;
}

bool paged_ready(struct engine *engine, struct request *request)
{
    const struct resident *resident = request->session->resident;
    struct paging *paging = paging_of(resident);

    if (!paging)
        return true;
    return paged_room(engine, request) > 0 &&
           paging_ready(paging, memory_layers(resident->memory),
                        resident_position(resident)) &&
           !paged_is_lost(engine, request);
}
