#include "state/lineage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct log_path log_path_alone(struct uid uid)
{
    return (struct log_path){.n = 1, .piece = {{uid, UINT64_MAX}}};
}

bool log_path_is_sound(const struct log_path *path)
{
    if (path->n == 0 || path->n > LOG_PATH_MAX)
        return false;
    for (uint32_t i = 0; i < path->n; i++)
        if (path->piece[i].end <= (i > 0 ? path->piece[i - 1].end : 0))
            return false;
    return path->piece[path->n - 1].end == UINT64_MAX;
}

bool log_path_equal(const struct log_path *a, const struct log_path *b)
{
    bool is_equal = a->n == b->n;

    for (uint32_t i = 0; is_equal && i < a->n; i++)
        is_equal = a->piece[i].end == b->piece[i].end &&
                   uid_equal(a->piece[i].log, b->piece[i].log);
    return is_equal;
}

struct uid log_path_own(const struct log_path *path)
{
    return path->piece[path->n - 1].log;
}

uint64_t log_path_inherited(const struct log_path *path)
{
    return path->n > 1 ? path->piece[path->n - 2].end : 0;
}

uint64_t log_pieces_end(const struct log_path *pieces)
{
    return pieces->n > 0 ? pieces->piece[pieces->n - 1].end : 0;
}

void log_pieces_add(struct log_path *pieces, struct uid log, uint64_t end)
{
    struct log_piece *last = pieces->piece + pieces->n;

    if (end <= log_pieces_end(pieces))
        return;
    if (pieces->n > 0 && uid_equal(last[-1].log, log)) {
        last[-1].end = end;
        return;
    }
    assert(pieces->n < LOG_PATH_MAX);
    *last = (struct log_piece){log, end};
    pieces->n++;
}

void log_pieces_cut(struct log_path *pieces, uint64_t end)
{
    while (pieces->n > 1 && pieces->piece[pieces->n - 2].end >= end)
        pieces->n--;
    if (end == 0)
        pieces->n = 0;
    if (log_pieces_end(pieces) > end)
        pieces->piece[pieces->n - 1].end = end;
}

bool log_path_fork(const struct log_path *path, uint64_t position,
                   struct uid own, struct log_path *out)
{
    struct log_path fork = *path;

    log_pieces_cut(&fork, position);
    if (fork.n == LOG_PATH_MAX)
        return false;
    fork.piece[fork.n++] = (struct log_piece){own, UINT64_MAX};
    *out = fork;
    return true;
}

uint64_t log_path_common(const struct log_path *a, const struct log_path *b)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < a->n && i < b->n; i++) {
        const struct log_piece *x = &a->piece[i], *y = &b->piece[i];

        if (!uid_equal(x->log, y->log))
            break;
        n = x->end < y->end ? x->end : y->end;
        if (x->end != y->end)
            break;
    }
    return n;
}

uint64_t log_path_keeps(const struct log_path *path,
                        const struct log_path *pieces)
{
    uint64_t n = 0;

    for (uint32_t i = 0, j = 0; i < pieces->n; i++) {
        const struct log_piece *piece = &pieces->piece[i];

        while (j < path->n && !uid_equal(path->piece[j].log, piece->log))
            j++;
        if (j == path->n)
            break;
        if (piece->end > path->piece[j].end)
            return path->piece[j].end > n ? path->piece[j].end : n;
        n = piece->end;
    }
    return n;
}

void lineage_release(struct lineage *lineage)
{
    free(lineage->piece);
    *lineage = (struct lineage){0};
}

static int compare(const struct log_piece *a, const struct log_piece *b)
{
    if (a->log.hi != b->log.hi)
        return a->log.hi < b->log.hi ? -1 : 1;
    if (a->log.lo != b->log.lo)
        return a->log.lo < b->log.lo ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

/* The first one that is not below `piece`. */
static uint64_t seek(const struct lineage *lineage,
                     const struct log_piece *piece)
{
    uint64_t low = 0, high = lineage->n;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (compare(&lineage->piece[middle], piece) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

enum status lineage_add(struct lineage *lineage, const struct log_path *path)
{
    if (lineage->capacity - lineage->n < path->n) {
        uint64_t capacity = 2 * lineage->capacity + LOG_PATH_MAX;
        struct log_piece *piece =
            realloc(lineage->piece, capacity * sizeof(*piece));

        if (!piece)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for the lineage of a session");
        lineage->piece = piece;
        lineage->capacity = capacity;
    }
    for (uint32_t i = 0; i < path->n; i++) {
        uint64_t at = seek(lineage, &path->piece[i]);

        memmove(lineage->piece + at + 1, lineage->piece + at,
                (lineage->n - at) * sizeof(*lineage->piece));
        lineage->piece[at] = path->piece[i];
        lineage->n++;
    }
    return STATUS_OK;
}

void lineage_remove(struct lineage *lineage, const struct log_path *path)
{
    for (uint32_t i = 0; i < path->n; i++) {
        uint64_t at = seek(lineage, &path->piece[i]);

        assert(at < lineage->n &&
               compare(&lineage->piece[at], &path->piece[i]) == 0);
        lineage->n--;
        memmove(lineage->piece + at, lineage->piece + at + 1,
                (lineage->n - at) * sizeof(*lineage->piece));
    }
}

/* The greatest end of the log that is not behind `limit`. */
static uint64_t greatest(const struct lineage *lineage, struct uid log,
                         uint64_t limit)
{
    struct log_piece piece = {log, limit};
    uint64_t at = seek(lineage, &piece);

    if (at < lineage->n && compare(&lineage->piece[at], &piece) == 0)
        return limit;
    return at > 0 && uid_equal(lineage->piece[at - 1].log, log)
               ? lineage->piece[at - 1].end
               : 0;
}

uint64_t lineage_need(const struct lineage *lineage, struct uid log)
{
    return greatest(lineage, log, UINT64_MAX);
}

uint64_t lineage_lent(const struct lineage *lineage, struct uid log)
{
    return greatest(lineage, log, UINT64_MAX - 1);
}
