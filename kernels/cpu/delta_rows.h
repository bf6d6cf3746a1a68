#ifndef KERNELS_CPU_DELTA_ROWS_H
#define KERNELS_CPU_DELTA_ROWS_H
/* What a k-head with its v-heads reads of a span's rows of q, k and v: where
 * they are or, if they are raw, convolved by the thread that needs them, so
 * that they never leave its caches. */
#include "kernels/cpu/conv.h"

struct delta_source {
    const struct delta_args *args;
    struct conv_args conv; /* if args->conv */
    struct conv_span span;
};

/* Row 0 is the first one that was asked for. */
struct delta_rows {
    const float *at;
    size_t stride;
};

/* q, k and v of one k-head and its v-heads. */
struct delta_columns {
    const float *at[3]; /* in row 0 of the batch */
    uint32_t n[3];
};

static inline struct delta_columns delta_columns(const struct delta_args *a,
                                                 size_t k_head)
{
    const struct delta_shape s = a->shape;
    const uint32_t n_v = s.n_v_head / s.n_k_head * s.d_v;

    return (struct delta_columns){
        {a->q + k_head * s.d_k, a->k + k_head * s.d_k, a->v + k_head * n_v},
        {s.d_k, s.d_k, n_v}};
}

static inline struct delta_source delta_source(const struct delta_args *a,
                                               const struct delta_span *span)
{
    const struct delta_shape s = a->shape;

    return (struct delta_source){
        .args = a,
        .conv = {.x = a->q,
                 .x_stride = a->qkv_stride,
                 .weight = a->conv,
                 .n_channel = 2 * s.n_k_head * s.d_k + s.n_v_head * s.d_v,
                 .width = a->conv_width},
        .span = {span->first_row, span->n_row, span->state.tail},
    };
}

/* n floats, padded to whole vectors. */
static inline size_t delta_row_floats(uint32_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

/* Rows [t, t + n_row) of the span, the n columns that begin at `from` in row 0
 * of the batch; room: for as many rows of delta_row_floats(n). */
static inline struct delta_rows delta_rows(const struct delta_source *source,
                                           const float *from, uint32_t n,
                                           uint32_t t, uint32_t n_row,
                                           float *room)
{
    const struct delta_args *a = source->args;
    const size_t row = (size_t)source->span.first_row + t;
    uint32_t channel;

    if (!a->conv)
        return (struct delta_rows){from + row * a->qkv_stride, a->qkv_stride};
    channel = (uint32_t)(from - a->q);
    CONV_NAME(conv_piece)
    (&(struct conv_piece){.args = &source->conv,
                          .span = &source->span,
                          .from = t,
                          .to = t + n_row,
                          .first = channel,
                          .end = channel + n,
                          .y = room,
                          .y_stride = delta_row_floats(n)});
    return (struct delta_rows){room, delta_row_floats(n)};
}

/* After the last row of the span: what the convolution of the next will read.
 */
static inline void delta_keep_tail(const struct delta_source *source,
                                   size_t k_head)
{
    const struct delta_args *a = source->args;
    const struct delta_columns columns = delta_columns(a, k_head);

    for (uint32_t i = 0; i < 3 && a->conv; i++) {
        const uint32_t first = (uint32_t)(columns.at[i] - a->q);

        CONV_NAME(conv_keep)
        (&source->conv, &source->span, first, first + columns.n[i]);
    }
}
#endif
