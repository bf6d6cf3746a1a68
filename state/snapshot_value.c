#include "state/snapshot_value.h"

#include "state/lineage.h"

#include <string.h>

bool numerics_equal(struct numerics a, struct numerics b)
{
    return digest_equal(a.fingerprint, b.fingerprint) &&
           digest_equal(a.id, b.id);
}

struct digest policy_digest(const struct policy *policy)
{
    char text[POLICY_TEXT_SIZE];

    if (!policy || policy->kind == POLICY_FULL)
        return (struct digest){0};
    policy_format(policy, text);
    return digest_bytes(text, strlen(text));
}

static void put_owner(struct writer *writer, struct uid uid,
                      struct numerics numerics)
{
    writer_u64(writer, uid.hi);
    writer_u64(writer, uid.lo);
    writer_digest(writer, numerics.fingerprint);
    writer_digest(writer, numerics.id);
    writer_digest(writer, numerics.policy);
}

static void get_owner(struct reader *reader, struct uid *uid,
                      struct numerics *numerics)
{
    uid->hi = reader_u64(reader);
    uid->lo = reader_u64(reader);
    numerics->fingerprint = reader_digest(reader);
    numerics->id = reader_digest(reader);
    numerics->policy = reader_digest(reader);
}

static void put_base(struct writer *writer, const struct log_path *base)
{
    writer_u32(writer, base->n);
    for (uint32_t i = 0; i < base->n; i++) {
        writer_u64(writer, base->piece[i].log.hi);
        writer_u64(writer, base->piece[i].log.lo);
        writer_u64(writer, base->piece[i].end);
    }
}

/* False when it is not made of whole blocks that follow each other. */
static bool get_base(struct reader *reader, struct log_path *base)
{
    bool is_sound = true;

    base->n = reader_u32(reader);
    if (base->n >= LOG_PATH_MAX)
        return false;
    for (uint32_t i = 0; i < base->n; i++) {
        struct log_piece *piece = &base->piece[i];

        piece->log.hi = reader_u64(reader);
        piece->log.lo = reader_u64(reader);
        piece->end = reader_u64(reader);
        is_sound &= piece->end % KV_BLOCK == 0 &&
                    piece->end > (i > 0 ? piece[-1].end : 0);
    }
    return is_sound;
}

enum status manifest_put(struct writer *writer, const struct manifest *manifest)
{
    size_t begin = frame_begin(writer, FRAME_MANIFEST, MANIFEST_VERSION);

    put_owner(writer, manifest->uid, manifest->numerics);
    writer_u64(writer, manifest->session.hi);
    writer_u64(writer, manifest->session.lo);
    writer_u32(writer, manifest->index);
    put_base(writer, &manifest->base);
    writer_u32(writer, manifest->n);
    for (uint32_t i = 0; i < manifest->n; i++) {
        const struct snapshot_entry *entry = &manifest->entry[i];

        writer_u64(writer, entry->position);
        writer_digest(writer, entry->chain);
        writer_u64(writer, entry->scope);
        writer_u64(writer, entry->create_ms);
        writer_u32(writer, entry->is_shared | entry->is_pinned << 1);
    }
    return frame_end(writer, begin);
}

enum status manifest_get(const void *bytes, size_t n_bytes,
                         struct manifest *out)
{
    struct manifest manifest = {0};
    struct reader reader;
    uint32_t index;
    bool is_sound = true;
    enum status st =
        frame_open(bytes, n_bytes, FRAME_MANIFEST, MANIFEST_VERSION, &reader);

    if (st)
        return st;
    get_owner(&reader, &manifest.uid, &manifest.numerics);
    manifest.session.hi = reader_u64(&reader);
    manifest.session.lo = reader_u64(&reader);
    index = reader_u32(&reader);
    if (index >= N_INDEX || !get_base(&reader, &manifest.base))
        return status_fail(STATUS_DATA_LOSS,
                           "manifest has a field out of range");
    manifest.index = (enum index_kind)index;
    manifest.n = reader_u32(&reader);
    if (manifest.n > SNAPSHOT_KEEP_MAX)
        return status_fail(STATUS_DATA_LOSS,
                           "manifest names %u snapshots, limit %u", manifest.n,
                           SNAPSHOT_KEEP_MAX);
    for (uint32_t i = 0; i < manifest.n; i++) {
        struct snapshot_entry *entry = &manifest.entry[i];
        uint32_t flags;

        entry->position = reader_u64(&reader);
        entry->chain = reader_digest(&reader);
        entry->scope = reader_u64(&reader);
        entry->create_ms = reader_u64(&reader);
        flags = reader_u32(&reader);
        entry->is_shared = flags & 1;
        entry->is_pinned = flags >> 1 & 1;
        is_sound &=
            flags <= 3 && (i == 0 || entry->position < entry[-1].position);
    }
    if (!reader_is_done(&reader) || !is_sound)
        return status_fail(STATUS_DATA_LOSS,
                           "manifest has a field out of range");
    *out = manifest;
    return STATUS_OK;
}

enum status value_put_parts(struct writer *writer, enum frame_kind kind,
                            const struct value_head *head, const void *data,
                            const struct mixer_part *part, uint32_t n_part)
{
    size_t begin = frame_begin(writer, kind, SNAPSHOT_VERSION);
    uint64_t data_bytes = 0;

    for (uint32_t i = 0; i < n_part; i++)
        data_bytes += part[i].bytes;
    put_owner(writer, head->uid, head->numerics);
    writer_u64(writer, head->position);
    writer_digest(writer, head->chain);
    writer_u64(writer, head->place);
    writer_u32(writer, head->layer);
    writer_u32(writer, head->n_token);
    writer_u64(writer, data_bytes);
    for (uint32_t i = 0; i < n_part; i++)
        writer_bytes(writer, (const char *)data + part[i].offset,
                     part[i].bytes);
    return frame_end(writer, begin);
}

enum status value_put(struct writer *writer, enum frame_kind kind,
                      const struct value_head *head, const void *data,
                      size_t data_bytes)
{
    return value_put_parts(writer, kind, head, data,
                           &(struct mixer_part){0, data_bytes}, 1);
}

enum status value_get(const void *bytes, size_t n_bytes, enum frame_kind kind,
                      struct value_head *out, const void **out_data,
                      size_t *out_data_bytes)
{
    struct value_head head = {0};
    struct reader reader;
    uint64_t data_bytes;
    const void *data;
    enum status st =
        frame_open(bytes, n_bytes, kind, SNAPSHOT_VERSION, &reader);

    if (st)
        return st;
    get_owner(&reader, &head.uid, &head.numerics);
    head.position = reader_u64(&reader);
    head.chain = reader_digest(&reader);
    head.place = reader_u64(&reader);
    head.layer = reader_u32(&reader);
    head.n_token = reader_u32(&reader);
    data_bytes = reader_u64(&reader);
    data = reader_bytes(&reader, data_bytes);
    if (!reader_is_done(&reader))
        return status_fail(STATUS_DATA_LOSS,
                           "stored value's fields and length disagree");
    *out = head;
    *out_data = data;
    *out_data_bytes = data_bytes;
    return STATUS_OK;
}
