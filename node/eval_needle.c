/*
 * Tasks that hide sentences in a haystack: InfiniteBench's passkey and number,
 * RULER's needles, and the wording that godwit-tiny was trained on. They differ
 * in one table. The haystack is the same for all samples of a seed, so what
 * lies before the first needle is a prefix that samples share.
 */
#include "node/eval_task.h"

#include <assert.h>

#define NEEDLE_MAX 4u

/* One task: how its needles look, and the forms it is written in. */
struct form {
    bool is_essay;
    enum eval_kind key, value;
    uint32_t n_key;       /* needles with keys of their own */
    uint32_t n_value;     /* of each key */
    uint32_t n_asked;     /* keys */
    const char *intro;    /* may be "" */
    const char *needle;   /* one sentence */
    const char *question; /* what the model continues */
};

#define RULER_INTRO                                                            \
    "Some special magic %t are hidden in the following text. Make sure to "    \
    "memorize them. I will quiz you about the %t afterwards.\n"
#define RULER_NEEDLE "One of the special magic %t for %k is: %v."
#define RULER_QUESTION                                                         \
    "\nWhat are all the special magic %t for %k mentioned in the provided "    \
    "text? The special magic %t for %k mentioned in the provided text are"
#define RULER_QUESTION_ONE                                                     \
    "\nWhat is the special magic %t for %k mentioned in the provided text? "   \
    "The special magic %t for %k mentioned in the provided text is"
#define OWN_QUESTION                                                           \
    "<|im_start|>user\nWhat is the special magic number for %k?<|im_end|>\n"   \
    "<|im_start|>assistant\nThe special magic number for %k is "
#define HIDDEN_INTRO                                                           \
    "There is an important info hidden inside a lot of irrelevant text. Find " \
    "it and memorize it. I will quiz you about the important information "     \
    "there.\n"

static const struct form FORM[] = {
    [NEEDLE_PASSKEY] = {false, EVAL_NOUN, EVAL_DIGITS_5, 1, 1, 1, HIDDEN_INTRO,
                        "The pass key is %v. Remember it. %v is the pass key.",
                        "\nWhat is the pass key? The pass key is"},
    [NEEDLE_NUMBER] = {false, EVAL_NOUN, EVAL_DIGITS_10, 1, 1, 1, HIDDEN_INTRO,
                       "The sequence of digits is %v. Remember it. %v is the "
                       "sequence of digits.",
                       "\nWhat is the sequence of digits? The sequence of "
                       "digits is"},
    [NEEDLE_OWN] = {true, EVAL_NOUN, EVAL_DIGITS_7, 1, 1, 1, "",
                    "The special magic number for %k is %v.", OWN_QUESTION},
    [NEEDLE_OWN_MULTIKEY] = {true, EVAL_NOUN, EVAL_DIGITS_7, 4, 1, 1, "",
                             "The special magic number for %k is %v.",
                             OWN_QUESTION},
    [NEEDLE_SINGLE_1] = {false, EVAL_PAIR, EVAL_DIGITS_7, 1, 1, 1, RULER_INTRO,
                         RULER_NEEDLE, RULER_QUESTION_ONE},
    [NEEDLE_SINGLE_2] = {true, EVAL_PAIR, EVAL_DIGITS_7, 1, 1, 1, RULER_INTRO,
                         RULER_NEEDLE, RULER_QUESTION_ONE},
    [NEEDLE_SINGLE_3] = {true, EVAL_PAIR, EVAL_UUID, 1, 1, 1, RULER_INTRO,
                         RULER_NEEDLE, RULER_QUESTION_ONE},
    [NEEDLE_MULTIKEY_1] = {true, EVAL_PAIR, EVAL_DIGITS_7, 4, 1, 1, RULER_INTRO,
                           RULER_NEEDLE, RULER_QUESTION_ONE},
    [NEEDLE_MULTIVALUE] = {true, EVAL_PAIR, EVAL_DIGITS_7, 1, 4, 1, RULER_INTRO,
                           RULER_NEEDLE, RULER_QUESTION},
    [NEEDLE_MULTIQUERY] = {true, EVAL_PAIR, EVAL_DIGITS_7, 4, 1, 4, RULER_INTRO,
                           RULER_NEEDLE, RULER_QUESTION},
};

/* "a, b, c and d" of the keys asked. */
static void write_asked(const struct form *form, const struct draw *draw,
                        char *out, size_t n_out)
{
    size_t n = 0;

    for (uint32_t i = 0; i < form->n_asked; i++) {
        char key[EVAL_WORD_SIZE];
        const char *join = i + 1 == form->n_asked ? " and " : ", ";

        eval_write_kind(draw, DRAW_KEY, form->key, i, key);
        n += (size_t)snprintf(out + n, n_out - n, "%s%s", i ? join : "", key);
        assert(n < n_out);
    }
}

/*
 * In front of which unit each needle stands (n_unit: behind the last). Where
 * depth matters needle 0 has it; all others are strewn at random.
 */
static void place_needles(const struct eval_item *item, uint32_t n_needle,
                          uint32_t n_unit, uint32_t place[NEEDLE_MAX])
{
    const struct draw draw = eval_draw_own(item);

    for (uint32_t i = 0; i < n_needle; i++) {
        uint32_t word[4];

        draw_bits(&draw, DRAW_PLACE, i, word);
        place[i] = (uint32_t)((uint64_t)word[0] * (n_unit + 1) >> 32);
    }
    if (item->task->has_depth)
        place[0] = eval_place(item->depth, n_unit + 1);
}

static void write_haystack(const struct eval_item *item,
                           const struct form *form, uint32_t n_unit, FILE *to)
{
    const struct draw own = eval_draw_own(item), all = eval_draw_all(item);
    const uint32_t n_needle = form->n_key * form->n_value;
    const char *gap = form->is_essay ? " " : "\n";
    uint32_t place[NEEDLE_MAX];

    place_needles(item, n_needle, n_unit, place);
    for (uint32_t unit = 0; unit <= n_unit; unit++) {
        for (uint32_t i = 0; i < n_needle; i++) {
            char key[EVAL_WORD_SIZE], value[EVAL_WORD_SIZE];

            if (place[i] != unit)
                continue;
            eval_write_kind(&own, DRAW_KEY, form->key, i / form->n_value, key);
            eval_write_kind(&own, DRAW_VALUE, form->value, i, value);
            eval_write_form(
                form->needle,
                &(struct eval_filling){
                    key, value, form->value == EVAL_UUID ? "uuids" : "numbers"},
                to);
            (void)fputs(gap, to);
        }
        if (unit == n_unit)
            break;
        if (form->is_essay)
            eval_write_essay(&all, unit, to);
        else
            (void)fputs(eval_noise, to);
        (void)fputs(gap, to);
    }
}

void eval_write_needle(const struct eval_item *item, uint32_t n_unit, FILE *to,
                       struct eval_expected *expected)
{
    const struct form *form = &FORM[item->task->variant];
    const bool is_plural = form->n_asked * form->n_value > 1;
    const struct draw own = eval_draw_own(item);
    char asked[NEEDLE_MAX * EVAL_WORD_SIZE] = "";
    struct eval_filling filling = {asked, "", "numbers"};

    if (form->value == EVAL_UUID)
        filling.thing = "uuids";
    eval_write_form(form->intro, &filling, to);
    write_haystack(item, form, n_unit, to);
    write_asked(form, &own, asked, sizeof(asked));
    if (!is_plural)
        filling.thing = form->value == EVAL_UUID ? "uuid" : "number";
    eval_write_form(form->question, &filling, to);
    expected->n = form->n_asked * form->n_value;
    for (uint32_t i = 0; i < expected->n; i++)
        eval_write_kind(&own, DRAW_VALUE, form->value, i, expected->text[i]);
}
