/*
 * The one arithmetic on a device, judged by bits: sessions that were fed whole
 * give the logits that any schedule must give, in batches of any kind, cut
 * anywhere, as decode or as prefill, forked or moved to another memory between
 * two steps, with drafts that were wrong on a fork that is thrown away (E1 to
 * E4). Recorded steps are among them: single rows of several sessions at once,
 * of one workspace after the other. And by an oracle: the same model with the
 * same rounded weights on the CPU, whose sums have another order.
 *
 * Sessions may be under memory policies, each under its own.
 *
 * A schedule is a function of the seed and its number, so one that failed can
 * be had alone (--first). Logs and what they must give are made once for
 * N_SHARE of them.
 */
#include "base/clock.h"
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
#define N_TOKEN_MAX 260u /* past four points of the grid */
#define ROW_MAX 1024u
#define N_SHARE 16u
#define STEP_MAX 10000u /* of a schedule, which has some 40 */
#define N_WRONG_SAID 8u
#define N_DRAFT_MAX 8u
#define SAY_EVERY_S 10

struct track {
    struct policy policy;
    bool is_wide;     /* it sees all */
    uint32_t n_token; /* of its log */
    uint32_t token[N_TOKEN_MAX];
    float *wanted;         /* [n_token, n_vocab] */
    uint64_t wanted_state; /* digest after all tokens */
    struct memory *memory;
};

/* Small enough that logs of four blocks leave something out. */
static const char *const POLICY[] = {
    "full",
    "window:sink=64:window=0",
    "infllm:sink=0:window=0:pick=64:step=8",
    "infllm:sink=0:window=64:pick=64:step=1:keys=rank:index=keys",
    "infllm:sink=64:window=0:pick=64:step=64:keys=true",
    "quest:sink=0:window=0:pick=64:step=16",
    "quest:sink=64:window=0:pick=64:step=2:keys=far",
    "recycle:sink=0:window=0:pick=64:step=8:reuse=16",
    "recycle:base=infllm:sink=0:window=0:pick=128:step=16:reuse=2:index=keys",
    "snapkv:sink=0:window=0:pick=64:end=130",
    "snapkv:sink=0:window=64:pick=64:keys=rank:end=192",
};
#define N_POLICY ((uint32_t)(sizeof(POLICY) / sizeof(POLICY[0])))
/* Large enough that they leave nothing out, so they must give what full does:
 * their lists name every block, where it lies. */
static const char *const WIDE[] = {
    "window:sink=0:window=256:keys=true",
    "infllm:sink=0:window=0:pick=256:step=1:keys=true",
    "quest:sink=64:window=64:pick=256:step=8:keys=rank",
    "snapkv:sink=0:window=64:pick=256:end=200",
};
#define N_WIDE ((uint32_t)(sizeof(WIDE) / sizeof(WIDE[0])))

struct stage {
    const char *policies; /* as gpu_exact_what has them */
    struct model *model;
    struct workspace *workspace;
    void *copy; /* room for what a layer remembers, where the device reads to */
    uint32_t n_vocab;
    uint64_t seed, number, n_draw; /* of the schedule under way */
    struct track track[N_SESSION];
    size_t shared_bytes;
    uint64_t n_step, n_row, n_decode, n_draft, n_wrong;
    struct digest bits; /* of what sessions give that are fed whole */
};

static uint32_t draw(struct stage *stage, uint32_t below)
{
    const uint32_t key[2] = {(uint32_t)stage->seed,
                             (uint32_t)(stage->seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)stage->n_draw++,
                                 (uint32_t)stage->number};
    uint32_t word[4];

    philox(counter, key, word);
    return word[0] % below;
}

/* Session 0 sees all beside the others: it has the oracle. */
static enum status draw_policy(struct stage *stage, struct track *track)
{
    const char *text = stage->policies;

    track->is_wide = false;
    if (!text || track == &stage->track[0]) {
        text = POLICY[0];
    } else if (strcmp(text, "any") == 0) {
        const uint32_t i = draw(stage, N_POLICY + N_WIDE);

        track->is_wide = i >= N_POLICY;
        text = track->is_wide ? WIDE[i - N_POLICY] : POLICY[i];
    }
    return policy_parse(text, &track->policy);
}

/* What a layer remembers of the longest log. */
static size_t layer_bytes(const struct mixer_plan *plan)
{
    return plan->state_bytes + (N_TOKEN_MAX / KV_BLOCK + 1) * plan->block_bytes;
}

static enum status take_copy(struct stage *stage)
{
    size_t most = 0;

    for (uint32_t i = 0; i < N_INDEX * model_config(stage->model)->n_layer;
         i++) {
        const size_t n = layer_bytes(model_plan_for(
            stage->model, i / N_INDEX, (enum index_kind)(i % N_INDEX)));

        most = n > most ? n : most;
    }
    return device_take_host(model_device(stage->model), most, &stage->copy);
}

/* Another one, as if another engine had begun. */
static enum status fresh_workspace(struct stage *stage)
{
    workspace_destroy(stage->workspace);
    stage->workspace = NULL;
    return workspace_create(stage->model, ROW_MAX, N_SESSION, ROW_MAX,
                            &stage->workspace);
}

static enum status open_stage(const struct model_choice *choice,
                              const char *dir, struct stage *out)
{
    struct model_options options = {.n_context = 0};
    enum status st = model_options_find(choice, &options);

    if (!st)
        st = model_load(dir, &options, &out->model);
    if (!st)
        st = fresh_workspace(out);
    if (!st)
        st = take_copy(out);
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
    if (stage->copy)
        device_give_host(model_device(stage->model), stage->copy);
    workspace_destroy(stage->workspace);
    model_destroy(stage->model);
}

/* ---------------------------------------------------------------------- rows
 */

struct ask {
    uint32_t n_row, n_span, token[ROW_MAX], row[ROW_MAX];
    struct span span[N_SESSION];
    struct track *who[N_SESSION];
    uint32_t n_right[N_SESSION];     /* leading rows that are of the log */
    struct memory *draft[N_SESSION]; /* a fork of the session's, owned; NULL: no
                                        draft is wrong */
};

/* The next n tokens of the log, in `memory`. */
static enum status add_to(struct ask *ask, struct track *track,
                          struct memory *memory, uint32_t n, uint32_t n_draft)
{
    const uint64_t position = memory_position(memory);
    const enum status st = memory_reserve(memory, position + n + n_draft);

    if (st)
        return st;
    for (uint32_t i = 0; i < n; i++)
        ask->token[ask->n_row + i] = track->token[position + i];
    for (uint32_t i = 0; i < n + n_draft; i++)
        ask->row[ask->n_row + i] = ask->n_row + i;
    ask->who[ask->n_span] = track;
    ask->n_right[ask->n_span] = n;
    ask->draft[ask->n_span] = NULL;
    ask->span[ask->n_span++] = (struct span){.first_row = ask->n_row,
                                             .n_row = n + n_draft,
                                             .position = position,
                                             .layer = memory_layers(memory),
                                             .policy = memory_policy(memory)};
    ask->n_row += n + n_draft;
    return STATUS_OK;
}

static enum status add(struct ask *ask, struct track *track, uint32_t n)
{
    return add_to(ask, track, track->memory, n, 0);
}

/* The same with wrong tokens behind them, all of which are taken back. */
static enum status add_draft(struct stage *stage, struct ask *ask,
                             struct track *track, uint32_t n, uint32_t n_draft)
{
    const uint32_t first = ask->n_row + n;
    struct memory *fork;
    enum status st = memory_fork(track->memory, &stage->shared_bytes, &fork);

    if (st)
        return st;
    for (uint32_t i = 0; i < n_draft; i++)
        ask->token[first + i] = draw(stage, stage->n_vocab);
    st = add_to(ask, track, fork, n, n_draft);
    if (st)
        memory_destroy(fork);
    else
        ask->draft[ask->n_span - 1] = fork;
    stage->n_draft++;
    return st;
}

static void drop_drafts(struct ask *ask)
{
    for (uint32_t i = 0; i < ask->n_span; i++)
        memory_destroy(ask->draft[i]);
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
        if (!ask->draft[i])
            memory_advance(ask->who[i]->memory, ask->span[i].n_row);
    stage->n_step++;
    stage->n_row += ask->n_row;
    stage->n_decode += ask->n_row == ask->n_span;
    return logit;
}

/* ----------------------------------------------------------------- memories */

/* What a layer remembers, on the host: its state, then its blocks. */
static enum status read_layer(const struct stage *stage,
                              const struct memory *memory, uint32_t i,
                              uint64_t n_block)
{
    struct device *device = model_device(stage->model);
    const struct mixer_plan *plan = memory_plan(memory, i);
    char *to = stage->copy;

    device_read(device, to, memory_layers(memory)[i].state, plan->state_bytes);
    to += plan->state_bytes;
    for (uint64_t b = 0; plan->block_bytes && b < n_block; b++)
        device_read(device, to + b * plan->block_bytes,
                    memory_block(memory, i, b), plan->block_bytes);
    return device_wait(device);
}

/* Digest of states, but for what rings have behind the position, and full
 * blocks. */
static enum status digest_state(const struct stage *stage,
                                const struct memory *memory, uint64_t *out)
{
    const uint64_t position = memory_position(memory);
    const uint64_t n_block = position / KV_BLOCK;
    struct digest all = {0};
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < model_config(stage->model)->n_layer; i++) {
        const struct mixer_plan *plan = memory_plan(memory, i);

        st = read_layer(stage, memory, i, n_block);
        mixer_clear_moot(plan, position, stage->copy);
        all = digest_chain(all, stage->copy,
                           plan->state_bytes + n_block * plan->block_bytes);
    }
    *out = all.lo ^ all.hi;
    return st;
}

/* All of it to another memory by way of the host, as a snapshot goes. */
static enum status move(const struct stage *stage, struct track *track)
{
    struct device *device = model_device(stage->model);
    const uint64_t position = memory_position(track->memory);
    const uint64_t n_block = (position + KV_BLOCK - 1) / KV_BLOCK;
    struct memory *to = NULL;
    enum status st = memory_create(stage->model, &to);

    if (!st)
        st = memory_set_policy(to, &track->policy);
    if (!st)
        st = memory_reserve(to, position);
    for (uint32_t i = 0; !st && i < model_config(stage->model)->n_layer; i++) {
        const struct mixer_plan *plan = memory_plan(to, i);
        const char *copy = stage->copy;

        st = read_layer(stage, track->memory, i, n_block);
        device_write(device, memory_layers(to)[i].state, copy,
                     plan->state_bytes);
        copy += plan->state_bytes;
        for (uint64_t b = 0; plan->block_bytes && b < n_block; b++)
            device_write(device, memory_block(to, i, b),
                         copy + b * plan->block_bytes, plan->block_bytes);
    }
    if (st) {
        memory_destroy(to);
        return st;
    }
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

static enum status fresh_memory(const struct stage *stage, struct track *track,
                                const struct policy *policy)
{
    enum status st;

    memory_destroy(track->memory);
    track->memory = NULL;
    st = memory_create(stage->model, &track->memory);
    return st ? st : memory_set_policy(track->memory, policy);
}

/* New logs, and what each session gives when it is fed whole and alone. */
static enum status play_whole(struct stage *stage)
{
    const struct policy full = {.kind = POLICY_FULL};

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
        st = draw_policy(stage, track);
        if (!st)
            st = fresh_memory(stage, track,
                              track->is_wide ? &full : &track->policy);
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
        stage->bits = digest_chain(stage->bits, track->wanted, bytes);
        stage->bits =
            digest_chain(stage->bits, &track->wanted_state, sizeof(uint64_t));
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

        for (uint32_t r = 0; r < ask->n_right[i]; r++) {
            const size_t at = (size_t)r * stage->n_vocab;
            const bool is_same =
                memcmp(wanted + at, found + at, row_bytes) == 0;

            if (!is_same && stage->n_wrong < N_WRONG_SAID)
                printf("  schedule %lu session %ld position %lu: row %u of %u "
                       "in a step of "
                       "%u rows, %u spans differs\n",
                       stage->number, (long)(ask->who[i] - stage->track),
                       span->position + r, r, span->n_row, ask->n_row,
                       ask->n_span);
            stage->n_wrong += !is_same;
        }
    }
}

/* Its rows of this step, after whatever may happen to it before. */
static enum status join(struct stage *stage, struct ask *ask,
                        struct track *track, uint32_t n)
{
    enum status st = STATUS_OK;

    if (draw(stage, 40) == 0)
        st = fork_one(stage, track);
    else if (draw(stage, 40) == 0)
        st = move(stage, track);
    if (st)
        return st;
    return draw(stage, 12) == 0
               ? add_draft(stage, ask, track, n, 1 + draw(stage, N_DRAFT_MAX))
               : add(ask, track, n);
}

static enum status step(struct stage *stage, bool *out_is_done)
{
    const bool is_decode = draw(stage, 3) != 0;
    struct ask ask = {0};
    const float *logit = NULL;
    enum status st = STATUS_OK;

    *out_is_done = true;
    for (uint32_t s = 0; !st && s < N_SESSION; s++) {
        struct track *track = &stage->track[s];
        const uint32_t n = next_rows(stage, track, is_decode);

        if (memory_position(track->memory) < track->n_token)
            *out_is_done = false;
        if (n && ask.n_row + n + N_DRAFT_MAX <= ROW_MAX)
            st = join(stage, &ask, track, n);
    }
    if (!st && ask.n_row) {
        logit = run(stage, &ask);
        st = logit ? STATUS_OK : STATUS_UNAVAILABLE;
    }
    if (logit)
        compare(stage, &ask, logit);
    drop_drafts(&ask);
    return st;
}

static enum status play_schedule(struct stage *stage)
{
    bool is_done = false;
    enum status st = STATUS_OK;

    for (uint32_t s = 0; !st && s < N_SESSION; s++)
        st = fresh_memory(stage, &stage->track[s], &stage->track[s].policy);
    for (uint32_t i = 0; !st && !is_done && i < STEP_MAX; i++)
        st = step(stage, &is_done);
    if (!st && !is_done)
        st = status_fail(STATUS_INTERNAL, "schedule %lu does not end",
                         stage->number);
    for (uint32_t s = 0; !st && s < N_SESSION; s++) {
        uint64_t state;

        st = digest_state(stage, stage->track[s].memory, &state);
        if (!st && !stage->track[s].is_wide &&
            state != stage->track[s].wanted_state) {
            printf("  schedule %lu session %u: its memory differs at the end\n",
                   stage->number, s);
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

struct result {
    uint32_t n_played;
    double error, size; /* beside the CPU */
};

static uint64_t seconds_now(void)
{
    return clock_real()->now_us(clock_real()) / 1000000;
}

/* Schedule number i, with what its share has in common if it is the first. */
static enum status play(struct stage *stage, uint64_t i, bool is_first)
{
    enum status st = STATUS_OK;

    if (is_first || i % N_SHARE == 0) {
        stage->number = UINT32_MAX - i / N_SHARE;
        stage->n_draw = 0;
        st = fresh_workspace(stage);
        if (!st)
            st = play_whole(stage);
    }
    stage->number = i;
    stage->n_draw = 0;
    return st;
}

/* As many schedules as there is time for, until one is wrong. */
static enum status play_all(struct stage *stage, const char *dir,
                            const struct gpu_exact_what *what,
                            struct result *out)
{
    const uint64_t start = seconds_now();
    uint64_t said = start;
    enum status st = STATUS_OK;

    while (!st && out->n_played < what->n_schedule && !stage->n_wrong) {
        const uint64_t i = what->first + out->n_played, now = seconds_now();

        if (what->seconds && now - start >= what->seconds)
            break;
        if (now - said >= SAY_EVERY_S) {
            said = now;
            printf("  %u of %u schedules, %lu steps\n", out->n_played,
                   what->n_schedule, stage->n_step);
        }
        st = play(stage, i, out->n_played == 0);
        if (!st && out->n_played == 0)
            st =
                compare_cpu(stage, dir, &what->choice, &out->error, &out->size);
        if (!st)
            st = play_schedule(stage);
        out->n_played += !st;
    }
    return st;
}

int gpu_exact(const char *dir, const struct gpu_exact_what *what)
{
    struct stage stage = {.seed = what->seed, .policies = what->policies};
    struct result it = {.size = 1};
    bool is_near;
    enum status st = open_stage(&what->choice, dir, &stage);

    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    if (!st)
        st = play_all(&stage, dir, what, &it);
    if (st) {
        close_stage(&stage);
        return gpu_fail(dir);
    }
    is_near = it.error <= FAR_MAX * it.size;
    /* Two libraries that say the same here make the same bits. */
    printf("%s %s: bits %016lx%016lx\n", dir, model_numerics(stage.model),
           stage.bits.hi, stage.bits.lo);
    printf("%s: %u of %u schedules%s, %lu steps (%lu of single rows, %lu wrong "
           "drafts), %lu rows: %lu differ; from the CPU's logits %.2e of "
           "%.2e%s\n",
           dir, it.n_played, what->n_schedule,
           it.n_played < what->n_schedule && !stage.n_wrong
               ? " (there was no time for more)"
               : "",
           stage.n_step, stage.n_decode, stage.n_draft, stage.n_row,
           stage.n_wrong, it.error, it.size, is_near ? "" : ": TOO FAR");
    close_stage(&stage);
    return stage.n_wrong || !is_near || !it.n_played;
}
