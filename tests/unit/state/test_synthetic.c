/*
 * Models made without files, of every config under tests/golden: the laws that
 * hold for loaded ones (E1 batch, E2 cut) and that a seed decides everything.
 */
#include "state/memory.h"

#include <criterion/criterion.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 150u /* two grid points */
#define N_SESSION 3u

static struct model *make(const char *path, uint64_t seed)
{
    struct model_options options = {0};
    struct model *model;

    cr_assert_eq(backend_find("auto", &options.backend), STATUS_OK);
    cr_assert_eq(model_load_synthetic(path, seed, &options, &model), STATUS_OK,
                 "%s: %s", path, status_reason());
    return model;
}

static uint32_t token_of(const struct model *model, uint32_t s, uint32_t t)
{
    return (t * 2654435761u + 77u * s) % model_config(model)->n_vocab;
}

/* Advance sessions [0, n) by the tokens [from, to) in one batch. */
static const float *feed(const struct model *model, struct workspace *workspace,
                         struct memory **memory, uint32_t first_session,
                         uint32_t n, uint32_t from, uint32_t to)
{
    uint32_t token[N_SESSION * N_TOKEN], logit[N_SESSION], n_row = 0;
    struct span span[N_SESSION];
    const float *out;

    for (uint32_t i = 0; i < n; i++) {
        cr_assert_eq(memory_reserve(memory[i], to), STATUS_OK);
        span[i] = (struct span){.first_row = n_row,
                                .n_row = to - from,
                                .position = from,
                                .layer = memory_layers(memory[i])};
        for (uint32_t t = from; t < to; t++)
            token[n_row++] = token_of(model, first_session + i, t);
        logit[i] = n_row - 1;
    }
    out = model_forward(model, NULL, workspace,
                        &(struct batch){.token = token,
                                        .n_row = n_row,
                                        .span = span,
                                        .n_span = n,
                                        .logit_row = logit,
                                        .n_logit = n});
    for (uint32_t i = 0; i < n; i++)
        memory_advance(memory[i], to - from);
    return out;
}

/* Logits of each session's last token, fed whole and together; free() them. */
static float *play_together(const struct model *model)
{
    const size_t n = (size_t)N_SESSION * model_config(model)->n_vocab;
    float *out = malloc(n * sizeof(*out));
    struct memory *memory[N_SESSION];
    struct workspace *workspace;

    cr_assert_eq(workspace_create(model, N_SESSION * N_TOKEN, N_SESSION,
                                  N_SESSION, &workspace),
                 STATUS_OK);
    for (uint32_t i = 0; i < N_SESSION; i++)
        cr_assert_eq(memory_create(model, &memory[i]), STATUS_OK);
    memcpy(out, feed(model, workspace, memory, 0, N_SESSION, 0, N_TOKEN),
           n * sizeof(*out));
    for (uint32_t i = 0; i < N_SESSION; i++)
        memory_destroy(memory[i]);
    workspace_destroy(workspace);
    return out;
}

/* The same of session s alone, in pieces. */
static float *play_alone(const struct model *model, uint32_t s)
{
    static const uint32_t CUT[] = {0, 1, 60, 64, 131, 149, N_TOKEN};
    const size_t n = model_config(model)->n_vocab;
    float *out = malloc(n * sizeof(*out));
    struct workspace *workspace;
    struct memory *memory;

    cr_assert_eq(workspace_create(model, N_TOKEN, 1, 1, &workspace), STATUS_OK);
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    for (size_t i = 1; i < sizeof(CUT) / sizeof(CUT[0]); i++)
        memcpy(out, feed(model, workspace, &memory, s, 1, CUT[i - 1], CUT[i]),
               n * sizeof(*out));
    memory_destroy(memory);
    workspace_destroy(workspace);
    return out;
}

static void assert_sane(const float *logit, size_t n, const char *path)
{
    double squares = 0;

    for (size_t i = 0; i < n; i++)
        squares += (double)logit[i] * logit[i];
    cr_assert(squares > 0.1 * (double)n && squares < 10.0 * (double)n,
              "%s: mean square of logits is %g", path, squares / (double)n);
}

static void visit(const char *path)
{
    struct model *model = make(path, 5), *twin = make(path, 5);
    struct model *other = make(path, 6);
    const size_t n = model_config(model)->n_vocab;
    float *all = play_together(model), *again = play_together(twin);
    float *differs = play_together(other);

    cr_assert(digest_equal(model_fingerprint(model), model_fingerprint(twin)));
    cr_assert(
        !digest_equal(model_fingerprint(model), model_fingerprint(other)));
    cr_assert_gt(model_n_parameter(model), 10000);
    cr_assert(memcmp(all, again, N_SESSION * n * sizeof(*all)) == 0, "%s",
              path);
    cr_assert(memcmp(all, differs, N_SESSION * n * sizeof(*all)) != 0, "%s",
              path);
    assert_sane(all, N_SESSION * n, path);
    for (uint32_t s = 0; s < N_SESSION; s++) {
        float *alone = play_alone(model, s);

        cr_assert(memcmp(alone, all + s * n, n * sizeof(*alone)) == 0,
                  "%s: session %u differs alone and cut", path, s);
        free(alone);
    }
    free(all);
    free(again);
    free(differs);
    model_destroy(model);
    model_destroy(twin);
    model_destroy(other);
}

Test(synthetic, models_of_every_architecture_are_exact_and_decided_by_the_seed)
{
    glob_t found;

    cr_assert_eq(glob("tests/golden/*/config.json", 0, NULL, &found), 0);
    cr_assert_geq(found.gl_pathc, 3);
    for (size_t i = 0; i < found.gl_pathc; i++)
        visit(found.gl_pathv[i]);
    globfree(&found);
}

Test(synthetic, a_bad_config_is_refused_with_its_reason)
{
    struct model_options options = {.n_context = 1u << 30};
    struct model *model = NULL;

    cr_assert_eq(backend_find("auto", &options.backend), STATUS_OK);
    cr_assert_eq(
        model_load_synthetic("tests/golden/none.json", 1, &options, &model),
        STATUS_NOT_FOUND);
    cr_assert_eq(model_load_synthetic("tests/golden/qwen3/config.json", 1,
                                      &options, &model),
                 STATUS_INVALID_ARGUMENT);
    cr_assert_null(model);
}
