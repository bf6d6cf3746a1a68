#include "base/log.h"

#include "base/clock.h"
#include "base/digest.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024u   /* of one line, with its new line */
#define REPEAT_AFTER_MS 60000u /* a cause that stays is said again */

static _Atomic int lowest = LOG_INFO;

static const char *const LEVEL_NAME[] = {"debug", "info", "warn", "error"};

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&lowest, (int)level, memory_order_relaxed);
}

enum status log_level_parse(const char *text, enum log_level *out)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(text, LEVEL_NAME[i]) == 0) {
            *out = (enum log_level)i;
            return STATUS_OK;
        }
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "log level is '%s', expected debug, info, warn or error",
                       text);
}

static int is_dropped(enum log_level level)
{
    return (int)level < atomic_load_explicit(&lowest, memory_order_relaxed);
}

/* Where a cut at n bytes does not split a UTF-8 character. */
static size_t character_start(const char *text, size_t n)
{
    while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    return n;
}

static void write_line(enum log_level level, const char *part,
                       const char *about, const char *text)
{
    char line[LINE_MAX_BYTES + 1], when[25];
    size_t n;
    int full;

    clock_format(clock_real()->wall_ms(clock_real()), when);
    full = snprintf(line, sizeof(line), "%s %-5s %-8s %s%s%s", when,
                    LEVEL_NAME[level], part, about, *about ? "  " : "", text);
    if (full < 0)
        return;
    n = (size_t)full;
    if (n > LINE_MAX_BYTES - 1) {
        n = character_start(line, LINE_MAX_BYTES - 4);
        memcpy(line + n, "...", 3);
        n += 3;
    }
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = ' ';
    line[n++] = '\n';
    /* A log that cannot be written has nowhere to say so. */
    if (write(STDERR_FILENO, line, n) < 0)
        return;
}

void log_line(enum log_level level, const char *part, const char *about,
              const char *fmt, ...)
{
    char text[LINE_MAX_BYTES + 1];
    va_list args;

    if (is_dropped(level))
        return;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    write_line(level, part, about, text);
}

void log_limited(struct log_limit *limit, enum log_level level,
                 const char *part, const char *about, const char *fmt, ...)
{
    uint64_t now_ms = clock_real()->now_us(clock_real()) / 1000u;
    char text[LINE_MAX_BYTES + 1];
    uint64_t cause;
    va_list args;

    if (is_dropped(level))
        return;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    cause = digest_64(text, strlen(text));
    if (cause == limit->cause && now_ms - limit->last_ms < REPEAT_AFTER_MS)
        return;
    limit->cause = cause;
    limit->last_ms = now_ms;
    write_line(level, part, about, text);
}
