#include "model/tokenizer_parts.h"

#include <string.h>

/*
 * A post-processor adds tokens around a text. ByteLevel's only trims offsets,
 * which we do not report. TemplateProcessing lists for one text ("single") the
 * special tokens before and behind it; those behind would end the text for
 * good, so a tokenizer that has them is refused.
 */

static const char WHERE[] = "tokenizer.json: post_processor";

const uint32_t *tokenizer_opening(const struct tokenizer *tokenizer,
                                  uint32_t *out_n)
{
    *out_n = tokenizer->n_opening;
    return tokenizer->opening;
}

static enum status add_token(struct tokenizer *tokenizer, const char *text)
{
    uint32_t id;

    if (!tokenizer_special(tokenizer, text, &id))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: '%s' is not an added token", WHERE, text);
    if (tokenizer->n_opening == TOKENIZER_OPENING_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: more than %u tokens before the text", WHERE,
                           TOKENIZER_OPENING_MAX);
    tokenizer->opening[tokenizer->n_opening++] = id;
    return STATUS_OK;
}

static enum status read_template(struct tokenizer *tokenizer,
                                 const json_t *processor)
{
    const json_t *single = json_object_get(processor, "single");
    bool is_behind = false;

    if (!json_is_array(single))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: single is no list, expected one", WHERE);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i);
        const json_t *token = json_object_get(part, "SpecialToken");
        const char *text = NULL;
        enum status st;

        if (!token) {
            is_behind = true;
            continue;
        }
        st = json_get_string(WHERE, token, "id", &text);
        if (!st && !text)
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "%s: a SpecialToken has no id", WHERE);
        if (!st && is_behind)
            st = status_fail(STATUS_UNIMPLEMENTED,
                             "%s puts '%s' behind a text, known: before it",
                             WHERE, text);
        if (!st)
            st = add_token(tokenizer, text);
        if (st)
            return st;
    }
    return STATUS_OK;
}

enum status opening_read(struct tokenizer *tokenizer, const json_t *processor)
{
    const json_t *list = json_object_get(processor, "processors");
    const char *type = NULL;
    enum status st = STATUS_OK;

    if (!processor || json_is_null(processor))
        return STATUS_OK;
    st = json_get_string(WHERE, processor, "type", &type);
    if (st)
        return st;
    if (type && strcmp(type, "ByteLevel") == 0)
        return STATUS_OK;
    if (type && strcmp(type, "TemplateProcessing") == 0)
        return read_template(tokenizer, processor);
    if (!type || strcmp(type, "Sequence") != 0)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s is '%s', known: ByteLevel, TemplateProcessing, "
                           "Sequence of these",
                           WHERE, type ? type : "");
    for (size_t i = 0; !st && i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);
        const char *inner = NULL;

        st = json_get_string(WHERE, one, "type", &inner);
        if (!st && inner && strcmp(inner, "Sequence") == 0)
            st = status_fail(STATUS_UNIMPLEMENTED,
                             "%s: a Sequence inside a Sequence", WHERE);
        if (!st)
            st = opening_read(tokenizer, one);
    }
    return st;
}
