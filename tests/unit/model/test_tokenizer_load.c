/*
 * Loading: golden files of Hugging Face's (tests/golden/make_tokenizers.py)
 * with one thing changed. A wrong one must be refused by file and place; what
 * a flag means is known from the format.
 */
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())
#define NO_LIMIT ((size_t)1 << 30)

static char dir[] = "/tmp/godwit-tokenizer-XXXXXX";

static void make_dir(void)
{
    cr_assert(mkdtemp(dir) != NULL);
}

static void drop_dir(void)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    (void)unlink(path);
    snprintf(path, sizeof(path), "%s/tokenizer_config.json", dir);
    (void)unlink(path);
    (void)rmdir(dir);
}

TestSuite(tokenizer_load, .init = make_dir, .fini = drop_dir);

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

static struct ids encode(const struct tokenizer *tokenizer, const char *text,
                         size_t n, bool parse_special)
{
    struct ids ids = {0};

    must(tokenizer_encode(tokenizer, text, n, parse_special, NO_LIMIT, &ids));
    return ids;
}

static void write_text(const char *name, const char *text)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void)unlink(path); /* truncating would wait for the disk */
    file = fopen(path, "w");
    cr_assert(file != NULL);
    cr_assert(fputs(text, file) >= 0);
    cr_assert(fclose(file) == 0);
}

/* GPT-2's golden tokenizer with `patch` laid over it. */
static void write_patched(const char *patch)
{
    json_t *root = load_json("tests/golden/tokenizer_gpt2/tokenizer.json");
    json_error_t error;
    json_t *over = json_loads(patch, 0, &error);
    char *text;

    cr_assert(over != NULL, "%s: %s", patch, error.text);
    cr_assert(json_object_update_recursive(root, over) == 0);
    text = json_dumps(root, 0);
    write_text("tokenizer.json", text);
    free(text);
    json_decref(over);
    json_decref(root);
}

static void assert_refused(enum status code, const char *words)
{
    struct tokenizer *tokenizer = (struct tokenizer *)dir; /* any pointer */

    cr_assert(eq(int, tokenizer_load(dir, &tokenizer), code), "%s: %s", words,
              status_reason());
    cr_assert(strstr(status_reason(), words) != NULL, "'%s' lacks '%s'",
              status_reason(), words);
    cr_assert(tokenizer == (struct tokenizer *)dir);
}

#define SPLIT(regex)                                                           \
    "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{"       \
    "\"type\": \"Split\", \"pattern\": {\"Regex\": \"" regex                   \
    "\"}, \"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\","              \
    "\"add_prefix_space\": false, \"use_regex\": false}]}}"

#define END "{\"SpecialToken\": {\"id\": \"<|endoftext|>\"}}"
#define OPENING(single)                                                        \
    "{\"post_processor\": {\"type\": \"Sequence\", \"processors\": ["          \
    "{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\","            \
    "\"single\": [" single "]}]}}"

static const struct {
    const char *patch;
    enum status code;
    const char *words;
} REFUSED[] = {
    {"{\"model\": null}", STATUS_INVALID_ARGUMENT, "model is missing"},
    {"{\"model\": {\"type\": \"Unigram\"}}", STATUS_UNIMPLEMENTED,
     "model.type is 'Unigram', known: BPE"},
    {"{\"model\": {\"dropout\": 0.1}}", STATUS_UNIMPLEMENTED, "dropout"},
    {"{\"model\": {\"continuing_subword_prefix\": \"##\"}}",
     STATUS_UNIMPLEMENTED, "continuing_subword_prefix"},
    {"{\"model\": {\"end_of_word_suffix\": \"</w>\"}}", STATUS_UNIMPLEMENTED,
     "end_of_word_suffix"},
    {"{\"model\": {\"vocab\": 1}}", STATUS_INVALID_ARGUMENT,
     "model.vocab is missing"},
    {"{\"model\": {\"vocab\": {\"A\": null}}}", STATUS_INVALID_ARGUMENT,
     "id of token 'A' is no id"},
    {"{\"model\": {\"vocab\": {\"A\": -1}}}", STATUS_INVALID_ARGUMENT,
     "id of token 'A' is no id"},
    {"{\"model\": {\"vocab\": {\"zzz\": 1}}}", STATUS_INVALID_ARGUMENT,
     "has id 1, which another token has"},
    {"{\"model\": {\"vocab\": {\"zzz\": 1048576}}}", STATUS_INVALID_ARGUMENT,
     "token 'zzz' has id 1048576"},
    {"{\"model\": {\"vocab\": {\"zzz\": 4294967297}}}", STATUS_INVALID_ARGUMENT,
     "token 'zzz' has id 4294967297"},
    {"{\"model\": {\"merges\": null}}", STATUS_INVALID_ARGUMENT,
     "model.merges is missing"},
    {"{\"model\": {\"merges\": [\"a\"]}}", STATUS_INVALID_ARGUMENT,
     "model.merges[0] is no pair"},
    {"{\"model\": {\"merges\": [\"a b c\"]}}", STATUS_INVALID_ARGUMENT,
     "model.merges[0] is no pair"},
    {"{\"model\": {\"merges\": [[\"h\", \"e\"], [\"a\"]]}}",
     STATUS_INVALID_ARGUMENT, "model.merges[1] is no pair"},
    {"{\"model\": {\"merges\": [[\"a\", \"\"]]}}", STATUS_INVALID_ARGUMENT,
     "model.merges[0] is no pair"},
    {"{\"model\": {\"merges\": [7]}}", STATUS_INVALID_ARGUMENT,
     "model.merges[0] is no pair"},
    {"{\"model\": {\"merges\": [\"qx a\"]}}", STATUS_INVALID_ARGUMENT,
     "model.merges[0] of 'qx' and 'a' has a part or a result"},
    {"{\"model\": {\"merges\": [\"a qx\"]}}", STATUS_INVALID_ARGUMENT,
     "is no token"},
    {"{\"model\": {\"merges\": [\"q q\"]}}", STATUS_INVALID_ARGUMENT,
     "is no token"},
    {"{\"model\": {\"ignore_merges\": 1}}", STATUS_INVALID_ARGUMENT,
     "ignore_merges"},
    {"{\"normalizer\": {\"type\": \"NFKC\"}}", STATUS_UNIMPLEMENTED,
     "normalizer is 'NFKC', known: NFC or none"},
    {"{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\":"
     " [{\"type\": \"NFC\"}, {\"type\": \"Lowercase\"}]}}",
     STATUS_UNIMPLEMENTED, "normalizer is 'Lowercase'"},
    {"{\"pre_tokenizer\": null}", STATUS_UNIMPLEMENTED, "pre_tokenizer"},
    {"{\"pre_tokenizer\": {\"type\": \"Metaspace\"}}", STATUS_UNIMPLEMENTED,
     "pre_tokenizer is 'Metaspace', known: Split"},
    {"{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\":"
     " {\"String\": \"x\"}, \"behavior\": \"Isolated\"}}",
     STATUS_UNIMPLEMENTED, "without ByteLevel"},
    {"{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\":"
     " {\"String\": \"x\"}, \"behavior\": \"MergedWithNext\"}}",
     STATUS_UNIMPLEMENTED, "behavior is 'MergedWithNext', known: Isolated"},
    {"{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {},"
     " \"behavior\": \"Isolated\"}}",
     STATUS_INVALID_ARGUMENT, "split has no pattern"},
    {"{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\":"
     " [{\"type\": \"ByteLevel\"}, {\"type\": \"ByteLevel\"}]}}",
     STATUS_UNIMPLEMENTED, "behind ByteLevel"},
    {SPLIT("(a"), STATUS_INVALID_ARGUMENT, "does not compile at ''"},
    {SPLIT("a)b"), STATUS_INVALID_ARGUMENT, "does not compile at ')b'"},
    {SPLIT("\\\\p{Nonsense}"), STATUS_INVALID_ARGUMENT, "does not compile"},
    {SPLIT("[a&&b]"), STATUS_UNIMPLEMENTED, "'&&b]' at byte 2"},
    {SPLIT("[a[b]]"), STATUS_UNIMPLEMENTED, "'[b]]' at byte 2"},
    {SPLIT("[^\\\\S]"), STATUS_UNIMPLEMENTED, "'\\S]' at byte 2"},
    {SPLIT("\\\\h+"), STATUS_UNIMPLEMENTED, "'\\h+' at byte 0"},
    {SPLIT("\\\\bx"), STATUS_UNIMPLEMENTED, "'\\bx' at byte 0"},
    {SPLIT("\\\\p{N}{1,3}+"), STATUS_UNIMPLEMENTED, "'}+'"},
    {"{\"decoder\": null}", STATUS_UNIMPLEMENTED, "decoder"},
    {"{\"decoder\": {\"type\": \"WordPiece\"}}", STATUS_UNIMPLEMENTED,
     "decoder is 'WordPiece', known: ByteLevel"},
    {"{\"added_tokens\": [{\"content\": \"<x>\"}]}", STATUS_INVALID_ARGUMENT,
     "id"},
    {"{\"added_tokens\": [{\"id\": 500}]}", STATUS_INVALID_ARGUMENT,
     "added token 500 has no content"},
    {"{\"added_tokens\": [{\"id\": 500, \"content\": \"\"}]}",
     STATUS_INVALID_ARGUMENT, "added token 500 has no content"},
    {"{\"added_tokens\": [{\"id\": 5, \"content\": \"<x>\"}]}",
     STATUS_INVALID_ARGUMENT, "has id 5, which another token has"},
    {"{\"added_tokens\": [{\"id\": 500, \"content\": \"A\"}]}",
     STATUS_INVALID_ARGUMENT, "added token 'A' has id 500 and"},
    {"{\"added_tokens\": [{\"id\": 500, \"content\": \"<x>\"},"
     " {\"id\": 501, \"content\": \"<x>\"}]}",
     STATUS_INVALID_ARGUMENT, "added token '<x>' has id 501 and 500"},
    {"{\"added_tokens\": [{\"id\": 500, \"content\": \"<x>\","
     " \"special\": 1}]}",
     STATUS_INVALID_ARGUMENT, "special"},
    {"{\"post_processor\": {\"type\": \"RobertaProcessing\"}}",
     STATUS_UNIMPLEMENTED, "post_processor is 'RobertaProcessing'"},
    {OPENING("{\"SpecialToken\": {\"id\": \"<none>\"}}"),
     STATUS_INVALID_ARGUMENT, "'<none>' is not an added token"},
    {OPENING("{\"SpecialToken\": {}}"), STATUS_INVALID_ARGUMENT,
     "a SpecialToken has no id"},
    {OPENING("{\"Sequence\": {\"id\": \"A\"}}, " END), STATUS_UNIMPLEMENTED,
     "behind a text"},
    {OPENING(END ", " END ", " END ", " END ", " END), STATUS_INVALID_ARGUMENT,
     "more than 4 tokens before the text"},
};

Test(tokenizer_load, every_wrong_file_is_refused_by_place)
{
    for (size_t i = 0; i < sizeof(REFUSED) / sizeof(*REFUSED); i++) {
        write_patched(REFUSED[i].patch);
        assert_refused(REFUSED[i].code, REFUSED[i].words);
        cr_assert(strstr(status_reason(), "tokenizer.json") != NULL);
    }
    write_patched("{}"); /* the unpatched file is good */
    tokenizer_destroy(load(dir));
}

Test(tokenizer_load, a_vocabulary_without_a_byte_is_refused)
{
    json_t *root = load_json("tests/golden/tokenizer_gpt2/tokenizer.json");
    char *text;

    (void)json_object_del(
        json_object_get(json_object_get(root, "model"), "vocab"), "~");
    (void)json_object_set_new(json_object_get(root, "model"), "merges",
                              json_array());
    text = json_dumps(root, 0);
    write_text("tokenizer.json", text);
    assert_refused(STATUS_INVALID_ARGUMENT, "no token for byte 0x7e");
    free(text);
    json_decref(root);
}

Test(tokenizer_load, a_token_above_the_limit_is_refused)
{
    char *patch = malloc(TOKENIZER_PIECE_BYTES_MAX + 200);
    int at =
        sprintf(patch, "{\"added_tokens\": [{\"id\": 500, \"content\": \"");

    memset(patch + at, 'y', TOKENIZER_PIECE_BYTES_MAX + 1);
    strcpy(patch + at + TOKENIZER_PIECE_BYTES_MAX + 1, "\"}]}");
    write_patched(patch);
    assert_refused(STATUS_INVALID_ARGUMENT, "and 4097 bytes, expected");
    strcpy(patch + at + TOKENIZER_PIECE_BYTES_MAX, "\"}]}");
    write_patched(patch);
    tokenizer_destroy(load(dir));
    free(patch);
}

Test(tokenizer_load, no_file_and_no_json_are_refused)
{
    struct tokenizer *tokenizer;

    assert_refused(STATUS_NOT_FOUND, "tokenizer.json");
    cr_assert(
        eq(int, tokenizer_load("/nonexistent", &tokenizer), STATUS_NOT_FOUND));
    write_text("tokenizer.json", "{\n]");
    assert_refused(STATUS_INVALID_ARGUMENT, "tokenizer.json line 2");
    write_text("tokenizer.json", "[]");
    assert_refused(STATUS_INVALID_ARGUMENT, "model is missing");
    write_patched("{}");
    write_text("tokenizer_config.json", "{");
    assert_refused(STATUS_INVALID_ARGUMENT, "tokenizer_config.json line 1");
    tokenizer_destroy(NULL);
}

Test(tokenizer_load, tokens_of_tokenizer_config_are_added)
{
    struct tokenizer *tokenizer;
    struct ids ids;
    uint32_t id = 0;

    write_patched("{}");
    write_text("tokenizer_config.json",
               "{\"added_tokens_decoder\": {\"0\": {\"content\":"
               " \"<|endoftext|>\", \"special\": true}, \"600\": {\"content\":"
               " \"<|im_start|>\", \"special\": true}}}");
    tokenizer = load(dir);
    cr_assert(eq(u32, tokenizer_n_token(tokenizer), 601));
    cr_assert(tokenizer_special(tokenizer, "<|im_start|>", &id));
    cr_assert(eq(u32, id, 600));
    ids = encode(tokenizer, "a<|im_start|>", 13, true);
    cr_assert(eq(sz, ids.n, 2));
    cr_assert(eq(u32, ids.id[1], 600));
    ids_release(&ids);
    tokenizer_destroy(tokenizer);

    write_text("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\":"
                                        " {\"content\": \"<x>\"}}}");
    assert_refused(STATUS_INVALID_ARGUMENT, "has the key 'x', expected an id");
    write_text("tokenizer_config.json", "{\"added_tokens_decoder\": {\"5\":"
                                        " {\"content\": \"<x>\"}}}");
    assert_refused(STATUS_INVALID_ARGUMENT, "which another token has");
}

/* A pattern whose backtracking explodes is stopped, not waited for. */
Test(tokenizer_load, a_pattern_without_end_is_an_error)
{
    struct tokenizer *tokenizer;
    struct ids ids = {0};
    char text[41];

    write_patched(SPLIT("(x+x+)+[yz]"));
    tokenizer = load(dir);
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    cr_assert(eq(int,
                 tokenizer_encode(tokenizer, text, 40, false, NO_LIMIT, &ids),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(strstr(status_reason(), "fails on a piece of 40") != NULL, "%s",
              status_reason());
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

static void assert_tokens(const struct tokenizer *tokenizer, const char *text,
                          size_t n, uint32_t first)
{
    struct ids ids = encode(tokenizer, text, strlen(text), true);

    cr_assert(eq(sz, ids.n, n), "%s", text);
    cr_assert(eq(u32, ids.id[0], first), "%s", text);
    ids_release(&ids);
}

/* "quick" is a token that no merge makes. */
Test(tokenizer_load, whole_pieces_are_tokens_only_when_the_file_says_so)
{
    static const char OFF[] = "{\"model\": {\"ignore_merges\": false,"
                              " \"vocab\": {\"quick\": 600}}}";
    static const char ON[] = "{\"model\": {\"ignore_merges\": true,"
                             " \"vocab\": {\"quick\": 600}}}";
    struct tokenizer *tokenizer;
    struct ids ids;

    write_patched(ON);
    tokenizer = load(dir);
    assert_tokens(tokenizer, "quick", 1, 600);
    tokenizer_destroy(tokenizer);
    write_patched(OFF);
    tokenizer = load(dir);
    ids = encode(tokenizer, "quick", 5, true);
    cr_assert(ids.n > 1);
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

Test(tokenizer_load, added_tokens_without_flags_have_the_formats_defaults)
{
    struct tokenizer *tokenizer;
    struct ids ids;

    write_patched("{\"normalizer\": {\"type\": \"NFC\"}, \"added_tokens\": ["
                  "{\"id\": 500, \"content\": \"<e\u0301>\"},"
                  "{\"id\": 501, \"content\": \"[e\u0301]\","
                  " \"special\": true},"
                  "{\"id\": 502, \"content\": \"<r>\", \"rstrip\": true}]}");
    tokenizer = load(dir);
    /* Not special: looked for behind NFC, in either spelling. */
    assert_tokens(tokenizer, "<e\u0301>", 1, 500);
    assert_tokens(tokenizer, "<\u00e9>", 1, 500);
    /* Special: looked for in the text as it is. */
    assert_tokens(tokenizer, "[e\u0301]", 1, 501);
    ids = encode(tokenizer, "[\u00e9]", 4, true);
    cr_assert(ids.n > 1);
    ids_release(&ids);
    /* White space is Unicode's. */
    assert_tokens(tokenizer, "<r>\xc2\x85\u3000 \t", 1, 502);
    assert_tokens(tokenizer, "<r>\u180e", 4, 502); /* is none */
    tokenizer_destroy(tokenizer);
}

Test(tokenizer_load, a_pattern_that_matches_nothing_still_ends)
{
    struct tokenizer *tokenizer;
    struct detokenizer detokenizer = {0};
    char text[DETOKENIZER_OUT_MAX + 16];
    struct ids ids;
    size_t n = 0;

    write_patched(SPLIT("x*"));
    tokenizer = load(dir);
    ids = encode(tokenizer, "axx\u4e2db", 7, true);
    for (size_t i = 0; i < ids.n; i++)
        n += detokenizer_push(&detokenizer, tokenizer, ids.id[i], false,
                              text + n);
    cr_assert(n == 7 && memcmp(text, "axx\u4e2db", 7) == 0);
    ids_release(&ids);
    tokenizer_destroy(tokenizer);
}

/* JQZK: ZK is merged first, so QZ, queued before, is there no more and must
 * not lend its rank to Q and ZK. JQ comes before Q with ZK. */
Test(tokenizer_load, a_pair_that_is_gone_lends_no_rank)
{
    struct tokenizer *tokenizer;
    struct ids ids;
    char text[64];

    write_patched("{\"model\": {\"merges\": [\"Z K\", \"Q Z\", \"J Q\","
                  " \"Q ZK\"], \"vocab\": {\"ZK\": 600, \"QZ\": 601,"
                  " \"JQ\": 602, \"QZK\": 603}}}");
    tokenizer = load(dir);
    for (size_t n = 0; n < 50; n += 49) { /* short and long pieces */
        memset(text, 'W', n);
        memcpy(text + n, "JQZK", 4);
        ids = encode(tokenizer, text, n + 4, true);
        cr_assert(eq(sz, ids.n, n + 2));
        cr_assert(eq(u32, ids.id[n], 602));
        cr_assert(eq(u32, ids.id[n + 1], 600));
        ids_release(&ids);
    }
    tokenizer_destroy(tokenizer);
}

/* As Llama 3's file says it: BOS, then the text. */
Test(tokenizer_load, a_template_gives_the_opening_of_a_session)
{
    struct tokenizer *tokenizer = load("tests/golden/tokenizer_gpt2");
    const uint32_t *opening;
    uint32_t n = 9, id;

    (void)tokenizer_opening(tokenizer, &n);
    cr_assert(eq(u32, n, 0));
    cr_assert(tokenizer_special(tokenizer, "<|endoftext|>", &id));
    tokenizer_destroy(tokenizer);

    write_patched(OPENING(END ", {\"Sequence\": {\"id\": \"A\"}}"));
    tokenizer = load(dir);
    opening = tokenizer_opening(tokenizer, &n);
    cr_assert(eq(u32, n, 1));
    cr_assert(eq(u32, opening[0], id));
    tokenizer_destroy(tokenizer);
}
