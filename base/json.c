#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum status json_parse(const char *name, const void *bytes, size_t n_bytes,
                       json_t **out)
{
    json_error_t error;
    json_t *root;

    root = json_loadb(bytes, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root && !error.text[0]) /* jansson is silent when memory is out */
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "%s: no memory for %zu bytes of JSON", name,
                           n_bytes);
    if (!root)
        return status_fail(STATUS_INVALID_ARGUMENT, "%s line %d: %s", name,
                           error.line > 0 ? error.line : 1, error.text);
    *out = root;
    return STATUS_OK;
}

static enum status open_failed(const char *path, int error)
{
    if (error == ENOENT || error == ENOTDIR)
        return status_fail(STATUS_NOT_FOUND, "no file %s", path);
    if (error == EACCES)
        return status_fail(STATUS_PERMISSION_DENIED, "may not read %s", path);
    return status_fail(STATUS_INTERNAL, "cannot read %s: %s", path,
                       strerror(error));
}

/* Read n_bytes that the file had when it was opened. */
static enum status read_all(int fd, const char *path, char *bytes,
                            size_t n_bytes)
{
    size_t n_read = 0;

    while (n_read < n_bytes) {
        ssize_t n = read(fd, bytes + n_read, n_bytes - n_read);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return open_failed(path, errno);
        if (n == 0)
            return status_fail(STATUS_ABORTED,
                               "%s was cut from %zu to %zu bytes while read",
                               path, n_bytes, n_read);
        n_read += (size_t)n;
    }
    return STATUS_OK;
}

enum status json_load(const char *path, json_t **out)
{
    enum status st = STATUS_OK;
    char *bytes = NULL;
    struct stat info;
    int fd;

    /* Without O_NONBLOCK a pipe in place of a file would hang the start. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return open_failed(path, errno);
    if (fstat(fd, &info) != 0) {
        st = open_failed(path, errno);
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        st = status_fail(STATUS_INVALID_ARGUMENT, "%s is not a file", path);
        goto out;
    }
    if (info.st_size > (off_t)JSON_FILE_MAX) {
        st = status_fail(STATUS_INVALID_ARGUMENT, "%s has %ld bytes, limit %u",
                         path, (long)info.st_size, JSON_FILE_MAX);
        goto out;
    }
    bytes = malloc((size_t)info.st_size + 1);
    if (!bytes) {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                         "no memory for %ld bytes of %s", (long)info.st_size,
                         path);
        goto out;
    }
    st = read_all(fd, path, bytes, (size_t)info.st_size);
    if (!st)
        st = json_parse(path, bytes, (size_t)info.st_size, out);
out:
    free(bytes);
    (void)close(fd);
    return st;
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

/* The member, or NULL when it is absent or null. */
static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

enum status json_get_u64(const char *name, const json_t *object,
                         const char *key, uint64_t min, uint64_t max,
                         uint64_t *out)
{
    const json_t *value = member(object, key);
    json_int_t n;

    if (!value)
        return STATUS_OK;
    if (!json_is_integer(value))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %s, expected an integer %lu to %lu", name,
                           key, type_name(value), min, max);
    n = json_integer_value(value);
    if (n < 0 || (uint64_t)n < min || (uint64_t)n > max)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %lld, expected an integer %lu to %lu",
                           name, key, n, min, max);
    *out = (uint64_t)n;
    return STATUS_OK;
}

enum status json_get_double(const char *name, const json_t *object,
                            const char *key, double *out)
{
    const json_t *value = member(object, key);

    if (!value)
        return STATUS_OK;
    if (!json_is_number(value))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %s, expected a number", name, key,
                           type_name(value));
    *out = json_number_value(value);
    return STATUS_OK;
}

enum status json_get_bool(const char *name, const json_t *object,
                          const char *key, bool *out)
{
    const json_t *value = member(object, key);

    if (!value)
        return STATUS_OK;
    if (!json_is_boolean(value))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %s, expected true or false", name, key,
                           type_name(value));
    *out = json_is_true(value);
    return STATUS_OK;
}

enum status json_get_string(const char *name, const json_t *object,
                            const char *key, const char **out)
{
    const json_t *value = member(object, key);

    if (!value)
        return STATUS_OK;
    if (!json_is_string(value))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %s, expected a string", name, key,
                           type_name(value));
    *out = json_string_value(value);
    return STATUS_OK;
}
