#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H
/*
 * The one framing of bytes that leave the process: journal rows, snapshots and
 * (between nodes) messages. A frame is
 *
 *   u32 magic | u16 kind | u16 version | u64 payload bytes | digest | payload
 *
 * little-endian, 32 bytes of head; the digest is XXH3-128 over the 16 bytes
 * before it and the payload. So a frame says what it is, and any flipped, lost
 * or added byte is noticed before a field is read. The digest guards against
 * accidents, not against an adversary, so a reader of the payload must still
 * check every number: struct reader never reads outside and remembers that it
 * was asked to.
 */
#include "base/digest.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEAD_BYTES 32u

/* Stored for ever: never renumber, never use a number again. */
enum frame_kind {
    FRAME_SESSION = 1,    /* state/journal_record.h */
    FRAME_TOKENS = 2,     /* state/journal_record.h */
    FRAME_TURN = 3,       /* state/journal_record.h */
    FRAME_MANIFEST = 4,   /* state/snapshot.c */
    FRAME_STATE = 5,      /* state/snapshot.c: of a recurrent layer */
    FRAME_BLOCK = 6,      /* state/snapshot.c: sealed KV block */
    FRAME_OPEN = 7,       /* state/snapshot.c: KV block that is not full */
    FRAME_BUNDLE = 8,     /* state/bundle.h: head of an exported session */
    FRAME_BUNDLE_END = 9, /* state/bundle.h */
    FRAME_SEAL = 10,      /* state/seal.h: head of an encrypted stream */
    FRAME_SEALED = 11,    /* state/seal.h: a piece of it */
    FRAME_SEGMENT = 12,   /* state/store_segments.c: where a value lies */
};

/*
 * Bytes under construction. Grows up to max_bytes; a write that does not fit,
 * or finds no memory, is left out and remembered in is_failed, so that callers
 * check once at the end. Used by one thread.
 */
struct writer {
    unsigned char *bytes; /* [n]; owned */
    size_t n, capacity;
    size_t max_bytes;
    bool is_failed;
};
void writer_init(struct writer *writer, size_t max_bytes);
void writer_release(struct writer *writer);
/* Empty and sound again; the memory is kept. */
void writer_clear(struct writer *writer);

void writer_u8(struct writer *writer, uint8_t value);
void writer_u16(struct writer *writer, uint16_t value);
void writer_u32(struct writer *writer, uint32_t value);
void writer_u64(struct writer *writer, uint64_t value);
void writer_f32(struct writer *writer, float value); /* its exact bits */
void writer_digest(struct writer *writer, struct digest value);
void writer_bytes(struct writer *writer, const void *bytes, size_t n_bytes);
/* u16 length and the bytes of a text of less than 64 KiB. */
void writer_text(struct writer *writer, const char *text);

/*
 * Bytes being read, borrowed. A read past the end gives zeros, consumes
 * everything and sets is_failed. Used by one thread.
 */
struct reader {
    const unsigned char *at;
    size_t left;
    bool is_failed;
};
void reader_init(struct reader *reader, const void *bytes, size_t n_bytes);

uint8_t reader_u8(struct reader *reader);
uint16_t reader_u16(struct reader *reader);
uint32_t reader_u32(struct reader *reader);
uint64_t reader_u64(struct reader *reader);
float reader_f32(struct reader *reader);
struct digest reader_digest(struct reader *reader);
/* Borrowed pointer to the next n_bytes; NULL when there are fewer. */
const void *reader_bytes(struct reader *reader, size_t n_bytes);
/* A text into out[size], NUL-terminated; fails if longer or holding a NUL. */
void reader_text(struct reader *reader, char *out, size_t size);
/* Everything was read, and nothing past the end. */
bool reader_is_done(const struct reader *reader);

/* Begin a frame at the writer's end; returns its place for frame_end(). */
size_t frame_begin(struct writer *writer, enum frame_kind kind,
                   uint16_t version);
/*
 * Close the frame: fill in length and digest.
 *   RESOURCE_EXHAUSTED  a write since writer_init() or writer_clear() failed
 */
MUST_CHECK enum status frame_end(struct writer *writer, size_t begin);

/*
 * Check that the bytes are exactly one frame of this kind and version, and let
 * *out read its payload (borrowed).
 *   DATA_LOSS            too short, wrong magic, length, digest or kind
 *   FAILED_PRECONDITION  sound, but of another version than `version`
 */
MUST_CHECK enum status frame_open(const void *bytes, size_t n_bytes,
                                  enum frame_kind kind, uint16_t version,
                                  struct reader *out);

/*
 * For who reads a stream of frames: what its head, the first FRAME_HEAD_BYTES,
 * says of its kind and of its bytes, head included. Nothing of that is checked
 * yet but the magic.
 *   DATA_LOSS  no frame begins so
 */
MUST_CHECK enum status frame_peek(const void *head, uint16_t *out_kind,
                                  uint64_t *out_bytes);
#endif
