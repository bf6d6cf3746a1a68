#ifndef MODEL_HEAD_H
#define MODEL_HEAD_H
/*
 * Which rows come to the end of a pass. Behind the last mixer no row is read by
 * another, so only these go on: those whose logits are wanted and, of sessions
 * whose policy keeps by surprise, all. Each token of those is measured against
 * the logits of the row before it, which of a span's first row is one of an
 * earlier pass. What comes out is told to the session's states when the pass is
 * done.
 */
#include "model/model.h"

/* Rows measured together: their logits lie behind those that are wanted. */
#define HEAD_MEASURED 64u

struct head {
    const struct model *model; /* borrowed, as is residual */
    const struct batch *batch; /* of the pass, the pass's own */
    float *residual;           /* [max_row, hidden] of the workspace */
    uint32_t max_row;
    uint32_t n_kept, n_logit, n_measured;
    bool is_plain;  /* no session keeps by surprise: what goes on are the rows
                       whose logits are wanted */
    uint32_t *kept; /* [max_row] rows of the batch that go on, ascending */
    const float **from; /* [2 max_row] residuals of the head's rows: n_logit,
                           then n_measured */
    uint32_t *row;   /* [max_row] rows whose tokens are measured, ascending */
    uint32_t *token; /* [max_row] those */
    float *surprise; /* [max_row] and what comes out */
    float *gathered; /* [max_row, hidden]; NULL on a device, where there are
                        no policies */
};

/*
 * For passes of max_row rows, at most max_row of them with logits.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status head_init(struct head *head, const struct model *model,
                                 float *residual, uint32_t max_row);
void head_release(struct head *head);
size_t head_bytes(const struct model *model, uint32_t max_row);

/*
 * Room for n floats of logits, zero, and for those of HEAD_MEASURED rows behind
 * them, which only policies touch and a device does not have. Adds to *bytes.
 *   as device_take()
 */
MUST_CHECK enum status head_take(const struct model *model, size_t n,
                                 float **out, size_t *bytes);

/* A pass begins; of *batch, which stays. */
void head_begin(struct head *head, const struct batch *batch);

/* Row kept[i] of the residual goes to place i. */
void head_keep(const struct head *head);

/* Rows of the head; the end of a piece from `row` on that shall end at `end`;
 * and what it reads, one row behind the other. */
uint32_t head_rows(const struct head *head);
uint32_t head_end(const struct head *head, uint32_t row, uint32_t end);
const float *head_read(const struct head *head, uint32_t row, uint32_t end);

struct head_piece {
    const float *x; /* what was read, normed */
    const uint16_t *x_rounded;
    float *logit; /* head_take() */
    uint32_t row, end;
};
void head_run(struct head *head, struct pool *pool,
              const struct head_piece *piece);

/* All rows were measured. */
void head_finish(struct head *head);
#endif
