/*
 * What an excerpt is asked for with, and which tokens it keeps, by counting who
 * is better.
 */
#include "model/excerpt.h"

#include "model/model.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

Test(excerpt, texts_say_what_is_asked_for)
{
    static const char *const BAD[] = {
        "",       "0",          "-1",          "x",          "12x",
        "12,k",   "12,layer=",  "12,pool=4",   "12,pool=0",  "12,pool=257",
        "12,k=3", "12,layer=x", "12 ,layer=3", "4294967295", "12,layer=-1"};
    char text[EXCERPT_TEXT_SIZE];
    struct excerpt it;

    cr_assert_eq(excerpt_parse("1024", &it), STATUS_OK);
    cr_assert_eq(it.n_keep, 1024);
    cr_assert_eq(it.layer, EXCERPT_LAYER_ANY);
    cr_assert_eq(it.n_pool, 5);
    cr_assert_eq(excerpt_parse("7,pool=1,layer=3", &it), STATUS_OK);
    excerpt_format(&it, text);
    cr_assert_str_eq(text, "7,layer=3,pool=1");
    for (size_t i = 0; i < sizeof(BAD) / sizeof(*BAD); i++) {
        cr_assert_eq(excerpt_parse(BAD[i], &it), STATUS_INVALID_ARGUMENT, "%s",
                     BAD[i]);
        cr_assert_eq(it.n_keep, 7, "untouched");
    }
}

/* Is i before j in the order of who is kept? */
static bool is_better(const float *pooled, uint32_t i, uint32_t j)
{
    if (isnan(pooled[i]) || isnan(pooled[j]))
        return isnan(pooled[i]) == isnan(pooled[j]) ? i < j : !isnan(pooled[i]);
    return pooled[i] > pooled[j] || (pooled[i] == pooled[j] && i < j);
}

static void check(const float *match, uint32_t n, struct excerpt it)
{
    float pooled[700];
    uint32_t got[700], n_want = 0;
    const uint32_t n_got = excerpt_choose(&it, match, n, got);

    cr_assert_eq(n_got, it.n_keep < n ? it.n_keep : n);
    for (uint32_t j = 0; j < n; j++) {
        pooled[j] = 0.0f;
        for (uint32_t i = 0; i < n; i++)
            if (i + it.n_pool / 2 >= j && i <= j + it.n_pool / 2)
                pooled[j] += match[i];
    }
    for (uint32_t j = 0; j < n; j++) {
        uint32_t n_better = j + 1 < n; /* the last one */

        for (uint32_t i = 0; i + 1 < n && j + 1 < n; i++)
            n_better += i != j && is_better(pooled, i, j);
        if (n_better < it.n_keep)
            cr_assert(n_want < n_got && got[n_want++] == j, "%u of %u: %u",
                      it.n_keep, n, j);
    }
    cr_assert_eq(n_want, n_got);
}

Test(excerpt, keeps_the_last_token_and_the_best)
{
    static const uint32_t POOL[] = {1, 5, 31};
    float match[700];
    uint64_t x = 1;

    for (uint32_t kind = 0; kind < 4; kind++)
        for (uint32_t p = 0; p < 3; p++)
            for (uint32_t n = 1; n <= 700; n = n * 2 + 1)
                for (uint32_t n_keep = 1; n_keep < 720; n_keep = n_keep * 3) {
                    for (uint32_t i = 0; i < n; i++) {
                        x = x * 6364136223846793005u + 1442695040888963407u;
                        match[i] = (float)((double)(int32_t)(x >> 32) * 1e-6);
                        if (kind == 1) /* many equal ones, both zeros */
                            match[i] = (float)((int)(x >> 62) - 1) * -0.0f;
                        if (kind == 2)
                            match[i] = (float)((int)(x >> 62) - 1);
                        if (kind == 3 && x >> 60 == 0)
                            match[i] = NAN;
                    }
                    check(
                        match, n,
                        (struct excerpt){.n_keep = n_keep, .n_pool = POOL[p]});
                }
}

Test(excerpt, is_of_a_softmax_layer)
{
    struct model_options options = {0};
    struct model *model;
    struct excerpt it = {.n_keep = 1, .layer = EXCERPT_LAYER_ANY, .n_pool = 5};

    cr_assert_eq(backend_find("auto", &options.backend), STATUS_OK);
    cr_assert_eq(model_load("tests/golden/qwen3_5_text", &options, &model),
                 STATUS_OK);
    cr_assert_eq(excerpt_check(model, &it), STATUS_OK);
    cr_assert_eq(it.layer, 3);
    for (uint32_t layer = 0; layer < 9; layer++) {
        it.layer = layer;
        cr_assert_eq(excerpt_check(model, &it), layer == 3 || layer == 5
                                                    ? STATUS_OK
                                                    : STATUS_INVALID_ARGUMENT);
    }
    model_destroy(model);
}
