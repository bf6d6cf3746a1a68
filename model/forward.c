/*
 * One step of the model over the rows of a batch. Order per layer, fixed for
 * every caller: norm, mixer (adds to the residual), norm, mlp (adds to the
 * residual); then norm and head for the rows whose logits are wanted. Rows meet
 * only inside mixers, and there only rows of one span.
 */
#include "kernels/device.h"
#include "kernels/room.h"
#include "model/pass.h"
#include "model/piece.h"
#include "model/weights.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t work_floats(const struct model *model)
{
    size_t most = mlp_row_floats(&model->config);

    for (uint32_t i = 0; i < model->config.n_layer; i++)
        if (model->layer[i].plan[INDEX_NONE].row_floats > most)
            most = model->layer[i].plan[INDEX_NONE].row_floats;
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

/* n floats for operators, zero. */
static enum status take_floats(struct workspace *workspace, size_t n,
                               float **out)
{
    struct device *device = workspace->model->device;
    void *room = NULL;
    enum status st = STATUS_OK;

    if (n > SIZE_MAX / 2 / sizeof(float))
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "a workspace of %zu floats", n);
    if (device)
        st = device_take(device, n * sizeof(float), &room);
    else if ((room = room_take(n * sizeof(float))))
        memset(room, 0, n * sizeof(float));
    else
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu bytes",
                         n * sizeof(float));
    if (!st)
        workspace->bytes += n * sizeof(float);
    *out = room;
    return st;
}

static enum status take_all_floats(struct workspace *it)
{
    const struct config *c = &it->model->config;
    const size_t max_row = it->max_row;
    const size_t n_logit = ((size_t)it->max_logit + 1) * c->n_vocab;
    void *taken = NULL, *rounded = NULL;
    enum status st = take_floats(it, max_row * c->hidden, &it->residual);

    if (!st)
        st = take_floats(it, max_row * c->hidden, &it->normed);
    if (!st)
        st = take_floats(it, max_row * it->work_floats, &it->work);
    if (!st)
        st = head_take(it->model, n_logit, &it->logit, &it->bytes);
    if (!st && it->model->backend->has_rounded_rows &&
        c->hidden % LINEAR_TILE == 0)
        st = device_take(it->model->device,
                         max_row * c->hidden * sizeof(*it->rounded), &rounded);
    it->rounded = rounded;
    if (!st && it->model->device)
        st = device_take_host(it->model->device, n_logit * sizeof(float),
                              &taken);
    it->taken = it->model->device ? taken : it->logit;
    return st;
}

static enum status take_tops(struct workspace *it)
{
    const size_t bytes = it->max_logit * sizeof(struct tops);
    struct device *device = it->model->device;
    void *tops = NULL, *taken = NULL;
    enum status st;

    if (!device || !it->model->backend->tops)
        return STATUS_OK;
    st = device_take(device, bytes, &tops);
    it->tops = tops;
    if (!st)
        st = device_take_host(device, bytes, &taken);
    it->taken_tops = taken;
    return st;
}

static enum status take_views(struct workspace *workspace)
{
    const struct model *model = workspace->model;
    const struct view_extent extent = {.max_row = workspace->max_row,
                                       .n_head = model->config.n_head,
                                       .d_head = model->config.d_head,
                                       .n_context = model->n_context,
                                       .device = model->device};
    const enum status st = view_room_init(&workspace->views, &extent);

    if (!st)
        workspace->bytes += view_room_bytes(&extent);
    return st;
}

static enum status take_strips(struct workspace *it)
{
    if (it->model->device)
        return STATUS_OK; /* its pieces are half layers */
    it->bytes += strips_bytes(it->max_row, it->max_span);
    return strips_init(&it->strips, it->max_row, it->max_span);
}

static enum status take_head(struct workspace *it)
{
    it->bytes += head_bytes(it->model, it->max_row);
    return head_init(&it->head, it->model, it->residual, it->max_row);
}

static enum status take_tracks(struct workspace *it)
{
    const enum status st = tracks_init(it);

    it->bytes += tracks_bytes(&it->tracks);
    return st;
}

enum status workspace_create(const struct model *model, uint32_t max_row,
                             uint32_t max_span, uint32_t max_logit,
                             struct workspace **out)
{
    struct workspace *it = weights_room(sizeof(*it));

    assert(max_row && max_span && max_span <= max_row && max_logit <= max_row);
    if (!it)
        return STATUS_RESOURCE_EXHAUSTED;
    it->model = model;
    it->max_row = max_row;
    it->max_span = max_span;
    it->max_logit = max_logit;
    it->piece_fma = PASS_PIECE_FMA;
    it->work_floats = row_stride(work_floats(model));
    for (uint32_t i = 0; i < 2; i++)
        it->owner[i] = device_owner(model->device);
    if (take_all_floats(it) ||
        !(it->position = take(it, max_row, sizeof(uint64_t))) ||
        !(it->span = take(it, max_span, sizeof(*it->span))) ||
        !(it->span_work = take(it, max_span, MIXER_SPAN_WORK_BYTES)) ||
        take_tops(it) || take_views(it) || take_strips(it) || take_head(it) ||
        take_tracks(it) || state_cap_count_init(model, &it->capped)) {
        workspace_destroy(it);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *out = it;
    return STATUS_OK;
}

void workspace_destroy(struct workspace *workspace)
{
    struct device *device;

    if (!workspace)
        return;
    device = workspace->model->device;
    device_give(device, workspace->residual);
    device_give(device, workspace->normed);
    device_give(device, workspace->rounded);
    device_give(device, workspace->work);
    device_give(device, workspace->logit);
    device_give(device, workspace->tops);
    if (device) {
        device_give_host(device, workspace->taken);
        device_give_host(device, workspace->taken_tops);
    }
    state_cap_count_release(device, &workspace->capped);
    free(workspace->position);
    free(workspace->span);
    free(workspace->span_work);
    strips_release(&workspace->strips);
    view_room_release(&workspace->views);
    head_release(&workspace->head);
    tracks_release(&workspace->tracks);
    free(workspace);
}

size_t workspace_bytes(const struct workspace *workspace)
{
    return workspace->bytes;
}

uint64_t workspace_n_capped(const struct workspace *workspace)
{
    return workspace->capped.taken ? *workspace->capped.taken : 0;
}

/* The rows stand as the pass's batch has them. */
static void place_rows(struct workspace *workspace)
{
    const struct batch *batch = &workspace->pass.batch;

    for (uint32_t i = 0; i < batch->n_span; i++)
        for (uint32_t r = 0; r < batch->span[i].n_row; r++)
            workspace->position[batch->span[i].first_row + r] =
                batch->span[i].position + r;
    head_begin(&workspace->head, batch);
}

/* Rows of the residual from `row` on; normed ones lie at the same place. */
static float *residual_of(const struct workspace *workspace, uint32_t row)
{
    return workspace->residual + (size_t)row * workspace->model->config.hidden;
}

static float *normed_of(const struct workspace *workspace, uint32_t row)
{
    return workspace->normed + (size_t)row * workspace->model->config.hidden;
}

static uint16_t *rounded_of(const struct workspace *workspace, uint32_t row)
{
    return workspace->rounded
               ? workspace->rounded +
                     (size_t)row * workspace->model->config.hidden
               : NULL;
}

/* Does the half under way read normed rows as floats? The mixers' products and
 * the head are of the model's arithmetic. */
static bool wants_floats(const struct workspace *workspace)
{
    const struct model *model = workspace->model;
    const uint32_t half = workspace->pass.half;

    if (!workspace->rounded || !arithmetic_is_mma(model->arithmetic))
        return true;
    return half % 2 && mlp_wants_floats(&model->layer[half / 2].mlp);
}

static bool is_in_head(const struct workspace *workspace)
{
    return workspace->pass.half == n_half(workspace->model);
}

/* Where the piece's normed rows begin. */
static uint32_t normed_row(const struct workspace *workspace)
{
    return is_in_head(workspace) ? 0 : workspace->pass.row;
}

static void norm_piece(struct workspace *workspace, struct pool *pool,
                       const float *weight)
{
    const struct config *c = &workspace->model->config;
    const struct pass *pass = &workspace->pass;
    const uint32_t to = normed_row(workspace);

    workspace->model->backend->rms_norm(
        pool,
        &(struct norm_args){
            .y = wants_floats(workspace) ? normed_of(workspace, to) : NULL,
            .y_stride = c->hidden,
            .x = is_in_head(workspace)
                     ? head_read(&workspace->head, pass->row, pass->end)
                     : residual_of(workspace, pass->row),
            .x_stride = c->hidden,
            .weight = weight,
            .n_row = pass->end - pass->row,
            .n_group = 1,
            .dim = c->hidden,
            .eps = (float)c->rms_eps,
            .y_rounded = rounded_of(workspace, to)});
}

static void embed_piece(struct workspace *workspace, struct pool *pool)
{
    const struct model *model = workspace->model;
    const struct pass *pass = &workspace->pass;

    model->backend->embed(
        pool, &(struct embed_args){.y = residual_of(workspace, pass->row),
                                   .token = pass->batch.token + pass->row,
                                   .table = model->embedding,
                                   .type = model->embedding_type,
                                   .n_row = pass->end - pass->row,
                                   .dim = model->config.hidden});
}

/* The parts of the spans that lie in the piece, rows counted from its first;
 * returns how many. */
static uint32_t clip_spans(struct workspace *workspace)
{
    const struct pass *pass = &workspace->pass;
    uint32_t n = 0;

    for (uint32_t i = 0; i < pass->batch.n_span; i++) {
        const struct span *span = &pass->batch.span[i];
        uint32_t first = span->first_row, end = first + span->n_row;

        first = first > pass->row ? first : pass->row;
        end = end < pass->end ? end : pass->end;
        if (first < end)
            workspace->span[n++] = (struct span){
                .first_row = first - pass->row,
                .n_row = end - first,
                .position = span->position + (first - span->first_row),
                .layer = span->layer,
                .policy = span->policy,
                .source = span->source,
                .match = span->match};
    }
    return n;
}

/* The next part of the piece in its mixer; true when that was the last. */
static bool mix_piece(struct workspace *workspace, struct pool *pool,
                      uint64_t max_fma)
{
    const struct model *model = workspace->model;
    struct pass *pass = &workspace->pass;
    const uint32_t i = pass->half / 2;
    const struct layer *layer = &model->layer[i];

    return layer->mixer->rows(
        layer->mixing,
        &(struct mixer_batch){.backend = model->backend,
                              .pool = pool,
                              .rope = &model->rope,
                              .layer = i,
                              .n_row = pass->end - pass->row,
                              .position = workspace->position + pass->row,
                              .span = workspace->span,
                              .n_span = clip_spans(workspace),
                              .x = normed_of(workspace, pass->row),
                              .x_rounded = rounded_of(workspace, pass->row),
                              .residual = residual_of(workspace, pass->row),
                              .work = workspace->work,
                              .span_work = workspace->span_work,
                              .views = &workspace->views,
                              .state_cap = model->state_cap,
                              .n_capped = workspace->capped.n,
                              .max_fma = max_fma},
        &pass->cursor);
}

static void feed_piece(struct workspace *workspace, struct pool *pool)
{
    const struct pass *pass = &workspace->pass;

    mlp_rows(&workspace->model->layer[pass->half / 2].mlp,
             &(struct mlp_args){.backend = workspace->model->backend,
                                .pool = pool,
                                .x = normed_of(workspace, pass->row),
                                .x_rounded = rounded_of(workspace, pass->row),
                                .residual = residual_of(workspace, pass->row),
                                .work = workspace->work,
                                .n_row = pass->end - pass->row});
}

static void head_piece(struct workspace *workspace, struct pool *pool)
{
    const struct pass *pass = &workspace->pass;

    head_run(&workspace->head, pool,
             &(struct head_piece){.x = normed_of(workspace, 0),
                                  .x_rounded = rounded_of(workspace, 0),
                                  .logit = workspace->logit,
                                  .row = pass->row,
                                  .end = pass->end});
}

/* ------------------------------------------------------------------ pieces */

static void open_piece(struct workspace *workspace, struct pool *pool,
                       uint64_t max_fma)
{
    const struct model *model = workspace->model;
    struct pass *pass = &workspace->pass;
    const struct layer *layer = &model->layer[pass->half / 2];

    pass->end = piece_end(workspace, max_fma);
    if (is_in_head(workspace))
        pass->end = head_end(&workspace->head, pass->row, pass->end);
    pass->cursor = (struct mixer_cursor){0};
    if (pass->half == 0)
        embed_piece(workspace, pool);
    if (pass->half + 1 == n_half(model) && pass->row == 0)
        head_keep(&workspace->head);
    norm_piece(workspace, pool,
               pass->half == n_half(model) ? model->final_norm
               : pass->half % 2            ? layer->mlp_norm
                                           : layer->mixer_norm);
}

/* The next part of the piece under way; true when that was the last. */
static bool run_part(struct workspace *workspace, struct pool *pool,
                     uint64_t max_fma)
{
    const uint32_t half = workspace->pass.half;

    if (half == n_half(workspace->model))
        head_piece(workspace, pool);
    else if (half % 2)
        feed_piece(workspace, pool);
    else
        return mix_piece(workspace, pool, max_fma);
    return true;
}

/* A part of a piece; true when the pass is done. */
static bool step(struct workspace *workspace, struct pool *pool,
                 uint64_t max_fma)
{
    struct pass *pass = &workspace->pass;

    if (pass->row == pass->end)
        open_piece(workspace, pool, max_fma);
    if (!run_part(workspace, pool, max_fma))
        return false;
    pass->done += piece_fma(workspace, pass->half, pass->row, pass->end);
    pass->row = pass->end;
    if (pass->row < half_rows(workspace, pass->half))
        return false;
    pass->row = pass->end = 0;
    pass->half++;
    if (pass->half <= n_half(workspace->model) &&
        half_rows(workspace, pass->half) > 0)
        return false;
    head_finish(&workspace->head);
    return true;
}

void pass_begin(struct workspace *workspace, const struct batch *batch)
{
    assert(!workspace->pass.is_under_way);
    assert(batch->n_row && batch->n_row <= workspace->max_row);
    assert(batch->n_span && batch->n_span <= workspace->max_span);
    assert(batch->n_logit <= workspace->max_logit);
    batch_check(workspace->model, batch);
    workspace->pass = (struct pass){.batch = *batch, .is_under_way = true};
    workspace->strips.n_group = 0;
    workspace->tracks.n = 0;
    place_rows(workspace);
    for (uint32_t half = 0; half <= n_half(workspace->model); half++)
        workspace->pass.all +=
            piece_fma(workspace, half, 0, half_rows(workspace, half));
}

/* Nobody else would use the time: wait for the blocks that rows see. */
static void wait_for_blocks(const struct workspace *workspace)
{
    const struct batch *batch = &workspace->pass.batch;

    for (uint32_t i = 0; i < batch->n_span; i++) {
        struct block_source *source = batch->span[i].source;

        if (source)
            source->wait(source, workspace->pass.half / 2);
    }
}

/* Is a slice over for who would stop at us? */
static bool is_over(const struct pass_slice *slice, uint64_t us)
{
    return us >= slice->until_us &&
           (!slice->is_called || us - slice->until_us >= slice->linger_us ||
            slice->is_called(slice->caller));
}

static bool is_over_now(const struct pass_slice *slice)
{
    return is_over(slice, slice->clock->now_us(slice->clock));
}

static bool run_pieces(struct workspace *workspace, struct pool *pool,
                       const struct pass_slice *slice)
{
    const uint64_t max_fma =
        slice ? workspace->piece_fma * pool_n_thread(pool) : UINT64_MAX;

    while (!step(workspace, pool, max_fma)) {
        if (!slice && workspace->pass.cursor.is_waiting)
            wait_for_blocks(workspace);
        else if (slice &&
                 (workspace->pass.cursor.is_waiting || is_over_now(slice)))
            return false;
    }
    return true;
}

/* ------------------------------------------------------------------- tracks */

struct track_slice {
    const struct tracks *tracks;
    const struct pass_slice *slice;
    _Atomic bool is_any_done; /* a thread is free */
};

/* All tracks shall stop at the same time, so this one stops where it is nearest
 * to that: before a part of which less than half would be in time. */
static void run_track(void *arg, uint32_t task, void *scratch)
{
    struct track_slice *run = arg;
    const struct pass_slice *slice = run->slice;
    struct workspace *track = &run->tracks->track[task];
    const uint64_t max_fma = track->piece_fma * TRACKS_PIECE;
    uint64_t us = slice ? slice->clock->now_us(slice->clock) : 0, part_us;

    (void)scratch; /* operators take the thread's own */
    while (!run->is_any_done) {
        if (step(track, NULL, max_fma)) {
            track->pass.is_under_way = false;
            run->is_any_done = true;
        } else if (slice) {
            part_us = slice->clock->now_us(slice->clock) - us;
            us += part_us;
            if (is_over(slice, us + part_us / 2))
                return;
        }
    }
}

static bool are_under_way(const struct tracks *tracks)
{
    for (uint32_t i = 0; i < tracks->n; i++)
        if (!tracks->track[i].pass.is_under_way)
            return false;
    return true;
}

/* When a track is done, all threads together do what is left of the others. */
static bool run_tracks(struct workspace *workspace, struct pool *pool,
                       const struct pass_slice *slice)
{
    const struct tracks *tracks = &workspace->tracks;
    struct track_slice run = {tracks, slice, false};
    bool is_done;

    for (uint32_t i = 0; i < tracks->n; i++)
        tracks->track[i].piece_fma = workspace->piece_fma;
    if (are_under_way(tracks))
        pool_run(pool, tracks->n, run_track, &run);
    is_done = !are_under_way(tracks);
    workspace->pass.done = 0.0;
    for (uint32_t i = 0; i < tracks->n; i++) {
        struct workspace *track = &tracks->track[i];

        if (is_done && track->pass.is_under_way) {
            is_done = run_pieces(track, pool, slice);
            track->pass.is_under_way = !is_done;
        }
        workspace->pass.done += track->pass.done;
    }
    return is_done;
}

/* Prompts go apart, or lie side by side, as is decided when the first slice
 * begins. In short slices, which do not linger, tracks would mostly wait for
 * each other where these end. */
static bool run_on_host(struct workspace *workspace, struct pool *pool,
                        const struct pass_slice *slice)
{
    const struct pass *pass = &workspace->pass;
    const uint32_t n_thread = pool_n_thread(pool);
    const bool is_new = pass->half == 0 && pass->row == 0 && pass->end == 0;

    if (slice && is_new && !workspace->tracks.n && n_thread > 1 &&
        !(slice->is_called && tracks_open(workspace, n_thread)) &&
        piece_arrange(workspace, workspace->piece_fma * n_thread))
        place_rows(workspace);
    if (workspace->tracks.n)
        return run_tracks(workspace, pool, slice);
    return run_pieces(workspace, pool, slice);
}

/* ------------------------------------------------------------------ device */

/* A pass from its beginning, one row and its logits for each session. */
static bool is_decode(const struct pass *pass)
{
    return pass->half == 0 && pass->row == 0 && pass->end == 0 &&
           pass->batch.n_span == pass->batch.n_row &&
           pass->batch.n_logit == pass->batch.n_row;
}

static bool has_tops(const struct workspace *workspace)
{
    return workspace->tops && workspace->pass.batch.is_sampled;
}

static struct device_step describe(const struct workspace *workspace,
                                   bool is_whole)
{
    const struct batch *batch = &workspace->pass.batch;
    struct device_step it = {.owner = workspace->owner[has_tops(workspace)],
                             .n_row = batch->n_row,
                             .is_repeatable =
                                 is_whole && is_decode(&workspace->pass) &&
                                 !state_cap_is_due(&workspace->capped, batch)};

    view_describe(&workspace->views, batch->span, batch->n_span, &it);
    return it;
}

static void take_results(const struct workspace *workspace)
{
    const struct model *model = workspace->model;
    const uint32_t n_logit = workspace->pass.batch.n_logit;
    const size_t n_vocab = model->config.n_vocab;

    if (state_cap_is_due(&workspace->capped, &workspace->pass.batch))
        state_cap_count_read(model->device, &workspace->capped);
    if (!has_tops(workspace)) {
        device_read(model->device, workspace->taken, workspace->logit,
                    n_logit * n_vocab * sizeof(float));
        return;
    }
    model->backend->tops(model->pool,
                         &(struct tops_args){.to = workspace->tops,
                                             .logit = workspace->logit,
                                             .logit_stride = n_vocab,
                                             .n_row = n_logit,
                                             .n = (uint32_t)n_vocab});
    device_read(model->device, workspace->taken_tops, workspace->tops,
                n_logit * sizeof(*workspace->tops));
}

/* Ask for parts until the pass is done (true) or, unless it shall be whole, for
 * one. Logits come with the last. */
static bool ask_parts(struct workspace *workspace, bool is_whole)
{
    const struct model *model = workspace->model;
    bool is_done;

    do
        is_done = step(workspace, model->pool, UINT64_MAX);
    while (!is_done && is_whole);
    if (is_done)
        take_results(workspace);
    return is_done;
}

/* As ask_parts(), and then wait for it: the one point where a step does. A
 * device that fails ends the pass. */
static bool run_parts(struct workspace *workspace, bool is_whole)
{
    const struct pass before = workspace->pass;
    struct device *device = workspace->model->device;
    const struct device_step step = describe(workspace, is_whole);
    uint32_t n_try = 0;
    bool is_done, is_again;

    do {
        assert(n_try++ <= DEVICE_AGAIN_MAX);
        workspace->pass = before;
        device_begin(device, &step);
        is_done = ask_parts(workspace, is_whole);
        if (device_end(device, &is_again)) {
            workspace->cause = *status_cause();
            return true;
        }
    } while (is_again);
    return is_done;
}

/* A device's parts are half layers: as long as a slice needs them to be short,
 * and long enough not to mind the wait behind each. */
static bool run_on_device(struct workspace *workspace,
                          const struct pass_slice *slice)
{
    while (!run_parts(workspace, !slice))
        if (slice && is_over_now(slice))
            return false;
    return true;
}

bool pass_run(struct workspace *workspace, struct pool *pool,
              const struct pass_slice *slice)
{
    bool is_done;

    assert(workspace->pass.is_under_way);
    workspace->cause.code = STATUS_OK;
    is_done = workspace->model->device ? run_on_device(workspace, slice)
                                       : run_on_host(workspace, pool, slice);
    workspace->pass.is_under_way = !is_done;
    return is_done;
}

enum status pass_check(const struct workspace *workspace)
{
    const struct cause *cause = &workspace->cause;

    return cause->code ? status_fail(cause->code, "%s", cause->text)
                       : STATUS_OK;
}

bool pass_is_under_way(const struct workspace *workspace)
{
    return workspace->pass.is_under_way;
}

bool pass_is_waiting(const struct workspace *workspace)
{
    return workspace->pass.is_under_way && workspace->pass.cursor.is_waiting;
}

double pass_progress(const struct workspace *workspace)
{
    const struct pass *pass = &workspace->pass;

    return pass->is_under_way ? pass->done / pass->all : 1.0;
}

void pass_set_piece(struct workspace *workspace, uint64_t n_fma)
{
    assert(n_fma);
    workspace->piece_fma = n_fma;
}

const float *pass_logits(const struct workspace *workspace)
{
    return workspace->taken;
}

const struct tops *pass_tops(const struct workspace *workspace)
{
    return has_tops(workspace) ? workspace->taken_tops : NULL;
}

void pass_fetch(struct workspace *workspace, uint32_t i)
{
    const struct model *model = workspace->model;
    const size_t n_vocab = model->config.n_vocab;

    assert(i < workspace->pass.batch.n_logit);
    device_read(model->device, workspace->taken + i * n_vocab,
                workspace->logit + i * n_vocab, n_vocab * sizeof(float));
}

enum status pass_fetched(struct workspace *workspace)
{
    return device_wait(workspace->model->device);
}

const float *model_forward(const struct model *model, struct pool *pool,
                           struct workspace *workspace,
                           const struct batch *batch)
{
    assert(workspace->model == model);
    pass_begin(workspace, batch);
    (void)pass_run(workspace, pool, NULL);
    return pass_check(workspace) ? NULL : workspace->taken;
}
