/*
 * RULER's tasks of counting, for which no single place of the text has the
 * answer: common words of a list, and frequent words of a Zipf text. A text of
 * n words is a random order of 0 .. n - 1, so no list of them is kept.
 */
#include "node/eval_task.h"

#include <assert.h>

#define N_COMMON 10u
#define N_FREQUENT 3u
#define LONG_LENGTH 8192u /* from here on words are repeated more often */
#define ORDER_SHOWN 0xe5548u
#define ORDER_ASKED 0xe5549u
#define VOCABULARY_SHARE 50u
#define VOCABULARY_MIN 5u

/* One numbered list: N_COMMON words and n_rare others, each repeated. */
struct list {
    struct draw draw;
    uint32_t first; /* of its words in the draw */
    uint32_t realm; /* of its order, so that two lists have two */
    uint32_t n_rare, n_common_times, n_rare_times;
};

static void write_listed(const struct list *list, uint32_t i, char *out)
{
    eval_write_word(
        draw_distinct(&list->draw, DRAW_WORD, list->first + i, EVAL_N_WORD),
        out);
}

static void write_list(const struct list *list, FILE *to)
{
    const uint32_t n_common = N_COMMON * list->n_common_times;
    const uint32_t n = n_common + list->n_rare * list->n_rare_times;
    const struct draw order = {list->draw.seed, list->realm, list->draw.index};

    (void)fputs("Below is a numbered list of words. In these words, some "
                "appear more often than others. Memorize the ones that appear "
                "most often.\n",
                to);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = draw_distinct(&order, DRAW_ORDER, i, n);
        char word[EVAL_WORD_SIZE];

        write_listed(list,
                     at < n_common
                         ? at / list->n_common_times
                         : N_COMMON + (at - n_common) / list->n_rare_times,
                     word);
        fprintf(to, "%s%u. %s", i ? " " : "", i + 1, word);
    }
    fprintf(to,
            "\nQuestion: What are the %u most common words in the above list? "
            "Answer: The top %u words that appear most often in the list are:",
            N_COMMON, N_COMMON);
}

void eval_write_common(const struct eval_item *item, uint32_t n_unit, FILE *to,
                       struct eval_expected *expected)
{
    const bool is_long = item->length >= LONG_LENGTH;
    struct list shown = {eval_draw_own(item), 0, ORDER_SHOWN, 30, 10, 3};
    struct list asked = {eval_draw_own(item), 64, ORDER_ASKED, n_unit, 30, 3};

    if (!is_long) {
        shown.n_rare = 4, shown.n_common_times = 2, shown.n_rare_times = 1;
        asked.n_common_times = 6, asked.n_rare_times = 1;
    }
    write_list(&shown, to);
    for (uint32_t i = 0; i < N_COMMON; i++) {
        char word[EVAL_WORD_SIZE];

        write_listed(&shown, i, word);
        fprintf(to, " %u. %s", i + 1, word);
    }
    (void)fputs("\n\n", to);
    write_list(&asked, to);
    expected->n = N_COMMON;
    for (uint32_t i = 0; i < N_COMMON; i++)
        write_listed(&asked, i, expected->text[i]);
}

/* Times of the word of rank k = 1, 2, ... among n: n / (k^2 zeta(2)). */
static uint32_t zipf_times(uint32_t n, uint64_t k)
{
    return (uint32_t)((uint64_t)n * 6079271u / (10000000u * k * k));
}

/* The rank of the at-th word when all are sorted by rank. */
static uint32_t zipf_rank(uint32_t n, uint32_t at)
{
    uint32_t k = 1, below = zipf_times(n, 1);

    while (below <= at)
        below += zipf_times(n, ++k);
    return k;
}

static void write_coded(const struct draw *draw, uint32_t rank, char *out)
{
    if (rank == 1)
        (void)snprintf(out, EVAL_WORD_SIZE, "...");
    else
        eval_write_letters(
            draw_distinct(draw, DRAW_WORD, rank, EVAL_N_LETTERS_6), out);
}

void eval_write_frequent(const struct eval_item *item, uint32_t n_unit,
                         FILE *to, struct eval_expected *expected)
{
    const struct draw own = eval_draw_own(item);
    const uint32_t share = item->length / VOCABULARY_SHARE;
    const uint32_t n_word = share > VOCABULARY_MIN ? share : VOCABULARY_MIN;
    uint32_t n = 0;

    for (uint32_t k = 1; k <= n_word && zipf_times(n_unit, k); k++)
        n += zipf_times(n_unit, k);
    (void)fputs("Read the following coded text and track the frequency of "
                "each coded word. Find the three most frequently appeared "
                "coded words.",
                to);
    for (uint32_t i = 0; i < n; i++) {
        char word[EVAL_WORD_SIZE];

        write_coded(&own,
                    zipf_rank(n_unit, draw_distinct(&own, DRAW_ORDER, i, n)),
                    word);
        fprintf(to, " %s", word);
    }
    (void)fputs("\nQuestion: Do not provide any explanation. Please ignore "
                "the dots '...'. What are the three most frequently appeared "
                "words in the above coded text? Answer: According to the "
                "coded text above, the three most frequently appeared words "
                "are:",
                to);
    expected->n = N_FREQUENT;
    for (uint32_t i = 0; i < N_FREQUENT; i++)
        write_coded(&own, 2 + i, expected->text[i]);
}
