#ifndef SCHEDULER_COMMAND_H
#define SCHEDULER_COMMAND_H
/*
 * What comes into the engine: plain structs through the inbox ring, made by
 * rpc/convert after it has checked everything that can be checked without
 * knowing the sessions. The engine drains them at the top of each step.
 *
 * A reply is named by a number, never by a pointer: the caller may be gone
 * when an event for it is made, and then the number leads nowhere.
 */
#include "base/arena.h"
#include "state/session.h"

enum command_kind {
    /* answered by a stream of events, the last one COMPLETE or ERROR */
    COMMAND_GENERATE, /* also AppendTokens, with is_append */
    COMMAND_READ_TOKENS,
    /* answered by one event */
    COMMAND_CANCEL, /* the running turn of a session or request; or the
                       interrupted one of a named session in memory */
    COMMAND_CREATE_SESSION,
    COMMAND_GET_SESSION,
    COMMAND_LIST_SESSIONS,
    COMMAND_UPDATE_SESSION,
    COMMAND_DELETE_SESSION,
    COMMAND_FORK_SESSION,
    COMMAND_TRUNCATE_SESSION,
    COMMAND_CHECKPOINT_SESSION,
    COMMAND_VERIFY_SESSION,
    COMMAND_INSPECT_SESSION,
    COMMAND_PARK_SESSION,
    /* answered by pieces, each of which is asked for by a RESUME; the last
       event is DONE or ERROR */
    COMMAND_EXPORT_SESSION,
    /* one per piece, the next one when EVENT_MORE has come; answered by one
       event at the end */
    COMMAND_IMPORT_SESSION,
    COMMAND_GET_NODE,
    /* about a reply; not answered */
    COMMAND_PAUSE,  /* its reader is slow: make no more tokens for it */
    COMMAND_RESUME, /* its reader has caught up */
    COMMAND_DETACH, /* its reader is gone (cancelled, deadline, lost) */
    /* about the node; answered by EVENT_DONE if reply is not 0 */
    COMMAND_DRAIN, /* refuse new work; finish or park what runs until
                      deadline_us, commit all, then engine_run() returns */
};

#define LIST_PAGE_MAX 1000u

struct generate_command {
    char session[SESSION_NAME_SIZE]; /* "" : ephemeral, nothing is kept */
    char request_id[REQUEST_ID_SIZE];
    const uint32_t *token; /* [n_token] input, in the arena; ids not yet
                              checked against the vocabulary */
    uint64_t n_token;
    uint64_t n_shared;        /* of them, leading ones that other prompts are
                                 expected to begin with, too (opening and
                                 system message); 0: none known */
    uint32_t n_opening;       /* of them, leading ones that only the start of a
                                 session has (BOS): dropped when its log has tokens */
    struct sampling sampling; /* max_tokens 0: the node's default */
    bool has_seed;            /* else the engine draws one */
    bool has_durability;      /* a new session's; may raise another's */
    enum durability durability;
    bool has_policy;
    struct policy policy; /* of a new session; another one goes on under it */
    bool is_append;       /* prefill only: nothing is sampled */
    bool rereads; /* feed the log once more, and the input behind it again */
    uint64_t reread_limit;  /* only so many of the log's last tokens; 0: all */
    struct excerpt excerpt; /* that the reply is made from; none: all */
    bool creates;           /* make the session if it does not exist */
    bool has_expected, has_resume;
    uint64_t expected_position; /* ABORTED unless the log has this length */
    uint64_t resume_position;   /* replay committed tokens from here */
    int32_t priority;           /* higher first; below 0: sheddable */
    bool wants_progress;
};

struct list_command {
    uint32_t page_size;            /* 1 .. LIST_PAGE_MAX */
    char after[SESSION_NAME_SIZE]; /* names above this one; "" from the start */
    char prefix[SESSION_NAME_SIZE]; /* only names that begin so */
};

struct fork_command {
    char session[SESSION_NAME_SIZE];
    char name[SESSION_NAME_SIZE]; /* of the new one; "": the engine makes one */
    bool has_position;
    uint64_t
        position; /* tokens that both begin with; else all committed ones */
};

struct update_command {
    char session[SESSION_NAME_SIZE];
    bool sets_labels, sets_expire, sets_durability, sets_pinned;
    bool is_pinned;
    uint32_t n_label;
    struct label label[LABEL_MAX];
    uint64_t expire_ms; /* wall time; 0: never */
    enum durability durability;
    char etag[24]; /* "": any */
};

struct export_command {
    char session[SESSION_NAME_SIZE];
    char tenant[TENANT_SIZE]; /* whose key seals it; "": the session's */
    uint64_t position;        /* so many tokens; 0: all committed ones */
    bool has_state, is_sealed;
};

struct import_command {
    char name[SESSION_NAME_SIZE]; /* "": the one that it had */
    bool skips_state;
    bool is_first, is_last; /* of its call; the above is the first one's */
    const void *bytes;      /* [n_bytes] in the arena */
    size_t n_bytes;
};

struct command {
    enum command_kind kind;
    uint64_t reply;       /* 0: nobody listens */
    uint64_t deadline_us; /* clock's now_us(); 0: none */
    /* Whose call it is: of sessions it sees that tenant's alone, and what it
       makes is that tenant's. "" is a tenant like others. */
    char tenant[TENANT_SIZE];
    bool is_operator;    /* it sees all sessions, and makes none */
    struct arena *arena; /* of the pointers below and of this struct; the
                            engine destroys it when it is done */
    union {
        struct generate_command generate;
        struct {
            char session[SESSION_NAME_SIZE];
            uint64_t from;  /* READ_TOKENS: first position; TRUNCATE: the
                               new end */
            uint64_t limit; /* READ_TOKENS: at most so many; 0: all */
            char request_id[REQUEST_ID_SIZE]; /* CANCEL: or by request */
            char etag[24];                    /* DELETE, TRUNCATE */
            bool allows_missing;              /* DELETE */
            bool replays;                     /* VERIFY: compute it again */
            bool has_policy;                  /* CHECKPOINT: from now on */
            struct policy policy;
        } target;
        struct session_meta create; /* name, labels, expire_ms, durability,
                                       policy; name "": the engine makes one;
                                       the tenant is the command's */
        struct fork_command fork;
        struct export_command export;
        struct import_command import;
        struct list_command list;
        struct update_command update;
        uint64_t subject; /* PAUSE, RESUME, DETACH: the reply meant */
    };
};
#endif
