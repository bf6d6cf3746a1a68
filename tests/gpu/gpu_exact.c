/*
 * The one arithmetic on a device, judged by bits: sessions that were fed whole
 * give the logits that any schedule must give, in batches of any kind, cut
 * anywhere, as decode or as prefill, forked or moved to another memory between
 * two steps (E1 to E4). Recorded steps are among them: single rows of several
 * sessions at once. And by an oracle: the same model with the same rounded
 * weights on the CPU, whose sums have another order.
 */
#include "kernels/device.h"
#include "kernels/philox.h"
#include "model/safetensors.h"
#include "state/memory.h"
#include "tests/gpu/gpu_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_SESSION 6u
#define N_TOKEN_MAX 400u
#define ROW_MAX 1024u

struct track {
    uint32_t n_token; /* of its log */
    uint32_t token[N_TOKEN_MAX];
    float *wanted;         /* [n_token, n_vocab] */
    uint64_t wanted_state; /* digest after all tokens */
    struct memory *memory;
};

struct stage {
    struct model *model;
    struct workspace *workspace;
    uint32_t n_vocab;
    uint64_t seed, n_draw;
    struct track track[N_SESSION];
    size_t shared_bytes;
    uint64_t n_step, n_row, n_decode, n_wrong;
};

static uint32_t draw(struct stage *stage, uint32_t below)
{
    const uint32_t key[2] = {(uint32_t)stage->seed,
                             (uint32_t)(stage->seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)stage->n_draw++};
    uint32_t word[4];

    philox(counter, key, word);
    return word[0] % below;
}

static enum status open_stage(const struct model_choice *choice,
                              const char *dir, struct stage *out)
{
    struct model_options options = {.n_context = 0};
    enum status st = model_options_find(choice, &options);

    if (!st)
        st = model_load(dir, &options, &out->model);
    if (!st)
        st = workspace_create(out->model, ROW_MAX, N_SESSION, ROW_MAX,
                              &out->workspace);
    if (!st)
        out->n_vocab = model_config(out->model)->n_vocab;
    return st;
}

static void close_stage(struct stage *stage)
{
    for (uint32_t s = 0; s < N_SESSION; s++) {
        memory_destroy(stage->track[s].memory);
        free(stage->track[s].wanted);
    }
    workspace_destroy(stage->workspace);
    model_destroy(stage->model);
}

/* ---------------------------------------------------------------------- rows
 */

struct ask {
    uint32_t n_row, n_span, token[ROW_MAX], row[ROW_MAX];
    struct span span[N_SESSION];
    struct track *who[N_SESSION];
};

static enum status add(struct ask *ask, struct track *track, uint32_t n)
{
    const uint64_t position = memory_position(track->memory);
    const enum status st = memory_reserve(track->memory, position + n);

    if (st)
        return st;
    for (uint32_t i = 0; i < n; i++) {
        ask->row[ask->n_row + i] = ask->n_row + i;
        ask->token[ask->n_row + i] = track->token[position + i];
    }
    ask->who[ask->n_span] = track;
    ask->span[ask->n_span++] =
        (struct span){.first_row = ask->n_row,
                      .n_row = n,
                      .position = position,
                      .layer = memory_layers(track->memory)};
    ask->n_row += n;
    return STATUS_OK;
}

static const float *run(struct stage *stage, const struct ask *ask)
{
    const float *logit = model_forward(stage->model, NULL, stage->workspace,
                                       &(struct batch){.token = ask->token,
                                                       .n_row = ask->n_row,
                                                       .span = ask->span,
                                                       .n_span = ask->n_span,
                                                       .logit_row = ask->row,
                                                       .n_logit = ask->n_row});

    for (uint32_t i = 0; logit && i < ask->n_span; i++)
        memory_advance(ask->who[i]->memory, ask->span[i].n_row);
    stage->n_step++;
    stage->n_row += ask->n_row;
    stage->n_decode += ask->n_row == ask->n_span;
    return logit;
}

/* ----------------------------------------------------------------- memories */

/* Digest of what is not behind the position: states but for their rings, and
 * full blocks. */
static enum status digest_state(const struct stage *stage,
                                const struct memory *memory, uint64_t *out)
{
    struct device *device = model_device(stage->model);
    const uint64_t n_block = memory_position(memory) / KV_BLOCK;
    struct digest all = {0};
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < model_config(stage->model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(stage->model, i);
        const char *state = memory_layers(memory)[i].state;
        void *copy;

        st = device_take_host(device, plan->state_bytes + plan->block_bytes,
                              &copy);
        if (st)
            return st;
        device_read(device, copy, state, plan->state_bytes);
        st = device_wait(device);
        for (uint32_t f = 0; f < plan->n_field; f++) {
            const struct mixer_field *field = &plan->field[f];
            size_t n = field_element_bytes(field->type);

            for (uint32_t d = 0; d < field->n_dim; d++)
                n *= field->dim[d];
            if (strncmp(field->name, "ring_", 5) != 0)
                all = digest_chain(all, (char *)copy + field->offset, n);
        }
        for (uint64_t b = 0; !st && plan->block_bytes && b < n_block; b++) {
            device_read(device, copy, memory_block(memory, i, b),
                        plan->block_bytes);
            st = device_wait(device);
            all = digest_chain(all, copy, plan->block_bytes);
        }
        device_give_host(device, copy);
    }
    *out = all.lo ^ all.hi;
    return st;
}

/* All of it to another memory by way of the host, as a snapshot goes. */
static enum status move(const struct stage *stage, struct track *track)
{
    struct device *device = model_device(stage->model);
    const uint64_t position = memory_position(track->memory);
    struct memory *to;
    enum status st = memory_create(stage->model, &to);

    if (!st)
        st = memory_reserve(to, position);
    for (uint32_t i = 0; !st && i < model_config(stage->model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(stage->model, i);
        void *copy;

        st = device_take_host(device, plan->state_bytes + plan->block_bytes,
                              &copy);
        if (st)
            break;
        device_read(device, copy, memory_layers(track->memory)[i].state,
                    plan->state_bytes);
        st = device_wait(device);
        device_write(device, memory_layers(to)[i].state, copy,
                     plan->state_bytes);
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position;
             b++) {
            device_read(device, copy, memory_block(track->memory, i, b),
                        plan->block_bytes);
            st = st ? st : device_wait(device);
            device_write(device, memory_block(to, i, b), copy,
                         plan->block_bytes);
        }
        device_give_host(device, copy);
    }
    if (st)
        return st;
    memory_advance(to, position);
    memory_destroy(track->memory);
    track->memory = to;
    return STATUS_OK;
}

static enum status fork_one(struct stage *stage, struct track *track)
{
    struct memory *fork;
    const enum status st =
        memory_fork(track->memory, &stage->shared_bytes, &fork);

    if (st)
        return st;
    memory_destroy(track->memory);
    track->memory = fork;
    return STATUS_OK;
}

/* ----------------------------------------------------------------- schedules
 */

static enum status fresh_memory(const struct stage *stage, struct track *track)
{
    memory_destroy(track->memory);
    track->memory = NULL;
    return memory_create(stage->model, &track->memory);
}

/* New logs, and what each session gives when it is fed whole and alone. */
static enum status play_whole(struct stage *stage)
{
    for (uint32_t s = 0; s < N_SESSION; s++) {
        struct track *track = &stage->track[s];
        struct ask ask = {0};
        size_t bytes;
        const float *logit;
        enum status st;

        track->n_token = 1 + draw(stage, N_TOKEN_MAX);
        bytes = (size_t)track->n_token * stage->n_vocab * sizeof(float);
        for (uint32_t i = 0; i < track->n_token; i++)
            track->token[i] = draw(stage, stage->n_vocab);
        free(track->wanted);
        track->wanted = malloc(bytes);
        st = fresh_memory(stage, track);
        if (!st)
            st = add(&ask, track, track->n_token);
        if (st)
            return st;
        logit = run(stage, &ask);
        if (!logit || !track->wanted)
            return STATUS_UNAVAILABLE;
        memcpy(track->wanted, logit, bytes);
        st = digest_state(stage, track->memory, &track->wanted_state);
        if (st)
            return st;
    }
    return STATUS_OK;
}

/* How many rows of an unfinished session come next. */
static uint32_t next_rows(struct stage *stage, const struct track *track,
                          bool is_decode)
{
    const uint32_t left =
        track->n_token - (uint32_t)memory_position(track->memory);
    uint32_t n;

    if (left == 0 || draw(stage, 4) == 0)
        return 0;
    n = is_decode ? 1 : 1 + draw(stage, draw(stage, 2) ? 8 : 150);
    return n < left ? n : left;
}

static void compare(struct stage *stage, const struct ask *ask,
                    const float *logit)
{
    const size_t row_bytes = stage->n_vocab * sizeof(float);

    for (uint32_t i = 0; i < ask->n_span; i++) {
        const struct span *span = &ask->span[i];
        const float *wanted =
            ask->who[i]->wanted + span->position * stage->n_vocab;
        const float *found = logit + (size_t)span->first_row * stage->n_vocab;

        for (uint32_t r = 0; r < span->n_row; r++) {
            const size_t at = (size_t)r * stage->n_vocab;
            const bool is_same =
                memcmp(wanted + at, found + at, row_bytes) == 0;

            if (!is_same && stage->n_wrong < 8)
                printf("  session %ld position %lu: row %u of %u in a step of "
                       "%u rows, %u spans differs\n",
                       (long)(ask->who[i] - stage->track), span->position + r,
                       r, span->n_row, ask->n_row, ask->n_span);
            stage->n_wrong += !is_same;
        }
    }
}

static enum status step(struct stage *stage, bool *out_is_done)
{
    const bool is_decode = draw(stage, 3) != 0;
    struct ask ask = {0};
    const float *logit;
    enum status st = STATUS_OK;

    *out_is_done = true;
    for (uint32_t s = 0; !st && s < N_SESSION; s++) {
        struct track *track = &stage->track[s];
        const uint32_t n = next_rows(stage, track, is_decode);

        if (memory_position(track->memory) < track->n_token)
            *out_is_done = false;
        if (!n || ask.n_row + n > ROW_MAX)
            continue;
        if (draw(stage, 40) == 0)
            st = fork_one(stage, track);
        else if (draw(stage, 40) == 0)
            st = move(stage, track);
        if (!st)
            st = add(&ask, track, n);
    }
    if (st || !ask.n_row)
        return st;
    logit = run(stage, &ask);
    if (!logit)
        return STATUS_UNAVAILABLE;
    compare(stage, &ask, logit);
    return STATUS_OK;
}

static enum status play_schedule(struct stage *stage)
{
    bool is_done = false;
    enum status st = STATUS_OK;

    for (uint32_t s = 0; !st && s < N_SESSION; s++)
        st = fresh_memory(stage, &stage->track[s]);
    while (!st && !is_done)
        st = step(stage, &is_done);
    for (uint32_t s = 0; !st && s < N_SESSION; s++) {
        uint64_t state;

        st = digest_state(stage, stage->track[s].memory, &state);
        if (!st && state != stage->track[s].wanted_state) {
            printf("  session %u: its memory differs at the end\n", s);
            stage->n_wrong++;
        }
    }
    return st;
}

/* -------------------------------------------------------------------- oracle
 */

static const char *best_cpu(void)
{
    const struct backend *const *b = backend_all();

    while (!(*b)->is_supported())
        b++;
    return (*b)->name;
}

/* Session 0 on the CPU: root mean squares of the difference and of the logits.
 */
static enum status compare_cpu(const struct stage *stage, const char *dir,
                               const struct model_choice *as, double *out_error,
                               double *out_size)
{
    const bool is_ref = strcmp(as->weight_format, "f8") == 0 ||
                        strcmp(as->kv_format, "int8") == 0;
    const struct model_choice choice = {.backend = is_ref ? "ref" : best_cpu(),
                                        .numerics = "bf16-pair",
                                        .weight_format = as->weight_format,
                                        .kv_format = as->kv_format};
    const struct track *track = &stage->track[0];
    const size_t n = (size_t)track->n_token * stage->n_vocab;
    struct stage other = {0};
    struct ask ask = {0};
    const float *logit = NULL;
    double error = 0, size = 0;
    enum status st = open_stage(&choice, dir, &other);

    if (!st) {
        memcpy(other.track[0].token, track->token, sizeof(track->token));
        st = memory_create(other.model, &other.track[0].memory);
    }
    if (!st)
        st = add(&ask, &other.track[0], track->n_token);
    if (!st)
        logit = run(&other, &ask);
    for (size_t i = 0; logit && i < n; i++) {
        const double d = (double)logit[i] - (double)track->wanted[i];

        error += d * d;
        size += (double)logit[i] * (double)logit[i];
    }
    close_stage(&other);
    *out_error = sqrt(error / (double)n);
    *out_size = sqrt(size / (double)n);
    return st;
}

/* Of the logits' size: what other roundings may do to a random model. Whether
 * a trained one says the right things is judged by `check`. */
#define FAR_MAX 0.25

int gpu_exact(const char *backend, const char *dir, uint32_t n_schedule,
              uint64_t seed, const char *format, const char *kv)
{
    const struct model_choice choice = {.backend = backend,
                                        .numerics = "auto",
                                        .weight_format = format,
                                        .kv_format = kv};
    struct stage stage = {.seed = seed};
    double error = 0, size = 1;
    enum status st = open_stage(&choice, dir, &stage);

    for (uint32_t i = 0; !st && i < n_schedule && !stage.n_wrong; i++) {
        if (i % 8 == 0)
            st = play_whole(&stage);
        if (!st && i == 0)
            st = compare_cpu(&stage, dir, &choice, &error, &size);
        if (!st)
            st = play_schedule(&stage);
    }
    if (st) {
        close_stage(&stage);
        return gpu_fail(dir);
    }
    printf("%s: %u schedules, %lu steps (%lu of single rows), %lu rows: %lu "
           "differ; from the CPU's logits %.2e of %.2e%s\n",
           dir, n_schedule, stage.n_step, stage.n_decode, stage.n_row,
           stage.n_wrong, error, size,
           error <= FAR_MAX * size ? "" : ": TOO FAR");
    st = stage.n_wrong || !(error <= FAR_MAX * size);
    close_stage(&stage);
    return st ? 1 : 0;
}
