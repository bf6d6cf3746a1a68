#include "base/rooms.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define ALIGN_BYTES 64u
#define SMALL_BYTES (32u << 10) /* below, a huge page is no gain */
#define PIECE_BYTES 4096u       /* rooms are made of whole ones */
#define HUGE_BYTES (2u << 20)
#define CHUNK_BYTES (64u << 20) /* a larger room has a chunk of its own */

/*
 * A run of pieces is one room, or free. Its first and its last piece say how
 * long it is, so that both neighbours of a room can be found.
 */
struct run {
    uint32_t n : 31, is_taken : 1;
};

struct chunk {
    struct chunk *next;
    char *base;     /* [n * PIECE_BYTES] aligned to huge pages; owned */
    uint32_t n;     /* pieces */
    uint32_t n_try; /* no free run has more */
    uint32_t first; /* a run's beginning; none before it is free */
    bool is_warm;   /* it stays */
    struct run run[];
};

struct rooms {
    pthread_mutex_t lock;
    struct chunk *chunk; /* the oldest first; owned */
    bool is_fixed;       /* there is one, whose memory is another's */
};

static enum status no_memory(size_t bytes)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu bytes",
                       bytes);
}

enum status rooms_create(struct rooms **out)
{
    struct rooms *rooms = calloc(1, sizeof(*rooms));

    if (!rooms)
        return no_memory(sizeof(*rooms));
    (void)pthread_mutex_init(&rooms->lock, NULL);
    *out = rooms;
    return STATUS_OK;
}

/* ------------------------------------------------------------------- chunks */

static size_t chunk_bytes(const struct chunk *chunk)
{
    return (size_t)chunk->n * PIECE_BYTES;
}

static void set_run(struct chunk *chunk, uint32_t at, uint32_t n, bool is_taken)
{
    chunk->run[at] = chunk->run[at + n - 1] =
        (struct run){.n = n, .is_taken = is_taken};
}

/* Addresses that begin with a huge page; NULL: there are none. */
static char *map(size_t bytes)
{
    char *at = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t before;

    if (at == MAP_FAILED)
        return NULL;
    before = HUGE_BYTES - (uintptr_t)at % HUGE_BYTES;
    (void)munmap(at, before);
    at += before;
    if (before < HUGE_BYTES)
        (void)munmap(at + bytes, HUGE_BYTES - before);
    /* Refused: slower, not wrong. */
    (void)madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

static void chunk_destroy(struct chunk *chunk)
{
    (void)munmap(chunk->base, chunk_bytes(chunk));
    free(chunk);
}

/* One free run, without its memory; NULL: no memory. */
static struct chunk *chunk_create(uint32_t n)
{
    struct chunk *chunk = malloc(sizeof(*chunk) + n * sizeof(chunk->run[0]));

    if (!chunk)
        return NULL;
    *chunk = (struct chunk){.n = n, .n_try = n};
    set_run(chunk, 0, n, false);
    return chunk;
}

enum status rooms_create_in(void *memory, size_t bytes, struct rooms **out)
{
    const size_t skip =
        (PIECE_BYTES - (uintptr_t)memory % PIECE_BYTES) % PIECE_BYTES;
    const size_t n = bytes > skip ? (bytes - skip) / PIECE_BYTES : 0;
    enum status st =
        n > 0 && n <= INT32_MAX ? rooms_create(out) : no_memory(bytes);

    if (st)
        return st;
    (*out)->chunk = chunk_create((uint32_t)n);
    if (!(*out)->chunk) {
        rooms_destroy(*out);
        return no_memory(n * sizeof(struct run));
    }
    (*out)->chunk->base = (char *)memory + skip;
    (*out)->chunk->is_warm = (*out)->is_fixed = true;
    return STATUS_OK;
}

/* Behind the others, with a free run of n pieces at least; NULL: no memory. */
static struct chunk *add_chunk(struct rooms *rooms, uint32_t n)
{
    struct chunk **end = &rooms->chunk;
    struct chunk *chunk;

    if (rooms->is_fixed)
        return NULL;
    if (n < CHUNK_BYTES / PIECE_BYTES)
        n = CHUNK_BYTES / PIECE_BYTES;
    chunk = chunk_create(n);
    if (!chunk)
        return NULL;
    chunk->base = map(chunk_bytes(chunk));
    if (!chunk->base) {
        free(chunk);
        return NULL;
    }
    while (*end)
        end = &(*end)->next;
    *end = chunk;
    return chunk;
}

void rooms_warm(struct rooms *rooms, size_t bytes)
{
    const size_t n = bytes / PIECE_BYTES;
    struct chunk *chunk = NULL;

    (void)pthread_mutex_lock(&rooms->lock);
    if (n > 0 && n <= INT32_MAX && (chunk = add_chunk(rooms, (uint32_t)n)))
        chunk->is_warm = true;
    (void)pthread_mutex_unlock(&rooms->lock);
    if (chunk)
        (void)madvise(chunk->base, n * PIECE_BYTES, MADV_POPULATE_WRITE);
}

/* The lowest free run of n pieces becomes a room; NULL: there is none. */
static char *cut(struct chunk *chunk, uint32_t n)
{
    uint32_t most = 0;

    while (chunk->first < chunk->n && chunk->run[chunk->first].is_taken)
        chunk->first += chunk->run[chunk->first].n;
    for (uint32_t at = chunk->first; n <= chunk->n_try && at < chunk->n;
         at += chunk->run[at].n) {
        const struct run run = chunk->run[at];

        if (run.is_taken)
            continue;
        if (run.n >= n) {
            if (run.n > n)
                set_run(chunk, at + n, run.n - n, false);
            set_run(chunk, at, n, true);
            return chunk->base + (size_t)at * PIECE_BYTES;
        }
        most = run.n > most ? run.n : most;
    }
    if (n <= chunk->n_try)
        chunk->n_try = most;
    return NULL;
}

/* The room at this piece is free, and one with its free neighbours. */
static void join(struct chunk *chunk, uint32_t at)
{
    uint32_t n = chunk->run[at].n;

    assert(chunk->run[at].is_taken);
    if (at + n < chunk->n && !chunk->run[at + n].is_taken)
        n += chunk->run[at + n].n;
    if (at > 0 && !chunk->run[at - 1].is_taken) {
        n += chunk->run[at - 1].n;
        at -= chunk->run[at - 1].n;
    }
    set_run(chunk, at, n, false);
    chunk->n_try = n > chunk->n_try ? n : chunk->n_try;
    chunk->first = at < chunk->first ? at : chunk->first;
}

static bool is_free(const struct chunk *chunk)
{
    return !chunk->run[0].is_taken && chunk->run[0].n == chunk->n;
}

/* ---------------------------------------------------------------- the rooms */

void rooms_destroy(struct rooms *rooms)
{
    if (!rooms)
        return;
    while (rooms->chunk) {
        struct chunk *chunk = rooms->chunk;

        assert(is_free(chunk));
        rooms->chunk = chunk->next;
        if (rooms->is_fixed)
            free(chunk);
        else
            chunk_destroy(chunk);
    }
    (void)pthread_mutex_destroy(&rooms->lock);
    free(rooms);
}

static char *take_large(struct rooms *rooms, uint32_t n)
{
    struct chunk *chunk;
    char *room = NULL;

    (void)pthread_mutex_lock(&rooms->lock);
    for (chunk = rooms->chunk; chunk && !room; chunk = chunk->next)
        room = cut(chunk, n);
    if (!room && (chunk = add_chunk(rooms, n)))
        room = cut(chunk, n);
    (void)pthread_mutex_unlock(&rooms->lock);
    return room;
}

enum status rooms_take(struct rooms *rooms, size_t bytes, void **out)
{
    const size_t n_align = bytes / ALIGN_BYTES + 1;
    const size_t n_piece = bytes / PIECE_BYTES + (bytes % PIECE_BYTES != 0);
    void *room = NULL;

    if (bytes < SMALL_BYTES && !rooms->is_fixed)
        room = aligned_alloc(ALIGN_BYTES, n_align * ALIGN_BYTES);
    else if (n_piece <= INT32_MAX)
        room = take_large(rooms, n_piece ? (uint32_t)n_piece : 1);
    if (!room)
        return no_memory(bytes);
    *out = room;
    return STATUS_OK;
}

/* The one that the room lies in, and what names it; NULL: a small room. */
static struct chunk **find(struct rooms *rooms, const void *room)
{
    struct chunk **at = &rooms->chunk;

    while (*at && (uintptr_t)room - (uintptr_t)(*at)->base >= chunk_bytes(*at))
        at = &(*at)->next;
    return *at ? at : NULL;
}

/* One of the usual size stays, for whoever comes next. */
static bool may_go(const struct rooms *rooms, const struct chunk *chunk)
{
    if (!is_free(chunk) || chunk->is_warm)
        return false;
    for (const struct chunk *other = rooms->chunk; other; other = other->next)
        if (other != chunk && is_free(other))
            return true;
    return chunk_bytes(chunk) > CHUNK_BYTES;
}

void rooms_give(struct rooms *rooms, void *room)
{
    struct chunk **at, *chunk = NULL, *gone = NULL;

    if (!room)
        return;
    (void)pthread_mutex_lock(&rooms->lock);
    at = find(rooms, room);
    if (at) {
        chunk = *at;
        join(chunk, (uint32_t)(((char *)room - chunk->base) / PIECE_BYTES));
        if (may_go(rooms, chunk)) {
            *at = chunk->next;
            gone = chunk;
        }
    }
    (void)pthread_mutex_unlock(&rooms->lock);
    if (gone)
        chunk_destroy(gone);
    if (!chunk)
        free(room);
}

size_t rooms_bytes(struct rooms *rooms)
{
    size_t bytes = 0;

    (void)pthread_mutex_lock(&rooms->lock);
    for (const struct chunk *c = rooms->chunk; c; c = c->next)
        bytes += chunk_bytes(c);
    (void)pthread_mutex_unlock(&rooms->lock);
    return bytes;
}

size_t rooms_left(struct rooms *rooms)
{
    size_t n = 0;

    (void)pthread_mutex_lock(&rooms->lock);
    for (const struct chunk *c = rooms->chunk; c; c = c->next)
        for (uint32_t at = 0; at < c->n; at += c->run[at].n)
            n += c->run[at].is_taken ? 0 : c->run[at].n;
    (void)pthread_mutex_unlock(&rooms->lock);
    return n * PIECE_BYTES;
}
