/*
 * One step of the model over the rows of a batch. Order per layer, fixed for
 * every caller: norm, mixer (adds to the residual), norm, mlp (adds to the
 * residual); then norm and head for the rows whose logits are wanted. Rows meet
 * only inside mixers, and there only rows of one span.
 */
#include "model/graph.h"
#include "model/pass.h"
#include "model/weights.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/*
 * Where a pass stands: half layers in order, mixer then mlp, then the head.
 * Of the last mlp only rows whose logits are wanted are computed.
 */
struct pass {
    struct batch batch;
    uint32_t half; /* next: 2 x layer, + 1 for its mlp; 2 x n_layer: head */
    bool is_under_way;
};

struct workspace {
    const struct model *model;
    struct pass pass;
    uint32_t max_row, max_span, max_logit;
    size_t bytes;
    float *residual;    /* [max_row, hidden], as is normed */
    float *normed;      /* what the layer's half reads */
    float *work;        /* mixer's or mlp's; never both */
    float *logit;       /* [max_logit, n_vocab] */
    uint64_t *position; /* [max_row] */
    void *span_work;    /* [max_span][MIXER_SPAN_WORK_BYTES] */
};

static size_t work_floats(const struct model *model)
{
    size_t most = mlp_row_floats(&model->config);

    for (uint32_t i = 0; i < model->config.n_layer; i++)
        if (model->layer[i].plan.row_floats > most)
            most = model->layer[i].plan.row_floats;
    return most;
}

/* Take n elements; a workspace is made of these only. */
static void *take(struct workspace *workspace, size_t n, size_t element)
{
    void *room = NULL;

    if (n > SIZE_MAX / 2 / element)
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "a workspace of %zu x %zu bytes", n, element);
    else
        room = weights_room(n * element);
    workspace->bytes += room ? n * element : 0;
    return room;
}

enum status workspace_create(const struct model *model, uint32_t max_row,
                             uint32_t max_span, uint32_t max_logit,
                             struct workspace **out)
{
    const struct config *c = &model->config;
    struct workspace *it = weights_room(sizeof(*it));

    assert(max_row && max_span && max_span <= max_row && max_logit <= max_row);
    if (!it)
        return STATUS_RESOURCE_EXHAUSTED;
    it->model = model;
    it->max_row = max_row;
    it->max_span = max_span;
    it->max_logit = max_logit;
    if (!(it->residual =
              take(it, (size_t)max_row * c->hidden, sizeof(float))) ||
        !(it->normed = take(it, (size_t)max_row * c->hidden, sizeof(float))) ||
        !(it->work = take(it, max_row * work_floats(model), sizeof(float))) ||
        !(it->logit =
              take(it, ((size_t)max_logit + 1) * c->n_vocab, sizeof(float))) ||
        !(it->position = take(it, max_row, sizeof(uint64_t))) ||
        !(it->span_work = take(it, max_span, MIXER_SPAN_WORK_BYTES))) {
        workspace_destroy(it);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *out = it;
    return STATUS_OK;
}

void workspace_destroy(struct workspace *workspace)
{
    if (!workspace)
        return;
    free(workspace->residual);
    free(workspace->normed);
    free(workspace->work);
    free(workspace->logit);
    free(workspace->position);
    free(workspace->span_work);
    free(workspace);
}

size_t workspace_bytes(const struct workspace *workspace)
{
    return workspace->bytes;
}

/* Our own mistakes only: what comes from outside was checked on its way. */
static void check_batch(const struct workspace *workspace,
                        const struct batch *batch)
{
    const struct model *model = workspace->model;
    uint32_t n_row = 0;

    assert(batch->n_row && batch->n_row <= workspace->max_row);
    assert(batch->n_span && batch->n_span <= workspace->max_span);
    assert(batch->n_logit <= workspace->max_logit);
    for (uint32_t i = 0; i < batch->n_row; i++)
        assert(batch->token[i] < model->config.n_vocab);
    for (uint32_t i = 0; i < batch->n_span; i++) {
        const struct span *span = &batch->span[i];

        assert(span->first_row == n_row && span->n_row);
        assert(span->position + span->n_row <= model->n_context);
        n_row += span->n_row;
    }
    assert(n_row == batch->n_row);
    for (uint32_t i = 0; i < batch->n_logit; i++)
        assert(batch->logit_row[i] < n_row &&
               (i == 0 || batch->logit_row[i - 1] < batch->logit_row[i]));
}

static void set_positions(struct workspace *workspace,
                          const struct batch *batch)
{
    for (uint32_t i = 0; i < batch->n_span; i++)
        for (uint32_t r = 0; r < batch->span[i].n_row; r++)
            workspace->position[batch->span[i].first_row + r] =
                batch->span[i].position + r;
}

static void norm_rows(struct workspace *workspace, struct pool *pool,
                      const float *weight, uint32_t n_row)
{
    const struct config *c = &workspace->model->config;

    workspace->model->backend->rms_norm(
        pool, &(struct norm_args){.y = workspace->normed,
                                  .y_stride = c->hidden,
                                  .x = workspace->residual,
                                  .x_stride = c->hidden,
                                  .weight = weight,
                                  .n_row = n_row,
                                  .n_group = 1,
                                  .dim = c->hidden,
                                  .eps = (float)c->rms_eps});
}

static void mix_rows(struct workspace *workspace, struct pool *pool,
                     const struct batch *batch, uint32_t i)
{
    const struct model *model = workspace->model;
    const struct layer *layer = &model->layer[i];

    norm_rows(workspace, pool, layer->mixer_norm, batch->n_row);
    layer->mixer->rows(layer->mixing, &(struct mixer_batch){
                                          .backend = model->backend,
                                          .pool = pool,
                                          .rope = &model->rope,
                                          .layer = i,
                                          .n_row = batch->n_row,
                                          .position = workspace->position,
                                          .span = batch->span,
                                          .n_span = batch->n_span,
                                          .x = workspace->normed,
                                          .residual = workspace->residual,
                                          .work = workspace->work,
                                          .span_work = workspace->span_work});
}

static void feed_rows(struct workspace *workspace, struct pool *pool,
                      const struct layer *layer, uint32_t n_row)
{
    norm_rows(workspace, pool, layer->mlp_norm, n_row);
    mlp_rows(&layer->mlp,
             &(struct mlp_args){.backend = workspace->model->backend,
                                .pool = pool,
                                .x = workspace->normed,
                                .residual = workspace->residual,
                                .work = workspace->work,
                                .n_row = n_row});
}

/* Behind the last mixer no other row is read any more: keep the wanted ones. */
static void keep_logit_rows(struct workspace *workspace,
                            const struct batch *batch)
{
    const size_t hidden = workspace->model->config.hidden;

    for (uint32_t i = 0; i < batch->n_logit; i++)
        if (batch->logit_row[i] != i)
            memcpy(workspace->residual + i * hidden,
                   workspace->residual + batch->logit_row[i] * hidden,
                   hidden * sizeof(float));
}

static void head_rows(struct workspace *workspace, struct pool *pool,
                      uint32_t n_row)
{
    const struct model *model = workspace->model;

    norm_rows(workspace, pool, model->final_norm, n_row);
    model->backend->linear(
        pool, &(struct linear_args){.y = workspace->logit,
                                    .y_stride = model->config.n_vocab,
                                    .x = workspace->normed,
                                    .x_stride = model->config.hidden,
                                    .n_row = n_row,
                                    .w = &model->head});
}

void pass_begin(struct workspace *workspace, const struct batch *batch)
{
    assert(!workspace->pass.is_under_way);
    check_batch(workspace, batch);
    set_positions(workspace, batch);
    workspace->pass = (struct pass){.batch = *batch, .is_under_way = true};
}

static void embed_rows(struct workspace *workspace, struct pool *pool)
{
    const struct model *model = workspace->model;
    const struct batch *batch = &workspace->pass.batch;

    model->backend->embed(pool,
                          &(struct embed_args){.y = workspace->residual,
                                               .token = batch->token,
                                               .table = model->embedding,
                                               .type = model->embedding_type,
                                               .n_row = batch->n_row,
                                               .dim = model->config.hidden});
}

/* The next half layer, or the head; true when that was the last. */
static bool run_half(struct workspace *workspace, struct pool *pool)
{
    const struct model *model = workspace->model;
    const struct batch *batch = &workspace->pass.batch;
    const uint32_t half = workspace->pass.half++,
                   n_layer = model->config.n_layer;

    if (half == 0)
        embed_rows(workspace, pool);
    if (half == 2 * n_layer) {
        head_rows(workspace, pool, batch->n_logit);
        return true;
    }
    if (half % 2 == 0) {
        mix_rows(workspace, pool, batch, half / 2);
        return half / 2 + 1 == n_layer && batch->n_logit == 0;
    }
    if (half / 2 + 1 < n_layer) {
        feed_rows(workspace, pool, &model->layer[half / 2], batch->n_row);
    } else {
        keep_logit_rows(workspace, batch);
        feed_rows(workspace, pool, &model->layer[half / 2], batch->n_logit);
    }
    return false;
}

bool pass_run(struct workspace *workspace, struct pool *pool,
              const struct clock *clock, uint64_t until_us)
{
    assert(workspace->pass.is_under_way);
    while (!run_half(workspace, pool))
        if (until_us != UINT64_MAX && clock->now_us(clock) >= until_us)
            return false;
    workspace->pass.is_under_way = false;
    return true;
}

bool pass_is_under_way(const struct workspace *workspace)
{
    return workspace->pass.is_under_way;
}

const float *pass_logits(const struct workspace *workspace)
{
    return workspace->logit;
}

const float *model_forward(const struct model *model, struct pool *pool,
                           struct workspace *workspace,
                           const struct batch *batch)
{
    assert(workspace->model == model);
    pass_begin(workspace, batch);
    (void)pass_run(workspace, pool, NULL, UINT64_MAX);
    return workspace->logit;
}
