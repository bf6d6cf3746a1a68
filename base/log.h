#ifndef BASE_LOG_H
#define BASE_LOG_H
/*
 * One line per event on stderr:
 *   2026-01-01T00:00:00.123Z info  state    s=7f3a  checkpoint of 34.1 MB ...
 * A sentence with its numbers and units, lower case, no full stop. `error`
 * someone must act; `warn` we coped and say how; `info` once per request or
 * rarer; `debug` once per step. A line is one write(2), so lines of threads
 * never mix. Any thread may log. A new line in the text is written as a space,
 * so that outside text cannot forge a line.
 */
#include "base/status.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Lines below `level` are dropped; LOG_INFO at start. */
void log_set_level(enum log_level level);

/* INVALID_ARGUMENT  not one of debug, info, warn, error */
MUST_CHECK enum status log_level_parse(const char *text, enum log_level *out);

/*
 * part: folder or module, at most 8 letters. about: "s=chat-7" or
 * "r=<request id>" or "".
 */
void log_line(enum log_level level, const char *part, const char *about,
              const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/*
 * At most one line per minute and cause, and always when the cause changes.
 * Zero-initialised by its owner; used by one thread.
 */
struct log_limit {
    uint64_t cause;   /* digest of the last text */
    uint64_t last_ms; /* when it was last written */
};
void log_limited(struct log_limit *limit, enum log_level level,
                 const char *part, const char *about, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
#endif
