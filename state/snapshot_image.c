#include "state/snapshot_image.h"

#include <stdlib.h>
#include <string.h>

static size_t copy_bytes(const struct model *model, uint64_t position)
{
    size_t n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        n += model_plan(model, i)->state_bytes;
        if (position % KV_BLOCK)
            n += model_plan(model, i)->block_bytes;
    }
    return n;
}

static void copy_layer(struct image *image, const struct model *model,
                       uint32_t layer, const struct layer_memory *memory,
                       unsigned char **room)
{
    const struct mixer_plan *plan = model_plan(model, layer);
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

enum status image_create(const struct model *model, struct uid uid,
                         const struct memory *memory, struct digest chain,
                         uint64_t first_block, struct image **out)
{
    uint32_t n_layer = model_config(model)->n_layer;
    struct image *image =
        calloc(1, sizeof(*image) + n_layer * sizeof(image->layer[0]));
    unsigned char *room;

    if (!image)
        goto no_memory;
    image->uid = image->label.session = uid;
    image->chain = chain;
    image->position = memory_position(memory);
    image->n_block = image->position / KV_BLOCK;
    image->first_block =
        first_block < image->n_block ? first_block : image->n_block;
    image->n_layer = n_layer;
    image->copy_bytes = copy_bytes(model, image->position);
    image->copy = malloc(image->copy_bytes + 1);
    image->block = calloc((image->n_block - image->first_block) * n_layer + 1,
                          sizeof(float *));
    if (!image->copy || !image->block)
        goto no_memory;
    room = image->copy;
    for (uint32_t i = 0; i < n_layer; i++)
        copy_layer(image, model, i, &memory_layers(memory)[i], &room);
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

size_t snapshot_bytes(const struct model *model, uint64_t position)
{
    uint64_t n_block = position / KV_BLOCK + (position % KV_BLOCK != 0);
    size_t n = 0;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        n += model_plan(model, i)->state_bytes +
             n_block * model_plan(model, i)->block_bytes;
    return n;
}
