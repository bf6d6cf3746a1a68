#include "rpc/reply_parts.h"

#include "godwit/v1/generation.pb-c.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPERATION_NAME_SIZE (SESSION_NAME_SIZE + 64u)
#define TYPE_URL "type.googleapis.com/"
/* Messages of one event before packing: a page of sessions with all labels. */
#define SCRATCH_BYTES_MAX (64u << 20)

static Google__Protobuf__Duration duration_of(uint64_t us)
{
    Google__Protobuf__Duration duration = GOOGLE__PROTOBUF__DURATION__INIT;

    duration.seconds = (int64_t)(us / 1000000);
    duration.nanos = (int32_t)(us % 1000000) * 1000;
    return duration;
}

void full_name(const char *id, char out[FULL_NAME_SIZE])
{
    out[0] = '\0';
    if (id[0])
        (void)snprintf(out, FULL_NAME_SIZE, "sessions/%s", id);
}

/* Accepted, PrefillProgress and GenerateComplete. */
static enum status pack_accepted(const struct event *event, struct packed *out)
{
    Godwit__V1__GenerateResponse response = GODWIT__V1__GENERATE_RESPONSE__INIT;
    Godwit__V1__Accepted accepted = GODWIT__V1__ACCEPTED__INIT;
    Google__Protobuf__Duration predicted =
        duration_of(event->accepted.predicted_us);
    char request_id[REQUEST_ID_SIZE], name[FULL_NAME_SIZE];

    full_name(event->accepted.session, name);
    memcpy(request_id, event->accepted.request_id, sizeof(request_id));
    accepted.queue_position = event->accepted.n_ahead;
    accepted.seed = event->accepted.seed;
    if (event->accepted.predicted_us)
        accepted.predicted_ttft = &predicted;
    response.request_id = request_id;
    response.session = name;
    response.position = event->accepted.position;
    response.event_case = GODWIT__V1__GENERATE_RESPONSE__EVENT_ACCEPTED;
    response.accepted = &accepted;
    return wire_pack(&response.base, out);
}

static enum status pack_progress(const struct event *event, struct packed *out)
{
    Godwit__V1__GenerateResponse response = GODWIT__V1__GENERATE_RESPONSE__INIT;
    Godwit__V1__PrefillProgress progress = GODWIT__V1__PREFILL_PROGRESS__INIT;
    Google__Protobuf__Duration elapsed =
        duration_of(event->progress.elapsed_us);
    Google__Protobuf__Duration remaining =
        duration_of(event->progress.remaining_us);

    progress.total_tokens = event->progress.n_total;
    progress.cached_tokens = event->progress.n_cached;
    progress.processed_tokens = event->progress.n_processed;
    progress.elapsed = &elapsed;
    if (event->progress.remaining_us)
        progress.estimated_remaining = &remaining;
    progress.mode = GODWIT__V1__SPLIT_MODE__SPLIT_MODE_SINGLE;
    response.event_case = GODWIT__V1__GENERATE_RESPONSE__EVENT_PROGRESS;
    response.progress = &progress;
    return wire_pack(&response.base, out);
}

static enum status pack_complete(const struct event *event, struct packed *out)
{
    Godwit__V1__GenerateResponse response = GODWIT__V1__GENERATE_RESPONSE__INIT;
    Godwit__V1__GenerateComplete complete = GODWIT__V1__GENERATE_COMPLETE__INIT;
    Godwit__V1__Usage usage = GODWIT__V1__USAGE__INIT;
    Godwit__V1__Timing timing = GODWIT__V1__TIMING__INIT;
    Godwit__V1__Reuse reuse = GODWIT__V1__REUSE__INIT;
    const struct timing *t = &event->complete.timing;
    Google__Protobuf__Duration queued = duration_of(t->queued_us);
    Google__Protobuf__Duration prefill = duration_of(t->prefill_us);
    Google__Protobuf__Duration decode = duration_of(t->decode_us);
    Google__Protobuf__Duration first = duration_of(t->first_token_us);

    usage.prompt_tokens = event->complete.n_prompt;
    usage.completion_tokens = event->complete.n_completion;
    usage.cached_tokens = event->complete.n_cached;
    usage.gemfilter_tokens = event->complete.n_excerpt;
    timing.queued = &queued;
    timing.prefill = &prefill;
    timing.decode = &decode;
    timing.time_to_first_token = &first;
    reuse.matched_tokens = event->complete.n_cached;
    reuse.restored_tokens = event->complete.n_restored;
    reuse.replayed_tokens = event->complete.n_replayed;
    reuse.reason = (char *)reuse_name(event->complete.reuse);
    complete.finish_reason = (Godwit__V1__FinishReason)event->complete.finish;
    complete.usage = &usage;
    complete.timing = &timing;
    complete.reuse = &reuse;
    complete.committed_position = event->complete.committed_position;
    response.position = event->complete.committed_position;
    response.event_case = GODWIT__V1__GENERATE_RESPONSE__EVENT_COMPLETE;
    response.complete = &complete;
    return wire_pack(&response.base, out);
}

static Godwit__V1__TokenLogprob *logprob_of(struct arena *arena,
                                            const struct token_logprob *from)
{
    Godwit__V1__TokenLogprob *to = arena_take(arena, sizeof(*to));

    if (to) {
        godwit__v1__token_logprob__init(to);
        to->token_id = from->token;
        to->logprob = from->logprob;
    }
    return to;
}

static Godwit__V1__TokenLogprobs *logprobs_of(struct arena *arena,
                                              const struct logprobs *from)
{
    Godwit__V1__TokenLogprobs *to = arena_take(arena, sizeof(*to));

    if (!to)
        return NULL;
    godwit__v1__token_logprobs__init(to);
    to->chosen = logprob_of(arena, &from->chosen);
    to->top = arena_take(arena, (from->n_top + 1) * sizeof(*to->top));
    if (!to->chosen || !to->top)
        return NULL;
    to->n_top = from->n_top;
    for (uint32_t i = 0; i < from->n_top; i++) {
        to->top[i] = logprob_of(arena, &from->top[i]);
        if (!to->top[i])
            return NULL;
    }
    return to;
}

static enum status pack_tokens(const struct event *event, struct arena *arena,
                               struct packed *out)
{
    Godwit__V1__GenerateResponse response = GODWIT__V1__GENERATE_RESPONSE__INIT;
    Godwit__V1__TokenChunk chunk = GODWIT__V1__TOKEN_CHUNK__INIT;
    const uint32_t n_logprobs = event->tokens.n_logprobs;

    chunk.n_token_ids = event->tokens.n_token;
    chunk.token_ids = (uint32_t *)event->tokens.token;
    chunk.text = (ProtobufCBinaryData){event->tokens.text_bytes,
                                       (uint8_t *)event->tokens.text};
    chunk.committed_position = event->tokens.position + event->tokens.n_token;
    if (n_logprobs) {
        chunk.logprobs =
            arena_take(arena, n_logprobs * sizeof(*chunk.logprobs));
        if (!chunk.logprobs)
            return status_cause()->code;
        chunk.n_logprobs = n_logprobs;
    }
    for (uint32_t i = 0; i < n_logprobs; i++) {
        chunk.logprobs[i] = logprobs_of(arena, &event->tokens.logprobs[i]);
        if (!chunk.logprobs[i])
            return status_cause()->code;
    }
    response.position = event->tokens.position;
    response.event_case = GODWIT__V1__GENERATE_RESPONSE__EVENT_CHUNK;
    response.chunk = &chunk;
    return wire_pack(&response.base, out);
}

enum status wrong_event(const struct event *event)
{
    return status_fail(STATUS_INTERNAL,
                       "the engine answered with an event of kind %d",
                       (int)event->kind);
}

static enum status pack_generate(const struct event *event, struct arena *arena,
                                 struct packed *out)
{
    switch (event->kind) {
    case EVENT_ACCEPTED:
        return pack_accepted(event, out);
    case EVENT_PROGRESS:
        return pack_progress(event, out);
    case EVENT_TOKENS:
        return pack_tokens(event, arena, out);
    case EVENT_COMPLETE:
        return pack_complete(event, out);
    default:
        return wrong_event(event);
    }
}

static enum status pack_log(const struct event *event, struct packed *out)
{
    Godwit__V1__ReadTokensResponse response =
        GODWIT__V1__READ_TOKENS_RESPONSE__INIT;

    if (event->kind == EVENT_COMPLETE || event->kind == EVENT_DONE)
        return STATUS_OK;
    if (event->kind != EVENT_LOG)
        return wrong_event(event);
    if (event->tokens.n_token == 0)
        return STATUS_OK; /* the end of an empty log */
    response.position = event->tokens.position;
    response.n_token_ids = event->tokens.n_token;
    response.token_ids = (uint32_t *)event->tokens.token;
    response.text = (ProtobufCBinaryData){event->tokens.text_bytes,
                                          (uint8_t *)event->tokens.text};
    return wire_pack(&response.base, out);
}

static Google__Protobuf__Timestamp timestamp_of(uint64_t wall_ms)
{
    Google__Protobuf__Timestamp time = GOOGLE__PROTOBUF__TIMESTAMP__INIT;

    time.seconds = (int64_t)(wall_ms / 1000);
    time.nanos = (int32_t)(wall_ms % 1000) * 1000000;
    return time;
}

Google__Protobuf__Timestamp *time_of(struct arena *arena, uint64_t wall_ms)
{
    Google__Protobuf__Timestamp *time = arena_take(arena, sizeof(*time));

    if (time)
        *time = timestamp_of(wall_ms);
    return time;
}

static bool add_labels(struct arena *arena, const struct session_meta *meta,
                       Godwit__V1__Session *to)
{
    to->labels = arena_take(arena, (meta->n_label + 1) * sizeof(*to->labels));
    if (!to->labels)
        return false;
    for (uint32_t i = 0; i < meta->n_label; i++) {
        Godwit__V1__Label *label = arena_take(arena, sizeof(*label));
        if (!label)
            return false;
        godwit__v1__label__init(label);
        label->key = (char *)meta->label[i].key;
        label->value = (char *)meta->label[i].value;
        to->labels[i] = label;
    }
    to->n_labels = meta->n_label;
    return true;
}

Godwit__V1__Session *session_of(struct arena *arena,
                                const struct session_info *info,
                                const char *model_name)
{
    const struct session_meta *meta = &info->meta;
    Godwit__V1__Session *to = arena_take(arena, sizeof(*to));
    char *name = arena_take(arena, FULL_NAME_SIZE);
    char *uid = arena_take(arena, UID_TEXT_SIZE);
    char *chain = arena_take(arena, DIGEST_TEXT_SIZE);
    char *parent = arena_take(arena, FULL_NAME_SIZE);
    char *policy = arena_take(arena, POLICY_TEXT_SIZE);

    if (!to || !name || !uid || !chain || !parent || !policy)
        return NULL;
    godwit__v1__session__init(to);
    policy_format(&meta->policy, policy);
    to->policy = policy;
    full_name(meta->name, name);
    if (meta->parent_name[0]) {
        full_name(meta->parent_name, parent);
        to->parent_session = parent;
        to->fork_position = meta->fork_position;
    }
    uid_format(meta->uid, uid);
    if (info->has_chain)
        digest_format(info->chain, chain);
    to->name = name;
    to->uid = uid;
    to->etag = (char *)info->etag;
    to->model = (char *)model_name;
    to->state = (Godwit__V1__Session__State)info->state;
    to->position = info->position;
    to->committed_position = info->committed_position;
    to->state_bytes = info->state_bytes;
    to->kv_bytes = info->kv_bytes;
    to->chain_hash = chain;
    to->tenant = (char *)meta->tenant;
    to->pinned = meta->is_pinned;
    to->stored_bytes = info->stored_bytes;
    to->create_time = time_of(arena, meta->create_ms);
    to->update_time = time_of(arena, meta->update_ms);
    to->last_active_time = time_of(arena, info->last_active_ms);
    if (meta->expire_ms) {
        to->expiration_case = GODWIT__V1__SESSION__EXPIRATION_EXPIRE_TIME;
        to->expire_time = time_of(arena, meta->expire_ms);
        if (!to->expire_time)
            return NULL;
    }
    to->durability = meta->durability == DURABILITY_NONE
                         ? GODWIT__V1__DURABILITY__DURABILITY_NONE
                         : GODWIT__V1__DURABILITY__DURABILITY_LOCAL;
    if (!to->create_time || !to->update_time || !to->last_active_time)
        return NULL;
    return add_labels(arena, meta, to) ? to : NULL;
}

/* AppendTokens: a finished operation around the session. */
static enum status pack_operation(const struct reply_to *to,
                                  const Godwit__V1__Session *session,
                                  struct packed *out)
{
    static char type[] = TYPE_URL "godwit.v1.Session";
    Google__Longrunning__Operation operation =
        GOOGLE__LONGRUNNING__OPERATION__INIT;
    Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
    char name[OPERATION_NAME_SIZE];
    struct packed inner = {0};
    enum status st = wire_pack(&session->base, &inner);

    if (st)
        return st;
    if (to->note->request_id[0])
        (void)snprintf(name, sizeof(name), "operations/%s",
                       to->note->request_id);
    else
        (void)snprintf(name, sizeof(name), "operations/append-%s-%lu",
                       to->note->session, (unsigned long)session->position);
    any.type_url = type;
    any.value = (ProtobufCBinaryData){inner.n_bytes, inner.bytes};
    operation.name = name;
    operation.done = true;
    operation.result_case = GOOGLE__LONGRUNNING__OPERATION__RESULT_RESPONSE;
    operation.response = &any;
    st = wire_pack(&operation.base, out);
    free(inner.bytes);
    return st;
}

static enum status pack_session(const struct reply_to *to,
                                const struct event *event, struct arena *arena,
                                struct packed *out)
{
    Godwit__V1__Session *session;

    if (event->kind != EVENT_SESSION)
        return wrong_event(event);
    session = session_of(arena, &event->session, to->model_name);
    if (!session)
        return status_cause()->code;
    return to->kind == METHOD_APPEND_TOKENS ? pack_operation(to, session, out)
                                            : wire_pack(&session->base, out);
}

static enum status pack_sessions(const struct reply_to *to,
                                 const struct event *event, struct arena *arena,
                                 struct packed *out)
{
    Godwit__V1__ListSessionsResponse response =
        GODWIT__V1__LIST_SESSIONS_RESPONSE__INIT;
    const uint32_t n = event->sessions.n_session;
    char token[PAGE_TOKEN_SIZE] = "";

    if (event->kind != EVENT_SESSIONS)
        return wrong_event(event);
    response.sessions =
        arena_take(arena, ((size_t)n + 1) * sizeof(*response.sessions));
    if (!response.sessions)
        return status_cause()->code;
    for (uint32_t i = 0; i < n; i++) {
        response.sessions[i] =
            session_of(arena, &event->sessions.session[i], to->model_name);
        if (!response.sessions[i])
            return status_cause()->code;
    }
    response.n_sessions = n;
    response.total_size = (int64_t)event->sessions.n_total;
    if (event->sessions.has_more && n)
        page_token_make(to->note->prefix,
                        event->sessions.session[n - 1].meta.name, token);
    response.next_page_token = token;
    return wire_pack(&response.base, out);
}

static enum status pack_checkpoint(const struct event *event,
                                   struct packed *out)
{
    Godwit__V1__Checkpoint checkpoint = GODWIT__V1__CHECKPOINT__INIT;
    Google__Protobuf__Timestamp time;
    char name[FULL_NAME_SIZE], chain[DIGEST_TEXT_SIZE];

    if (event->kind != EVENT_CHECKPOINT)
        return wrong_event(event);
    full_name(event->checkpoint.session, name);
    digest_format(event->checkpoint.chain, chain);
    checkpoint.session = name;
    checkpoint.position = event->checkpoint.position;
    checkpoint.chain_hash = chain;
    checkpoint.size_bytes = event->checkpoint.bytes;
    if (event->checkpoint.create_ms) {
        time = timestamp_of(event->checkpoint.create_ms);
        checkpoint.create_time = &time;
    }
    return wire_pack(&checkpoint.base, out);
}

static enum status pack_node(const struct reply_to *to,
                             const struct event *event, struct arena *arena,
                             struct packed *out)
{
    const struct node_info *info = &event->node;
    Godwit__V1__Node node = GODWIT__V1__NODE__INIT;
    char name[sizeof(info->name) + 8];

    if (event->kind != EVENT_NODE)
        return wrong_event(event);
    if (to->note->node[0] && strcmp(to->note->node, info->name) != 0) {
        status_fail(STATUS_NOT_FOUND, "no node \"%s\" here, this is \"%s\"",
                    to->note->node, info->name);
        status_because("NODE_NOT_FOUND");
        return status_field("name");
    }
    (void)snprintf(name, sizeof(name), "nodes/%s", info->name);
    node.name = name;
    node.version = (char *)info->version;
    node.model = (char *)to->model_name;
    node.architecture = (char *)info->model;
    node.model_fingerprint = (char *)info->fingerprint;
    node.numerics_id = (char *)info->numerics;
    node.backend = (char *)info->backend;
    node.state = info->is_draining ? GODWIT__V1__NODE__STATE__DRAINING
                                   : GODWIT__V1__NODE__STATE__READY;
    node.start_time = time_of(arena, info->start_ms);
    if (!node.start_time)
        return status_cause()->code;
    node.threads = info->n_thread;
    node.context_length = info->n_context;
    node.sessions = info->n_session;
    node.resident_sessions = info->n_resident;
    node.running_requests = info->n_running;
    node.waiting_requests = info->n_waiting;
    node.weight_bytes = info->weight_bytes;
    node.session_bytes = info->session_bytes;
    node.session_bytes_max = info->session_bytes_max;
    node.state_bytes = info->state_bytes;
    node.state_bytes_max = info->state_bytes_max;
    node.bytes_per_session = info->session_fixed_bytes;
    node.bytes_per_token = info->token_bytes;
    node.prompt_tokens_total = info->prompt_tokens;
    node.generated_tokens_total = info->generated_tokens;
    node.steps_total = info->steps;
    return wire_pack(&node.base, out);
}

static enum status pack_empty(const struct reply_to *to,
                              const struct event *event, struct packed *out)
{
    Godwit__V1__CancelGenerationResponse cancelled =
        GODWIT__V1__CANCEL_GENERATION_RESPONSE__INIT;
    Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;

    if (event->kind != EVENT_DONE)
        return wrong_event(event);
    return to->kind == METHOD_CANCEL_GENERATION
               ? wire_pack(&cancelled.base, out)
               : wire_pack(&empty.base, out);
}

static enum status pack(const struct reply_to *to, const struct event *event,
                        struct arena *arena, struct packed *out)
{
    switch (to->kind) {
    case METHOD_GENERATE:
        return pack_generate(event, arena, out);
    case METHOD_READ_TOKENS:
        return pack_log(event, out);
    case METHOD_APPEND_TOKENS:
        return event->kind == EVENT_SESSION
                   ? pack_session(to, event, arena, out)
                   : STATUS_OK;
    case METHOD_CREATE_SESSION:
    case METHOD_GET_SESSION:
    case METHOD_UPDATE_SESSION:
    case METHOD_FORK_SESSION:
    case METHOD_TRUNCATE_SESSION:
    case METHOD_PARK_SESSION:
    case METHOD_IMPORT_SESSION:
        return pack_session(to, event, arena, out);
    case METHOD_LIST_SESSIONS:
        return pack_sessions(to, event, arena, out);
    case METHOD_CHECKPOINT_SESSION:
        return pack_checkpoint(event, out);
    case METHOD_EXPORT_SESSION:
        return pack_bytes(event, out);
    case METHOD_INSPECT_SESSION:
    case METHOD_LIST_CHECKPOINTS:
        return pack_inspected(to, event, arena, out);
    case METHOD_VERIFY_SESSION:
        return pack_verified(to, event, arena, out);
    case METHOD_GET_NODE:
        return pack_node(to, event, arena, out);
    case METHOD_DELETE_SESSION:
    case METHOD_CANCEL_GENERATION:
        return pack_empty(to, event, out);
    default:
        return wrong_event(event);
    }
}

enum status reply_pack(const struct reply_to *to, const struct event *event,
                       struct packed *out)
{
    struct arena *arena = NULL;
    enum status st = arena_create(SCRATCH_BYTES_MAX, &arena);

    if (st)
        return st;
    st = pack(to, event, arena, out);
    arena_destroy(arena);
    return st;
}

enum status reply_health(int serving_status, struct packed *out)
{
    Grpc__Health__V1__HealthCheckResponse response =
        GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    response.status =
        (Grpc__Health__V1__HealthCheckResponse__ServingStatus)serving_status;
    return wire_pack(&response.base, out);
}

/* A proto3 string must be UTF-8, and a cause may quote a text cut anywhere. */
static void clean(const char *text, char out[STATUS_TEXT_SIZE])
{
    size_t n = strnlen(text, STATUS_TEXT_SIZE - 1), i = 0;

    memcpy(out, text, n);
    out[n] = '\0';
    while ((i += utf8_prefix(out + i, n - i)) < n)
        out[i++] = '?';
}

static const char CAPITALS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

static void reason_of(const struct cause *cause, char out[STATUS_WORD_SIZE])
{
    const char *from =
        cause->reason[0] ? cause->reason : status_name(cause->code);
    size_t i = 0;

    for (; from[i] && i < STATUS_WORD_SIZE - 1; i++) {
        char c = from[i];
        if (c >= 'a' && c <= 'z')
            c = CAPITALS[c - 'a'];
        out[i] = c;
    }
    out[i] = '\0';
}

static enum status add_detail(Google__Rpc__Status *status,
                              Google__Protobuf__Any *any, char *type,
                              const ProtobufCMessage *message)
{
    struct packed packed = {0};
    enum status st = wire_pack(message, &packed);

    if (st)
        return st;
    google__protobuf__any__init(any);
    any->type_url = type;
    any->value = (ProtobufCBinaryData){packed.n_bytes, packed.bytes};
    status->details[status->n_details++] = any;
    return STATUS_OK;
}

static enum status add_error_info(const struct cause *cause,
                                  Google__Rpc__Status *status,
                                  Google__Protobuf__Any *any)
{
    static char type[] = TYPE_URL "google.rpc.ErrorInfo";
    static char domain[] = REPLY_DOMAIN, field[] = "field";
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    Google__Rpc__ErrorInfo__MetadataEntry entry =
        GOOGLE__RPC__ERROR_INFO__METADATA_ENTRY__INIT;
    Google__Rpc__ErrorInfo__MetadataEntry *entries[1] = {&entry};
    char reason[STATUS_WORD_SIZE];

    reason_of(cause, reason);
    info.reason = reason;
    info.domain = domain;
    if (cause->field[0]) {
        entry.key = field;
        entry.value = (char *)cause->field;
        info.n_metadata = 1;
        info.metadata = entries;
    }
    return add_detail(status, any, type, &info.base);
}

static enum status add_retry(const struct cause *cause,
                             Google__Rpc__Status *status,
                             Google__Protobuf__Any *any)
{
    static char type[] = TYPE_URL "google.rpc.RetryInfo";
    Google__Rpc__RetryInfo info = GOOGLE__RPC__RETRY_INFO__INIT;
    Google__Protobuf__Duration delay =
        duration_of((uint64_t)cause->retry_ms * 1000);

    info.retry_delay = &delay;
    return add_detail(status, any, type, &info.base);
}

static enum status add_field(const struct cause *cause, char *text,
                             Google__Rpc__Status *status,
                             Google__Protobuf__Any *any)
{
    static char type[] = TYPE_URL "google.rpc.BadRequest";
    Google__Rpc__BadRequest bad = GOOGLE__RPC__BAD_REQUEST__INIT;
    Google__Rpc__BadRequest__FieldViolation violation =
        GOOGLE__RPC__BAD_REQUEST__FIELD_VIOLATION__INIT;
    Google__Rpc__BadRequest__FieldViolation *violations[1] = {&violation};

    violation.field = (char *)cause->field;
    violation.description = text;
    bad.n_field_violations = 1;
    bad.field_violations = violations;
    return add_detail(status, any, type, &bad.base);
}

/* Whose share of the node is used up. */
static enum status add_quota(const struct cause *cause, char *text,
                             Google__Rpc__Status *status,
                             Google__Protobuf__Any *any)
{
    static char type[] = TYPE_URL "google.rpc.QuotaFailure";
    Google__Rpc__QuotaFailure quota = GOOGLE__RPC__QUOTA_FAILURE__INIT;
    Google__Rpc__QuotaFailure__Violation violation =
        GOOGLE__RPC__QUOTA_FAILURE__VIOLATION__INIT;
    Google__Rpc__QuotaFailure__Violation *violations[1] = {&violation};

    violation.subject = (char *)cause->field;
    violation.description = text;
    quota.n_violations = 1;
    quota.violations = violations;
    return add_detail(status, any, type, &quota.base);
}

enum status reply_error(const struct cause *cause, struct packed *out)
{
    Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
    Google__Protobuf__Any any[3], *details[3];
    char text[STATUS_TEXT_SIZE];
    enum status st;

    clean(cause->text, text);
    status.code = (int32_t)cause->code;
    status.message = text;
    status.details = details;
    st = add_error_info(cause, &status, &any[0]);
    if (!st && cause->retry_ms)
        st = add_retry(cause, &status, &any[1]);
    if (!st && cause->field[0])
        st = cause->code == STATUS_RESOURCE_EXHAUSTED
                 ? add_quota(cause, text, &status, &any[2])
                 : add_field(cause, text, &status, &any[2]);
    if (!st)
        st = wire_pack(&status.base, out);
    for (size_t i = 0; i < status.n_details; i++)
        free(details[i]->value.data);
    return st;
}
