#include "scheduler/errand_parts.h"

#include <stdlib.h>
#include <string.h>

#define PREFIX_ENTRIES 65536u  /* snapshots that the index knows */
#define PREFIX_SEEN (1u << 18) /* grid points: 16 million tokens of prompts */
#define PREFIX_MIN 64u         /* tokens that are worth a read or a snapshot */
#define RATE_WEIGHT 0.2        /* of the newest sample */
#define RATE_FADE                                                              \
    0.98 /* per read that was not tried: estimates that                        \
            nobody tests must not rule for ever */

enum restore_reason_code prefix_word(enum restore_reason reason)
{
    switch (reason) {
    case RESTORE_NUMERICS:
        return REUSE_NUMERICS_CHANGED;
    case RESTORE_WEIGHTS:
        return REUSE_WEIGHTS_CHANGED;
    case RESTORE_POLICY:
        return REUSE_POLICY_CHANGED;
    case RESTORE_CHAIN:
        return REUSE_SNAPSHOT_MISMATCH;
    case RESTORE_DAMAGED:
        return REUSE_SNAPSHOT_DAMAGED;
    case RESTORE_HIT:
    case RESTORE_NONE:
        break;
    }
    return REUSE_NONE;
}

static bool is_nobody(struct uid uid)
{
    return uid.hi == 0 && uid.lo == 0;
}

uint64_t prefix_scope(const struct engine *engine,
                      const struct session *session, const char *tenant)
{
    uint64_t scope = 0;

    if (engine->options.prefix_bytes == 0)
        scope = is_nobody(session->uid)
                    ? NO_SCOPE
                    : digest_64(&session->uid, sizeof(session->uid));
    else if (tenant[0])
        scope = digest_64(tenant, strlen(tenant));
    return scope == NO_SCOPE ? scope : policy_scope(&session->policy, scope);
}

/* --- the index, kept as the store is --- */

struct live { /* one of the sessions, by uid */
    struct uid uid;
    struct session *session;
};

struct listing {
    struct engine *engine;
    struct live *live; /* [n_session] sorted */
    uint64_t n_deleted;
};

static int by_uid(const void *a, const void *b)
{
    const struct uid *x = &((const struct live *)a)->uid;
    const struct uid *y = &((const struct live *)b)->uid;

    if (x->hi != y->hi)
        return x->hi < y->hi ? -1 : 1;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

static struct session *find_live(const struct listing *listing, struct uid uid)
{
    struct live key = {.uid = uid};
    const struct live *live =
        listing->engine->n_session == 0
            ? NULL
            : bsearch(&key, listing->live, listing->engine->n_session,
                      sizeof(key), by_uid);

    return live ? live->session : NULL;
}

static void put(struct engine *engine, const struct prefix_owner *owner,
                const struct snapshot_entry *entry, uint32_t n)
{
    struct uid excess;

    prefix_put(engine->prefix, owner, entry, n);
    while (prefix_take_excess(engine->prefix, &excess))
        jobs_delete(engine, excess);
}

/* What belongs to nobody who is left was to be deleted when we stopped. */
static enum status list(void *context, const struct snapshot_owned *owned)
{
    struct listing *listing = context;
    struct engine *engine = listing->engine;
    bool is_loose = !uid_equal(owned->uid, owned->session);
    struct session *session =
        is_loose ? find_live(listing, owned->session) : NULL;
    uint64_t need = lineage_need(&engine->lineage, owned->uid);
    bool stays = need > 0;

    if (is_loose)
        stays = (session || is_nobody(owned->session)) &&
                engine->options.prefix_bytes > 0 && owned->is_usable;
    if (!stays) {
        jobs_delete(engine, owned->uid);
        listing->n_deleted++;
        return STATUS_OK;
    }
    if (is_loose && session)
        session->has_loose = true;
    if (!is_loose && owned->is_usable && owned->n > 0 &&
        owned->entry[0].position > need)
        jobs_delete(engine, owned->uid); /* what is behind; then it is put */
    else
        put(engine,
            &(struct prefix_owner){.uid = owned->uid,
                                   .session = owned->session,
                                   .is_usable = owned->is_usable,
                                   .bytes = owned->bytes},
            owned->entry, owned->n);
    if (ledger_set(&engine->stored, owned->uid, owned->bytes))
        (void)engine_need(NULL);
    return STATUS_OK;
}

enum status prefix_open(struct engine *engine)
{
    struct prefix_limits limits = {.n_entry = PREFIX_ENTRIES,
                                   .n_seen = PREFIX_SEEN,
                                   .loose_bytes = engine->options.prefix_bytes};
    struct listing listing = {.engine = engine};
    struct prefix_stats stats;
    enum status st = prefix_create(&limits, &engine->prefix);
    uint64_t n_bad = 0;

    if (st || !engine->options.snapshots)
        return st;
    listing.live =
        engine_need(calloc(engine->n_session + 1, sizeof(*listing.live)));
    for (uint64_t i = 0; i < engine->n_session; i++)
        listing.live[i] =
            (struct live){engine->table[i]->uid, engine->table[i]};
    qsort(listing.live, engine->n_session, sizeof(*listing.live), by_uid);
    st = snapshots_each(engine->options.snapshots, list, &listing, &n_bad);
    free(listing.live);
    stats = prefix_stats(engine->prefix);
    log_line(LOG_INFO, "engine", "",
             "%u snapshots of %u owners to start from, %lu lists unreadable, "
             "%lu owners without a session deleted",
             stats.n_entry, stats.n_owner, n_bad, listing.n_deleted);
    return st;
}

void prefix_saved(struct engine *engine, const struct store_job *job)
{
    const struct resident *resident = job->owner;
    struct uid session = resident->image_label.session;

    if (job->status)
        return;
    if (!resident->is_forsaken)
        prefix_listed(engine, job);
    else if (!uid_equal(job->uid, session))
        jobs_delete(engine, job->uid);
}

void prefix_listed(struct engine *engine, const struct store_job *job)
{
    const struct resident *resident =
        job->kind == STORE_SAVE ? job->owner : NULL;

    put(engine,
        &(struct prefix_owner){
            .uid = job->uid,
            .session = resident ? resident->image_label.session : job->uid,
            .is_usable = true,
            .bytes = job->n_stored},
        job->entry, job->n_entry);
    keep_stored(engine, job->uid, job->n_stored);
}

void prefix_imported(struct engine *engine, const struct session *session,
                     const struct snapshot_entry *entry)
{
    const struct prefix_owner owner = {
        .uid = session_log(session),
        .session = session_log(session),
        .is_usable = true,
        .bytes = snapshot_bytes(engine->options.model, &session->policy,
                                entry->position)};

    put(engine, &owner, entry, 1);
    keep_stored(engine, owner.uid, owner.bytes);
}

void prefix_trimmed(struct engine *engine, const struct store_job *job)
{
    if (job->n_needed == 0)
        prefix_remove(engine->prefix, job->uid); /* of a save before it */
    else if (!job->status)
        put(engine,
            &(struct prefix_owner){.uid = job->uid,
                                   .session = job->uid,
                                   .is_usable = true,
                                   .bytes = job->n_stored},
            job->entry, job->n_entry);
    if (!job->status)
        keep_stored(engine, job->uid, job->n_stored);
}

void prefix_deleted(struct engine *engine, const struct session *session)
{
    struct uid loose;

    if (session->resident && session->resident->is_saving)
        session->resident->is_forsaken = true;
    if (lineage_lent(&engine->lineage, session_log(session)) == 0)
        prefix_remove(engine->prefix, session_log(session));
    while (session->has_loose &&
           prefix_take_loose(engine->prefix, session->uid, &loose))
        jobs_delete(engine, loose);
}

/* --- what reading and computing cost --- */

static void learn(double *rate, double sample)
{
    *rate = *rate > 0 ? *rate + RATE_WEIGHT * (sample - *rate) : sample;
}

static double *rate_of(struct engine *engine, enum store_job_kind kind)
{
    if (kind == STORE_SAVE)
        return &engine->cost.save_us_per_byte;
    if (kind == STORE_LOAD || kind == STORE_FETCH)
        return &engine->cost.load_us_per_byte;
    return NULL;
}

void prefix_job_sent(struct engine *engine, struct store_job *job,
                     uint64_t n_byte)
{
    const double *rate = rate_of(engine, job->kind);

    job->n_byte = n_byte;
    job->expected_us = rate ? (uint64_t)(*rate * (double)n_byte) : 0;
    engine->cost.backlog_us += job->expected_us;
}

void prefix_job_done(struct engine *engine, const struct store_job *job)
{
    double *rate = rate_of(engine, job->kind);

    engine->cost.backlog_us -= job->expected_us;
    if (rate && !job->status && job->n_byte > 0)
        learn(rate, (double)job->elapsed_us / (double)job->n_byte);
}

void prefix_measure(struct engine *engine, const struct request *request)
{
    uint64_t us = request->prefilled_us - request->start_us;

    if (us > 0 && !request->asker &&
        request->output_start >= request->n_cached + PREFIX_MIN)
        learn(&engine->cost.compute_us_per_token,
              (double)us / (double)(request->output_start - request->n_cached));
}

/* Unknown costs are learned by trying. */
static bool is_faster(struct engine *engine, const struct session *session,
                      uint64_t from, uint64_t to)
{
    size_t n_bytes =
        snapshot_bytes(engine->options.model, &session->policy, to);
    double load_us = engine->cost.load_us_per_byte * (double)n_bytes +
                     (double)engine->cost.backlog_us;
    double compute_us = engine->cost.compute_us_per_token * (double)(to - from);

    if (compute_us <= 0 || load_us < compute_us)
        return true;
    engine->cost.load_us_per_byte *= RATE_FADE;
    return false;
}

/* --- a request looks for a start --- */

static void plan_stop(const struct engine *engine, struct request *request,
                      uint64_t found, uint64_t limit,
                      const struct prefix_answer *answer)
{
    uint64_t stop = request->n_shared;

    request->n_shared = 0;
    if (request->is_started || request->asker ||
        request->kind == REQUEST_CHECKPOINT ||
        engine->options.prefix_bytes == 0)
        return;
    if (stop < answer->seen || stop > limit)
        stop = answer->seen;
    request->shared_stop = stop >= found + PREFIX_MIN ? stop : 0;
}

static bool send_fetch(struct engine *engine, struct session *session,
                       const struct prefix_answer *answer, uint64_t from)
{
    uint64_t to = answer->hit[0].position;
    struct store_job *job;
    size_t bytes = charge_holds(session);

    if (from > 0) /* the memory that it has is held until then */
        bytes += resident_fresh_bytes(engine, session, to);
    if (!resident_room(engine, session, bytes))
        return false;
    job = jobs_create(STORE_FETCH, session_log(session), session);
    if (resident_memory(engine, session, &job->memory) ||
        tokens_append(&job->tokens, session->resident->tokens.id, to)) {
        memory_destroy(job->memory);
        free(job);
        return false;
    }
    paged_fetch(session, job->memory, answer->hit);
    for (uint32_t i = 0; i < answer->n_hit; i++)
        if (answer->hit[i].position >= from + PREFIX_MIN)
            job->source[job->n_source++] = answer->hit[i];
    struct ids tokens = job->tokens;
    struct memory *memory = job->memory;
    prefix_job_sent(
        engine, job,
        snapshot_bytes(engine->options.model, &session->policy, to));
    if (!jobs_push(engine, job)) {
        memory_destroy(memory);
        ids_release(&tokens);
        return false;
    }
    if (bytes > charge_holds(session))
        charge_bytes(engine, session, bytes);
    session->is_fetching = true;
    session->n_hold++;
    return true;
}

/* Why nothing is read, if nothing is there. */
static enum restore_reason_code why_not(const struct prefix_answer *answer,
                                        uint64_t from)
{
    if (answer->n_hit > 0)
        return answer->hit[0].position < from + PREFIX_MIN ? REUSE_TOO_SHORT
                                                           : REUSE_SLOWER;
    if (answer->other >= from + PREFIX_MIN)
        return REUSE_NUMERICS_CHANGED;
    if (answer->gone >= from + PREFIX_MIN)
        return REUSE_EVICTED;
    return REUSE_NONE;
}

bool prefix_seek(struct engine *engine, struct request *request)
{
    struct session *session = request->session;
    const struct resident *resident = session->resident;
    uint64_t from = resident_position(resident), n = resident->tokens.n;
    struct prefix_query query = {.token = resident->tokens.id,
                                 .from = from,
                                 .chain = resident->memory_chain,
                                 .limit = n > 0 ? n - 1 : 0,
                                 .scope = session->scope};
    struct prefix_answer answer;

    if (session->is_fetching)
        return true;
    if (request->has_sought || session->scope == NO_SCOPE)
        return false;
    request->has_sought = true;
    if (from >= query.limit)
        return false;
    prefix_find(engine->prefix, &query, &answer);
    if (paged_is(engine, session))
        paged_sources(engine, session, &answer);
    plan_stop(engine, request, answer.n_hit ? answer.hit[0].position : from,
              query.limit, &answer);
    if (answer.n_hit > 0 && answer.hit[0].position >= from + PREFIX_MIN &&
        is_faster(engine, session, from, answer.hit[0].position) &&
        send_fetch(engine, session, &answer, from))
        return true;
    if (request->reuse == REUSE_NONE)
        request->reuse = why_not(&answer, from);
    return false;
}

/* The best that was refused names why there is not more; it is not asked for
 * again. */
static enum restore_reason_code refuse(struct engine *engine,
                                       const struct store_job *job)
{
    enum restore_reason_code word = REUSE_NONE;

    for (uint32_t i = 0; i < job->n_source; i++) {
        enum restore_reason reason = job->refused[i];
        enum restore_reason_code its;

        if (reason == RESTORE_HIT) {
            prefix_touch(engine->prefix, job->source[i].uid);
            break;
        }
        prefix_refuse(engine->prefix, job->source[i].uid,
                      job->source[i].position);
        its = reason == RESTORE_NONE ? REUSE_EVICTED : prefix_word(reason);
        metric_add(engine->metrics.refused[its], 1);
        if (word == REUSE_NONE)
            word = its;
    }
    return word;
}

static const struct snapshot_source *used(const struct store_job *job)
{
    for (uint32_t i = 0; i < job->n_source; i++)
        if (job->refused[i] == RESTORE_HIT)
            return &job->source[i];
    return NULL;
}

static bool has_its_policy(const struct memory *memory,
                           const struct session *session)
{
    const struct policy *policy = memory_policy(memory);

    return policy ? policy_equal(policy, &session->policy)
                  : session->policy.kind == POLICY_FULL;
}

/* It may have been deleted, moved on, lost its end or got another policy
 * meanwhile. */
static bool still_fits(const struct engine *engine,
                       const struct session *session,
                       const struct memory *memory,
                       const struct snapshot_source *source)
{
    const struct resident *resident = session->resident;

    return resident && !resident->image && has_its_policy(memory, session) &&
           !(session->request && session->request->phase == REQUEST_RUNNING) &&
           resident_position(resident) < source->position &&
           resident->tokens.n > source->position &&
           digest_equal(digest_tokens(engine->empty_chain, resident->tokens.id,
                                      source->position),
                        source->chain);
}

static void take(struct engine *engine, struct session *session,
                 struct store_job *job)
{
    const struct snapshot_source *source = used(job);
    struct resident *resident = session->resident;
    enum restore_reason_code word = refuse(engine, job);

    if (source && still_fits(engine, session, job->memory, source)) {
        swap_let_go(engine, resident);
        resident->memory = job->memory;
        job->memory = NULL;
        resident->memory_chain = source->chain;
        resident->n_restored = source->position;
        paged_fetched(session, source);
        if (session->request)
            session->request->has_fetched = true;
        if (word == REUSE_NONE)
            word = uid_equal(source->uid, session_log(session)) ? REUSE_RESTORED
                                                                : REUSE_PREFIX;
    }
    if (!resident || word == REUSE_NONE)
        return;
    resident->reuse = word;
    if (session->request)
        session->request->reuse = word;
}

void prefix_fetched(struct engine *engine, struct store_job *job)
{
    struct session *session = job->owner;

    session->is_fetching = false;
    if (job->status)
        log_limited(&engine->store_log, LOG_WARN, "engine", session->name,
                    "stored prefix is not read, it is computed: %s",
                    job->cause.text);
    else
        take(engine, session, job);
    memory_destroy(job->memory);
    ids_release(&job->tokens);
    if (session->resident && session->request)
        charge_settle(engine, session);
    else if (session->resident)
        resident_touch(engine, session);
    session->n_hold--;
    session_put(session);
}

/* --- a request on its way --- */

uint64_t prefix_stop(const struct request *request, uint64_t position,
                     uint64_t target)
{
    return request->shared_stop > position && request->shared_stop < target
               ? request->shared_stop
               : target;
}

void prefix_passed(struct engine *engine, struct request *request,
                   uint64_t position)
{
    if (position == 0 || position != request->shared_stop)
        return;
    request->shared_stop = 0;
    if (request->errand) {
        verify_passed(engine, request);
        return;
    }
    resident_save_shared(engine, request->session);
}

void prefix_started(struct engine *engine, struct request *request)
{
    const struct engine_metrics *m = &engine->metrics;
    struct resident *resident = request->session->resident;

    request->n_cached = resident_position(resident);
    request->n_restored = resident->n_restored;
    if (request->n_cached == 0) { /* it may have been let go in the queue */
        request->n_restored = 0;
        if (request->reuse == REUSE_RESIDENT ||
            request->reuse == REUSE_RESTORED || request->reuse == REUSE_PREFIX)
            request->reuse = REUSE_NONE;
    }
    resident->reuse = REUSE_RESIDENT; /* of the next one */
    resident->n_restored = 0;
    metric_add(m->cache_queries, request_target(request));
    metric_add(m->cache_hits, request->n_cached);
    metric_add(m->reuse[request->reuse], 1);
    if (request->reuse == REUSE_PREFIX)
        metric_add(m->prefix_tokens, request->n_cached);
}
