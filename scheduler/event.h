#ifndef SCHEDULER_EVENT_H
#define SCHEDULER_EVENT_H
/*
 * What the engine says: events for replies, in order per reply, through the
 * journal thread (so that only committed tokens leave) to the outbox ring.
 * One heap block each, made by event_create() and destroyed by its last
 * holder; payload arrays lie behind the struct in the same block.
 */
#include "base/status.h"
#include "model/state_norm.h"
#include "state/scrub_report.h"
#include "state/session.h"

#include <stddef.h>

enum event_kind {
    EVENT_ACCEPTED,
    EVENT_PROGRESS,
    EVENT_TOKENS,
    EVENT_COMPLETE,   /* last */
    EVENT_LOG,        /* ReadTokens: a piece of the log */
    EVENT_SESSION,    /* last */
    EVENT_SESSIONS,   /* last */
    EVENT_CHECKPOINT, /* last */
    EVENT_VERIFIED,   /* last */
    EVENT_INSPECTED,  /* last */
    EVENT_BYTES,      /* a piece of a bundle */
    EVENT_MORE,       /* the next piece of a bundle may come */
    EVENT_NODE,       /* last */
    EVENT_DONE,       /* last, without payload */
    EVENT_ERROR,      /* last */
};

enum session_state { /* values of godwit.v1.Session.State */
                     SESSION_IDLE = 2,
                     SESSION_PREFILLING = 3,
                     SESSION_DECODING = 4,
                     SESSION_PARKED =
                         6, /* nothing of it in memory, durable only */
                     SESSION_FAILED = 7, /* its log cannot be read */
};

struct session_info {
    struct session_meta meta;
    enum session_state state;
    uint64_t position, committed_position; /* tokens */
    uint64_t state_bytes, kv_bytes;        /* in memory now */
    uint64_t stored_bytes;                 /* under its own log */
    uint64_t last_active_ms;               /* wall time */
    bool has_chain;
    struct digest chain; /* of all its tokens, if they are in memory */
    char etag[24];
};

struct token_logprob {
    uint32_t token;
    float logprob;
};
struct logprobs { /* of one sampled token */
    struct token_logprob chosen;
    uint32_t n_top;
    struct token_logprob top[LOGPROBS_MAX]; /* descending, ties by id */
};

struct timing { /* microseconds */
    uint64_t queued_us, prefill_us, decode_us, first_token_us;
};

struct node_info {
    char name[64], version[32], model[64], numerics[96], backend[16];
    char fingerprint[DIGEST_TEXT_SIZE];
    bool is_draining;
    uint32_t n_thread;
    uint64_t start_ms; /* wall time */
    uint64_t n_context;
    uint64_t n_session, n_running, n_waiting, n_resident;
    uint64_t weight_bytes, session_bytes, session_bytes_max, token_bytes,
        state_bytes, state_bytes_max, /* of session_bytes; 0: no limit */
        session_fixed_bytes;          /* stated: per token, per session */
    uint64_t prompt_tokens, generated_tokens, steps; /* since start */
};

/* What of a session is where. */
struct inspection {
    struct session_info session;
    const char *tier; /* where its state is: "device", "host", "store", "log" */
    uint32_t n_layer, n_snapshot, n_log;
    const struct inspected_layer {
        const char *kind;
        uint64_t memory_state, memory_kv, stored_state, stored_kv; /* bytes */
        uint64_t n_step, n_hit, n_fetched, fetched_bytes; /* paging_use() */
        struct state_norm norm;                           /* in snapshot[0] */
    } * layer;
    const struct inspected_snapshot {
        uint64_t position, bytes, create_ms;
        struct digest chain;
    } * snapshot; /* newest first */
    const struct inspected_log {
        struct uid uid;
        uint64_t begin, end; /* UINT64_MAX: it goes on */
        uint64_t n_snapshot, bytes;
    } * log;
};

struct event {
    enum event_kind kind;
    uint64_t reply;
    bool is_last;
    union {
        struct {
            char session[SESSION_NAME_SIZE];
            char request_id[REQUEST_ID_SIZE];
            uint64_t position;     /* of the first input token */
            uint32_t n_ahead;      /* requests before it in the queue */
            uint64_t seed;         /* in use */
            uint64_t predicted_us; /* to its first token; 0: unknown */
        } accepted;
        struct {
            uint64_t n_total, n_cached, n_processed; /* tokens of the session
                       to consume, of them restored, and consumed so far */
            uint64_t elapsed_us, remaining_us;       /* estimate; 0: unknown */
        } progress;
        struct {
            uint64_t position; /* of the first token */
            uint32_t n_token;
            const uint32_t *token;
            uint32_t text_bytes;
            const char *text;    /* whole characters; NUL-terminated; may lag
                                    behind the tokens or be empty */
            uint32_t n_logprobs; /* 0 or n_token */
            const struct logprobs *logprobs;
        } tokens; /* EVENT_TOKENS, EVENT_LOG */
        struct {
            enum finish_reason finish; /* an append ends with STOP */
            uint64_t n_prompt, n_completion, n_cached; /* usage, tokens; cached:
                           of the log up to the input's end */
            uint64_t n_excerpt;  /* that the reply was made from; 0: all */
            uint64_t n_restored; /* of those cached, read from the store */
            uint64_t n_replayed; /* tokens before the input that this call
                                    computed again */
            uint64_t committed_position;
            struct timing timing;
            enum restore_reason_code { /* words: reuse_name() */
                                       REUSE_NOT_NEEDED, /* nothing was computed
                                                          */
                                       REUSE_RESIDENT,   /* it was in memory */
                                       REUSE_RESTORED, /* from the session's own
                                                          snapshot */
                                       REUSE_PREFIX, /* from another's snapshot
                                                      */
                                       REUSE_NONE,   /* nothing to start from */
                                       REUSE_TOO_SHORT, /* what is shared is not
                                                           worth it */
                                       REUSE_SLOWER,  /* computing was expected
                                                         to be faster  than
                                                         reading */
                                       REUSE_EVICTED, /* the store's budget took
                                                         it away */
                                       REUSE_NUMERICS_CHANGED, /* other
                                                                  arithmetic
                                                                  made it */
                                       REUSE_WEIGHTS_CHANGED,  /* other weights
                                                                  made it */
                                       REUSE_POLICY_CHANGED,   /* another memory
                                                                  policy made it
                                                                */
                                       REUSE_SNAPSHOT_DAMAGED, /* its bytes are
                                                                  not what was
                                                                  stored */
                                       REUSE_SNAPSHOT_MISMATCH, /* it belongs to
                                                                   other tokens
                                                                 */
                                       REUSE_REASON_COUNT
            } reuse;
        } complete;
        struct session_info session;
        struct {
            const struct session_info *session;
            uint32_t n_session;
            uint64_t n_total;
            bool has_more; /* next page begins after the last name */
        } sessions;
        struct {
            char session[SESSION_NAME_SIZE];
            uint64_t position;
            struct digest chain;
            uint64_t bytes, create_ms; /* wall time */
        } checkpoint;
        struct {
            const void *at;
            size_t n;
        } bytes;
        struct {
            const struct scrub_report *report;
            bool is_replayed;
        } verified;
        struct inspection inspected;
        struct node_info node;
        struct cause cause; /* ERROR */
    };
};

/* Zeroed, with `extra` bytes behind it (*out_extra). NULL: no memory. */
struct event *event_create(enum event_kind kind, uint64_t reply, size_t extra,
                           void **out_extra);
void event_destroy(struct event *event);

/* "RESIDENT" and so on, as the API spells them. */
const char *reuse_name(enum restore_reason_code reuse);
#endif
