#include "node/solo.h"

#include "kernels/device.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* A device has many rows at work at a time; so few that their logits would be
 * wanted, too, leave most of it idle. */
#define DEVICE_CHUNK 4096u

enum status solo_init(const struct model *model, struct pool *pool,
                      struct solo *out)
{
    struct solo solo = {.model = model,
                        .pool = pool,
                        .n_row =
                            model_device(model) ? DEVICE_CHUNK : SOLO_CHUNK};
    enum status st;

    st = workspace_create(model, solo.n_row, 1, SOLO_CHUNK, &solo.workspace);
    if (!st)
        st = memory_create(model, &solo.memory);
    if (st)
        solo_release(&solo);
    else
        *out = solo;
    return st;
}

void solo_release(struct solo *solo)
{
    workspace_destroy(solo->workspace);
    memory_destroy(solo->memory);
    memset(solo, 0, sizeof(*solo));
}

/* Empty, under the solo's policy. */
static enum status new_memory(const struct solo *solo, struct memory **out)
{
    struct memory *memory;
    enum status st = memory_create(solo->model, &memory);

    if (st)
        return st;
    st = memory_set_policy(memory, &solo->policy);
    if (st) {
        memory_destroy(memory);
        return st;
    }
    *out = memory;
    return STATUS_OK;
}

/* Rows of the next step, of `left`. */
static uint32_t next_rows(const struct solo *solo, uint64_t left, uint32_t most)
{
    const uint64_t position = memory_position(solo->memory);
    const struct policy *policy = memory_policy(solo->memory);
    uint64_t n = policy_pass_end(policy, position) - position;

    n = n < left ? n : left;
    return n < most ? (uint32_t)n : most;
}

enum status solo_restart(struct solo *solo)
{
    struct memory *fresh = NULL;
    const enum status st = new_memory(solo, &fresh);

    if (st)
        return st;
    memory_destroy(solo->memory);
    solo->memory = fresh;
    return STATUS_OK;
}

/* One step of n rows; logits of all of them, of the last, or of none. */
static enum status step(struct solo *solo, const uint32_t *token, uint32_t n,
                        uint32_t n_logit, const float **out)
{
    const uint64_t position = memory_position(solo->memory);
    uint32_t row[SOLO_CHUNK];
    enum status st;

    assert(n <= solo->n_row && n_logit <= n && n_logit <= SOLO_CHUNK);
    st = memory_reserve(solo->memory, position + n);
    if (st)
        return st;
    for (uint32_t i = 0; i < n_logit; i++)
        row[i] = n - n_logit + i;
    *out = model_forward(
        solo->model, solo->pool, solo->workspace,
        &(struct batch){
            .token = token,
            .n_row = n,
            .span = &(struct span){.n_row = n,
                                   .position = position,
                                   .layer = memory_layers(solo->memory),
                                   .policy = memory_policy(solo->memory)},
            .n_span = 1,
            .logit_row = row,
            .n_logit = n_logit});
    if (!*out)
        return status_cause()->code;
    memory_advance(solo->memory, n);
    return STATUS_OK;
}

enum status solo_feed(struct solo *solo, const uint32_t *token, uint64_t n,
                      const float **out)
{
    enum status st = STATUS_OK;

    for (uint64_t i = 0; i < n && !st;) {
        const uint32_t n_row = next_rows(solo, n - i, solo->n_row);

        st = step(solo, token + i, n_row, i + n_row == n, out);
        i += n_row;
    }
    return st;
}

/* Rows of the chunk that go no further than the layer of `match`. */
static enum status step_to(struct solo *solo, const struct ids *ids,
                           const struct key_match *match)
{
    const uint64_t position = memory_position(solo->memory);
    const uint64_t left = ids->n - position;
    const uint32_t n = left < SOLO_CHUNK ? (uint32_t)left : SOLO_CHUNK;
    enum status st = memory_reserve(solo->memory, position + n);

    if (st)
        return st;
    if (!model_forward(
            solo->model, solo->pool, solo->workspace,
            &(struct batch){
                .token = ids->id + position,
                .n_row = n,
                .span = &(struct span){.n_row = n,
                                       .position = position,
                                       .layer = memory_layers(solo->memory),
                                       .match = match},
                .n_span = 1,
                .n_layer = match->layer + 1}))
        return status_cause()->code;
    memory_advance(solo->memory, n);
    return STATUS_OK;
}

enum status solo_choose(struct solo *solo, const struct excerpt *excerpt,
                        const struct ids *ids, uint32_t *out, uint32_t *out_n)
{
    struct key_match match;
    enum status st;

    assert(!memory_policy(solo->memory) &&
           memory_position(solo->memory) < ids->n);
    st = excerpt_match_init(excerpt, solo->model, ids->n, &match);
    if (st)
        return st;
    while (!st && memory_position(solo->memory) < ids->n)
        st = step_to(solo, ids, &match);
    if (!st)
        *out_n = excerpt_choose(excerpt, match.match, (uint32_t)ids->n, out);
    excerpt_match_release(solo->model, &match);
    return st ? st : solo_restart(solo);
}

enum status solo_feed_all(struct solo *solo, const uint32_t *token, uint64_t n,
                          solo_take *take, void *arg)
{
    for (uint64_t i = 0; i < n;) {
        const uint32_t n_row = next_rows(solo, n - i, SOLO_CHUNK);
        const float *logit;
        const enum status st = step(solo, token + i, n_row, n_row, &logit);

        if (st)
            return st;
        take(arg, i, n_row, logit);
        i += n_row;
    }
    return STATUS_OK;
}

/* Block b of a layer; its index may lie apart from it, in the host's RAM. */
static void copy_block(const struct memory *from, struct memory *to,
                       struct device *device, uint32_t layer, uint64_t b)
{
    const struct mixer_plan *plan = memory_plan(to, layer);

    device_copy(device, memory_block(to, layer, b),
                memory_block(from, layer, b), plan->block_bytes);
    if (plan->index_bytes && !device)
        memcpy(memory_layers(to)[layer].index[b],
               memory_layers(from)[layer].index[b], plan->index_bytes);
}

enum status solo_fork(const struct solo *solo, struct memory **out)
{
    const uint64_t position = memory_position(solo->memory);
    struct device *device = model_device(solo->model);
    const struct layer_memory *from = memory_layers(solo->memory), *to;
    const uint64_t n_block = (position + KV_BLOCK - 1) / KV_BLOCK;
    struct memory *memory = NULL;
    enum status st = new_memory(solo, &memory);

    if (!st)
        st = memory_reserve(memory, position);
    if (st) {
        memory_destroy(memory);
        return st;
    }
    to = memory_layers(memory);
    for (uint32_t i = 0; i < model_config(solo->model)->n_layer; i++) {
        const struct mixer_plan *plan = memory_plan(memory, i);

        device_copy(device, to[i].state, from[i].state, plan->state_bytes);
        for (uint64_t b = 0; b < n_block && plan->block_bytes; b++)
            copy_block(solo->memory, memory, device, i, b);
    }
    memory_advance(memory, position);
    *out = memory;
    return STATUS_OK;
}

#define CHOICES 256u /* logits that are looked at together */
#define LANES 16u

/* Of CHOICES logits, by lanes that the compiler keeps in vectors. NaN is less
 * than all. */
static float largest(const float *logit)
{
    float top[LANES], most = -INFINITY;

    for (uint32_t k = 0; k < LANES; k++)
        top[k] = most;
    for (uint32_t i = 0; i < CHOICES; i += LANES)
        for (uint32_t k = 0; k < LANES; k++)
            top[k] = logit[i + k] > top[k] ? logit[i + k] : top[k];
    for (uint32_t k = 0; k < LANES; k++)
        most = top[k] > most ? top[k] : most;
    return most;
}

uint32_t solo_argmax(const float *logit, uint32_t n_vocab)
{
    float most = logit[0];
    uint32_t best = 0, end; /* the first of the largest */

    for (uint32_t i = 0; i < n_vocab; i = end) {
        end = n_vocab - i < CHOICES ? n_vocab : i + CHOICES;
        if (end - i == CHOICES && !(largest(logit + i) > most))
            continue;
        for (uint32_t k = i; k < end; k++)
            if (logit[k] > most) {
                most = logit[k];
                best = k;
            }
    }
    return best;
}
