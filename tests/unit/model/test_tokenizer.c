/*
 * The judge is Hugging Face's `tokenizers`: tests/golden/make_tokenizers.py
 * made the files and cases for GPT-2's pattern, Llama 3's, every flag of added
 * tokens, and random Unicode; tokenizer_cases.json came with the model. NFC is
 * judged by examples from Unicode's own NormalizationTest.txt, merging of long
 * pieces by a quadratic loop that follows the definition.
 */
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())
#define TINY "assets/models/godwit-tiny"
#define NO_LIMIT ((size_t)1 << 30)

static struct tokenizer *load(const char *path)
{
    struct tokenizer *tokenizer = NULL;

    must(tokenizer_load(path, &tokenizer));
    return tokenizer;
}

static json_t *load_json(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &error);

    cr_assert(root != NULL, "%s: %s", path, error.text);
    return root;
}

/* Text of ids, token by token; no step may give half a character. */
static char *decode(const struct tokenizer *tokenizer, const uint32_t *id,
                    size_t n, bool skip_special, size_t *out_n)
{
    char *text = malloc((n + 2) * 64 + DETOKENIZER_OUT_MAX);
    struct detokenizer detokenizer = {0};
    size_t n_text = 0, n_step;
    json_t *whole;

    for (size_t i = 0; i <= n; i++) {
        n_step = i < n ? detokenizer_push(&detokenizer, tokenizer, id[i],
                                          skip_special, text + n_text)
                       : detokenizer_finish(&detokenizer, text + n_text);
        whole = json_stringn(text + n_text, n_step); /* checks UTF-8 */
        cr_assert(whole != NULL, "half a character after token %zu", i);
        json_decref(whole);
        n_text += n_step;
    }
    *out_n = n_text;
    return text;
}

static void check_case(const struct tokenizer *tokenizer, const json_t *one,
                       size_t at)
{
    const json_t *text = json_object_get(one, "text");
    const json_t *want = json_object_get(one, "ids");
    const json_t *decoded = json_object_get(one, "decoded");
    const json_t *special = json_object_get(one, "special");
    struct ids ids = {0};
    size_t n = 0;
    char *back;

    must(tokenizer_encode(tokenizer, json_string_value(text),
                          json_string_length(text),
                          !special || json_is_true(special), NO_LIMIT, &ids));
    cr_assert(eq(sz, ids.n, json_array_size(want)), "case %zu", at);
    for (size_t i = 0; i < ids.n; i++)
        cr_assert(eq(u32, ids.id[i],
                     (uint32_t)json_integer_value(json_array_get(want, i))),
                  "case %zu, token %zu", at, i);
    back = decode(tokenizer, ids.id, ids.n, false, &n);
    cr_assert(eq(sz, n, json_string_length(decoded)), "case %zu", at);
    cr_assert(memcmp(back, json_string_value(decoded), n) == 0, "case %zu", at);
    free(back);
    ids_release(&ids);
}

static void check_cases(const char *model, const char *path, size_t n_least)
{
    struct tokenizer *tokenizer = load(model);
    json_t *cases = load_json(path);

    cr_assert(json_array_size(cases) >= n_least);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(tokenizer, json_array_get(cases, i), i);
    json_decref(cases);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, the_default_model_agrees_with_hugging_face)
{
    check_cases(TINY, "tests/golden/tokenizer_cases.json", 182);
    check_cases(TINY, "tests/golden/tokenizer_random.json", 200);
}

Test(tokenizer, gpt2s_pattern_agrees_with_hugging_face)
{
    check_cases("tests/golden/tokenizer_gpt2",
                "tests/golden/tokenizer_gpt2/cases.json", 160);
}

Test(tokenizer, llama3s_pattern_agrees_with_hugging_face)
{
    check_cases("tests/golden/tokenizer_llama3",
                "tests/golden/tokenizer_llama3/cases.json", 160);
}

Test(tokenizer, every_flag_of_added_tokens_agrees_with_hugging_face)
{
    check_cases("tests/golden/tokenizer_added",
                "tests/golden/tokenizer_added/cases.json", 200);
}

static struct ids encode(const struct tokenizer *tokenizer, const char *text,
                         size_t n, bool parse_special)
{
    struct ids ids = {0};

    must(tokenizer_encode(tokenizer, text, n, parse_special, NO_LIMIT, &ids));
    return ids;
}

static bool ids_equal(const struct ids *a, const struct ids *b)
{
    return a->n == b->n && memcmp(a->id, b->id, a->n * sizeof(*a->id)) == 0;
}

Test(tokenizer, nfc_makes_equal_texts_equal)
{
    /* Lines of NormalizationTest.txt: source, NFC. */
    static const char *const ROW[][2] = {
        {"D\u0307", "\u1e0a"},
        {"\u1e0c\u0307", "\u1e0c\u0307"},
        {"D\u0307\u0323", "\u1e0c\u0307"},
        {"\u0112\u0300", "\u1e14"},
        {"\u05b8\u05b9\u05b1\u0591\u05c3\u05b0\u05ac\u059f",
         "\u05b1\u05b8\u05b9\u0591\u05c3\u05b0\u05ac\u059f"},
        {"\u0958", "\u0915\u093c"}, /* excluded from composition */
        {"\u212b", "\u00c5"},       /* a singleton */
        {"\ufb1d", "\u05d9\u05b4"},
        {"\u1100\u1161\u11a8", "\uac01"},
        {"\uac00\u11a8", "\uac01"},
        {"\u0344", "\u0308\u0301"},
        {"\U0001d15e", "\U0001d157\U0001d165"},
        {"a\u0315\u0300\u05ae\u0301b", "\u00e0\u05ae\u0301\u0315b"},
        {"a\u0305\u0315\u0300\u05aeb", "a\u05ae\u0305\u0300\u0315b"},
    };
    struct tokenizer *tokenizer = load(TINY);

    for (size_t i = 0; i < sizeof(ROW) / sizeof(*ROW); i++) {
        struct ids ids = encode(tokenizer, ROW[i][0], strlen(ROW[i][0]), true);
        size_t n = 0;
        char *text = decode(tokenizer, ids.id, ids.n, false, &n);

        cr_assert(eq(sz, n, strlen(ROW[i][1])), "row %zu", i);
        cr_assert(memcmp(text, ROW[i][1], n) == 0, "row %zu", i);
        free(text);
        ids_release(&ids);
    }
    tokenizer_destroy(tokenizer);
}

/* Merge by the definition: lowest rank, leftmost; one merge per round. */
static size_t merge_slowly(const json_t *merges, char (*symbol)[64], size_t n)
{
    for (;;) {
        size_t best = SIZE_MAX, at = 0;

        for (size_t i = 0; i + 1 < n; i++)
            for (size_t r = 0; r < json_array_size(merges) && r < best; r++) {
                const json_t *pair = json_array_get(merges, r);
                const char *a = json_string_value(json_array_get(pair, 0));
                const char *b = json_string_value(json_array_get(pair, 1));

                if (strcmp(symbol[i], a) == 0 && strcmp(symbol[i + 1], b) == 0)
                    best = r, at = i;
            }
        if (best == SIZE_MAX)
            return n;
        memmove(symbol[at] + strlen(symbol[at]), symbol[at + 1],
                strlen(symbol[at + 1]) + 1);
        memmove(symbol + at + 1, symbol + at + 2,
                (n - at - 2) * sizeof(*symbol));
        n--;
    }
}

/* One piece of words and letters, of about n bytes. */
static size_t make_piece(uint32_t *seed, size_t n, char *text)
{
    static const char *const PART[] = {"the",  "of", "times",  "here", "wisdom",
                                       "it",   "w",  "total",  "e",    "best",
                                       "text", "s",  "return", "h",    "o"};
    size_t n_text = 0;

    while (n_text < n) {
        const char *part;

        *seed = *seed * 1664525u + 1013904223u;
        part = PART[(*seed >> 16) % (sizeof(PART) / sizeof(*PART))];
        memcpy(text + n_text, part, strlen(part));
        n_text += strlen(part);
    }
    return n_text;
}

/* Lengths on both sides of where merging changes its method. */
Test(tokenizer, long_and_short_pieces_merge_by_the_definition)
{
    json_t *root = load_json("tests/golden/tokenizer_llama3/tokenizer.json");
    const json_t *model = json_object_get(root, "model");
    const json_t *merges = json_object_get(model, "merges");
    struct tokenizer *tokenizer = load("tests/golden/tokenizer_llama3");
    static char symbol[400][64];
    uint32_t seed = 7;
    char text[400];

    for (size_t round = 1; round < 240; round++) {
        const size_t n = make_piece(&seed, 1 + round / 2, text);
        struct ids ids;
        size_t n_left;

        for (size_t i = 0; i < n; i++) {
            symbol[i][0] = text[i];
            symbol[i][1] = '\0';
        }
        n_left = merge_slowly(merges, symbol, n);
        ids = encode(tokenizer, text, n, true);
        cr_assert(eq(sz, ids.n, n_left), "round %zu", round);
        for (size_t i = 0; i < n_left; i++) {
            size_t n_bytes = 0;
            const char *bytes = tokenizer_bytes(tokenizer, ids.id[i], &n_bytes);

            cr_assert(eq(sz, n_bytes, strlen(symbol[i])));
            cr_assert(memcmp(bytes, symbol[i], n_bytes) == 0);
        }
        ids_release(&ids);
    }
    json_decref(root);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, special_text_is_plain_unless_parsed)
{
    static const char TEXT[] = "a<|im_end|>b";
    struct tokenizer *tokenizer = load(TINY);
    struct ids parsed = encode(tokenizer, TEXT, strlen(TEXT), true);
    struct ids plain = encode(tokenizer, TEXT, strlen(TEXT), false);
    uint32_t end = 0;
    size_t n = 0;
    char *text;

    cr_assert(tokenizer_special(tokenizer, "<|im_end|>", &end));
    cr_assert(eq(u32, end, 4090));
    cr_assert(not(tokenizer_special(tokenizer, "<|im_end|", &end)));
    cr_assert(eq(sz, parsed.n, 3));
    cr_assert(eq(u32, parsed.id[1], 4090));
    cr_assert(plain.n > 3);
    for (size_t i = 0; i < plain.n; i++)
        cr_assert(not(tokenizer_is_special(tokenizer, plain.id[i])));
    cr_assert(tokenizer_is_special(tokenizer, 4090));
    cr_assert(not(tokenizer_is_special(tokenizer, UINT32_MAX)));

    text = decode(tokenizer, plain.id, plain.n, true, &n);
    cr_assert(n == strlen(TEXT) && memcmp(text, TEXT, n) == 0);
    free(text);
    text = decode(tokenizer, parsed.id, parsed.n, true, &n);
    cr_assert(n == 2 && memcmp(text, "ab", 2) == 0);
    free(text);
    ids_release(&parsed);
    ids_release(&plain);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, bytes_of_tokens_are_known)
{
    struct tokenizer *tokenizer = load(TINY);
    size_t n = 0;

    cr_assert(eq(u32, tokenizer_n_token(tokenizer), 4096));
    cr_assert(tokenizer_bytes(tokenizer, 4096, &n) == NULL);
    cr_assert(tokenizer_bytes(tokenizer, UINT32_MAX, &n) == NULL);
    cr_assert(
        strncmp(tokenizer_bytes(tokenizer, 4089, &n), "<|im_start|>", 12) == 0);
    cr_assert(eq(sz, n, 12));
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, any_bytes_come_back_or_are_replaced_as_rust_does)
{
    /* Bytes, and what String::from_utf8_lossy makes of them. */
    static const char *const ROW[][2] = {
        {"\xf0\x9f\x98\x80", "\U0001f600"},
        {"\xf0\x9f\x98", "\ufffd"},
        {"\xf0\x9f\x98x", "\ufffdx"},
        {"\xff\xfe", "\ufffd\ufffd"},
        {"\xc3\x28", "\ufffd("},
        {"\xe2\x82", "\ufffd"},
        {"\xe0\x80\x80", "\ufffd\ufffd\ufffd"}, /* overlong */
        {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"}, /* a surrogate */
        {"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
        {"\xc0\xaf", "\ufffd\ufffd"},
        {"\x80\xe4\xb8\xadz\xe4\xb8", "\ufffd\u4e2dz\ufffd"},
        {"\xf0\x90\xe4\xb8\xad", "\ufffd\u4e2d"},
    };
    struct tokenizer *tokenizer = load(TINY);
    uint32_t byte_id[256];

    for (uint32_t id = 0; id < 4088; id++) {
        size_t n = 0;
        const char *bytes = tokenizer_bytes(tokenizer, id, &n);

        if (n == 1)
            byte_id[(uint8_t)*bytes] = id;
    }
    for (size_t i = 0; i < sizeof(ROW) / sizeof(*ROW); i++) {
        uint32_t id[8];
        size_t n = strlen(ROW[i][0]), n_text = 0;
        char *text;

        for (size_t k = 0; k < n; k++)
            id[k] = byte_id[(uint8_t)ROW[i][0][k]];
        text = decode(tokenizer, id, n, false, &n_text);
        cr_assert(eq(sz, n_text, strlen(ROW[i][1])), "row %zu", i);
        cr_assert(memcmp(text, ROW[i][1], n_text) == 0, "row %zu", i);
        free(text);
    }
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, unknown_ids_and_skipped_tokens_keep_what_is_held)
{
    struct tokenizer *tokenizer = load(TINY);
    struct ids ids = encode(tokenizer, "\U0001f9a4", 4, false);
    char out[DETOKENIZER_OUT_MAX];
    struct detokenizer detokenizer = {0};
    size_t n = 0;

    cr_assert(ids.n >= 2);
    for (size_t i = 0; i < ids.n; i++) {
        cr_assert(eq(sz, n, 0));
        cr_assert(eq(
            sz, detokenizer_push(&detokenizer, tokenizer, 4090, true, out), 0));
        cr_assert(
            eq(sz, detokenizer_push(&detokenizer, tokenizer, 99999, false, out),
               0));
        n = detokenizer_push(&detokenizer, tokenizer, ids.id[i], true, out);
    }
    cr_assert(n == 4 && memcmp(out, "\U0001f9a4", 4) == 0);
    cr_assert(eq(sz, detokenizer_finish(&detokenizer, out), 0));
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, text_that_is_not_utf8_is_refused_with_its_place)
{
    static const struct {
        const char *text;
        size_t n;
        const char *words;
    } ROW[] = {
        {"abc\xff", 4, "byte 3 of 4 (0xff)"},
        {"abcdefghi\xc3", 10, "byte 9 of 10"},
        {"\xed\xa0\x80", 3, "byte 0 of 3"},
        {"\xe0\x80\x80", 3, "byte 0"},
        {"\xf4\x90\x80\x80", 4, "byte 0"},
        {"\xc1\xbf", 2, "byte 0"},
        {"\xe4\xb8\xad\xe4\xb8", 5, "byte 3 of 5"},
    };
    struct tokenizer *tokenizer = load(TINY);
    uint32_t mine[2] = {5, 6};
    struct ids ids = {0};

    must(ids_append(&ids, mine, 2, 2));
    for (size_t i = 0; i < sizeof(ROW) / sizeof(*ROW); i++) {
        cr_assert(eq(int,
                     tokenizer_encode(tokenizer, ROW[i].text, ROW[i].n, true,
                                      NO_LIMIT, &ids),
                     STATUS_INVALID_ARGUMENT));
        cr_assert(strstr(status_reason(), ROW[i].words) != NULL, "%s",
                  status_reason());
        cr_assert(ids.n == 2 && ids.id[0] == 5 && ids.id[1] == 6);
    }
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, more_tokens_than_the_limit_are_refused)
{
    struct tokenizer *tokenizer = load(TINY);
    struct ids ids = encode(tokenizer, "one two three", 13, false);
    const size_t n = ids.n;

    for (size_t max = 0; max < 2 * n; max++) {
        cr_assert(eq(
            int,
            tokenizer_encode(tokenizer, "one two three", 13, false, max, &ids),
            STATUS_RESOURCE_EXHAUSTED));
        cr_assert(eq(sz, ids.n, n));
    }
    must(tokenizer_encode(tokenizer, "one two three", 13, false, 2 * n, &ids));
    cr_assert(eq(sz, ids.n, 2 * n));
    cr_assert(memcmp(ids.id, ids.id + n, n * sizeof(*ids.id)) == 0);
    cr_assert(
        eq(int,
           tokenizer_encode(tokenizer, "x", (size_t)TOKENIZER_TEXT_MAX + 1,
                            false, NO_LIMIT, &ids),
           STATUS_RESOURCE_EXHAUSTED));
    must(tokenizer_encode(tokenizer, "", 0, false, 2 * n, &ids));
    cr_assert(eq(sz, ids.n, 2 * n));
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

/* Each text has 1 MB; quadratic work would take minutes. */
Test(tokenizer, hostile_texts_are_done_in_time)
{
    static const char *const UNIT[] = {
        "a",    " ",           "\n",     "!",
        "\r\n", " \n",         "\u0301", "\u0301\u0323",
        "<|",   "<|im_start|", "0",      "\u4e2d"};
    static const char *const MODEL[] = {TINY, "tests/golden/tokenizer_llama3"};
    enum { N = 1000000 };
    char *text = malloc(N + 16);
    const clock_t start = clock();

    for (size_t m = 0; m < 2; m++) {
        struct tokenizer *tokenizer = load(MODEL[m]);

        for (size_t u = 0; u < sizeof(UNIT) / sizeof(*UNIT); u++) {
            size_t n = 0, n_back = 0;
            struct detokenizer detokenizer = {0};
            char out[DETOKENIZER_OUT_MAX];
            struct ids ids;

            while (n < N) {
                memcpy(text + n, UNIT[u], strlen(UNIT[u]));
                n += strlen(UNIT[u]);
            }
            ids = encode(tokenizer, text, n, false);
            for (size_t i = 0; i < ids.n; i++)
                n_back += detokenizer_push(&detokenizer, tokenizer, ids.id[i],
                                           false, out);
            cr_assert(eq(sz, n_back, n), "unit %zu", u);
            ids_release(&ids);
        }
        tokenizer_destroy(tokenizer);
    }
    cr_assert(clock() - start < 60 * CLOCKS_PER_SEC);
    free(text);
}

/* Marks of two classes in the wrong order: utf8proc alone would sort them in
 * quadratic time. The law: NFC of NFC is itself, and order is canonical. */
Test(tokenizer, a_million_unordered_marks_are_ordered)
{
    enum { N = 500000 };
    struct tokenizer *tokenizer = load(TINY);
    char *text = malloc(2 * N), *sorted = malloc(2 * N);
    struct ids a, b;

    for (size_t i = 0; i < N; i++) {
        memcpy(text + 2 * i, i % 3 ? "\u0301" : "\u0323", 2);
        memcpy(sorted + 2 * i, i < (N + 2) / 3 ? "\u0323" : "\u0301", 2);
    }
    a = encode(tokenizer, text, 2 * N, false);
    b = encode(tokenizer, sorted, 2 * N, false);
    cr_assert(ids_equal(&a, &b));
    ids_release(&a);
    ids_release(&b);
    free(text);
    free(sorted);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer, a_megabyte_of_noise_is_refused)
{
    struct tokenizer *tokenizer = load(TINY);
    char *text = malloc(1000000);
    struct ids ids = {0};
    uint32_t seed = 1;

    for (size_t i = 0; i < 1000000; i++) {
        seed = seed * 1664525u + 1013904223u;
        text[i] = (char)(seed >> 24);
    }
    cr_assert(eq(
        int, tokenizer_encode(tokenizer, text, 1000000, true, NO_LIMIT, &ids),
        STATUS_INVALID_ARGUMENT));
    cr_assert(strstr(status_reason(), "not UTF-8 at byte") != NULL);
    cr_assert(eq(sz, ids.n, 0));
    free(text);
    tokenizer_destroy(tokenizer);
}
