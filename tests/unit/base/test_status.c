/*
 * A cause is right if it holds the words it was given, stays within its sizes,
 * and belongs to one thread. gRPC's own list of names is the oracle of names.
 */
#include "base/status.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <string.h>

Test(status, names_and_values_are_grpcs)
{
    static const char *const NAME[] = {
        "ok",
        "cancelled",
        "unknown",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "unauthenticated",
    };

    for (int code = 0; code < 17; code++)
        cr_assert_str_eq(status_name((enum status)code), NAME[code]);
    cr_assert_str_eq(status_name((enum status)17), "unknown");
}

Test(status, a_thread_starts_without_a_cause)
{
    cr_assert_str_eq(status_reason(), "");
    cr_assert(eq(int, status_cause()->code, STATUS_OK));
}

Test(status, a_cause_holds_what_was_said)
{
    const struct cause *cause = status_cause();

    cr_assert(eq(int,
                 status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "queue has %d requests, limit %d", 9, 8),
                 STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(int, status_because("QUEUE_FULL"), STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(int, status_field("prompt"), STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(int, status_retry(500), STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(int, cause->code, STATUS_RESOURCE_EXHAUSTED));
    cr_assert_str_eq(status_reason(), "queue has 9 requests, limit 8");
    cr_assert_str_eq(cause->text, "queue has 9 requests, limit 8");
    cr_assert_str_eq(cause->reason, "QUEUE_FULL");
    cr_assert_str_eq(cause->field, "prompt");
    cr_assert(eq(u32, cause->retry_ms, 500));
}

Test(status, a_new_cause_forgets_the_old_ones_words)
{
    status_fail(STATUS_ABORTED, "old");
    status_because("OLD");
    status_field("old");
    status_retry(1);
    status_fail(STATUS_INTERNAL, "new");
    cr_assert_str_eq(status_reason(), "new");
    cr_assert_str_eq(status_cause()->reason, "");
    cr_assert_str_eq(status_cause()->field, "");
    cr_assert(eq(u32, status_cause()->retry_ms, 0));
}

Test(status, a_cause_may_quote_the_one_before)
{
    status_fail(STATUS_NOT_FOUND, "no file %s", "a");
    status_because("NO_FILE");
    status_fail(STATUS_INTERNAL, "model: %s", status_reason());
    cr_assert_str_eq(status_reason(), "model: no file a");
    status_because("FIRST");
    status_field(status_cause()->reason);
    status_because(status_cause()->reason + 2);
    cr_assert_str_eq(status_cause()->field, "FIRST");
    cr_assert_str_eq(status_cause()->reason, "RST");
}

Test(status, a_long_text_is_cut_to_its_size)
{
    char text[2 * STATUS_TEXT_SIZE];

    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = 0;
    status_fail(STATUS_INTERNAL, "%s", text);
    status_because(text);
    status_field(text);
    cr_assert(eq(sz, strlen(status_reason()), STATUS_TEXT_SIZE - 1));
    cr_assert(eq(sz, strlen(status_cause()->reason), STATUS_WORD_SIZE - 1));
    cr_assert(eq(sz, strlen(status_cause()->field), STATUS_WORD_SIZE - 1));
}

Test(status, a_cut_leaves_no_part_of_a_character)
{
    static const char *const CHARACTER[] = {"\xc3\xa9", "\xe2\x82\xac",
                                            "\xf0\x9f\x90\xa6"};
    char text[STATUS_TEXT_SIZE + 8];

    for (size_t c = 0; c < 3; c++) {
        size_t n = strlen(CHARACTER[c]);

        /* The character ends 1, 2, ... bytes behind the last that fits. */
        for (size_t over = 1; over < n; over++) {
            size_t start = STATUS_TEXT_SIZE - 1 + over - n;

            memset(text, 'a', sizeof(text));
            memcpy(text + start, CHARACTER[c], n);
            text[start + n] = 0;
            status_fail(STATUS_INTERNAL, "%s", text);
            cr_assert(eq(sz, strlen(status_reason()), start));
            start = STATUS_WORD_SIZE - 1 + over - n;
            memset(text, 'a', sizeof(text));
            memcpy(text + start, CHARACTER[c], n);
            text[start + n] = 0;
            status_field(text);
            cr_assert(eq(sz, strlen(status_cause()->field), start));
        }
        /* One that just fits stays. */
        memset(text, 'a', sizeof(text));
        memcpy(text + STATUS_TEXT_SIZE - 1 - n, CHARACTER[c], n + 1);
        status_fail(STATUS_INTERNAL, "%s", text);
        cr_assert(eq(sz, strlen(status_reason()), STATUS_TEXT_SIZE - 1));
        memcpy(text + STATUS_TEXT_SIZE - 1, "a", 2);
        status_fail(STATUS_INTERNAL, "%s", text);
        cr_assert(eq(sz, strlen(status_reason()), STATUS_TEXT_SIZE - 1));
    }
}

Test(status, an_adopted_cause_is_this_threads_own)
{
    struct cause cause = {.code = STATUS_UNAVAILABLE, .retry_ms = 7};

    memset(cause.text, 'x', sizeof(cause.text)); /* no NUL, as from a wire */
    memset(cause.reason, 'y', sizeof(cause.reason));
    memset(cause.field, 'z', sizeof(cause.field));
    cr_assert(eq(int, status_adopt(&cause), STATUS_UNAVAILABLE));
    cr_assert(eq(sz, strlen(status_reason()), STATUS_TEXT_SIZE - 1));
    cr_assert(eq(sz, strlen(status_cause()->reason), STATUS_WORD_SIZE - 1));
    cr_assert(eq(sz, strlen(status_cause()->field), STATUS_WORD_SIZE - 1));
    cr_assert(eq(u32, status_cause()->retry_ms, 7));
    cr_assert(eq(int, status_adopt(status_cause()), STATUS_UNAVAILABLE));
    cr_assert(eq(u32, status_cause()->retry_ms, 7));
}

static void *fail_elsewhere(void *seen)
{
    strcpy(seen, status_reason());
    status_fail(STATUS_INTERNAL, "elsewhere");
    return NULL;
}

Test(status, a_cause_belongs_to_its_thread)
{
    char seen[STATUS_TEXT_SIZE] = "unset";
    pthread_t thread;

    status_fail(STATUS_INTERNAL, "here");
    cr_assert(eq(int, pthread_create(&thread, NULL, fail_elsewhere, seen), 0));
    cr_assert(eq(int, pthread_join(thread, NULL), 0));
    cr_assert_str_eq(seen, "");
    cr_assert_str_eq(status_reason(), "here");
}
