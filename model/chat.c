#include "model/chat.h"

#include <stdlib.h>
#include <string.h>

#define MARK_START "<|im_start|>"
#define MARK_END "<|im_end|>"

static const char *const ROLE[] = {"system", "user", "assistant", "tool"};

struct marks {
    uint32_t start, end;
};

static bool find_marks(const struct tokenizer *tokenizer, struct marks *out)
{
    return tokenizer_special(tokenizer, MARK_START, &out->start) &&
           tokenizer_special(tokenizer, MARK_END, &out->end);
}

bool chat_is_supported(const struct tokenizer *tokenizer)
{
    struct marks marks;

    return find_marks(tokenizer, &marks);
}

static bool role_is_known(const char *role)
{
    for (size_t i = 0; i < sizeof(ROLE) / sizeof(*ROLE); i++)
        if (strcmp(role, ROLE[i]) == 0)
            return true;
    return false;
}

/*
 * Role, new line and content are one text, as a rendered template is: a
 * content that begins with new lines shares a token with the one before it.
 */
static enum status append_text(const struct tokenizer *tokenizer,
                               const struct chat_message *message,
                               size_t max_token, struct ids *out)
{
    const size_t n_role = strlen(message->role);
    const size_t n = n_role + 1 + message->content_bytes;
    enum status st;
    char *text;

    if (message->content_bytes > TOKENIZER_TEXT_MAX)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "message has %zu bytes, limit %u",
                           message->content_bytes, TOKENIZER_TEXT_MAX);
    text = malloc(n);
    if (!text)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a message of %zu bytes", n);
    memcpy(text, message->role, n_role);
    text[n_role] = '\n';
    if (message->content_bytes)
        memcpy(text + n_role + 1, message->content, message->content_bytes);
    st = tokenizer_encode(tokenizer, text, n, false, max_token, out);
    free(text);
    return st;
}

static enum status append_message(const struct tokenizer *tokenizer,
                                  struct marks marks,
                                  const struct chat_message *message,
                                  size_t max_token, struct ids *out)
{
    enum status st;

    if (!role_is_known(message->role))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "role is '%.40s', expected system, user, assistant "
                           "or tool",
                           message->role);
    st = ids_append(out, &marks.start, 1, max_token);
    if (!st)
        st = append_text(tokenizer, message, max_token, out);
    if (!st)
        st = ids_append(out, &marks.end, 1, max_token);
    if (!st)
        st = tokenizer_encode(tokenizer, "\n", 1, false, max_token, out);
    return st;
}

enum status chat_encode(const struct tokenizer *tokenizer,
                        const struct chat_message *message, size_t n_message,
                        bool opens_reply, size_t max_token, struct ids *out)
{
    const struct chat_message reply = {.role = "assistant", .content = ""};
    const size_t n_before = out->n;
    enum status st = STATUS_OK;
    struct marks marks;

    if (!find_marks(tokenizer, &marks))
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "the model's tokenizer lacks %s or %s, which "
                           "messages need; send text or tokens",
                           MARK_START, MARK_END);
    for (size_t i = 0; i < n_message && !st; i++)
        st = append_message(tokenizer, marks, &message[i], max_token, out);
    if (!st && opens_reply)
        st = ids_append(out, &marks.start, 1, max_token);
    if (!st && opens_reply)
        st = append_text(tokenizer, &reply, max_token, out);
    if (st)
        out->n = n_before;
    return st;
}
