#include "base/status.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local struct cause last;

/*
 * A text that was cut may end within a character; its first bytes go too,
 * because a message with bad UTF-8 is refused by protobuf at the client.
 */
static void trim_partial_character(char *text, size_t n)
{
    size_t start = n;

    while (start > 0 && ((unsigned char)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && (unsigned char)text[start - 1] >= 0xc0) {
        unsigned char lead = (unsigned char)text[start - 1];
        size_t expected = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;

        if (n - start < expected)
            text[start - 1] = 0;
    }
}

/* Copy by way of a second buffer: `word` may be a part of `last`. */
static void copy_word(char out[STATUS_WORD_SIZE], const char *word)
{
    char copy[STATUS_WORD_SIZE] = {0};
    size_t n = strnlen(word, STATUS_WORD_SIZE);

    memcpy(copy, word, n < STATUS_WORD_SIZE ? n : STATUS_WORD_SIZE - 1);
    if (n == STATUS_WORD_SIZE)
        trim_partial_character(copy, STATUS_WORD_SIZE - 1);
    memcpy(out, copy, STATUS_WORD_SIZE);
}

/* In brackets, because a macro may stand in for each (see the header). */
enum status(status_fail)(enum status code, const char *fmt, ...)
{
    struct cause cause = {.code = code}; /* the arguments may point at last */
    va_list args;
    int n;

    assert(code != STATUS_OK);
    va_start(args, fmt);
    n = vsnprintf(cause.text, sizeof(cause.text), fmt, args);
    va_end(args);
    if (n >= (int)sizeof(cause.text))
        trim_partial_character(cause.text, sizeof(cause.text) - 1);
    last = cause;
    return code;
}

enum status(status_because)(const char *reason)
{
    copy_word(last.reason, reason);
    return last.code;
}

enum status(status_field)(const char *field)
{
    copy_word(last.field, field);
    return last.code;
}

enum status(status_retry)(uint32_t retry_ms)
{
    last.retry_ms = retry_ms;
    return last.code;
}

const char *status_reason(void)
{
    return last.text;
}

const struct cause *status_cause(void)
{
    return &last;
}

enum status status_adopt(const struct cause *cause)
{
    struct cause copy = *cause; /* may be this thread's own */

    copy.reason[STATUS_WORD_SIZE - 1] = 0;
    copy.field[STATUS_WORD_SIZE - 1] = 0;
    copy.text[STATUS_TEXT_SIZE - 1] = 0;
    last = copy;
    return last.code;
}

const char *status_name(enum status code)
{
    switch (code) {
    case STATUS_OK:
        return "ok";
    case STATUS_CANCELLED:
        return "cancelled";
    case STATUS_UNKNOWN:
        return "unknown";
    case STATUS_INVALID_ARGUMENT:
        return "invalid_argument";
    case STATUS_DEADLINE_EXCEEDED:
        return "deadline_exceeded";
    case STATUS_NOT_FOUND:
        return "not_found";
    case STATUS_ALREADY_EXISTS:
        return "already_exists";
    case STATUS_PERMISSION_DENIED:
        return "permission_denied";
    case STATUS_RESOURCE_EXHAUSTED:
        return "resource_exhausted";
    case STATUS_FAILED_PRECONDITION:
        return "failed_precondition";
    case STATUS_ABORTED:
        return "aborted";
    case STATUS_OUT_OF_RANGE:
        return "out_of_range";
    case STATUS_UNIMPLEMENTED:
        return "unimplemented";
    case STATUS_INTERNAL:
        return "internal";
    case STATUS_UNAVAILABLE:
        return "unavailable";
    case STATUS_DATA_LOSS:
        return "data_loss";
    case STATUS_UNAUTHENTICATED:
        return "unauthenticated";
    }
    return "unknown"; /* no default above: -Wswitch names a forgotten code */
}
