#include "scheduler/errand_parts.h"

#include <stdlib.h>
#include <string.h>

#define EVICT_OUT_MAX 4u /* jobs with the store thread at once */

/* --- the store's limit --- */

void keep_stored(struct engine *engine, struct uid log, size_t bytes)
{
    if (ledger_set(&engine->stored, log, bytes))
        (void)engine_need(NULL);
}

/* So far that the next save does not begin all over again. */
static size_t goal(const struct engine *engine)
{
    return engine->options.store_bytes - engine->options.store_bytes / 8;
}

static bool has_errand(const struct engine *engine,
                       const struct session *session)
{
    const struct errand *errand = engine->errands;

    while (errand && errand->session != session)
        errand = errand->next;
    return errand != NULL;
}

/* Has it something to lose, and runs nothing of it? */
static bool may_evict(const struct engine *engine,
                      const struct session *session, uint32_t n_keep)
{
    const struct resident *resident = session->resident;

    if (!session->is_listed || session->is_pinned || session->request ||
        session->is_loading || session->is_fetching || session->is_evicting ||
        session->n_flight > 0 || has_errand(engine, session) ||
        (resident && (resident->image || resident->leaves)) ||
        (resident && resident->memory && n_keep == 0 &&
         memory_paging(resident->memory))) /* it reads them */
        return false;
    return ledger_get(&engine->stored, session_log(session)) > 0 &&
           (n_keep > 0 ||
            lineage_lent(&engine->lineage, session_log(session)) == 0);
}

static int by_use(const void *a, const void *b)
{
    const struct session *x = *(struct session *const *)a;
    const struct session *y = *(struct session *const *)b;

    if (x->last_active_ms != y->last_active_ms)
        return x->last_active_ms < y->last_active_ms ? -1 : 1;
    if (x->uid.hi != y->uid.hi)
        return x->uid.hi < y->uid.hi ? -1 : 1;
    return (x->uid.lo > y->uid.lo) - (x->uid.lo < y->uid.lo);
}

static void begin(struct engine *engine)
{
    struct session **list =
        engine_need(calloc(engine->n_session + 1, sizeof(struct session *)));
    uint64_t n = 0;

    for (uint64_t i = 0; i < engine->n_session; i++)
        if (may_evict(engine, engine->table[i], 1)) {
            list[n++] = engine->table[i];
            engine->table[i]->n_hold++;
        }
    qsort(list, n, sizeof(struct session *), by_use);
    engine->eviction.session = list;
    engine->eviction.n = n;
    engine->eviction.at = 0;
    engine->eviction.n_keep = 1;
}

void keep_release(struct engine *engine)
{
    for (uint64_t i = 0; engine->eviction.session && i < engine->eviction.n;
         i++) {
        engine->eviction.session[i]->n_hold--;
        session_put(engine->eviction.session[i]);
    }
    free(engine->eviction.session);
    engine->eviction.session = NULL;
    engine->eviction.n = 0;
}

static void end(struct engine *engine)
{
    keep_release(engine);
    engine->eviction.in_vain = 0;
    if (engine->stored.total <= engine->options.store_bytes)
        return;
    engine->eviction.in_vain = engine->stored.total;
    log_limited(&engine->store_log, LOG_WARN, "engine", "",
                "store has %zu MiB of sessions that run, are pinned or are "
                "read by others, limit %zu MiB",
                engine->stored.total >> 20, engine->options.store_bytes >> 20);
}

/* False while the store thread takes no more. */
static bool send(struct engine *engine, struct session *session)
{
    const struct scrub_loss loss = {.log = session_log(session)};
    struct store_job *job = jobs_create(STORE_EVICT, loss.log, session);
    size_t going = 0; /* of older snapshots alone it is not known */

    job->n_keep = engine->eviction.n_keep;
    if (job->n_keep == 0)
        going = ledger_get(&engine->stored, loss.log);
    job->n_byte = going;
    if (!jobs_push(engine, job))
        return false;
    engine->eviction.going += going;
    if (engine->eviction.n_keep == 0) {
        logs_lose(engine, &loss); /* before anything is built on it */
        prefix_remove(engine->prefix, loss.log);
    }
    session->is_evicting = true;
    session->n_hold++;
    engine->eviction.n_out++;
    return true;
}

/* True: there is one more to look at. */
static bool next_round(struct engine *engine)
{
    if (engine->eviction.at < engine->eviction.n)
        return true;
    if (engine->eviction.n_keep == 0 || engine->eviction.n_out > 0)
        return false;
    engine->eviction.n_keep = 0;
    engine->eviction.at = 0;
    return engine->eviction.n > 0;
}

void keep_within(struct engine *engine)
{
    const size_t total = engine->stored.total;

    if (!engine->eviction.session) {
        if (engine->options.store_bytes == 0 ||
            total <= engine->options.store_bytes ||
            total == engine->eviction.in_vain || engine->is_draining)
            return;
        begin(engine);
    }
    while (!engine->is_draining &&
           total > goal(engine) + engine->eviction.going &&
           engine->eviction.n_out < EVICT_OUT_MAX && next_round(engine)) {
        struct session *session = engine->eviction.session[engine->eviction.at];

        if (may_evict(engine, session, engine->eviction.n_keep) &&
            !send(engine, session))
            return;
        engine->eviction.at++;
    }
    if (engine->eviction.n_out == 0)
        end(engine);
}

void keep_evicted(struct engine *engine, const struct store_job *job)
{
    struct session *session = job->owner;

    session->is_evicting = false;
    engine->eviction.n_out--;
    engine->eviction.going -= job->n_byte;
    if (job->status)
        log_limited(&engine->store_log, LOG_WARN, "engine", session->name,
                    "snapshots are not evicted: %s", job->cause.text);
    else
        prefix_listed(engine, job);
    metric_add(engine->metrics.store_evictions, 1);
    session->n_hold--;
    session_put(session);
}

/* --- tenants --- */

/* Of its own log; a reply that runs, with what it may still grow to. */
static uint64_t tokens_of(const struct session *session)
{
    const struct request *request = session->request;
    uint64_t n = session->n_token, inherited = 0;

    if (request && request->kind == REQUEST_GENERATE &&
        request->phase != REQUEST_LOADING) {
        uint64_t end =
            request->output_start + session->resident->turn.sampling.max_tokens;
        n = n > end ? n : end;
    }
    if (session->n_piece > 1)
        inherited = session->piece[session->n_piece - 2].end;
    return n - inherited;
}

struct usage {
    uint64_t n_session, n_token;
    size_t stored;
};

static struct usage usage_of(const struct engine *engine, const char *tenant)
{
    struct usage usage = {0};

    for (uint64_t i = 0; i < engine->n_session; i++) {
        const struct session *session = engine->table[i];

        if (strcmp(session->tenant ? session->tenant : "", tenant) != 0)
            continue;
        usage.n_session++;
        usage.n_token += tokens_of(session);
        if (engine->options.tenant_store > 0)
            usage.stored += ledger_get(&engine->stored, session_log(session));
    }
    return usage;
}

static enum status over(const char *tenant, const char *what, uint64_t n,
                        uint64_t more, uint64_t max)
{
    char field[STATUS_WORD_SIZE] = "tenant.";

    status_fail(STATUS_RESOURCE_EXHAUSTED,
                "tenant \"%s\" has %lu %s and asks for %lu more, limit %lu",
                tenant, n, what, more, max);
    status_because("TENANT_QUOTA");
    strncat(field, what, sizeof(field) - strlen(field) - 1);
    return status_field(field);
}

enum status keep_quota(struct engine *engine, const char *tenant,
                       uint64_t n_session, uint64_t n_token)
{
    const struct engine_options *o = &engine->options;
    struct usage usage;

    if (o->tenant_sessions == 0 && o->tenant_tokens == 0 &&
        o->tenant_store == 0)
        return STATUS_OK;
    usage = usage_of(engine, tenant);
    if (n_session > 0 && o->tenant_sessions > 0 &&
        usage.n_session + n_session > o->tenant_sessions)
        return over(tenant, "sessions", usage.n_session, n_session,
                    o->tenant_sessions);
    if (n_token > 0 && o->tenant_tokens > 0 &&
        usage.n_token + n_token > o->tenant_tokens)
        return over(tenant, "tokens", usage.n_token, n_token, o->tenant_tokens);
    if (n_token > 0 && o->tenant_store > 0 && usage.stored > o->tenant_store)
        return over(tenant, "store_bytes", usage.stored, 0, o->tenant_store);
    return STATUS_OK;
}
