/*
 * Laws that a bench leans on: equal arguments give equal prompts, other
 * numbers and seeds give others, what is shared is shared and nothing more.
 */
#include "ops/bench_prompt.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static uint32_t ids[97];
static const struct bench_words words = {.id = ids, .n_id = 97};

static void fill_ids(void)
{
    for (uint32_t i = 0; i < 97; i++)
        ids[i] = 1000 + i;
}

static size_t equal_head(const uint32_t *a, const uint32_t *b, size_t n)
{
    size_t i = 0;

    while (i < n && a[i] == b[i])
        i++;
    return i;
}

Test(bench_prompt, prompts_share_what_they_should_and_no_more, .init = fill_ids)
{
    struct bench_prompt prompt = {
        .seed = 5, .number = 0, .n_token = 300, .n_shared = 100};
    uint32_t *first = bench_prompt_ids(&words, &prompt), *other;

    for (uint32_t i = 0; i < 300; i++)
        cr_assert(first[i] >= 1000 && first[i] < 1097);
    other = bench_prompt_ids(&words, &prompt);
    cr_expect(equal_head(first, other, 300) == 300);
    free(other);
    for (prompt.number = 1; prompt.number < 50; prompt.number++) {
        size_t n;

        other = bench_prompt_ids(&words, &prompt);
        n = equal_head(first, other, 300);
        cr_expect(n >= 100 && n < 105, "%zu", n);
        free(other);
    }
    prompt.seed++;
    other = bench_prompt_ids(&words, &prompt);
    cr_expect(equal_head(first, other, 300) < 5);
    free(other);
    free(first);
}

Test(bench_prompt, text_is_about_as_long_and_begins_with_what_is_shared,
     .init = fill_ids)
{
    struct bench_prompt prompt = {
        .seed = 5, .number = 1, .n_token = 970, .n_shared = 485};
    char *first = bench_prompt_text(&words, &prompt), *other;
    size_t n = 0, n_word = 0;

    prompt.number = 2;
    other = bench_prompt_text(&words, &prompt);
    for (const char *at = first; *at; at++)
        n_word += *at == ' ';
    cr_expect(n_word > 470 && n_word < 500, "48 words are 97 ids: %zu", n_word);
    while (first[n] && first[n] == other[n])
        n++;
    cr_expect(n > strlen(first) / 3 && n < strlen(first) * 2 / 3);
    free(first);
    free(other);
}
