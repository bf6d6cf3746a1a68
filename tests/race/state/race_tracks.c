/*
 * Prompts that go apart through a model (model/tracks.h) under TSan: each
 * thread of a pool takes some of a pass, in slices that end when a caller says
 * so or the clock does, until all threads share what is left of the longest.
 * Judged by the bits of each prompt alone.
 */
#include "model/pass.h"
#include "state/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIR "tests/golden/qwen3_5_text"
enum { N_PROMPT = 3, N_ROW = 330, N_PASS = 6 };

static const uint32_t LENGTH[N_PROMPT] = {130, 200, 330};
static struct model *model;
static size_t n_vocab;
static uint32_t token[N_PROMPT * N_ROW];

static void check(bool is_true, const char *what)
{
    if (is_true)
        return;
    (void)fprintf(stderr, "race_tracks: %s: %s\n", what, status_reason());
    exit(1);
}

static _Atomic uint32_t n_asked;

/* Every other time somebody asks. */
static bool is_called(const void *caller)
{
    (void)caller;
    return n_asked++ % 2;
}

/* All prompts at once, or prompt by prompt without threads. */
struct prompts {
    struct memory *memory[N_PROMPT];
    struct span span[N_PROMPT];
    uint32_t row[N_PROMPT];
    struct batch batch;
};

static void begin(struct prompts *it)
{
    uint32_t n_row = 0;

    for (uint32_t i = 0; i < N_PROMPT; i++) {
        check(!memory_create(model, &it->memory[i]), "memory");
        check(!memory_reserve(it->memory[i], LENGTH[i]), "blocks");
        it->span[i] = (struct span){.first_row = n_row,
                                    .n_row = LENGTH[i],
                                    .layer = memory_layers(it->memory[i])};
        n_row += LENGTH[i];
        it->row[i] = n_row - 1;
    }
    it->batch = (struct batch){.token = token,
                               .n_row = n_row,
                               .span = it->span,
                               .n_span = N_PROMPT,
                               .logit_row = it->row,
                               .n_logit = N_PROMPT};
}

static void end(struct prompts *it)
{
    for (uint32_t i = 0; i < N_PROMPT; i++)
        memory_destroy(it->memory[i]);
}

static void run_alone(struct workspace *workspace, float *out)
{
    struct prompts it;

    begin(&it);
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        struct span span = it.span[i];
        const uint32_t last = span.n_row - 1;
        const struct batch batch = {.token = token + span.first_row,
                                    .n_row = span.n_row,
                                    .span = &span,
                                    .n_span = 1,
                                    .logit_row = &last,
                                    .n_logit = 1};

        span.first_row = 0;
        memcpy(out + i * n_vocab, model_forward(model, NULL, workspace, &batch),
               n_vocab * sizeof(*out));
    }
    end(&it);
}

static void run_apart(struct workspace *workspace, struct pool *pool,
                      uint32_t linger_us, const float *want)
{
    struct pass_slice slice = {
        .clock = clock_real(), .linger_us = linger_us, .is_called = is_called};
    struct prompts it;

    begin(&it);
    pass_begin(workspace, &it.batch);
    do
        slice.until_us = slice.clock->now_us(slice.clock) + 200;
    while (!pass_run(workspace, pool, &slice));
    check(!memcmp(pass_logits(workspace), want,
                  N_PROMPT * n_vocab * sizeof(*want)),
          "bits");
    end(&it);
}

int main(void)
{
    struct model_options options = {0};
    struct workspace *workspace;
    float *want;

    check(!backend_find("auto", &options.backend), "backend");
    check(!model_load(DIR, &options, &model), "model");
    n_vocab = model_config(model)->n_vocab;
    for (uint32_t i = 0; i < N_PROMPT * N_ROW; i++)
        token[i] = (uint32_t)((i * 2654435761u >> 8) % n_vocab);
    check(!workspace_create(model, N_PROMPT * N_ROW, N_PROMPT, N_PROMPT,
                            &workspace),
          "workspace");
    want = malloc(N_PROMPT * n_vocab * sizeof(*want));
    check(want != NULL, "logits");
    run_alone(workspace, want);
    for (uint32_t n_thread = 2; n_thread <= N_PROMPT; n_thread++) {
        struct pool *pool;

        check(!pool_create(n_thread, &pool), "pool");
        for (uint32_t i = 0; i < N_PASS; i++)
            run_apart(workspace, pool, i % 2 * 1000, want);
        pool_destroy(pool);
    }
    free(want);
    workspace_destroy(workspace);
    model_destroy(model);
    return 0;
}
