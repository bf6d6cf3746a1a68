/*
 * RULER's variable tracking: one chain of assignments strewn over noise, and
 * before it a short chain that is solved, to show what is wanted.
 */
#include "node/eval_task.h"

#define N_NAME 5u  /* of a chain of four hops */
#define N_SHOWN 6u /* noise sentences of the solved chain */

/* A chain: its names have n_letter capitals each, the value five digits. */
struct chain {
    struct draw draw;
    uint32_t first; /* of its numbers in the draw */
    uint32_t n_letter;
    char name[N_NAME][EVAL_WORD_SIZE];
    char value[EVAL_WORD_SIZE];
};

static void make_chain(struct chain *chain)
{
    const uint32_t n =
        chain->n_letter == 5 ? EVAL_N_CAPITALS_5 : EVAL_N_CAPITALS_3;

    for (uint32_t i = 0; i < N_NAME; i++)
        eval_write_capitals(
            draw_distinct(&chain->draw, DRAW_KEY, chain->first + i, n),
            chain->n_letter, chain->name[i]);
    eval_write_kind(&chain->draw, DRAW_VALUE, EVAL_DIGITS_5, chain->first,
                    chain->value);
}

/* In front of which noise sentence each assignment stands, in order. */
static void place_chain(const struct chain *chain, uint32_t n_unit,
                        uint32_t place[N_NAME])
{
    for (uint32_t i = 0; i < N_NAME; i++) {
        uint32_t word[4], at, k = i;

        draw_bits(&chain->draw, DRAW_PLACE, chain->first + i, word);
        at = (uint32_t)((uint64_t)word[0] * (n_unit + 1) >> 32);
        for (; k && place[k - 1] > at; k--)
            place[k] = place[k - 1];
        place[k] = at;
    }
}

static void write_chain(const struct chain *chain, uint32_t n_unit, FILE *to)
{
    uint32_t place[N_NAME];

    place_chain(chain, n_unit, place);
    (void)fputs("Memorize and track the chain of variable assignments hidden "
                "in the following text.\n\n",
                to);
    for (uint32_t unit = 0; unit <= n_unit; unit++) {
        for (uint32_t i = 0; i < N_NAME; i++)
            if (place[i] == unit && i)
                fprintf(to, "VAR %s = VAR %s\n", chain->name[i],
                        chain->name[i - 1]);
            else if (place[i] == unit)
                fprintf(to, "VAR %s = %s\n", chain->name[i], chain->value);
        if (unit < n_unit)
            fprintf(to, "%s\n", eval_noise);
    }
    fprintf(to,
            "Question: Find all variables that are assigned the value %s in "
            "the text above. Answer: According to the chain of variable "
            "assignments in the text above, %u variables are assigned the "
            "value %s, they are:",
            chain->value, N_NAME, chain->value);
}

void eval_write_trace(const struct eval_item *item, uint32_t n_unit, FILE *to,
                      struct eval_expected *expected)
{
    const struct draw own = eval_draw_own(item);
    struct chain shown = {.draw = own, .first = 0, .n_letter = 3};
    struct chain asked = {.draw = own, .first = N_NAME, .n_letter = 5};

    make_chain(&shown);
    make_chain(&asked);
    write_chain(&shown, N_SHOWN, to);
    for (uint32_t i = 0; i < N_NAME; i++)
        fprintf(to, " %s", shown.name[i]);
    (void)fputs("\n\n", to);
    write_chain(&asked, n_unit, to);
    expected->n = N_NAME;
    for (uint32_t i = 0; i < N_NAME; i++)
        (void)snprintf(expected->text[i], EVAL_WORD_SIZE, "%s", asked.name[i]);
}
