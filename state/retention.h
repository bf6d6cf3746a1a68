#ifndef STATE_RETENTION_H
#define STATE_RETENTION_H
/*
 * Which snapshots of a log stay: a ladder, so that any position of a long
 * session is near one, and their number grows slowly. The newest
 * RETENTION_NEWEST; of each 4,096 tokens within 32,768 of the newest, and of
 * each 32,768 before that, the lowest one; those that a client asked for; and
 * some of those that prompts share. A pure function of positions and marks.
 */
#include "state/snapshot.h"

#define RETENTION_NEWEST 2u
#define RETENTION_NEAR 32768u /* tokens before the newest: one of each ... */
#define RETENTION_FINE 4096u  /* ... so many tokens; before, one of each ... */
#define RETENTION_COARSE 32768u /* ... so many */

/* Which of these, newest first, is the next to go; n: all stay. */
uint32_t retention_victim(const struct snapshot_entry *entry, uint32_t n);
#endif
