#include "rpc/reflection.h"

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "proto/descriptors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX 64u
#define SYMBOL_MAX 2048u
#define SYMBOL_SIZE 192u
#define NESTING_MAX 8u
#define REQUEST_BYTES_MAX (64u << 10)

/* Field numbers of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1, /* of a message, an enum, a service, a method, a field */
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    SERVICE_METHOD = 2,
};

struct file {
    const uint8_t *bytes; /* its FileDescriptorProto, static */
    size_t n_bytes;
    char name[SYMBOL_SIZE];
};

struct symbol {
    char name[SYMBOL_SIZE]; /* "godwit.v1.GenerationService.Generate" */
    uint32_t file;
    bool is_service;
};

struct reflection {
    uint32_t n_file;
    struct file file[FILE_MAX];
    uint32_t n_symbol;
    struct symbol symbol[SYMBOL_MAX];
};

static struct wire_cursor inside(const struct wire_field *field)
{
    return (struct wire_cursor){field->bytes, field->bytes + field->n_bytes};
}

/* The first field of a number, as text. False: there is none, or too long. */
static bool text_of(struct wire_cursor cursor, uint32_t number,
                    char out[SYMBOL_SIZE])
{
    struct wire_field field;

    while (wire_next(&cursor, &field) == WIRE_FIELD)
        if (field.number == number && field.is_bytes &&
            field.n_bytes < SYMBOL_SIZE) {
            memcpy(out, field.bytes, field.n_bytes);
            out[field.n_bytes] = '\0';
            return true;
        }
    return false;
}

/* Add PREFIX.NAME; the new symbol, or NULL when it does not fit. */
static struct symbol *add_symbol(struct reflection *reflection,
                                 const char *prefix, struct wire_cursor from)
{
    struct symbol *symbol = &reflection->symbol[reflection->n_symbol];
    char name[SYMBOL_SIZE];
    int n;

    if (reflection->n_symbol == SYMBOL_MAX || !text_of(from, ANY_NAME, name))
        return NULL;
    n = snprintf(symbol->name, SYMBOL_SIZE, "%s%s%s", prefix,
                 prefix[0] ? "." : "", name);
    if (n < 0 || (size_t)n >= SYMBOL_SIZE)
        return NULL;
    symbol->file = reflection->n_file;
    reflection->n_symbol++;
    return symbol;
}

/* Recursion is bounded by NESTING_MAX. */
// NOLINTNEXTLINE(misc-no-recursion)
static bool add_message(struct reflection *reflection, const char *prefix,
                        struct wire_cursor cursor, unsigned depth)
{
    const struct symbol *own = add_symbol(reflection, prefix, cursor);
    struct wire_field field;

    if (!own || depth > NESTING_MAX)
        return false;
    while (wire_next(&cursor, &field) == WIRE_FIELD) {
        bool ok = true;
        if (!field.is_bytes)
            continue;
        if (field.number == MESSAGE_NESTED)
            ok = add_message(reflection, own->name, inside(&field), depth + 1);
        else if (field.number == MESSAGE_ENUM || field.number == MESSAGE_FIELD)
            ok = add_symbol(reflection, own->name, inside(&field)) != NULL;
        if (!ok)
            return false;
    }
    return true;
}

static bool add_service(struct reflection *reflection, const char *prefix,
                        struct wire_cursor cursor)
{
    struct symbol *own = add_symbol(reflection, prefix, cursor);
    struct wire_field field;

    if (!own)
        return false;
    own->is_service = true;
    while (wire_next(&cursor, &field) == WIRE_FIELD)
        if (field.number == SERVICE_METHOD && field.is_bytes &&
            !add_symbol(reflection, own->name, inside(&field)))
            return false;
    return true;
}

static bool add_file(struct reflection *reflection, struct wire_cursor cursor)
{
    struct file *file = &reflection->file[reflection->n_file];
    char package[SYMBOL_SIZE] = "";
    struct wire_field field;
    bool ok = true;

    if (reflection->n_file == FILE_MAX ||
        !text_of(cursor, FILE_NAME, file->name))
        return false;
    (void)text_of(cursor, FILE_PACKAGE, package);
    file->bytes = cursor.at;
    file->n_bytes = (size_t)(cursor.end - cursor.at);
    while (ok && wire_next(&cursor, &field) == WIRE_FIELD) {
        if (!field.is_bytes)
            continue;
        if (field.number == FILE_MESSAGE)
            ok = add_message(reflection, package, inside(&field), 0);
        else if (field.number == FILE_ENUM)
            ok = add_symbol(reflection, package, inside(&field)) != NULL;
        else if (field.number == FILE_SERVICE)
            ok = add_service(reflection, package, inside(&field));
    }
    reflection->n_file++;
    return ok;
}

enum status reflection_create(struct reflection **out)
{
    struct reflection *reflection = calloc(1, sizeof(*reflection));
    struct wire_cursor cursor;
    struct wire_field field;
    enum wire_step step;
    size_t n = 0;
    bool ok = true;

    if (!reflection)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for the descriptors of the API");
    cursor.at = descriptors(&n);
    cursor.end = cursor.at + n;
    while (ok && (step = wire_next(&cursor, &field)) != WIRE_END)
        ok = step == WIRE_FIELD && field.number == SET_FILE && field.is_bytes &&
             add_file(reflection, inside(&field));
    if (!ok || reflection->n_file == 0) {
        reflection_destroy(reflection);
        return status_fail(STATUS_INTERNAL,
                           "the embedded descriptors of the API do not parse");
    }
    *out = reflection;
    return STATUS_OK;
}

void reflection_destroy(struct reflection *reflection)
{
    free(reflection);
}

static bool find_file(const struct reflection *reflection, const char *name,
                      uint32_t *out)
{
    for (uint32_t i = 0; i < reflection->n_file; i++)
        if (strcmp(reflection->file[i].name, name) == 0) {
            *out = i;
            return true;
        }
    return false;
}

static bool find_symbol(const struct reflection *reflection, const char *name,
                        uint32_t *out)
{
    for (uint32_t i = 0; i < reflection->n_symbol; i++)
        if (strcmp(reflection->symbol[i].name, name) == 0) {
            *out = reflection->symbol[i].file;
            return true;
        }
    return false;
}

/* A file and, after it, all that it imports, directly or not. */
static size_t with_imports(const struct reflection *reflection, uint32_t first,
                           ProtobufCBinaryData out[FILE_MAX])
{
    bool is_in[FILE_MAX] = {false};
    uint32_t order[FILE_MAX];
    size_t n = 0;

    order[n++] = first;
    is_in[first] = true;
    for (size_t i = 0; i < n; i++) {
        const struct file *file = &reflection->file[order[i]];
        struct wire_cursor cursor = {file->bytes, file->bytes + file->n_bytes};
        struct wire_field field;

        out[i] = (ProtobufCBinaryData){file->n_bytes, (uint8_t *)file->bytes};
        while (wire_next(&cursor, &field) == WIRE_FIELD) {
            char name[SYMBOL_SIZE];
            uint32_t import;

            if (field.number != FILE_DEPENDENCY || !field.is_bytes ||
                field.n_bytes >= sizeof(name))
                continue;
            memcpy(name, field.bytes, field.n_bytes);
            name[field.n_bytes] = '\0';
            if (find_file(reflection, name, &import) && !is_in[import]) {
                is_in[import] = true;
                order[n++] = import;
            }
        }
    }
    return n;
}

static Grpc__Reflection__V1__ServerReflectionResponse
response_to(Grpc__Reflection__V1__ServerReflectionRequest *request)
{
    Grpc__Reflection__V1__ServerReflectionResponse response =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;

    response.valid_host = request->host;
    response.original_request = request;
    return response;
}

static enum status
pack_missing(Grpc__Reflection__V1__ServerReflectionRequest *request,
             const char *what, struct packed *out)
{
    Grpc__Reflection__V1__ServerReflectionResponse response =
        response_to(request);
    Grpc__Reflection__V1__ErrorResponse error =
        GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    char text[2 * SYMBOL_SIZE];

    (void)snprintf(text, sizeof(text), "not found: %.300s", what);
    text[utf8_prefix(text, strlen(text))] = '\0';
    error.error_code = STATUS_NOT_FOUND;
    error.error_message = text;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response.error_response = &error;
    return wire_pack(&response.base, out);
}

static enum status
pack_file(const struct reflection *reflection,
          Grpc__Reflection__V1__ServerReflectionRequest *request, uint32_t file,
          struct packed *out)
{
    Grpc__Reflection__V1__ServerReflectionResponse response =
        response_to(request);
    Grpc__Reflection__V1__FileDescriptorResponse files =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    ProtobufCBinaryData bytes[FILE_MAX];

    files.n_file_descriptor_proto = with_imports(reflection, file, bytes);
    files.file_descriptor_proto = bytes;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response.file_descriptor_response = &files;
    return wire_pack(&response.base, out);
}

static enum status
pack_services(const struct reflection *reflection,
              Grpc__Reflection__V1__ServerReflectionRequest *request,
              struct packed *out)
{
    Grpc__Reflection__V1__ServerReflectionResponse response =
        response_to(request);
    Grpc__Reflection__V1__ListServiceResponse list =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    Grpc__Reflection__V1__ServiceResponse service[FILE_MAX];
    Grpc__Reflection__V1__ServiceResponse *services[FILE_MAX];

    for (uint32_t i = 0; i < reflection->n_symbol; i++) {
        const size_t n = list.n_service;
        if (!reflection->symbol[i].is_service || n == FILE_MAX)
            continue;
        grpc__reflection__v1__service_response__init(&service[n]);
        service[n].name = (char *)reflection->symbol[i].name;
        services[n] = &service[n];
        list.n_service++;
    }
    list.service = services;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response.list_services_response = &list;
    return wire_pack(&response.base, out);
}

/* Our protos have no extensions: the answer is always the empty list. */
static enum status
pack_extensions(const struct reflection *reflection,
                Grpc__Reflection__V1__ServerReflectionRequest *request,
                const char *type, struct packed *out)
{
    Grpc__Reflection__V1__ServerReflectionResponse response =
        response_to(request);
    Grpc__Reflection__V1__ExtensionNumberResponse numbers =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    uint32_t file;

    if (!find_symbol(reflection, type, &file))
        return pack_missing(request, type, out);
    numbers.base_type_name = (char *)type;
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    response.all_extension_numbers_response = &numbers;
    return wire_pack(&response.base, out);
}

enum status reflection_answer(const struct reflection *reflection,
                              const void *bytes, size_t n_bytes,
                              struct packed *out)
{
    ProtobufCMessage *message = NULL;
    Grpc__Reflection__V1__ServerReflectionRequest *request;
    uint32_t file;
    enum status st = wire_unpack(
        &grpc__reflection__v1__server_reflection_request__descriptor, bytes,
        n_bytes, REQUEST_BYTES_MAX, &message);

    if (st)
        return st;
    request = (Grpc__Reflection__V1__ServerReflectionRequest *)message;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        st = find_file(reflection, request->file_by_filename, &file)
                 ? pack_file(reflection, request, file, out)
                 : pack_missing(request, request->file_by_filename, out);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        st = find_symbol(reflection, request->file_containing_symbol, &file)
                 ? pack_file(reflection, request, file, out)
                 : pack_missing(request, request->file_containing_symbol, out);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        st = pack_services(reflection, request, out);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        st = pack_extensions(reflection, request,
                             request->all_extension_numbers_of_type, out);
        break;
    default:
        st = pack_missing(request, "an extension, or an empty question", out);
    }
    wire_free(message);
    return st;
}
