#include "state/memory.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES 64u
#define TABLE_FIRST 16u /* blocks that the first tables can name */

/*
 * Blocks come as slabs: one allocation holds the block of every layer for the
 * same KV_BLOCK tokens, so that growth succeeds or fails as a whole.
 */
struct memory {
    const struct model *model;
    uint64_t position;
    uint64_t n_slab;
    uint64_t capacity; /* slabs that the tables can name */
    size_t bytes;
    void *state;                /* of all layers, one behind the other; owned */
    void **table;               /* [1 + n_layer][capacity]: slabs, then the
                                    layers' blocks in them; owned, and slabs */
    struct layer_memory *layer; /* [n_layer], views of the above; owned */
};

static size_t rounded(size_t n_bytes)
{
    return (n_bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

/* Zeroed and aligned; NULL and the cause when there is none. */
static void *take(size_t n_bytes)
{
    void *room = aligned_alloc(ALIGN_BYTES, rounded(n_bytes ? n_bytes : 1));

    if (room)
        memset(room, 0, n_bytes);
    else
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "no memory for %zu bytes of a session", n_bytes);
    return room;
}

static uint32_t count_layers(const struct model *model)
{
    return model_config(model)->n_layer;
}

static size_t state_bytes(const struct model *model)
{
    size_t n = 0;

    for (uint32_t i = 0; i < count_layers(model); i++)
        n += rounded(model_plan(model, i)->state_bytes);
    return n;
}

static size_t slab_bytes(const struct model *model)
{
    size_t n = 0;

    for (uint32_t i = 0; i < count_layers(model); i++)
        n += rounded(model_plan(model, i)->block_bytes);
    return n;
}

static size_t fixed_bytes(const struct model *model)
{
    return sizeof(struct memory) +
           count_layers(model) * sizeof(struct layer_memory) +
           state_bytes(model);
}

static uint64_t slabs_for(const struct model *model, uint64_t n_token)
{
    if (!slab_bytes(model))
        return 0;
    return n_token / KV_BLOCK + (n_token % KV_BLOCK != 0);
}

/* Doubled each time, so that a growing session copies little. */
static uint64_t capacity_for(uint64_t n_slab)
{
    uint64_t capacity = n_slab ? TABLE_FIRST : 0;

    while (capacity < n_slab)
        capacity *= 2;
    return capacity;
}

static size_t table_bytes(const struct model *model, uint64_t capacity)
{
    return (1 + (size_t)count_layers(model)) * capacity * sizeof(void *);
}

enum status memory_create(const struct model *model, struct memory **out)
{
    const uint32_t n_layer = count_layers(model);
    struct memory *memory = take(sizeof(*memory));
    char *state;

    if (!memory)
        return STATUS_RESOURCE_EXHAUSTED;
    memory->model = model;
    memory->bytes = fixed_bytes(model);
    if (!(memory->layer = take(n_layer * sizeof(*memory->layer))) ||
        !(memory->state = take(state_bytes(model)))) {
        memory_destroy(memory);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    state = memory->state;
    for (uint32_t i = 0; i < n_layer; i++) {
        const size_t n = model_plan(model, i)->state_bytes;

        memory->layer[i].state = n ? state : NULL;
        state += rounded(n);
    }
    *out = memory;
    return STATUS_OK;
}

void memory_destroy(struct memory *memory)
{
    if (!memory)
        return;
    for (uint64_t b = 0; b < memory->n_slab; b++)
        free(memory->table[b]);
    free(memory->table);
    free(memory->layer);
    free(memory->state);
    free(memory);
}

static enum status widen_table(struct memory *memory, uint64_t capacity)
{
    const uint32_t n_layer = count_layers(memory->model);
    void **wide = take(table_bytes(memory->model, capacity));

    if (!wide)
        return STATUS_RESOURCE_EXHAUSTED;
    for (uint32_t i = 0; i < 1 + n_layer && memory->n_slab; i++)
        memcpy(wide + i * capacity, memory->table + i * memory->capacity,
               memory->n_slab * sizeof(*wide));
    memory->bytes += table_bytes(memory->model, capacity) -
                     table_bytes(memory->model, memory->capacity);
    free(memory->table);
    memory->table = wide;
    memory->capacity = capacity;
    for (uint32_t i = 0; i < n_layer; i++)
        if (model_plan(memory->model, i)->block_bytes)
            memory->layer[i].block = wide + (1 + i) * capacity;
    return STATUS_OK;
}

static enum status add_slab(struct memory *memory)
{
    const uint64_t b = memory->n_slab;
    char *slab = take(slab_bytes(memory->model));

    if (!slab)
        return STATUS_RESOURCE_EXHAUSTED;
    memory->table[b] = slab;
    for (uint32_t i = 0; i < count_layers(memory->model); i++) {
        const size_t n = model_plan(memory->model, i)->block_bytes;

        if (n)
            memory->table[(1 + i) * memory->capacity + b] = slab;
        slab += rounded(n);
    }
    memory->bytes += slab_bytes(memory->model);
    memory->n_slab++;
    return STATUS_OK;
}

enum status memory_reserve(struct memory *memory, uint64_t n_token)
{
    const uint64_t limit = model_n_context(memory->model);
    uint64_t n_slab;

    if (n_token > limit)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "session of %lu tokens, the model's context has %lu",
                           n_token, limit);
    n_slab = slabs_for(memory->model, n_token);
    if (n_slab > memory->capacity) {
        const enum status st = widen_table(memory, capacity_for(n_slab));

        if (st)
            return st;
    }
    while (memory->n_slab < n_slab) {
        const enum status st = add_slab(memory);

        if (st)
            return st;
    }
    return STATUS_OK;
}

uint64_t memory_position(const struct memory *memory)
{
    return memory->position;
}

void memory_advance(struct memory *memory, uint64_t n_token)
{
    assert(n_token <= model_n_context(memory->model) - memory->position);
    assert(slabs_for(memory->model, memory->position + n_token) <=
           memory->n_slab);
    memory->position += n_token;
}

const struct layer_memory *memory_layers(const struct memory *memory)
{
    return memory->layer;
}

size_t memory_bytes(const struct memory *memory)
{
    return memory->bytes;
}

size_t memory_bytes_for(const struct model *model, uint64_t n_token)
{
    const uint64_t n_slab = slabs_for(model, n_token);

    return fixed_bytes(model) + n_slab * slab_bytes(model) +
           table_bytes(model, capacity_for(n_slab));
}
