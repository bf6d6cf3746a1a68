#ifndef RPC_CONVERT_H
#define RPC_CONVERT_H
/*
 * The one place where a client's input is checked: bytes of a request in, a
 * command for the engine out (or, for methods that need no session, the reply).
 * What is left to the engine is only what depends on sessions. Nothing a client
 * sends takes more memory than a fixed multiple of the message's size and of
 * the model's context.
 *
 * Session names are "sessions/{id}" in full; the id is 1 to 127 characters of
 * [a-zA-Z0-9._-]. Every error has the code INVALID_ARGUMENT and the request's
 * field in its cause, unless a function says otherwise. Any thread.
 */
#include "base/clock.h"
#include "model/tokenizer.h"
#include "rpc/method.h"
#include "rpc/wire.h"
#include "scheduler/command.h"

#include <stdbool.h>

#define MESSAGE_COUNT_MAX 4096u /* messages of one request */
#define LIST_PAGE_DEFAULT 50u

/* What checking needs to know of the node; all borrowed. */
struct convert_node {
    const struct tokenizer *tokenizer; /* NULL: token input only */
    const char *model_name;
    uint32_t n_vocab;
    uint64_t n_context; /* tokens */
    bool has_sampling;  /* the checkpoint's own defaults follow */
    float temperature, top_p;
    int32_t top_k;
    enum durability durability; /* of sessions whose request names none */
    const struct clock *clock;
};

/* What the reply needs to know of its request. */
struct note {
    char session[SESSION_NAME_SIZE]; /* without "sessions/"; "" ephemeral */
    char request_id[REQUEST_ID_SIZE];
    char tenant[TENANT_SIZE];       /* whose call it is */
    char node[64];                  /* GetNode: the name asked for; "" any */
    char prefix[SESSION_NAME_SIZE]; /* ListSessions: of its filter */
    uint64_t progress_us; /* least time between two progress messages */
};

/*
 * For methods that the engine answers. *out is destroyed with its arena by the
 * engine; reply and deadline are the caller's to fill.
 *   INVALID_ARGUMENT    see above; CONTEXT_LENGTH_EXCEEDED for a long prompt
 *   NOT_FOUND           MODEL_NOT_FOUND: another model than this node's
 *   UNIMPLEMENTED       a replicated durability
 *   FAILED_PRECONDITION text or messages without a tokenizer
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status convert_command(const struct convert_node *node,
                                       enum method_kind kind, const void *bytes,
                                       size_t n_bytes, struct command **out,
                                       struct note *out_note);

/* For CountTokens, Tokenize and Detokenize: the response. Errors as above. */
MUST_CHECK enum status convert_local(const struct convert_node *node,
                                     enum method_kind kind, const void *bytes,
                                     size_t n_bytes, struct packed *out);

/*
 * The token of the page after `name`, of a list with this prefix: opaque to
 * clients, refused with another prefix or when changed. out: PAGE_TOKEN_SIZE.
 */
#define PAGE_TOKEN_SIZE (16u + 2u * SESSION_NAME_SIZE)
void page_token_make(const char *prefix, const char *name, char *out);
#endif
