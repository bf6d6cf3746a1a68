/*
 * Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464) as in
 * Qwen3.5 and Qwen3-Next: one product gives  q k v | z | b | a ; q k v pass a
 * short causal convolution with SiLU, then the gated delta rule, then a norm
 * per head with plain weight, gated by silu(z). The convolution keeps raw
 * projections, from before its SiLU.
 */
#include "kernels/state_cap.h"
#include "model/mixer.h"
#include "model/state_cap.h"
#include "model/weights.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mixer_layer {
    struct delta_shape shape;
    uint32_t conv_width;
    float eps;
    struct mixer_plan plan;
    struct linear in;   /* [qkv | z | b | a, hidden] */
    struct linear out;  /* [hidden, n_v_head * d_v] */
    float *conv;        /* [conv_width, n_channel]; owned, as the following */
    float *decay_scale; /* [n_v_head] -exp(A_log) */
    float *dt_bias;     /* [n_v_head] */
    float *norm;        /* [d_v] */
    struct device *device; /* in whose memory these lie */
};

/* Which field of the plan holds what; the order of the state's bytes. */
enum field { FIELD_S, FIELD_RING_K, FIELD_RING_U, FIELD_RING_G, FIELD_CONV };

/* Widths in floats, and the offsets of the parts in a row of the product. */
struct fused {
    size_t n_key, n_value, n_channel; /* q or k; v; q k v together */
    size_t z, b, a, width, stride;
};

static struct delta_shape shape_of(const struct config *config,
                                   enum arithmetic arithmetic)
{
    return (struct delta_shape){.n_k_head = config->n_k_head,
                                .n_v_head = config->n_v_head,
                                .d_k = config->d_k,
                                .d_v = config->d_v,
                                .arithmetic = arithmetic};
}

static struct fused fused_of(struct delta_shape shape)
{
    struct fused f = {.n_key = (size_t)shape.n_k_head * shape.d_k,
                      .n_value = (size_t)shape.n_v_head * shape.d_v};

    f.n_channel = 2 * f.n_key + f.n_value;
    f.z = f.n_channel;
    f.b = f.z + f.n_value;
    f.a = f.b + shape.n_v_head;
    f.width = f.a + shape.n_v_head;
    f.stride = row_stride(f.width);
    return f;
}

/* What the convolution leaves for the recurrence: rows of q k v, or in MMA rows
 * of v and, behind the last, unit rows (kernels/backend.h). Or nothing yet, if
 * the recurrence convolves by itself. */
struct convolved {
    float *y; /* rows */
    size_t stride;
    const float *q, *k, *v; /* in y; NULL: unit has q and k */
    uint16_t *unit;         /* or NULL */
    const float *conv;      /* weights, if q, k, v are yet to be convolved */
};

static struct convolved convolved_at(float *y, struct delta_shape shape,
                                     size_t n_row)
{
    const struct fused at = fused_of(shape);
    struct convolved it = {.y = y, .v = y};

    if (arithmetic_is_mma(shape.arithmetic)) {
        it.stride = row_stride(at.n_value);
        it.unit = (uint16_t *)(y + n_row * it.stride);
        return it;
    }
    it.stride = row_stride(at.n_channel);
    it.q = y;
    it.k = y + at.n_key;
    it.v = y + 2 * at.n_key;
    return it;
}

/* Of a row: enough for either. */
static size_t convolved_floats(struct fused fused)
{
    return row_stride(2 * fused.n_key) + row_stride(fused.n_value);
}

static size_t work_floats(struct fused fused, uint32_t n_v_head)
{
    return fused.stride + convolved_floats(fused) + row_stride(fused.n_value) +
           2 * row_stride(n_v_head);
}

/* Append a field behind those that are there, on a cache line. */
static void add_field(struct mixer_plan *plan, const char *name,
                      enum field_type type, uint32_t n_dim,
                      const uint32_t dim[4])
{
    struct mixer_field *field = &plan->field[plan->n_field++];
    size_t size = field_element_bytes(type);

    assert(plan->n_field <= MIXER_FIELD_MAX);
    *field = (struct mixer_field){.name = name,
                                  .type = type,
                                  .n_dim = n_dim,
                                  .offset = plan->state_bytes};
    for (uint32_t i = 0; i < n_dim; i++) {
        field->dim[i] = dim[i];
        size *= dim[i];
    }
    plan->state_bytes += (size + 63) / 64 * 64;
}

static void add_ring(struct mixer_plan *plan, const char *name,
                     enum field_type type, uint32_t axis, uint32_t n_dim,
                     const uint32_t *dim)
{
    add_field(plan, name, type, n_dim, dim);
    plan->field[plan->n_field - 1].ring_axis = axis;
}

/* As struct delta_state (kernels/backend.h) has them. */
static void add_rings(struct mixer_plan *plan, struct delta_shape s)
{
    if (s.arithmetic == ARITHMETIC_FP32) {
        add_ring(plan, "ring_k", FIELD_F32, 2, 3,
                 (uint32_t[4]){s.n_k_head, s.d_k, GRID});
        add_ring(plan, "ring_u", FIELD_F32, 1, 3,
                 (uint32_t[4]){s.n_v_head, GRID, s.d_v});
    } else if (arithmetic_is_mma(s.arithmetic)) {
        add_ring(plan, "ring_k", FIELD_BF16, 1, 3,
                 (uint32_t[4]){s.n_k_head, GRID, s.d_k});
        add_ring(plan, "ring_u", FIELD_BF16, 1, 3,
                 (uint32_t[4]){s.n_v_head, GRID, s.d_v + DELTA_BLOCK});
    } else {
        add_ring(plan, "ring_k", FIELD_BF16, 2, 4,
                 (uint32_t[4]){s.n_k_head, (s.d_k + 1) / 2, GRID, 2});
        add_ring(plan, "ring_u", FIELD_BF16, 1, 4,
                 (uint32_t[4]){s.n_v_head, GRID / 2, s.d_v, 2});
    }
    add_ring(plan, "ring_g", FIELD_F64, 1, 2, (uint32_t[4]){s.n_v_head, GRID});
}

/* For each v-head which S0 was copied, then the copies. */
static size_t made_of_bytes(struct delta_shape s)
{
    return (s.n_v_head * sizeof(uint64_t) + 63) / 64 * 64;
}

static size_t copy_bytes(struct delta_shape s)
{
    const size_t n_word = (size_t)s.n_v_head * s.d_k / 2 * s.d_v;

    if ((s.arithmetic != ARITHMETIC_PAIR && s.arithmetic != ARITHMETIC_TILE) ||
        s.d_k % 2 || s.d_v % DELTA_BLOCK)
        return 0;
    return made_of_bytes(s) + n_word * sizeof(uint32_t);
}

/*
 * Of the recurrence, per row and v-head: S^T k and S^T q, the fold's share,
 * and the records of half a chunk on average, each four products deep.
 */
static double recurrence_flops(struct delta_shape shape)
{
    const double state = 6.0 * shape.d_k * shape.d_v;
    const double ring = 4.0 * (0.5 * GRID) * ((double)shape.d_k + shape.d_v);

    return shape.n_v_head * (state + ring);
}

static void plan(const struct config *config, struct mixer_numerics numerics,
                 enum index_kind index, struct mixer_plan *out)
{
    const struct delta_shape s = shape_of(config, numerics.arithmetic);
    const struct fused fused = fused_of(s);

    (void)index; /* it has no blocks */
    *out = (struct mixer_plan){
        .row_floats = work_floats(fused, s.n_v_head),
        .row_flops = 2.0 * (double)config->hidden *
                         (double)(fused.width + fused.n_value) +
                     recurrence_flops(s) +
                     2.0 * (double)fused.n_channel * (double)config->conv_width,
        .copy_bytes = copy_bytes(s),
    };
    add_field(out, "s", FIELD_F32, 3, (uint32_t[4]){s.n_v_head, s.d_k, s.d_v});
    add_rings(out, s);
    add_field(out, "conv", FIELD_F32, 2,
              (uint32_t[4]){config->conv_width - 1, (uint32_t)fused.n_channel});
}

static enum status bind_apart(const struct config *config,
                              const struct weight_source *weights,
                              const char *prefix, struct mixer_layer *it)
{
    const struct fused fused = fused_of(it->shape);
    const struct weight_part in[4] = {
        weight_whole("linear_attn.in_proj_qkv.weight",
                     (uint32_t)fused.n_channel),
        weight_whole("linear_attn.in_proj_z.weight", (uint32_t)fused.n_value),
        weight_whole("linear_attn.in_proj_b.weight", it->shape.n_v_head),
        weight_whole("linear_attn.in_proj_a.weight", it->shape.n_v_head),
    };

    return weights_linear(weights, prefix, in, 4, config->hidden, &it->in);
}

/*
 * Qwen3-Next: each k-head's rows stand together with those of its v-heads, as
 * q k v z in one tensor and b a in another. Here they are taken apart.
 */
static enum status bind_grouped(const struct config *config,
                                const struct weight_source *weights,
                                const char *prefix, struct mixer_layer *it)
{
    const uint32_t n_k = it->shape.n_k_head, d_k = it->shape.d_k;
    const uint32_t n_each = it->shape.n_v_head / n_k;
    const uint32_t d_value = n_each * it->shape.d_v; /* of one k-head */
    const struct weight_part qkvz = {.name = "linear_attn.in_proj_qkvz.weight",
                                     .n_row = n_k * 2 * (d_k + d_value),
                                     .stride = 2 * (d_k + d_value),
                                     .n_group = n_k};
    const struct weight_part ba = {.name = "linear_attn.in_proj_ba.weight",
                                   .n_row = n_k * 2 * n_each,
                                   .n_each = n_each,
                                   .stride = 2 * n_each,
                                   .n_group = n_k};
    struct weight_part in[6] = {qkvz, qkvz, qkvz, qkvz, ba, ba};

    in[0].n_each = in[1].n_each = in[1].first = d_k;
    in[2].n_each = in[3].n_each = d_value;
    in[2].first = 2 * d_k;
    in[3].first = 2 * d_k + d_value;
    in[5].first = n_each;
    return weights_linear(weights, prefix, in, 6, config->hidden, &it->in);
}

static enum status bind_projections(const struct config *config,
                                    const struct weight_source *weights,
                                    const char *prefix, struct mixer_layer *it)
{
    const uint32_t n_value = it->shape.n_v_head * it->shape.d_v;
    const struct weight_part out =
        weight_whole("linear_attn.out_proj.weight", config->hidden);
    const enum status st = config->is_delta_grouped
                               ? bind_grouped(config, weights, prefix, it)
                               : bind_apart(config, weights, prefix, it);

    if (st)
        return st;
    return weights_linear(weights, prefix, &out, 1, n_value, &it->out);
}

/* The file has [n_channel, 1, width]; lanes want [width, n_channel]. */
static enum status bind_conv(const struct weight_source *weights,
                             const char *prefix, struct mixer_layer *it)
{
    const uint64_t n_channel = fused_of(it->shape).n_channel;
    const uint64_t dim[3] = {n_channel, 1, it->conv_width};
    float *raw = NULL;
    enum status st;

    st = weights_floats(weights, prefix, "linear_attn.conv1d.weight", 3, dim,
                        &raw);
    if (st)
        return st;
    it->conv = weights_room(n_channel * it->conv_width * sizeof(float));
    if (it->conv)
        for (uint64_t c = 0; c < n_channel; c++)
            for (uint32_t i = 0; i < it->conv_width; i++)
                it->conv[i * n_channel + c] = raw[c * it->conv_width + i];
    free(raw);
    return it->conv
               ? weights_move(weights, n_channel * it->conv_width, &it->conv)
               : STATUS_RESOURCE_EXHAUSTED;
}

static enum status bind_vectors(const struct weight_source *weights,
                                const char *prefix, struct mixer_layer *it)
{
    const uint64_t dim[1] = {it->shape.n_v_head};
    enum status st;

    st = weights_floats(weights, prefix, "linear_attn.A_log", 1, dim,
                        &it->decay_scale);
    if (st)
        return st;
    for (uint32_t h = 0; h < it->shape.n_v_head; h++)
        it->decay_scale[h] = (float)-exp((double)it->decay_scale[h]);
    st = weights_move(weights, it->shape.n_v_head, &it->decay_scale);
    if (!st)
        st = weights_floats(weights, prefix, "linear_attn.dt_bias", 1, dim,
                            &it->dt_bias);
    if (!st)
        st = weights_move(weights, it->shape.n_v_head, &it->dt_bias);
    if (st)
        return st;
    /* This norm alone has a plain weight, also where others mean 1 + w. */
    return weights_norm(weights, prefix, "linear_attn.norm.weight",
                        it->shape.d_v, false, &it->norm);
}

static void release(struct mixer_layer *layer)
{
    if (!layer)
        return;
    linear_release(&layer->in);
    linear_release(&layer->out);
    device_give(layer->device, layer->conv);
    device_give(layer->device, layer->decay_scale);
    device_give(layer->device, layer->dt_bias);
    device_give(layer->device, layer->norm);
    free(layer);
}

static enum status bind(const struct config *config,
                        const struct weight_source *weights, const char *prefix,
                        struct mixer_layer **out)
{
    struct mixer_layer *it;
    enum status st;

    if (config->conv_width > CONV_WIDTH_MAX)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "config.json: linear_conv_kernel_dim is %u, known: "
                           "1 to %u",
                           config->conv_width, CONV_WIDTH_MAX);
    it = weights_room(sizeof(*it));
    if (!it)
        return STATUS_RESOURCE_EXHAUSTED;
    it->shape = shape_of(config, weights->arithmetic);
    it->conv_width = config->conv_width;
    it->device = weights->device;
    it->eps = (float)config->rms_eps;
    plan(config, (struct mixer_numerics){weights->arithmetic, weights->kv},
         INDEX_NONE, &it->plan);
    st = bind_projections(config, weights, prefix, it);
    if (!st)
        st = bind_conv(weights, prefix, it);
    if (!st)
        st = bind_vectors(weights, prefix, it);
    if (st) {
        release(it);
        return st;
    }
    *out = it;
    return STATUS_OK;
}

static size_t bytes(const struct mixer_layer *layer)
{
    const struct fused fused = fused_of(layer->shape);
    const size_t n = fused.n_channel * layer->conv_width +
                     2 * (size_t)layer->shape.n_v_head + layer->shape.d_v;

    return linear_bytes(&layer->in) + linear_bytes(&layer->out) +
           n * sizeof(float);
}

/* Where the state's field lies in the memory of span i. */
static void *field_of(const struct mixer_layer *layer,
                      const struct mixer_batch *batch, uint32_t i,
                      enum field field)
{
    char *state = batch->span[i].layer[batch->layer].state;

    return state + layer->plan.field[field].offset;
}

static void convolve(const struct mixer_layer *layer,
                     const struct mixer_batch *batch, const float *fused,
                     struct convolved to)
{
    const struct fused at = fused_of(layer->shape);
    struct conv_span *span = batch->span_work;

    static_assert(sizeof(*span) <= MIXER_SPAN_WORK_BYTES, "span fits");
    for (uint32_t i = 0; i < batch->n_span; i++)
        span[i] =
            (struct conv_span){.first_row = batch->span[i].first_row,
                               .n_row = batch->span[i].n_row,
                               .tail = field_of(layer, batch, i, FIELD_CONV)};
    batch->backend->conv(
        batch->pool, &(struct conv_args){.y = to.y,
                                         .y_stride = to.stride,
                                         .x = fused,
                                         .x_stride = at.stride,
                                         .weight = layer->conv,
                                         .n_channel = (uint32_t)at.n_channel,
                                         .width = layer->conv_width,
                                         .span = span,
                                         .n_span = batch->n_span,
                                         .unit = to.unit,
                                         .shape = layer->shape});
}

/* Rows of a session from which on they are convolved where the recurrence needs
 * them, and pass through memory once. Of fewer the threads share the channels.
 */
#define LATE_ROWS 8u

static bool convolves_late(const struct mixer_batch *batch)
{
    return batch->backend->delta_convolves &&
           batch->n_row >= (uint64_t)LATE_ROWS * batch->n_span;
}

/* The rows as they are, for a recurrence that convolves by itself. */
static struct convolved raw_at(const struct mixer_layer *layer, float *fused,
                               float *y)
{
    const struct fused at = fused_of(layer->shape);

    return (struct convolved){.y = y,
                              .stride = at.stride,
                              .q = fused,
                              .k = fused + at.n_key,
                              .v = fused + 2 * at.n_key,
                              .conv = layer->conv};
}

static struct delta_state state_of(const struct mixer_layer *layer,
                                   const struct mixer_batch *batch, uint32_t i)
{
    char *copy = batch->span[i].layer[batch->layer].copy;
    struct delta_state state = {
        .s = field_of(layer, batch, i, FIELD_S),
        .ring_k = field_of(layer, batch, i, FIELD_RING_K),
        .ring_u = field_of(layer, batch, i, FIELD_RING_U),
        .ring_g = field_of(layer, batch, i, FIELD_RING_G),
        .tail = field_of(layer, batch, i, FIELD_CONV)};

    if (copy) {
        state.made_of = (uint64_t *)(void *)copy;
        state.copy = (uint32_t *)(void *)(copy + made_of_bytes(layer->shape));
    }
    return state;
}

/* What the n-th call of the operator brings; returns how many spans that are.
 * Without a cap the first one brings all. */
static uint32_t make_spans(const struct mixer_layer *layer,
                           const struct mixer_batch *batch, uint32_t n,
                           struct delta_span *out)
{
    uint32_t n_span = 0;

    static_assert(sizeof(*out) <= MIXER_SPAN_WORK_BYTES, "span fits");
    for (uint32_t i = 0; i < batch->n_span; i++) {
        const struct span *span = &batch->span[i];
        struct state_cap_part part = {.end = n == 0 ? span->n_row : 0};

        if (batch->state_cap > 0)
            part = state_cap_part(span->position, span->n_row, n);
        if (part.first < part.end)
            out[n_span++] =
                (struct delta_span){.first_row = span->first_row + part.first,
                                    .n_row = part.end - part.first,
                                    .position = span->position + part.first,
                                    .state = state_of(layer, batch, i)};
    }
    return n_span;
}

static void recur_once(const struct mixer_layer *layer,
                       const struct mixer_batch *batch, struct convolved from,
                       const float *gates, float *out, uint32_t n_span)
{
    const struct fused at = fused_of(layer->shape);

    batch->backend->delta(
        batch->pool,
        &(struct delta_args){.shape = layer->shape,
                             .out = out,
                             .out_stride = row_stride(at.n_value),
                             .q = from.q,
                             .k = from.k,
                             .v = from.v,
                             .qkv_stride = from.stride,
                             .unit = from.unit,
                             .conv = from.conv,
                             .conv_width = layer->conv_width,
                             .beta = gates,
                             .log_decay = gates + (size_t)batch->n_row *
                                                      layer->shape.n_v_head,
                             .span = batch->span_work,
                             .n_span = n_span});
}

/* Those of the first n_span spans. */
static void cap_states(const struct mixer_layer *layer,
                       const struct mixer_batch *batch, uint32_t n_span)
{
    if (n_span > 0) /* most steps wake nobody */
        batch->backend->state_cap(
            batch->pool, &(struct state_cap_args){.shape = layer->shape,
                                                  .span = batch->span_work,
                                                  .n_span = n_span,
                                                  .cap = batch->state_cap,
                                                  .n_scaled = batch->n_capped});
}

static void recur(const struct mixer_layer *layer,
                  const struct mixer_batch *batch, struct convolved from,
                  const float *gates, float *out)
{
    struct delta_span *span = batch->span_work;
    uint32_t n_span;

    for (uint32_t n = 0; (n_span = make_spans(layer, batch, n, span)); n++) {
        recur_once(layer, batch, from, gates, out, n_span);
        if (batch->state_cap > 0)
            cap_states(layer, batch, state_cap_due(span, n_span));
    }
}

/* out = norm(out) * silu(z) per head, then residual += out_proj(out); with
 * rounded rows between the two where there is room for them. */
static void finish(const struct mixer_layer *layer,
                   const struct mixer_batch *batch, const float *fused,
                   float *out, uint16_t *rounded)
{
    const struct backend *backend = batch->backend;
    const struct fused at = fused_of(layer->shape);
    const size_t stride = row_stride(at.n_value);

    backend->gated_norm(
        batch->pool,
        &(struct gated_norm_args){.norm = {.y = rounded ? NULL : out,
                                           .y_stride = stride,
                                           .x = out,
                                           .x_stride = stride,
                                           .weight = layer->norm,
                                           .n_row = batch->n_row,
                                           .n_group = layer->shape.n_v_head,
                                           .dim = layer->shape.d_v,
                                           .eps = layer->eps,
                                           .y_rounded = rounded},
                                  .z = fused + at.z,
                                  .z_stride = at.stride});
    backend->linear_add(batch->pool,
                        &(struct linear_args){.y = batch->residual,
                                              .y_stride = layer->out.n_out,
                                              .x = out,
                                              .x_stride = stride,
                                              .n_row = batch->n_row,
                                              .w = &layer->out,
                                              .x_rounded = rounded});
}

/* Nothing here grows with the past. */
static bool rows(const struct mixer_layer *layer,
                 const struct mixer_batch *batch, struct mixer_cursor *cursor)
{
    const struct backend *backend = batch->backend;
    const struct fused at = fused_of(layer->shape);
    const size_t n_row = batch->n_row;
    float *fused = batch->work;
    float *y = fused + n_row * at.stride;
    const struct convolved convolved =
        convolves_late(batch) ? raw_at(layer, fused, y)
                              : convolved_at(y, layer->shape, n_row);
    float *out = y + n_row * convolved_floats(at);
    float *gates = out + n_row * row_stride(at.n_value); /* beta, log_decay */

    backend->linear(batch->pool,
                    &(struct linear_args){.y = fused,
                                          .y_stride = at.stride,
                                          .x = batch->x,
                                          .x_stride = layer->in.n_in,
                                          .n_row = batch->n_row,
                                          .w = &layer->in,
                                          .x_rounded = linear_rounds(&layer->in)
                                                           ? batch->x_rounded
                                                           : NULL});
    if (!convolved.conv)
        convolve(layer, batch, fused, convolved);
    backend->delta_gate(batch->pool,
                        &(struct delta_gate_args){
                            .beta = gates,
                            .log_decay = gates + n_row * layer->shape.n_v_head,
                            .a = fused + at.a,
                            .b = fused + at.b,
                            .a_stride = at.stride,
                            .b_stride = at.stride,
                            .decay_scale = layer->decay_scale,
                            .dt_bias = layer->dt_bias,
                            .n_row = batch->n_row,
                            .n_v_head = layer->shape.n_v_head});
    recur(layer, batch, convolved, gates, out);
    /* What was convolved has been read, and leaves room. */
    finish(layer, batch, fused, out,
           mixer_rounds(batch, &layer->out) ? (uint16_t *)y : NULL);
    (void)cursor;
    return true;
}

const struct mixer mixer_delta = {
    .name = "delta",
    .plan = plan,
    .bind = bind,
    .release = release,
    .bytes = bytes,
    .rows = rows,
};
