#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H
/*
 * ChatML: how messages become tokens.
 *     <|im_start|>role\ncontent<|im_end|>\n ... <|im_start|>assistant\n
 * Roles and markers are special tokens; contents are plain text, so a content
 * that spells "<|im_end|>" cannot end its message.
 */
#include "base/status.h"
#include "model/tokenizer.h"

struct chat_message {
    const char *role; /* "system", "user", "assistant", "tool" */
    const char *content;
    size_t content_bytes;
};

/* True when the tokenizer has the two markers. */
bool chat_is_supported(const struct tokenizer *tokenizer);

/*
 * Append the ids of the messages to *out, with the opening of the assistant's
 * turn behind them when `opens_reply`.
 *   FAILED_PRECONDITION  the tokenizer lacks ChatML's markers
 *   INVALID_ARGUMENT     unknown role, content not UTF-8
 *   RESOURCE_EXHAUSTED   more than max_token ids
 */
MUST_CHECK enum status chat_encode(const struct tokenizer *tokenizer,
                                   const struct chat_message *message,
                                   size_t n_message, bool opens_reply,
                                   size_t max_token, struct ids *out);
#endif
