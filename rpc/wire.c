#include "rpc/wire.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIRE_VARINT 0u
#define WIRE_64 1u
#define WIRE_BYTES 2u
#define WIRE_32 5u

/* Where a field lies, for the error: the chain of names down to it. */
struct link {
    const struct link *up;
    const char *name;
    uint32_t depth;
};

static enum status malformed(void)
{
    status_fail(STATUS_INVALID_ARGUMENT,
                "the request's bytes are no message of this method");
    return status_because("MALFORMED_MESSAGE");
}

static bool read_varint(struct wire_cursor *cursor, uint64_t *out)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && cursor->at < cursor->end;
         shift += 7) {
        uint8_t byte = *cursor->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool skip(struct wire_cursor *cursor, size_t n)
{
    if ((size_t)(cursor->end - cursor->at) < n)
        return false;
    cursor->at += n;
    return true;
}

/* "session.labels.key" of a chain, cut to a cause's field. */
static void name_field(const struct link *link, char out[STATUS_WORD_SIZE])
{
    char below[STATUS_WORD_SIZE] = "", whole[2 * STATUS_WORD_SIZE];

    for (; link && link->name; link = link->up) {
        (void)snprintf(whole, sizeof(whole), "%s%s%s", link->name,
                       below[0] ? "." : "", below);
        memcpy(below, whole, sizeof(below) - 1);
    }
    memcpy(out, below, sizeof(below));
}

static enum status check_string(const struct link *link, const char *text,
                                size_t n)
{
    const char *nul = memchr(text, 0, n);
    size_t good = utf8_prefix(text, n);
    char field[STATUS_WORD_SIZE];

    if (good == n && !nul)
        return STATUS_OK;
    name_field(link, field);
    if (good < n)
        status_fail(STATUS_INVALID_ARGUMENT,
                    "%s is not UTF-8: byte %zu of %zu starts no character",
                    field, good, n);
    else
        status_fail(STATUS_INVALID_ARGUMENT, "%s holds a NUL at byte %zu",
                    field, (size_t)(nul - text));
    status_because("INVALID_TEXT");
    return status_field(field);
}

enum wire_step wire_next(struct wire_cursor *cursor, struct wire_field *out)
{
    uint64_t tag, value = 0;
    bool ok;

    if (cursor->at == cursor->end)
        return WIRE_END;
    if (!read_varint(cursor, &tag) || tag >> 3 == 0 || tag >> 32)
        return WIRE_MALFORMED;
    *out = (struct wire_field){.number = (uint32_t)(tag >> 3),
                               .is_bytes = (tag & 7) == WIRE_BYTES};
    switch (tag & 7) {
    case WIRE_VARINT:
        ok = read_varint(cursor, &value);
        break;
    case WIRE_64:
        ok = skip(cursor, 8);
        break;
    case WIRE_BYTES:
        ok = read_varint(cursor, &value);
        out->bytes = cursor->at;
        out->n_bytes = value;
        ok = ok && skip(cursor, value);
        break;
    case WIRE_32:
        ok = skip(cursor, 4);
        break;
    default: /* groups are of no proto3 message */
        ok = false;
    }
    return ok ? WIRE_FIELD : WIRE_MALFORMED;
}

/* Recursion is bounded by WIRE_DEPTH_MAX. */
// NOLINTNEXTLINE(misc-no-recursion)
static enum status check_message(const ProtobufCMessageDescriptor *descriptor,
                                 struct wire_cursor cursor,
                                 const struct link *up)
{
    struct link here = {.up = up, .depth = up->depth + 1};
    struct wire_field wire;
    enum wire_step step;
    enum status st = STATUS_OK;

    if (up->depth > WIRE_DEPTH_MAX)
        return malformed();
    while (!st && (step = wire_next(&cursor, &wire)) != WIRE_END) {
        const ProtobufCFieldDescriptor *field;

        if (step == WIRE_MALFORMED)
            return malformed();
        field =
            protobuf_c_message_descriptor_get_field(descriptor, wire.number);
        if (!field || !wire.is_bytes)
            continue;
        here.name = field->name;
        if (field->type == PROTOBUF_C_TYPE_STRING)
            st = check_string(&here, (const char *)wire.bytes, wire.n_bytes);
        else if (field->type == PROTOBUF_C_TYPE_MESSAGE)
            st = check_message(
                field->descriptor,
                (struct wire_cursor){wire.bytes, wire.bytes + wire.n_bytes},
                &here);
    }
    return st;
}

struct budget {
    ProtobufCAllocator base;
    size_t left;
    bool is_over, is_out; /* of the budget; of memory */
};

static void *budget_alloc(void *data, size_t n_bytes)
{
    struct budget *budget = data;
    size_t cost = n_bytes + 16; /* malloc's own */
    void *bytes;

    if (cost < n_bytes || cost > budget->left) {
        budget->is_over = true;
        return NULL;
    }
    budget->left -= cost;
    bytes = malloc(n_bytes);
    if (!bytes)
        budget->is_out = true;
    return bytes;
}

static void budget_free(void *data, void *pointer)
{
    (void)data;
    free(pointer);
}

enum status wire_unpack(const ProtobufCMessageDescriptor *descriptor,
                        const void *bytes, size_t n_bytes, size_t max_bytes,
                        ProtobufCMessage **out)
{
    static const uint8_t nothing[1];
    const uint8_t *start = n_bytes ? bytes : nothing;
    struct budget budget = {.left = max_bytes};
    struct link root = {0};
    ProtobufCMessage *message;
    enum status st = check_message(
        descriptor, (struct wire_cursor){start, start + n_bytes}, &root);

    if (st)
        return st;
    budget.base = (ProtobufCAllocator){
        .alloc = budget_alloc, .free = budget_free, .allocator_data = &budget};
    message =
        protobuf_c_message_unpack(descriptor, &budget.base, n_bytes, start);
    if (message) {
        *out = message;
        return STATUS_OK;
    }
    if (budget.is_out)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to unpack a request of %zu bytes",
                           n_bytes);
    if (!budget.is_over)
        return malformed();
    status_fail(STATUS_RESOURCE_EXHAUSTED,
                "a request of %zu bytes unpacks to more than %zu bytes",
                n_bytes, max_bytes);
    return status_because("MESSAGE_TOO_LARGE");
}

void wire_free(ProtobufCMessage *message)
{
    struct budget budget = {
        .base = {.alloc = budget_alloc, .free = budget_free}};

    protobuf_c_message_free_unpacked(message, &budget.base);
}

enum status wire_pack(const ProtobufCMessage *message, struct packed *out)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(n ? n : 1);

    if (!bytes)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a reply of %zu bytes", n);
    protobuf_c_message_pack(message, bytes);
    *out = (struct packed){bytes, n};
    return STATUS_OK;
}
