/*
 * Tasks whose whole text is a dictionary: InfiniteBench's JSON object and
 * RULER's haystacks made of needles. The samples of one context share it and
 * ask for what stands at their depth.
 */
#include "node/eval_task.h"

struct dictionary {
    enum eval_kind key, value;
    const char *thing, *intro, *entry, *gap, *question; /* forms */
};

#define RULER_INTRO                                                            \
    "Some special magic %ts are hidden in the following text. Make sure to "   \
    "memorize them. I will quiz you about the %ts afterwards.\n"
#define RULER_NEEDLE "One of the special magic %ts for %k is: %v."
#define RULER_QUESTION                                                         \
    "\nWhat is the special magic %t for %k mentioned in the provided text? "   \
    "The special magic %t for %k mentioned in the provided text is"

static const struct dictionary DICTIONARY[] = {
    [LOOKUP_KV] = {EVAL_UUID, EVAL_UUID, "",
                   "Extract the value corresponding to the specified key in "
                   "the JSON object below.\n\nJSON data:\n{",
                   "\"%k\": \"%v\"", ", ",
                   "}\nKey: \"%k\"\nThe value associated with the specified "
                   "key is: "},
    [LOOKUP_MULTIKEY_2] = {EVAL_PAIR, EVAL_DIGITS_7, "number", RULER_INTRO,
                           RULER_NEEDLE, "\n", RULER_QUESTION},
    [LOOKUP_MULTIKEY_3] = {EVAL_UUID, EVAL_UUID, "uuid", RULER_INTRO,
                           RULER_NEEDLE, "\n", RULER_QUESTION},
};

void eval_write_lookup(const struct eval_item *item, uint32_t n_unit, FILE *to,
                       struct eval_expected *expected)
{
    const struct dictionary *of = &DICTIONARY[item->task->variant];
    const struct draw context = eval_draw_context(item);
    const uint32_t asked = eval_place(item->depth, n_unit);
    char key[EVAL_WORD_SIZE], value[EVAL_WORD_SIZE];
    const struct eval_filling filling = {key, value, of->thing};

    eval_write_form(of->intro, &filling, to);
    for (uint32_t i = 0; i < n_unit; i++) {
        eval_write_kind(&context, DRAW_KEY, of->key, i, key);
        eval_write_kind(&context, DRAW_VALUE, of->value, i, value);
        (void)fputs(i ? of->gap : "", to);
        eval_write_form(of->entry, &filling, to);
    }
    eval_write_kind(&context, DRAW_KEY, of->key, asked, key);
    eval_write_form(of->question, &filling, to);
    expected->n = 1;
    eval_write_kind(&context, DRAW_VALUE, of->value, asked, expected->text[0]);
}
