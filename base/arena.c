#include "base/arena.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 16u
#define FIRST_BLOCK_BYTES 4096u

struct block {
    struct block *next;
    size_t size, used; /* bytes of data, a multiple of ALIGNMENT but size */
    _Alignas(ALIGNMENT) unsigned char data[];
};

struct arena {
    struct block *newest;
    size_t max_bytes;
    size_t total_bytes; /* data of all blocks, <= max_bytes */
};

enum status arena_create(size_t max_bytes, struct arena **out)
{
    struct arena *arena = calloc(1, sizeof(*arena));

    if (!arena)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for an arena of at most %zu bytes",
                           max_bytes);
    arena->max_bytes = max_bytes;
    *out = arena;
    return STATUS_OK;
}

void arena_destroy(struct arena *arena)
{
    if (!arena)
        return;
    while (arena->newest) {
        struct block *block = arena->newest;

        arena->newest = block->next;
        free(block);
    }
    free(arena);
}

/* Blocks double, so that a long request costs few calls of calloc(). */
static struct block *add_block(struct arena *arena, size_t bytes)
{
    size_t left = arena->max_bytes - arena->total_bytes;
    size_t size = FIRST_BLOCK_BYTES;
    struct block *block;

    if (bytes > left) {
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "arena has %zu bytes and needs %zu more, limit %zu",
                          arena->total_bytes, bytes, arena->max_bytes);
        return NULL;
    }
    if (size < arena->total_bytes)
        size = arena->total_bytes;
    if (size > left)
        size = left;
    if (size < bytes)
        size = bytes;
    block = size <= SIZE_MAX - sizeof(*block) ? calloc(1, sizeof(*block) + size)
                                              : NULL;
    if (!block) {
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "no memory for %zu bytes of an arena", size);
        return NULL;
    }
    block->size = size;
    block->next = arena->newest;
    arena->newest = block;
    arena->total_bytes += size;
    return block;
}

void *arena_take(struct arena *arena, size_t bytes)
{
    struct block *block = arena->newest;
    size_t end;
    void *taken;

    if (!block || bytes > block->size - block->used) {
        block = add_block(arena, bytes);
        if (!block)
            return NULL;
    }
    taken = block->data + block->used;
    end = block->used + bytes;
    end += (ALIGNMENT - end % ALIGNMENT) % ALIGNMENT;
    block->used = end < block->size ? end : block->size;
    return taken;
}

char *arena_copy(struct arena *arena, const void *bytes, size_t n_bytes)
{
    char *copy;

    assert(n_bytes < SIZE_MAX);
    copy = arena_take(arena, n_bytes + 1);
    if (copy && n_bytes > 0)
        memcpy(copy, bytes, n_bytes);
    return copy;
}

size_t arena_bytes(const struct arena *arena)
{
    return arena->total_bytes;
}
