#include "model/moe.h"

#include "model/mixer.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUSED_GATE_UP "mlp.experts.gate_up_proj"
#define FUSED_DOWN "mlp.experts.down_proj"

struct moe {
    uint32_t n_expert, n_chosen;
    bool is_renormalised;
    struct linear router;   /* [n_expert, hidden], then the shared gate; FP32 */
    struct linear *gate_up; /* [n_expert] of [2 n_ff, hidden]; owned */
    struct linear *down;    /* [n_expert] of [hidden, n_ff]; owned */
    struct mlp shared;      /* empty where there is none */
    struct device *device;  /* in whose memory weights lie; NULL: the host's */
    void *block[2]; /* there, the experts' gate_up and down one behind the
                       other; owned */
};

/* The parts of the workspace of n_row rows; strides in floats. */
struct room {
    struct routing by;
    size_t logit_stride, wide, narrow, hidden; /* strides */
    float *logit;                              /* by row */
    float *gate_up, *act, *down;               /* by place */
    float *shared; /* by row; empty where there is none */
};

/* ----------------------------------------------------------------- loading */

static bool is_fused(const struct weight_source *weights, const char *prefix)
{
    char name[WEIGHTS_NAME_SIZE];

    (void)snprintf(name, sizeof(name), "%s%s", prefix, FUSED_GATE_UP);
    return safetensors_find(weights->file, name) != NULL;
}

/* Expert e of a tensor of all: n_row rows of [n_expert, n_row, n_in]. */
static struct weight_part one_of_all(const char *name, uint32_t n_expert,
                                     uint32_t n_row, uint32_t e)
{
    return (struct weight_part){.name = name,
                                .n_outer = n_expert,
                                .n_row = n_row * n_expert,
                                .first = n_row * e,
                                .n_each = n_row,
                                .stride = n_row,
                                .n_group = 1};
}

static enum status load_fused(const struct config *config,
                              const struct weight_source *weights,
                              const char *prefix, uint32_t e, struct moe *moe)
{
    const uint32_t n_ff = config->n_expert_ff;
    const struct weight_part gate_up =
        one_of_all(FUSED_GATE_UP, config->n_expert, 2 * n_ff, e);
    const struct weight_part down =
        one_of_all(FUSED_DOWN, config->n_expert, config->hidden, e);
    const enum status st = weights_linear(weights, prefix, &gate_up, 1,
                                          config->hidden, &moe->gate_up[e]);

    if (st)
        return st;
    return weights_linear(weights, prefix, &down, 1, n_ff, &moe->down[e]);
}

static enum status load_single(const struct config *config,
                               const struct weight_source *weights,
                               const char *prefix, uint32_t e, struct moe *moe)
{
    static const char *const NAME[3] = {"gate_proj", "up_proj", "down_proj"};
    const uint32_t n_ff = config->n_expert_ff;
    char name[3][64];
    struct weight_part gate_up[2], down;
    enum status st;

    for (uint32_t i = 0; i < 3; i++)
        (void)snprintf(name[i], sizeof(name[i]), "mlp.experts.%u.%s.weight", e,
                       NAME[i]);
    gate_up[0] = weight_whole(name[0], n_ff);
    gate_up[1] = weight_whole(name[1], n_ff);
    down = weight_whole(name[2], config->hidden);
    st = weights_linear(weights, prefix, gate_up, 2, config->hidden,
                        &moe->gate_up[e]);
    if (st)
        return st;
    return weights_linear(weights, prefix, &down, 1, n_ff, &moe->down[e]);
}

/* One expert's weights to their place in the device's block of all. */
static enum status move_expert(struct moe *moe, struct linear *all, uint32_t e,
                               void **block)
{
    const size_t bytes = linear_bytes(&all[0]);
    enum status st = STATUS_OK;
    char *to;

    if (!moe->device)
        return STATUS_OK;
    if (!*block)
        st = device_take(moe->device, moe->n_expert * bytes, block);
    if (st)
        return st;
    to = (char *)*block + e * bytes;
    device_write(moe->device, to, all[e].panel, bytes);
    free(all[e].panel);
    all[e].panel = to;
    all[e].device = moe->device;
    return STATUS_OK;
}

static enum status load_experts(const struct config *config,
                                const struct weight_source *weights,
                                const char *prefix, struct moe *moe)
{
    const bool fused = is_fused(weights, prefix);
    struct weight_source to_host = *weights;

    to_host.device = NULL;
    for (uint32_t e = 0; e < moe->n_expert; e++) {
        enum status st = fused ? load_fused(config, &to_host, prefix, e, moe)
                               : load_single(config, &to_host, prefix, e, moe);

        if (st)
            return st;
        if (moe->gate_up[e].type != moe->gate_up[0].type ||
            moe->down[e].type != moe->down[0].type)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%smlp: weights of experts 0 and %u differ in "
                               "type, expected one",
                               prefix, e);
        st = move_expert(moe, moe->gate_up, e, &moe->block[0]);
        if (!st)
            st = move_expert(moe, moe->down, e, &moe->block[1]);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status load_shared(const struct config *config,
                               const struct weight_source *weights,
                               const char *prefix, struct moe *moe)
{
    char name[WEIGHTS_NAME_SIZE];

    if (!config->n_shared_ff)
        return STATUS_OK;
    (void)snprintf(name, sizeof(name), "%smlp.shared_expert.", prefix);
    return mlp_load(weights, name, config->hidden, config->n_shared_ff,
                    &moe->shared);
}

static enum status load(const struct config *config,
                        const struct weight_source *weights, const char *prefix,
                        struct moe *moe)
{
    const struct weight_part router[2] = {
        weight_whole("mlp.gate.weight", config->n_expert),
        weight_whole("mlp.shared_expert_gate.weight", 1),
    };
    const struct weight_source plain = {.file = weights->file,
                                        .device = weights->device};
    const size_t bytes = config->n_expert * sizeof(struct linear);
    enum status st;

    moe->n_expert = config->n_expert;
    moe->n_chosen = config->n_chosen;
    moe->is_renormalised = config->is_renormalised;
    moe->device = weights->device;
    moe->gate_up = weights_room(bytes);
    moe->down = weights_room(bytes);
    if (!moe->gate_up || !moe->down)
        return STATUS_RESOURCE_EXHAUSTED;
    st = weights_linear(&plain, prefix, router, config->n_shared_ff ? 2 : 1,
                        config->hidden, &moe->router);
    if (!st)
        st = load_experts(config, weights, prefix, moe);
    if (!st)
        st = load_shared(config, weights, prefix, moe);
    return st;
}

enum status moe_create(const struct config *config,
                       const struct weight_source *weights, const char *prefix,
                       struct moe **out)
{
    struct moe *moe = weights_room(sizeof(*moe));
    enum status st;

    static_assert(CONFIG_EXPERT_MAX <= EXPERT_MAX, "kernels take them all");
    if (!moe)
        return STATUS_RESOURCE_EXHAUSTED;
    st = load(config, weights, prefix, moe);
    if (st) {
        moe_destroy(moe);
        return st;
    }
    *out = moe;
    return STATUS_OK;
}

/* Those that lie in a block go with it. */
static void release_experts(struct moe *moe, struct linear *all, void *block)
{
    for (uint32_t e = 0; all && e < moe->n_expert; e++)
        if (!all[e].device)
            linear_release(&all[e]);
    device_give(moe->device, block);
    free(all);
}

void moe_destroy(struct moe *moe)
{
    if (!moe)
        return;
    release_experts(moe, moe->gate_up, moe->block[0]);
    release_experts(moe, moe->down, moe->block[1]);
    linear_release(&moe->router);
    mlp_release(&moe->shared);
    free(moe);
}

/* ------------------------------------------------------------------- facts */

static size_t expert_bytes(const struct moe *moe)
{
    return linear_bytes(&moe->gate_up[0]) + linear_bytes(&moe->down[0]);
}

/* Of what every row meets. */
static size_t common_bytes(const struct moe *moe)
{
    return linear_bytes(&moe->router) + mlp_bytes(&moe->shared);
}

size_t moe_bytes(const struct moe *moe)
{
    return common_bytes(moe) + moe->n_expert * expert_bytes(moe);
}

double moe_step_bytes(const struct moe *moe, double n_row)
{
    const double n = moe->n_expert;
    const double missed = pow(1.0 - moe->n_chosen / n, n_row);

    return (double)common_bytes(moe) +
           n * (1.0 - missed) * (double)expert_bytes(moe);
}

enum linear_type moe_type(const struct moe *moe)
{
    return moe->gate_up[0].type;
}

double moe_row_flops(const struct config *config)
{
    const double n_ff =
        (double)config->n_chosen * config->n_expert_ff + config->n_shared_ff;
    const double n_logit = config->n_expert + (config->n_shared_ff ? 1.0 : 0.0);

    return 2.0 * config->hidden * (n_logit + 3.0 * n_ff);
}

uint64_t moe_n_idle(const struct config *config)
{
    return 3 * (uint64_t)config->hidden * config->n_expert_ff *
           (config->n_expert - config->n_chosen);
}

/* --------------------------------------------------------------- workspace */

static struct room strides(uint32_t hidden, uint32_t n_expert, uint32_t n_ff)
{
    return (struct room){.logit_stride = row_stride((size_t)n_expert + 1),
                         .wide = row_stride(2 * (size_t)n_ff),
                         .narrow = row_stride(n_ff),
                         .hidden = row_stride(hidden)};
}

/* Floats of a row, with those that the rows have once: first[n_expert + 1]. */
static size_t row_floats(const struct room *r, uint32_t n_chosen,
                         bool has_shared)
{
    return 2 * r->logit_stride + 4 * row_stride(n_chosen) +
           n_chosen * (r->wide + r->narrow + r->hidden) +
           (has_shared ? r->hidden : 0);
}

size_t moe_row_floats(const struct config *config)
{
    const struct room room =
        strides(config->hidden, config->n_expert, config->n_expert_ff);

    return row_floats(&room, config->n_chosen, config->n_shared_ff > 0);
}

/* Take n floats, or as many 32-bit numbers. */
static void *take(float **at, size_t n)
{
    void *taken = *at;

    *at += n;
    return taken;
}

static struct room room_of(const struct moe *moe, const struct mlp_args *args)
{
    const size_t n_row = args->n_row, n_place = n_row * moe->n_chosen;
    const size_t n_turn = n_row * row_stride(moe->n_chosen);
    struct room r = strides(moe->router.n_in, moe->n_expert, moe->down->n_in);
    float *at = args->work;

    r.by = (struct routing){.n_row = args->n_row,
                            .n_expert = moe->n_expert,
                            .n_chosen = moe->n_chosen};
    r.logit = take(&at, n_row * r.logit_stride);
    r.by.first = take(&at, r.logit_stride);
    r.by.weight = take(&at, n_turn);
    r.by.expert = take(&at, n_turn);
    r.by.place = take(&at, n_turn);
    r.by.row = take(&at, n_turn);
    r.gate_up = take(&at, n_place * r.wide);
    r.act = take(&at, n_place * r.narrow);
    r.down = take(&at, n_place * r.hidden);
    r.shared = at;
    return r;
}

/* -------------------------------------------------------------------- rows */

static void route(const struct moe *moe, const struct mlp_args *args,
                  const struct room *r)
{
    args->backend->linear(args->pool,
                          &(struct linear_args){.y = r->logit,
                                                .y_stride = r->logit_stride,
                                                .x = args->x,
                                                .x_stride = moe->router.n_in,
                                                .n_row = args->n_row,
                                                .w = &moe->router});
    args->backend->route(
        args->pool,
        &(struct route_args){.to = r->by,
                             .logit = r->logit,
                             .logit_stride = r->logit_stride,
                             .is_renormalised = moe->is_renormalised});
}

static void run_experts(const struct moe *moe, const struct mlp_args *args,
                        const struct room *r)
{
    const struct backend *backend = args->backend;
    const uint32_t n_place = args->n_row * moe->n_chosen;

    backend->expert(args->pool,
                    &(struct expert_args){.y = r->gate_up,
                                          .y_stride = r->wide,
                                          .x = args->x,
                                          .x_stride = moe->router.n_in,
                                          .row = r->by.row,
                                          .first = r->by.first,
                                          .w = moe->gate_up,
                                          .n_expert = moe->n_expert,
                                          .n_place = n_place});
    backend->swiglu(args->pool, &(struct swiglu_args){.y = r->act,
                                                      .y_stride = r->narrow,
                                                      .x = r->gate_up,
                                                      .x_stride = r->wide,
                                                      .n_row = n_place,
                                                      .n_ff = moe->down->n_in});
    backend->expert(args->pool, &(struct expert_args){.y = r->down,
                                                      .y_stride = r->hidden,
                                                      .x = r->act,
                                                      .x_stride = r->narrow,
                                                      .first = r->by.first,
                                                      .w = moe->down,
                                                      .n_expert = moe->n_expert,
                                                      .n_place = n_place});
}

static bool is_bf16(const struct linear *w)
{
    return w->type == LINEAR_BF16 && linear_rounds(w);
}

/* May the backend be asked for all of it at once? */
static bool is_together(const struct moe *moe, const struct mlp_args *args)
{
    const struct mlp *shared = &moe->shared;

    return args->backend->experts && args->x_rounded && is_bf16(moe->gate_up) &&
           is_bf16(moe->down) && moe->down->n_in % 2 == 0 &&
           (!shared->down.n_in ||
            (is_bf16(&shared->gate) && is_bf16(&shared->down)));
}

static void run_together(const struct moe *moe, const struct mlp_args *args,
                         const struct room *r)
{
    const struct mlp *shared = moe->shared.down.n_in ? &moe->shared : NULL;

    args->backend->experts(
        args->pool,
        &(struct experts_args){.y = r->down,
                               .y_stride = r->hidden,
                               .x_rounded = args->x_rounded,
                               .n_row = args->n_row,
                               .row = r->by.row,
                               .first = r->by.first,
                               .gate_up = moe->gate_up,
                               .down = moe->down,
                               .n_expert = moe->n_expert,
                               .n_place = args->n_row * moe->n_chosen,
                               .gate = shared ? &shared->gate : NULL,
                               .up = shared ? &shared->up : NULL,
                               .out = shared ? &shared->down : NULL});
}

static void run_shared(const struct moe *moe, const struct mlp_args *args,
                       const struct room *r)
{
    args->backend->ffn(args->pool,
                       &(struct ffn_args){.y = r->shared,
                                          .y_stride = r->hidden,
                                          .x = args->x,
                                          .x_stride = moe->router.n_in,
                                          .n_row = args->n_row,
                                          .gate = &moe->shared.gate,
                                          .up = &moe->shared.up,
                                          .down = &moe->shared.down});
}

void moe_rows(const struct moe *moe, const struct mlp_args *args)
{
    const struct room r = room_of(moe, args);
    const bool has_shared = moe->shared.down.n_in > 0;

    route(moe, args, &r);
    if (is_together(moe, args)) {
        run_together(moe, args, &r);
    } else {
        run_experts(moe, args, &r);
        if (has_shared)
            run_shared(moe, args, &r);
    }
    args->backend->combine(
        args->pool,
        &(struct combine_args){.y = args->residual,
                               .y_stride = moe->router.n_in,
                               .by = &r.by,
                               .x = r.down,
                               .x_stride = r.hidden,
                               .shared = has_shared ? r.shared : NULL,
                               .shared_stride = r.hidden,
                               .shared_gate = r.logit + moe->n_expert,
                               .gate_stride = r.logit_stride,
                               .dim = moe->router.n_in});
}
