#ifndef OPS_BENCH_REPLY_H
#define OPS_BENCH_REPLY_H
/*
 * One Generate call as its client sees it: when what came, what it was, and how
 * it ended. Many are under way at a time; client_poll() moves them.
 */
#include "base/digest.h"
#include "ops/ctl.h"
#include "ops/samples.h"

enum bench_outcome {
    BENCH_UNSENT,  /* its time never came */
    BENCH_SKIPPED, /* too many were under way */
    BENCH_RUNNING,
    BENCH_OK,
    BENCH_REFUSED, /* RESOURCE_EXHAUSTED, before any token */
    BENCH_LATE,    /* its deadline passed after it was accepted */
    BENCH_STOPPED, /* cancelled by us */
    BENCH_FAILED,
};

struct bench_ask {
    const uint32_t *id; /* [n_id], or NULL: text */
    size_t n_id;
    const char *text;
    const char *tenant;
    int32_t priority;
    uint32_t n_reply;
    const float *temperature; /* NULL: the model's own */
    uint64_t seed;
    uint32_t timeout_ms; /* of the call, > 0 */
};

/* Of all replies that share it. */
struct bench_flight {
    uint32_t n;    /* under way */
    bool has_lost; /* one found no node, or a node that goes away */
};

struct bench_reply {
    struct exchange *exchange;   /* NULL: not under way */
    struct bench_flight *flight; /* borrowed, or NULL */
    struct samples gaps; /* between chunks of tokens; of the capacity that the
                            caller gave it, who releases it */
    enum bench_outcome outcome;
    bool is_accepted;
    uint64_t begin_us;          /* when it was to be sent; set by the caller */
    uint64_t first_us, last_us; /* first and last tokens came; 0: none did */
    uint64_t end_us;
    uint32_t n_prompt, n_token; /* as the node counts, and that came */
    uint32_t n_cached;
    struct digest tokens;          /* chain of all that came */
    char reason[STATUS_WORD_SIZE]; /* refused or failed; of reuse, if OK */
    uint32_t retry_ms;
    enum status status;
};

/* RESOURCE_EXHAUSTED  no memory; it is not under way */
MUST_CHECK enum status bench_reply_begin(struct client *client,
                                         const struct bench_ask *ask,
                                         struct bench_reply *reply);
/* Its outcome will be STOPPED, unless it is over. */
void bench_reply_stop(struct bench_reply *reply);
/* Poll until it is over. */
void bench_reply_await(struct client *client, const struct bench_reply *reply);

/* OK, or what an outcome that nobody wanted says of it, as a cause. */
MUST_CHECK enum status bench_reply_judge(const struct bench_reply *reply);

/* "ok", "refused" and so on. */
const char *bench_outcome_name(enum bench_outcome outcome);
#endif
