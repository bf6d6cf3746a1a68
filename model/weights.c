#include "model/weights.h"

#include "kernels/linear_f8.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES 64u
#define PACK_FLOATS (1u << 18) /* widened at a time: 1 MiB */

void *weights_room(size_t bytes)
{
    const size_t size = (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    void *room = size >= bytes ? aligned_alloc(ALIGN_BYTES, size) : NULL;

    if (room)
        memset(room, 0, size);
    else
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "no memory for %zu bytes of weights", bytes);
    return room;
}

struct weight_part weight_whole(const char *name, uint32_t n_row)
{
    return (struct weight_part){.name = name,
                                .n_row = n_row,
                                .n_each = n_row,
                                .stride = n_row,
                                .n_group = 1};
}

uint32_t weight_part_rows(const struct weight_part *part, size_t n_part)
{
    uint32_t n = 0;

    for (size_t i = 0; i < n_part; i++)
        n += part[i].n_each * part[i].n_group;
    return n;
}

static void join(const char *prefix, const char *name,
                 char out[WEIGHTS_NAME_SIZE])
{
    const int n = snprintf(out, WEIGHTS_NAME_SIZE, "%s%s", prefix, name);

    assert(n > 0 && (size_t)n < WEIGHTS_NAME_SIZE);
}

static enum status find_part(const struct safetensors *file, const char *prefix,
                             const struct weight_part *part, uint32_t n_in,
                             const struct tensor **out)
{
    const uint32_t n_outer = part->n_outer ? part->n_outer : 1;
    const uint64_t dim[3] = {n_outer, part->n_row / n_outer, n_in};
    char name[WEIGHTS_NAME_SIZE];

    join(prefix, part->name, name);
    return part->n_outer ? safetensors_need(file, name, 3, dim, out)
                         : safetensors_need(file, name, 2, dim + 1, out);
}

/* Pack n_row rows of the tensor, from first_row on, behind first_out. */
static enum status pack_rows(const struct tensor *tensor, uint32_t first_row,
                             uint32_t n_row, uint32_t first_out,
                             struct linear *out)
{
    const uint32_t n_in = out->n_in;
    const uint32_t n_most = n_in < PACK_FLOATS ? PACK_FLOATS / n_in : 1;
    const uint32_t n_step = n_row < n_most ? n_row : n_most;
    float *wide;

    if (tensor->type == TENSOR_BF16) {
        linear_pack_bf16(out, first_out, n_row,
                         (const char *)tensor->data +
                             (size_t)first_row * n_in * sizeof(uint16_t));
        return STATUS_OK;
    }
    wide = weights_room((size_t)n_step * n_in * sizeof(float));
    if (!wide)
        return STATUS_RESOURCE_EXHAUSTED;
    for (uint32_t i = 0; i < n_row; i += n_step) {
        const uint32_t n = n_row - i < n_step ? n_row - i : n_step;

        tensor_read_f32(tensor, (uint64_t)(first_row + i) * n_in,
                        (uint64_t)n * n_in, wide);
        linear_pack_f32(out, first_out + i, n, wide);
    }
    free(wide);
    return STATUS_OK;
}

static enum status pack_part(const struct tensor *tensor,
                             const struct weight_part *part, uint32_t first_out,
                             struct linear *out)
{
    for (uint32_t g = 0; g < part->n_group; g++) {
        const enum status st =
            pack_rows(tensor, part->first + g * part->stride, part->n_each,
                      first_out + g * part->n_each, out);

        if (st)
            return st;
    }
    return STATUS_OK;
}

/*
 * Parts into blocks of F8, which know no parts: whole rows of blocks are put
 * together as floats. FP8 of a file whose blocks are these gets its own q
 * again, as each block has one of 448.
 */
struct slab {
    struct linear *to;
    float *row; /* [LINEAR_F8_BLOCK, n_in] */
    uint32_t n_row, first_out;
};

static void add_rows(struct slab *slab, const struct tensor *tensor,
                     uint32_t first_row, uint32_t n_row)
{
    const size_t n_in = slab->to->n_in;
    const struct linear_f8_shape shape = {slab->to->n_in, slab->to->n_out};

    for (uint32_t i = 0; i < n_row; i++) {
        tensor_read_f32(tensor, (first_row + i) * n_in, n_in,
                        slab->row + slab->n_row++ * n_in);
        if (slab->n_row < LINEAR_F8_BLOCK &&
            slab->first_out + slab->n_row < slab->to->n_out)
            continue;
        linear_f8_pack(slab->to->panel, shape, slab->first_out, slab->n_row,
                       slab->row);
        slab->first_out += slab->n_row;
        slab->n_row = 0;
    }
}

static enum status pack_f8(const struct weight_source *source,
                           const char *prefix, const struct weight_part *part,
                           size_t n_part, struct linear *out)
{
    struct slab slab = {.to = out,
                        .row = weights_room((size_t)LINEAR_F8_BLOCK *
                                            out->n_in * sizeof(float))};
    const struct tensor *tensor;
    enum status st = slab.row ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;

    for (size_t i = 0; i < n_part && !st; i++) {
        st = find_part(source->file, prefix, &part[i], out->n_in, &tensor);
        for (uint32_t g = 0; g < part[i].n_group && !st; g++)
            add_rows(&slab, tensor, part[i].first + g * part[i].stride,
                     part[i].n_each);
    }
    free(slab.row);
    return st;
}

static enum status pack_parts(const struct weight_source *source,
                              const char *prefix,
                              const struct weight_part *part, size_t n_part,
                              struct linear *out)
{
    const struct tensor *tensor;
    uint32_t first_out = 0;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < n_part && !st; i++) {
        st = find_part(source->file, prefix, &part[i], out->n_in, &tensor);
        if (!st)
            st = pack_part(tensor, &part[i], first_out, out);
        first_out += weight_part_rows(&part[i], 1);
    }
    return st;
}

static const enum linear_type TYPE[N_WEIGHT_FORMAT] = {
    [WEIGHT_BF16] = LINEAR_BF16,
    [WEIGHT_W8] = LINEAR_W8,
    [WEIGHT_W8A8] = LINEAR_W8A8,
    [WEIGHT_F8] = LINEAR_F8,
};

enum status weights_linear(const struct weight_source *source,
                           const char *prefix, const struct weight_part *part,
                           size_t n_part, uint32_t n_in, struct linear *out)
{
    enum linear_type type = LINEAR_BF16;
    const struct tensor *tensor;
    enum status st;

    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < n_part; i++) {
        st = find_part(source->file, prefix, &part[i], n_in, &tensor);
        if (st)
            return st;
        if (tensor->type != TENSOR_BF16)
            type = LINEAR_F32;
    }
    if (source->format != WEIGHT_AUTO)
        type = TYPE[source->format];
    st = linear_init(n_in, weight_part_rows(part, n_part), type,
                     source->arithmetic, out);
    if (!st && type == LINEAR_F8)
        st = pack_f8(source, prefix, part, n_part, out);
    else if (!st)
        st = pack_parts(source, prefix, part, n_part, out);
    safetensors_forget(source->file);
    if (!st)
        st = linear_settle(out, source->rooms);
    if (!st)
        st = linear_move(out, source->device);
    if (st) {
        linear_release(out);
        memset(out, 0, sizeof(*out));
    }
    return st;
}

enum status weights_floats(const struct weight_source *source,
                           const char *prefix, const char *name, uint32_t n_dim,
                           const uint64_t *dim, float **out)
{
    char whole[WEIGHTS_NAME_SIZE];
    const struct tensor *tensor;
    uint64_t n = 1;
    enum status st;

    join(prefix, name, whole);
    st = safetensors_need(source->file, whole, n_dim, dim, &tensor);
    if (st)
        return st;
    for (uint32_t i = 0; i < n_dim; i++)
        n *= dim[i];
    *out = weights_room(n * sizeof(float));
    if (*out)
        tensor_read_f32(tensor, 0, n, *out);
    safetensors_forget(source->file);
    return *out ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;
}

enum status weights_move(const struct weight_source *source, size_t n,
                         float **floats)
{
    float *host = *floats;
    void *moved = NULL;
    enum status st;

    if (!source->device)
        return STATUS_OK;
    st = device_take(source->device, n * sizeof(float), &moved);
    if (!st)
        device_write(source->device, moved, host, n * sizeof(float));
    free(host);
    *floats = moved;
    return st;
}

enum status weights_norm(const struct weight_source *source, const char *prefix,
                         const char *name, uint32_t n, bool has_unit_offset,
                         float **out)
{
    const uint64_t dim[1] = {n};
    const enum status st = weights_floats(source, prefix, name, 1, dim, out);

    if (st)
        return st;
    for (uint32_t i = 0; i < n && has_unit_offset; i++)
        (*out)[i] = 1.0f + (*out)[i];
    return weights_move(source, n, out);
}
