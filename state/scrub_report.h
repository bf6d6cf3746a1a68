#ifndef STATE_SCRUB_REPORT_H
#define STATE_SCRUB_REPORT_H
/*
 * What verifying a session found (state/scrub.h), as plain data for whoever
 * passes it on.
 */
#include "state/session.h"

#define SCRUB_FINDING_MAX 16u
#define SCRUB_FINDING_SIZE 224u

enum scrub_kind {
    SCRUB_SESSION,
    SCRUB_TOKENS,
    SCRUB_TURNS,
    SCRUB_MANIFEST,
    SCRUB_STATE,
    SCRUB_OPEN,
    SCRUB_BLOCK,
    SCRUB_KIND_COUNT
};
const char *scrub_kind_name(enum scrub_kind kind);

struct scrub_count {
    uint64_t n, bytes; /* read */
    uint64_t n_bad;    /* of them, not what they should be */
    uint64_t n_missing;
};

/* A snapshot that is not to be used. */
struct scrub_drop {
    struct uid log;
    uint64_t position;
};
/* A log of which something is bad: what of it may still be built on. */
struct scrub_loss {
    struct uid log;
    uint64_t newest; /* snapshot of it that is left; 0: none */
    uint64_t blocks; /* tokens whose blocks are sound */
};

struct scrub_report {
    struct scrub_count count[SCRUB_KIND_COUNT];
    uint32_t n_finding; /* said below; more may have been counted */
    char finding[SCRUB_FINDING_MAX][SCRUB_FINDING_SIZE];
    uint64_t n_token; /* sound, from the start */
    struct digest chain;
    uint64_t n_compared, n_different; /* values beside a replay */
    uint32_t n_drop;
    struct scrub_drop *drop; /* [n_drop] owned by the scrub */
    uint32_t n_loss;
    struct scrub_loss loss[LOG_PATH_MAX];
};
#endif
