#include "rpc/convert.h"

#include "model/chat.h"
#include "rpc/convert_parts.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of one unpacked request: ids grow from 1 byte to 4, structs by a little. */
#define UNPACK_FACTOR 8u
#define UNPACK_BYTES (1u << 20)
/* Of one command besides its tokens. */
#define COMMAND_BYTES (64u << 10)
#define ID_CHARACTERS "a-z, A-Z, 0-9, '.', '_' and '-'"
#define DURATION_SECONDS_MAX 315576000000 /* google.protobuf.Duration's own */

enum status bad_field(const char *field, const char *fmt, ...)
{
    char text[STATUS_TEXT_SIZE];
    va_list list;

    va_start(list, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, list);
    va_end(list);
    status_fail(STATUS_INVALID_ARGUMENT, "%s", text);
    return status_field(field);
}

bool is_id_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

enum status take_id(const char *id, const char *field,
                    char out[SESSION_NAME_SIZE])
{
    size_t n = strlen(id);

    if (n == 0 || n >= SESSION_NAME_SIZE)
        return bad_field(field, "%s: an id has 1 to %u characters, not %zu",
                         field, SESSION_NAME_SIZE - 1, n);
    for (size_t i = 0; i < n; i++)
        if (!is_id_character(id[i]))
            return bad_field(field, "%s: character %zu of the id is none of %s",
                             field, i + 1, ID_CHARACTERS);
    memcpy(out, id, n + 1);
    return STATUS_OK;
}

enum status take_session(const char *name, const char *field,
                         char out[SESSION_NAME_SIZE])
{
    static const char collection[] = "sessions/";
    const size_t n = sizeof(collection) - 1;

    if (strncmp(name, collection, n) != 0)
        return bad_field(field, "%s is \"%.64s\", expected \"sessions/ID\"",
                         field, name);
    return take_id(name + n, field, out);
}

enum status take_request_id(const char *id, char out[REQUEST_ID_SIZE])
{
    size_t n = strlen(id);

    if (n >= REQUEST_ID_SIZE)
        return bad_field("request_id",
                         "request_id has %zu characters, limit %u", n,
                         REQUEST_ID_SIZE - 1);
    for (size_t i = 0; i < n; i++)
        if (id[i] < '!' || id[i] > '~')
            return bad_field("request_id",
                             "request_id: character %zu is not visible ASCII",
                             i + 1);
    memcpy(out, id, n + 1);
    return STATUS_OK;
}

enum status take_policy(const char *text, const char *field, bool *out_is_set,
                        struct policy *out)
{
    *out_is_set = text[0];
    if (!*out_is_set || !policy_parse(text, out))
        return STATUS_OK;
    return status_field(field);
}

enum status take_durability(Godwit__V1__Durability value, const char *field,
                            bool *out_is_set, enum durability *out)
{
    switch (value) {
    case GODWIT__V1__DURABILITY__DURABILITY_UNSPECIFIED:
        *out_is_set = false;
        return STATUS_OK;
    case GODWIT__V1__DURABILITY__DURABILITY_NONE:
        *out = DURABILITY_NONE;
        break;
    case GODWIT__V1__DURABILITY__DURABILITY_LOCAL:
        *out = DURABILITY_LOCAL;
        break;
    case GODWIT__V1__DURABILITY__DURABILITY_REPLICATED:
    case GODWIT__V1__DURABILITY__DURABILITY_REPLICATED_SYNC:
        status_fail(STATUS_UNIMPLEMENTED, "replicated durability comes with "
                                          "replicas; not in this build");
        return status_field(field);
    default:
        return bad_field(field, "%s is %d, no durability has that number",
                         field, (int)value);
    }
    *out_is_set = true;
    return STATUS_OK;
}

enum status take_duration(const Google__Protobuf__Duration *duration,
                          const char *field, uint64_t *out_us)
{
    if (duration->seconds < 0 || duration->nanos < 0 ||
        duration->nanos > 999999999 || duration->seconds > DURATION_SECONDS_MAX)
        return bad_field(field,
                         "%s is %ld s and %d ns, expected a duration of 0 or "
                         "more",
                         field, (long)duration->seconds, duration->nanos);
    *out_us = (uint64_t)duration->seconds * 1000000 +
              (uint64_t)duration->nanos / 1000;
    return STATUS_OK;
}

enum status check_model(const struct convert_node *node, const char *model)
{
    if (model[0] == '\0' || strcmp(model, node->model_name) == 0)
        return STATUS_OK;
    status_fail(STATUS_NOT_FOUND, "model is \"%.64s\", this node serves \"%s\"",
                model, node->model_name);
    status_because("MODEL_NOT_FOUND");
    return status_field("model");
}

static enum status too_long(uint64_t n, const char *at_least, uint64_t limit,
                            const char *field)
{
    status_fail(STATUS_INVALID_ARGUMENT,
                "the input has %s%lu tokens, the model's context has %lu",
                at_least, (unsigned long)n, (unsigned long)limit);
    status_because("CONTEXT_LENGTH_EXCEEDED");
    return status_field(field);
}

static enum status bad_token(const char *field, size_t i, uint32_t id,
                             uint32_t n_vocab)
{
    (void)bad_field(field, "token %zu is %u, the vocabulary has %u ids", i, id,
                    n_vocab);
    return status_because("TOKEN_OUT_OF_RANGE");
}

static enum status take_tokenized(const struct convert_node *node,
                                  const Godwit__V1__TokenizedInput *input,
                                  struct ids *out)
{
    static const char field[] = "tokenized.input_ids";

    if (input->n_input_ids > node->n_context)
        return too_long(input->n_input_ids, "", node->n_context, field);
    for (size_t i = 0; i < input->n_input_ids; i++)
        if (input->input_ids[i] >= node->n_vocab)
            return bad_token(field, i, input->input_ids[i], node->n_vocab);
    out->id = malloc((input->n_input_ids ? input->n_input_ids : 1) *
                     sizeof(*out->id));
    if (!out->id)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu tokens", input->n_input_ids);
    if (input->n_input_ids)
        memcpy(out->id, input->input_ids,
               input->n_input_ids * sizeof(*out->id));
    out->n = out->capacity = input->n_input_ids;
    return STATUS_OK;
}

static enum status check_utf8(const ProtobufCBinaryData *text,
                              const char *field)
{
    size_t good = utf8_prefix((const char *)text->data, text->len);

    if (good == text->len)
        return STATUS_OK;
    bad_field(field, "%s is not UTF-8: byte %zu of %zu starts no character",
              field, good, text->len);
    return status_because("INVALID_TEXT");
}

static enum status take_text(const struct convert_node *node,
                             const struct input *input, struct ids *out)
{
    enum status st = check_utf8(input->text, "text");

    if (st)
        return st;
    st = tokenizer_encode(node->tokenizer, (const char *)input->text->data,
                          input->text->len, input->parses_special,
                          node->n_context, out);
    if (st == STATUS_RESOURCE_EXHAUSTED)
        return too_long(node->n_context, "more than ", node->n_context, "text");
    return st;
}

static enum status take_messages(const struct convert_node *node,
                                 const struct input *input, struct ids *out,
                                 size_t *out_n_shared)
{
    static const char field[] = "messages.messages";
    const Godwit__V1__Messages *messages = input->messages;
    const size_t n = messages->n_messages;
    bool opens_reply = messages->has_add_generation_prompt_case
                           ? messages->add_generation_prompt
                           : input->opens_reply;
    struct chat_message *chat;
    size_t n_system = 0;
    enum status st = STATUS_OK;

    if (n == 0 || n > MESSAGE_COUNT_MAX)
        return bad_field(field, "%zu messages, expected 1 to %u", n,
                         MESSAGE_COUNT_MAX);
    chat = calloc(n, sizeof(*chat));
    if (!chat)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu messages", n);
    for (size_t i = 0; i < n && !st; i++) {
        const Godwit__V1__Message *message = messages->messages[i];
        st = check_utf8(&message->content, "messages.messages.content");
        chat[i] = (struct chat_message){.role = message->role,
                                        .content =
                                            (const char *)message->content.data,
                                        .content_bytes = message->content.len};
    }
    /* Where the system's messages end is where conversations part. */
    while (n_system < n && !st && strcmp(chat[n_system].role, "system") == 0)
        n_system++;
    if (!st)
        st = chat_encode(node->tokenizer, chat, n_system, false,
                         node->n_context, out);
    *out_n_shared = out->n;
    if (!st)
        st = chat_encode(node->tokenizer, chat + n_system, n - n_system,
                         opens_reply, node->n_context, out);
    free(chat);
    if (st == STATUS_RESOURCE_EXHAUSTED)
        return too_long(node->n_context, "more than ", node->n_context, field);
    if (st == STATUS_INVALID_ARGUMENT && status_cause()->field[0] == '\0')
        return status_field(field);
    return st;
}

enum status take_input(const struct convert_node *node,
                       const struct input *input, struct ids *out,
                       size_t *out_n_shared)
{
    *out_n_shared = 0;
    if (input->tokenized)
        return take_tokenized(node, input->tokenized, out);
    if (!input->text && !input->messages)
        return STATUS_OK;
    if (!node->tokenizer) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "this node's model has no tokenizer.json: send token ids");
        status_because("NO_TOKENIZER");
        return status_field(input->text ? "text" : "messages");
    }
    return input->text ? take_text(node, input, out)
                       : take_messages(node, input, out, out_n_shared);
}

static const struct {
    const ProtobufCMessageDescriptor *descriptor;
    convert_fn *convert; /* NULL: local */
} REQUESTS[METHOD_KIND_COUNT] = {
    [METHOD_GENERATE] = {&godwit__v1__generate_request__descriptor,
                         convert_generate},
    [METHOD_APPEND_TOKENS] = {&godwit__v1__append_tokens_request__descriptor,
                              convert_append},
    [METHOD_READ_TOKENS] = {&godwit__v1__read_tokens_request__descriptor,
                            convert_read},
    [METHOD_CANCEL_GENERATION] =
        {&godwit__v1__cancel_generation_request__descriptor, convert_cancel},
    [METHOD_CREATE_SESSION] = {&godwit__v1__create_session_request__descriptor,
                               convert_create},
    [METHOD_GET_SESSION] = {&godwit__v1__get_session_request__descriptor,
                            convert_get},
    [METHOD_LIST_SESSIONS] = {&godwit__v1__list_sessions_request__descriptor,
                              convert_list},
    [METHOD_UPDATE_SESSION] = {&godwit__v1__update_session_request__descriptor,
                               convert_update},
    [METHOD_FORK_SESSION] = {&godwit__v1__fork_session_request__descriptor,
                             convert_fork},
    [METHOD_TRUNCATE_SESSION] =
        {&godwit__v1__truncate_session_request__descriptor, convert_truncate},
    [METHOD_DELETE_SESSION] = {&godwit__v1__delete_session_request__descriptor,
                               convert_delete},
    [METHOD_CHECKPOINT_SESSION] =
        {&godwit__v1__checkpoint_session_request__descriptor,
         convert_checkpoint},
    [METHOD_VERIFY_SESSION] = {&godwit__v1__verify_session_request__descriptor,
                               convert_verify},
    [METHOD_PARK_SESSION] = {&godwit__v1__park_session_request__descriptor,
                             convert_park},
    [METHOD_INSPECT_SESSION] =
        {&godwit__v1__inspect_session_request__descriptor, convert_inspect},
    [METHOD_LIST_CHECKPOINTS] =
        {&godwit__v1__list_checkpoints_request__descriptor,
         convert_checkpoints},
    [METHOD_EXPORT_SESSION] = {&godwit__v1__export_session_request__descriptor,
                               convert_export},
    [METHOD_IMPORT_SESSION] = {&godwit__v1__session_chunk__descriptor,
                               convert_import},
    [METHOD_GET_NODE] = {&godwit__v1__get_node_request__descriptor,
                         convert_get_node},
    [METHOD_COUNT_TOKENS] = {&godwit__v1__count_tokens_request__descriptor,
                             NULL},
    [METHOD_TOKENIZE] = {&godwit__v1__tokenize_request__descriptor, NULL},
    [METHOD_DETOKENIZE] = {&godwit__v1__detokenize_request__descriptor, NULL},
};

static enum status unpack(enum method_kind kind, const void *bytes,
                          size_t n_bytes, ProtobufCMessage **out)
{
    assert(REQUESTS[kind].descriptor);
    return wire_unpack(REQUESTS[kind].descriptor, bytes, n_bytes,
                       UNPACK_FACTOR * n_bytes + UNPACK_BYTES, out);
}

enum status convert_command(const struct convert_node *node,
                            enum method_kind kind, const void *bytes,
                            size_t n_bytes, struct command **out,
                            struct note *out_note)
{
    struct job job = {.node = node};
    struct note note = {0};
    ProtobufCMessage *message = NULL;
    enum status st = unpack(kind, bytes, n_bytes, &message);

    if (st)
        return st;
    job.note = &note;
    /* A piece of a bundle is kept as it is. */
    st = arena_create(COMMAND_BYTES + node->n_context * sizeof(uint32_t) +
                          n_bytes,
                      &job.arena);
    if (st)
        goto out;
    job.command = arena_take(job.arena, sizeof(*job.command));
    if (!job.command) {
        st = status_cause()->code;
        goto out;
    }
    job.command->arena = job.arena;
    st = REQUESTS[kind].convert(&job, message);
out:
    wire_free(message);
    if (st) {
        arena_destroy(job.arena);
        return st;
    }
    *out = job.command;
    *out_note = note;
    return STATUS_OK;
}

static enum status count_tokens(const struct convert_node *node,
                                const Godwit__V1__CountTokensRequest *request,
                                struct packed *out)
{
    Godwit__V1__CountTokensResponse response =
        GODWIT__V1__COUNT_TOKENS_RESPONSE__INIT;
    struct input input = {.parses_special = request->parse_special_tokens,
                          .opens_reply = true};
    struct ids ids = {0};
    size_t n_shared;
    enum status st = check_model(node, request->model);

    if (st)
        return st;
    if (request->input_case ==
        GODWIT__V1__COUNT_TOKENS_REQUEST__INPUT_TOKENIZED)
        input.tokenized = request->tokenized;
    else if (request->input_case ==
             GODWIT__V1__COUNT_TOKENS_REQUEST__INPUT_TEXT)
        input.text = &request->text;
    else if (request->input_case ==
             GODWIT__V1__COUNT_TOKENS_REQUEST__INPUT_MESSAGES)
        input.messages = request->messages;
    else
        return bad_field("input", "no input: give tokenized, text or messages");
    st = take_input(node, &input, &ids, &n_shared);
    response.token_count = ids.n;
    response.context_length = node->n_context;
    ids_release(&ids);
    return st ? st : wire_pack(&response.base, out);
}

static enum status tokenize(const struct convert_node *node,
                            const Godwit__V1__TokenizeRequest *request,
                            struct packed *out)
{
    Godwit__V1__TokenizeResponse response = GODWIT__V1__TOKENIZE_RESPONSE__INIT;
    struct input input = {.parses_special = request->parse_special_tokens,
                          .opens_reply = true};
    struct ids ids = {0};
    size_t n_shared;
    enum status st = check_model(node, request->model);

    if (st)
        return st;
    if (request->input_case == GODWIT__V1__TOKENIZE_REQUEST__INPUT_TEXT)
        input.text = &request->text;
    else if (request->input_case ==
             GODWIT__V1__TOKENIZE_REQUEST__INPUT_MESSAGES)
        input.messages = request->messages;
    else
        return bad_field("input", "no input: give text or messages");
    st = take_input(node, &input, &ids, &n_shared);
    response.token_ids = ids.id;
    response.n_token_ids = ids.n;
    if (!st)
        st = wire_pack(&response.base, out);
    ids_release(&ids);
    return st;
}

/* Text of ids, grown as needed; *out is free()'d also after a failure. */
static enum status text_of(const struct convert_node *node,
                           const Godwit__V1__DetokenizeRequest *request,
                           struct packed *out)
{
    struct detokenizer detokenizer = {0};
    size_t capacity = 0;

    for (size_t i = 0; i <= request->n_token_ids; i++) {
        if (capacity - out->n_bytes < DETOKENIZER_OUT_MAX) {
            size_t wider = 2 * capacity + 2 * (size_t)DETOKENIZER_OUT_MAX;
            uint8_t *bytes = realloc(out->bytes, wider);
            if (!bytes)
                return status_fail(STATUS_RESOURCE_EXHAUSTED,
                                   "no memory for a text of %zu bytes", wider);
            out->bytes = bytes;
            capacity = wider;
        }
        char *at = (char *)out->bytes + out->n_bytes;
        out->n_bytes += i < request->n_token_ids
                            ? detokenizer_push(&detokenizer, node->tokenizer,
                                               request->token_ids[i],
                                               request->skip_special_tokens, at)
                            : detokenizer_finish(&detokenizer, at);
    }
    return STATUS_OK;
}

static enum status detokenize(const struct convert_node *node,
                              const Godwit__V1__DetokenizeRequest *request,
                              struct packed *out)
{
    Godwit__V1__DetokenizeResponse response =
        GODWIT__V1__DETOKENIZE_RESPONSE__INIT;
    struct packed text = {0};
    enum status st = check_model(node, request->model);

    if (st)
        return st;
    if (!node->tokenizer) {
        status_fail(STATUS_FAILED_PRECONDITION,
                    "this node's model has no tokenizer.json");
        return status_because("NO_TOKENIZER");
    }
    if (request->n_token_ids > node->n_context)
        return too_long(request->n_token_ids, "", node->n_context, "token_ids");
    for (size_t i = 0; i < request->n_token_ids; i++)
        if (request->token_ids[i] >= node->n_vocab)
            return bad_token("token_ids", i, request->token_ids[i],
                             node->n_vocab);
    st = text_of(node, request, &text);
    response.text = (ProtobufCBinaryData){text.n_bytes, text.bytes};
    if (!st)
        st = wire_pack(&response.base, out);
    free(text.bytes);
    return st;
}

enum status convert_local(const struct convert_node *node,
                          enum method_kind kind, const void *bytes,
                          size_t n_bytes, struct packed *out)
{
    ProtobufCMessage *message = NULL;
    enum status st = unpack(kind, bytes, n_bytes, &message);

    if (st)
        return st;
    if (kind == METHOD_COUNT_TOKENS)
        st = count_tokens(node, (Godwit__V1__CountTokensRequest *)message, out);
    else if (kind == METHOD_TOKENIZE)
        st = tokenize(node, (Godwit__V1__TokenizeRequest *)message, out);
    else
        st = detokenize(node, (Godwit__V1__DetokenizeRequest *)message, out);
    wire_free(message);
    return st;
}
