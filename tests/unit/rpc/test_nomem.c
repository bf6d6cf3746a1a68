/*
 * Memory that runs out: the n-th allocation of a request's way in and of its
 * way out fails, for n = 1, 2, ... until it succeeds. Each failure is the
 * status RESOURCE_EXHAUSTED, leaks nothing, and leaves the out parameters
 * alone. Linked with --wrap, so that our own calls of the allocator come here.
 */
#include "rpc/convert.h"
#include "rpc/reflection.h"
#include "rpc/reply.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#include "tests/unit/rpc/wire_writer.h"

#define TRIES_MAX 200u

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *pointer, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *pointer, size_t n);

static uint32_t fails_in; /* 0: never; else counted down to the failure */
static struct writer w, sub, subsub;

static bool fails_now(void)
{
    return fails_in && --fails_in == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails_now() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *pointer, size_t n)
{
    return fails_now() ? NULL : __real_realloc(pointer, n);
}

/* Calls it with each allocation failing in turn; returns how many failed. */
static uint32_t until_it_succeeds(enum status (*call)(void))
{
    for (uint32_t n = 1; n <= TRIES_MAX; n++) {
        enum status st;

        fails_in = n;
        st = call();
        if (fails_in > 0) { /* it needed fewer */
            fails_in = 0;
            cr_expect_eq(st, STATUS_OK);
            return n - 1;
        }
        cr_assert_eq(st, STATUS_RESOURCE_EXHAUSTED, "allocation %u: %s", n,
                     status_name(st));
    }
    cr_assert_fail("never succeeds");
    return 0;
}

static enum status convert(void)
{
    static struct convert_node node = {
        .model_name = "m", .n_vocab = 100, .n_context = 1000};
    struct command *command = NULL;
    struct note note;
    enum status st;

    node.clock = clock_real();
    st = convert_command(&node, METHOD_GENERATE, w.byte, w.n, &command, &note);
    if (st)
        cr_expect_null(command);
    else
        arena_destroy(command->arena);
    return st;
}

Test(nomem, a_request)
{
    for (uint32_t i = 0; i < 50; i++)
        write_number(&sub, 2, i);
    write_text(&w, 1, "sessions/a");
    write_message(&w, 4, &sub);
    write_text(&subsub, 10, "stop");
    write_bytes(&subsub, 16, "\x08\x01", 2);
    write_message(&w, 6, &subsub);
    cr_expect_geq(until_it_succeeds(convert), 8);
}

static enum status pack_page(void)
{
    static const struct note note = {0};
    static const struct reply_to to = {METHOD_LIST_SESSIONS, &note, "m"};
    static struct session_info info[20];
    struct event event = {.kind = EVENT_SESSIONS, .is_last = true};
    struct packed packed = {0};
    enum status st;

    for (uint32_t i = 0; i < 20; i++)
        info[i].meta.n_label = LABEL_MAX;
    event.sessions.session = info;
    event.sessions.n_session = 20;
    st = reply_pack(&to, &event, &packed);
    if (st)
        cr_expect_null(packed.bytes);
    free(packed.bytes);
    return st;
}

Test(nomem, a_page_of_sessions)
{
    cr_expect_geq(until_it_succeeds(pack_page), 4);
}

static enum status pack_error(void)
{
    static const struct cause cause = {
        .code = STATUS_ABORTED, .retry_ms = 1, .field = "f", .text = "t"};
    struct packed packed = {0};
    enum status st = reply_error(&cause, &packed);

    if (st)
        cr_expect_null(packed.bytes);
    free(packed.bytes);
    return st;
}

Test(nomem, an_error)
{
    cr_expect_eq(until_it_succeeds(pack_error), 4);
}

static enum status reflect(void)
{
    struct reflection *reflection = NULL;
    struct packed packed = {0};
    enum status st = reflection_create(&reflection);

    if (!st)
        st = reflection_answer(reflection, "\x22\x09godwit.v1", 11, &packed);
    free(packed.bytes);
    reflection_destroy(reflection);
    return st;
}

Test(nomem, reflection)
{
    cr_expect_geq(until_it_succeeds(reflect), 4);
}
