#include "state/memory.h"

#include "kernels/device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES 64u
#define TABLE_FIRST 16u /* blocks that the first tables can name */

/*
 * Blocks come as slabs: one allocation holds the block of every layer for the
 * same KV_BLOCK tokens, so that growth succeeds or fails as a whole.
 */
struct slab {
    uint32_t n_holder;    /* memories that it is part of */
    size_t *shared_bytes; /* counts it; NULL: it was never shared */
    char *block;          /* the layers' blocks, where the model's are; owned */
};

struct memory {
    const struct model *model;
    struct device *device; /* the queue that asks for its memory */
    uint64_t position;
    uint64_t n_slab;
    uint64_t capacity; /* slabs that the tables can name */
    size_t bytes;
    uint64_t n_shared;          /* of the slabs */
    void *state;                /* of all layers, one behind the other; owned */
    void **table;               /* [1 + n_layer][capacity]: slabs, then the
                                    layers' blocks in them; owned, and slabs */
    void **far;                 /* [n_layer][capacity] the latter where kernels
                                   read them; owned. The host: in `table` */
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

/*
 * Zeroed. On the host from the heap, which gives the next session the pages of
 * one that ended: fresh ones would cost a prompt of 512 tokens a sixth of its
 * time.
 */
static void *take_states(const struct model *model)
{
    void *room;

    return device_take(model_device(model), state_bytes(model), &room) ? NULL
                                                                       : room;
}

static size_t slab_bytes(const struct model *model)
{
    size_t n = 0;

    for (uint32_t i = 0; i < count_layers(model); i++)
        n += rounded(model_plan(model, i)->block_bytes);
    return n ? n + rounded(sizeof(struct slab)) : 0;
}

static size_t blocks_bytes(const struct model *model)
{
    return slab_bytes(model) - rounded(sizeof(struct slab));
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

/* Of the tables that kernels read, where they are not the host's. */
static size_t far_bytes(const struct model *model, uint64_t capacity)
{
    return model_device(model) ? count_layers(model) * capacity * sizeof(void *)
                               : 0;
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
    memory->device = model_device(model);
    memory->bytes = fixed_bytes(model);
    if (!(memory->layer = take(n_layer * sizeof(*memory->layer))) ||
        !(memory->state = take_states(model))) {
        memory_destroy(memory);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    state = memory->state;
    for (uint32_t i = 0; i < n_layer; i++) {
        const size_t n = model_plan(model, i)->state_bytes;

        memory->layer[i].state = n ? state : NULL;
        state += rounded(n);
    }
    /* Whoever loads it does so by the other queue. */
    device_follow(device_side(memory->device), memory->device);
    *out = memory;
    return STATUS_OK;
}

static void slab_put(const struct memory *memory, struct slab *slab)
{
    if (--slab->n_holder > 0)
        return;
    if (slab->shared_bytes)
        *slab->shared_bytes -= slab_bytes(memory->model);
    device_give(memory->device, slab->block);
    free(slab);
}

void memory_destroy(struct memory *memory)
{
    if (!memory)
        return;
    for (uint64_t b = 0; b < memory->n_slab; b++)
        slab_put(memory, memory->table[b]);
    free(memory->table);
    free(memory->layer);
    device_give(memory->device, memory->state);
    device_give(memory->device, memory->far);
    free(memory);
}

/* Tell kernels of blocks from `first` on. */
static void write_tables(struct memory *memory, uint64_t first)
{
    const size_t bytes = (memory->n_slab - first) * sizeof(void *);

    for (uint32_t i = 0; memory->far && i < count_layers(memory->model); i++)
        if (model_plan(memory->model, i)->block_bytes)
            device_write(
                memory->device, memory->far + i * memory->capacity + first,
                memory->table + (1 + i) * memory->capacity + first, bytes);
}

static enum status widen_table(struct memory *memory, uint64_t capacity)
{
    const uint32_t n_layer = count_layers(memory->model);
    void **wide = take(table_bytes(memory->model, capacity));
    void *far = NULL;

    if (!wide)
        return STATUS_RESOURCE_EXHAUSTED;
    if (memory->device &&
        device_take(memory->device, far_bytes(memory->model, capacity), &far)) {
        free(wide);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    for (uint32_t i = 0; i < 1 + n_layer && memory->n_slab; i++)
        memcpy(wide + i * capacity, memory->table + i * memory->capacity,
               memory->n_slab * sizeof(*wide));
    memory->bytes += table_bytes(memory->model, capacity) +
                     far_bytes(memory->model, capacity) -
                     table_bytes(memory->model, memory->capacity) -
                     far_bytes(memory->model, memory->capacity);
    free(memory->table);
    device_give(memory->device, memory->far);
    memory->table = wide;
    memory->far = far;
    memory->capacity = capacity;
    for (uint32_t i = 0; i < n_layer; i++)
        if (model_plan(memory->model, i)->block_bytes)
            memory->layer[i].block =
                far ? memory->far + i * capacity : wide + (1 + i) * capacity;
    write_tables(memory, 0);
    return STATUS_OK;
}

/* Where it belongs in the tables. */
static void set_slab(struct memory *memory, uint64_t b, struct slab *slab)
{
    char *block = slab->block;

    memory->table[b] = slab;
    for (uint32_t i = 0; i < count_layers(memory->model); i++) {
        const size_t n = model_plan(memory->model, i)->block_bytes;

        if (n)
            memory->table[(1 + i) * memory->capacity + b] = block;
        block += rounded(n);
    }
}

static void append_slab(struct memory *memory, struct slab *slab)
{
    set_slab(memory, memory->n_slab++, slab);
    memory->bytes += slab_bytes(memory->model);
}

static enum status add_slab(struct memory *memory)
{
    struct slab *slab = take(sizeof(*slab));
    void *block;

    if (!slab ||
        device_take(memory->device, blocks_bytes(memory->model), &block)) {
        free(slab);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    slab->n_holder = 1;
    slab->block = block;
    append_slab(memory, slab);
    return STATUS_OK;
}

/* Slab b, for one more holder. */
static struct slab *lend(struct memory *memory, uint64_t b,
                         size_t *shared_bytes)
{
    struct slab *slab = memory->table[b];

    if (!slab->shared_bytes) {
        slab->shared_bytes = shared_bytes;
        *shared_bytes += slab_bytes(memory->model);
        memory->n_shared++;
    }
    slab->n_holder++;
    return slab;
}

static enum status reserve_table(struct memory *memory, uint64_t n_slab)
{
    return n_slab > memory->capacity ? widen_table(memory, capacity_for(n_slab))
                                     : STATUS_OK;
}

enum status memory_reserve(struct memory *memory, uint64_t n_token)
{
    const uint64_t limit = model_n_context(memory->model);
    const uint64_t before = memory->n_slab;
    uint64_t n_slab;
    enum status st;

    if (n_token > limit)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "session of %lu tokens, the model's context has %lu",
                           n_token, limit);
    n_slab = slabs_for(memory->model, n_token);
    st = reserve_table(memory, n_slab);
    if (st)
        return st;
    while (!st && memory->n_slab < n_slab)
        st = add_slab(memory);
    write_tables(memory, before);
    return st;
}

static void copy_slab(struct memory *memory, const struct memory *from,
                      uint64_t b)
{
    const struct slab *to = memory->table[b], *source = from->table[b];

    device_copy(memory->device, to->block, source->block,
                blocks_bytes(memory->model));
}

enum status memory_fork(struct memory *memory, size_t *shared_bytes,
                        struct memory **out)
{
    const struct model *model = memory->model;
    const uint64_t n_sealed =
        slabs_for(model, memory->position) -
        (memory->position % KV_BLOCK && slab_bytes(model));
    struct memory *fork;
    enum status st = memory_create(model, &fork);

    if (st)
        return st;
    st = reserve_table(fork, slabs_for(model, memory->position));
    for (uint64_t b = 0; !st && b < n_sealed; b++) {
        append_slab(fork, lend(memory, b, shared_bytes));
        fork->n_shared++;
    }
    if (!st && n_sealed < slabs_for(model, memory->position)) {
        st = add_slab(fork);
        if (!st)
            copy_slab(fork, memory, n_sealed);
    }
    if (st) {
        memory_destroy(fork);
        return st;
    }
    write_tables(fork, 0);
    device_copy(fork->device, fork->state, memory->state, state_bytes(model));
    fork->position = memory->position;
    *out = fork;
    return STATUS_OK;
}

void memory_share(struct memory *memory, struct memory *from, uint64_t n_token,
                  size_t *shared_bytes)
{
    const uint64_t n_slab = slab_bytes(memory->model) ? n_token / KV_BLOCK : 0;

    assert(n_token <= memory->position && n_token <= from->position);
    for (uint64_t b = 0; b < n_slab; b++) {
        struct slab *own = memory->table[b];

        if (own == from->table[b])
            continue;
        memory->n_shared += !own->shared_bytes;
        set_slab(memory, b, lend(from, b, shared_bytes));
        slab_put(memory, own);
    }
    write_tables(memory, 0);
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

void *memory_block(const struct memory *memory, uint32_t layer, uint64_t b)
{
    assert(b < memory->n_slab);
    return memory->table[(1 + layer) * memory->capacity + b];
}

void memory_use(struct memory *memory, struct device *device)
{
    memory->device = device;
}

size_t memory_bytes(const struct memory *memory)
{
    return memory->bytes;
}

size_t memory_shared_bytes(const struct memory *memory)
{
    return memory->n_shared * slab_bytes(memory->model);
}

size_t memory_bytes_for(const struct model *model, uint64_t n_token)
{
    const uint64_t n_slab = slabs_for(model, n_token);

    return fixed_bytes(model) + n_slab * slab_bytes(model) +
           table_bytes(model, capacity_for(n_slab)) +
           far_bytes(model, capacity_for(n_slab));
}
