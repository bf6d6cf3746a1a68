#include "model/safetensors.h"

#include "base/json.h"
#include "model/synthetic.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"
#define LENGTH_BYTES 8u        /* the header's length, little-endian */
#define SHAPE_TEXT 192u        /* [d, ...] of RANK_MAX numbers */
#define NAME_TEXT_MAX 80       /* bytes of a tensor's name shown in messages */
#define SCALE_END "_scale_inv" /* behind the name of what is scaled */

struct shard {
    char *name; /* file name without its folder; owned */
    const uint8_t *map;
    size_t n_bytes;
};

/* `tensor` is first: callers hold pointers to it. */
struct entry {
    struct tensor tensor;
    char *name;        /* owned; tensor.name points here */
    const char *dtype; /* constant */
    uint32_t shard;
};

/* Entries are sorted by name once opened. */
struct safetensors {
    char *name; /* what messages call it; owned */
    struct shard *shard;
    uint32_t n_shard;
    struct entry *entry;
    uint32_t n_entry, capacity;
    struct synthetic *synthetic; /* NULL unless tensors are made; owned */
};

struct dtype {
    const char *name;
    enum tensor_type type;
    uint32_t bits;
};

static const struct dtype DTYPE[] = {
    {"F32", TENSOR_F32, 32},      {"F16", TENSOR_F16, 16},
    {"BF16", TENSOR_BF16, 16},    {"I32", TENSOR_I32, 32},
    {"I64", TENSOR_I64, 64},      {"F64", TENSOR_OTHER, 64},
    {"U64", TENSOR_OTHER, 64},    {"U32", TENSOR_OTHER, 32},
    {"I16", TENSOR_OTHER, 16},    {"U16", TENSOR_OTHER, 16},
    {"I8", TENSOR_OTHER, 8},      {"U8", TENSOR_OTHER, 8},
    {"BOOL", TENSOR_OTHER, 8},    {"F8_E5M2", TENSOR_OTHER, 8},
    {"F8_E4M3", TENSOR_F8, 8},    {"F8_E8M0", TENSOR_OTHER, 8},
    {"F6_E2M3", TENSOR_OTHER, 6}, {"F6_E3M2", TENSOR_OTHER, 6},
    {"F4", TENSOR_OTHER, 4},      {"C64", TENSOR_OTHER, 64},
};

static enum status no_memory(const char *file)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for tensors of %s",
                       file);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static void format_shape(uint32_t n_dim, const uint64_t *dim,
                         char out[SHAPE_TEXT])
{
    size_t at = 1;

    out[0] = '[';
    for (uint32_t i = 0; i < n_dim; i++)
        at += (size_t)snprintf(out + at, SHAPE_TEXT - at, "%s%" PRIu64,
                               i ? ", " : "", dim[i]);
    (void)snprintf(out + at, SHAPE_TEXT - at, "]");
}

/* Map a whole file read-only. The map outlives the descriptor. */
static enum status map_file(const char *path, struct shard *shard)
{
    const char *name = base_name(path);
    enum status st = STATUS_OK;
    struct stat info;
    void *map;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        if (errno == EACCES || errno == EPERM)
            return status_fail(STATUS_PERMISSION_DENIED,
                               "%s may not be read: %s", path, strerror(errno));
        return status_fail(errno == ENOENT || errno == ENOTDIR
                               ? STATUS_NOT_FOUND
                               : STATUS_RESOURCE_EXHAUSTED,
                           "%s: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "%s is no regular file, expected one", path);
        goto out;
    }
    if (info.st_size < (off_t)LENGTH_BYTES) {
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "%s is truncated: %" PRId64
                         " bytes, expected at least %u",
                         name, (int64_t)info.st_size, LENGTH_BYTES);
        goto out;
    }
    map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED,
                         "%s of %" PRId64 " bytes cannot be mapped: %s", name,
                         (int64_t)info.st_size, strerror(errno));
        goto out;
    }
    shard->map = map;
    shard->n_bytes = (size_t)info.st_size;
out:
    (void)close(fd);
    return st;
}

/* Room for one more entry, which is cleared. NULL: no memory. */
static struct entry *add_entry(struct safetensors *file)
{
    struct entry *grown;
    uint32_t capacity;

    if (file->n_entry == file->capacity) {
        capacity = file->capacity ? 2 * file->capacity : 64;
        grown = realloc(file->entry, capacity * sizeof(*grown));
        if (!grown)
            return NULL;
        file->entry = grown;
        file->capacity = capacity;
    }
    file->entry[file->n_entry] = (struct entry){0};
    return &file->entry[file->n_entry++];
}

static enum status read_dtype(const char *where, const json_t *object,
                              struct entry *entry, uint32_t *out_bits)
{
    const char *name = json_string_value(json_object_get(object, "dtype"));

    for (size_t i = 0; name && i < sizeof(DTYPE) / sizeof(*DTYPE); i++)
        if (strcmp(name, DTYPE[i].name) == 0) {
            entry->tensor.type = DTYPE[i].type;
            entry->dtype = DTYPE[i].name;
            *out_bits = DTYPE[i].bits;
            return STATUS_OK;
        }
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "%s: dtype of '%.*s' is '%.32s', expected F32, F16, "
                       "BF16 or another type of the format",
                       where, NAME_TEXT_MAX, entry->name,
                       name ? name : "missing");
}

/* The shape, and the bytes that shape x type takes. */
static enum status read_shape(const char *where, const json_t *object,
                              uint32_t bits, struct entry *entry,
                              uint64_t *out_bytes)
{
    const json_t *shape = json_object_get(object, "shape");
    const size_t n_dim = json_array_size(shape);
    struct tensor *tensor = &entry->tensor;
    uint64_t n = bits;
    bool overflows = false;

    if (!json_is_array(shape) || n_dim > SAFETENSORS_RANK_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: shape of '%.*s' has %zu dimensions, expected a "
                           "list of 0 to %u",
                           where, NAME_TEXT_MAX, entry->name, n_dim,
                           SAFETENSORS_RANK_MAX);
    for (size_t i = 0; i < n_dim; i++) {
        const json_t *dim = json_array_get(shape, i);

        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: shape of '%.*s' has an entry that is no "
                               "size, expected integers from 0",
                               where, NAME_TEXT_MAX, entry->name);
        tensor->dim[i] = (uint64_t)json_integer_value(dim);
        overflows |= __builtin_mul_overflow(n, tensor->dim[i], &n);
    }
    tensor->n_dim = (uint32_t)n_dim;
    if (overflows || n % 8)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: shape of '%.*s' %s, expected whole bytes below "
                           "2^61",
                           where, NAME_TEXT_MAX, entry->name,
                           overflows ? "overflows" : "ends inside a byte");
    *out_bytes = n / 8;
    return STATUS_OK;
}

/* Check one tensor of the header against the `n_data` bytes behind it. */
static enum status read_entry(const struct shard *shard, const uint8_t *data,
                              uint64_t n_data, const json_t *object,
                              struct entry *entry)
{
    const json_t *offsets = json_object_get(object, "data_offsets");
    const json_t *first = json_array_get(offsets, 0);
    const json_t *last = json_array_get(offsets, 1);
    uint64_t begin, end, n_bytes = 0;
    uint32_t bits = 0;
    enum status st;

    st = read_dtype(shard->name, object, entry, &bits);
    if (!st)
        st = read_shape(shard->name, object, bits, entry, &n_bytes);
    if (st)
        return st;
    if (json_array_size(offsets) != 2 || !json_is_integer(first) ||
        !json_is_integer(last) || json_integer_value(first) < 0 ||
        json_integer_value(last) < json_integer_value(first))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: data_offsets of '%.*s' are no range, expected "
                           "[begin, end]",
                           shard->name, NAME_TEXT_MAX, entry->name);
    begin = (uint64_t)json_integer_value(first);
    end = (uint64_t)json_integer_value(last);
    if (end > n_data)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: '%.*s' ends at byte %" PRIu64
                           ", expected at most the file's %" PRIu64
                           " bytes of data; is it truncated?",
                           shard->name, NAME_TEXT_MAX, entry->name, end,
                           n_data);
    if (end - begin != n_bytes)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: '%.*s' has %" PRIu64 " bytes, expected %" PRIu64
                           " by shape and type",
                           shard->name, NAME_TEXT_MAX, entry->name, end - begin,
                           n_bytes);
    entry->tensor.data = data + begin;
    entry->tensor.n_bytes = (size_t)n_bytes;
    return STATUS_OK;
}

static int compare_data(const void *a, const void *b)
{
    const struct tensor *x = &((const struct entry *)a)->tensor;
    const struct tensor *y = &((const struct entry *)b)->tensor;

    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

/* The tensors of one shard lie end to end and fill its data, as the format
 * demands; so nothing overlaps and nothing is hidden between. */
static enum status check_layout(const struct shard *shard, const uint8_t *data,
                                uint64_t n_data, struct entry *entry,
                                uint32_t n_entry)
{
    uint64_t at = 0;

    if (n_entry)
        qsort(entry, n_entry, sizeof(*entry), compare_data);
    for (uint32_t i = 0; i < n_entry; i++) {
        const uint64_t begin =
            (uint64_t)((const uint8_t *)entry[i].tensor.data - data);

        if (begin != at)
            return status_fail(
                STATUS_INVALID_ARGUMENT,
                "%s: '%.*s' begins at byte %" PRIu64
                " and %s, expected %" PRIu64,
                shard->name, NAME_TEXT_MAX, entry[i].name, begin,
                begin < at ? "overlaps another tensor" : "leaves a hole", at);
        at += entry[i].tensor.n_bytes;
    }
    if (at != n_data)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: data has %" PRIu64 " bytes, expected %" PRIu64
                           " by its tensors",
                           shard->name, n_data, at);
    return STATUS_OK;
}

static enum status read_header(struct safetensors *file, uint32_t at,
                               const json_t *header, const uint8_t *data)
{
    const struct shard *shard = &file->shard[at];
    const uint64_t n_data = (uint64_t)(shard->map + shard->n_bytes - data);
    const uint32_t first = file->n_entry;
    const char *name;
    json_t *object;
    enum status st;

    json_object_foreach((json_t *)header, name, object)
    {
        struct entry *entry;

        if (strcmp(name, "__metadata__") == 0)
            continue;
        if (file->n_entry == SAFETENSORS_TENSOR_MAX)
            return status_fail(
                STATUS_INVALID_ARGUMENT, "%s: more than %u tensors, limit %u",
                shard->name, SAFETENSORS_TENSOR_MAX, SAFETENSORS_TENSOR_MAX);
        entry = add_entry(file);
        if (!entry)
            return no_memory(shard->name);
        entry->shard = at;
        entry->name = strdup(name);
        if (!entry->name)
            return no_memory(shard->name);
        entry->tensor.name = entry->name;
        st = read_entry(shard, data, n_data, object, entry);
        if (st)
            return st;
    }
    return check_layout(shard, data, n_data,
                        file->entry ? file->entry + first : NULL,
                        file->n_entry - first);
}

/* Map `path` as shard `at` and add its tensors. */
static enum status open_shard(struct safetensors *file, uint32_t at,
                              const char *path)
{
    struct shard *shard = &file->shard[at];
    json_t *header = NULL;
    uint64_t n_header = 0;
    enum status st;

    shard->name = strdup(base_name(path));
    if (!shard->name)
        return no_memory(path);
    st = map_file(path, shard);
    if (st)
        return st;

    for (uint32_t i = 0; i < LENGTH_BYTES; i++)
        n_header |= (uint64_t)shard->map[i] << 8 * i;
    if (n_header > SAFETENSORS_HEADER_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: header has %" PRIu64 " bytes, limit %u",
                           shard->name, n_header, SAFETENSORS_HEADER_MAX);
    if (n_header > shard->n_bytes - LENGTH_BYTES)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s is truncated: header has %" PRIu64
                           " bytes, the file %zu, expected at least %" PRIu64,
                           shard->name, n_header, shard->n_bytes,
                           n_header + LENGTH_BYTES);
    if (!n_header || shard->map[LENGTH_BYTES] != '{')
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: header is no JSON object, expected '{' at byte "
                           "%u",
                           shard->name, LENGTH_BYTES);
    st = json_parse(shard->name, shard->map + LENGTH_BYTES, (size_t)n_header,
                    &header);
    if (!st)
        st =
            read_header(file, at, header, shard->map + LENGTH_BYTES + n_header);
    json_decref(header);
    return st;
}

static int compare_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name,
                  ((const struct entry *)b)->name);
}

/* Order the entries for finding; a name may stand only once in all shards. */
static enum status sort_entries(struct safetensors *file)
{
    const struct entry *entry = file->entry;

    if (file->n_entry)
        qsort(file->entry, file->n_entry, sizeof(*entry), compare_name);
    for (uint32_t i = 1; i < file->n_entry; i++)
        if (strcmp(entry[i - 1].name, entry[i].name) == 0)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: tensor '%.*s' is also in %s, expected once",
                               file->shard[entry[i].shard].name, NAME_TEXT_MAX,
                               entry[i].name,
                               file->shard[entry[i - 1].shard].name);
    return STATUS_OK;
}

static const struct entry *find_entry(const struct safetensors *file,
                                      const char *name)
{
    const struct entry key = {.name = (char *)name};

    if (!file->n_entry)
        return NULL;
    return bsearch(&key, file->entry, file->n_entry, sizeof(key), compare_name);
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/*
 * The distinct file names of the index, borrowed from it, in order. A name
 * must stay in the folder: an index is outside data and may not open /dev/x.
 */
static enum status list_shards(const json_t *map, const char **out,
                               uint32_t *out_n)
{
    const size_t n_name = json_object_size(map);
    const char **all = calloc(n_name ? n_name : 1, sizeof(*all));
    enum status st = STATUS_OK;
    const char *name;
    json_t *value;
    size_t n = 0;
    uint32_t n_shard = 0;

    if (!all)
        return no_memory(INDEX_NAME);
    json_object_foreach((json_t *)map, name, value)
    {
        const char *text = json_string_value(value);

        if (!text || !*text || strchr(text, '/') || strlen(text) > NAME_MAX) {
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "%s: file of '%.*s' is '%.64s', expected the "
                             "name of a file in this folder",
                             INDEX_NAME, NAME_TEXT_MAX, name,
                             text ? text : "no string");
            goto out;
        }
        all[n++] = text;
    }
    qsort(all, n, sizeof(*all), compare_text);
    for (size_t i = 0; i < n; i++) {
        if (i && strcmp(all[i - 1], all[i]) == 0)
            continue;
        if (n_shard == SAFETENSORS_SHARD_MAX) {
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "%s: names more than %u files, limit %u",
                             INDEX_NAME, SAFETENSORS_SHARD_MAX,
                             SAFETENSORS_SHARD_MAX);
            goto out;
        }
        out[n_shard++] = all[i];
    }
    *out_n = n_shard;
out:
    free(all);
    return st;
}

/* Each tensor of the index must be in the very shard that it names. */
static enum status check_index(const struct safetensors *file,
                               const json_t *map)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)map, name, value)
    {
        const char *shard = json_string_value(value);
        const struct entry *entry = find_entry(file, name);

        if (!entry || strcmp(file->shard[entry->shard].name, shard) != 0)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: tensor '%.*s' is not in %.64s, expected "
                               "there by %s",
                               shard, NAME_TEXT_MAX, name, shard, INDEX_NAME);
    }
    return STATUS_OK;
}

static enum status join(const char *dir, const char *name, char out[PATH_MAX])
{
    const int n = snprintf(out, PATH_MAX, "%s/%s", dir, name);

    if (n < 0 || n >= PATH_MAX)
        return status_fail(STATUS_NOT_FOUND,
                           "path of %.64s has %d bytes, limit %d", name, n,
                           PATH_MAX - 1);
    return STATUS_OK;
}

static enum status open_index(struct safetensors *file, const char *dir,
                              const char *path)
{
    const char *name[SAFETENSORS_SHARD_MAX];
    char shard_path[PATH_MAX];
    json_t *index = NULL;
    const json_t *map;
    uint32_t n = 0;
    enum status st;

    st = json_load(path, &index);
    if (st)
        return st;
    map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) {
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "%s: weight_map is missing or no object, expected "
                         "one",
                         INDEX_NAME);
        goto out;
    }
    st = list_shards(map, name, &n);
    if (st)
        goto out;
    file->shard = calloc(n ? n : 1, sizeof(*file->shard));
    if (!file->shard) {
        st = no_memory(INDEX_NAME);
        goto out;
    }
    for (uint32_t i = 0; i < n && !st; i++) {
        st = join(dir, name[i], shard_path);
        if (st)
            break;
        file->n_shard = i + 1; /* half-opened shards are closed too */
        st = open_shard(file, i, shard_path);
    }
    if (!st)
        st = sort_entries(file);
    if (!st)
        st = check_index(file, map);
out:
    json_decref(index);
    return st;
}

static enum status open_single(struct safetensors *file, const char *path)
{
    enum status st;

    file->shard = calloc(1, sizeof(*file->shard));
    if (!file->shard)
        return no_memory(path);
    file->n_shard = 1;
    st = open_shard(file, 0, path);
    return st ? st : sort_entries(file);
}

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);

    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

bool tensor_is_scale(const char *name)
{
    return ends_in(name, SCALE_END);
}

/* One of each block of `of`, a float? */
static bool is_scale(const struct tensor *scale, const struct tensor *of)
{
    bool is_it = scale->type != TENSOR_F8 && tensor_is_float(scale) &&
                 of->n_dim >= 2 && scale->n_dim == of->n_dim;

    for (uint32_t i = 0; i < of->n_dim && is_it; i++) {
        const uint64_t by = i + 2 < of->n_dim ? 1 : TENSOR_F8_BLOCK;

        is_it = scale->dim[i] == of->dim[i] / by + (of->dim[i] % by != 0);
    }
    return is_it;
}

/* FP8 finds its scales by name, in whichever shard. */
static enum status link_scales(struct safetensors *file)
{
    for (uint32_t i = 0; i < file->n_entry; i++) {
        struct tensor *tensor = &file->entry[i].tensor;
        const struct entry *entry;
        char *name = NULL;

        if (tensor->type != TENSOR_F8)
            continue;
        if (asprintf(&name, "%s" SCALE_END, tensor->name) < 0)
            return no_memory(tensor->name);
        entry = find_entry(file, name);
        free(name);
        if (entry && is_scale(&entry->tensor, tensor))
            tensor->scale = &entry->tensor;
    }
    return STATUS_OK;
}

/* Which file of the directory to open, as Hugging Face's loader chooses. */
static enum status open_dir(struct safetensors *file, const char *dir)
{
    char single[PATH_MAX], index[PATH_MAX];
    enum status st;

    st = join(dir, SINGLE_NAME, single);
    if (!st)
        st = join(dir, INDEX_NAME, index);
    if (st)
        return st;
    if (access(single, F_OK) == 0)
        return open_single(file, single);
    if (access(index, F_OK) == 0)
        return open_index(file, dir, index);
    return status_fail(STATUS_NOT_FOUND, "%s has neither %s nor %s", dir,
                       SINGLE_NAME, INDEX_NAME);
}

enum status safetensors_open(const char *path, struct safetensors **out)
{
    struct safetensors *file = calloc(1, sizeof(*file));
    enum status st;

    if (!file)
        return no_memory(path);
    st = ends_in(path, ".safetensors") ? open_single(file, path)
                                       : open_dir(file, path);
    if (!st)
        st = link_scales(file);
    if (st)
        goto out;
    file->name = strdup(file->n_shard == 1 ? file->shard[0].name : INDEX_NAME);
    if (!file->name) {
        st = no_memory(path);
        goto out;
    }
    *out = file;
    file = NULL;
out:
    safetensors_close(file);
    return st;
}

enum status safetensors_synthesise(uint64_t seed, bool has_unit_offset,
                                   struct safetensors **out)
{
    struct safetensors *file = calloc(1, sizeof(*file));
    enum status st =
        file ? synthetic_create(seed, has_unit_offset, &file->synthetic)
             : no_memory("a synthetic model");

    if (st)
        free(file);
    else
        *out = file;
    return st;
}

void safetensors_forget(const struct safetensors *file)
{
    if (file->synthetic)
        synthetic_forget(file->synthetic);
}

void safetensors_close(struct safetensors *file)
{
    if (!file)
        return;
    synthetic_destroy(file->synthetic);
    for (uint32_t i = 0; i < file->n_entry; i++)
        free(file->entry[i].name);
    free(file->entry);
    for (uint32_t i = 0; i < file->n_shard; i++) {
        if (file->shard[i].map)
            (void)munmap((void *)file->shard[i].map, file->shard[i].n_bytes);
        free(file->shard[i].name);
    }
    free(file->shard);
    free(file->name);
    free(file);
}

const struct tensor *safetensors_find(const struct safetensors *file,
                                      const char *name)
{
    const struct entry *entry = find_entry(file, name);

    if (file->synthetic)
        return synthetic_find(file->synthetic, name);
    return entry ? &entry->tensor : NULL;
}

uint32_t safetensors_count(const struct safetensors *file)
{
    return file->synthetic ? synthetic_count(file->synthetic) : file->n_entry;
}

const struct tensor *safetensors_at(const struct safetensors *file, uint32_t i)
{
    if (file->synthetic)
        return synthetic_at(file->synthetic, i);
    assert(i < file->n_entry);
    return &file->entry[i].tensor;
}

enum status safetensors_need(const struct safetensors *file, const char *name,
                             uint32_t n_dim, const uint64_t *dim,
                             const struct tensor **out)
{
    const struct entry *entry = find_entry(file, name);
    char want[SHAPE_TEXT], have[SHAPE_TEXT];

    assert(n_dim <= SAFETENSORS_RANK_MAX);
    if (file->synthetic)
        return synthetic_need(file->synthetic, name, n_dim, dim, out);
    format_shape(n_dim, dim, want);
    if (!entry)
        return status_fail(STATUS_NOT_FOUND,
                           "%s: no tensor '%.*s', expected %s", file->name,
                           NAME_TEXT_MAX, name, want);
    format_shape(entry->tensor.n_dim, entry->tensor.dim, have);
    if (entry->tensor.type == TENSOR_F8 && !entry->tensor.scale)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: tensor '%.*s' is F8_E4M3 without a tensor "
                           "'%.*s" SCALE_END "' of one float for each %u by "
                           "%u of it",
                           file->shard[entry->shard].name, NAME_TEXT_MAX, name,
                           NAME_TEXT_MAX, name, TENSOR_F8_BLOCK,
                           TENSOR_F8_BLOCK);
    if (!tensor_is_float(&entry->tensor) || entry->tensor.n_dim != n_dim ||
        memcmp(entry->tensor.dim, dim, n_dim * sizeof(*dim)) != 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: tensor '%.*s' is %s %s, expected F32, F16 or "
                           "BF16 %s",
                           file->shard[entry->shard].name, NAME_TEXT_MAX, name,
                           entry->dtype, have, want);
    *out = &entry->tensor;
    return STATUS_OK;
}

struct digest safetensors_digest(const struct safetensors *file)
{
    struct digest digest = {0};

    if (file->synthetic)
        return synthetic_digest(file->synthetic);
    for (uint32_t i = 0; i < file->n_entry; i++) {
        const struct entry *entry = &file->entry[i];
        const struct tensor *tensor = &entry->tensor;

        /* Names and types with their NUL, so that none runs into the next. */
        digest = digest_chain(digest, entry->name, strlen(entry->name) + 1);
        digest = digest_chain(digest, entry->dtype, strlen(entry->dtype) + 1);
        digest = digest_chain(digest, tensor->dim,
                              tensor->n_dim * sizeof(*tensor->dim));
        digest = digest_chain(digest, tensor->data, tensor->n_bytes);
    }
    return digest;
}
