#include "model/tracks.h"

#include "model/piece.h"
#include "model/weights.h"

#include <stdbool.h>
#include <stdlib.h>

/* Of weights that a step meets. More would not stay in caches, and come from
 * memory for each track. */
#define TRACKS_WEIGHT_BYTES ((size_t)32 << 20)

/* Fewer rows are mostly weights, which all threads better read once. */
#define TRACK_ROWS (2 * GRID)

/* What the shortest track has of the longest one, at least: going apart gains
 * some percent as long as all do, and loses a wait where the first is done. */
#define EVEN_MIN 0.5

enum status tracks_init(struct workspace *workspace)
{
    const struct model *model = workspace->model;
    struct tracks *tracks = &workspace->tracks;
    const uint32_t n = workspace->max_span;

    /* Heads that a cap scales have one count, which one thread adds to. */
    if (model->device || model->state_cap > 0 || model->config.n_expert ||
        n < 2 || workspace->max_row < 2 * TRACK_ROWS ||
        model_step_bytes(model, 1) > TRACKS_WEIGHT_BYTES)
        return STATUS_OK;
    tracks->max = n < TRACKS_MAX ? n : TRACKS_MAX;
    tracks->track = weights_room(tracks->max * sizeof(*tracks->track));
    return tracks->track ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;
}

void tracks_release(struct tracks *tracks)
{
    free(tracks->track);
}

size_t tracks_bytes(const struct tracks *tracks)
{
    return tracks->max * sizeof(*tracks->track);
}

static double span_fma(const struct workspace *workspace,
                       const struct span *span)
{
    double fma = 0.0;

    for (uint32_t half = 0; half < n_half(workspace->model); half++)
        fma += piece_fma(workspace, half, span->first_row,
                         span->first_row + span->n_row);
    return fma;
}

/* How many rows and how much work a track has. */
struct load {
    uint32_t n_row;
    double fma;
};

static bool are_even(const struct load *load, uint32_t n)
{
    double least = load[0].fma, most = load[0].fma;

    for (uint32_t i = 0; i < n; i++) {
        if (load[i].n_row < TRACK_ROWS)
            return false;
        least = load[i].fma < least ? load[i].fma : least;
        most = load[i].fma > most ? load[i].fma : most;
    }
    return least >= EVEN_MIN * most;
}

/* Consecutive spans to each of n tracks, up to end[i]; false where some would
 * have too little. A span goes where the middle of its work lies. */
static bool share_out(const struct workspace *workspace, uint32_t n,
                      uint32_t *end)
{
    const struct batch *batch = &workspace->pass.batch;
    struct load load[TRACKS_MAX] = {{0}};
    double all = 0.0, before = 0.0;
    uint32_t track = 0;

    for (uint32_t i = 0; i < batch->n_span; i++)
        all += span_fma(workspace, &batch->span[i]);
    for (uint32_t i = 0; i < batch->n_span; i++) {
        const double fma = span_fma(workspace, &batch->span[i]);

        while (track + 1 < n && before + fma / 2 >= all * (track + 1) / n)
            end[track++] = i;
        load[track].n_row += batch->span[i].n_row;
        load[track].fma += fma;
        before += fma;
    }
    while (track < n)
        end[track++] = batch->n_span;
    return are_even(load, n);
}

static void open_track(struct workspace *from, uint32_t first, uint32_t end,
                       uint32_t first_logit, struct workspace *track)
{
    const struct model *model = from->model;
    const struct batch *batch = &from->pass.batch;
    const size_t hidden = model->config.hidden;
    const uint32_t row = batch->span[first].first_row;
    const struct span *last = &batch->span[end - 1];
    const uint32_t n_row = last->first_row + last->n_row - row;
    struct strips *strips = &from->strips;
    uint32_t n_logit = 0;

    for (uint32_t i = first; i < end; i++) {
        strips->span[i] = batch->span[i];
        strips->span[i].first_row -= row;
    }
    for (uint32_t l = first_logit;
         l < batch->n_logit && batch->logit_row[l] < row + n_row; l++) {
        strips->logit_row[l] = batch->logit_row[l] - row;
        n_logit++;
    }
    *track = (struct workspace){
        .model = model,
        .max_row = n_row,
        .max_span = end - first,
        .max_logit = n_logit,
        .residual = from->residual + row * hidden,
        .normed = from->normed + row * hidden,
        .work = from->work + row * from->work_floats,
        .logit = from->logit + (size_t)first_logit * model->config.n_vocab,
        .position = from->position + row,
        .span = from->span + first,
        .span_work = (char *)from->span_work + first * MIXER_SPAN_WORK_BYTES,
        .head = from->head,
        .pass = {.is_under_way = true,
                 .batch = {.token = batch->token + row,
                           .n_row = n_row,
                           .span = strips->span + first,
                           .n_span = end - first,
                           .logit_row = strips->logit_row + first_logit,
                           .n_logit = n_logit,
                           .n_layer = batch->n_layer}}};
    track->head.residual = track->residual;
    track->head.max_row = n_row;
    track->head.kept += row;
    track->head.from += 2 * (size_t)row;
    head_begin(&track->head, &track->pass.batch);
}

bool tracks_open(struct workspace *workspace, uint32_t n_thread)
{
    struct tracks *tracks = &workspace->tracks;
    const struct batch *batch = &workspace->pass.batch;
    uint32_t end[TRACKS_MAX], first = 0, logit = 0;

    if (n_thread < 2 || n_thread > tracks->max || batch->n_span < n_thread ||
        batch->n_logit > workspace->max_span || /* as many have room */
        !batch_is_loose(batch) || !share_out(workspace, n_thread, end))
        return false;
    for (uint32_t i = 0; i < n_thread; i++) {
        open_track(workspace, first, end[i], logit, &tracks->track[i]);
        first = end[i];
        logit += tracks->track[i].pass.batch.n_logit;
    }
    tracks->n = n_thread;
    return true;
}
