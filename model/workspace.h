#ifndef MODEL_WORKSPACE_H
#define MODEL_WORKSPACE_H
/* What a pass works in, and where it stands: for forward.c, which runs it, and
 * piece.c, which cuts it. */
#include "model/batch.h"
#include "model/graph.h"
#include "model/head.h"
#include "model/state_cap.h"
#include "model/tracks.h"
#include "model/view.h"

/*
 * Where a pass stands: half layers in order, mixer then mlp, then the head.
 * Of the last mlp only rows that come to the head are computed. A half goes
 * through its rows in pieces, from norm to residual: no piece reads another's,
 * but for what a mixer remembers of earlier rows.
 */
struct pass {
    struct batch batch;
    uint32_t
        half; /* under way: 2 x layer, + 1 for its mlp; 2 x n_layer: head */
    uint32_t row, end;          /* its piece: rows [row, end); none: equal */
    struct mixer_cursor cursor; /* in the piece */
    bool is_under_way;
    double done, all; /* estimated multiply-adds */
};

struct workspace {
    const struct model *model;
    struct pass pass;
    uint32_t max_row, max_span, max_logit;
    size_t work_floats; /* of a row */
    uint64_t piece_fma;
    size_t bytes;
    /* Of steps that a device may record: without tops, and with them, as they
     * ask for other things. */
    uint64_t owner[2];
    /* Where operators work, the model's device or the host: */
    float *residual;         /* [max_row, hidden], as is normed */
    float *normed;           /* what the layer's half reads */
    uint16_t *rounded;       /* the same rounded rows, or NULL */
    float *work;             /* mixer's or mlp's; never both */
    float *logit;            /* [max_logit, n_vocab], on the host another
                                HEAD_MEASURED behind them */
    float *taken;            /* the logits where the host reads them; without a
                                device the same memory */
    struct tops *tops;       /* [max_logit] of the logits; NULL without a
                                device that can find them, as is: */
    struct tops *taken_tops; /* where the host reads them */
    struct cause cause;      /* why the newest pass failed, or OK */
    uint64_t *position;      /* [max_row] */
    struct strips strips;    /* the order of the pass's rows */
    struct span *span;       /* [max_span] the parts that lie in a piece */
    void *span_work;         /* [max_span][MIXER_SPAN_WORK_BYTES] */
    struct view_room views;
    struct state_cap_count capped; /* heads' states that passes scaled down */
    struct head head;
    struct tracks tracks;
};

static inline uint32_t n_half(const struct model *model)
{
    return 2 * model->config.n_layer;
}

/* Of which each piece meets only some: an mlp made of experts. */
static inline bool half_has_experts(const struct model *model, uint32_t half)
{
    return half < n_half(model) && half % 2 && model->layer[half / 2].mlp.moe;
}
#endif
