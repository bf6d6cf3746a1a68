#include "scheduler/engine_calls.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct session *session_create(const struct session_meta *meta)
{
    struct session *session = engine_need(calloc(1, sizeof(*session)));

    session->uid = meta->uid;
    session->scope = NO_SCOPE;
    memcpy(session->name, meta->name, sizeof(session->name));
    session->parent = meta->parent;
    if (meta->parent_name[0])
        session->parent_name = engine_need(strdup(meta->parent_name));
    if (meta->tenant[0])
        session->tenant = engine_need(strdup(meta->tenant));
    session->last_active_ms = meta->update_ms;
    session_meta_set(session, meta);
    return session;
}

void session_put(struct session *session)
{
    if (session->is_listed || session->n_hold || session->request)
        return;
    assert(!session->resident && !session->is_in_lru);
    free(session->label);
    free(session->piece);
    free(session->parent_name);
    free(session->tenant);
    free(session);
}

void session_meta_get(const struct session *session, struct session_meta *out)
{
    memset(out, 0, sizeof(*out));
    out->uid = session->uid;
    memcpy(out->name, session->name, sizeof(out->name));
    out->create_ms = session->create_ms;
    out->update_ms = session->update_ms;
    out->expire_ms = session->expire_ms;
    out->durability = session->durability;
    out->policy = session->policy;
    session_path(session, &out->path);
    out->parent = session->parent;
    if (session->parent_name)
        memcpy(out->parent_name, session->parent_name,
               strlen(session->parent_name) + 1);
    out->fork_position = session->fork_position;
    if (session->tenant)
        memcpy(out->tenant, session->tenant, strlen(session->tenant) + 1);
    out->is_pinned = session->is_pinned;
    out->n_label = session->n_label;
    if (session->n_label)
        memcpy(out->label, session->label,
               session->n_label * sizeof(*session->label));
}

struct uid session_log(const struct session *session)
{
    return session->piece[session->n_piece - 1].log;
}

void session_path(const struct session *session, struct log_path *out)
{
    out->n = session->n_piece;
    memcpy(out->piece, session->piece, out->n * sizeof(*out->piece));
}

static void set_path(struct session *session, const struct log_path *path)
{
    size_t n_bytes = path->n * sizeof(*path->piece);

    assert(log_path_is_sound(path));
    session->piece = engine_need(realloc(session->piece, n_bytes));
    memcpy(session->piece, path->piece, n_bytes);
    session->n_piece = path->n;
}

void session_meta_set(struct session *session, const struct session_meta *meta)
{
    struct label *label = NULL;

    if (meta->n_label) {
        label = engine_need(malloc(meta->n_label * sizeof(*label)));
        memcpy(label, meta->label, meta->n_label * sizeof(*label));
    }
    free(session->label);
    session->label = label;
    session->n_label = meta->n_label;
    session->create_ms = meta->create_ms;
    session->update_ms = meta->update_ms;
    session->expire_ms = meta->expire_ms;
    session->durability = meta->durability;
    session->is_pinned = meta->is_pinned;
    session->policy = meta->policy;
    session->fork_position = meta->fork_position;
    set_path(session, &meta->path);
}

void session_etag(const struct session *session, char out[24])
{
    static const char digits[] = "0123456789abcdef";
    uint64_t number[] = {session_log(session).hi, session_log(session).lo,
                         session->update_ms,      session->expire_ms,
                         session->durability,     session->is_pinned,
                         session->n_token};
    struct digest d = digest_bytes(number, sizeof(number));

    for (uint32_t i = 0; i < session->n_label; i++) {
        const struct label *label = &session->label[i];
        d = digest_chain(d, label->key, strlen(label->key) + 1);
        d = digest_chain(d, label->value, strlen(label->value) + 1);
    }
    memset(out, 0, 24);
    for (int i = 0; i < 16; i++)
        out[i] = digits[d.lo >> (60 - 4 * i) & 15];
}

static enum session_state state_of(const struct session *session)
{
    if (session->is_failed)
        return SESSION_FAILED;
    if (session->request) {
        const struct request *request = session->request;
        const struct session *its = request->session;
        bool is_decoding =
            request->prefilled_us != 0 ||
            (request->phase == REQUEST_RUNNING &&
             resident_position(its->resident) + 1 >= its->n_token);
        return is_decoding ? SESSION_DECODING : SESSION_PREFILLING;
    }
    if (session->resident || session->n_token == 0)
        return SESSION_IDLE;
    return SESSION_PARKED;
}

void session_info_get(const struct engine *engine,
                      const struct session *session, struct session_info *out)
{
    const struct resident *resident = session->resident;

    memset(out, 0, sizeof(*out));
    session_meta_get(session, &out->meta);
    out->state = state_of(session);
    out->position = session->n_token;
    out->committed_position = session->n_committed;
    out->last_active_ms = session->last_active_ms;
    out->stored_bytes = ledger_get(&engine->stored, session_log(session));
    if (resident && resident->memory) {
        out->state_bytes =
            memory_bytes_for(engine->options.model, &session->policy, 0);
        out->kv_bytes = memory_bytes(resident->memory) - out->state_bytes;
    }
    out->has_chain = resident || session->n_token == 0;
    out->chain = resident ? resident->chain : engine->empty_chain;
    session_etag(session, out->etag);
}

uint64_t table_seek(const struct engine *engine, const char *name)
{
    uint64_t low = 0, high = engine->n_session;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (strcmp(engine->table[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct session *table_find(const struct engine *engine, const char *name)
{
    uint64_t at = table_seek(engine, name);

    if (at == engine->n_session || strcmp(engine->table[at]->name, name) != 0)
        return NULL;
    return engine->table[at];
}

static void insert_at(struct engine *engine, uint64_t at,
                      struct session *session)
{
    if (engine->n_session == engine->table_capacity) {
        engine->table_capacity = 2 * engine->table_capacity + 64;
        engine->table = engine_need(realloc(
            engine->table, engine->table_capacity * sizeof(*engine->table)));
    }
    memmove(engine->table + at + 1, engine->table + at,
            (engine->n_session - at) * sizeof(*engine->table));
    engine->table[at] = session;
    engine->n_session++;
    session->is_listed = true;
    if (session->expire_ms && session->expire_ms < engine->next_expire_ms)
        engine->next_expire_ms = session->expire_ms;
}

void table_add(struct engine *engine, struct session *session)
{
    insert_at(engine, table_seek(engine, session->name), session);
}

void table_load(struct engine *engine, struct session *session)
{
    insert_at(engine, engine->n_session, session);
}

static int by_name(const void *a, const void *b)
{
    const struct session *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

void table_sort(struct engine *engine)
{
    if (engine->n_session)
        qsort(engine->table, engine->n_session, sizeof(*engine->table),
              by_name);
}

void table_remove(struct engine *engine, struct session *session)
{
    uint64_t at = table_seek(engine, session->name);

    assert(at < engine->n_session && engine->table[at] == session);
    engine->n_session--;
    memmove(engine->table + at, engine->table + at + 1,
            (engine->n_session - at) * sizeof(*engine->table));
    session->is_listed = false;
}
