/*
 * Stderr is replaced by a pipe in packet mode: one read gives what one write
 * put there, so a test sees lines as the kernel does.
 */
#include "base/log.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <regex.h>
#include <string.h>
#include <unistd.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

static int reader, old_stderr;
static char line[4096];

static void begin(void)
{
    int ends[2];

    cr_assert(eq(int, pipe2(ends, O_DIRECT | O_NONBLOCK), 0));
    reader = ends[0];
    old_stderr = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
}

static void end(void)
{
    dup2(old_stderr, STDERR_FILENO);
    close(old_stderr);
    close(reader);
}

/* The next line without its new line; "" when nothing was written. */
static const char *next_line(void)
{
    ssize_t n = read(reader, line, sizeof(line) - 1);

    if (n <= 0)
        return "";
    cr_assert(eq(chr, line[n - 1], '\n'));
    line[n - 1] = 0;
    return line;
}

static bool matches(const char *text, const char *pattern)
{
    regex_t regex;
    int miss;

    cr_assert(eq(int, regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0));
    miss = regexec(&regex, text, 0, NULL, 0);
    regfree(&regex);
    return !miss;
}

#define WHEN                                                                   \
    "^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]"        \
    "\\.[0-9]{3}Z "

TestSuite(log, .init = begin, .fini = end);

Test(log, a_line_has_the_fixed_prefix)
{
    log_line(LOG_INFO, "state", "s=7f3a", "checkpoint of %.1f MB", 34.1);
    cr_assert(matches(next_line(),
                      WHEN "info  state    s=7f3a  checkpoint of 34\\.1 MB$"),
              "%s", line);
    log_line(LOG_ERROR, "node", "", "no disk");
    cr_assert(matches(next_line(), WHEN "error node     no disk$"), "%s", line);
}

Test(log, lines_below_the_level_are_dropped)
{
    log_line(LOG_DEBUG, "a", "", "x");
    cr_assert_str_eq(next_line(), ""); /* info at start */
    for (int level = LOG_DEBUG; level <= LOG_ERROR; level++) {
        log_set_level((enum log_level)level);
        for (int at = LOG_DEBUG; at <= LOG_ERROR; at++) {
            log_line((enum log_level)at, "a", "", "x");
            cr_assert(eq(int, *next_line() != 0, at >= level));
        }
    }
}

Test(log, outside_text_cannot_forge_a_line)
{
    log_line(LOG_WARN, "rpc", "r=a\nb", "got %s", "x\ny\r\tz\x1b[0m\x7f.");
    cr_assert(matches(next_line(),
                      WHEN "warn  rpc      r=a b  got x y  z \\[0m \\.$"),
              "%s", line);
    cr_assert_str_eq(next_line(), "");
}

Test(log, a_long_line_is_cut_at_1_kib)
{
    char text[3000];

    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = 0;
    log_line(LOG_INFO, "rpc", "", "%s", text);
    next_line();
    cr_assert(eq(sz, strlen(line), 1023)); /* and its new line */
    cr_assert_str_eq(line + 1020, "...");
    cr_assert_str_eq(next_line(), "");
    text[1023 - 40] = 0; /* prefix of 40 bytes: a line that just fits */
    log_line(LOG_INFO, "rpc", "", "%s", text);
    next_line();
    cr_assert(eq(sz, strlen(line), 1023), "%zu", strlen(line));
    cr_assert_str_eq(line + 1020, "aaa");
}

Test(log, a_cut_leaves_no_part_of_a_character)
{
    char text[3000];

    for (size_t shift = 0; shift < 3; shift++) {
        size_t n;

        memset(text, 'a', shift);
        for (n = shift; n + 3 < sizeof(text); n += 3)
            memcpy(text + n, "\xe2\x82\xac", 3);
        text[n] = 0;
        log_line(LOG_INFO, "rpc", "", "%s", text);
        next_line();
        n = strlen(line);
        cr_assert_str_eq(line + n - 3, "...");
        cr_assert(eq(int, memcmp(line + n - 6, "\xe2\x82\xac", 3), 0));
        cr_assert(gt(sz, n, 1020));
    }
}

Test(log, a_repeated_cause_is_said_once_a_minute)
{
    struct log_limit limit = {0};

    for (int i = 0; i < 5; i++)
        log_limited(&limit, LOG_WARN, "peer", "", "node %d is away", 1);
    cr_assert(ne(chr, *next_line(), 0));
    cr_assert_str_eq(next_line(), "");
    limit.last_ms -= 59000;
    log_limited(&limit, LOG_WARN, "peer", "", "node %d is away", 1);
    cr_assert_str_eq(next_line(), "");
    limit.last_ms -= 1000;
    log_limited(&limit, LOG_WARN, "peer", "", "node %d is away", 1);
    cr_assert(matches(next_line(), WHEN "warn  peer     node 1 is away$"));
}

Test(log, a_new_cause_is_said_at_once)
{
    struct log_limit limit = {0};

    for (int i = 0; i < 3; i++) {
        log_limited(&limit, LOG_WARN, "peer", "", "node %d is away", i % 2);
        cr_assert(ne(chr, *next_line(), 0));
    }
    log_limited(&limit, LOG_DEBUG, "peer", "", "below the level");
    cr_assert_str_eq(next_line(), "");
}

Test(log, levels_are_parsed_by_name)
{
    static const char *const NAME[] = {"debug", "info", "warn", "error"};
    static const char *const BAD[] = {"", "Info", "warning", "info ", "0"};
    enum log_level level = LOG_WARN;

    for (int i = 0; i < 5; i++)
        cr_assert(
            eq(int, log_level_parse(BAD[i], &level), STATUS_INVALID_ARGUMENT));
    cr_assert(eq(int, level, LOG_WARN));
    cr_assert_str_eq(status_reason(), "log level is '0', expected debug, info, "
                                      "warn or error");
    for (int i = 0; i < 4; i++) {
        must(log_level_parse(NAME[i], &level));
        cr_assert(eq(int, (int)level, i));
    }
}
