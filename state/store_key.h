#ifndef STATE_STORE_KEY_H
#define STATE_STORE_KEY_H
/*
 * Keys of journal and snapshots: a letter, the session's uid and numbers, all
 * big-endian, so that the order of bytes is the order of numbers and a session
 * is one range.
 */
#include "state/session.h"

#include <string.h>

#define KEY_SIZE 32u

struct key {
    size_t n;
    unsigned char bytes[KEY_SIZE];
};

static inline void key_add_number(struct key *key, uint64_t value,
                                  unsigned n_bytes)
{
    for (unsigned i = n_bytes; i-- > 0;)
        key->bytes[key->n++] = (unsigned char)(value >> (8 * i));
}

static inline struct key key_of(char letter, struct uid uid)
{
    struct key key = {.n = 1, .bytes = {(unsigned char)letter}};

    key_add_number(&key, uid.hi, 8);
    key_add_number(&key, uid.lo, 8);
    return key;
}

static inline struct key key_at(char letter, struct uid uid, uint64_t position)
{
    struct key key = key_of(letter, uid);

    key_add_number(&key, position, 8);
    return key;
}

/* Just above every key that begins with `key`, whose bytes are not all 255. */
static inline struct key key_after(struct key key)
{
    while (++key.bytes[key.n - 1] == 0)
        key.n--;
    return key;
}

static inline uint64_t key_number(const unsigned char *bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++)
        value = value << 8 | bytes[i];
    return value;
}
#endif
