#ifndef BASE_DIGEST_H
#define BASE_DIGEST_H
/*
 * XXH3 (xxhash) as the one digest of this program: of stored bytes, of weights
 * and of token chains. Guards against accidents, not against an adversary who
 * writes to the disk.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct digest {
    uint64_t lo, hi;
};

#define DIGEST_TEXT_SIZE 33 /* 32 hex digits and NUL */

struct digest digest_bytes(const void *bytes, size_t n_bytes);

/* Digest of n_bytes that depends on what came before: a chain link. */
struct digest digest_chain(struct digest before, const void *bytes,
                           size_t n_bytes);

/*
 * The chain hash of a token log: link by link, one token each, so that it can
 * be cut anywhere. The chain of no tokens is the model's fingerprint.
 */
struct digest digest_tokens(struct digest before, const uint32_t *token,
                            size_t n_token);

uint64_t digest_64(const void *bytes, size_t n_bytes);
bool digest_equal(struct digest a, struct digest b);
void digest_format(struct digest d, char out[DIGEST_TEXT_SIZE]);
/* False unless text is 32 hex digits. */
bool digest_parse(const char *text, struct digest *out);
#endif
