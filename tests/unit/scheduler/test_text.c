/*
 * Whatever the pieces, the text is what stands before the first stop string of
 * the whole decoded text, found by memmem; and nothing is let out that a stop
 * string could still take back.
 */
#include "scheduler/sampler.h"
#include "scheduler/text.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *loaded(void)
{
    struct tokenizer *tokenizer = NULL;

    cr_assert_eq(tokenizer_load("assets/models/godwit-tiny", &tokenizer),
                 STATUS_OK);
    return tokenizer;
}

static void stop_at(struct sampling *sampling, const char *stop)
{
    strcpy(sampling->stop[sampling->n_stop++], stop);
}

/* Ids of text, one per byte, so that pieces are as small as they can be. */
static void bytes_of(const struct tokenizer *tokenizer, const char *text,
                     struct ids *out)
{
    for (const char *c = text; *c; c++) {
        uint32_t id = 0, n = tokenizer_n_token(tokenizer);
        size_t n_bytes;
        while (id < n) {
            const char *byte = tokenizer_bytes(tokenizer, id, &n_bytes);
            if (byte && n_bytes == 1 && *byte == *c)
                break;
            id++;
        }
        cr_assert_lt(id, n);
        out->id = realloc(out->id, (out->n + 1) * sizeof(*out->id));
        out->id[out->n++] = id;
    }
}

static void expect(const struct tokenizer *tokenizer,
                   const struct sampling *sampling, const struct ids *ids,
                   const char *want, bool is_stopped)
{
    struct text_buffer out = {0};
    struct text text;

    text_init(&text, tokenizer, sampling);
    for (size_t i = 0; i < ids->n; i++) {
        cr_assert_eq(text_push(&text, ids->id[i], false, &out), STATUS_OK);
        cr_assert_leq(out.n, strlen(want));
        cr_assert_eq(memcmp(out.byte ? out.byte : "", want, out.n), 0);
    }
    cr_assert_eq(text.is_stopped, is_stopped);
    cr_assert_eq(text_finish(&text, &out), STATUS_OK);
    cr_assert_eq(out.n, strlen(want), "%zu bytes of '%s'", out.n, want);
    cr_assert_eq(memcmp(out.byte ? out.byte : "", want, out.n), 0);
    text_buffer_release(&out);
}

struct row {
    const char *text, *stop[3], *want;
    bool is_stopped;
};

static const struct row table[] = {
    {"no stops at all", {NULL}, "no stops at all", false},
    {"one STOP here", {"STOP"}, "one ", true},
    {"STOP at once", {"STOP"}, "", true},
    {"ends with STO", {"STOP"}, "ends with STO", false},
    {"aab aaab", {"aaab"}, "aab ", true},
    {"at the", {"e", "h"}, "at t", true}, /* both in one token */
    {"ababac", {"abac"}, "ab", true},
    {"two: xy, x", {"xy", "two: z"}, "two: ", true},
    {"first ends: \n\nUser: hello",
     {"\nUser:", "ello", "zzz"},
     "first ends: \n",
     true},
    {"na\xc3\xafve \xe2\x82\xac 5", {"\xe2\x82\xac"}, "na\xc3\xafve ", true},
    {"na\xc3\xafve \xe2\x82\xac 5",
     {"\xe2\x82\xad"},
     "na\xc3\xafve \xe2\x82\xac 5",
     false},
    {"half \xe2\x82", {NULL}, "half \xef\xbf\xbd", false},
    {"half \xe2\x82", {"x"}, "half \xef\xbf\xbd", false},
};

Test(text, stops_before_the_first_stop_string_however_it_is_cut)
{
    struct tokenizer *tokenizer = loaded();

    for (size_t r = 0; r < sizeof(table) / sizeof(table[0]); r++) {
        const struct row *row = &table[r];
        struct sampling sampling;
        struct ids ids = {0};
        sampling_init(&sampling);
        for (int i = 0; i < 3 && row->stop[i]; i++)
            stop_at(&sampling, row->stop[i]);
        bytes_of(tokenizer, row->text, &ids);
        expect(tokenizer, &sampling, &ids, row->want, row->is_stopped);
        ids_release(&ids);
        if (tokenizer_encode(tokenizer, row->text, strlen(row->text), false,
                             1000, &ids) == STATUS_OK)
            expect(tokenizer, &sampling, &ids, row->want, row->is_stopped);
        ids_release(&ids);
    }
    tokenizer_destroy(tokenizer);
}

Test(text, text_that_cannot_become_a_stop_comes_at_once)
{
    struct tokenizer *tokenizer = loaded();
    struct text_buffer out = {0};
    struct sampling sampling;
    struct ids ids = {0};
    struct text text;
    static const size_t want[] = {1, 2, 2, 2, 5, 6};

    sampling_init(&sampling);
    stop_at(&sampling, "cde");
    bytes_of(tokenizer, "abcdxy", &ids);
    text_init(&text, tokenizer, &sampling);
    for (size_t i = 0; i < 6; i++) {
        cr_assert_eq(text_push(&text, ids.id[i], false, &out), STATUS_OK);
        cr_assert_eq(out.n, want[i], "after %zu", i);
    }
    text_buffer_release(&out);
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

Test(text, silent_tokens_and_missing_tokenizers_make_no_text)
{
    struct tokenizer *tokenizer = loaded();
    struct text_buffer out = {0};
    struct sampling sampling;
    struct text text;

    sampling_init(&sampling);
    text_init(&text, tokenizer, &sampling);
    cr_assert_eq(text_push(&text, 70, true, &out), STATUS_OK);
    text_init(&text, NULL, &sampling);
    cr_assert_eq(text_push(&text, 70, false, &out), STATUS_OK);
    cr_assert_eq(text_finish(&text, &out), STATUS_OK);
    cr_assert_eq(out.n, 0);
    tokenizer_destroy(tokenizer);
}

Test(text, stops_do_not_count_in_the_first_min_tokens)
{
    struct tokenizer *tokenizer = loaded();
    struct sampling sampling;
    struct ids ids = {0};

    sampling_init(&sampling);
    stop_at(&sampling, "cd");
    bytes_of(tokenizer, "abcdecdf", &ids);
    sampling.min_tokens = 2;
    expect(tokenizer, &sampling, &ids, "ab", true);
    sampling.min_tokens = 3; /* the first one begins in the third */
    expect(tokenizer, &sampling, &ids, "abcde", true);
    sampling.min_tokens = 8;
    expect(tokenizer, &sampling, &ids, "abcdecdf", false);
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}
