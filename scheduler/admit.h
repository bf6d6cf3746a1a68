#ifndef SCHEDULER_ADMIT_H
#define SCHEDULER_ADMIT_H
/*
 * Whether a new request may wait, must be refused, or makes a sheddable one go:
 * a pure function of what is there. A refusal is cheap and early, so that who
 * is admitted gets an answer in time: nobody waits for a deadline that will be
 * missed. When its first token would come is predicted by what goes before it
 * (scheduler/plan.h), at the share of the time that prompts get beside running
 * replies, and by how fast places in the batch become free.
 */
#include "scheduler/plan.h"

#include <stddef.h>

enum admit_reason {
    ADMIT_OK,
    ADMIT_QUEUE_FULL,   /* too many wait, or it would wait too long */
    ADMIT_KV_MEMORY,    /* would not fit even alone */
    ADMIT_TENANT_QUOTA, /* its tenant's share of the queue is full */
    ADMIT_DEADLINE,     /* its first token would come after its deadline, or
                           another one's because of it */
    ADMIT_SHED,         /* sheddable, and others need the node */
};

struct admit_limits {
    uint32_t max_queue;   /* requests that wait */
    uint32_t tenant_free; /* a tenant with a name may have so many times as
                             many waiting as there are places left in the
                             queue (with 4: four fifths of it), where those
                             that can be shed for it do not count; 0: none */
    double max_wait_us;   /* predicted wait for others, else QUEUE_FULL; 0: any
                             is right */
    double shed_wait_us;  /* the same for sheddable requests, else SHED */
    double margin;        /* predictions count so many times: 1.2 */
    size_t max_bytes;     /* of all memories */
};

struct admit_share { /* of one tenant, of the new one's priority */
    double us, n_token;
    uint32_t n_waiting;
};

struct admit_load {                     /* what is there */
    const struct plan_request *request; /* [n_request] all that have prompt
                        tokens to compute: first those that may be shed, then
                        the others that wait for a place */
    uint32_t n_request, n_waiting;
    uint32_t n_sheddable; /* that wait and were never started */
    struct admit_share
        *share;          /* scratch [fair_places()], or [1] without fair */
    double prompt_share; /* plan_prompt_share() as things are now */
    double pass_us;      /* what is left of the pass under way */
    double place_us;     /* 0: places and room are free; else the mean time from
                            one waiting request's start to the next one's */
};

struct admit_request {
    struct plan_request work; /* as it would wait; its tenant has entered */
    bool has_quota;           /* its tenant has a name */
    size_t bytes;             /* its memory may grow to */
    uint64_t reply;           /* its number: the jitter of retries */
};

struct admit_verdict {
    enum admit_reason reason;
    bool evicts;    /* OK, if a sheddable one that waits goes: admit_victim() */
    double wait_us; /* predicted time that goes to others before it ... */
    double first_us;   /* ... and to its first token, from now */
    uint32_t retry_ms; /* refused: come back after it; 0: never */
};

struct admit_verdict admit(const struct admit_request *request,
                           const struct admit_load *load,
                           const struct admit_limits *limits,
                           const struct plan_rules *rules);

/* "QUEUE_FULL" and so on: what clients see; "" for ADMIT_OK. */
const char *admit_reason_text(enum admit_reason reason);

/*
 * How fast those that wait are started while not all can be: place_us. Zeroed
 * at first.
 */
struct admit_pace {
    bool is_blocked;  /* some wait for a place or for room */
    uint64_t last_us; /* the last start since then, or the beginning of it */
    double mean_us;
};
/* One that waited was started. */
void admit_started(struct admit_pace *pace, uint64_t now_us);
/* After all starts of a step: do any still wait? */
void admit_blocked(struct admit_pace *pace, bool is_blocked, uint64_t now_us);
double admit_place_us(const struct admit_pace *pace, uint64_t now_us);

/*
 * Whom to take from first, when memory or a place is needed: a sheddable one,
 * else the one with the largest slack, else the newest. n if n is 0.
 */
uint32_t admit_victim(const struct plan_request *request, uint32_t n,
                      const struct plan_rules *rules);
#endif
