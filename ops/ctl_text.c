/* tokenize and detokenize: the node's own tokenizer, no session touched. */
#include "ops/ctl.h"

#include "godwit/v1/generation.pb-c.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERVICE "/godwit.v1.GenerationService/"

/* One id per line; tsv with positions; json as one object. */
static enum status print_ids(const struct ctl *ctl, const uint32_t *id,
                             size_t n_id)
{
    bool is_tsv = ctl_format(ctl) == OUTPUT_TSV;

    if (ctl_format(ctl) == OUTPUT_JSON) {
        (void)printf("{\"apiVersion\": \"godwit.v1\", \"kind\": \"Tokens\", "
                     "\"ids\": [");
        for (size_t i = 0; i < n_id; i++)
            (void)printf("%s%u", i ? ", " : "", id[i]);
        (void)printf("]}\n");
        return STATUS_OK;
    }
    if (is_tsv)
        (void)printf("position\tid\n");
    for (size_t i = 0; i < n_id; i++) {
        if (is_tsv)
            (void)printf("%zu\t", i);
        (void)printf("%u\n", id[i]);
    }
    return STATUS_OK;
}

enum status ctl_tokenize(struct ctl *ctl)
{
    Godwit__V1__TokenizeRequest request;
    Godwit__V1__TokenizeResponse *answer;
    struct ctl_text text = {0};
    ProtobufCMessage *message;
    enum status st =
        ctl_read_prompt(ctl, ctl->n_word > 0 ? ctl->word[0] : NULL, &text);

    if (st)
        return st;
    godwit__v1__tokenize_request__init(&request);
    request.input_case = GODWIT__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    request.text.data = (uint8_t *)text.bytes;
    request.text.len = text.n_bytes;
    request.parse_special_tokens = ctl->options.has_special;
    st = ctl_unary(ctl, SERVICE "Tokenize", &request.base,
                   &godwit__v1__tokenize_response__descriptor, &message);
    free(text.bytes);
    if (st)
        return st;
    answer = (Godwit__V1__TokenizeResponse *)message;
    st = print_ids(ctl, answer->token_ids, answer->n_token_ids);
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}

struct id_list {
    uint32_t *id;
    size_t n, capacity;
};

static enum status add_id(struct id_list *list, const char *word)
{
    unsigned long value;
    uint32_t *grown;
    char *end;

    errno = 0;
    value = strtoul(word, &end, 10);
    if (errno || end == word || *end || *word < '0' || *word > '9' ||
        value > UINT32_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "'%s' is no token id, expected 0 to %u", word,
                           UINT32_MAX);
    if (list->n == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        grown = realloc(list->id, list->capacity * sizeof(*grown));
        if (!grown)
            return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for ids");
        list->id = grown;
    }
    list->id[list->n++] = (uint32_t)value;
    return STATUS_OK;
}

/* Ids between any white space. */
static enum status read_ids(FILE *file, struct id_list *list)
{
    enum status st = STATUS_OK;
    char word[32];

    while (!st && fscanf(file, "%31s", word) == 1) {
        st = add_id(list, word);
        if (!st && list->n > CTL_MESSAGE_MAX / 2)
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "more ids than one message holds");
    }
    if (!st && ferror(file))
        st = status_fail(STATUS_INTERNAL, "cannot read stdin: %s",
                         strerror(errno));
    return st;
}

static enum status print_text(const struct ctl *ctl, const void *text,
                              size_t n_bytes)
{
    struct output *output;
    char *copy;
    enum status st;

    if (ctl_format(ctl) != OUTPUT_JSON) {
        (void)fwrite(text, 1, n_bytes, stdout);
        return STATUS_OK;
    }
    copy = strndup(n_bytes > 0 ? text : "", n_bytes);
    if (!copy)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a text");
    st = output_create(OUTPUT_JSON, "Text", false, &output);
    if (!st) {
        output_row(output);
        output_text(output, "text", copy);
        st = output_write(output);
        output_destroy(output);
    }
    free(copy);
    return st;
}

enum status ctl_detokenize(struct ctl *ctl)
{
    Godwit__V1__DetokenizeRequest request;
    Godwit__V1__DetokenizeResponse *answer;
    ProtobufCMessage *message;
    struct id_list list = {0};
    enum status st = STATUS_OK;

    for (int i = 0; !st && i < ctl->n_word; i++)
        st = add_id(&list, ctl->word[i]);
    if (!st && ctl->n_word == 0)
        st = read_ids(stdin, &list);
    godwit__v1__detokenize_request__init(&request);
    request.token_ids = list.id;
    request.n_token_ids = list.n;
    if (!st)
        st = ctl_unary(ctl, SERVICE "Detokenize", &request.base,
                       &godwit__v1__detokenize_response__descriptor, &message);
    free(list.id);
    if (st)
        return st;
    answer = (Godwit__V1__DetokenizeResponse *)message;
    st = print_text(ctl, answer->text.data, answer->text.len);
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}
