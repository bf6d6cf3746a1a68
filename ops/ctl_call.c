/* How commands read what they send and call a node. */
#include "ops/ctl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status ctl_stream(struct ctl *ctl, const char *method,
                       const ProtobufCMessage *request, client_each *each,
                       void *context)
{
    size_t n_bytes = protobuf_c_message_get_packed_size(request);
    uint8_t *bytes;
    enum status st;

    if (n_bytes > CTL_MESSAGE_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "the request has %zu bytes, one message holds %u",
                           n_bytes, CTL_MESSAGE_MAX);
    bytes = malloc(n_bytes + 1);
    if (!bytes)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a request");
    (void)protobuf_c_message_pack(request, bytes);
    st = client_call(ctl->client, method, bytes, n_bytes, each, context);
    free(bytes);
    return st;
}

struct answer {
    const ProtobufCMessageDescriptor *kind;
    ProtobufCMessage *message;
};

static enum status take_answer(void *context, const void *message,
                               size_t n_bytes)
{
    struct answer *answer = context;

    if (!answer->message)
        answer->message =
            protobuf_c_message_unpack(answer->kind, NULL, n_bytes, message);
    if (!answer->message)
        return status_fail(STATUS_INTERNAL,
                           "the node's answer is no %s; is it a Godwit node?",
                           answer->kind->name);
    return STATUS_OK;
}

enum status ctl_unary(struct ctl *ctl, const char *method,
                      const ProtobufCMessage *request,
                      const ProtobufCMessageDescriptor *answer,
                      ProtobufCMessage **out)
{
    struct answer taken = {.kind = answer};
    enum status st = ctl_stream(ctl, method, request, take_answer, &taken);

    if (!st && !taken.message)
        st = status_fail(STATUS_INTERNAL, "the node sent no answer");
    if (st) {
        if (taken.message)
            protobuf_c_message_free_unpacked(taken.message, NULL);
        return st;
    }
    *out = taken.message;
    return STATUS_OK;
}

enum output_format ctl_format(const struct ctl *ctl)
{
    if (strcmp(ctl->options.output, "json") == 0)
        return OUTPUT_JSON;
    return strcmp(ctl->options.output, "tsv") == 0 ? OUTPUT_TSV : OUTPUT_TABLE;
}

/* Bytes of the character that begins with `lead`; 0: none does. */
static size_t character_bytes(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead >= 0xc2 && lead < 0xe0)
        return 2;
    if (lead >= 0xe0 && lead < 0xf0)
        return 3;
    return lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
}

/* The second byte says whether a form is overlong, a surrogate or too large. */
static bool is_good_second(unsigned char lead, unsigned char second)
{
    if (lead == 0xe0)
        return second >= 0xa0;
    if (lead == 0xed)
        return second < 0xa0;
    if (lead == 0xf0)
        return second >= 0x90;
    return lead != 0xf4 || second < 0x90;
}

bool ctl_is_utf8(const char *bytes, size_t n_bytes, size_t *out_bad)
{
    const unsigned char *byte = (const unsigned char *)bytes;
    size_t i = 0;

    while (i < n_bytes) {
        size_t n = character_bytes(byte[i]);
        bool is_good = n > 0 && n <= n_bytes - i;

        for (size_t k = 1; is_good && k < n; k++)
            is_good = (byte[i + k] & 0xc0) == 0x80;
        if (is_good && n > 1)
            is_good = is_good_second(byte[i], byte[i + 1]);
        if (!is_good) {
            *out_bad = i;
            return false;
        }
        i += n;
    }
    return true;
}

/* The whole stream, up to one byte more than is allowed. */
static enum status read_stream(FILE *file, const char *name,
                               struct ctl_text *out)
{
    size_t capacity = CTL_PROMPT_MAX + 2u;
    char *bytes = malloc(capacity), *fitting;
    size_t n;

    if (!bytes)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %s", name);
    n = fread(bytes, 1, CTL_PROMPT_MAX + 1u, file);
    if (ferror(file)) {
        free(bytes);
        return status_fail(STATUS_INTERNAL, "cannot read %s: %s", name,
                           strerror(errno));
    }
    bytes[n] = 0;
    fitting = realloc(bytes, n + 1);
    out->bytes = fitting ? fitting : bytes;
    out->n_bytes = n;
    return STATUS_OK;
}

static enum status read_file(const char *path, struct ctl_text *out)
{
    enum status st;
    FILE *file;

    if (strcmp(path, "-") == 0)
        return read_stream(stdin, "stdin", out);
    file = fopen(path, "rbe");
    if (!file)
        return status_fail(STATUS_INTERNAL, "cannot read prompt file %s: %s",
                           path, strerror(errno));
    st = read_stream(file, path, out);
    (void)fclose(file);
    return st;
}

static enum status check_text(const struct ctl_text *text, const char *name)
{
    size_t bad;

    if (text->n_bytes > CTL_PROMPT_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s has more than %u bytes, which is what one "
                           "message holds; send it in several turns of one "
                           "--session",
                           name, CTL_PROMPT_MAX);
    if (!ctl_is_utf8(text->bytes, text->n_bytes, &bad))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s is not UTF-8: byte 0x%02x at offset %zu", name,
                           (unsigned char)text->bytes[bad], bad);
    return STATUS_OK;
}

enum status ctl_read_prompt(const struct ctl *ctl, const char *word,
                            struct ctl_text *out)
{
    const struct ctl_options *options = &ctl->options;
    const char *name = "the prompt", *given = word;
    struct ctl_text text = {0};
    enum status st = STATUS_OK;

    if ((word != NULL) + (*options->prompt != 0) +
            (*options->prompt_file != 0) !=
        1)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "give the text once: --prompt TEXT or "
                           "--prompt-file FILE");
    if (*options->prompt_file) {
        name = options->prompt_file;
        st = read_file(name, &text);
    } else {
        given = given ? given : options->prompt;
        text.bytes = strdup(given);
        text.n_bytes = strlen(given);
        if (!text.bytes)
            return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory");
    }
    if (!st)
        st = check_text(&text, name);
    if (st) {
        free(text.bytes);
        return st;
    }
    *out = text;
    return STATUS_OK;
}

enum status ctl_parse_u64(const char *name, const char *text, uint64_t *out)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || *end || end == text || *text < '0' || *text > '9')
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--%s is '%s', expected 0 to %" PRIu64, name, text,
                           UINT64_MAX);
    *out = value;
    return STATUS_OK;
}

enum status ctl_parse_float(const char *name, const char *text, float *out)
{
    char *end;
    float value;

    errno = 0;
    value = strtof(text, &end);
    if (errno || *end || end == text)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--%s is '%s', expected a number", name, text);
    *out = value;
    return STATUS_OK;
}

char *ctl_session_name(const char *word)
{
    const char *prefix = strncmp(word, "sessions/", 9) == 0 ? "" : "sessions/";
    char *name = NULL;

    if (asprintf(&name, "%s%s", prefix, word) < 0) {
        status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a name");
        return NULL;
    }
    return name;
}
