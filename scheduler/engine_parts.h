#ifndef SCHEDULER_ENGINE_PARTS_H
#define SCHEDULER_ENGINE_PARTS_H
/*
 * The data that the engine's files share; nobody else includes it. Everything
 * here is touched by the engine thread alone. What the files call of each other
 * is in engine_calls.h.
 *
 *   engine.c     life, the loop, timers, drain
 *   table.c      which sessions exist, by name
 *   resident.c   what of a session is in memory: room, images, eviction
 *   charge.c     how much memory that takes
 *   jobs.c       what the store thread does for us
 *   prefix.c     what a request need not compute, and why not more
 *   flight.c     commits under construction and under way, and their loss
 *   request.c    one Generate or AppendTokens call: begin, replay, end
 *   generate.c   its arrival and admission
 *   reread.c     what its turn feeds
 *   excerpt.c    a reply that is made from a part of the log
 *   control.c    all other commands, but
 *   fork.c       fork and rewind
 *   change.c     a session goes on under another memory policy
 *   logs.c       which logs are kept, how much of them, and where blocks lie
 *   paged.c      sessions of whose blocks only some are in RAM
 *   swap.c       memories that leave a device for the host's memory, and return
 *   keep.c       what stays in the store, and how much a tenant may have
 *   errand.c     calls that take the store thread many jobs (errand_parts.h):
 *   verify.c     is what is stored of a session what it should be?
 *   inspect.c    what of a session is where
 *   transfer.c   export and import
 *   batch.c      one step: start, plan, run the lanes, sample
 *   schedule.c   what plan, fair, cost and admit are told, and what they say
 *   preempt.c    who makes room for whom
 *   gauges.c     the engine's metrics
 *
 * A session is PARKED (resident is NULL), or resident and idle, or it has a
 * request. The invariant of a resident session: its memory has consumed fewer
 * tokens than its log has, or both are empty, so logits can always be made.
 */
#include "base/log.h"
#include "kernels/device.h"
#include "scheduler/admit.h"
#include "scheduler/engine.h"
#include "scheduler/lane.h"
#include "scheduler/sampler.h"
#include "scheduler/text.h"
#include "state/ledger.h"
#include "state/lineage.h"
#include "state/prefix.h"

#define COMMAND_STEP_MAX 256u  /* commands taken in one step */
#define ROOM_TOKENS 4096u      /* engine.room_tokens, unless a test says else */
#define SLICE_IDLE_US 4000u    /* of a prompt, when no reply waits */
#define SLICE_LINGER_US 16000u /* longer at most, when nothing comes either */
#define SCHEDULE_ROWS 1024u    /* of a pass of prompts at most */
#define HELD_MAX 1024u         /* commands that wait for the end of a pass */
#define PREEMPT_PROGRESS 16u   /* tokens between two preemptions of one */
#define LOG_PIECE_MAX 4096u    /* tokens of one event or journal record */
#define SNAPSHOT_TURN_MIN 64u  /* new tokens that are worth a snapshot */
#define CHECKPOINT_WAIT_MAX 8u
#define IMAGE_WAIT_MAX 16u /* images that wait, unless someone asked */
/* Behind a snapshot that nobody waits for the store thread rests so many times
 * as long as it had a CPU for that, which are those of the replies that run.
 * It takes a CPU a twenty-fifth of the time that two take to compute as many
 * tokens of a small model, so saves keep up with prompts all the same. */
#define SAVE_REST 19u
#define SWEEP_US 1000000u        /* between two looks for expired sessions */
#define PROGRESS_US 500000u      /* between two progress events ... */
#define ERRAND_MAX 16u           /* at once */
#define ERRAND_WAIT_US 60000000u /* for a client to go on; then it is gone */
#define ERRAND_REST 3u           /* behind a job of an errand, as SAVE_REST */
#define NO_SCOPE UINT64_MAX      /* a session whose tenant is not known */
#define PROGRESS_TOKENS 256u     /* ... unless a step consumed so many */

struct engine;
struct errand;
struct move;
struct session;

/* What of one session is in memory. */
struct resident {
    struct session *session;     /* NULL: let go while the store thread reads */
    struct resident *next_image; /* the next one whose image waits */
    struct memory *memory;       /* NULL: position 0 */
    struct move *move;           /* that carries it: swap.c */
    struct memory *lent; /* what the image reads, if that is not `memory`; owned
                          */
    struct ids tokens;   /* the whole log */
    struct digest chain; /* of all tokens */
    struct digest memory_chain; /* of those that memory has consumed */
    struct turn turn;           /* the last one, if has_turn */
    bool has_turn;
    enum restore_reason_code reuse; /* what the next turn says of its start */
    uint64_t n_restored; /* tokens that memory was read with from the store */

    struct image *image;     /* of memory at image_position, or NULL */
    uint64_t image_position; /* saved when that is committed */
    struct digest image_chain;
    struct uid image_uid; /* its owner: the session's log, or a loose one */
    struct log_path image_base; /* of its blocks */
    size_t image_states;        /* counted in engine.state_charged */
    struct snapshot_label image_label;
    bool is_forsaken; /* the session was deleted while it is being saved */
    bool is_saving;   /* the store thread has the image */
    bool leaves;      /* evicted when it is saved */
    bool is_short;    /* it cannot go on before it is saved: paged.c */
    uint64_t snapshot_position; /* of the newest stored one */
    uint64_t snapshot_bytes, snapshot_ms;
    struct digest snapshot_chain;
    struct log_path base; /* blocks before snapshot_position that lie with other
                             logs; the others lie with the session's own */
    struct {
        uint64_t reply, position; /* answered by a snapshot at or after it */
    } checkpoint[CHECKPOINT_WAIT_MAX];
    uint32_t n_checkpoint;
};

struct session {
    struct uid uid;
    char name[SESSION_NAME_SIZE]; /* "": ephemeral */
    uint64_t create_ms, update_ms, expire_ms, last_active_ms;
    enum durability durability;
    struct policy policy;
    uint32_t n_label;
    struct label *label; /* [n_label]; owned */
    uint32_t n_piece;
    struct log_piece *piece; /* [n_piece] its path; owned */
    struct uid parent;       /* whom it was forked from; 0: nobody ... */
    char *parent_name;       /* ... and its name then, or NULL; owned */
    char *tenant;            /* whose it is; NULL: nobody's; owned */
    uint64_t fork_position;
    uint64_t n_token; /* length of the log */
    uint64_t n_committed;
    uint32_t n_flight; /* commits under way that carry records of it */
    uint32_t n_hold;   /* flights, jobs and lists that point here */
    bool is_listed;    /* in the table */
    bool is_failed;    /* its log could not be read */
    bool is_upgrading; /* what was only in memory is not yet committed */
    bool is_loading;   /* a LOAD is with the store thread */
    bool is_fetching;  /* a FETCH is */
    bool is_pinned;    /* not to be evicted from the store */
    bool is_evicting;  /* an EVICT is with the store thread */
    bool parks;        /* as resident_park() says, when it can */
    bool has_loose;    /* snapshots of its tokens may be stored as loose ones */
    uint64_t scope;    /* of its last turn */
    struct resident *resident;
    struct request *request;
    size_t charge;         /* bytes counted for what of it is in memory ... */
    size_t state_charge;   /* ... and of them, for states of fixed size */
    bool has_ended;        /* its turn, in this step: resident_later() */
    struct session *later; /* the next of those */
    bool is_in_lru;
    struct session *older, *newer; /* idle resident ones, by last use */
};

enum request_phase {
    REQUEST_LOADING, /* its session comes from the store */
    REQUEST_WAITING, /* for a place in the batch, or for its slow reader */
    REQUEST_RUNNING,
};
enum request_kind {
    REQUEST_GENERATE,
    REQUEST_APPEND,
    REQUEST_CHECKPOINT, /* bring memory up to the log, then save it */
    REQUEST_REPLAY, /* the same, of a session without a name, for an errand */
};

/* What a request for an answer from an excerpt is at: excerpt.c. */
enum excerpt_stage {
    EXCERPT_NONE, /* it is for none */
    EXCERPT_READ,
    EXCERPT_MATCH,
    EXCERPT_ANSWER
};

struct request {
    struct request *before, *after; /* in the engine's queue */
    struct session
        *session;          /* whose memory it works with, and whose it is ... */
    struct session *asker; /* ... unless it is this one's turn; or NULL */
    enum request_kind kind;
    enum request_phase phase;
    bool is_load_sent, is_paused, is_started, wants_progress;
    bool is_in_pass;   /* of a lane: its memory is nobody else's */
    bool is_preempted; /* and has not come further than preempt_position */
    uint64_t preempt_position;
    uint32_t n_lost;      /* times that stored blocks of it could not be read */
    uint64_t reply;       /* 0: nobody listens */
    uint64_t deadline_us; /* of the whole reply; 0: none */
    uint64_t n_reply;     /* tokens that it may have, when it was admitted */
    uint64_t reply_us;    /* that they were expected to take then */
    int32_t priority;
    uint32_t tenant;         /* number: scheduler/fair.h */
    uint64_t begin;          /* position, where its work began */
    uint64_t target_us;      /* when its first token should be there */
    uint64_t predicted_us;   /* time to that, from its arrival; 0: unknown */
    struct command *command; /* until it is admitted; owned */
    uint64_t n_input;      /* that it will feed, as was known at its arrival */
    uint64_t n_most;       /* tokens it may come to have, */
    size_t promise;        /* and bytes its memory may grow to for them */
    uint64_t output_start; /* position of its first sampled token */
    uint64_t n_cached, n_restored;
    enum restore_reason_code reuse;
    bool has_policy; /* CHECKPOINT: it is to go on under this one */
    struct policy policy;
    bool has_sought;       /* a stored prefix, for the memory as it is */
    bool has_fetched;      /* one, and not run since */
    uint64_t n_shared;     /* as in its command; 0: none, or looked at */
    uint64_t shared_stop;  /* a snapshot is taken here on the way; 0: none */
    struct errand *errand; /* REPLAY: whose */
    enum excerpt_stage stage;
    struct key_match match; /* MATCH: owned */
    uint64_t n_left_out;    /* ANSWER: input tokens that `session` has not */
    uint32_t end[CONFIG_EOS_MAX + STOP_ID_MAX], n_end;
    struct text text;
    uint64_t message_step; /* the last commit that carried an event for it */
    uint64_t arrive_us, start_us, prefilled_us, first_us, last_us;
    uint64_t progress_us, progress_position;
};

/* One change that a lost commit takes back. */
struct effect {
    enum effect_kind {
        EFFECT_TOKENS,
        EFFECT_CREATE,
        EFFECT_DELETE,
        EFFECT_UPDATE,
        EFFECT_LINEAGE, /* it goes on in another log, or without ancestors */
        EFFECT_UPGRADE  /* of a session that was not durable */
    } kind;
    struct session *session;
    uint64_t n_token;     /* TOKENS, UPGRADE: committed with it */
    struct uid log;       /* TOKENS: where they stand */
    uint64_t n_committed; /* LINEAGE: of the log that was left */
    struct session_meta
        *earlier;      /* UPDATE, LINEAGE, UPGRADE: what was; owned */
    struct turn *turn; /* UPGRADE: the last one, or NULL; owned */
};
struct flight {
    struct flight *next;   /* sent later */
    struct commit *commit; /* NULL: handed to the journal thread */
    uint64_t step, epoch;  /* as its commit's */
    bool is_lost;          /* its effects are already taken back */
    uint32_t n_effect, effect_capacity, message_capacity;
    struct effect *effect;
};

/* One row of logits and the token that they become. */
struct draw {
    struct request *request;
    const float *logits; /* [n_vocab] */
    bool is_picked;      /* without logits */
    uint32_t token;
    bool has_logprobs;
    struct logprobs logprobs;
};

/* What the pure functions of the scheduler work on. */
struct schedule {
    struct cost cost;
    struct fair *fair;
    struct plan_pace pace;
    struct admit_pace place;
    uint64_t decode_us; /* of the last step's decode rows; 0: there are none */
    double expected_us; /* what they were to take: a slow pass is no measure */
    uint64_t step_us, slice_us; /* when that began, its slice as planned */
    double lag_us;              /* of a step beyond both, lately */
    uint32_t n_request_max;
    struct plan_request *work; /* [n_request_max] scratch, and so on */
    struct request **request;
    struct plan_rank *rank;
    struct plan_chunk *chunk;
    struct plan_claim *claim;
    double reply_share; /* of the tokens that replies may have, lately used */
    struct admit_share *share; /* [fair_places()] */
    struct admit_load load;    /* of the last arrival */
};

struct engine_metrics { /* each may be NULL */
    struct metric *running, *waiting, *cache_usage, *slots_used, *sessions,
        *state_bytes, *state_bytes_max;
    struct metric *first_token, *inter_token, *queue_time, *prefill_time,
        *decode_time, *latency, *expired, *stored_bytes, *store_evictions,
        *block_reads, *block_hits, *block_bytes, *block_bytes_shared;
    struct metric *prompt_tokens, *generation_tokens, *cache_queries,
        *cache_hits, *preemptions, *iteration_tokens, *commit_lag, *state_rms,
        *state_capped;
    struct metric *reuse[REUSE_REASON_COUNT], *refused[REUSE_REASON_COUNT];
    struct metric *prefix_tokens, *prefix_entries, *prefix_bytes;
    struct metric *success[8]; /* by finish_reason */
    struct metric *rejections[10];
    struct metric *swap_out, *swap_in, *swap_wait, *on_device, *on_host,
        *in_store;
};

struct engine {
    struct engine_options options;
    const struct config *config;
    uint32_t n_vocab;
    uint64_t n_context;
    size_t fixed_bytes; /* of any session's memory */
    struct digest empty_chain;
    uint64_t start_ms;

    struct session **table; /* [n_session] by name */
    uint64_t n_session, table_capacity;
    struct session *oldest, *newest;     /* idle resident sessions */
    size_t charged, leaving;             /* bytes of memories; to be evicted */
    size_t state_charged, state_leaving; /* of them, of states; and images' */
    size_t shared_bytes;    /* of blocks in several memories, counted once */
    size_t pages_settled;   /* pager_shared_bytes() when idle sessions were
                               last charged for less */
    struct lineage lineage; /* of durable sessions, as the journal may have
                               them: before and after what is under way */
    uint64_t n_resident;
    uint64_t room_tokens;    /* counted ahead of what a turn has generated */
    uint64_t next_expire_ms; /* no session expires before it */
    uint64_t swept_us;

    struct request *first, *last; /* all requests, in order of service */
    uint32_t n_request, n_running;

    struct flight *oldest_flight, *newest_flight; /* sent or to be sent */
    struct flight *flight;                        /* being filled, or NULL */
    uint64_t commit_step;                         /* number of the last one */
    uint64_t epoch; /* of the newest report: state/threads.h */
    struct log_limit journal_log;

    uint32_t n_job; /* with the store thread */
    struct errand *errands;
    uint32_t n_errand;
    struct resident *images; /* whose image waits to be sent */
    uint32_t n_image;
    struct image_pool *image_pool;
    struct session *first_later, *last_later; /* to be saved in this step */
    uint64_t next_save_us; /* no snapshot that can wait before; UINT64_MAX:
                              one is being saved */
    struct log_limit store_log;
    struct uid *deleted; /* [n_deleted] whose snapshots are not all needed */
    uint32_t n_deleted, deleted_capacity;

    bool is_draining, is_parked, is_done;
    uint64_t drain_deadline_us, drain_reply;

    struct ledger stored; /* bytes of logs in the store */
    struct { /* sessions that lose theirs, least recently used first */
        struct session **session; /* [n] held; NULL: no need */
        uint64_t n, at;
        uint32_t n_keep; /* snapshots that each keeps in this round */
        uint32_t n_out;  /* with the store thread ... */
        size_t going;    /* ... and bytes that will go by that */
        size_t in_vain;  /* total when nothing more could go */
    } eviction;
    struct { /* memories aside: swap.c */
        void *memory;
        struct rooms *rooms; /* in it; NULL: there are none */
        struct move *first, **end;
        uint64_t marked, reached; /* the shuttle's marks */
        uint64_t n_aside;
    } swap;
    struct prefix_index *prefix;
    struct { /* running estimates; 0: not known yet */
        double load_us_per_byte, save_us_per_byte, compute_us_per_token;
        uint64_t backlog_us; /* of jobs that are with the store thread */
    } cost;

    struct lane decode, prompt;
    struct schedule schedule;
    struct sampler **sampler; /* [n_sampler], one per thread of the pool */
    uint32_t n_sampler, n_entrant, n_draw;
    struct draw *draw;
    struct command **held; /* [n_held] of HELD_MAX: control_release() */
    uint32_t n_held;
    uint64_t step; /* passes done */
    uint64_t prompt_tokens, generated_tokens;
    uint64_t n_block_hit, n_block_read; /* as the metric has it */
    uint64_t n_capped;                  /* the same */
    struct engine_metrics metrics;
};
#endif
