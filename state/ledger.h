#ifndef STATE_LEDGER_H
#define STATE_LEDGER_H
/*
 * How many bytes each log has in the store, by what its manifest names: so that
 * a limit can be kept without asking the database. Blocks of a log that has no
 * snapshot left and is still read by others are not counted. Rebuilt at start.
 * One thread.
 */
#include "state/session.h"

#include <stddef.h>

struct ledger_row {
    struct uid log;
    size_t bytes; /* more than 0 */
};
struct ledger {             /* zeroed: empty */
    struct ledger_row *row; /* [n] by uid; owned */
    uint64_t n, capacity;
    size_t total;
};
void ledger_release(struct ledger *ledger);
/* RESOURCE_EXHAUSTED  no memory; nothing was changed */
MUST_CHECK enum status ledger_set(struct ledger *ledger, struct uid log,
                                  size_t bytes);
size_t ledger_get(const struct ledger *ledger, struct uid log);
#endif
