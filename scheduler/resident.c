#include "scheduler/engine_calls.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status tokens_reserve(struct ids *tokens, uint64_t n_token)
{
    size_t capacity = tokens->n + n_token;
    uint32_t *id;

    if (tokens->capacity >= capacity)
        return STATUS_OK;
    capacity += capacity / 16 + 64; /* long ones are charged by length */
    id = realloc(tokens->id, capacity * sizeof(*id));
    if (!id)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a log of %zu tokens", capacity);
    tokens->id = id;
    tokens->capacity = capacity;
    return STATUS_OK;
}

enum status tokens_append(struct ids *tokens, const uint32_t *token,
                          uint64_t n_token)
{
    enum status st = tokens_reserve(tokens, n_token);

    if (st)
        return st;
    if (n_token)
        memcpy(tokens->id + tokens->n, token, n_token * sizeof(*token));
    tokens->n += n_token;
    return STATUS_OK;
}

uint64_t resident_position(const struct resident *resident)
{
    if (!resident || !resident->memory)
        return 0;
    return memory_position(resident->memory);
}

size_t resident_bytes(const struct engine *engine,
                      const struct session *session, uint64_t n_token)
{
    const struct policy *policy = session ? &session->policy : NULL;

    return sizeof(struct resident) + n_token * sizeof(uint32_t) +
           (session && paged_is(engine, session)
                ? paged_bytes(engine, session, n_token)
                : memory_bytes_for(engine->options.model, policy, n_token));
}

size_t resident_fresh_bytes(const struct engine *engine,
                            const struct session *session, uint64_t n_token)
{
    if (!paged_is(engine, session))
        return resident_bytes(engine, session, n_token);
    return sizeof(struct resident) + n_token * sizeof(uint32_t) +
           paged_fresh_bytes(engine, session, n_token);
}

enum status resident_memory(const struct engine *engine,
                            const struct session *session, struct memory **out)
{
    struct memory *memory;
    enum status st = memory_create(engine->options.model, &memory);

    if (!st && session->policy.kind != POLICY_FULL) {
        st = memory_set_policy(memory, &session->policy);
        if (!st)
            st = paged_begin(engine, session, memory);
        if (st)
            memory_destroy(memory);
    }
    if (!st)
        *out = memory;
    return st;
}

void resident_no_memory(void)
{
    status_because(status_cause()->code == STATUS_UNAVAILABLE ? "DEVICE_LOST"
                                                              : "KV_MEMORY");
}

static void lru_remove(struct engine *engine, struct session *session)
{
    if (!session->is_in_lru)
        return;
    if (session->older)
        session->older->newer = session->newer;
    else
        engine->oldest = session->newer;
    if (session->newer)
        session->newer->older = session->older;
    else
        engine->newest = session->older;
    session->older = session->newer = NULL;
    session->is_in_lru = false;
}

static void lru_add(struct engine *engine, struct session *session)
{
    session->older = engine->newest;
    if (engine->newest)
        engine->newest->newer = session;
    else
        engine->oldest = session;
    engine->newest = session;
    session->is_in_lru = true;
}

void resident_stay(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    if (!resident || !resident->leaves)
        return;
    resident->leaves = false;
    engine->leaving -= session->charge;
    swap_stay(resident);
    engine->state_leaving -= session->state_charge;
}

void resident_make(struct engine *engine, struct session *session)
{
    struct resident *resident = engine_need(calloc(1, sizeof(*resident)));

    assert(!session->resident);
    resident->session = session;
    resident->chain = resident->memory_chain = engine->empty_chain;
    resident->snapshot_chain = engine->empty_chain;
    resident->reuse = REUSE_NONE;
    session->resident = resident;
    engine->n_resident++;
    charge_settle(engine, session);
}

/* Saved or given up: what it borrowed is free. */
static void drop_image(struct engine *engine, struct resident *resident)
{
    if (resident->image && resident->image_label.is_shared)
        prefix_expect_over(engine->prefix, resident->image_chain,
                           resident->image_label.scope);
    image_destroy(resident->image);
    resident->image = NULL;
    memory_destroy(resident->lent);
    resident->lent = NULL;
    engine->state_charged -= resident->image_states;
    resident->image_states = 0;
}

static void destroy(struct engine *engine, struct resident *resident)
{
    drop_image(engine, resident);
    swap_let_go(engine, resident);
    ids_release(&resident->tokens);
    free(resident);
}

static void images_remove(struct engine *engine, struct resident *resident)
{
    struct resident **at = &engine->images;

    while (*at && *at != resident)
        at = &(*at)->next_image;
    if (!*at)
        return;
    *at = resident->next_image;
    resident->next_image = NULL;
    engine->n_image--;
}

bool resident_drop_image(struct engine *engine, struct resident *resident)
{
    if (!resident->image || resident->is_saving ||
        resident->image_label.is_shared)
        return false;
    images_remove(engine, resident);
    drop_image(engine, resident);
    return true;
}

static void refuse_checkpoints(struct engine *engine, struct resident *resident,
                               const struct cause *cause)
{
    for (uint32_t i = 0; i < resident->n_checkpoint; i++)
        flight_error(engine, resident->checkpoint[i].reply, cause);
    resident->n_checkpoint = 0;
}

void resident_drop(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    lru_remove(engine, session);
    if (!resident)
        return;
    resident_stay(engine, session);
    charge_bytes(engine, session, 0);
    if (resident->n_checkpoint) {
        status_fail(STATUS_ABORTED, "session left memory before its snapshot");
        status_because("OPERATION_ABORTED");
        refuse_checkpoints(engine, resident, status_cause());
    }
    session->resident = NULL;
    resident->session = NULL;
    engine->n_resident--;
    images_remove(engine, resident);
    if (!resident->is_saving) /* else when the store thread is done */
        destroy(engine, resident);
}

void resident_touch(struct engine *engine, struct session *session)
{
    lru_remove(engine, session);
    resident_stay(engine, session);
    session->last_active_ms = engine_wall_ms(engine);
    if (!session->resident || session->request)
        return;
    charge_settle(engine, session);
    lru_add(engine, session);
}

void resident_use(struct engine *engine, struct session *session)
{
    if (!session->is_in_lru)
        return;
    lru_remove(engine, session);
    lru_add(engine, session);
}

static bool is_kept(const struct session *session)
{
    return session->durability != DURABILITY_NONE && session->is_listed;
}

/* What of its memory a snapshot of this owner has to write. */
static struct image_source source_of(const struct engine *engine,
                                     const struct session *session,
                                     struct uid owner, struct log_path *base)
{
    const struct resident *resident = session->resident;
    struct image_source source = {.log = owner,
                                  .memory = resident->memory,
                                  .token = resident->tokens.id,
                                  .chain = engine->empty_chain,
                                  .base = base,
                                  .pool = engine->image_pool};

    *base = (struct log_path){0};
    if (!uid_equal(owner, session_log(session)))
        return source;
    source.from = logs_stored(engine, session, base);
    source.chain = source.from == resident->snapshot_position
                       ? resident->snapshot_chain
                       : digest_tokens(engine->empty_chain, resident->tokens.id,
                                       source.from);
    return source;
}

/* Does a client wait for this snapshot? Then it is one to come back to. */
static bool is_asked(const struct resident *resident)
{
    for (uint32_t i = 0; i < resident->n_checkpoint; i++)
        if (resident->checkpoint[i].reply)
            return true;
    return false;
}

static bool take_image(struct engine *engine, struct session *session,
                       struct uid owner, bool is_shared)
{
    struct resident *resident = session->resident;
    uint64_t position = resident_position(resident);
    const bool is_own = uid_equal(owner, session_log(session));
    struct image_source source =
        source_of(engine, session, owner, &resident->image_base);

    if (!paged_has(resident, source.from)) {
        paged_lose(resident);
        return false;
    }
    if (image_create(engine->options.model, &source, &resident->image)) {
        log_limited(&engine->store_log, LOG_WARN, "engine", session->name,
                    "no snapshot at token %lu, a resume will recompute: %s",
                    position, status_reason());
        return false;
    }
    resident->image_position = position;
    resident->image_chain = resident->memory_chain;
    resident->image_uid = owner;
    resident->image_label =
        (struct snapshot_label){.session = is_own ? owner : session->uid,
                                .scope = session->scope,
                                .create_ms = engine_wall_ms(engine),
                                .is_shared = is_shared,
                                .is_pinned = is_asked(resident)};
    image_label(resident->image, &resident->image_label);
    resident->image_states = charge_state_bytes(engine, session);
    engine->state_charged += resident->image_states;
    resident->next_image = engine->images;
    engine->images = resident;
    engine->n_image++;
    return true;
}

void resident_save_shared(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;
    uint64_t position = resident_position(resident);
    struct uid owner = session_log(session);

    if (resident->image || engine->n_image >= IMAGE_WAIT_MAX)
        return;
    if (is_kept(session)) {
        if (position <= resident->snapshot_position)
            return;
    } else if (snapshot_bytes(engine->options.model, &session->policy,
                              position) > engine->options.prefix_bytes ||
               uid_make(engine_wall_ms(engine), &owner)) {
        return;
    } else {
        session->has_loose = true;
    }
    if (!prefix_expect(engine->prefix, resident->memory_chain, session->scope))
        return;
    if (!take_image(engine, session, owner, true))
        prefix_expect_over(engine->prefix, resident->memory_chain,
                           session->scope);
}

bool resident_save(struct engine *engine, struct session *session,
                   bool is_wanted)
{
    struct resident *resident = session->resident;
    uint64_t position = resident_position(resident);

    if (!resident || !is_kept(session))
        return false;
    if (resident->image)
        return true;
    /* Memory that was let go comes back from before its newest snapshot. */
    if (position == 0 || position <= resident->snapshot_position)
        return false;
    if (!is_wanted && engine->n_image >= IMAGE_WAIT_MAX)
        return false;
    return take_image(engine, session, session_log(session), false);
}

void resident_later(struct engine *engine, struct session *session)
{
    if (session->has_ended)
        return;
    session->has_ended = true;
    session->n_hold++;
    if (engine->last_later)
        engine->last_later->later = session;
    else
        engine->first_later = session;
    engine->last_later = session;
}

void resident_save_later(struct engine *engine)
{
    struct session *session = engine->first_later, *next;

    for (; session; session = next) {
        next = session->later;
        (void)resident_save(engine, session, false);
        session->has_ended = false;
        session->later = NULL;
        session->n_hold--;
        session_put(session);
    }
    engine->first_later = engine->last_later = NULL;
}

/* Back to its log alone. */
static void forget(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    paged_forget(engine, resident);
    swap_let_go(engine, resident);
    resident->memory_chain = engine->empty_chain;
    resident->reuse = REUSE_NONE;
    resident->n_restored = 0;
    if (session->request)
        session->request->has_sought = session->request->has_fetched = false;
    charge_settle(engine, session);
}

/* The store thread still reads its memory, which stays behind for it. */
static struct resident *leave_behind(struct engine *engine,
                                     struct session *session)
{
    struct resident *old = session->resident;
    struct resident *resident = engine_need(malloc(sizeof(*resident)));

    *resident = *old;
    resident->memory = resident->lent = NULL;
    resident->move = NULL;
    resident->memory_chain = engine->empty_chain;
    resident->reuse = REUSE_NONE;
    resident->n_restored = 0;
    resident->image = NULL;
    resident->image_states = 0;
    resident->is_saving = false;
    old->n_checkpoint = 0;
    old->session = NULL;
    memset(&old->tokens, 0, sizeof(old->tokens));
    session->resident = resident;
    return resident;
}

void resident_forget(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    if (resident->is_saving) {
        (void)leave_behind(engine, session);
    } else if (resident->image) {
        images_remove(engine, resident);
        drop_image(engine, resident);
    }
    forget(engine, session);
}

void resident_truncate(struct engine *engine, struct session *session,
                       uint64_t n_token)
{
    struct resident *resident = session->resident;

    assert(n_token <= resident->tokens.n);
    resident_stay(engine, session);
    if (resident->is_saving)
        resident = leave_behind(engine, session);
    status_fail(STATUS_ABORTED, "the journal lost what was to be saved");
    status_because("OPERATION_ABORTED");
    refuse_checkpoints(engine, resident, status_cause());
    if (resident->image) {
        images_remove(engine, resident);
        drop_image(engine, resident);
    }
    resident->tokens.n = session->n_token = session->n_committed = n_token;
    resident->chain =
        digest_tokens(engine->empty_chain, resident->tokens.id, n_token);
    if (resident->memory && resident_position(resident) >= n_token)
        forget(engine, session);
    charge_settle(engine, session);
}

bool resident_is_worth(const struct resident *resident)
{
    return resident->image ||
           resident_position(resident) >=
               resident->snapshot_position + SNAPSHOT_TURN_MIN;
}

/* Its log is elsewhere; it goes when it is stored, if that is worth it. */
static void leave_memory(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    if (resident_is_worth(resident) && resident_save(engine, session, true)) {
        charge_leaving(engine, session);
    } else {
        resident_drop(engine, session);
    }
}

void resident_park(struct engine *engine, struct session *session)
{
    const struct resident *resident = session->resident;

    session->parks = false;
    if (resident && resident->move)
        resident_stay(engine, session);
    if (!resident || session->request || resident->leaves ||
        session->durability == DURABILITY_NONE)
        return;
    session->parks = session->n_flight > 0; /* then when that has landed */
    if (!session->parks)
        leave_memory(engine, session);
}

void resident_leave(struct engine *engine, struct session *session)
{
    if (session->durability == DURABILITY_NONE) { /* tokens are only here */
        forget(engine, session);
        lru_remove(engine, session);
    } else {
        leave_memory(engine, session);
    }
}

/* Of the pinned ones, or of the others. */
static bool evict_of(struct engine *engine, bool is_pinned)
{
    for (struct session *s = engine->oldest; s; s = s->newer) {
        bool is_busy = s->resident->leaves || s->n_flight > 0 ||
                       s->resident->n_checkpoint > 0 || s->resident->move ||
                       swap_is_aside(s->resident);
        if (is_busy || s->is_pinned != is_pinned ||
            (s->durability == DURABILITY_NONE &&
             (!s->resident->memory || s->resident->image)))
            continue;
        metric_add(engine->metrics.preemptions, 1);
        if (!swap_out(engine, s))
            resident_leave(engine, s);
        return true;
    }
    return false;
}

/* Pages that can be read again go before sessions do, of which all is read. */
static bool trim_one(struct engine *engine)
{
    for (struct session *s = engine->oldest; s; s = s->newer)
        if (!s->resident->leaves && paged_trim(s)) {
            charge_settle(engine, s);
            return true;
        }
    return false;
}

bool resident_trim(struct engine *engine)
{
    while (charge_total(engine) > engine->options.session_bytes)
        if (!trim_one(engine))
            return false;
    return true;
}

static bool evict_one(struct engine *engine)
{
    return trim_one(engine) || evict_of(engine, false) ||
           evict_of(engine, true);
}

/* Its memory is freed when it is stored, if that is worth it and can be. */
static void park(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    if (swap_out(engine, session))
        return;
    if (resident_is_worth(resident) && resident_save(engine, session, true)) {
        charge_leaving(engine, session);
    } else {
        forget(engine, session);
    }
}

/*
 * May its memory go, so that `own` can have room? Always for a more important
 * one, and if it waits for its reader, who may be gone for hours. What was
 * fetched for a request is its own until it has run, but for those that come
 * before it: otherwise requests that wait could take each other's for ever,
 * each in the time in which another's is being fetched.
 */
static bool may_park(const struct request *request, const struct request *own,
                     bool is_behind)
{
    const struct resident *resident = request->session->resident;

    if (request == own || request->phase != REQUEST_WAITING ||
        !resident->memory || resident->leaves || resident->image ||
        resident->move || swap_is_aside(resident) || resident->n_checkpoint > 0)
        return false;
    if (request->priority < own->priority || request->is_paused)
        return true;
    return own->phase != REQUEST_LOADING &&
           (!request->has_fetched || (is_behind && request_comes_first(own)));
}

/* The last one that waits, for a place or its reader, is parked. */
static bool park_one(struct engine *engine, const struct request *own)
{
    bool is_behind = true;

    for (struct request *r = engine->last; r && own; r = r->before) {
        is_behind &= r != own;
        if (may_park(r, own, is_behind)) {
            park(engine, r->session);
            return true;
        }
    }
    return false;
}

bool resident_room(struct engine *engine, struct session *session, size_t bytes)
{
    const size_t states =
        session->state_charge ? 0 : charge_state_bytes(engine, session);
    const struct request *own = session->request;
    bool is_running = own && own->phase == REQUEST_RUNNING;

    if (bytes <= charge_holds(session))
        return true;
    bytes -= charge_holds(session);
    if (charge_is_over(engine, bytes, states, false))
        charge_settle_shared(engine);
    while (charge_is_over(engine, bytes, states, false))
        if (!evict_one(engine) && !park_one(engine, own) &&
            !(own && preempt_one(engine, own)) && !swap_evict_one(engine))
            break;
    if (!charge_is_over(engine, bytes, states, true))
        return true;
    /* Each fits alone, so this only guards against a wait that nothing would
     * ever end. */
    return engine->leaving == 0 && engine->n_running == is_running &&
           engine->n_job == 0 && engine->n_image == 0 && !engine->swap.first &&
           !engine->oldest_flight && !engine->flight;
}

bool session_is_in_pass(const struct session *session)
{
    const struct request *request = session->request;

    return request && request->session == session && request->is_in_pass;
}

void resident_answer(struct engine *engine, struct resident *resident)
{
    uint32_t n_left = 0;

    for (uint32_t i = 0; i < resident->n_checkpoint; i++) {
        struct event *event;
        if (resident->checkpoint[i].position > resident->snapshot_position) {
            resident->checkpoint[n_left++] = resident->checkpoint[i];
            continue;
        }
        event = engine_need(event_create(
            EVENT_CHECKPOINT, resident->checkpoint[i].reply, 0, NULL));
        event->is_last = true;
        memcpy(event->checkpoint.session, resident->session->name,
               SESSION_NAME_SIZE);
        event->checkpoint.position = resident->snapshot_position;
        event->checkpoint.chain = resident->snapshot_chain;
        event->checkpoint.bytes = resident->snapshot_bytes;
        event->checkpoint.create_ms = resident->snapshot_ms;
        flight_event(engine, event);
    }
    resident->n_checkpoint = n_left;
    /* In a pass it is between two tokens: when that is done. */
    if (n_left && !session_is_in_pass(resident->session) &&
        !resident_save(engine, resident->session, true)) {
        status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a snapshot");
        refuse_checkpoints(engine, resident, status_cause());
    }
}

void resident_checkpoint(struct engine *engine, struct session *session,
                         uint64_t reply)
{
    struct resident *resident = session->resident;

    if (resident->n_checkpoint == CHECKPOINT_WAIT_MAX) {
        status_fail(STATUS_RESOURCE_EXHAUSTED,
                    "%u calls wait for a snapshot of this session already",
                    CHECKPOINT_WAIT_MAX);
        status_because("QUEUE_FULL");
        status_retry(1000);
        flight_error(engine, reply, status_cause());
        return;
    }
    resident->checkpoint[resident->n_checkpoint].reply = reply;
    resident->checkpoint[resident->n_checkpoint++].position =
        resident_position(resident);
    resident_answer(engine, resident);
}

void resident_compared(struct engine *engine, struct resident *resident)
{
    resident->is_saving = false;
    drop_image(engine, resident);
    if (!resident->session)
        destroy(engine, resident);
}

static const char *reason_text(enum restore_reason reason)
{
    switch (reason) {
    case RESTORE_NUMERICS:
        return "was made by another arithmetic";
    case RESTORE_WEIGHTS:
        return "was made by another model";
    case RESTORE_POLICY:
        return "was made under another memory policy";
    case RESTORE_CHAIN:
        return "belongs to other tokens";
    case RESTORE_DAMAGED:
        return "is damaged";
    case RESTORE_HIT:
    case RESTORE_NONE:
        break;
    }
    return NULL;
}

void resident_install(struct engine *engine, struct session *session,
                      struct store_job *job)
{
    const char *why = reason_text(job->restore.reason);
    struct resident *resident;
    uint64_t position;

    resident_make(engine, session);
    resident = session->resident;
    resident->memory = job->memory;
    resident->tokens = job->tokens;
    resident->chain = job->chain;
    resident->turn = job->turn;
    resident->has_turn = job->has_turn;
    resident->base = job->restore.base;
    job->memory = NULL;
    memset(&job->tokens, 0, sizeof(job->tokens));
    session->n_token = session->n_committed = resident->tokens.n;
    session->is_failed = false;
    position = resident_position(resident);
    resident->snapshot_position = position;
    resident->snapshot_chain = resident->memory_chain =
        digest_tokens(engine->empty_chain, resident->tokens.id, position);
    if (job->n_entry > 0 && session->scope == NO_SCOPE)
        session->scope = job->entry[0].scope;
    for (uint32_t i = 0; i < job->n_entry; i++)
        if (job->entry[i].position == position)
            resident->snapshot_ms = job->entry[i].create_ms;
    resident->n_restored = position;
    resident->reuse = position ? REUSE_RESTORED : REUSE_NONE;
    if (why) {
        resident->reuse = prefix_word(job->restore.reason);
        metric_add(engine->metrics.refused[resident->reuse], 1);
        log_line(LOG_WARN, "engine", session->name,
                 "newest snapshot %s, recomputing %lu of %lu tokens", why,
                 session->n_token - position, session->n_token);
    }
    fork_share(engine, session);
    charge_settle(engine, session);
}

/* From a move out that was given up it goes when that is over. */
void resident_go(struct engine *engine, struct session *session)
{
    const struct resident *resident = session->resident;

    if (!resident->leaves || resident->image || resident->move)
        return;
    resident_stay(engine, session);
    if (session->request)
        forget(engine, session);
    else if (session->n_flight == 0)
        resident_drop(engine, session);
}

void resident_saved(struct engine *engine, const struct store_job *job)
{
    struct resident *resident = job->owner;
    struct session *session = resident->session;
    bool is_own = session && uid_equal(job->uid, session_log(session));

    resident->is_saving = false;
    if (!job->status && job->head_rms > 0)
        metric_observe(engine->metrics.state_rms, (double)job->head_rms);
    prefix_saved(engine, job);
    if (!job->status && session && is_own) {
        resident->snapshot_position = resident->image_position;
        resident->snapshot_chain = resident->image_chain;
        resident->base = resident->image_base;
        paged_stored(session, resident->image_position, &resident->base);
        resident->snapshot_ms = resident->image_label.create_ms;
        resident->snapshot_bytes = image_bytes(resident->image);
    }
    drop_image(engine, resident);
    if (!session) {
        destroy(engine, resident);
        return;
    }
    if (job->status && is_own) {
        log_limited(&engine->store_log, LOG_WARN, "engine", session->name,
                    "snapshot at token %lu is not saved, a resume will "
                    "recompute: %s",
                    resident->image_position, job->cause.text);
        refuse_checkpoints(engine, resident, &job->cause);
        if (resident->is_short && session->request &&
            !session_is_in_pass(session)) { /* it would wait for ever */
            request_fail(engine, session->request, FINISH_ERROR, &job->cause);
            return;
        }
    } else {
        resident_answer(engine, resident);
    }
    resident_go(engine, session);
}
