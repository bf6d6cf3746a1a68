#include "rpc/convert_parts.h"

#include <stdio.h>
#include <string.h>

#define TIMESTAMP_SECONDS_MAX 253402300799 /* 9999-12-31T23:59:59Z */

static enum status take_labels(const Godwit__V1__Session *session,
                               uint32_t *out_n, struct label *out)
{
    static const char field[] = "session.labels";

    if (session->n_labels > LABEL_MAX)
        return bad_field(field, "%zu labels, limit %u", session->n_labels,
                         LABEL_MAX);
    for (size_t i = 0; i < session->n_labels; i++) {
        const char *key = session->labels[i]->key;
        const char *value = session->labels[i]->value;
        size_t n_key = strlen(key), n_value = strlen(value);

        if (n_key == 0 || n_key >= LABEL_KEY_SIZE)
            return bad_field(field,
                             "key of label %zu has %zu bytes, expected 1 to %u",
                             i, n_key, LABEL_KEY_SIZE - 1);
        if (n_value >= LABEL_VALUE_SIZE)
            return bad_field(field,
                             "value of label %zu has %zu bytes, limit "
                             "%u",
                             i, n_value, LABEL_VALUE_SIZE - 1);
        for (size_t j = 0; j < i; j++)
            if (strcmp(out[j].key, key) == 0)
                return bad_field(field, "label key \"%s\" comes twice", key);
        memcpy(out[i].key, key, n_key + 1);
        memcpy(out[i].value, value, n_value + 1);
    }
    *out_n = (uint32_t)session->n_labels;
    return STATUS_OK;
}

/* Wall time in ms, 0 when neither is set. */
static enum status take_expiration(const struct convert_node *node,
                                   const Godwit__V1__Session *session,
                                   uint64_t *out_ms)
{
    const uint64_t now = node->clock->wall_ms(node->clock);

    *out_ms = 0;
    if (session->expiration_case ==
        GODWIT__V1__SESSION__EXPIRATION_EXPIRE_TIME) {
        const Google__Protobuf__Timestamp *time = session->expire_time;
        if (time->seconds <= 0 || time->seconds > TIMESTAMP_SECONDS_MAX ||
            time->nanos < 0 || time->nanos > 999999999)
            return bad_field(
                "session.expire_time",
                "expire_time is %ld s and %d ns, no time from 1970 "
                "to 9999",
                (long)time->seconds, time->nanos);
        *out_ms =
            (uint64_t)time->seconds * 1000 + (uint64_t)time->nanos / 1000000;
        if (*out_ms <= now)
            return bad_field("session.expire_time",
                             "expire_time is %lu ms in the past",
                             (unsigned long)(now - *out_ms));
    } else if (session->expiration_case ==
               GODWIT__V1__SESSION__EXPIRATION_TTL) {
        uint64_t us = 0;
        enum status st = take_duration(session->ttl, "session.ttl", &us);
        if (st)
            return st;
        if (us < 1000)
            return bad_field("session.ttl",
                             "ttl is %lu us, expected at least "
                             "1 ms",
                             (unsigned long)us);
        *out_ms = now + us / 1000;
    }
    return STATUS_OK;
}

enum status convert_create(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__CreateSessionRequest *request =
        (const Godwit__V1__CreateSessionRequest *)message;
    struct session_meta *meta = &job->command->create;
    const Godwit__V1__Session *session = request->session;
    enum status st = STATUS_OK;
    bool is_set;

    job->command->kind = COMMAND_CREATE_SESSION;
    meta->durability = job->node->durability;
    if (request->session_id[0])
        st = take_id(request->session_id, "session_id", meta->name);
    if (st || !session)
        return st;
    st = take_labels(session, &meta->n_label, meta->label);
    if (!st)
        st = take_expiration(job->node, session, &meta->expire_ms);
    if (!st)
        st = take_durability(session->durability, "session.durability", &is_set,
                             &meta->durability);
    if (!st)
        st = take_policy(session->policy, "session.policy", &is_set,
                         &meta->policy);
    if (!st)
        st = take_tenant(session->tenant, "session.tenant",
                         job->command->tenant);
    meta->is_pinned = session->pinned;
    return st;
}

static enum status take_target(struct job *job, enum command_kind kind,
                               const char *name, const char *field)
{
    job->command->kind = kind;
    return take_session(name, field, job->command->target.session);
}

enum status convert_get(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__GetSessionRequest *request =
        (const Godwit__V1__GetSessionRequest *)message;

    return take_target(job, COMMAND_GET_SESSION, request->name, "name");
}

static enum status take_etag(const char *etag, const char *field, char out[24])
{
    size_t n = strlen(etag);

    if (n >= 24)
        return bad_field(field, "%s has %zu bytes: no etag of this node", field,
                         n);
    memcpy(out, etag, n + 1);
    return STATUS_OK;
}

enum status convert_delete(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__DeleteSessionRequest *request =
        (const Godwit__V1__DeleteSessionRequest *)message;
    enum status st =
        take_target(job, COMMAND_DELETE_SESSION, request->name, "name");

    if (!st)
        st = take_etag(request->etag, "etag", job->command->target.etag);
    job->command->target.allows_missing = request->allow_missing;
    return st;
}

enum status convert_fork(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__ForkSessionRequest *request =
        (const Godwit__V1__ForkSessionRequest *)message;
    struct fork_command *fork = &job->command->fork;
    enum status st = take_session(request->session, "session", fork->session);

    job->command->kind = COMMAND_FORK_SESSION;
    if (!st && request->session_id[0])
        st = take_id(request->session_id, "session_id", fork->name);
    fork->has_position = request->has_position_case;
    fork->position = fork->has_position ? request->position : 0;
    return st;
}

enum status convert_truncate(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__TruncateSessionRequest *request =
        (const Godwit__V1__TruncateSessionRequest *)message;
    enum status st =
        take_target(job, COMMAND_TRUNCATE_SESSION, request->session, "session");

    if (!st)
        st = take_etag(request->etag, "etag", job->command->target.etag);
    job->command->target.from = request->position;
    return st;
}

enum status convert_read(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__ReadTokensRequest *request =
        (const Godwit__V1__ReadTokensRequest *)message;

    job->command->target.from = request->from_position;
    job->command->target.limit = request->max_tokens;
    return take_target(job, COMMAND_READ_TOKENS, request->session, "session");
}

enum status convert_checkpoint(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__CheckpointSessionRequest *request =
        (const Godwit__V1__CheckpointSessionRequest *)message;

    enum status st = take_target(job, COMMAND_CHECKPOINT_SESSION,
                                 request->session, "session");

    return st ? st
              : take_policy(request->policy, "policy",
                            &job->command->target.has_policy,
                            &job->command->target.policy);
}

enum status convert_verify(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__VerifySessionRequest *request =
        (const Godwit__V1__VerifySessionRequest *)message;

    enum status st =
        take_target(job, COMMAND_VERIFY_SESSION, request->session, "session");

    job->command->target.replays = request->replay;
    memcpy(job->note->session, job->command->target.session,
           sizeof(job->note->session));
    return st;
}

enum status convert_inspect(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__InspectSessionRequest *request =
        (const Godwit__V1__InspectSessionRequest *)message;

    return take_target(job, COMMAND_INSPECT_SESSION, request->session,
                       "session");
}

enum status convert_checkpoints(struct job *job,
                                const ProtobufCMessage *message)
{
    const Godwit__V1__ListCheckpointsRequest *request =
        (const Godwit__V1__ListCheckpointsRequest *)message;

    if (request->page_token[0])
        return bad_field("page_token", "there is one page alone");
    return take_target(job, COMMAND_INSPECT_SESSION, request->session,
                       "session");
}

enum status convert_park(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__ParkSessionRequest *request =
        (const Godwit__V1__ParkSessionRequest *)message;

    return take_target(job, COMMAND_PARK_SESSION, request->session, "session");
}

enum status convert_export(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__ExportSessionRequest *request =
        (const Godwit__V1__ExportSessionRequest *)message;
    struct export_command *out = &job->command->export;
    enum status st = take_session(request->session, "session", out->session);

    job->command->kind = COMMAND_EXPORT_SESSION;
    if (!st)
        st = take_tenant(request->tenant, "tenant", out->tenant);
    out->position = request->position;
    out->has_state = request->with_state;
    out->is_sealed = request->seal;
    return st;
}

enum status convert_import(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__SessionChunk *chunk =
        (const Godwit__V1__SessionChunk *)message;
    const Godwit__V1__ImportOptions *options = chunk->options;
    struct import_command *out = &job->command->import;
    enum status st = STATUS_OK;

    job->command->kind = COMMAND_IMPORT_SESSION;
    if (options && options->session_id[0])
        st = take_id(options->session_id, "options.session_id", out->name);
    if (!st && options)
        st = take_tenant(options->tenant, "options.tenant",
                         job->command->tenant);
    if (st)
        return st;
    out->skips_state = options && options->log_only;
    out->bytes = arena_copy(job->arena, chunk->data.data, chunk->data.len);
    out->n_bytes = chunk->data.len;
    return out->bytes ? STATUS_OK : status_cause()->code;
}

enum status convert_cancel(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__CancelGenerationRequest *request =
        (const Godwit__V1__CancelGenerationRequest *)message;
    enum status st =
        take_request_id(request->request_id, job->command->target.request_id);

    if (st)
        return st;
    if (!request->session[0] && !request->request_id[0])
        return bad_field("session",
                         "neither session nor request_id says what to cancel");
    job->command->kind = COMMAND_CANCEL;
    return request->session[0]
               ? take_target(job, COMMAND_CANCEL, request->session, "session")
               : STATUS_OK;
}

enum status convert_get_node(struct job *job, const ProtobufCMessage *message)
{
    static const char collection[] = "nodes/";
    const size_t n = sizeof(collection) - 1;
    const char *name = ((const Godwit__V1__GetNodeRequest *)message)->name;

    job->command->kind = COMMAND_GET_NODE;
    if (name[0] == '\0')
        return STATUS_OK;
    if (strncmp(name, collection, n) != 0 || name[n] == '\0' ||
        strlen(name + n) >= sizeof(job->note->node))
        return bad_field("name",
                         "name is \"%.80s\", expected \"nodes/NODE\" with at "
                         "most %zu characters",
                         name, sizeof(job->note->node) - 1);
    memcpy(job->note->node, name + n, strlen(name + n) + 1);
    return STATUS_OK;
}

/* Guards against slips, not against forgers: a name is nothing secret. */
static uint64_t page_digest(const char *prefix, const char *name)
{
    char both[2 * SESSION_NAME_SIZE];
    int n = snprintf(both, sizeof(both), "%s/%s", prefix, name);

    return digest_64(both, (size_t)n);
}

void page_token_make(const char *prefix, const char *name, char *out)
{
    static const char digits[] = "0123456789abcdef";

    (void)snprintf(out, PAGE_TOKEN_SIZE, "%016lx",
                   (unsigned long)page_digest(prefix, name));
    out += 16;
    for (; *name; name++) {
        *out++ = digits[(uint8_t)*name >> 4];
        *out++ = digits[(uint8_t)*name & 15];
    }
    *out = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static enum status take_page_token(const char *token, const char *prefix,
                                   char out[SESSION_NAME_SIZE])
{
    char name[SESSION_NAME_SIZE] = "", again[PAGE_TOKEN_SIZE] = "";
    size_t n = strlen(token);

    if (n >= 16 + 2 && n < PAGE_TOKEN_SIZE && n % 2 == 0) {
        for (size_t i = 16, j = 0; i < n; i += 2, j++) {
            int high = hex_value(token[i]), low = hex_value(token[i + 1]);
            if (high < 0 || low < 0 || j + 1 >= sizeof(name))
                break;
            name[j] = (char)(high << 4 | low);
        }
        page_token_make(prefix, name, again);
    }
    if (again[0] == '\0' || strcmp(again, token) != 0)
        return bad_field("page_token",
                         "page_token is none that this list has given out");
    memcpy(out, name, sizeof(name));
    return STATUS_OK;
}

/* name = "sessions/PREFIX*", and nothing else of AIP-160. */
static enum status take_filter(const char *filter, char out[SESSION_NAME_SIZE])
{
    static const char start[] = "name = \"sessions/", end[] = "*\"";
    const size_t n_start = sizeof(start) - 1, n_end = sizeof(end) - 1;
    const size_t n = strlen(filter);
    size_t n_prefix = 0;
    bool ok = n == 0;

    if (n >= n_start + n_end && strncmp(filter, start, n_start) == 0 &&
        strcmp(filter + n - n_end, end) == 0) {
        n_prefix = n - n_start - n_end;
        ok = n_prefix < SESSION_NAME_SIZE;
    }
    for (size_t i = 0; ok && i < n_prefix; i++)
        ok = is_id_character(filter[n_start + i]);
    if (!ok)
        return bad_field("filter",
                         "filter is \"%.64s\", expected name = "
                         "\"sessions/PREFIX*\"",
                         filter);
    if (n_prefix)
        memcpy(out, filter + n_start, n_prefix);
    out[n_prefix] = '\0';
    return STATUS_OK;
}

enum status convert_list(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__ListSessionsRequest *request =
        (const Godwit__V1__ListSessionsRequest *)message;
    struct list_command *list = &job->command->list;
    enum status st;

    job->command->kind = COMMAND_LIST_SESSIONS;
    if (request->page_size < 0)
        return bad_field("page_size", "page_size is %d, expected 0 or more",
                         request->page_size);
    list->page_size = (uint32_t)request->page_size;
    if (list->page_size == 0)
        list->page_size = LIST_PAGE_DEFAULT;
    if (list->page_size > LIST_PAGE_MAX)
        list->page_size = LIST_PAGE_MAX;
    if (request->order_by[0] && strcmp(request->order_by, "name") != 0)
        return bad_field("order_by", "order_by is \"%.64s\", expected \"name\"",
                         request->order_by);
    st = take_filter(request->filter, list->prefix);
    if (!st && request->page_token[0])
        st = take_page_token(request->page_token, list->prefix, list->after);
    memcpy(job->note->prefix, list->prefix, sizeof(list->prefix));
    return st;
}

/* Which of the four settings an update changes. */
static enum status take_mask(const Godwit__V1__UpdateSessionRequest *request,
                             struct update_command *out)
{
    const Google__Protobuf__FieldMask *mask = request->update_mask;
    const Godwit__V1__Session *session = request->session;

    if (!mask || mask->n_paths == 0) {
        out->sets_labels = session->n_labels > 0;
        out->sets_expire = session->expiration_case !=
                           GODWIT__V1__SESSION__EXPIRATION__NOT_SET;
        out->sets_durability = session->durability !=
                               GODWIT__V1__DURABILITY__DURABILITY_UNSPECIFIED;
        out->sets_pinned = session->pinned;
        return STATUS_OK;
    }
    for (size_t i = 0; i < mask->n_paths; i++) {
        const char *path = mask->paths[i];
        bool is_all = strcmp(path, "*") == 0, is_known = is_all;

        if (is_all || strcmp(path, "labels") == 0)
            out->sets_labels = is_known = true;
        if (is_all || strcmp(path, "expire_time") == 0 ||
            strcmp(path, "ttl") == 0)
            out->sets_expire = is_known = true;
        if (is_all || strcmp(path, "durability") == 0)
            out->sets_durability = is_known = true;
        if (is_all || strcmp(path, "pinned") == 0)
            out->sets_pinned = is_known = true;
        if (!is_known)
            return bad_field("update_mask",
                             "update_mask has \"%.64s\", expected labels, "
                             "expire_time, ttl, durability, pinned or *",
                             path);
    }
    return STATUS_OK;
}

enum status convert_update(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__UpdateSessionRequest *request =
        (const Godwit__V1__UpdateSessionRequest *)message;
    const Godwit__V1__Session *session = request->session;
    struct update_command *update = &job->command->update;
    bool is_set;
    enum status st;

    job->command->kind = COMMAND_UPDATE_SESSION;
    if (!session)
        return bad_field("session", "session is missing: it says which one to "
                                    "change, and to what");
    st = take_session(session->name, "session.name", update->session);
    if (!st)
        st = take_etag(session->etag, "session.etag", update->etag);
    if (!st)
        st = take_mask(request, update);
    update->is_pinned = session->pinned;
    if (!st && update->sets_labels)
        st = take_labels(session, &update->n_label, update->label);
    if (!st && update->sets_expire)
        st = take_expiration(job->node, session, &update->expire_ms);
    if (st || !update->sets_durability)
        return st;
    update->durability = job->node->durability;
    return take_durability(session->durability, "session.durability", &is_set,
                           &update->durability);
}
