#include "scheduler/lane.h"

#include "scheduler/engine_calls.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status lane_init(struct lane *lane, const struct model *model,
                      uint32_t max_request, uint32_t max_row)
{
    lane->max_request = max_request;
    lane->max_row = max_row;
    lane->request = calloc(max_request, sizeof(struct request *));
    lane->span = calloc(max_request, sizeof(*lane->span));
    lane->logit_row = calloc(max_request, sizeof(*lane->logit_row));
    lane->token = calloc(max_row, sizeof(*lane->token));
    lane->batch = (struct batch){.token = lane->token,
                                 .span = lane->span,
                                 .logit_row = lane->logit_row,
                                 .is_sampled = true};
    if (!lane->request || !lane->span || !lane->logit_row || !lane->token)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for batches of %u rows", max_row);
    return workspace_create(model, max_row, max_request, max_request,
                            &lane->workspace);
}

void lane_release(struct lane *lane)
{
    workspace_destroy(lane->workspace);
    free(lane->request);
    free(lane->span);
    free(lane->logit_row);
    free(lane->token);
    memset(lane, 0, sizeof(*lane));
}

bool lane_samples(const struct request *request, uint64_t end)
{
    return end == request->session->resident->tokens.n &&
           request->stage != EXCERPT_MATCH;
}

enum status lane_add(struct lane *lane, struct request *request,
                     uint32_t n_token)
{
    const struct resident *resident = request->session->resident;
    struct batch *batch = &lane->batch;
    uint64_t position = memory_position(resident->memory);
    enum status st;

    assert(batch->n_span < lane->max_request && !lane->is_under_way);
    assert(n_token && n_token <= lane->max_row - batch->n_row);
    st = memory_reserve(resident->memory, position + n_token);
    if (st)
        return st;
    memcpy(lane->token + batch->n_row, resident->tokens.id + position,
           n_token * sizeof(uint32_t));
    lane->request[batch->n_span] = request;
    lane->span[batch->n_span++] = (struct span){
        .first_row = batch->n_row,
        .n_row = n_token,
        .position = position,
        .layer = memory_layers(resident->memory),
        .policy = memory_policy(resident->memory),
        .source = memory_source(resident->memory),
        .match = request->stage == EXCERPT_MATCH ? &request->match : NULL};
    batch->n_row += n_token;
    if (lane_samples(request, position + n_token))
        lane->logit_row[batch->n_logit++] = batch->n_row - 1;
    return STATUS_OK;
}

void lane_begin(struct lane *lane)
{
    assert(lane->batch.n_span > 0);
    for (uint32_t i = 0; i < lane->batch.n_span; i++)
        lane->request[i]->is_in_pass = true;
    lane->is_under_way = true;
    lane->busy_us = 0;
    pass_begin(lane->workspace, &lane->batch);
}

bool lane_run(struct lane *lane, struct pool *pool, const struct clock *clock,
              const struct pass_slice *slice)
{
    const uint64_t start_us = clock->now_us(clock);

    assert(lane->is_under_way);
    lane->is_under_way = !pass_run(lane->workspace, pool, slice);
    lane->busy_us += clock->now_us(clock) - start_us;
    if (lane->is_under_way)
        return false;
    for (uint32_t i = 0; i < lane->batch.n_span; i++)
        lane->request[i]->is_in_pass = false;
    return true;
}

void lane_clear(struct lane *lane)
{
    lane->batch.n_row = lane->batch.n_span = lane->batch.n_logit = 0;
    lane->batch.n_layer = 0;
}
