#include "node/eval_score.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define QUANTILE 1.959963984540054 /* of the normal distribution at 97.5 % */

static int lower(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
}

static bool contains(const char *answer, size_t n_answer, const char *text)
{
    const size_t n = strlen(text);

    for (size_t at = 0; at + n <= n_answer; at++) {
        size_t i = 0;

        while (i < n && lower(answer[at + i]) == lower(text[i]))
            i++;
        if (i == n)
            return true;
    }
    return false;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool first_integer_is(const char *answer, size_t n_answer,
                             const char *text)
{
    size_t from = 0, to;

    while (from < n_answer && !is_digit(answer[from]))
        from++;
    for (to = from; to < n_answer && is_digit(answer[to]);)
        to++;
    return to > from && strlen(text) == to - from &&
           memcmp(answer + from, text, to - from) == 0;
}

static bool is_between_words(char c)
{
    return c && strchr(" \t\r\n\v\f:\"'.,?!{}", c);
}

static bool has_word(const char *answer, size_t n_answer, const char *text)
{
    for (size_t from = 0; from < n_answer;) {
        size_t to = from;

        while (to < n_answer && !is_between_words(answer[to]))
            to++;
        if (to > from && strlen(text) == to - from &&
            memcmp(answer + from, text, to - from) == 0)
            return true;
        from = to + 1;
    }
    return false;
}

uint32_t eval_hits(enum eval_score score, const char *answer, size_t n_answer,
                   const struct eval_expected *expected)
{
    uint32_t n = 0;

    assert(score != EVAL_POSITIONS && expected->n >= 1);
    if (score == EVAL_FIRST_INTEGER)
        return first_integer_is(answer, n_answer, expected->text[0]);
    if (score == EVAL_WORD)
        return has_word(answer, n_answer, expected->text[0]);
    for (uint32_t i = 0; i < expected->n; i++)
        n += contains(answer, n_answer, expected->text[i]);
    return n;
}

struct eval_interval eval_wilson(double share, uint64_t n)
{
    const double z2 = QUANTILE * QUANTILE, count = (double)n;
    double middle, half;

    if (!n)
        return (struct eval_interval){0, 1};
    middle = (share + z2 / (2 * count)) / (1 + z2 / count);
    half = QUANTILE / (1 + z2 / count) *
           sqrt(share * (1 - share) / count + z2 / (4 * count * count));
    return (struct eval_interval){
        middle - half > 0 ? middle - half : 0,
        middle + half < 1 ? middle + half : 1,
    };
}
