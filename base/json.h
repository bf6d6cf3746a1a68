#ifndef BASE_JSON_H
#define BASE_JSON_H
/*
 * Strict JSON (jansson): duplicate keys, bad UTF-8, trailing bytes and numbers
 * out of range are errors that name the file and the line. jansson is known
 * only here and in files that say `json_t`; the readers below are what model
 * files, settings and ctl need.
 */
#include "base/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_FILE_MAX (256u << 20) /* bytes; a tokenizer.json has 10 MB */

/*
 * `name` stands for the source in messages. Free with json_decref().
 *   INVALID_ARGUMENT    not JSON: "config.json line 3: ..."
 *   RESOURCE_EXHAUSTED  no memory; jansson takes some such cases for bad text
 */
MUST_CHECK enum status json_parse(const char *name, const void *bytes,
                                  size_t n_bytes, json_t **out);

/*
 *   NOT_FOUND           no such file
 *   INVALID_ARGUMENT    not JSON, not a file, or above JSON_FILE_MAX
 *   PERMISSION_DENIED   the operating system says no
 *   ABORTED             someone cut the file while it was read
 *   RESOURCE_EXHAUSTED  no memory
 *   INTERNAL            the disk failed
 */
MUST_CHECK enum status json_load(const char *path, json_t **out);

/*
 * Members of an object by type. *out is untouched when the key is absent or
 * null; a present value of another type is INVALID_ARGUMENT and names the key:
 * "config.json: hidden_size is a string, expected an integer 1 to 65536".
 */
MUST_CHECK enum status json_get_u64(const char *name, const json_t *object,
                                    const char *key, uint64_t min, uint64_t max,
                                    uint64_t *out);
MUST_CHECK enum status json_get_double(const char *name, const json_t *object,
                                       const char *key, double *out);
MUST_CHECK enum status json_get_bool(const char *name, const json_t *object,
                                     const char *key, bool *out);
/* The text is borrowed from the object. */
MUST_CHECK enum status json_get_string(const char *name, const json_t *object,
                                       const char *key, const char **out);
#endif
