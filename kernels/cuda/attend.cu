/*
 * The operators kv_append and attend: which kernels a call needs.
 *
 * Spans of many rows and spans of few go different ways to the same bits, so
 * the threshold between them is free. While a decode step is recorded every
 * span counts as few, since the way of many has grids that depend on
 * positions. first_block and end_block are not looked at: calls are for all
 * blocks. Where a span has places (memory policies), the kernels are those that
 * look for them.
 */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attend_few.cuh"
#include "kernels/cuda/attend_list.cuh"
#include "kernels/cuda/attend_many.cuh"
#include "kernels/cuda/attend_sm80.cuh"
#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/way.h"

#include <assert.h>

/*
 * Spans of a launch. Under a memory policy a prompt has hundreds, of few rows
 * each; they come at once as long as the parts of their chains are likely to
 * stay in the L2 cache.
 */
#define SPAN_MAX MANY_SPANS
#define SPAN_MOST 1024u
#define PARTS_BYTES ((size_t)64 << 20)
/*
 * Packed rows of a span that count as few. The way of few reads the past once
 * for every 16 packed rows, the way of many has one CTA for 128 of them and a
 * KV head: a span by itself would leave most of the GPU idle. An
 * estimate; no sweep over thresholds has been timed.
 */
#define FEW_PACKED_MAX 32u
#define FEW_PACKED_ALONE_MAX 128u
/*
 * With places, and so many spans and KV heads that a CTA for each leaves few
 * SMs idle. One H100, 50 blocks a span, 32 packed rows: half the time of the
 * way of few from 64 on, 0.9 at 32; with 128 packed rows 0.6 to 0.7 of the way
 * of many, with 256 1.0 (256 dims) and 1.2 (128).
 */
#define LIST_PACKED_MAX 128u
#define LIST_TILE_MIN 32u

/*
 * Write a block's new keys (blockIdx.y < n_kv_head) or values of one head. A
 * block entered at its first token is filled with zeros behind the rows, so
 * that what is multiplied by a weight of zero later is always finite.
 */
template <int D>
static __global__ void append(const __grid_constant__ struct kv_append_args a,
                              const struct attend_span *spans)
{
    launch_begin();
    const struct attend_span &span = spans[blockIdx.z];
    uint64_t b = span.position / KV_BLOCK + blockIdx.x;
    uint64_t end = span.position + span.n_row;
    if (b * KV_BLOCK >= end)
        return;
    uint32_t n_kv_head = a.shape.n_kv_head, d_head = a.shape.d_head;
    uint32_t head = blockIdx.y % n_kv_head;
    bool is_key = blockIdx.y < n_kv_head;
    size_t stride = is_key ? a.k_stride : a.v_stride;
    const float *from = (is_key ? a.k : a.v) + (size_t)head * d_head;
    unsigned char *to =
        (unsigned char *)span.block[b] + blockIdx.y * (size_t)D * 128;

    for (uint32_t i = threadIdx.x; i < 64 * D / 8; i += blockDim.x) {
        uint32_t j = i / (D / 8), e = i % (D / 8) * 8;
        uint64_t t = b * KV_BLOCK + j;
        bool is_new = t >= span.position && t < end;
        if (!is_new && (t < end || b * KV_BLOCK < span.position))
            continue;
        uint4 x = {0, 0, 0, 0};
        if (is_new && e < d_head) {
            size_t row = span.first_row + (t - span.position);
            const float *y = from + row * stride + e;
            x = {bf16_pair(y[0], y[1]), bf16_pair(y[2], y[3]),
                 bf16_pair(y[4], y[5]), bf16_pair(y[6], y[7])};
        }
        *(uint4 *)(to + tile_at(j, e, 64)) = x;
    }
}

static void append_launch(cudaStream_t stream, const struct kv_append_args *a,
                          const struct attend_span *span, uint32_t n_span,
                          uint32_t n_block)
{
    dim3 grid(n_block, 2 * a->shape.n_kv_head, n_span);

    switch (attend_padded(a->shape.d_head)) {
    case 64:
        launch_early_on(stream, append<64>, grid, 256, *a, span);
        break;
    case 128:
        launch_early_on(stream, append<128>, grid, 256, *a, span);
        break;
    default:
        launch_early_on(stream, append<256>, grid, 256, *a, span);
        break;
    }
}

void cuda_kv_append(struct gpu *gpu, const struct kv_append_args *args)
{
    assert(args->shape.d_head % 8 == 0 && args->shape.d_head <= ATTEND_DIM_MAX);
    for (uint32_t first = 0; first < args->n_span; first += SPAN_MAX) {
        uint32_t n = args->n_span - first, n_row = 0;
        n = n < SPAN_MAX ? n : SPAN_MAX;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t n_row_of = args->span[first + i].n_row;
            n_row = n_row_of > n_row ? n_row_of : n_row;
        }
        const struct attend_span *span = (const struct attend_span *)gpu_stage(
            gpu, args->span + first, n * sizeof(struct attend_span));
        /* So many blocks may n_row rows touch, wherever they begin. */
        uint32_t n_block = (n_row + KV_BLOCK - 2) / KV_BLOCK + 1;
        if (gpu_is_replaying(gpu))
            continue;
        if (args->shape.kv == KV_INT8)
            append_int8(gpu, args, span, n, n_block);
        else
            append_launch(gpu_stream(gpu), args, span, n, n_block);
    }
}

/* The largest of the spans of a launch. */
struct extent {
    uint32_t n_row;
    uint64_t n_key;
};

static void extent_add(struct extent *extent, const struct attend_span *span)
{
    uint64_t n_key = span->position + span->n_row;

    extent->n_row = span->n_row > extent->n_row ? span->n_row : extent->n_row;
    extent->n_key = n_key > extent->n_key ? n_key : extent->n_key;
}

static void launch_few(struct gpu *gpu, const struct attend_frame *frame,
                       const struct attend_span *span, uint32_t n_span)
{
    struct extent extent = {0, 0};

    for (uint32_t i = 0; i < n_span; i++)
        extent_add(&extent, &span[i]);
    struct few_call call = {
        .frame = *frame, .n_span = n_span, .n_sm = (uint32_t)gpu_n_sm(gpu)};
    call.span = (const struct attend_span *)gpu_stage(gpu, span,
                                                      n_span * sizeof(*span));
    if (gpu_is_replaying(gpu))
        return;
    if (gpu_is_recording(gpu))
        extent.n_key = gpu_block_bound(gpu) * KV_BLOCK;
    uint32_t n_packed = extent.n_row * frame->group;
    call.n_row = n_packed > FEW_ROWS ? 2 * FEW_ROWS : FEW_ROWS;
    call.n_tile = (n_packed + call.n_row - 1) / call.n_row;
    call.n_chain = (uint32_t)((extent.n_key + ATTEND_CHAIN - 1) / ATTEND_CHAIN);
    call.part = (float *)gpu_scratch(gpu, few_part_bytes(&call));
    attend_few(gpu_stream(gpu), &call);
}

static void launch_many(struct gpu *gpu, const struct attend_shape *shape,
                        const struct attend_frame *frame,
                        struct attend_span *span, uint32_t n_span)
{
    struct {
        struct many_span span[SPAN_MAX];
        uint32_t turn[MANY_TURNS];
    } lists;
    struct extent extent = {0, 0};
    size_t at = 0;

    for (uint32_t i = 0; i < n_span; i++) {
        extent_add(&extent, &span[i]);
        lists.span[i] = {.k_at = at};
        at += many_k_bytes(frame, span[i].position + span[i].n_row);
    }
    uint64_t n_tile =
        (uint64_t)many_tiles(*frame, extent.n_row) * n_span * frame->n_kv_head;
    uint32_t n_sm = (uint32_t)gpu_n_sm(gpu) / MANY_CTA * MANY_CTA;
    struct many_call call = {.frame = *frame,
                             .n_span = n_span,
                             .n_row_max = extent.n_row,
                             .n_key_max = extent.n_key,
                             .n_cta = n_tile < n_sm ? (uint32_t)n_tile : n_sm,
                             .sum_at = at};
    uint64_t n_block = wide_n_block(gpu, extent.n_key);
    size_t wide = (wide_bytes(shape, n_span, n_block) + 1023) / 1024 * 1024;
    unsigned char *scratch = (unsigned char *)gpu_scratch(
        gpu, wide + at + many_sum_bytes(frame, call.n_cta));
    call.scratch = scratch + wide;
    attend_widen(gpu, shape, span, n_span, n_block, scratch);
    for (uint32_t i = 0; i < n_span; i++)
        lists.span[i].span = span[i];
    for (uint32_t i = 0; i < frame->n_kv_head; i += many_heads(&call)) {
        struct many_range heads = {i, i + many_heads(&call)};

        if (heads.end > frame->n_kv_head)
            heads.end = frame->n_kv_head;
        size_t n_turn = many_share(lists.turn, &call, lists.span, heads);
        call.span = (const struct many_span *)gpu_stage(
            gpu, &lists, sizeof(lists.span) + n_turn * sizeof(lists.turn[0]));
        call.turn = (const uint32_t *)(call.span + SPAN_MAX);
        if (i == 0)
            many_rotate(gpu_stream(gpu), &call);
        attend_many(gpu_stream(gpu), &call);
    }
}

static void launch_list(struct gpu *gpu, const struct attend_frame *frame,
                        const struct attend_span *span, uint32_t n_span)
{
    struct extent extent = {0, 0};
    uint32_t n_sm = (uint32_t)gpu_n_sm(gpu);

    for (uint32_t i = 0; i < n_span; i++)
        extent_add(&extent, &span[i]);
    struct list_call call = {
        .frame = *frame,
        .n_span = n_span,
        .n_tile = (extent.n_row * frame->group + LIST_ROWS - 1) / LIST_ROWS};
    uint64_t n_tile = (uint64_t)call.n_tile * n_span * frame->n_kv_head;

    call.n_cta = n_tile < n_sm ? (uint32_t)n_tile : n_sm;
    call.scratch =
        (unsigned char *)gpu_scratch(gpu, list_bytes(frame, call.n_cta));
    call.span = (const struct attend_span *)gpu_stage(gpu, span,
                                                      n_span * sizeof(*span));
    attend_list(gpu_stream(gpu), &call);
}

/* Which kernels a span goes to. */
enum kind { FEW, MANY, LIST, N_KIND };

static enum kind kind_of(const struct gpu *gpu,
                         const struct attend_frame *frame,
                         const struct attend_span *span, uint32_t n_span)
{
    uint32_t n_few = n_span == 1 ? FEW_PACKED_ALONE_MAX : FEW_PACKED_MAX;
    uint64_t n_packed = (uint64_t)span->n_row * frame->group;

    if (gpu_is_recording(gpu) || gpu_is_replaying(gpu))
        return FEW;
    if (span->place && !way_is_sm80() && n_packed <= LIST_PACKED_MAX &&
        n_span * frame->n_kv_head >= LIST_TILE_MIN)
        return LIST;
    return n_packed > n_few ? MANY : FEW;
}

/* Spans of one kind that are launched together. */
struct batch {
    enum kind kind;
    struct attend_span span[SPAN_MOST];
    uint32_t n, n_max; /* SPAN_MAX or SPAN_MOST */
    struct extent extent;
};

/* Whether it may have one more: parts of chains of few rows are most of what
 * lies between kernels. */
static bool has_room(const struct batch *batch, const struct attend_span *span,
                     const struct attend_frame *frame)
{
    struct extent extent = batch->extent;

    extent_add(&extent, span);
    size_t n_chain = (extent.n_key + ATTEND_CHAIN - 1) / ATTEND_CHAIN;
    size_t n_part = (batch->n + 1) * n_chain * extent.n_row * frame->group *
                    frame->n_kv_head;

    return batch->n < SPAN_MAX ||
           (batch->n < batch->n_max &&
            (batch->kind == LIST ||
             n_part * attend_padded(frame->d_head) * sizeof(float) <=
                 PARTS_BYTES));
}

static void launch_batch(struct gpu *gpu, const struct attend_shape *shape,
                         const struct attend_frame *frame, struct batch *batch)
{
    if (!batch->n)
        return;
    if (way_is_sm80())
        attend_sm80(gpu, shape, frame, batch->span, batch->n,
                    batch->kind == MANY);
    else if (batch->kind == MANY)
        launch_many(gpu, shape, frame, batch->span, batch->n);
    else if (batch->kind == LIST)
        launch_list(gpu, frame, batch->span, batch->n);
    else
        launch_few(gpu, frame, batch->span, batch->n);
    batch->n = 0;
    batch->extent = {0, 0};
}

static void launch(struct gpu *gpu, const struct attend_frame *frame,
                   const struct attend_args *args, enum kind kind)
{
    bool is_fixed = gpu_is_recording(gpu) || gpu_is_replaying(gpu);
    struct batch batch;

    batch.kind = kind;
    batch.n = 0;
    batch.n_max =
        frame->is_placed && kind != MANY && !is_fixed ? SPAN_MOST : SPAN_MAX;
    batch.extent = {0, 0};
    for (uint32_t i = 0; i < args->n_span; i++) {
        const struct attend_span *span = &args->span[i];

        assert(!span->place || frame->is_placed);
        if (kind_of(gpu, frame, span, args->n_span) != kind)
            continue;
        if (!has_room(&batch, span, frame))
            launch_batch(gpu, &args->shape, frame, &batch);
        extent_add(&batch.extent, span);
        batch.span[batch.n++] = *span;
    }
    launch_batch(gpu, &args->shape, frame, &batch);
}

/* In a recorded step, of which rows it is may change from run to run. */
static bool has_places(const struct gpu *gpu, const struct attend_args *args)
{
    if (gpu_is_recording(gpu) || gpu_is_replaying(gpu))
        return gpu_has_views(gpu);
    for (uint32_t i = 0; i < args->n_span; i++)
        if (args->span[i].place)
            return true;
    return false;
}

void cuda_attend(struct gpu *gpu, const struct attend_args *args)
{
    struct attend_shape shape = args->shape;
    struct attend_frame frame = {
        .out = args->out,
        .q = args->q,
        .out_stride = args->out_stride,
        .q_stride = args->q_stride,
        .rounded = args->out_rounded,
        .gate = args->gate,
        .gate_stride = args->gate_stride,
        .cosine = args->table->cos,
        .sine = args->table->sin,
        .n_pair = args->table->n_rot / 2,
        .n_kv_head = shape.n_kv_head,
        .group = shape.n_head / shape.n_kv_head,
        .d_head = shape.d_head,
        .factor = args->scale * 0x1.715476p+0f, /* log2(e) */
        .is_int8 = shape.kv == KV_INT8,
        .is_placed = has_places(gpu, args),
    };

    assert(shape.d_head % 8 == 0 && shape.d_head <= ATTEND_DIM_MAX);
    assert((uintptr_t)args->q % 16 == 0 && args->q_stride % 4 == 0);
    assert((uintptr_t)args->gate % 16 == 0 && args->gate_stride % 4 == 0);
    assert((uintptr_t)args->out % 16 == 0 && args->out_stride % 4 == 0);
    assert((uintptr_t)args->out_rounded % 16 == 0);
    assert(!(frame.is_int8 && frame.is_placed)); /* no memory policies */
    assert(frame.n_pair % 8 == 0 && 2 * frame.n_pair <= shape.d_head);
    launch(gpu, &frame, args, MANY);
    if (frame.is_placed)
        launch(gpu, &frame, args, LIST);
    launch(gpu, &frame, args, FEW);
}
