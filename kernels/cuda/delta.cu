/*
 * The delta operator: spans of few rows go to one kernel, the others through
 * prepare and recur, some chunks of all of them at a time so that what lies
 * between the two kernels stays small.
 */
#include "kernels/cuda/delta.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/way.h"

#include <assert.h>

#define SEGMENT_TOKENS 32768u /* of all spans of a group together */

void delta_many_tiles(struct delta_many *many, size_t n_row)
{
    const struct delta_args *a = &many->args;
    struct tensor unit = {}, v = {};

    many->n_tile = many->n_chunk;
    if (way_is_sm80())
        return;
    if (many->n_tile > 2)
        many->n_tile = 2;
    unit.at = a->unit;
    unit.element = TENSOR_BF16;
    unit.n_column = unit_stride(a->shape);
    unit.row_bytes = unit.n_column * sizeof(*a->unit);
    v.at = a->v;
    v.element = TENSOR_F32;
    v.n_column = (size_t)a->shape.n_v_head * a->shape.d_v;
    v.row_bytes = a->qkv_stride * sizeof(*a->v);
    unit.n_row = v.n_row = n_row;
    unit.box_rows = v.box_rows = GRID;
    unit.is_swizzled = v.is_swizzled = true;
    tensor_map_encode(&unit, &many->unit);
    tensor_map_encode(&v, &many->v);
}

static uint32_t n_chunk_of(const struct delta_span *span)
{
    return (uint32_t)((span->position % GRID + span->n_row + GRID - 1) / GRID);
}

/* Spans of many rows, at most SPAN_GROUP_MAX of them. */
static void run_many(struct gpu *gpu, const struct delta_args *args,
                     const struct delta_span *span, uint32_t n_span)
{
    const struct delta_shape shape = args->shape;
    struct delta_many many = {};
    uint32_t n_chunk = 0;
    size_t n_row = 0, n_tile_bytes;

    many.args = *args;
    many.args.n_span = n_span;
    many.args.span =
        (const struct delta_span *)gpu_stage(gpu, span, n_span * sizeof(*span));
    for (uint32_t i = 0; i < n_span; i++) {
        const size_t end = (size_t)span[i].first_row + span[i].n_row;

        n_row = n_row > end ? n_row : end;
        if (n_chunk < n_chunk_of(&span[i]))
            n_chunk = n_chunk_of(&span[i]);
    }
    many.n_chunk = SEGMENT_TOKENS / GRID / n_span;
    if (many.n_chunk > n_chunk)
        many.n_chunk = n_chunk;
    delta_many_tiles(&many, n_row);
    n_tile_bytes = (size_t)n_span * many.n_tile * shape.n_k_head * 2 *
                   tile_bytes(shape.d_k);
    many.tile = (char *)gpu_scratch(
        gpu, n_tile_bytes + (size_t)n_span * many.n_chunk * shape.n_v_head *
                                sizeof(struct chunk_head));
    many.head = (struct chunk_head *)(many.tile + n_tile_bytes);
    if (gpu_is_replaying(gpu))
        return;
    for (; many.chunk < n_chunk; many.chunk += many.n_chunk) {
        delta_prepare(gpu, &many);
        delta_recur(gpu, &many);
    }
}

void cuda_delta(struct gpu *gpu, const struct delta_args *args)
{
    struct delta_args few = *args;
    struct delta_span group[SPAN_GROUP_MAX];
    const uint32_t n_few =
        delta_recur_fits(args->shape) ? DELTA_FEW : UINT32_MAX;
    uint32_t n_row = 0, n_group = 0;

    assert(cuda_delta_has(args->shape));
    for (uint32_t i = 0; i < args->n_span; i++) {
        const struct delta_span *span = &args->span[i];

        if (span->n_row <= n_few) {
            n_row = span->n_row > n_row ? span->n_row : n_row;
            continue;
        }
        group[n_group++] = *span;
        if (n_group == SPAN_GROUP_MAX) {
            run_many(gpu, args, group, n_group);
            n_group = 0;
        }
    }
    if (n_group)
        run_many(gpu, args, group, n_group);
    if (way_is_sm80())
        delta_pieces(gpu, args, n_few);
    if (!n_row || way_is_sm80())
        return;
    few.span = (const struct delta_span *)gpu_stage(
        gpu, args->span, args->n_span * sizeof(*args->span));
    if (!gpu_is_replaying(gpu))
        delta_few(gpu, &few, n_row);
}
