#include "state/snapshot_image.h"

#include "kernels/device.h"
#include "state/lineage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SPARE_BYTES (64u << 20) /* kept in a pool */
#define SPARE_MAX 16u

struct image_pool {
    struct device *device;          /* in whose memory the rooms lie */
    size_t room_bytes;              /* for the largest copy of this model */
    unsigned char *room[SPARE_MAX]; /* [n] owned */
    uint32_t n;
};

/* Of the states, or of the blocks of one slab. */
static size_t sum_states(const struct model *model, enum index_kind index)
{
    size_t n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        n += model_plan_for(model, i, index)->state_bytes;
    return n;
}

static size_t sum_blocks(const struct model *model, enum index_kind index)
{
    size_t n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        n += model_plan_for(model, i, index)->block_bytes;
    return n;
}

static size_t copy_bytes(const struct model *model, const struct device *device,
                         enum index_kind index, uint64_t position)
{
    return (device ? sum_states(model, index) : 0) +
           (position % KV_BLOCK ? sum_blocks(model, index) : 0);
}

/* Under whichever policy. */
static size_t most_copy_bytes(const struct model *model)
{
    size_t most = 0;

    for (int k = 0; k < N_INDEX; k++) {
        const size_t n =
            copy_bytes(model, model_device(model), (enum index_kind)k, 1);

        most = n > most ? n : most;
    }
    return most;
}

enum status image_pool_create(const struct model *model,
                              struct image_pool **out)
{
    struct image_pool *pool = calloc(1, sizeof(*pool));

    if (!pool)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a pool of images");
    pool->device = model_device(model);
    pool->room_bytes = most_copy_bytes(model);
    *out = pool;
    return STATUS_OK;
}

void image_pool_destroy(struct image_pool *pool)
{
    if (!pool)
        return;
    while (pool->n > 0)
        device_give(pool->device, pool->room[--pool->n]);
    free(pool);
}

/* Where the model's memory is; NULL and the cause when there is none. */
static unsigned char *take_room(struct image *image)
{
    struct image_pool *pool = image->pool;
    void *room;

    if (pool && pool->n > 0)
        return pool->room[--pool->n];
    return device_take(image->device,
                       pool ? pool->room_bytes : image->copy_bytes, &room)
               ? NULL
               : room;
}

static void put_room(struct image_pool *pool, struct device *device,
                     unsigned char *room)
{
    if (pool && room && pool->n < SPARE_MAX &&
        (pool->n + 1) * pool->room_bytes <= SPARE_BYTES)
        pool->room[pool->n++] = room;
    else
        device_give(device, room);
}

/* The next of the copies. */
static const void *copy(struct image *image, const void *from, size_t bytes,
                        unsigned char **room)
{
    void *to = *room;

    device_copy(image->device, to, from, bytes);
    *room += bytes;
    return to;
}

static void copy_layer(struct image *image, uint32_t layer,
                       const struct memory *memory, unsigned char **room)
{
    const struct mixer_plan *plan = memory_plan(memory, layer);
    struct image_layer *out = &image->layer[layer];

    if (plan->state_bytes > 0) {
        const void *state = memory_layers(memory)[layer].state;

        out->state =
            image->states ? state : copy(image, state, plan->state_bytes, room);
    }
    if (plan->block_bytes == 0)
        return;
    if (image->position % KV_BLOCK)
        out->open = copy(image, memory_block(memory, layer, image->n_block),
                         plan->block_bytes, room);
    out->block = image->block + layer * (image->n_block - image->first_block);
    for (uint64_t b = image->first_block; b < image->n_block; b++)
        out->block[b - image->first_block] = memory_block(memory, layer, b);
}

/* One pass over the tokens that are not stored yet. */
static void chain_blocks(struct image *image, const struct image_source *source)
{
    uint64_t at = source->from;

    image->chain = source->chain;
    for (uint64_t b = image->first_block; b < image->n_block; b++) {
        uint64_t end = (b + 1) * KV_BLOCK;

        image->chain =
            digest_tokens(image->chain, source->token + at, end - at);
        image->end_chain[b - image->first_block] = image->chain;
        at = end;
    }
    image->chain =
        digest_tokens(image->chain, source->token + at, image->position - at);
}

enum status image_create(const struct model *model,
                         const struct image_source *source, struct image **out)
{
    const struct memory *memory = source->memory;
    uint32_t n_layer = model_config(model)->n_layer;
    struct image *image =
        calloc(1, sizeof(*image) + n_layer * sizeof(image->layer[0]));
    uint64_t n_save;
    unsigned char *room;

    if (!image)
        goto no_memory;
    image->model = model;
    image->log = image->label.session = source->log;
    image->position = memory_position(memory);
    assert(source->from <= image->position);
    image->n_block = image->position / KV_BLOCK;
    image->first_block = source->from / KV_BLOCK;
    n_save = image->n_block - image->first_block;
    if (source->base)
        image->base = *source->base;
    assert(log_pieces_end(&image->base) <= image->first_block * KV_BLOCK);
    image->n_layer = n_layer;
    if (memory_policy(memory))
        image->index = memory_policy(memory)->index;
    image->policy = policy_digest(memory_policy(memory));
    image->device = memory_device(memory);
    image->copy_bytes =
        copy_bytes(model, image->device, image->index, image->position);
    image->pool = memory_is_aside(memory) ? NULL : source->pool;
    image->block = calloc(n_save * n_layer + 1, sizeof(void *));
    image->end_chain = calloc(n_save + 1, sizeof(*image->end_chain));
    if (!image->block || !image->end_chain)
        goto no_memory;
    image->copy = take_room(image);
    if (!image->copy)
        goto no_memory;
    if (!image->device)
        image->states = memory_hold_states(memory);
    chain_blocks(image, source);
    room = image->copy;
    for (uint32_t i = 0; i < n_layer; i++)
        copy_layer(image, i, memory, &room);
    /* The store thread reads it by the other queue. */
    device_follow(device_side(image->device), image->device);
    *out = image;
    return STATUS_OK;

no_memory:
    image_destroy(image);
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "no memory for a copy of a session's state");
}

void image_destroy(struct image *image)
{
    if (!image)
        return;
    put_room(image->pool, image->device, image->copy);
    memory_let_go_states(image->model, image->states);
    free(image->block);
    free(image->end_chain);
    free(image);
}

size_t image_bytes(const struct image *image)
{
    size_t n = 0;

    for (uint32_t i = 0; i < image->n_layer; i++) {
        const struct mixer_plan *plan =
            model_plan_for(image->model, i, image->index);

        n += mixer_live_bytes(plan, image->position) +
             (image->position % KV_BLOCK ? plan->block_bytes : 0);
    }
    return n;
}

void image_label(struct image *image, const struct snapshot_label *label)
{
    image->label = *label;
}

size_t snapshot_bytes(const struct model *model, const struct policy *policy,
                      uint64_t position)
{
    const enum index_kind index = policy ? policy->index : INDEX_NONE;
    uint64_t n_block = position / KV_BLOCK + (position % KV_BLOCK != 0);
    size_t n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        n += mixer_live_bytes(model_plan_for(model, i, index), position) +
             n_block * model_plan_for(model, i, index)->block_bytes;
    return n;
}
