#include "state/snapshot_image.h"

#include "state/lineage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t copy_bytes(const struct memory *memory, uint32_t n_layer)
{
    size_t n = 0;

    for (uint32_t i = 0; i < n_layer; i++) {
        n += memory_plan(memory, i)->state_bytes;
        if (memory_position(memory) % KV_BLOCK)
            n += memory_plan(memory, i)->block_bytes;
    }
    return n;
}

static void copy_layer(struct image *image, const struct mixer_plan *plan,
                       uint32_t layer, const struct layer_memory *memory,
                       unsigned char **room)
{
    struct image_layer *out = &image->layer[layer];

    if (plan->state_bytes > 0) {
        out->state = memcpy(*room, memory->state, plan->state_bytes);
        *room += plan->state_bytes;
    }
    if (plan->block_bytes == 0)
        return;
    if (image->position % KV_BLOCK) {
        out->open =
            memcpy(*room, memory->block[image->n_block], plan->block_bytes);
        *room += plan->block_bytes;
    }
    out->block = image->block + layer * (image->n_block - image->first_block);
    for (uint64_t b = image->first_block; b < image->n_block; b++)
        out->block[b - image->first_block] = memory->block[b];
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
    image->copy_bytes = copy_bytes(memory, n_layer);
    image->copy = malloc(image->copy_bytes + 1);
    image->block = calloc(n_save * n_layer + 1, sizeof(float *));
    image->end_chain = calloc(n_save + 1, sizeof(*image->end_chain));
    if (!image->copy || !image->block || !image->end_chain)
        goto no_memory;
    chain_blocks(image, source);
    room = image->copy;
    for (uint32_t i = 0; i < n_layer; i++)
        copy_layer(image, memory_plan(memory, i), i, &memory_layers(memory)[i],
                   &room);
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
    free(image->copy);
    free(image->block);
    free(image->end_chain);
    free(image);
}

size_t image_bytes(const struct image *image)
{
    return image->copy_bytes;
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
        n += model_plan_for(model, i, index)->state_bytes +
             n_block * model_plan_for(model, i, index)->block_bytes;
    return n;
}
