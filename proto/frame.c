#include "proto/frame.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x31665747u /* "GWf1" in memory */
#define LENGTH_AT 8u
#define DIGEST_AT 16u
#define CAPACITY_FIRST 256u

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "frames are written as they lie in memory");
_Static_assert(DIGEST_AT == sizeof(struct digest),
               "the head before the digest is hashed as a chain link");

void writer_init(struct writer *writer, size_t max_bytes)
{
    *writer = (struct writer){.max_bytes = max_bytes};
}

void writer_release(struct writer *writer)
{
    free(writer->bytes);
    *writer = (struct writer){0};
}

void writer_clear(struct writer *writer)
{
    writer->n = 0;
    writer->is_failed = false;
}

/* Room for n_bytes more, or false and is_failed. */
static bool make_room(struct writer *writer, size_t n_bytes)
{
    size_t capacity = writer->capacity;
    unsigned char *bytes;

    if (writer->is_failed || n_bytes > writer->max_bytes - writer->n)
        goto failed;
    if (n_bytes <= capacity - writer->n)
        return true;
    capacity = capacity < CAPACITY_FIRST ? CAPACITY_FIRST : capacity;
    while (capacity - writer->n < n_bytes && capacity <= SIZE_MAX / 2)
        capacity *= 2;
    if (capacity > writer->max_bytes)
        capacity = writer->max_bytes;
    bytes = realloc(writer->bytes, capacity);
    if (!bytes)
        goto failed;
    writer->bytes = bytes;
    writer->capacity = capacity;
    return true;

failed:
    writer->is_failed = true;
    return false;
}

void writer_bytes(struct writer *writer, const void *bytes, size_t n_bytes)
{
    if (n_bytes == 0 || !make_room(writer, n_bytes))
        return;
    memcpy(writer->bytes + writer->n, bytes, n_bytes);
    writer->n += n_bytes;
}

void writer_u8(struct writer *writer, uint8_t value)
{
    writer_bytes(writer, &value, sizeof(value));
}

void writer_u16(struct writer *writer, uint16_t value)
{
    writer_bytes(writer, &value, sizeof(value));
}

void writer_u32(struct writer *writer, uint32_t value)
{
    writer_bytes(writer, &value, sizeof(value));
}

void writer_u64(struct writer *writer, uint64_t value)
{
    writer_bytes(writer, &value, sizeof(value));
}

void writer_f32(struct writer *writer, float value)
{
    writer_bytes(writer, &value, sizeof(value));
}

void writer_digest(struct writer *writer, struct digest value)
{
    writer_u64(writer, value.lo);
    writer_u64(writer, value.hi);
}

void writer_text(struct writer *writer, const char *text)
{
    size_t n = strlen(text);

    assert(n <= UINT16_MAX);
    writer_u16(writer, (uint16_t)n);
    writer_bytes(writer, text, n);
}

void reader_init(struct reader *reader, const void *bytes, size_t n_bytes)
{
    *reader = (struct reader){.at = bytes, .left = n_bytes};
}

const void *reader_bytes(struct reader *reader, size_t n_bytes)
{
    const unsigned char *at = reader->at;

    if (reader->is_failed || n_bytes > reader->left) {
        reader->is_failed = true;
        reader->left = 0;
        return NULL;
    }
    if (n_bytes > 0)
        reader->at += n_bytes;
    reader->left -= n_bytes;
    return at;
}

static void take(struct reader *reader, void *out, size_t n_bytes)
{
    const void *bytes = reader_bytes(reader, n_bytes);

    if (bytes)
        memcpy(out, bytes, n_bytes);
}

uint8_t reader_u8(struct reader *reader)
{
    uint8_t value = 0;

    take(reader, &value, sizeof(value));
    return value;
}

uint16_t reader_u16(struct reader *reader)
{
    uint16_t value = 0;

    take(reader, &value, sizeof(value));
    return value;
}

uint32_t reader_u32(struct reader *reader)
{
    uint32_t value = 0;

    take(reader, &value, sizeof(value));
    return value;
}

uint64_t reader_u64(struct reader *reader)
{
    uint64_t value = 0;

    take(reader, &value, sizeof(value));
    return value;
}

float reader_f32(struct reader *reader)
{
    float value = 0;

    take(reader, &value, sizeof(value));
    return value;
}

struct digest reader_digest(struct reader *reader)
{
    struct digest value;

    value.lo = reader_u64(reader);
    value.hi = reader_u64(reader);
    return value;
}

void reader_text(struct reader *reader, char *out, size_t size)
{
    size_t n = reader_u16(reader);
    const char *text;

    assert(size > 0);
    out[0] = 0;
    if (n >= size) {
        reader->is_failed = true;
        reader->left = 0;
        return;
    }
    text = reader_bytes(reader, n);
    if (!text || n == 0)
        return;
    if (memchr(text, 0, n)) {
        reader->is_failed = true;
        reader->left = 0;
        return;
    }
    memcpy(out, text, n);
    out[n] = 0;
}

bool reader_is_done(const struct reader *reader)
{
    return !reader->is_failed && reader->left == 0;
}

size_t frame_begin(struct writer *writer, enum frame_kind kind,
                   uint16_t version)
{
    size_t begin = writer->n;

    writer_u32(writer, MAGIC);
    writer_u16(writer, (uint16_t)kind);
    writer_u16(writer, version);
    writer_u64(writer, 0);
    writer_digest(writer, (struct digest){0});
    return begin;
}

/* The head's first half is the link that the payload's digest starts from. */
static struct digest digest_of(const unsigned char *frame, size_t n_bytes)
{
    struct digest head;

    memcpy(&head, frame, sizeof(head));
    return digest_chain(head, frame + FRAME_HEAD_BYTES,
                        n_bytes - FRAME_HEAD_BYTES);
}

enum status frame_end(struct writer *writer, size_t begin)
{
    unsigned char *frame;
    struct digest digest;
    uint64_t n_payload;

    if (writer->is_failed)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no room for a frame behind %zu bytes, limit %zu",
                           writer->n, writer->max_bytes);
    assert(writer->n >= begin + FRAME_HEAD_BYTES);
    frame = writer->bytes + begin;
    n_payload = writer->n - begin - FRAME_HEAD_BYTES;
    memcpy(frame + LENGTH_AT, &n_payload, sizeof(n_payload));
    digest = digest_of(frame, writer->n - begin);
    memcpy(frame + DIGEST_AT, &digest, sizeof(digest));
    return STATUS_OK;
}

enum status frame_open(const void *bytes, size_t n_bytes, enum frame_kind kind,
                       uint16_t version, struct reader *out)
{
    struct reader head;
    uint32_t magic;
    uint16_t its_kind, its_version;
    uint64_t n_payload;
    struct digest digest;

    if (n_bytes < FRAME_HEAD_BYTES)
        return status_fail(STATUS_DATA_LOSS,
                           "frame has %zu bytes, expected at least %u", n_bytes,
                           FRAME_HEAD_BYTES);
    reader_init(&head, bytes, FRAME_HEAD_BYTES);
    magic = reader_u32(&head);
    its_kind = reader_u16(&head);
    its_version = reader_u16(&head);
    n_payload = reader_u64(&head);
    digest = reader_digest(&head);
    if (magic != MAGIC)
        return status_fail(STATUS_DATA_LOSS,
                           "frame begins with %08x, expected %08x", magic,
                           MAGIC);
    if (n_payload != n_bytes - FRAME_HEAD_BYTES)
        return status_fail(STATUS_DATA_LOSS,
                           "frame says %lu bytes of payload, has %zu",
                           n_payload, n_bytes - FRAME_HEAD_BYTES);
    if (!digest_equal(digest, digest_of(bytes, n_bytes)))
        return status_fail(STATUS_DATA_LOSS,
                           "frame of %zu bytes fails its digest", n_bytes);
    if (its_kind != (uint16_t)kind)
        return status_fail(STATUS_DATA_LOSS, "frame is of kind %u, expected %u",
                           its_kind, (unsigned)kind);
    if (its_version != version)
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "frame of kind %u has version %u, this build "
                           "reads version %u",
                           its_kind, its_version, version);
    reader_init(out, (const unsigned char *)bytes + FRAME_HEAD_BYTES,
                n_bytes - FRAME_HEAD_BYTES);
    return STATUS_OK;
}

enum status frame_peek(const void *head, uint16_t *out_kind,
                       uint64_t *out_bytes)
{
    struct reader reader;
    uint32_t magic;
    uint16_t kind;
    uint64_t n_payload;

    reader_init(&reader, head, FRAME_HEAD_BYTES);
    magic = reader_u32(&reader);
    kind = reader_u16(&reader);
    (void)reader_u16(&reader);
    n_payload = reader_u64(&reader);
    if (magic != MAGIC || n_payload > UINT64_MAX - FRAME_HEAD_BYTES)
        return status_fail(STATUS_DATA_LOSS,
                           "frame begins with %08x, expected %08x", magic,
                           MAGIC);
    *out_kind = kind;
    *out_bytes = n_payload + FRAME_HEAD_BYTES;
    return STATUS_OK;
}
