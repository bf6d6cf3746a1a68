#ifndef SCHEDULER_ENGINE_H
#define SCHEDULER_ENGINE_H
/*
 * The engine: one thread that owns every session in memory and runs the model.
 * Each step it drains the inbox and the finished jobs, plans (scheduler/plan.h,
 * a pure function), runs one batch, samples, and hands one commit to the
 * journal thread, while the commit before may still be syncing. It never waits
 * for the disk or the network; with nothing to do it sleeps in the inbox ring.
 *
 * A session's log may be one token longer than what its memory has consumed:
 * the last token waits to be the next step's input, so no logits are ever kept.
 */
#include "base/clock.h"
#include "base/metrics.h"
#include "base/ring.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "scheduler/command.h"
#include "scheduler/event.h"
#include "state/threads.h"

#include <stdbool.h>

#define ENGINE_RUNNING_MAX 256u
#define ENGINE_QUEUE_MAX 65536u
/* Jobs that are with the store thread at most: what `done` has room for. */
#define ENGINE_JOB_MAX 32u

struct engine;

struct engine_options {
    const struct model *model;
    const struct tokenizer *tokenizer; /* NULL: token input only */
    struct pool *pool;                 /* used by the engine thread only */
    const struct clock *clock;
    struct metrics *metrics; /* may be NULL */
    const char *node_name;

    struct journal *journal; /* sessions are read from it at create */
    struct journal_thread *journal_thread;
    struct store_thread *store_thread;
    struct ring *inbox;   /* of struct command *; engine is the consumer */
    struct ring *done;    /* of struct store_job *, ENGINE_JOB_MAX places */
    struct ring *reports; /* of struct journal_report */

    uint32_t max_running;  /* sessions in one batch, 1 .. 256 */
    uint32_t max_queue;    /* requests waiting, 0 .. ENGINE_QUEUE_MAX; beyond:
                              QUEUE_FULL */
    uint64_t max_sessions; /* that exist */
    size_t session_bytes;  /* memory of resident sessions; above: idle ones
                              are saved and dropped, then KV_MEMORY */
    size_t state_bytes;    /* of it, for states of fixed size and images of
                              them; at least engine_state_least(). 0: any */
    struct pager *pager;   /* reads blocks of durable sessions whose policy does
                              not see everything: of these, page_bytes of each
                              are in RAM, or what a step needs if that is more.
                              NULL: all blocks of resident sessions are */
    size_t page_bytes;
    size_t host_bytes; /* of the host's memory, for sessions that have no room
                          on the model's device; 0: they leave for the store */
    uint64_t first_token_us; /* target for the first token of a short prompt;
                                longer ones have more, by what they take */
    uint64_t inter_token_us; /* time between two tokens of a reply to keep
                                while prompts are computed; 0: by their own */
    uint64_t max_wait_us;    /* predicted to the first token; beyond:
                                QUEUE_FULL; 0: none */
    uint32_t default_max_tokens; /* at least 1 */
    enum durability durability;  /* default of new sessions */
    const struct keyring *keys;  /* of tenants, for bundles; NULL: none */
    size_t store_bytes; /* of the store that manifests may name; 0: no limit */
    uint64_t tenant_sessions, tenant_tokens; /* of one tenant; 0: no limit */
    size_t tenant_store;                     /* bytes; 0: no limit */
    struct snapshots *snapshots; /* listed at create, when no job is out yet;
                                    NULL: nothing is known of the store */
    size_t prefix_bytes; /* of the store: for snapshots of prompts whose session
                            is not kept; 0: nothing is shared */
};

/* The least that state_bytes can be: one session's, under any policy. */
size_t engine_state_least(const struct model *model);
/*
 * Read all sessions' heads from the journal. Interrupted turns stay open: the
 * same request_id continues them, another request closes them as cancelled.
 *   as journal_each_session();  RESOURCE_EXHAUSTED  no memory
 *   INVALID_ARGUMENT  an option out of its range
 */
MUST_CHECK enum status engine_create(const struct engine_options *options,
                                     struct engine **out);
/*
 * After engine_run() has returned and both threads are stopped: their last
 * reports and jobs are taken from the rings here.
 */
void engine_destroy(struct engine *engine);

/*
 * Run until a COMMAND_DRAIN is carried out. On the engine's own thread.
 */
void engine_run(struct engine *engine);

/*
 * One turn of the loop, for tests and simulation: drain, plan, run at most one
 * batch. True if there is more to do at once.
 */
bool engine_step(struct engine *engine);

/*
 * The journal thread's `drop`: turns a message of a lost commit into an error
 * for its reply (FAILED_PRECONDITION, STORE_READ_ONLY).
 */
void engine_drop_message(void *message, const struct cause *cause,
                         struct ring *outbox);
#endif
