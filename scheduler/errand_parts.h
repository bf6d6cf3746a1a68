#ifndef SCHEDULER_ERRAND_PARTS_H
#define SCHEDULER_ERRAND_PARTS_H
/*
 * Calls that take the store thread many jobs: what their files share with each
 * other and with the few places that meet them. The engine thread's.
 */
#include "scheduler/engine_calls.h"

/*
 * A call that takes the store thread many jobs, one after the other. It ends
 * when its reply was answered and nothing of it is out.
 */
struct errand {
    struct errand *next;
    enum errand_kind {
        ERRAND_VERIFY,
        ERRAND_EXPORT,
        ERRAND_IMPORT,
        ERRAND_PARK,
        ERRAND_INSPECT
    } kind;
    uint64_t reply;          /* 0: its caller is gone, or was answered */
    struct session *session; /* held ... */
    struct log_path path;    /* ... as what it reads, when it is durable */
    bool is_out;             /* its job is with the store thread */
    bool is_over;            /* to be freed */
    uint64_t next_us;        /* it rests until then while replies run */
    uint64_t wait_us;        /* its client has had the turn since; 0: it is
                                ours */
    /* VERIFY */
    struct scrub *scrub;
    enum verify_stage {
        VERIFY_SCRUB,
        VERIFY_REPLAY,  /* its request is in the queue or runs ... */
        VERIFY_COMPARE, /* ... or waits, since its image is to be compared */
        VERIFY_HEAL
    } stage;
    bool wants_replay;
    struct request *replay;     /* NULL: over, or not begun */
    struct resident *compared;  /* whose image is with us; NULL: none */
    uint64_t compared_position; /* blocks before it were */
    struct digest compared_chain;
    /* INSPECT */
    struct log_stored *stored; /* [path.n] owned */
    struct state_norm *norm;   /* INSPECT: [n_layer] owned */
    /* EXPORT */
    struct exporter *exporter;
    bool is_taken;    /* its reader wants more */
    bool is_loose;    /* the turn that it exports may go on meanwhile ... */
    uint64_t n_token; /* ... behind this, and then it is not what was asked */
    /* IMPORT */
    struct importer *importer;
    struct uid log;          /* that values are written under */
    struct command *command; /* whose bytes are next; NULL: none; owned */
    bool is_installed;
    char name[SESSION_NAME_SIZE], tenant[TENANT_SIZE];
};

/* --- errand.c --- */
/*
 * A new one of a session (NULL: none), which it holds.
 *   RESOURCE_EXHAUSTED  QUEUE_FULL: ERRAND_MAX are under way
 */
MUST_CHECK enum status errand_create(struct engine *engine,
                                     enum errand_kind kind,
                                     struct session *session, uint64_t reply,
                                     struct errand **out);
struct errand *errand_by_reply(const struct engine *engine, uint64_t reply);
/* It is answered: it goes once nothing of it is out. */
void errand_end(struct errand *errand);
/* The same with an error; only the first of several is told. */
void errand_fail(struct engine *engine, struct errand *errand,
                 const struct cause *cause);
/* Its client must go on before it can; not for ever. */
void errand_wait(struct engine *engine, struct errand *errand);
/* One of its jobs is back: it may send another one after a rest. */
void errand_rest(struct engine *engine, struct errand *errand,
                 const struct store_job *job);

/* --- verify.c --- */
MUST_CHECK enum status verify_session(struct engine *engine,
                                      const struct command *command);
/* Send its next job; false while the store thread takes no more. */
bool verify_send(struct engine *engine, struct errand *errand);
/* A SCRUB, COMPARE or HEAL is over. */
void verify_received(struct engine *engine, const struct store_job *job);
/* The memory of a replay stands where it is to be compared; it is at its end;
 * its request goes. */
void verify_passed(struct engine *engine, struct request *request);
void verify_replayed(struct engine *engine, struct request *request);
void verify_left(struct engine *engine, const struct request *request);
/* Let go of what an errand of this kind has. */
void verify_release(struct engine *engine, struct errand *errand);

/* --- inspect.c --- */
MUST_CHECK enum status inspect_session(struct engine *engine,
                                       const struct command *command);
bool inspect_send(struct engine *engine, struct errand *errand);
void inspect_received(struct engine *engine, const struct store_job *job);

/* --- transfer.c --- */
MUST_CHECK enum status transfer_export(struct engine *engine,
                                       const struct command *command);
/* A piece of a bundle. Owns the command. */
void transfer_import(struct engine *engine, struct command *command);
/* As verify_send() and so on. */
bool transfer_send_export(struct engine *engine, struct errand *errand);
bool transfer_send_import(struct engine *engine, struct errand *errand);
void transfer_received(struct engine *engine, const struct store_job *job);
void transfer_release(struct engine *engine, struct errand *errand);
#endif
