#ifndef RPC_WIRE_H
#define RPC_WIRE_H
/*
 * What protobuf-c does not check about a message from outside: that strings are
 * UTF-8 and hold no NUL (its C strings would end there), that nesting is
 * bounded, and that unpacking takes no more memory than was allowed (2 MB of
 * empty sub-messages become 82 MB of structs). Any thread.
 */
#include "base/status.h"
#include "base/utf8.h"
#include "godwit/v1/common.pb-c.h"

#include <stdbool.h>
#include <stddef.h>

#define WIRE_DEPTH_MAX 16u /* nested messages; our schema needs 5 */

/* One field after the other of a serialised message. */
struct wire_cursor {
    const uint8_t *at, *end;
};
struct wire_field {
    uint32_t number;
    bool is_bytes;        /* length-delimited: the next two are set */
    const uint8_t *bytes; /* [n_bytes], within the message */
    size_t n_bytes;
};
enum wire_step { WIRE_FIELD, WIRE_END, WIRE_MALFORMED };
enum wire_step wire_next(struct wire_cursor *cursor, struct wire_field *out);

/*
 * Unpack a message after checking it on the wire, in at most max_bytes of
 * memory. *out is freed with wire_free().
 *   INVALID_ARGUMENT    not such a message, nested too deep, or a string that
 *                       is not UTF-8 or holds NUL (the cause's field names it)
 *   RESOURCE_EXHAUSTED  unpacks to more than max_bytes, or no memory
 */
MUST_CHECK enum status wire_unpack(const ProtobufCMessageDescriptor *descriptor,
                                   const void *bytes, size_t n_bytes,
                                   size_t max_bytes, ProtobufCMessage **out);
/* Accepts NULL. */
void wire_free(ProtobufCMessage *message);

/* A message as malloc'd bytes. */
struct packed {
    uint8_t *bytes; /* owned; free() */
    size_t n_bytes;
};
/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status wire_pack(const ProtobufCMessage *message,
                                 struct packed *out);
#endif
