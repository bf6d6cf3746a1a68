#ifndef RPC_CONVERT_PARTS_H
#define RPC_CONVERT_PARTS_H
/*
 * What the files of convert share: a job is one request on its way to a
 * command. Nobody else includes this.
 */
#include "godwit/v1/admin.pb-c.h"
#include "godwit/v1/generation.pb-c.h"
#include "godwit/v1/session.pb-c.h"
#include "rpc/convert.h"

struct job {
    const struct convert_node *node;
    struct arena *arena;     /* the command's */
    struct command *command; /* in the arena */
    struct note *note;
};

/* INVALID_ARGUMENT with a field; the text is a printf format. */
enum status bad_field(const char *field, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

bool is_id_character(char c);
/* "sessions/x" -> "x". */
MUST_CHECK enum status take_session(const char *name, const char *field,
                                    char out[SESSION_NAME_SIZE]);
MUST_CHECK enum status take_id(const char *id, const char *field,
                               char out[SESSION_NAME_SIZE]);
MUST_CHECK enum status take_request_id(const char *id,
                                       char out[REQUEST_ID_SIZE]);
/* "": not set. */
MUST_CHECK enum status take_policy(const char *text, const char *field,
                                   bool *out_is_set, struct policy *out);
MUST_CHECK enum status take_durability(Godwit__V1__Durability value,
                                       const char *field, bool *out_is_set,
                                       enum durability *out);
MUST_CHECK enum status take_tenant(const char *tenant, const char *field,
                                   char out[TENANT_SIZE]);
/* Microseconds of a duration that is 0 or more. */
MUST_CHECK enum status take_duration(const Google__Protobuf__Duration *duration,
                                     const char *field, uint64_t *out_us);
MUST_CHECK enum status check_model(const struct convert_node *node,
                                   const char *model);

/* Any of the forms in which tokens arrive; unset members are NULL. */
struct input {
    const Godwit__V1__TokenizedInput *tokenized;
    const ProtobufCBinaryData *text;
    const Godwit__V1__Messages *messages;
    bool parses_special; /* of text */
    bool opens_reply;    /* of messages, unless they say */
};
/* At most n_context ids, each below n_vocab; ids_release() them. The first
 * n_shared are those of leading system messages. */
MUST_CHECK enum status take_input(const struct convert_node *node,
                                  const struct input *input, struct ids *out,
                                  size_t *out_n_shared);

typedef enum status convert_fn(struct job *job,
                               const ProtobufCMessage *message);
convert_fn convert_generate, convert_append; /* convert_generate.c */
convert_fn convert_cancel, convert_create, convert_fork, convert_truncate,
    convert_get, convert_list, convert_update, convert_delete, convert_read,
    convert_checkpoint, convert_verify, convert_park, convert_inspect,
    convert_checkpoints, convert_export, convert_import,
    convert_get_node; /* convert_session.c */
#endif
