/*
 * Softmax attention with grouped KV heads: partial rotary embedding, QK-norm
 * and output gate as the config says. The projections are one product with the
 * outputs  q | gate | k | v ; where a checkpoint interleaves query and gate per
 * head (Qwen3.5), its rows are taken apart at load. Keys are stored after
 * QK-norm and before rotation.
 */
#include "model/mixer.h"
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

static struct attend_shape shape_of(const struct config *config)
{
    return (struct attend_shape){.n_head = config->n_head,
                                 .n_kv_head = config->n_kv_head,
                                 .d_head = config->d_head};
}

static void plan(const struct config *config, struct mixer_plan *out)
{
    const struct attend_shape shape = shape_of(config);
    const struct fused fused = fused_of(shape, config->has_output_gate);
    const size_t n_q = (size_t)shape.n_head * shape.d_head;

    *out = (struct mixer_plan){
        .block_bytes = kv_block_floats(shape) * sizeof(float),
        .row_floats = fused.stride + row_stride(n_q),
        .row_flops = 2.0 * (double)config->hidden * (double)(fused.width + n_q),
        .past_flops = 4.0 * (double)n_q,
    };
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
    free(layer->q_norm);
    free(layer->k_norm);
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
    it->shape = shape_of(config);
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

/* q is normed and rotated, k and v go to the blocks, out gets the heads. */
static void attend(const struct mixer_layer *layer,
                   const struct mixer_batch *batch, struct fused at,
                   float *fused, float *out)
{
    const struct backend *backend = batch->backend;
    const struct attend_shape shape = layer->shape;
    struct attend_span *span = batch->span_work;

    static_assert(sizeof(*span) <= MIXER_SPAN_WORK_BYTES, "span fits");
    for (uint32_t i = 0; i < batch->n_span; i++)
        span[i] = (struct attend_span){
            .first_row = batch->span[i].first_row,
            .n_row = batch->span[i].n_row,
            .position = batch->span[i].position,
            .block = batch->span[i].layer[batch->layer].block};
    backend->rope(batch->pool, &(struct rope_args){.x = fused + at.q,
                                                   .x_stride = at.stride,
                                                   .position = batch->position,
                                                   .n_row = batch->n_row,
                                                   .n_head = shape.n_head,
                                                   .d_head = shape.d_head,
                                                   .table = batch->rope});
    backend->kv_append(batch->pool,
                       &(struct kv_append_args){.shape = shape,
                                                .k = fused + at.k,
                                                .v = fused + at.v,
                                                .k_stride = at.stride,
                                                .v_stride = at.stride,
                                                .span = span,
                                                .n_span = batch->n_span});
    backend->attend(
        batch->pool,
        &(struct attend_args){.shape = shape,
                              .out = out,
                              .out_stride = row_stride((size_t)layer->out.n_in),
                              .q = fused + at.q,
                              .q_stride = at.stride,
                              .table = batch->rope,
                              .scale = layer->scale,
                              .span = span,
                              .n_span = batch->n_span});
}

static void rows(const struct mixer_layer *layer,
                 const struct mixer_batch *batch)
{
    const struct backend *backend = batch->backend;
    const struct fused at = fused_of(layer->shape, layer->has_gate);
    const uint32_t hidden = layer->in.n_in, n_q = layer->out.n_in;
    const size_t out_stride = row_stride(n_q);
    float *fused = batch->work, *out = batch->work + batch->n_row * at.stride;

    backend->linear(batch->pool, &(struct linear_args){.y = fused,
                                                       .y_stride = at.stride,
                                                       .x = batch->x,
                                                       .x_stride = hidden,
                                                       .n_row = batch->n_row,
                                                       .w = &layer->in});
    norm_heads(layer, batch, fused + at.q, at.stride, layer->shape.n_head,
               layer->q_norm);
    norm_heads(layer, batch, fused + at.k, at.stride, layer->shape.n_kv_head,
               layer->k_norm);
    attend(layer, batch, at, fused, out);
    if (layer->has_gate)
        backend->gate(batch->pool, &(struct gate_args){.y = out,
                                                       .y_stride = out_stride,
                                                       .gate = fused + at.gate,
                                                       .gate_stride = at.stride,
                                                       .n_row = batch->n_row,
                                                       .dim = n_q});
    backend->linear_add(batch->pool,
                        &(struct linear_args){.y = batch->residual,
                                              .y_stride = hidden,
                                              .x = out,
                                              .x_stride = out_stride,
                                              .n_row = batch->n_row,
                                              .w = &layer->out});
}

const struct mixer mixer_softmax = {
    .name = "softmax",
    .plan = plan,
    .bind = bind,
    .release = release,
    .bytes = bytes,
    .rows = rows,
};
