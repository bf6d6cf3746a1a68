#include "model/tokenizer_parts.h"

#include "base/json.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME "tokenizer.json"
#define CONFIG_NAME "tokenizer_config.json"

/* Text of `type`, "" when there is none. */
static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));

    return type ? type : "";
}

static bool type_is(const json_t *object, const char *type)
{
    return strcmp(type_of(object), type) == 0;
}

static enum status unknown(const char *part, const json_t *object,
                           const char *known)
{
    return status_fail(STATUS_UNIMPLEMENTED, "%s: %s is '%.64s', known: %s",
                       FILE_NAME, part, type_of(object), known);
}

static bool is_text(const json_t *object, const char *key)
{
    return json_string_length(json_object_get(object, key)) > 0;
}

/* The model's own switches; those that change what a piece becomes. */
static enum status check_model(const json_t *model)
{
    double dropout = 0;
    enum status st;

    if (!json_is_object(model))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: model is missing or no object, expected one",
                           FILE_NAME);
    /* The first files of the format name no type and are BPE. */
    if (!type_is(model, "BPE") && json_object_get(model, "type"))
        return unknown("model.type", model, "BPE");
    st = json_get_double(FILE_NAME, model, "dropout", &dropout);
    if (st)
        return st;
    if (dropout != 0.0 || is_text(model, "continuing_subword_prefix") ||
        is_text(model, "end_of_word_suffix"))
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: model has dropout, continuing_subword_prefix "
                           "or end_of_word_suffix, known: none of them",
                           FILE_NAME);
    return STATUS_OK;
}

static enum status read_vocab(struct tokenizer *tokenizer, const json_t *model)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const char *text;
    json_t *id;
    enum status st;

    if (!json_is_object(vocab))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: model.vocab is missing or no object, expected "
                           "one",
                           FILE_NAME);
    json_object_foreach((json_t *)vocab, text, id)
    {
        if (!json_is_integer(id) || json_integer_value(id) < 0)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: id of token '%.40s' is no id, expected an "
                               "integer from 0",
                               FILE_NAME, text);
        st = vocab_set(tokenizer, FILE_NAME, (uint64_t)json_integer_value(id),
                       text);
        if (st)
            return st;
    }
    return vocab_index(tokenizer, FILE_NAME);
}

/* Both sides of a merge: "a b" or ["a", "b"]. Texts go to `side`. */
static bool split_merge(const json_t *entry,
                        char side[2][TOKENIZER_PIECE_BYTES_MAX + 1])
{
    const char *text = json_string_value(entry);
    const char *space = text ? strchr(text, ' ') : NULL;

    for (size_t i = 0; i < 2; i++) {
        const char *part = json_string_value(json_array_get(entry, i));
        size_t n;

        if (text) {
            if (!space || strchr(space + 1, ' '))
                return false;
            part = i ? space + 1 : text;
            n = i ? strlen(part) : (size_t)(space - text);
        } else {
            if (!part || json_array_size(entry) != 2)
                return false;
            n = strlen(part);
        }
        if (n == 0 || n > TOKENIZER_PIECE_BYTES_MAX)
            return false;
        memcpy(side[i], part, n);
        side[i][n] = '\0';
    }
    return true;
}

static enum status read_merge(struct tokenizer *tokenizer, const json_t *entry,
                              size_t rank)
{
    char side[2][TOKENIZER_PIECE_BYTES_MAX + 1];
    uint8_t bytes[2 * TOKENIZER_PIECE_BYTES_MAX];
    uint32_t left, right, merged;
    size_t n_left = 0, n_right = 0;

    if (!split_merge(entry, side))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: model.merges[%zu] is no pair, expected \"a b\" "
                           "or [\"a\", \"b\"]",
                           FILE_NAME, rank);
    if (!alphabet_bytes(side[0], bytes, &n_left) ||
        !vocab_find(tokenizer, bytes, n_left, &left) ||
        !alphabet_bytes(side[1], bytes + n_left, &n_right) ||
        !vocab_find(tokenizer, bytes + n_left, n_right, &right) ||
        !vocab_find(tokenizer, bytes, n_left + n_right, &merged))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: model.merges[%zu] of '%.40s' and '%.40s' has a "
                           "part or a result that is no token, expected all "
                           "in model.vocab",
                           FILE_NAME, rank, side[0], side[1]);
    return pair_map_put(&tokenizer->merges, (uint64_t)left << 32 | right,
                        (uint32_t)rank, merged);
}

static enum status read_merges(struct tokenizer *tokenizer, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges");
    enum status st;

    if (!json_is_array(merges) ||
        json_array_size(merges) > 4 * (size_t)TOKENIZER_TOKEN_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: model.merges is missing or has %zu entries, "
                           "expected a list of at most %u",
                           FILE_NAME, json_array_size(merges),
                           4 * TOKENIZER_TOKEN_MAX);
    for (size_t i = 0; i < json_array_size(merges); i++) {
        st = read_merge(tokenizer, json_array_get(merges, i), i);
        if (st)
            return st;
    }
    return json_get_bool(FILE_NAME, model, "ignore_merges",
                         &tokenizer->ignores_merges);
}

static enum status read_normaliser(struct tokenizer *tokenizer,
                                   const json_t *object, unsigned depth)
{
    const json_t *list = json_object_get(object, "normalizers");
    enum status st = STATUS_OK;

    if (!object || json_is_null(object))
        return STATUS_OK;
    if (type_is(object, "NFC")) {
        tokenizer->has_nfc = true; /* twice is once */
        return STATUS_OK;
    }
    if (!type_is(object, "Sequence") || depth == 2)
        return unknown("normalizer", object, "NFC or none");
    for (size_t i = 0; i < json_array_size(list) && !st; i++)
        st = read_normaliser(tokenizer, json_array_get(list, i), depth + 1);
    return st;
}

static enum status add_stage(struct tokenizer *tokenizer, const char *pattern,
                             bool is_literal, struct stage stage)
{
    enum status st;

    if (tokenizer->n_stage == TOKENIZER_STAGE_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: pre_tokenizer has more than %u splits, limit "
                           "%u",
                           FILE_NAME, TOKENIZER_STAGE_MAX, TOKENIZER_STAGE_MAX);
    st = pattern_compile(FILE_NAME, pattern, is_literal, &stage.code);
    if (!st)
        tokenizer->stage[tokenizer->n_stage++] = stage;
    return st;
}

static enum status read_split(struct tokenizer *tokenizer, const json_t *object)
{
    const json_t *pattern = json_object_get(object, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    const char *behavior = "";
    struct stage stage = {0};
    bool is_inverted = false;
    enum status st;

    st = json_get_string(FILE_NAME, object, "behavior", &behavior);
    if (!st)
        st = json_get_bool(FILE_NAME, object, "invert", &is_inverted);
    if (st)
        return st;
    if (!regex && !(literal && *literal))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: pre_tokenizer's split has no pattern, expected "
                           "a Regex or a String",
                           FILE_NAME);
    if (strcmp(behavior, "Removed") == 0) {
        stage.drops_gaps = is_inverted;
        stage.drops_matches = !is_inverted;
    } else if (strcmp(behavior, "Isolated") != 0) {
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: pre_tokenizer's behavior is '%.40s', known: "
                           "Isolated, Removed",
                           FILE_NAME, behavior);
    }
    return add_stage(tokenizer, regex ? regex : literal, !regex, stage);
}

/* ByteLevel is the last stage: behind it, text is GPT-2's alphabet. */
static enum status read_byte_level(struct tokenizer *tokenizer,
                                   const json_t *object)
{
    bool has_regex = true;
    enum status st;

    tokenizer->has_prefix_space = true; /* the format's defaults */
    tokenizer->prefix_stage = tokenizer->n_stage;
    st = json_get_bool(FILE_NAME, object, "add_prefix_space",
                       &tokenizer->has_prefix_space);
    if (!st)
        st = json_get_bool(FILE_NAME, object, "use_regex", &has_regex);
    if (st || !has_regex)
        return st;
    return add_stage(tokenizer, PATTERN_GPT2, false, (struct stage){0});
}

static enum status read_pre_tokeniser(struct tokenizer *tokenizer,
                                      const json_t *object, unsigned depth,
                                      bool *has_byte_level)
{
    static const char KNOWN[] =
        "Split and then ByteLevel, alone or in a Sequence";
    const json_t *list = json_object_get(object, "pretokenizers");
    enum status st = STATUS_OK;

    if (*has_byte_level)
        return unknown("pre_tokenizer behind ByteLevel", object, "none");
    if (type_is(object, "Split"))
        return read_split(tokenizer, object);
    if (type_is(object, "ByteLevel")) {
        *has_byte_level = true;
        return read_byte_level(tokenizer, object);
    }
    if (!type_is(object, "Sequence") || depth == 2)
        return unknown("pre_tokenizer", object, KNOWN);
    for (size_t i = 0; i < json_array_size(list) && !st; i++)
        st = read_pre_tokeniser(tokenizer, json_array_get(list, i), depth + 1,
                                has_byte_level);
    return st;
}

static enum status check_decoder(const json_t *decoder)
{
    const json_t *list = json_object_get(decoder, "decoders");

    if (type_is(decoder, "Sequence") && json_array_size(list) == 1)
        decoder = json_array_get(list, 0);
    if (!type_is(decoder, "ByteLevel"))
        return unknown("decoder", decoder, "ByteLevel");
    return STATUS_OK;
}

static enum status read_pipeline(struct tokenizer *tokenizer,
                                 const json_t *root)
{
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    bool has_byte_level = false;
    enum status st;

    st = read_normaliser(tokenizer, json_object_get(root, "normalizer"), 0);
    if (!st)
        st = read_pre_tokeniser(tokenizer, pre, 0, &has_byte_level);
    if (st)
        return st;
    if (!has_byte_level)
        return unknown("pre_tokenizer without ByteLevel", pre, "ByteLevel");
    return check_decoder(json_object_get(root, "decoder"));
}

static enum status read_flags(const char *where, const json_t *object,
                              struct added *added)
{
    const struct {
        const char *key;
        bool *flag;
    } row[] = {{"special", &added->is_special},
               {"single_word", &added->is_single_word},
               {"lstrip", &added->strips_left},
               {"rstrip", &added->strips_right}};
    enum status st = STATUS_OK;

    for (size_t i = 0; i < sizeof(row) / sizeof(*row) && !st; i++)
        st = json_get_bool(where, object, row[i].key, row[i].flag);
    if (st)
        return st;
    added->is_normalised = !added->is_special;
    return json_get_bool(where, object, "normalized", &added->is_normalised);
}

/* A text has one id: in the vocabulary and among the added tokens. */
static enum status check_added(const struct tokenizer *tokenizer,
                               const char *where, const json_t *vocab,
                               const char *text, uint64_t id)
{
    const json_t *known = json_object_get(vocab, text);
    uint64_t other = id;
    uint32_t found;

    if (json_is_integer(known))
        other = (uint64_t)json_integer_value(known);
    else if (tokenizer_special(tokenizer, text, &found))
        other = found;
    if (other != id)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: added token '%.40s' has id %lu and %lu, "
                           "expected one",
                           where, text, id, other);
    return STATUS_OK;
}

/* Room for one more. */
static enum status reserve_added(struct tokenizer *tokenizer)
{
    const uint32_t capacity = 2 * tokenizer->added_capacity + 16;
    struct added *grown;

    if (tokenizer->n_added < tokenizer->added_capacity)
        return STATUS_OK;
    grown = realloc(tokenizer->added, capacity * sizeof(*grown));
    if (!grown)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u added tokens", capacity);
    tokenizer->added = grown;
    tokenizer->added_capacity = capacity;
    return STATUS_OK;
}

static enum status store_added(struct tokenizer *tokenizer, const char *text,
                               struct added added)
{
    struct trie *trie =
        added.is_normalised ? &tokenizer->normalised : &tokenizer->raw;
    char *nfc = NULL;
    size_t n_nfc = 0;
    enum status st;

    st = reserve_added(tokenizer);
    if (st)
        return st;
    /* A token that is looked for behind NFC must be NFC itself. */
    if (added.is_normalised && tokenizer->has_nfc) {
        st = text_nfc(text, strlen(text), &nfc, &n_nfc);
        if (st)
            return st;
    }
    added.n_bytes = (uint32_t)strlen(text);
    added.n_normalised = nfc ? (uint32_t)n_nfc : added.n_bytes;
    added.text = strdup(text);
    if (!added.text) {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                         "no memory for added tokens");
        goto out;
    }
    tokenizer->added[tokenizer->n_added++] = added;
    st = trie_add(trie, nfc ? nfc : text, added.n_normalised,
                  tokenizer->n_added);
out:
    free(nfc);
    return st;
}

static enum status add_token(struct tokenizer *tokenizer, const char *where,
                             const json_t *vocab, const json_t *object,
                             uint64_t id)
{
    struct added added = {0};
    const char *text = NULL;
    enum status st;

    st = json_get_string(where, object, "content", &text);
    if (st)
        return st;
    if (!text || !*text)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: added token %lu has no content, expected a "
                           "text",
                           where, id);
    st = read_flags(where, object, &added);
    if (!st)
        st = check_added(tokenizer, where, vocab, text, id);
    if (!st)
        st = vocab_set(tokenizer, where, id, text);
    if (st)
        return st;
    if (tokenizer->token[id].is_added)
        return STATUS_OK; /* said again, by the other file */

    added.id = (uint32_t)id;
    tokenizer->token[id].is_added = true;
    tokenizer->token[id].is_special = added.is_special;
    return store_added(tokenizer, text, added);
}

static enum status read_added(struct tokenizer *tokenizer, const json_t *root)
{
    const json_t *list = json_object_get(root, "added_tokens");
    const json_t *vocab =
        json_object_get(json_object_get(root, "model"), "vocab");
    enum status st = STATUS_OK;

    for (size_t i = 0; i < json_array_size(list) && !st; i++) {
        const json_t *object = json_array_get(list, i);
        uint64_t id = UINT64_MAX;

        st = json_get_u64(FILE_NAME, object, "id", 0, TOKENIZER_TOKEN_MAX - 1,
                          &id);
        if (!st)
            st = add_token(tokenizer, FILE_NAME, vocab, object, id);
    }
    return st;
}

/* added_tokens_decoder: {"151643": {"content": ...}, ...} */
static enum status read_config(struct tokenizer *tokenizer, const json_t *root,
                               const json_t *config)
{
    const json_t *list = json_object_get(config, "added_tokens_decoder");
    const json_t *vocab =
        json_object_get(json_object_get(root, "model"), "vocab");
    json_t *object;
    const char *key;
    enum status st;

    json_object_foreach((json_t *)list, key, object)
    {
        char *end;
        const unsigned long id = strtoul(key, &end, 10);

        if (*key < '0' || *key > '9' || *end)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: added_tokens_decoder has the key '%.40s', "
                               "expected an id",
                               CONFIG_NAME, key);
        st = add_token(tokenizer, CONFIG_NAME, vocab, object, id);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status load(const char *dir, const char *name, json_t **out)
{
    char path[PATH_MAX];
    const int n = snprintf(path, sizeof(path), "%s/%s", dir, name);

    if (n < 0 || (size_t)n >= sizeof(path))
        return status_fail(STATUS_NOT_FOUND,
                           "path of %s has %d bytes, limit %zu", name, n,
                           sizeof(path) - 1);
    return json_load(path, out);
}

static enum status build(struct tokenizer *tokenizer, const json_t *root,
                         const json_t *config)
{
    const json_t *model = json_object_get(root, "model");
    enum status st;

    st = check_model(model);
    if (!st)
        st = read_pipeline(tokenizer, root);
    if (!st)
        st = read_vocab(tokenizer, model);
    if (!st)
        st = read_merges(tokenizer, model);
    if (!st)
        st = read_added(tokenizer, root);
    if (!st)
        st = opening_read(tokenizer, json_object_get(root, "post_processor"));
    if (!st && config)
        st = read_config(tokenizer, root, config);
    return st;
}

enum status tokenizer_load(const char *dir, struct tokenizer **out)
{
    struct tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
    json_t *root = NULL, *config = NULL;
    enum status st;

    if (!tokenizer)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a tokenizer");
    st = load(dir, FILE_NAME, &root);
    if (st)
        goto out;
    st = load(dir, CONFIG_NAME, &config);
    if (st && st != STATUS_NOT_FOUND)
        goto out; /* that file alone is optional */
    st = build(tokenizer, root, config);
    if (st)
        goto out;
    *out = tokenizer;
    tokenizer = NULL;
out:
    json_decref(config);
    json_decref(root);
    tokenizer_destroy(tokenizer);
    return st;
}

void tokenizer_destroy(struct tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    for (uint32_t i = 0; i < tokenizer->n_stage; i++)
        pcre2_code_free(tokenizer->stage[i].code);
    for (uint32_t i = 0; i < tokenizer->n_added; i++)
        free(tokenizer->added[i].text);
    free(tokenizer->added);
    free(tokenizer->raw.leaf);
    free(tokenizer->normalised.leaf);
    pair_map_release(&tokenizer->raw.edge);
    pair_map_release(&tokenizer->normalised.edge);
    pair_map_release(&tokenizer->merges);
    free(tokenizer->by_bytes);
    free(tokenizer->pool);
    free(tokenizer->token);
    free(tokenizer);
}
