/*
 * Judges: bytes written field by field (wire_writer.h) with the numbers of the
 * .proto files for small messages; protobuf-c's reader for larger ones. The
 * whole way through gRPC is judged by check_server.py.
 */
#include "godwit/v1/generation.pb-c.h"
#include "godwit/v1/session.pb-c.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "rpc/reply.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/rpc/wire_writer.h"

static struct writer w, sub;

static void same_bytes(const struct packed *packed)
{
    cr_expect_eq(packed->n_bytes, w.n);
    if (packed->n_bytes == w.n)
        cr_expect_eq(memcmp(packed->bytes, w.byte, w.n), 0);
    free(packed->bytes);
}

Test(reply, a_token_chunk_is_what_the_proto_says)
{
    static const struct note note = {0};
    const struct reply_to to = {METHOD_GENERATE, &note, "model"};
    uint32_t token[2] = {5, 300};
    struct logprobs logprobs[2] = {
        {.chosen = {5, -0.5f}, .n_top = 1, .top = {{5, -0.5f}}},
        {.chosen = {300, -2}, .n_top = 0}};
    struct event event = {.kind = EVENT_TOKENS};
    struct packed packed = {0};

    event.tokens.position = 10;
    event.tokens.n_token = 2;
    event.tokens.token = token;
    event.tokens.text = "a\0b";
    event.tokens.text_bytes = 3;
    event.tokens.n_logprobs = 2;
    event.tokens.logprobs = logprobs;
    cr_assert_eq(reply_pack(&to, &event, &packed), STATUS_OK);

    write_number(&w, 4, 10);
    write_bytes(&sub, 1, "\x05\xAC\x02", 3);
    write_bytes(&sub, 2, "a\0b", 3);
    write_number(&sub, 3, 12);
    for (int i = 0; i < 2; i++) {
        static struct writer one, all;
        one.n = all.n = 0;
        write_number(&one, 1, token[i]);
        write_float(&one, 2, logprobs[i].chosen.logprob);
        write_message(&all, 1, &one);
        if (i == 0)
            write_message(&all, 2, &one);
        write_message(&sub, 4, &all);
    }
    write_message(&w, 7, &sub);
    same_bytes(&packed);
}

static Google__Rpc__Status *error_of(const struct cause *cause)
{
    struct packed packed = {0};
    Google__Rpc__Status *status;

    cr_assert_eq(reply_error(cause, &packed), STATUS_OK);
    status = google__rpc__status__unpack(NULL, packed.n_bytes, packed.bytes);
    cr_assert_not_null(status);
    free(packed.bytes);
    return status;
}

Test(reply, a_quota_is_named_by_whose_it_is)
{
    struct cause cause = {.code = STATUS_RESOURCE_EXHAUSTED,
                          .reason = "TENANT_QUOTA",
                          .field = "tenant:acme",
                          .text = "3 requests wait, limit 3"};
    Google__Rpc__Status *status = error_of(&cause);
    Google__Rpc__QuotaFailure *quota;

    cr_assert_eq(status->n_details, 2);
    cr_assert_str_eq(status->details[1]->type_url,
                     "type.googleapis.com/google.rpc.QuotaFailure");
    quota = google__rpc__quota_failure__unpack(
        NULL, status->details[1]->value.len, status->details[1]->value.data);
    cr_expect_eq(quota->n_violations, 1);
    cr_expect_str_eq(quota->violations[0]->subject, "tenant:acme");
    cr_expect_str_eq(quota->violations[0]->description, cause.text);
    google__rpc__quota_failure__free_unpacked(quota, NULL);
    google__rpc__status__free_unpacked(status, NULL);
}

Test(reply, an_error_has_exactly_one_info_and_what_else_is_known)
{
    struct cause cause = {.code = STATUS_INVALID_ARGUMENT,
                          .retry_ms = 1500,
                          .reason = "QUEUE_FULL",
                          .field = "a.b",
                          .text = "queue has 7"};
    Google__Rpc__Status *status = error_of(&cause);
    Google__Rpc__ErrorInfo *info;
    Google__Rpc__RetryInfo *retry;
    Google__Rpc__BadRequest *bad;

    cr_assert_eq(status->n_details, 3);
    cr_expect_eq(status->code, 3);
    cr_expect_str_eq(status->message, "queue has 7");
    cr_expect_str_eq(status->details[0]->type_url,
                     "type.googleapis.com/google.rpc.ErrorInfo");
    info = google__rpc__error_info__unpack(NULL, status->details[0]->value.len,
                                           status->details[0]->value.data);
    cr_expect_str_eq(info->reason, "QUEUE_FULL");
    cr_expect_str_eq(info->domain, "godwit.v1");
    cr_expect(info->n_metadata == 1);
    cr_expect_str_eq(info->metadata[0]->key, "field");
    cr_expect_str_eq(info->metadata[0]->value, "a.b");
    retry = google__rpc__retry_info__unpack(NULL, status->details[1]->value.len,
                                            status->details[1]->value.data);
    cr_expect(retry->retry_delay->seconds == 1 &&
              retry->retry_delay->nanos == 500000000);
    bad = google__rpc__bad_request__unpack(NULL, status->details[2]->value.len,
                                           status->details[2]->value.data);
    cr_expect_str_eq(bad->field_violations[0]->field, "a.b");
    google__rpc__error_info__free_unpacked(info, NULL);
    google__rpc__retry_info__free_unpacked(retry, NULL);
    google__rpc__bad_request__free_unpacked(bad, NULL);
    google__rpc__status__free_unpacked(status, NULL);
}

/* A text may end inside a character; a proto3 string may not. */
Test(reply, an_error_without_reason_is_named_by_its_code_and_is_utf8)
{
    struct cause cause = {.code = STATUS_DATA_LOSS,
                          .text = "caf\xC3\xA9 \xFF and \xE2\x82"};
    Google__Rpc__Status *status = error_of(&cause);
    Google__Rpc__ErrorInfo *info = google__rpc__error_info__unpack(
        NULL, status->details[0]->value.len, status->details[0]->value.data);

    cr_expect_eq(status->n_details, 1);
    cr_expect_str_eq(info->reason, "DATA_LOSS");
    cr_expect_str_eq(status->message, "caf\xC3\xA9 ? and ??");
    google__rpc__error_info__free_unpacked(info, NULL);
    google__rpc__status__free_unpacked(status, NULL);
}

Test(reply, an_answer_to_another_question_is_an_internal_error)
{
    static const enum method_kind kinds[] = {
        METHOD_GENERATE,           METHOD_READ_TOKENS, METHOD_CREATE_SESSION,
        METHOD_LIST_SESSIONS,      METHOD_GET_NODE,    METHOD_DELETE_SESSION,
        METHOD_CHECKPOINT_SESSION, METHOD_TOKENIZE};
    static const struct note note = {0};
    static const struct event event = {.kind = EVENT_ERROR, .is_last = true};

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const struct reply_to to = {kinds[i], &note, "model"};
        struct packed packed = {0};
        cr_expect_eq(reply_pack(&to, &event, &packed), STATUS_INTERNAL);
        cr_expect_null(packed.bytes);
    }
}

Test(reply, a_full_page_of_full_sessions_packs)
{
    static const struct note note = {.prefix = "s"};
    const struct reply_to to = {METHOD_LIST_SESSIONS, &note, "model"};
    struct session_info *info = calloc(LIST_PAGE_MAX, sizeof(*info));
    Godwit__V1__ListSessionsResponse *page;
    struct event event = {.kind = EVENT_SESSIONS, .is_last = true};
    struct packed packed = {0};
    char token[PAGE_TOKEN_SIZE];

    for (uint32_t i = 0; i < LIST_PAGE_MAX; i++) {
        struct session_meta *meta = &info[i].meta;
        snprintf(meta->name, sizeof(meta->name), "s%04u", i);
        meta->expire_ms = 1000 * i;
        meta->fork_position = i;
        if (i % 2)
            snprintf(meta->parent_name, sizeof(meta->parent_name), "p%u", i);
        meta->n_label = LABEL_MAX;
        for (uint32_t j = 0; j < LABEL_MAX; j++) {
            snprintf(meta->label[j].key, LABEL_KEY_SIZE, "k%u", j);
            memset(meta->label[j].value, 'v', LABEL_VALUE_SIZE - 1);
        }
    }
    event.sessions.session = info;
    event.sessions.n_session = LIST_PAGE_MAX;
    event.sessions.n_total = 5000;
    event.sessions.has_more = true;
    cr_assert_eq(reply_pack(&to, &event, &packed), STATUS_OK, "%s",
                 status_reason());
    page = godwit__v1__list_sessions_response__unpack(NULL, packed.n_bytes,
                                                      packed.bytes);
    cr_assert_not_null(page);
    cr_assert_eq(page->n_sessions, LIST_PAGE_MAX);
    cr_expect_eq(page->total_size, 5000);
    cr_expect_str_eq(page->sessions[999]->name, "sessions/s0999");
    cr_expect_eq(page->sessions[999]->expire_time->seconds, 999);
    cr_expect_str_eq(page->sessions[999]->parent_session, "sessions/p999");
    cr_expect_eq(page->sessions[999]->fork_position, 999);
    cr_expect_str_eq(page->sessions[998]->parent_session, "");
    cr_expect_eq(page->sessions[998]->fork_position, 0, "of nobody");
    cr_expect_eq(page->sessions[0]->expiration_case,
                 GODWIT__V1__SESSION__EXPIRATION__NOT_SET);
    cr_expect_eq(strlen(page->sessions[999]->labels[15]->value), 255);
    page_token_make("s", "s0999", token);
    cr_expect_str_eq(page->next_page_token, token);
    godwit__v1__list_sessions_response__free_unpacked(page, NULL);
    free(packed.bytes);
    free(info);
}
