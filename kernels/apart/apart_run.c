#include "kernels/apart/apart_run.h"

#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void *apart_near(const void *device)
{
    if (!device)
        return NULL;
    assert((uintptr_t)device >= APART_SHIFT);
    return (void *)((uintptr_t)device - APART_SHIFT);
}

struct apart_array apart_array(enum apart_op op, union apart_args *args)
{
#define ARRAY(field, n)                                                        \
    (struct apart_array)                                                       \
    {                                                                          \
        (const void **)&(field), (n) * sizeof(*(field))                        \
    }
    switch (op) {
    case APART_embed:
        return ARRAY(args->embed.token, args->embed.n_row);
    case APART_rope:
        return ARRAY(args->rope.position, args->rope.n_row);
    case APART_kv_append:
        return ARRAY(args->kv_append.span, args->kv_append.n_span);
    case APART_kv_view:
        return ARRAY(args->kv_view.view, args->kv_view.n_view);
    case APART_attend:
        return ARRAY(args->attend.span, args->attend.n_span);
    case APART_conv:
        return ARRAY(args->conv.span, args->conv.n_span);
    case APART_delta:
        return ARRAY(args->delta.span, args->delta.n_span);
    case APART_state_cap:
        return ARRAY(args->state_cap.span, args->state_cap.n_span);
    case APART_expert:
        return ARRAY(args->expert.w, args->expert.n_expert);
    case APART_combine:
        return ARRAY(args->combine.by, 1);
    default:
        return (struct apart_array){.at = NULL};
    }
#undef ARRAY
}

/* From the end of a struct's field to the next field, or to the end. */
#define CLEAR(s, field, next)                                                  \
    memset((char *)&(s).field + sizeof((s).field), 0,                          \
           (size_t)((char *)&(next) - (char *)&(s).field) - sizeof((s).field))
#define CLEAR_LAST(s, field) CLEAR(s, field, *(&(s) + 1))

static void clear_span_padding(enum apart_op op, union apart_args *args)
{
    switch (op) {
    case APART_kv_append:
        CLEAR(args->kv_append, shape, args->kv_append.k);
        CLEAR_LAST(args->kv_append, n_span);
        return;
    case APART_kv_view:
        CLEAR(args->kv_view, shape, args->kv_view.table);
        CLEAR(args->kv_view, scale, args->kv_view.q);
        CLEAR(args->kv_view, n_view, args->kv_view.block);
        return;
    case APART_attend:
        CLEAR(args->attend, shape, args->attend.out);
        CLEAR(args->attend, scale, args->attend.span);
        CLEAR(args->attend, n_span, args->attend.first_block);
        return;
    case APART_kv_match:
        CLEAR(args->kv_match, shape, args->kv_match.table);
        return;
    case APART_conv:
        CLEAR(args->conv, n_span, args->conv.unit);
        CLEAR_LAST(args->conv, shape);
        return;
    case APART_state_cap:
        CLEAR(args->state_cap, shape, args->state_cap.span);
        return;
    case APART_delta:
        CLEAR(args->delta, shape, args->delta.out);
        CLEAR_LAST(args->delta, n_span);
        return;
    default:
        return;
    }
}

void apart_clear_padding(enum apart_op op, union apart_args *args)
{
    switch (op) {
    case APART_linear:
    case APART_linear_add:
        CLEAR(args->linear, n_row, args->linear.w);
        return;
    case APART_experts:
        CLEAR(args->experts, n_row, args->experts.row);
        return;
    case APART_ffn:
    case APART_ffn_add:
        CLEAR(args->ffn, n_row, args->ffn.gate);
        return;
    case APART_embed:
        CLEAR_LAST(args->embed, dim);
        return;
    case APART_rope:
        CLEAR(args->rope, d_head, args->rope.table);
        return;
    case APART_route:
        CLEAR(args->route.to, n_chosen, args->route.to.expert);
        CLEAR_LAST(args->route, is_renormalised);
        return;
    case APART_expert:
        CLEAR_LAST(args->expert, n_expert);
        return;
    case APART_combine:
        CLEAR_LAST(args->combine, dim);
        return;
    default:
        clear_span_padding(op, args);
        return;
    }
}

#define NEAR(field) ((field) = apart_near(field))

static struct linear near_linear(const struct linear *linear)
{
    struct linear it = *linear;

    NEAR(it.panel);
    return it;
}

/* Room for n of them; the device would have it on board. */
static void *room(size_t n, size_t size)
{
    void *it = calloc(n + 1, size);

    assert(it);
    return it;
}

/* Rounded rows as floats, in room of their own; NULL of none. */
static float *widened(const uint16_t *rounded, size_t n)
{
    float *x;

    if (!rounded)
        return NULL;
    x = room(n, sizeof(*x));
    rounded = apart_near(rounded);
    for (size_t i = 0; i < n; i++)
        x[i] = scalar_from_bf16(rounded[i]);
    return x;
}

static void round_row(uint16_t *to, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = scalar_to_bf16(x[i]);
}

/* ------------------------------------------------------------------ products
 */

static const struct backend *with_products(const struct backend *backend,
                                           const struct linear *w)
{
    return w->type == LINEAR_F8 ? &backend_ref : backend;
}

static void run_linear(const struct backend *backend, enum apart_op op,
                       struct linear_args a)
{
    const struct linear w = near_linear(a.w);
    float *x = widened(a.x_rounded, (size_t)a.n_row * w.n_in);

    NEAR(a.y);
    a.x_stride = x ? w.n_in : a.x_stride;
    a.x = x ? x : apart_near(a.x);
    a.w = &w;
    backend = with_products(backend, &w);
    if (op == APART_linear)
        backend->linear(NULL, &a);
    else
        backend->linear_add(NULL, &a);
    free(x);
}

static void run_ffn(const struct backend *backend, enum apart_op op,
                    struct ffn_args a)
{
    const struct linear gate = near_linear(a.gate), up = near_linear(a.up),
                        down = near_linear(a.down);
    float *x = widened(a.x_rounded, (size_t)a.n_row * gate.n_in);

    NEAR(a.y);
    a.x_stride = x ? gate.n_in : a.x_stride;
    a.x = x ? x : apart_near(a.x);
    a.gate = &gate;
    a.up = &up;
    a.down = &down;
    backend = with_products(backend, &gate);
    if (op == APART_ffn)
        backend->ffn(NULL, &a);
    else
        backend->ffn_add(NULL, &a);
    free(x);
}

static void run_expert(const struct backend *backend, struct expert_args a)
{
    struct linear *w = room(a.n_expert, sizeof(*w));

    NEAR(a.y);
    NEAR(a.x);
    NEAR(a.row);
    NEAR(a.first);
    for (uint32_t e = 0; e < a.n_expert; e++)
        w[e] = near_linear(&a.w[e]);
    a.w = w;
    with_products(backend, w)->expert(NULL, &a);
    free(w);
}

/* As what it stands for, one after the other. */
static void run_experts(const struct backend *backend, struct experts_args a)
{
    const uint32_t n_ff = a.down->n_in, n_in = a.gate_up->n_in;
    float *wide = room((size_t)a.n_place * 2 * n_ff, sizeof(*wide));
    float *act = room((size_t)a.n_place * n_ff, sizeof(*act));
    float *y = apart_near(a.y);
    float *x = widened(a.x_rounded, (size_t)a.n_row * n_in);
    struct expert_args each = {.y = apart_far(wide),
                               .y_stride = (size_t)2 * n_ff,
                               .x = apart_far(x),
                               .x_stride = n_in,
                               .row = a.row,
                               .first = a.first,
                               .w = a.gate_up,
                               .n_expert = a.n_expert,
                               .n_place = a.n_place};

    run_expert(backend, each);
    backend->swiglu(NULL,
                    &(struct swiglu_args){act, n_ff, wide, (size_t)2 * n_ff,
                                          a.n_place, n_ff});
    each.y = a.y;
    each.y_stride = a.y_stride;
    each.x = apart_far(act);
    each.x_stride = n_ff;
    each.row = NULL;
    each.w = a.down;
    run_expert(backend, each);
    if (a.out)
        run_ffn(backend, APART_ffn,
                (struct ffn_args){.y = apart_far(y + a.n_place * a.y_stride),
                                  .y_stride = a.y_stride,
                                  .x = apart_far(x),
                                  .x_stride = n_in,
                                  .n_row = a.n_row,
                                  .gate = a.gate,
                                  .up = a.up,
                                  .down = a.out});
    free(wide);
    free(act);
    free(x);
}

/* ---------------------------------------------------------------------- rows
 */

static struct norm_args near_norm(struct norm_args a)
{
    NEAR(a.y);
    NEAR(a.x);
    a.weight = apart_near(a.weight);
    return a;
}

/* Floats in room of their own where only rounded rows are wanted. */
static float *norm_room(struct norm_args *a)
{
    if (a->y)
        return NULL;
    a->y_stride = (size_t)a->n_group * a->dim;
    a->y = room(a->n_row * a->y_stride, sizeof(*a->y));
    return a->y;
}

static void round_norm(const struct norm_args *a)
{
    const size_t n = (size_t)a->n_group * a->dim;
    uint16_t *rounded = apart_near(a->y_rounded);

    for (size_t r = 0; r < a->n_row && rounded; r++)
        round_row(rounded + r * n, a->y + r * a->y_stride, n);
}

static void run_rms_norm(const struct backend *backend, struct norm_args a)
{
    float *y;

    a = near_norm(a);
    y = norm_room(&a);
    backend->rms_norm(NULL, &a);
    round_norm(&a);
    free(y);
}

static void run_gated_norm(const struct backend *backend,
                           struct gated_norm_args a)
{
    float *y;

    a.norm = near_norm(a.norm);
    y = norm_room(&a.norm);
    NEAR(a.z);
    backend->gated_norm(NULL, &a);
    round_norm(&a.norm);
    free(y);
}

static void run_swiglu(const struct backend *backend, struct swiglu_args a)
{
    NEAR(a.y);
    NEAR(a.x);
    backend->swiglu(NULL, &a);
}

static void run_embed(const struct backend *backend, struct embed_args a)
{
    NEAR(a.y);
    NEAR(a.table);
    backend->embed(NULL, &a);
}

static struct rope_table near_table(const struct rope_table *table)
{
    struct rope_table it = *table;

    NEAR(it.cos);
    NEAR(it.sin);
    return it;
}

static void run_rope(const struct backend *backend, struct rope_args a)
{
    const struct rope_table table = near_table(a.table);

    NEAR(a.x);
    a.table = &table;
    backend->rope(NULL, &a);
}

/* -------------------------------------------------------------------- mixers
 */

static const struct backend *with_blocks(const struct backend *backend,
                                         const struct attend_shape *shape)
{
    return shape->kv == KV_INT8 ? &backend_ref : backend;
}

/* A table of near blocks, to be freed. */
static void **near_blocks(void *const *table, uint64_t n)
{
    void *const *far = apart_near(table);
    void **block = room(n, sizeof(*block));

    for (uint64_t b = 0; b < n; b++)
        block[b] = apart_near(far[b]);
    return block;
}

/* The spans with tables of near blocks; free() them by free_spans(). */
static struct attend_span *near_spans(const struct attend_span *span,
                                      uint32_t n)
{
    struct attend_span *it = room(n, sizeof(*it));

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t n_block =
            (span[i].position + span[i].n_row - 1) / KV_BLOCK + 1;

        it[i] = span[i];
        it[i].place = apart_near(span[i].place);
        it[i].block = near_blocks(span[i].block, n_block);
    }
    return it;
}

static void free_spans(struct attend_span *span, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        free((void *)span[i].block);
    free(span);
}

static void run_kv_append(const struct backend *backend,
                          struct kv_append_args a)
{
    struct attend_span *span = near_spans(a.span, a.n_span);

    NEAR(a.k);
    NEAR(a.v);
    a.span = span;
    with_blocks(backend, &a.shape)->kv_append(NULL, &a);
    free_spans(span, a.n_span);
}

static void run_kv_view(const struct backend *backend, struct kv_view_args a)
{
    const struct rope_table table = near_table(a.table);

    NEAR(a.q);
    NEAR(a.block);
    NEAR(a.place);
    a.table = &table;
    apart_view(backend, &a);
}

static void run_kv_match(const struct backend *backend, struct kv_match_args a)
{
    const struct rope_table table = near_table(a.table);
    void **block = near_blocks(a.block, (a.n_key - 1) / KV_BLOCK + 1);

    NEAR(a.q);
    NEAR(a.match);
    a.block = block;
    a.table = &table;
    backend->kv_match(NULL, &a);
    free(block);
}

static void run_attend(const struct backend *backend, struct attend_args a)
{
    struct attend_span *span = near_spans(a.span, a.n_span);
    const struct rope_table table = near_table(a.table);

    NEAR(a.out);
    NEAR(a.out_rounded);
    NEAR(a.gate);
    NEAR(a.q);
    NEAR(a.stat);
    a.span = span;
    a.table = &table;
    with_blocks(backend, &a.shape)->attend(NULL, &a);
    free_spans(span, a.n_span);
}

static void run_conv(const struct backend *backend, struct conv_args a)
{
    struct conv_span *span = room(a.n_span, sizeof(*span));

    NEAR(a.y);
    NEAR(a.x);
    NEAR(a.weight);
    for (uint32_t i = 0; i < a.n_span; i++) {
        span[i] = a.span[i];
        NEAR(span[i].tail);
    }
    a.span = span;
    backend->conv(NULL, &a);
    free(span);
}

static void run_delta_gate(const struct backend *backend,
                           struct delta_gate_args a)
{
    NEAR(a.beta);
    NEAR(a.log_decay);
    NEAR(a.a);
    NEAR(a.b);
    NEAR(a.decay_scale);
    NEAR(a.dt_bias);
    backend->delta_gate(NULL, &a);
}

/* The spans with near states, to be freed. */
static struct delta_span *near_states(const struct delta_span *far, uint32_t n)
{
    struct delta_span *span = room(n, sizeof(*span));

    for (uint32_t i = 0; i < n; i++) {
        span[i] = far[i];
        NEAR(span[i].state.s);
        NEAR(span[i].state.ring_k);
        NEAR(span[i].state.ring_u);
        NEAR(span[i].state.ring_g);
    }
    return span;
}

static void run_delta(const struct backend *backend, struct delta_args a)
{
    struct delta_span *span = near_states(a.span, a.n_span);

    NEAR(a.out);
    NEAR(a.q);
    NEAR(a.k);
    NEAR(a.v);
    NEAR(a.beta);
    NEAR(a.log_decay);
    a.span = span;
    backend->delta(NULL, &a);
    free(span);
}

static void run_state_cap(const struct backend *backend,
                          struct state_cap_args a)
{
    struct delta_span *span = near_states(a.span, a.n_span);

    NEAR(a.n_scaled);
    a.span = span;
    backend->state_cap(NULL, &a);
    free(span);
}

/* ------------------------------------------------------------------- experts
 */

static struct routing near_routing(struct routing it)
{
    NEAR(it.expert);
    NEAR(it.weight);
    NEAR(it.place);
    NEAR(it.row);
    NEAR(it.first);
    return it;
}

static void run_route(const struct backend *backend, struct route_args a)
{
    a.to = near_routing(a.to);
    NEAR(a.logit);
    backend->route(NULL, &a);
}

static void run_combine(const struct backend *backend, struct combine_args a)
{
    const struct routing by = near_routing(*a.by);

    NEAR(a.y);
    NEAR(a.x);
    NEAR(a.shared);
    NEAR(a.shared_gate);
    a.by = &by;
    backend->combine(NULL, &a);
}

/* Backends of host memory need not have it. */
static void run_tops(const struct backend *backend, struct tops_args a)
{
    (void)backend;
    NEAR(a.to);
    NEAR(a.logit);
    ref_tops(NULL, &a);
}

void apart_run(const struct backend *backend, enum apart_op op,
               const union apart_args *args)
{
    switch (op) {
    case APART_linear:
    case APART_linear_add:
        run_linear(backend, op, args->linear);
        return;
    case APART_ffn:
    case APART_ffn_add:
        run_ffn(backend, op, args->ffn);
        return;
#define RUN(name)                                                              \
    case APART_##name:                                                         \
        run_##name(backend, args->name);                                       \
        return;
        RUN(rms_norm)
        RUN(gated_norm)
        RUN(swiglu)
        RUN(embed)
        RUN(rope)
        RUN(kv_append)
        RUN(kv_view)
        RUN(kv_match)
        RUN(attend)
        RUN(conv)
        RUN(delta_gate)
        RUN(delta)
        RUN(state_cap)
        RUN(route)
        RUN(expert)
        RUN(experts)
        RUN(combine)
        RUN(tops)
#undef RUN
    case APART_READ:
        break;
    }
    assert(!"a read is not run");
}
