/*
 * The step as a whole: which logits come out and who owns what. Judged by a
 * second call that asks for everything. Bits over batches, cuts and threads are
 * tests/unit/state/test_exact.c; numbers are the golden.* tests.
 */
#include "model/model.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define DIR "tests/golden/qwen3_5_text"
#define N_ROW 80u

struct stage {
    struct model *model;
    struct workspace *workspace;
    struct layer_memory *layer; /* [n_layer]; owned, as is what it names */
    void *(*block)[2];
};

static void clear(struct stage *stage)
{
    for (uint32_t i = 0; i < model_config(stage->model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(stage->model, i);

        if (stage->layer[i].state)
            memset(stage->layer[i].state, 0, plan->state_bytes);
        for (int b = 0; b < 2 && stage->block[i][b]; b++)
            memset(stage->block[i][b], 0, plan->block_bytes);
    }
}

static struct stage open_stage(uint32_t max_logit)
{
    struct model_options options = {0};
    struct stage stage = {0};
    uint32_t n_layer;

    cr_assert_eq(backend_find("ref", &options.backend), STATUS_OK);
    cr_assert_eq(model_load(DIR, &options, &stage.model), STATUS_OK);
    cr_assert_eq(
        workspace_create(stage.model, N_ROW, 1, max_logit, &stage.workspace),
        STATUS_OK);
    n_layer = model_config(stage.model)->n_layer;
    stage.layer = calloc(n_layer, sizeof(*stage.layer));
    stage.block = calloc(n_layer, sizeof(*stage.block));
    for (uint32_t i = 0; i < n_layer; i++) {
        const struct mixer_plan *plan = model_plan(stage.model, i);

        if (plan->state_bytes)
            stage.layer[i].state = aligned_alloc(64, plan->state_bytes);
        for (int b = 0; b < 2 && plan->block_bytes; b++) {
            stage.block[i][b] = aligned_alloc(64, plan->block_bytes);
            stage.layer[i].block = stage.block[i];
        }
    }
    clear(&stage);
    return stage;
}

static void close_stage(struct stage *stage)
{
    for (uint32_t i = 0; i < model_config(stage->model)->n_layer; i++) {
        free(stage->layer[i].state);
        free(stage->block[i][0]);
        free(stage->block[i][1]);
    }
    free(stage->layer);
    free(stage->block);
    workspace_destroy(stage->workspace);
    model_destroy(stage->model);
}

static const float *step(struct stage *stage, const uint32_t *logit_row,
                         uint32_t n_logit)
{
    uint32_t token[N_ROW];
    const struct span span = {.n_row = N_ROW, .layer = stage->layer};

    for (uint32_t i = 0; i < N_ROW; i++)
        token[i] = (i * 29 + 3) % model_config(stage->model)->n_vocab;
    return model_forward(stage->model, NULL, stage->workspace,
                         &(struct batch){.token = token,
                                         .n_row = N_ROW,
                                         .span = &span,
                                         .n_span = 1,
                                         .logit_row = logit_row,
                                         .n_logit = n_logit});
}

Test(forward, wanted_rows_have_the_logits_that_all_rows_would_have)
{
    static const uint32_t WANT[][4] = {{0}, {79}, {0, 79}, {3, 17, 64, 78}};
    static const uint32_t N_WANT[] = {1, 1, 2, 4};
    struct stage stage = open_stage(N_ROW);
    const size_t n_vocab = model_config(stage.model)->n_vocab;
    float *all = malloc(N_ROW * n_vocab * sizeof(float));
    uint32_t every[N_ROW];

    for (uint32_t i = 0; i < N_ROW; i++)
        every[i] = i;
    memcpy(all, step(&stage, every, N_ROW), N_ROW * n_vocab * sizeof(float));
    for (size_t w = 0; w < 4; w++) {
        const float *some;

        clear(&stage);
        some = step(&stage, WANT[w], N_WANT[w]);
        for (uint32_t i = 0; i < N_WANT[w]; i++)
            cr_assert(memcmp(some + i * n_vocab, all + WANT[w][i] * n_vocab,
                             n_vocab * sizeof(float)) == 0,
                      "row %u", WANT[w][i]);
    }
    free(all);
    close_stage(&stage);
}

/* A prefill without logits leaves the same memory as one with all of them. */
Test(forward, asking_for_no_logits_changes_no_memory)
{
    struct stage with = open_stage(N_ROW), without = open_stage(0);
    const struct config *config = model_config(with.model);
    uint32_t every[N_ROW];

    for (uint32_t i = 0; i < N_ROW; i++)
        every[i] = i;
    (void)step(&with, every, N_ROW);
    (void)step(&without, NULL, 0);
    for (uint32_t i = 0; i < config->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(with.model, i);

        if (plan->state_bytes)
            cr_assert(memcmp(with.layer[i].state, without.layer[i].state,
                             plan->state_bytes) == 0);
        for (int b = 0; b < 2 && plan->block_bytes; b++)
            cr_assert(memcmp(with.block[i][b], without.block[i][b],
                             plan->block_bytes) == 0);
    }
    close_stage(&with);
    close_stage(&without);
}

Test(forward, a_workspace_says_what_it_takes)
{
    struct stage small = open_stage(1), large = open_stage(N_ROW);

    cr_assert_eq(workspace_bytes(large.workspace) -
                     workspace_bytes(small.workspace),
                 (N_ROW - 1) * (size_t)model_config(small.model)->n_vocab *
                     sizeof(float));
    close_stage(&small);
    close_stage(&large);
}
