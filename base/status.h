#ifndef BASE_STATUS_H
#define BASE_STATUS_H
/*
 * The one result type of this program.
 *
 * Names and values are gRPC's status codes, so the code a kernel returns is
 * the code a client receives and no layer keeps a mapping table. Success is
 * zero: callers write `if (st)`.
 *
 * Whoever first decides that something failed says so with status_fail(),
 * which records the cause for this thread. Functions above it pass the code
 * on unchanged. The cause is logged once, where a request or a subcommand
 * ends, and travels to the client as google.rpc.ErrorInfo, RetryInfo and
 * BadRequest. A cause crosses threads only as a copied `struct cause`.
 */
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum status {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,
    STATUS_UNKNOWN = 2,
    STATUS_INVALID_ARGUMENT = 3,    /* the caller must change the request */
    STATUS_DEADLINE_EXCEEDED = 4,   /* the caller's time ran out */
    STATUS_NOT_FOUND = 5,           /* no such session, key, file or peer */
    STATUS_ALREADY_EXISTS = 6,      /* the name is taken */
    STATUS_PERMISSION_DENIED = 7,   /* the operating system or a rule says no */
    STATUS_RESOURCE_EXHAUSTED = 8,  /* a budget is full; retry later */
    STATUS_FAILED_PRECONDITION = 9, /* right request, wrong state for it */
    STATUS_ABORTED = 10,            /* lost a race; read again, then retry */
    STATUS_OUT_OF_RANGE = 11,       /* past the end of something */
    STATUS_UNIMPLEMENTED = 12,      /* not in this build */
    STATUS_INTERNAL = 13,           /* a bug, or a device that failed */
    STATUS_UNAVAILABLE = 14,        /* a peer is away; retry elsewhere */
    STATUS_DATA_LOSS = 15,          /* stored bytes fail their checksum */
    STATUS_UNAUTHENTICATED = 16,    /* who the caller is was not shown */
};

#define STATUS_TEXT_SIZE 384 /* bytes of a cause's text, with the final NUL */
#define STATUS_WORD_SIZE 64  /* bytes of its reason and of its field */

#define MUST_CHECK __attribute__((warn_unused_result))

/* Why something failed. Plain bytes, so that it can be copied anywhere. */
struct cause {
    enum status code;
    uint32_t retry_ms;             /* client may retry after this; 0: no */
    char reason[STATUS_WORD_SIZE]; /* "QUEUE_FULL" for ErrorInfo, or "" */
    char field[STATUS_WORD_SIZE];  /* "sampling_params.top_p", or "";
                                      RESOURCE_EXHAUSTED: whose quota */
    char text[STATUS_TEXT_SIZE];   /* one lower-case clause */
};

/*
 * Record why this thread failed and return `code`, which is not STATUS_OK.
 * The text is one lower-case clause that names the value and its limit:
 * "prompt has 70000 tokens, limit 65536". It may quote status_reason().
 * Reason, field and retry of an older cause are cleared.
 */
enum status status_fail(enum status code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * Add to the cause that status_fail() just recorded, and return its code:
 *     st = status_fail(STATUS_RESOURCE_EXHAUSTED, "queue has %u ...", n);
 *     status_because("QUEUE_FULL"); status_retry(500);
 */
enum status status_because(const char *reason);
enum status status_field(const char *field);
enum status status_retry(uint32_t retry_ms);

/* Text last given on this thread, "" if none. Valid until the next one. */
const char *status_reason(void);

/* The whole cause last given on this thread; code STATUS_OK if none. */
const struct cause *status_cause(void);

/* Make `cause` this thread's own and return its code: it came from another. */
enum status status_adopt(const struct cause *cause);

/* Name of a code as gRPC spells it in logs: "invalid_argument". */
const char *status_name(enum status code);

/*
 * The analyzer reads one file at a time and would follow paths where a failure
 * was STATUS_OK. No compiler sees this.
 */
#ifdef __clang_analyzer__
#define STATUS_IS_FAILURE(call)                                                \
    __extension__({                                                            \
        enum status failure_ = (call);                                         \
        if (failure_ == STATUS_OK)                                             \
            __builtin_unreachable();                                           \
        failure_;                                                              \
    })
#define status_fail(...) STATUS_IS_FAILURE((status_fail)(__VA_ARGS__))
#define status_because(reason) STATUS_IS_FAILURE((status_because)(reason))
#define status_field(field) STATUS_IS_FAILURE((status_field)(field))
#define status_retry(retry_ms) STATUS_IS_FAILURE((status_retry)(retry_ms))
#endif

#ifdef __cplusplus
}
#endif
#endif
