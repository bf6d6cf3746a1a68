#ifndef STATE_SEAL_H
#define STATE_SEAL_H
/*
 * A stream of bytes that only the holder of a tenant's key can read, and that
 * nobody can change, cut short, reorder or mix with another one unnoticed.
 *
 *   FRAME_SEAL    u32 cipher (1) | key's id (16 bytes) | salt (32 bytes)
 *   FRAME_SEALED  u64 number from 0 | u8 is last | u32 n | n bytes | tag (16)
 *
 * AES-256-GCM, one piece at a time (the STREAM construction of Hoang,
 * Reyhanitabar, Rogaway and Vizar, 2015). The key of a stream is
 * HKDF-SHA256(tenant's key, salt, "godwit bundle 1"), so every stream has its
 * own, and a nonce is the piece's number and whether it is the last: no pair of
 * key and nonce comes twice as long as the system's random source gives no salt
 * twice. The only file that knows OpenSSL. One thread each.
 */
#include "proto/frame.h"

#define SEAL_KEY_BYTES 32u
#define SEAL_PIECE_BYTES (64u << 10) /* of plain text, at most */
/* A frame of a sealed stream has at most so many bytes. */
#define SEAL_FRAME_MAX (FRAME_HEAD_BYTES + SEAL_PIECE_BYTES + 64u)

struct seal_key {
    unsigned char bytes[SEAL_KEY_BYTES];
};
/* False unless text is 64 hex digits. */
bool seal_key_parse(const char *text, size_t n_bytes, struct seal_key *out);

struct sealer;
/*
 * Appends the head to `out`.
 *   RESOURCE_EXHAUSTED  no memory
 *   INTERNAL            no random bytes, or OpenSSL failed
 */
MUST_CHECK enum status sealer_create(const struct seal_key *key,
                                     struct writer *out,
                                     struct sealer **out_sealer);
void sealer_destroy(struct sealer *sealer); /* accepts NULL */
/* Append one piece, of at most SEAL_PIECE_BYTES.  as sealer_create() */
MUST_CHECK enum status sealer_put(struct sealer *sealer, const void *bytes,
                                  size_t n_bytes, bool is_last,
                                  struct writer *out);

struct opener;
/*
 * From the frame that a sealed stream begins with.
 *   DATA_LOSS            as frame_open()
 *   FAILED_PRECONDITION  another version or cipher (BUNDLE_VERSION), or sealed
 *                        with another key (KEY_MISMATCH)
 *   RESOURCE_EXHAUSTED, INTERNAL  as sealer_create()
 */
MUST_CHECK enum status opener_create(const struct seal_key *key,
                                     const void *frame, size_t n_bytes,
                                     struct opener **out);
void opener_destroy(struct opener *opener); /* accepts NULL */
/*
 * Append the plain text of the next piece.
 *   DATA_LOSS           it is not the next piece, was changed, or comes behind
 *                       the last one (BUNDLE_DAMAGED)
 *   RESOURCE_EXHAUSTED, INTERNAL
 */
MUST_CHECK enum status opener_take(struct opener *opener, const void *frame,
                                   size_t n_bytes, struct writer *out);
/* Was that the last piece? */
bool opener_is_done(const struct opener *opener);

/*
 * Keys of tenants, from an operator's file: a line each of a tenant's name, a
 * blank and 64 hex digits; lines that begin with '#' and empty ones are passed
 * over. "-" names the tenant without a name.
 */
struct keyring;
/* INVALID_ARGUMENT  names the line;  RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status keyring_parse(const char *text, struct keyring **out);
void keyring_destroy(struct keyring *keyring); /* accepts NULL */
/* NULL: this tenant has none, or there is no keyring. */
const struct seal_key *keyring_find(const struct keyring *keyring,
                                    const char *tenant);
#endif
