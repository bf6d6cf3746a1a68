#ifndef MODEL_VIEW_H
#define MODEL_VIEW_H
/*
 * Policies at work in a softmax layer: the rows of a batch become attention
 * spans that see what their session's policy says, and look-ups are made as
 * the steps of a session end. What a look-up needs of the queries so far and
 * what the last one chose is a part of the layer's state, so it is saved,
 * forked and restored as any other. Used by the thread that runs the pass.
 */
#include "model/mixer.h"

/* Room for what the rows see in one round of attention; a workspace has it. */
struct view_room {
    struct device *device;    /* where lists of blocks lie; NULL: the host */
    struct attend_span *span; /* [max_row] of this round; owned, as all here */
    uint32_t n_span;
    uint32_t n_seen, max_seen;
    void **block;            /* [max_seen] of all spans */
    struct key_place *place; /* [max_seen] */
    struct kv_view *view;    /* [max_row] what a device is asked for, or NULL;
                                what follows is NULL with a device: */
    uint32_t n_view;
    struct policy_view *seen; /* [max_seen] of one view */
    float *score;             /* of one look-up, by candidate */
    float *query;             /* [VIEW_QUERIES] of them, rotated */
    float *stat;              /* [VIEW_QUERIES, n_head, 2] */
};

/* Rows whose queries a look-up adds up, at least: those right before the step.
 * A question is rarely shorter; more would drown it. */
#define VIEW_QUERIES 16u

/*
 * For passes of max_row rows of sessions of n_context tokens.
 *   RESOURCE_EXHAUSTED  no memory
 */
struct view_extent {
    uint32_t max_row, n_head, d_head;
    uint64_t n_context;
    struct device *device; /* the model's */
};
MUST_CHECK enum status view_room_init(struct view_room *room,
                                      const struct view_extent *extent);
void view_room_release(struct view_room *room);
size_t view_room_bytes(const struct view_extent *extent);

/* Add to the plan of a layer what policies with such an index need of it. */
void view_plan(struct attend_shape shape, enum index_kind kind,
               struct mixer_plan *plan);

/* The index that lies behind a block as it may lie in RAM: [short_bytes]. */
void view_shorten(const struct mixer_plan *plan, const void *index, void *out);

/* Does a span of the batch see less than all? */
bool view_is_partial(const struct mixer_batch *batch);

/* How many blocks the last look-up chose, and which, in a layer's state of such
 * a plan in the host's memory; NULL: it has none. */
const uint32_t *view_pick(const struct mixer_plan *plan, const void *state);

/*
 * Set room->span for rows [first, end) of the batch, or for as many as there
 * is room for; returns behind the last. That is none only while blocks that
 * nobody needs any more are on their way to RAM. q are the queries before
 * their rotation, by row of the batch. Keys and values of the rows are in their
 * blocks. Every row comes once, in order.
 */
struct view_args {
    const struct mixer_batch *batch;
    struct attend_shape shape;
    float scale;
    const float *q;
    size_t q_stride;
};
uint32_t view_rows(const struct view_args *args, uint32_t first, uint32_t end);

/* KV blocks that the row there sees; policy NULL is full. Not of sirllm. */
uint64_t view_n_block(const struct policy *policy, uint64_t position);

/* Of a pass over all rows of the spans: what a device wants to know of what
 * they see. A step that is_repeatable stays so unless the rounds or the kinds
 * of its look-ups would depend on more than its number of rows. */
struct device_step;
void view_describe(const struct view_room *room, const struct span *span,
                   uint32_t n_span, struct device_step *step);

/* Are the blocks there that the spans see, and let go of them. */
bool view_is_ready(const struct mixer_batch *batch);
void view_release(const struct mixer_batch *batch);
#endif
