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
