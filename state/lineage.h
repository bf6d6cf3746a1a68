#ifndef STATE_LINEAGE_H
#define STATE_LINEAGE_H
/*
 * Who reads whose log. A fork writes nothing but its own path
 * (state/session.h), so a log must stay for as long as a path leads through it,
 * also when the session that wrote it is gone; and no longer, nor more of it.
 * The index of all paths says how much: it is rebuilt from the sessions at
 * start, so no count of references is ever stored that could be wrong.
 *
 * Invariant of a path: ends rise strictly, and the log of piece i begins where
 * piece i - 1 ends.
 */
#include "state/session.h"

/* Of a session that appends to the log named as itself. */
struct log_path log_path_alone(struct uid uid);
/* Has it one piece or more, with ends that rise, the last one without end? */
bool log_path_is_sound(const struct log_path *path);
bool log_path_equal(const struct log_path *a, const struct log_path *b);
/* The log that is appended to. */
struct uid log_path_own(const struct log_path *path);
/* Tokens that come from other logs. */
uint64_t log_path_inherited(const struct log_path *path);
/*
 * The path of a new log `own` that begins with the first `position` tokens of
 * `path`. False if that takes more than LOG_PATH_MAX pieces.
 */
bool log_path_fork(const struct log_path *path, uint64_t position,
                   struct uid own, struct log_path *out);
/* Tokens that both read from the same logs. */
uint64_t log_path_common(const struct log_path *a, const struct log_path *b);

/*
 * Pieces of stored blocks: as a path, but it need not have a last piece without
 * end, and may be empty. Append a piece (nothing if it brings none), or cut.
 */
void log_pieces_add(struct log_path *pieces, struct uid log, uint64_t end);
void log_pieces_cut(struct log_path *pieces, uint64_t end);
/* Where they end: 0 if there are none. */
uint64_t log_pieces_end(const struct log_path *pieces);
/* How many leading tokens of `pieces` lie in logs that `path` keeps. */
uint64_t log_path_keeps(const struct log_path *path,
                        const struct log_path *pieces);

/* All pieces of all paths, in order of log and end; zeroed: none. */
struct lineage {
    struct log_piece *piece; /* [n]; owned */
    uint64_t n, capacity;
};
void lineage_release(struct lineage *lineage);
/* RESOURCE_EXHAUSTED  no memory; nothing was added */
MUST_CHECK enum status lineage_add(struct lineage *lineage,
                                   const struct log_path *path);
/* It was added before. */
void lineage_remove(struct lineage *lineage, const struct log_path *path);
/* So many leading positions of the log are in some path; UINT64_MAX: a session
 * appends to it; 0: nobody knows it. */
uint64_t lineage_need(const struct lineage *lineage, struct uid log);
/* The same for those who do not append to it. */
uint64_t lineage_lent(const struct lineage *lineage, struct uid log);
#endif
