#include "model/head.h"

#include "kernels/device.h"
#include "kernels/room.h"
#include "model/graph.h"
#include "model/surprise.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t hidden_of(const struct head *it)
{
    return it->model->config.hidden;
}

/* ------------------------------------------------------------------- room */

static size_t gathered_bytes(const struct model *model, uint32_t max_row)
{
    return model->device
               ? 0
               : (size_t)max_row * model->config.hidden * sizeof(float);
}

size_t head_bytes(const struct model *model, uint32_t max_row)
{
    return max_row *
               (3 * sizeof(uint32_t) + 2 * sizeof(float *) + sizeof(float)) +
           gathered_bytes(model, max_row);
}

enum status head_init(struct head *head, const struct model *model,
                      float *residual, uint32_t max_row)
{
    struct head it = {.model = model, .residual = residual, .max_row = max_row};
    const size_t gathered = gathered_bytes(model, max_row);

    if (!(it.kept = weights_room(max_row * sizeof(*it.kept))) ||
        !(it.from = weights_room((size_t)2 * max_row * sizeof(*it.from))) ||
        !(it.row = weights_room(max_row * sizeof(*it.row))) ||
        !(it.token = weights_room(max_row * sizeof(*it.token))) ||
        !(it.surprise = weights_room(max_row * sizeof(*it.surprise))) ||
        (gathered && !(it.gathered = weights_room(gathered)))) {
        head_release(&it);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *head = it;
    return STATUS_OK;
}

void head_release(struct head *head)
{
    free(head->kept);
    free(head->from);
    free(head->row);
    free(head->token);
    free(head->surprise);
    free(head->gathered);
    memset(head, 0, sizeof(*head));
}

enum status head_take(const struct model *model, size_t n, float **out,
                      size_t *bytes)
{
    size_t n_all = n;
    void *room = NULL;
    enum status st = STATUS_OK;

    if (model->device) {
        st = device_take(model->device, n * sizeof(float), &room);
    } else {
        n_all += (size_t)HEAD_MEASURED * model->config.n_vocab;
        room = room_take(n_all * sizeof(float));
        if (room)
            memset(room, 0, n * sizeof(float));
        else
            st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                             "no memory for %zu logits", n_all);
    }
    if (!st)
        *bytes += n_all * sizeof(float);
    *out = room;
    return st;
}

/* ------------------------------------------------------------------ states */

/* The next layer from i on that keeps by surprise, of a session that does. */
static uint32_t next_layer(const struct head *it, uint32_t i)
{
    const struct config *c = &it->model->config;

    while (i < c->n_layer && c->layer[i] != LAYER_SOFTMAX)
        i++;
    return i;
}

static bool is_measured(const struct head *it, const struct span *span)
{
    return span->policy && span->policy->index == INDEX_SURPRISE &&
           next_layer(it, 0) < it->model->config.n_layer;
}

/* What row `row` of the batch was measured as, if it is the one at *at; the
 * session's first token is not. */
static float surprise_of(const struct head *it, uint32_t row, uint32_t *at)
{
    return *at < it->n_measured && it->row[*at] == row ? it->surprise[(*at)++]
                                                       : 0.0f;
}

/* One layer of a session whose rows lie at kept[first_kept ..]. */
static void tell(const struct head *it, const struct span *span, void *state,
                 uint32_t first_measured, uint32_t first_kept)
{
    const size_t hidden = hidden_of(it);
    uint32_t at = first_measured;

    for (uint32_t r = 0; r < span->n_row; r++) {
        const uint32_t row = span->first_row + r;

        surprise_tell(span->policy, state,
                      (struct surprised){span->position + r,
                                         it->batch->token[row],
                                         surprise_of(it, row, &at)});
    }
    memcpy(surprise_last(state),
           it->residual + (first_kept + span->n_row - 1) * hidden,
           hidden * sizeof(float));
}

void head_finish(struct head *it)
{
    const uint32_t n_layer = it->model->config.n_layer;
    uint32_t measured = 0, kept = 0;

    for (uint32_t s = 0; s < it->batch->n_span && !it->is_plain; s++) {
        const struct span *span = &it->batch->span[s];
        const uint32_t end = span->first_row + span->n_row;

        if (is_measured(it, span))
            for (uint32_t i = next_layer(it, 0); i < n_layer;
                 i = next_layer(it, i + 1))
                tell(it, span, span->layer[i].state, measured, kept);
        while (measured < it->n_measured && it->row[measured] < end)
            measured++;
        while (kept < it->n_kept && it->kept[kept] < end)
            kept++;
    }
}

/* -------------------------------------------------------------------- rows */

/* The next row that goes on is `row`, of this span; it is measured unless it
 * is the session's first. */
static void add_measured(struct head *it, const struct span *span, uint32_t row)
{
    const struct layer_memory *memory = &span->layer[next_layer(it, 0)];
    const float *before = row > span->first_row
                              ? it->residual + (it->n_kept - 1) * hidden_of(it)
                              : surprise_last(memory->state);

    if (row == span->first_row && span->position == 0)
        return;
    it->from[it->n_logit + it->n_measured] = before;
    it->row[it->n_measured] = row;
    it->token[it->n_measured++] = it->batch->token[row];
}

void head_begin(struct head *it, const struct batch *batch)
{
    uint32_t l = 0;

    it->batch = batch;
    it->n_kept = it->n_measured = 0;
    it->n_logit = batch->n_logit;
    it->is_plain = true;
    for (uint32_t s = 0; s < batch->n_span; s++) {
        const struct span *span = &batch->span[s];
        const bool is_all = is_measured(it, span);

        it->is_plain &= !is_all;
        for (uint32_t r = 0; r < span->n_row; r++) {
            const uint32_t row = span->first_row + r;
            const bool is_wanted =
                l < batch->n_logit && batch->logit_row[l] == row;

            if (is_wanted)
                it->from[l++] = it->residual + it->n_kept * hidden_of(it);
            if (is_all)
                add_measured(it, span, row);
            if (is_wanted || is_all)
                it->kept[it->n_kept++] = row;
        }
    }
}

void head_keep(const struct head *it)
{
    const size_t hidden = hidden_of(it);

    for (uint32_t i = 0; i < it->n_kept; i++)
        if (it->kept[i] != i)
            device_copy(it->model->device, it->residual + i * hidden,
                        it->residual + it->kept[i] * hidden,
                        hidden * sizeof(float));
}

uint32_t head_rows(const struct head *it)
{
    return it->n_logit + it->n_measured;
}

uint32_t head_end(const struct head *it, uint32_t row, uint32_t end)
{
    const uint32_t from = row > it->n_logit ? row : it->n_logit;

    if (it->is_plain)
        return end;
    end = end < row + it->max_row ? end : row + it->max_row;
    return end < from + HEAD_MEASURED ? end : from + HEAD_MEASURED;
}

const float *head_read(const struct head *it, uint32_t row, uint32_t end)
{
    const size_t hidden = hidden_of(it);

    if (it->is_plain) /* they lie there */
        return it->residual + row * hidden;
    for (uint32_t i = row; i < end; i++)
        memcpy(it->gathered + (i - row) * hidden, it->from[i],
               hidden * sizeof(float));
    return it->gathered;
}

/* Where the logits of a row lie; those that are measured lie there for a piece
 * alone. */
static size_t place_of(const struct head *it, uint32_t row)
{
    return row < it->n_logit ? row : it->n_logit;
}

static void measure(const struct head *it, struct pool *pool,
                    const struct head_piece *piece)
{
    const uint32_t first = piece->row > it->n_logit ? piece->row : it->n_logit;
    const uint32_t n_vocab = it->model->config.n_vocab;

    if (first >= piece->end)
        return;
    it->model->backend->surprise(
        pool, &(struct surprise_args){
                  .surprise = it->surprise + (first - it->n_logit),
                  .token = it->token + (first - it->n_logit),
                  .logit = piece->logit + (size_t)it->n_logit * n_vocab,
                  .logit_stride = n_vocab,
                  .n_row = piece->end - first,
                  .n = n_vocab});
}

void head_run(struct head *it, struct pool *pool,
              const struct head_piece *piece)
{
    const struct model *model = it->model;
    const size_t n_vocab = model->config.n_vocab;

    model->backend->linear(
        pool, &(struct linear_args){
                  .y = piece->logit + place_of(it, piece->row) * n_vocab,
                  .y_stride = n_vocab,
                  .x = piece->x,
                  .x_stride = model->config.hidden,
                  .n_row = piece->end - piece->row,
                  .w = &model->head,
                  .x_rounded =
                      linear_rounds(&model->head) ? piece->x_rounded : NULL});
    measure(it, pool, piece);
}
