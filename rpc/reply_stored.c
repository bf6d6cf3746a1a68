#include "rpc/reply_parts.h"

enum status pack_bytes(const struct event *event, struct packed *out)
{
    Godwit__V1__SessionChunk chunk = GODWIT__V1__SESSION_CHUNK__INIT;

    if (event->kind == EVENT_DONE)
        return STATUS_OK;
    if (event->kind != EVENT_BYTES)
        return wrong_event(event);
    chunk.data = (ProtobufCBinaryData){event->bytes.n,
                                       (uint8_t *)(uintptr_t)event->bytes.at};
    return wire_pack(&chunk.base, out);
}

static bool add_kinds(struct arena *arena, const struct scrub_report *report,
                      Godwit__V1__SessionVerification *to)
{
    to->kinds = arena_take(arena, SCRUB_KIND_COUNT * sizeof(*to->kinds));
    if (!to->kinds)
        return false;
    for (uint32_t i = 0; i < SCRUB_KIND_COUNT; i++) {
        const struct scrub_count *count = &report->count[i];
        Godwit__V1__SessionVerification__Kind *kind =
            arena_take(arena, sizeof(*kind));

        if (!kind)
            return false;
        godwit__v1__session_verification__kind__init(kind);
        kind->kind = (char *)scrub_kind_name((enum scrub_kind)i);
        kind->count = count->n;
        kind->size_bytes = count->bytes;
        kind->bad = count->n_bad;
        kind->missing = count->n_missing;
        to->kinds[to->n_kinds++] = kind;
    }
    return true;
}

enum status pack_verified(const struct reply_to *to, const struct event *event,
                          struct arena *arena, struct packed *out)
{
    Godwit__V1__SessionVerification verification =
        GODWIT__V1__SESSION_VERIFICATION__INIT;
    const struct scrub_report *report = event->verified.report;
    char name[FULL_NAME_SIZE], chain[DIGEST_TEXT_SIZE];
    char *finding[SCRUB_FINDING_MAX];

    if (event->kind != EVENT_VERIFIED)
        return wrong_event(event);
    full_name(to->note->session, name);
    digest_format(report->chain, chain);
    verification.session = name;
    verification.position = report->n_token;
    verification.chain_hash = chain;
    for (uint32_t i = 0; i < report->n_finding; i++)
        finding[i] = (char *)report->finding[i];
    verification.findings = finding;
    verification.n_findings = report->n_finding;
    verification.dropped_snapshots = report->n_drop;
    verification.replayed = event->verified.is_replayed;
    verification.compared_values = report->n_compared;
    verification.different_values = report->n_different;
    return add_kinds(arena, report, &verification)
               ? wire_pack(&verification.base, out)
               : status_cause()->code;
}

static Godwit__V1__Checkpoint *
checkpoint_of(struct arena *arena, const struct inspected_snapshot *from,
              char *session)
{
    Godwit__V1__Checkpoint *to = arena_take(arena, sizeof(*to));
    char *chain = arena_take(arena, DIGEST_TEXT_SIZE);

    if (!to || !chain)
        return NULL;
    godwit__v1__checkpoint__init(to);
    digest_format(from->chain, chain);
    to->session = session;
    to->position = from->position;
    to->chain_hash = chain;
    to->size_bytes = from->bytes;
    to->create_time = from->create_ms ? time_of(arena, from->create_ms) : NULL;
    return from->create_ms && !to->create_time ? NULL : to;
}

/* NULL: no memory. */
static Godwit__V1__Checkpoint **checkpoints_of(struct arena *arena,
                                               const struct inspection *from,
                                               char *session)
{
    Godwit__V1__Checkpoint **to =
        arena_take(arena, (from->n_snapshot + 1u) * sizeof(*to));

    for (uint32_t i = 0; to && i < from->n_snapshot; i++) {
        to[i] = checkpoint_of(arena, &from->snapshot[i], session);
        if (!to[i])
            return NULL;
    }
    return to;
}

static bool add_layers(struct arena *arena, const struct inspection *from,
                       Godwit__V1__SessionInspection *to)
{
    to->layers = arena_take(arena, (from->n_layer + 1u) * sizeof(*to->layers));
    for (uint32_t i = 0; to->layers && i < from->n_layer; i++) {
        Godwit__V1__SessionInspection__Layer *layer =
            arena_take(arena, sizeof(*layer));

        if (!layer)
            return false;
        godwit__v1__session_inspection__layer__init(layer);
        layer->layer = i;
        layer->kind = (char *)from->layer[i].kind;
        layer->memory_state_bytes = from->layer[i].memory_state;
        layer->memory_kv_bytes = from->layer[i].memory_kv;
        layer->stored_state_bytes = from->layer[i].stored_state;
        layer->stored_kv_bytes = from->layer[i].stored_kv;
        layer->policy_steps = from->layer[i].n_step;
        layer->policy_hits = from->layer[i].n_hit;
        layer->policy_fetched = from->layer[i].n_fetched;
        layer->policy_fetched_bytes = from->layer[i].fetched_bytes;
        layer->state_rms = from->layer[i].norm.rms;
        layer->state_head_rms = from->layer[i].norm.head_rms;
        layer->state_head = from->layer[i].norm.head;
        layer->state_max = from->layer[i].norm.max;
        to->layers[to->n_layers++] = layer;
    }
    return to->layers != NULL;
}

static bool add_lineage(struct arena *arena, const struct inspection *from,
                        Godwit__V1__SessionInspection *to)
{
    to->lineage = arena_take(arena, (from->n_log + 1u) * sizeof(*to->lineage));
    for (uint32_t i = 0; to->lineage && i < from->n_log; i++) {
        Godwit__V1__SessionInspection__Log *log =
            arena_take(arena, sizeof(*log));
        char *uid = arena_take(arena, UID_TEXT_SIZE);

        if (!log || !uid)
            return false;
        godwit__v1__session_inspection__log__init(log);
        uid_format(from->log[i].uid, uid);
        log->uid = uid;
        log->begin = from->log[i].begin;
        log->end = from->log[i].end == UINT64_MAX ? 0 : from->log[i].end;
        log->snapshots = from->log[i].n_snapshot;
        log->stored_bytes = from->log[i].bytes;
        to->lineage[to->n_lineage++] = log;
    }
    return to->lineage != NULL;
}

enum status pack_inspected(const struct reply_to *to, const struct event *event,
                           struct arena *arena, struct packed *out)
{
    Godwit__V1__ListCheckpointsResponse list =
        GODWIT__V1__LIST_CHECKPOINTS_RESPONSE__INIT;
    Godwit__V1__SessionInspection whole = GODWIT__V1__SESSION_INSPECTION__INIT;
    const struct inspection *from = &event->inspected;

    if (event->kind != EVENT_INSPECTED)
        return wrong_event(event);
    whole.session = session_of(arena, &from->session, to->model_name);
    if (!whole.session)
        return status_cause()->code;
    whole.checkpoints = checkpoints_of(arena, from, whole.session->name);
    whole.n_checkpoints = from->n_snapshot;
    if (!whole.checkpoints)
        return status_cause()->code;
    list.checkpoints = whole.checkpoints;
    list.n_checkpoints = whole.n_checkpoints;
    if (to->kind == METHOD_LIST_CHECKPOINTS)
        return wire_pack(&list.base, out);
    whole.tier = (char *)from->tier;
    if (!add_layers(arena, from, &whole) || !add_lineage(arena, from, &whole))
        return status_cause()->code;
    return wire_pack(&whole.base, out);
}
