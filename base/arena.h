#ifndef BASE_ARENA_H
#define BASE_ARENA_H
/*
 * Memory that is freed as a whole: everything one request needs. Grows by
 * blocks up to a maximum that its maker states, so that outside data can never
 * take more. Not thread-safe; it moves between threads with its request.
 */
#include "base/status.h"

#include <stddef.h>

struct arena;

/* RESOURCE_EXHAUSTED  no memory. max_bytes bounds all blocks together. */
MUST_CHECK enum status arena_create(size_t max_bytes, struct arena **out);
void arena_destroy(struct arena *arena);

/*
 * Zeroed bytes, aligned to 16. NULL when the maximum is reached or memory is
 * out; the cause (RESOURCE_EXHAUSTED) is recorded.
 */
void *arena_take(struct arena *arena, size_t bytes);

/* Copy of bytes with a NUL behind them; NULL as above. */
char *arena_copy(struct arena *arena, const void *bytes, size_t n_bytes);

/* Bytes taken so far, block slack included. */
size_t arena_bytes(const struct arena *arena);
#endif
