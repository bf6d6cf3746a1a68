#include "state/memory.h"

#include "kernels/device.h"
#include "state/form.h"
#include "state/states.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define TABLE_FIRST 16u /* blocks that the first tables can name */

/*
 * Blocks come as slabs: one allocation holds the block of every layer for the
 * same KV_BLOCK tokens, so that growth succeeds or fails as a whole. The
 * blocks lie apart from this head: with a device, in its memory.
 */
struct slab {
    uint32_t n_holder;    /* memories that it is part of */
    size_t *shared_bytes; /* counts it; NULL: it was never shared */
    char *block;          /* the layers' blocks, where the model's are; owned */
};

struct memory {
    const struct model *model;
    struct device *device; /* the queue that asks for its memory, or NULL */
    struct rooms *rooms;   /* where it lies otherwise; borrowed */
    bool is_aside;
    struct policy policy;
    uint64_t position;
    uint64_t n_slab;
    uint64_t capacity; /* slabs that the tables can name */
    size_t bytes;
    uint64_t n_shared;          /* of the slabs */
    struct paging *paging;      /* has its blocks, and there are no slabs;
                                    NULL: slabs have them. Owned */
    struct states *states;      /* of all layers, each with its copy; held */
    void **table;               /* [n_table][capacity]: slabs, then the
                                    layers' blocks in them, then, if the policy
                                    has any, their indices; owned, and slabs */
    void **far;                 /* [n_layer][capacity] the blocks where kernels
                                   read them; owned. The host: in `table` */
    struct layer_memory *layer; /* [n_layer], views of the above; owned */
};

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

static struct form form_of(const struct memory *memory)
{
    return (struct form){memory->model, memory->policy.index};
}

struct states *memory_hold_states(const struct memory *memory)
{
    memory->states->n_holder++;
    return memory->states;
}

void memory_let_go_states(const struct model *model, struct states *states)
{
    states_let_go(model_device(model), states);
}

static size_t slab_bytes(struct form form)
{
    const size_t n = blocks_bytes(form);

    return n ? n + rounded(sizeof(struct slab)) : 0;
}

static size_t fixed_bytes(struct form form)
{
    return sizeof(struct memory) +
           count_layers(form.model) * sizeof(struct layer_memory) +
           state_bytes(form);
}

static uint64_t slabs_for(struct form form, uint64_t n_token)
{
    if (!slab_bytes(form))
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

static struct home home_of(const struct memory *memory)
{
    return (struct home){memory->device, memory->rooms};
}

/* Of the tables that kernels read, where they are not the host's. */
static size_t far_bytes(struct form form, uint64_t capacity)
{
    return model_device(form.model)
               ? count_layers(form.model) * capacity * sizeof(void *)
               : 0;
}

static size_t count_tables(struct form form)
{
    const size_t n_layer = count_layers(form.model);

    return 1 + n_layer + (form.index ? n_layer : 0);
}

static size_t table_bytes(struct form form, uint64_t capacity)
{
    return count_tables(form) * capacity * sizeof(void *);
}

/* Its states from now on; those before are let go. */
static void set_states(struct memory *memory, struct states *states)
{
    const struct form form = form_of(memory);
    char *state = states->room;

    states_let_go(memory->device, memory->states);
    memory->states = states;
    for (uint32_t i = 0; i < count_layers(form.model); i++) {
        const size_t n = plan_of(form, i)->state_bytes;
        const size_t n_copy = copy_bytes(form, i);

        memory->layer[i].state = n ? state : NULL;
        state += rounded(n);
        memory->layer[i].copy = n_copy ? state : NULL;
        state += rounded(n_copy);
    }
}

/* Empty ones. */
static enum status renew_states(struct memory *memory)
{
    struct states *states;

    if (states_take(home_of(memory), state_bytes(form_of(memory)), &states))
        return STATUS_RESOURCE_EXHAUSTED;
    if (!memory->is_aside)
        home_clear(home_of(memory), states->room, state_bytes(form_of(memory)));
    set_states(memory, states);
    memory->bytes = fixed_bytes(form_of(memory));
    /* Whoever loads it does so by the other queue. */
    device_follow(device_side(memory->device), memory->device);
    return STATUS_OK;
}

/* An image may hold them, but their next rows are this memory's alone. */
static enum status own_states(struct memory *memory)
{
    struct states *states;

    if (memory->states->n_holder == 1)
        return STATUS_OK;
    if (states_take(home_of(memory), state_bytes(form_of(memory)), &states))
        return STATUS_RESOURCE_EXHAUSTED;
    device_copy(memory->device, states->room, memory->states->room,
                state_bytes(form_of(memory)));
    set_states(memory, states);
    return STATUS_OK;
}

/* In `rooms`, aside, or where the model's memories are. */
static enum status create(const struct model *model, struct rooms *rooms,
                          struct memory **out)
{
    struct memory *memory = take(sizeof(*memory));

    if (!memory)
        return STATUS_RESOURCE_EXHAUSTED;
    memory->model = model;
    memory->is_aside = rooms;
    memory->device = rooms ? NULL : model_device(model);
    memory->rooms = rooms ? rooms : model_rooms(model);
    if (!(memory->layer = take(count_layers(model) * sizeof(*memory->layer))) ||
        renew_states(memory)) {
        memory_destroy(memory);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *out = memory;
    return STATUS_OK;
}

enum status memory_create(const struct model *model, struct memory **out)
{
    return create(model, NULL, out);
}

enum status memory_create_aside(const struct model *model, struct rooms *rooms,
                                struct memory **out)
{
    return create(model, rooms, out);
}

bool memory_is_aside(const struct memory *memory)
{
    return memory->is_aside;
}

struct device *memory_device(const struct memory *memory)
{
    return memory->device;
}

enum status memory_set_policy(struct memory *memory,
                              const struct policy *policy)
{
    const struct policy before = memory->policy;
    const enum status st = model_check_policy(memory->model, policy);

    assert(memory->n_slab == 0 && memory->capacity == 0);
    if (st)
        return st;
    memory->policy = *policy;
    if (policy->index == before.index)
        return STATUS_OK;
    if (renew_states(memory)) {
        memory->policy = before;
        return STATUS_RESOURCE_EXHAUSTED;
    }
    return STATUS_OK;
}

void memory_end_prompt(struct memory *memory, uint64_t n_token)
{
    assert(n_token > memory->position);
    policy_end_prompt(&memory->policy, n_token);
}

const struct policy *memory_policy(const struct memory *memory)
{
    return memory->policy.kind == POLICY_FULL ? NULL : &memory->policy;
}

const struct mixer_plan *memory_plan(const struct memory *memory,
                                     uint32_t layer)
{
    return plan_of(form_of(memory), layer);
}

static void slab_put(const struct memory *memory, struct slab *slab)
{
    if (--slab->n_holder > 0)
        return;
    if (slab->shared_bytes)
        *slab->shared_bytes -= slab_bytes(form_of(memory));
    home_give(home_of(memory), slab->block);
    free(slab);
}

void memory_destroy(struct memory *memory)
{
    if (!memory)
        return;
    for (uint64_t b = 0; b < memory->n_slab; b++)
        slab_put(memory, memory->table[b]);
    paging_destroy(memory->paging);
    free(memory->table);
    free(memory->layer);
    states_let_go(memory->device, memory->states);
    device_give(memory->device, memory->far);
    free(memory);
}

/* Tell kernels of blocks from `first` on. */
static void write_tables(struct memory *memory, uint64_t first)
{
    const size_t bytes = (memory->n_slab - first) * sizeof(void *);

    for (uint32_t i = 0; memory->far && i < count_layers(memory->model); i++)
        if (plan_of(form_of(memory), i)->block_bytes)
            device_write(
                memory->device, memory->far + i * memory->capacity + first,
                memory->table + (1 + i) * memory->capacity + first, bytes);
}

static enum status widen_table(struct memory *memory, uint64_t capacity)
{
    const struct form form = form_of(memory);
    const uint32_t n_layer = count_layers(form.model);
    void **wide = take(table_bytes(form, capacity));
    void *far = NULL;

    if (!wide)
        return STATUS_RESOURCE_EXHAUSTED;
    if (memory->device &&
        device_take(memory->device, far_bytes(form, capacity), &far)) {
        free(wide);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    for (size_t i = 0; i < count_tables(form) && memory->n_slab; i++)
        memcpy(wide + i * capacity, memory->table + i * memory->capacity,
               memory->n_slab * sizeof(*wide));
    memory->bytes +=
        table_bytes(form, capacity) - table_bytes(form, memory->capacity);
    if (memory->device)
        memory->bytes +=
            far_bytes(form, capacity) - far_bytes(form, memory->capacity);
    free(memory->table);
    device_give(memory->device, memory->far);
    memory->table = wide;
    memory->far = far;
    memory->capacity = capacity;
    for (uint32_t i = 0; i < n_layer; i++) {
        if (plan_of(form, i)->block_bytes)
            memory->layer[i].block =
                far ? memory->far + i * capacity : wide + (1 + i) * capacity;
        if (plan_of(form, i)->index_bytes)
            memory->layer[i].index = wide + (1 + n_layer + i) * capacity;
    }
    write_tables(memory, 0);
    return STATUS_OK;
}

/* Where it belongs in the tables. */
static void set_slab(struct memory *memory, uint64_t b, struct slab *slab)
{
    const struct form form = form_of(memory);
    const uint32_t n_layer = count_layers(form.model);
    char *block = slab->block;

    memory->table[b] = slab;
    for (uint32_t i = 0; i < n_layer; i++) {
        const struct mixer_plan *plan = plan_of(form, i);
        const size_t n = plan->block_bytes, n_index = plan->index_bytes;

        if (n)
            memory->table[(1 + i) * memory->capacity + b] = block;
        if (n_index)
            memory->table[(1 + n_layer + i) * memory->capacity + b] =
                block + n - n_index;
        block += rounded(n);
    }
}

static void append_slab(struct memory *memory, struct slab *slab)
{
    set_slab(memory, memory->n_slab++, slab);
    memory->bytes += slab_bytes(form_of(memory));
}

static enum status take_blocks(struct memory *memory, struct slab *slab)
{
    const size_t bytes = blocks_bytes(form_of(memory));
    void *block;
    const enum status st = home_take(home_of(memory), bytes, &block);

    if (st)
        return st;
    if (!memory->is_aside)
        home_clear(home_of(memory), block, bytes);
    slab->block = block;
    return STATUS_OK;
}

static enum status add_slab(struct memory *memory)
{
    struct slab *slab = take(sizeof(*slab));

    if (!slab)
        return STATUS_RESOURCE_EXHAUSTED;
    if (take_blocks(memory, slab)) {
        free(slab);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    slab->n_holder = 1;
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
        *shared_bytes += slab_bytes(form_of(memory));
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

/* Its tables may have moved. */
static void name_pages(struct memory *memory)
{
    for (uint32_t i = 0; i < count_layers(memory->model); i++) {
        memory->layer[i].block = paging_blocks(memory->paging, i);
        memory->layer[i].index = paging_indices(memory->paging, i);
        memory->layer[i].is_short = paging_is_short(memory->paging, i);
    }
}

static enum status reserve_pages(struct memory *memory, uint64_t n_slab)
{
    const enum status st = paging_reserve(memory->paging, n_slab);

    name_pages(memory);
    return st;
}

static enum status check_length(const struct memory *memory, uint64_t n_token)
{
    const uint64_t limit = model_n_context(memory->model);

    return n_token <= limit
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "session of %lu tokens, the model's context has "
                             "%lu",
                             n_token, limit);
}

enum status memory_reserve(struct memory *memory, uint64_t n_token)
{
    const uint64_t before = memory->n_slab;
    const uint64_t n_slab = slabs_for(form_of(memory), n_token);
    enum status st = check_length(memory, n_token);

    if (!st)
        st = own_states(memory);
    if (st)
        return st;
    if (memory->paging)
        return reserve_pages(memory, n_slab);
    st = reserve_table(memory, n_slab);
    if (st)
        return st;
    while (!st && memory->n_slab < n_slab)
        st = add_slab(memory);
    write_tables(memory, before);
    return st;
}

enum status memory_expect(struct memory *memory, uint64_t n_token)
{
    enum status st = check_length(memory, n_token);

    if (st || !memory->paging)
        return st ? st : memory_reserve(memory, n_token);
    st = paging_expect(memory->paging, n_token / KV_BLOCK);
    name_pages(memory);
    return st ? st : memory_reserve(memory, n_token);
}

enum status memory_put(struct memory *memory, uint32_t layer, uint64_t b,
                       struct device *device, const void *bytes)
{
    if (memory->paging)
        return paging_put(memory->paging, layer, b, bytes);
    device_write(device, memory_block(memory, layer, b), bytes,
                 plan_of(form_of(memory), layer)->block_bytes);
    return STATUS_OK;
}

void memory_wipe(struct memory *memory, struct device *device)
{
    const struct form form = form_of(memory);

    assert(memory->states->n_holder == 1);
    device_zero(device, memory->states->room, state_bytes(form));
    if (memory->paging) {
        paging_clear(memory->paging);
        name_pages(memory);
        return;
    }
    for (uint64_t b = 0; b < memory->n_slab; b++) {
        const struct slab *slab = memory->table[b];

        device_zero(device, slab->block, blocks_bytes(form));
    }
}

enum status memory_page(struct memory *memory, struct pager *pager,
                        size_t max_bytes)
{
    assert(memory->n_slab == 0 && policy_is_bounded(&memory->policy) &&
           !memory->device);
    return paging_create(memory->model, &memory->policy, pager, max_bytes,
                         &memory->paging);
}

struct paging *memory_paging(const struct memory *memory)
{
    return memory->paging;
}

struct block_source *memory_source(const struct memory *memory)
{
    return memory->paging ? paging_source(memory->paging) : NULL;
}

static void copy_slab(struct memory *memory, const struct memory *from,
                      uint64_t b)
{
    const struct slab *to = memory->table[b], *source = from->table[b];

    device_copy(memory->device, to->block, source->block,
                blocks_bytes(form_of(memory)));
}

static enum status fork_slabs(struct memory *memory, size_t *shared_bytes,
                              struct memory *fork)
{
    const struct form form = form_of(memory);
    const uint64_t n_slab = slabs_for(form, memory->position);
    const uint64_t n_sealed =
        n_slab - (memory->position % KV_BLOCK && slab_bytes(form));
    enum status st = reserve_table(fork, n_slab);

    for (uint64_t b = 0; !st && b < n_sealed; b++) {
        append_slab(fork, lend(memory, b, shared_bytes));
        fork->n_shared++;
    }
    if (!st && n_sealed < n_slab) {
        st = add_slab(fork);
        if (!st)
            copy_slab(fork, memory, n_sealed);
    }
    return st;
}

static enum status fork_pages(const struct memory *memory, struct memory *fork)
{
    const enum status st = paging_fork(memory->paging, &fork->paging);

    if (!st)
        name_pages(fork);
    return st;
}

enum status memory_fork(struct memory *memory, size_t *shared_bytes,
                        struct memory **out)
{
    const struct form form = form_of(memory);
    struct memory *fork;
    enum status st = memory_create(form.model, &fork);

    if (st)
        return st;
    if (memory_policy(memory))
        st = memory_set_policy(fork, &memory->policy);
    if (!st)
        st = memory->paging ? fork_pages(memory, fork)
                            : fork_slabs(memory, shared_bytes, fork);
    if (st) {
        memory_destroy(fork);
        return st;
    }
    write_tables(fork, 0);
    device_copy(fork->device, fork->states->room, memory->states->room,
                state_bytes(form));
    fork->position = memory->position;
    *out = fork;
    return STATUS_OK;
}

void memory_share(struct memory *memory, struct memory *from, uint64_t n_token,
                  size_t *shared_bytes)
{
    const uint64_t n_slab =
        slab_bytes(form_of(memory)) ? n_token / KV_BLOCK : 0;

    assert(n_token <= memory->position && n_token <= from->position &&
           !memory->paging && !from->paging);
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

/* The states, then the blocks of each slab that has tokens: there may be more
 * slabs, of a snapshot that was then found damaged. */
uint64_t memory_n_piece(const struct memory *memory)
{
    return 1 + slabs_for(form_of(memory), memory->position);
}

size_t memory_piece_bytes(const struct memory *memory, uint64_t piece)
{
    return piece ? blocks_bytes(form_of(memory)) : state_bytes(form_of(memory));
}

static void *piece_at(const struct memory *memory, uint64_t piece)
{
    if (piece == 0)
        return memory->states->room;
    return ((const struct slab *)memory->table[piece - 1])->block;
}

void memory_carry(struct memory *to, const struct memory *from, uint64_t first,
                  uint64_t n)
{
    struct device *shuttle = device_shuttle(model_device(to->model));

    assert(to->is_aside != from->is_aside && !from->paging);
    for (uint64_t i = first; i < first + n; i++) {
        const size_t bytes = memory_piece_bytes(from, i);

        if (to->is_aside)
            device_read(shuttle, piece_at(to, i), piece_at(from, i), bytes);
        else
            device_load(shuttle, piece_at(to, i), piece_at(from, i), bytes);
    }
    to->position = from->position;
}

uint64_t memory_position(const struct memory *memory)
{
    return memory->position;
}

void memory_advance(struct memory *memory, uint64_t n_token)
{
    assert(n_token <= model_n_context(memory->model) - memory->position);
    assert(slabs_for(form_of(memory), memory->position + n_token) <=
           (memory->paging ? paging_n_block(memory->paging) : memory->n_slab));
    memory->position += n_token;
}

const struct layer_memory *memory_layers(const struct memory *memory)
{
    return memory->layer;
}

void *memory_block(const struct memory *memory, uint32_t layer, uint64_t b)
{
    if (memory->paging)
        return paging_blocks(memory->paging, layer)[b];
    assert(b < memory->n_slab);
    return memory->table[(1 + layer) * memory->capacity + b];
}

void memory_use(struct memory *memory, struct device *device)
{
    memory->device = device;
}

size_t memory_bytes(const struct memory *memory)
{
    return memory->bytes +
           (memory->paging ? paging_held_bytes(memory->paging) : 0);
}

size_t memory_paged_bytes(const struct model *model,
                          const struct policy *policy, size_t max_bytes,
                          uint64_t n_token)
{
    const struct form form = {model, policy->index};

    return fixed_bytes(form) +
           paging_bytes(model, policy, max_bytes, slabs_for(form, n_token));
}

size_t memory_grown_bytes(const struct memory *memory, uint64_t n_token)
{
    const struct form form = form_of(memory);

    return fixed_bytes(form) +
           paging_grown_bytes(memory->paging, slabs_for(form, n_token));
}

size_t memory_shared_bytes(const struct memory *memory)
{
    return memory->paging ? paging_shared_bytes(memory->paging)
                          : memory->n_shared * slab_bytes(form_of(memory));
}

size_t memory_bytes_for(const struct model *model, const struct policy *policy,
                        uint64_t n_token)
{
    const struct form form = {model, policy ? policy->index : INDEX_NONE};
    const uint64_t n_slab = slabs_for(form, n_token);

    return fixed_bytes(form) + n_slab * slab_bytes(form) +
           table_bytes(form, capacity_for(n_slab)) +
           far_bytes(form, capacity_for(n_slab));
}
