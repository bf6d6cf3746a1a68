#include "base/digest.h"

#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* the size of a state, to keep it on stack */
#include <xxhash.h>

static struct digest from_xxh(XXH128_hash_t hash)
{
    return (struct digest){.lo = hash.low64, .hi = hash.high64};
}

struct digest digest_bytes(const void *bytes, size_t n_bytes)
{
    return from_xxh(XXH3_128bits(bytes, n_bytes));
}

/*
 * The digest before is hashed in front of the bytes, not used as a seed: XXH3
 * takes 64 bits of seed and half of the chain would be lost.
 */
struct digest digest_chain(struct digest before, const void *bytes,
                           size_t n_bytes)
{
    XXH3_state_t state;

    (void)XXH3_128bits_reset(&state);
    (void)XXH3_128bits_update(&state, &before, sizeof(before));
    (void)XXH3_128bits_update(&state, bytes, n_bytes);
    return from_xxh(XXH3_128bits_digest(&state));
}

struct digest digest_tokens(struct digest before, const uint32_t *token,
                            size_t n_token)
{
    for (size_t i = 0; i < n_token; i++) {
        unsigned char link[sizeof(before) + sizeof(*token)];

        memcpy(link, &before, sizeof(before));
        memcpy(link + sizeof(before), &token[i], sizeof(*token));
        before = digest_bytes(link, sizeof(link));
    }
    return before;
}

uint64_t digest_64(const void *bytes, size_t n_bytes)
{
    return XXH3_64bits(bytes, n_bytes);
}

bool digest_equal(struct digest a, struct digest b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

static void put_hex(char *out, uint64_t value)
{
    for (int i = 15; i >= 0; i--) {
        out[i] = "0123456789abcdef"[value & 15];
        value >>= 4;
    }
}

void digest_format(struct digest d, char out[DIGEST_TEXT_SIZE])
{
    put_hex(out, d.hi);
    put_hex(out + 16, d.lo);
    out[32] = 0;
}

static bool read_hex(const char *text, uint64_t *out)
{
    uint64_t value = 0;

    for (int i = 0; i < 16; i++) {
        char c = text[i];
        unsigned digit;

        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a') + 10u;
        else if (c >= 'A' && c <= 'F')
            digit = (unsigned)(c - 'A') + 10u;
        else
            return false; /* the final NUL of a short text ends here */
        value = value << 4 | digit;
    }
    *out = value;
    return true;
}

bool digest_parse(const char *text, struct digest *out)
{
    struct digest d;

    if (!read_hex(text, &d.hi) || !read_hex(text + 16, &d.lo) || text[32] != 0)
        return false;
    *out = d;
    return true;
}
