/*
 * Parts of `godwitd eval` that need no model. Judges: counting (a permutation
 * has each element once), the benchmarks' definitions read by hand, and
 * Wilson's interval as tables print it. Whole samples are read by
 * tests/eval/check_samples.py.
 */
#include "node/eval_fit.h"
#include "node/eval_score.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())
#define TINY "assets/models/godwit-tiny"

static const struct draw DRAW = {.seed = 5, .realm = 2, .index = 9};

/* ------------------------------------------------------------------ choices */

Test(eval_draw, distinct_numbers_are_a_permutation_of_any_size)
{
    static const uint32_t SIZE[] = {1, 2, 3, 4, 5, 63, 64, 65, 1000, 16384};

    for (size_t s = 0; s < sizeof(SIZE) / sizeof(SIZE[0]); s++) {
        const uint32_t n = SIZE[s];
        uint8_t *seen = calloc(n, 1);
        uint32_t n_fixed = 0;

        for (uint32_t i = 0; i < n; i++) {
            const uint32_t at = draw_distinct(&DRAW, DRAW_KEY, i, n);

            cr_assert(lt(u32, at, n));
            cr_assert(zero(u8, seen[at]), "%u of %u twice", at, n);
            seen[at] = 1;
            n_fixed += at == i;
        }
        /* One is expected, and 20 are not seen in the age of the world. */
        cr_assert(lt(u32, n_fixed, 20), "%u of %u stay", n_fixed, n);
        free(seen);
    }
}

Test(eval_draw, every_part_of_its_name_changes_a_choice)
{
    struct draw other[4] = {DRAW, DRAW, DRAW, DRAW};
    uint32_t word[4], changed[4];

    other[0].seed++;
    other[1].seed += (uint64_t)1 << 32;
    other[2].realm++;
    other[3].index++;
    draw_bits(&DRAW, DRAW_KEY, 3, word);
    for (int i = 0; i < 4; i++) {
        draw_bits(&other[i], DRAW_KEY, 3, changed);
        cr_assert(ne(u32, changed[0], word[0]), "part %d", i);
        cr_assert(ne(u32, draw_distinct(&other[i], DRAW_KEY, 3, 1u << 30),
                     draw_distinct(&DRAW, DRAW_KEY, 3, 1u << 30)),
                  "part %d", i);
    }
    draw_bits(&DRAW, DRAW_VALUE, 3, changed);
    cr_assert(ne(u32, changed[0], word[0]));
    draw_bits(&DRAW, DRAW_KEY, 4, changed);
    cr_assert(ne(u32, changed[0], word[0]));
}

Test(eval_draw, numbers_below_n_are_even)
{
    static const uint32_t SIZE[] = {1, 3, 7, 10};

    for (size_t s = 0; s < sizeof(SIZE) / sizeof(SIZE[0]); s++) {
        uint32_t count[10] = {0};
        double chi = 0;

        for (uint32_t i = 0; i < 10000; i++) {
            const uint32_t at = draw_below(&DRAW, DRAW_WORD, i, SIZE[s]);

            cr_assert(lt(u32, at, SIZE[s]));
            count[at]++;
        }
        for (uint32_t i = 0; i < SIZE[s]; i++) {
            const double wanted = 10000.0 / SIZE[s];

            chi += (count[i] - wanted) * (count[i] - wanted) / wanted;
        }
        cr_assert(lt(dbl, chi, 30)); /* 9 degrees: once in 2,000 seeds */
    }
}

Test(eval_words, each_number_has_a_word_of_its_own)
{
    static const uint32_t FAR[] = {256, 257, 315, 316, 3855, 3856, 216255};
    char word[EVAL_WORD_SIZE], other[EVAL_WORD_SIZE];

    for (uint32_t i = 0; i < 600; i++)
        for (uint32_t k = 0; k < i; k++) {
            eval_write_word(i, word);
            eval_write_word(k, other);
            cr_assert(ne(str, (char *)word, (char *)other), "%u, %u", i, k);
        }
    for (size_t i = 1; i < sizeof(FAR) / sizeof(FAR[0]); i++) {
        eval_write_word(FAR[i], word);
        eval_write_word(FAR[i - 1], other);
        cr_assert(ne(str, (char *)word, (char *)other));
    }
}

Test(eval_task, depth_steps_go_from_the_first_place_to_the_last)
{
    static const struct {
        uint32_t step, n_step, n, place;
    } CASE[] = {{0, 5, 9, 0},   {1, 5, 9, 2}, {2, 5, 9, 4},
                {4, 5, 9, 8},   {0, 5, 1, 0}, {4, 5, 1, 0},
                {0, 1, 9, 4},   {0, 1, 1, 0}, {99, 101, 2, 1},
                {1, 101, 2, 0}, {1, 3, 2, 1}, {100, 101, 16777216, 16777215}};

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++)
        cr_assert(
            eq(u32,
               eval_place((struct eval_depth){CASE[i].step, CASE[i].n_step},
                          CASE[i].n),
               CASE[i].place),
            "case %zu", i);
}

/* ------------------------------------------------------------------- scores */

static struct eval_expected expect(const char *a, const char *b)
{
    struct eval_expected expected = {.n = b ? 2 : 1};

    (void)snprintf(expected.text[0], EVAL_WORD_SIZE, "%s", a);
    if (b)
        (void)snprintf(expected.text[1], EVAL_WORD_SIZE, "%s", b);
    return expected;
}

Test(eval_score, right_and_wrong_answers)
{
    static const struct {
        enum eval_score score;
        const char *answer, *a, *b;
        uint32_t n_hit;
    } CASE[] = {
        {EVAL_CONTAINS, " 1234567.", "1234567", NULL, 1},
        {EVAL_CONTAINS, "91234567", "1234567", NULL, 1}, /* as RULER */
        {EVAL_CONTAINS, " 123456", "1234567", NULL, 0},
        {EVAL_CONTAINS, "", "1234567", NULL, 0},
        {EVAL_CONTAINS, "7777888, then 1234567", "1234567", "7777888", 2},
        {EVAL_CONTAINS, "7777888 7777888", "1234567", "7777888", 1},
        {EVAL_CONTAINS, "abcde aBcDf", "ABCDE", "ABCDF", 2},
        {EVAL_CONTAINS, "abcd e", "ABCDE", NULL, 0},
        {EVAL_CONTAINS, "11121", "1121", NULL, 1}, /* looks again at each */
        {EVAL_FIRST_INTEGER, " 12345.", "12345", NULL, 1},
        {EVAL_FIRST_INTEGER, "is 12345 or 54321", "12345", NULL, 1},
        {EVAL_FIRST_INTEGER, "is 54321 or 12345", "12345", NULL, 0},
        {EVAL_FIRST_INTEGER, "123456", "12345", NULL, 0},
        {EVAL_FIRST_INTEGER, "1234", "12345", NULL, 0},
        {EVAL_FIRST_INTEGER, "none", "12345", NULL, 0},
        {EVAL_FIRST_INTEGER, "", "12345", NULL, 0},
        {EVAL_WORD, "\"ab-cd\"}", "ab-cd", NULL, 1},
        {EVAL_WORD, "it is: ab-cd.", "ab-cd", NULL, 1},
        {EVAL_WORD, "ab-cde", "ab-cd", NULL, 0},
        {EVAL_WORD, "xab-cd", "ab-cd", NULL, 0},
        {EVAL_WORD, "ab-CD", "ab-cd", NULL, 0},
        {EVAL_WORD, "ab cd", "ab-cd", NULL, 0},
        {EVAL_WORD, "", "ab-cd", NULL, 0},
    };

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        const struct eval_expected expected = expect(CASE[i].a, CASE[i].b);

        cr_assert(eq(u32,
                     eval_hits(CASE[i].score, CASE[i].answer,
                               strlen(CASE[i].answer), &expected),
                     CASE[i].n_hit),
                  "case %zu: %s", i, CASE[i].answer);
    }
}

/* Brown, Cai, DasGupta 2001 and R's binom.confint(method = "wilson"). */
Test(eval_score, wilson_as_printed_elsewhere)
{
    static const struct {
        uint32_t hit, n;
        double low, high;
    } CASE[] = {{0, 10, 0, 0.27753},       {10, 10, 0.72247, 1},
                {8, 10, 0.49016, 0.94332}, {5, 10, 0.23659, 0.76341},
                {1, 1, 0.20655, 1},        {50, 100, 0.40383, 0.59617}};
    const struct eval_interval none = eval_wilson(0, 0);

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        const struct eval_interval got =
            eval_wilson((double)CASE[i].hit / CASE[i].n, CASE[i].n);

        cr_assert(epsilon_eq(dbl, got.low, CASE[i].low, 1e-5), "case %zu", i);
        cr_assert(epsilon_eq(dbl, got.high, CASE[i].high, 1e-5), "case %zu", i);
    }
    cr_assert(eq(dbl, none.low, 0));
    cr_assert(eq(dbl, none.high, 1));
}

/* --------------------------------------------------------------- whole ones */

Test(eval_fit, the_next_unit_would_not_fit)
{
    struct tokenizer *tokenizer = NULL;

    must(tokenizer_load(TINY, &tokenizer));
    for (uint32_t t = 0; t < eval_n_task(); t++) {
        const struct eval_task *task = eval_task_at(t);
        const struct eval_item item = eval_item(task, 3, 4, 5, 2000);
        struct eval_prompt prompt = {0};
        struct eval_expected expected;
        struct ids ids = {0};
        char *text = NULL;
        size_t n_text;
        FILE *to;

        if (!task->write)
            continue;
        must(eval_fit(tokenizer, &item, &prompt));
        to = open_memstream(&text, &n_text);
        task->write(&item, prompt.n_unit + 1, to, &expected);
        cr_assert(zero(int, fclose(to)));
        must(tokenizer_encode(tokenizer, text, n_text, true, 1u << 20, &ids));
        cr_assert(le(sz, prompt.ids.n, 2000), "%s", task->name);
        cr_assert(gt(sz, ids.n, 2000), "%s", task->name);
        free(text);
        ids_release(&ids);
        eval_prompt_release(&prompt);
    }
    tokenizer_destroy(tokenizer);
}

Test(eval_fit, what_cannot_be_made_is_refused_and_leaves_nothing)
{
    static const struct {
        const char *task;
        uint32_t length;
    } CASE[] = {{"passkey", 64}, {"cwe", 700}, {"mqar", 1001}, {"mqar", 62}};
    struct tokenizer *tokenizer = NULL;

    must(tokenizer_load(TINY, &tokenizer));
    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        const struct eval_task *task = NULL;
        struct eval_prompt prompt = {.n_unit = 77};
        struct eval_item item;

        must(eval_task_find(CASE[i].task, strlen(CASE[i].task), &task));
        item = eval_item(task, 1, 0, 1, CASE[i].length);
        cr_assert(eq(int, eval_fit(tokenizer, &item, &prompt),
                     STATUS_INVALID_ARGUMENT));
        cr_assert(eq(u32, prompt.n_unit, 77));
        cr_assert(zero(sz, prompt.ids.n));
    }
    tokenizer_destroy(tokenizer);
}

Test(eval_task, an_unknown_task_is_refused_with_those_there_are)
{
    const struct eval_task *task = NULL;

    cr_assert(eq(int, eval_task_find("needl", 5, &task), STATUS_NOT_FOUND));
    cr_assert(zero(ptr, (void *)task));
    cr_assert(strstr(status_reason(), "niah_multikey_3") != NULL);
    cr_assert(strstr(status_reason(), "needle_multikey") != NULL);
    must(eval_task_find("needle", 6, &task));
    cr_assert(eq(str, (char *)task->name, "needle"));
}
