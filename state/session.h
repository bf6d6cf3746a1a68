#ifndef STATE_SESSION_H
#define STATE_SESSION_H
/*
 * Plain data of a session as the journal keeps it: who it is, how its tokens
 * were sampled, where its turns are. No pointers, so that it can be copied
 * between threads and records; limits are the API's.
 */
#include "base/digest.h"
#include "base/status.h"
#include "model/excerpt.h"
#include "model/policy.h"

#include <stdbool.h>
#include <stdint.h>

#define SESSION_NAME_SIZE 128u /* bytes with NUL; [a-zA-Z0-9._-], 1 to 127 */
#define REQUEST_ID_SIZE 65u    /* bytes with NUL */
#define TENANT_SIZE 64u        /* bytes with NUL */
#define LABEL_MAX 16u
#define LABEL_KEY_SIZE 64u
#define LABEL_VALUE_SIZE 256u
#define STOP_MAX 16u
#define STOP_BYTES_MAX 128u
#define STOP_ID_MAX 64u
#define LOGIT_BIAS_MAX 300u
#define LOGPROBS_MAX 20u

/* Unique for ever, also when a deleted session's name is used again. */
struct uid {
    uint64_t hi, lo; /* hi: ms since 1970 and random bits, as UUIDv7 */
};
bool uid_equal(struct uid a, struct uid b);
#define UID_TEXT_SIZE 37
void uid_format(struct uid uid, char out[UID_TEXT_SIZE]);
/* From wall time and the system's random source. INTERNAL: it failed. */
MUST_CHECK enum status uid_make(uint64_t wall_ms, struct uid *out);

enum durability {
    DURABILITY_NONE,  /* a token is sent when it is sampled; gone with the
                         process */
    DURABILITY_LOCAL, /* after one sync of the journal, once per step */
};

struct label {
    char key[LABEL_KEY_SIZE];
    char value[LABEL_VALUE_SIZE];
};

/*
 * Where a session's tokens lie: piece i holds those from the end of the piece
 * before it up to its own end, in the log of this uid; the last piece is the
 * log that the session appends to, and has no end. Logs are only ever appended
 * to, so that any number of sessions may read the same piece: a fork, and a
 * rewind, is a new log behind a piece of an old one.
 */
#define LOG_PATH_MAX 32u
struct log_piece {
    struct uid log;
    uint64_t end; /* UINT64_MAX for the last one */
};
struct log_path {
    uint32_t n; /* 1 or more */
    struct log_piece piece[LOG_PATH_MAX];
};

struct session_meta {
    struct uid uid;
    char name[SESSION_NAME_SIZE]; /* without "sessions/" */
    struct log_path path;         /* the log of a session that was neither
                                     forked nor rewound has the uid's name */
    struct uid parent;            /* whom it was forked from; 0: nobody */
    char parent_name[SESSION_NAME_SIZE]; /* its name then */
    uint64_t fork_position;              /* tokens that both began with */
    uint64_t create_ms, update_ms;       /* wall time */
    uint64_t expire_ms;                  /* 0: never */
    enum durability durability;
    char tenant[TENANT_SIZE]; /* whose it is; "": nobody in particular */
    bool is_pinned;           /* not to be evicted from the store */
    struct policy policy;     /* what softmax layers see, for good: states are a
                                 function of tokens and policy */
    uint32_t n_label;
    struct label label[LABEL_MAX];
};

/* How a token is chosen from logits; scheduler/sampler.h computes it. */
struct logit_bias {
    uint32_t token;
    float bias;
};
struct sampling {
    float temperature;        /* 0: greedy */
    float top_p, min_p;       /* 1 and 0: off */
    int32_t top_k;            /* 0: off */
    float repetition_penalty; /* 1: off; over the whole session */
    float presence_penalty, frequency_penalty; /* 0: off; over this turn */
    uint32_t max_tokens, min_tokens;
    uint64_t seed;
    int32_t n_logprob; /* -1: none; 0: of the chosen token only; .. 20 */
    bool ignore_eos, skip_special;
    uint32_t n_stop, n_stop_id, n_bias;
    char stop[STOP_MAX][STOP_BYTES_MAX]; /* NUL-terminated UTF-8 */
    uint32_t stop_id[STOP_ID_MAX];
    struct logit_bias bias[LOGIT_BIAS_MAX];
};

enum finish_reason {                  /* values of godwit.v1.FinishReason */
                     FINISH_NONE = 0, /* the turn is open */
                     FINISH_STOP = 1, /* an end-of-sequence or stop token */
                     FINISH_LENGTH = 2,
                     FINISH_STOP_SEQUENCE = 3,
                     FINISH_CANCELLED = 4,
                     FINISH_DRAINED = 5,
                     FINISH_ERROR = 6,
};

/*
 * One Generate or AppendTokens call as the log keeps it: input tokens at
 * [position, position + n_input), then sampled ones up to the next turn.
 */
struct turn {
    uint64_t position; /* of its first input token */
    uint64_t n_input;
    char request_id[REQUEST_ID_SIZE]; /* "" if the client gave none */
    struct digest input; /* of the input ids and the sampling parameters, so
                            that a retry with other content is refused */
    enum finish_reason finish;
    bool is_append;         /* AppendTokens: nothing is sampled */
    struct excerpt excerpt; /* what it is sampled from; none: all */
    struct sampling sampling;
};
#endif
