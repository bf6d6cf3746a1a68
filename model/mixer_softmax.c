/*
 * Softmax attention with grouped KV heads: partial rotary embedding, QK-norm
 * and output gate as the config says. The projections are one product with the
 * outputs  q | gate | k | v ; where a checkpoint interleaves query and gate per
 * head (Qwen3.5), its rows are taken apart at load. Keys are stored after
 * QK-norm and before rotation.
 */
#include "model/mixer.h"
#include "model/surprise.h"
#include "model/view.h"
#include "model/weights.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mixer_layer {
    struct attend_shape shape;
    bool has_gate;
    float eps, scale;
    struct linear in;  /* [q | gate | k | v, hidden] */
    struct linear out; /* [hidden, n_head * d_head] */
    float *q_norm;     /* [d_head] or NULL; owned, as is k_norm */
    float *k_norm;
    struct device *device; /* in whose memory they lie */
};

/* Offsets of the parts in a row of the fused product, in floats. */
struct fused {
    size_t q, gate, k, v, width, stride;
};

static struct fused fused_of(struct attend_shape shape, bool has_gate)
{
    const size_t n_q = (size_t)shape.n_head * shape.d_head;
    const size_t n_kv = (size_t)shape.n_kv_head * shape.d_head;
    struct fused f = {.gate = n_q};

    f.k = f.gate + (has_gate ? n_q : 0);
    f.v = f.k + n_kv;
    f.width = f.v + n_kv;
    f.stride = row_stride(f.width);
    return f;
}

static struct attend_shape shape_of(const struct config *config,
                                    struct mixer_numerics numerics)
{
    return (struct attend_shape){.n_head = config->n_head,
                                 .n_kv_head = config->n_kv_head,
                                 .d_head = config->d_head,
                                 .arithmetic = numerics.arithmetic,
                                 .kv = numerics.kv};
}

static void plan(const struct config *config, struct mixer_numerics numerics,
                 enum index_kind index, struct mixer_plan *out)
{
    const struct attend_shape shape = shape_of(config, numerics);
    const struct fused fused = fused_of(shape, config->has_output_gate);
    const size_t n_q = (size_t)shape.n_head * shape.d_head;

    *out = (struct mixer_plan){
        .block_bytes = kv_block_bytes(shape),
        .row_floats = fused.stride + row_stride(n_q) +
                      row_stride(2 * (size_t)shape.n_head) +
                      row_stride(n_q / 2),
        .row_flops = 2.0 * (double)config->hidden * (double)(fused.width + n_q),
        .past_flops = 4.0 * (double)n_q,
    };
    view_plan(shape, index, out);
    if (index == INDEX_SURPRISE)
        surprise_plan(config->hidden, out);
}

static enum status bind_projections(const struct config *config,
                                    const struct weight_source *weights,
                                    const char *prefix, struct mixer_layer *it)
{
    const uint32_t n_q = config->n_head * config->d_head;
    const uint32_t n_kv = config->n_kv_head * config->d_head;
    const uint32_t d = config->d_head;
    struct weight_part part[4];
    size_t n_part = 0;
    enum status st;

    if (config->has_output_gate) {
        struct weight_part q = {.name = "self_attn.q_proj.weight",
                                .n_row = 2 * n_q,
                                .n_each = d,
                                .stride = 2 * d,
                                .n_group = config->n_head};

        part[n_part++] = q;
        q.first = d;
        part[n_part++] = q;
    } else {
        part[n_part++] = weight_whole("self_attn.q_proj.weight", n_q);
    }
    part[n_part++] = weight_whole("self_attn.k_proj.weight", n_kv);
    part[n_part++] = weight_whole("self_attn.v_proj.weight", n_kv);
    st = weights_linear(weights, prefix, part, n_part, config->hidden, &it->in);
    if (st)
        return st;
    part[0] = weight_whole("self_attn.o_proj.weight", config->hidden);
    return weights_linear(weights, prefix, part, 1, n_q, &it->out);
}

static void release(struct mixer_layer *layer)
{
    if (!layer)
        return;
    linear_release(&layer->in);
    linear_release(&layer->out);
    device_give(layer->device, layer->q_norm);
    device_give(layer->device, layer->k_norm);
    free(layer);
}

static enum status bind(const struct config *config,
                        const struct weight_source *weights, const char *prefix,
                        struct mixer_layer **out)
{
    struct mixer_layer *it = weights_room(sizeof(*it));
    enum status st;

    if (!it)
        return STATUS_RESOURCE_EXHAUSTED;
    it->shape = shape_of(
        config, (struct mixer_numerics){weights->arithmetic, weights->kv});
    it->device = weights->device;
    it->has_gate = config->has_output_gate;
    it->eps = (float)config->rms_eps;
    it->scale = (float)(1.0 / sqrt((double)config->d_head));
    st = bind_projections(config, weights, prefix, it);
    if (!st && config->has_qk_norm)
        st = weights_norm(weights, prefix, "self_attn.q_norm.weight",
                          config->d_head, config->has_unit_offset, &it->q_norm);
    if (!st && config->has_qk_norm)
        st = weights_norm(weights, prefix, "self_attn.k_norm.weight",
                          config->d_head, config->has_unit_offset, &it->k_norm);
    if (st) {
        release(it);
        return st;
    }
    *out = it;
    return STATUS_OK;
}

static size_t bytes(const struct mixer_layer *layer)
{
    const size_t norm = layer->q_norm ? layer->shape.d_head : 0;

    return linear_bytes(&layer->in) + linear_bytes(&layer->out) +
           2 * norm * sizeof(float);
}

static void norm_heads(const struct mixer_layer *layer,
                       const struct mixer_batch *batch, float *x, size_t stride,
                       uint32_t n_head, const float *weight)
{
    if (!weight)
        return;
    batch->backend->rms_norm(batch->pool,
                             &(struct norm_args){.y = x,
                                                 .y_stride = stride,
                                                 .x = x,
                                                 .x_stride = stride,
                                                 .weight = weight,
                                                 .n_row = batch->n_row,
                                                 .n_group = n_head,
                                                 .dim = layer->shape.d_head,
                                                 .eps = layer->eps});
}

/* The parts of the work, one behind the other. */
struct work {
    struct fused at;
    float *fused, *out, *stat; /* [n_row] rows of the strides below */
    uint16_t *rounded;         /* [n_row] rows of n_q */
    size_t out_stride, stat_stride;
};

static struct work work_of(const struct mixer_layer *layer,
                           const struct mixer_batch *batch)
{
    struct work work = {.at = fused_of(layer->shape, layer->has_gate),
                        .out_stride = row_stride(layer->out.n_in),
                        .stat_stride =
                            row_stride(2 * (size_t)layer->shape.n_head)};

    work.fused = batch->work;
    work.out = work.fused + batch->n_row * work.at.stride;
    work.stat = work.out + batch->n_row * work.out_stride;
    work.rounded = (uint16_t *)(work.stat + batch->n_row * work.stat_stride);
    return work;
}

/* The parts of the spans that lie in rows [first, end); returns how many. */
static uint32_t clip_spans(const struct mixer_batch *batch, uint32_t first,
                           uint32_t end, struct attend_span *out)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < batch->n_span; i++) {
        const struct span *span = &batch->span[i];
        const uint32_t behind = span->first_row + span->n_row;
        const uint32_t from = span->first_row > first ? span->first_row : first;
        const uint32_t to = behind < end ? behind : end;

        if (from < to)
            out[n++] = (struct attend_span){
                .first_row = from,
                .n_row = to - from,
                .position = span->position + (from - span->first_row),
                .block = span->layer[batch->layer].block};
    }
    return n;
}

/* Does the host look up? It wants queries without a rotation, which go where
 * their results will be. A device is asked before they are rotated. */
static bool keeps_queries(const struct mixer_batch *batch)
{
    return view_is_partial(batch) && !batch->views->device;
}

static bool rotates_late(const struct mixer_batch *batch)
{
    return view_is_partial(batch) && batch->views->device;
}

static void keep_queries(const struct mixer_layer *layer,
                         const struct mixer_batch *batch)
{
    const struct work work = work_of(layer, batch);

    for (uint32_t r = 0; r < batch->n_row; r++)
        memcpy(work.out + r * work.out_stride,
               work.fused + r * work.at.stride + work.at.q,
               layer->out.n_in * sizeof(float));
}

/* Keys of all tokens so far against the row that is asked for, if it is here.
 */
static void match_keys(const struct mixer_layer *layer,
                       const struct mixer_batch *batch, const struct span *span)
{
    const struct work work = work_of(layer, batch);
    const struct key_match *asked = span->match;

    if (!asked || asked->layer != batch->layer ||
        asked->position < span->position ||
        asked->position - span->position >= span->n_row)
        return;
    const size_t row = span->first_row + (asked->position - span->position);
    batch->backend->kv_match(
        batch->pool, &(struct kv_match_args){
                         .shape = layer->shape,
                         .table = batch->rope,
                         .q = work.fused + row * work.at.stride + work.at.q,
                         .block = span->layer[batch->layer].block,
                         .n_key = asked->position + 1,
                         .match = asked->far ? asked->far : asked->match});
    if (asked->far)
        device_read(layer->device, asked->match, asked->far,
                    (asked->position + 1) * sizeof(*asked->match));
}

/* Queries of rows [first, end), whose keys are in their blocks. */
static void rotate(const struct mixer_layer *layer,
                   const struct mixer_batch *batch, uint32_t first,
                   uint32_t end)
{
    const struct work work = work_of(layer, batch);

    batch->backend->rope(
        batch->pool, &(struct rope_args){
                         .x = work.fused + first * work.at.stride + work.at.q,
                         .x_stride = work.at.stride,
                         .position = batch->position + first,
                         .n_row = end - first,
                         .n_head = layer->shape.n_head,
                         .d_head = layer->shape.d_head,
                         .table = batch->rope});
    for (uint32_t i = 0; i < batch->n_span && end == batch->n_row; i++)
        match_keys(layer, batch, &batch->span[i]);
}

/* Fused rows: q and k normed, q rotated unless that is for later, k and v also
 * in the blocks. */
static void project(const struct mixer_layer *layer,
                    const struct mixer_batch *batch)
{
    const struct backend *backend = batch->backend;
    const struct work work = work_of(layer, batch);
    const struct attend_shape shape = layer->shape;
    float *q = work.fused + work.at.q, *k = work.fused + work.at.k;
    const size_t stride = work.at.stride;
    struct attend_span *span = batch->span_work;

    static_assert(sizeof(*span) <= MIXER_SPAN_WORK_BYTES, "span fits");
    backend->linear(batch->pool,
                    &(struct linear_args){.y = work.fused,
                                          .y_stride = stride,
                                          .x = batch->x,
                                          .x_stride = layer->in.n_in,
                                          .n_row = batch->n_row,
                                          .w = &layer->in,
                                          .x_rounded = linear_rounds(&layer->in)
                                                           ? batch->x_rounded
                                                           : NULL});
    norm_heads(layer, batch, q, stride, shape.n_head, layer->q_norm);
    norm_heads(layer, batch, k, stride, shape.n_kv_head, layer->k_norm);
    if (keeps_queries(batch))
        keep_queries(layer, batch);
    backend->kv_append(batch->pool,
                       &(struct kv_append_args){
                           .shape = shape,
                           .k = k,
                           .v = work.fused + work.at.v,
                           .k_stride = stride,
                           .v_stride = stride,
                           .span = span,
                           .n_span = clip_spans(batch, 0, batch->n_row, span)});
    if (!rotates_late(batch))
        rotate(layer, batch, 0, batch->n_row);
}

/*
 * How many rows go through their past together, and how many blocks of it they
 * meet in one call. Fewer rows meet more blocks: taking up where the call
 * before stopped costs as much as a part of a block.
 */
#define BLOCKS_A_CALL 4u

static uint32_t choose_rows(const struct mixer_batch *batch, uint64_t block_fma,
                            uint32_t n_row)
{
    uint64_t n = batch->max_fma / (block_fma * BLOCKS_A_CALL);

    n = n / MIXER_ROWS * MIXER_ROWS;
    n = n < MIXER_ROWS ? MIXER_ROWS : n;
    return n < n_row ? (uint32_t)n : n_row;
}

static uint64_t choose_blocks(const struct mixer_batch *batch,
                              uint64_t block_fma, uint32_t n_row)
{
    uint64_t n = batch->max_fma / (block_fma * n_row);

    return n ? n : 1;
}

/* Make the views of rows [at->row, at->end), or of as many as there is room
 * for. */
static void view(const struct mixer_layer *layer,
                 const struct mixer_batch *batch, struct mixer_cursor *at)
{
    const struct work work = work_of(layer, batch);
    const bool is_kept = keeps_queries(batch);

    at->end = view_rows(
        &(struct view_args){.batch = batch,
                            .shape = layer->shape,
                            .scale = layer->scale,
                            .q = is_kept ? work.out : work.fused + work.at.q,
                            .q_stride =
                                is_kept ? work.out_stride : work.at.stride},
        at->row, at->end);
    if (rotates_late(batch))
        rotate(layer, batch, at->row, at->end);
}

/* Which rows come next, and what they see; false while that is not in RAM. */
static bool open_rows(const struct mixer_layer *layer,
                      const struct mixer_batch *batch, uint64_t block_fma,
                      struct mixer_cursor *at)
{
    if (!at->is_open) {
        at->end =
            at->row + choose_rows(batch, block_fma, batch->n_row - at->row);
        if (view_is_partial(batch))
            view(layer, batch, at);
        at->is_open = at->end > at->row;
    }
    at->is_waiting =
        !at->is_open || (view_is_partial(batch) && !view_is_ready(batch));
    return !at->is_waiting;
}

/* The spans of rows [at->row, at->end). */
static const struct attend_span *spans_of(const struct mixer_batch *batch,
                                          const struct mixer_cursor *at,
                                          uint32_t *out_n)
{
    if (!view_is_partial(batch)) {
        *out_n = clip_spans(batch, at->row, at->end, batch->span_work);
        return batch->span_work;
    }
    *out_n = batch->views->n_span;
    return batch->views->span;
}

/* They have seen all that they see; true when they were the last. */
static bool close_rows(const struct mixer_batch *batch, struct mixer_cursor *at)
{
    if (view_is_partial(batch))
        view_release(batch);
    at->block = 0;
    at->is_open = false;
    at->row = at->end;
    return at->row == batch->n_row;
}

/* What gates the heads, or NULL. */
static const float *gate_of(const struct mixer_layer *layer,
                            const struct mixer_batch *batch)
{
    const struct work work = work_of(layer, batch);

    return layer->has_gate ? work.fused + work.at.gate : NULL;
}

/* Where the heads go if the last product wants them rounded, or NULL. */
static uint16_t *rounded_of(const struct mixer_layer *layer,
                            const struct mixer_batch *batch)
{
    const struct work work = work_of(layer, batch);

    return mixer_rounds(batch, &layer->out) ? work.rounded : NULL;
}

/* A part of the attention; true when it was the last. */
static bool attend(const struct mixer_layer *layer,
                   const struct mixer_batch *batch, struct mixer_cursor *at)
{
    const struct work work = work_of(layer, batch);
    const uint64_t block_fma =
        (uint64_t)layer->shape.n_head * layer->shape.d_head * 2 * KV_BLOCK;
    const struct attend_span *span;
    uint64_t n_block = 0, first = at->block;
    uint32_t n_span;

    if (first == 0 && !open_rows(layer, batch, block_fma, at))
        return false;
    span = spans_of(batch, at, &n_span);
    for (uint32_t i = 0; i < n_span; i++) {
        uint64_t last = (span[i].position + span[i].n_row - 1) / KV_BLOCK;
        n_block = last + 1 > n_block ? last + 1 : n_block;
    }
    uint64_t n = choose_blocks(batch, block_fma, at->end - at->row);
    at->block = n < n_block - first ? first + n : n_block;
    /* All at once is said without a number, so that every such step of the same
     * rows is the same to a device. */
    const bool is_all = first == 0 && at->block == n_block;
    batch->backend->attend(
        batch->pool,
        &(struct attend_args){.shape = layer->shape,
                              .out = work.out,
                              .out_stride = work.out_stride,
                              .out_rounded = rounded_of(layer, batch),
                              .gate = gate_of(layer, batch),
                              .gate_stride = work.at.stride,
                              .q = work.fused + work.at.q,
                              .q_stride = work.at.stride,
                              .table = batch->rope,
                              .scale = layer->scale,
                              .span = span,
                              .n_span = n_span,
                              .first_block = first,
                              .end_block = is_all ? 0 : at->block,
                              .stat = work.stat,
                              .stat_stride = work.stat_stride});
    return at->block == n_block && close_rows(batch, at);
}

/* Multiply, add. */
static void finish(const struct mixer_layer *layer,
                   const struct mixer_batch *batch)
{
    const struct work work = work_of(layer, batch);

    batch->backend->linear_add(
        batch->pool,
        &(struct linear_args){.y = batch->residual,
                              .y_stride = layer->out.n_out,
                              .x = work.out,
                              .x_stride = work.out_stride,
                              .n_row = batch->n_row,
                              .w = &layer->out,
                              .x_rounded = rounded_of(layer, batch)});
}

enum stage { STAGE_PROJECT, STAGE_ATTEND, STAGE_FINISH };

static bool rows(const struct mixer_layer *layer,
                 const struct mixer_batch *batch, struct mixer_cursor *cursor)
{
    switch ((enum stage)cursor->stage) {
    case STAGE_PROJECT:
        project(layer, batch);
        cursor->stage = STAGE_ATTEND;
        return false;
    case STAGE_ATTEND:
        if (attend(layer, batch, cursor))
            cursor->stage = STAGE_FINISH;
        return false;
    case STAGE_FINISH:
        break;
    }
    finish(layer, batch);
    return true;
}

const struct mixer mixer_softmax = {
    .name = "softmax",
    .plan = plan,
    .bind = bind,
    .release = release,
    .bytes = bytes,
    .rows = rows,
};
