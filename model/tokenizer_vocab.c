#include "model/tokenizer_parts.h"

#include "base/digest.h"

#include <stdlib.h>
#include <string.h>

/*
 * GPT-2's bytes_to_unicode: visible Latin-1 letters stand for themselves, the
 * other 68 bytes, in order, for U+0100 and on. -1: outside the alphabet.
 */
static int byte_of(int32_t letter)
{
    if ((letter >= 0x21 && letter <= 0x7e) ||
        (letter >= 0xa1 && letter <= 0xff && letter != 0xad))
        return letter;
    if (letter < 0x100 || letter > 0x143)
        return -1;
    if (letter <= 0x120)
        return letter - 0x100; /* 0x00 to 0x20 */
    if (letter <= 0x142)
        return letter - 0x121 + 0x7f; /* 0x7f to 0xa0 */
    return 0xad;
}

bool alphabet_bytes(const char *text, uint8_t *out, size_t *out_n)
{
    const size_t n = strlen(text);

    *out_n = 0;
    for (size_t at = 0, length; at < n; at += length) {
        const int byte = byte_of(codepoint_at(text, at, &length));

        if (byte < 0) {
            for (*out_n = 0; *out_n < n; (*out_n)++)
                out[*out_n] = (uint8_t)text[*out_n];
            return false;
        }
        out[(*out_n)++] = (uint8_t)byte;
    }
    return true;
}

static enum status no_memory(const char *where)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "%s: no memory for the vocabulary", where);
}

static enum status grow_tokens(struct tokenizer *tokenizer, const char *where,
                               uint32_t n_token)
{
    struct token *grown;

    if (n_token <= tokenizer->n_token)
        return STATUS_OK;
    /* Ids come in any order, so room is doubled and the end kept apart. */
    if (n_token > tokenizer->token_capacity) {
        uint32_t capacity = tokenizer->token_capacity;

        capacity = capacity ? capacity : 512;
        while (capacity < n_token)
            capacity *= 2;
        grown = realloc(tokenizer->token, capacity * sizeof(*grown));
        if (!grown)
            return no_memory(where);
        tokenizer->token = grown;
        tokenizer->token_capacity = capacity;
    }
    for (uint32_t i = tokenizer->n_token; i < n_token; i++)
        tokenizer->token[i] = (struct token){.offset = TOKENIZER_ABSENT};
    tokenizer->n_token = n_token;
    return STATUS_OK;
}

enum status vocab_set(struct tokenizer *tokenizer, const char *where,
                      uint64_t id, const char *text)
{
    const size_t n_text = strlen(text);
    struct token *token;
    uint8_t *bytes;
    enum status st;
    bool is_plain;
    size_t n = 0;

    if (id >= TOKENIZER_TOKEN_MAX || n_text > TOKENIZER_PIECE_BYTES_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: token '%.40s' has id %lu and %zu bytes, "
                           "expected ids below %u and at most %u bytes",
                           where, text, id, n_text, TOKENIZER_TOKEN_MAX,
                           TOKENIZER_PIECE_BYTES_MAX);
    st = grow_tokens(tokenizer, where, (uint32_t)id + 1);
    if (st)
        return st;
    if (tokenizer->pool_capacity - tokenizer->n_pool < n_text) {
        const size_t capacity = 2 * tokenizer->pool_capacity + n_text + 4096;

        bytes = realloc(tokenizer->pool, capacity);
        if (!bytes)
            return no_memory(where);
        tokenizer->pool = bytes;
        tokenizer->pool_capacity = capacity;
    }
    bytes = tokenizer->pool + tokenizer->n_pool;
    is_plain = alphabet_bytes(text, bytes, &n);
    token = &tokenizer->token[id];
    if (token->offset != TOKENIZER_ABSENT) {
        if (token->n_bytes == n && token->is_plain == is_plain &&
            memcmp(tokenizer->pool + token->offset, bytes, n) == 0)
            return STATUS_OK;
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: token '%.40s' has id %lu, which another token "
                           "has, expected an id of its own",
                           where, text, id);
    }
    *token = (struct token){.offset = (uint32_t)tokenizer->n_pool,
                            .n_bytes = (uint32_t)n,
                            .is_plain = is_plain};
    tokenizer->n_pool += n;
    return STATUS_OK;
}

static bool token_is(const struct tokenizer *tokenizer, uint32_t id,
                     const uint8_t *bytes, size_t n)
{
    const struct token *token = &tokenizer->token[id];

    return token->n_bytes == n &&
           memcmp(tokenizer->pool + token->offset, bytes, n) == 0;
}

bool vocab_find(const struct tokenizer *tokenizer, const uint8_t *bytes,
                size_t n, uint32_t *out)
{
    const uint32_t mask = tokenizer->by_bytes_capacity - 1;
    uint32_t i;

    if (!tokenizer->by_bytes_capacity || n > TOKENIZER_PIECE_BYTES_MAX)
        return false;
    for (i = (uint32_t)digest_64(bytes, n) & mask; tokenizer->by_bytes[i];
         i = (i + 1) & mask) {
        const uint32_t id = tokenizer->by_bytes[i] - 1;

        if (token_is(tokenizer, id, bytes, n)) {
            *out = id;
            return true;
        }
    }
    return false;
}

enum status vocab_index(struct tokenizer *tokenizer, const char *where)
{
    uint32_t capacity = 1024, i;

    while (capacity < 2 * tokenizer->n_token)
        capacity *= 2;
    tokenizer->by_bytes = calloc(capacity, sizeof(*tokenizer->by_bytes));
    if (!tokenizer->by_bytes)
        return no_memory(where);
    tokenizer->by_bytes_capacity = capacity;
    for (uint32_t id = 0; id < tokenizer->n_token; id++) {
        const struct token *token = &tokenizer->token[id];

        if (token->offset == TOKENIZER_ABSENT || !token->is_plain)
            continue;
        if (token->n_bytes > tokenizer->longest)
            tokenizer->longest = token->n_bytes;
        i = (uint32_t)digest_64(tokenizer->pool + token->offset,
                                token->n_bytes) &
            (capacity - 1);
        while (tokenizer->by_bytes[i])
            i = (i + 1) & (capacity - 1);
        tokenizer->by_bytes[i] = id + 1;
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        const uint8_t one = (uint8_t)byte;

        if (!vocab_find(tokenizer, &one, 1, &tokenizer->byte_id[byte]))
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: model.vocab has no token for byte 0x%02x, "
                               "expected all 256 of GPT-2's alphabet",
                               where, byte);
    }
    return STATUS_OK;
}

/* Node behind `node` by `byte`, made when there is none. */
static enum status trie_step(struct trie *trie, uint32_t node, uint8_t byte,
                             uint32_t *out)
{
    const uint64_t key = (uint64_t)node << 8 | byte;
    const struct pair_slot *slot = pair_map_find(&trie->edge, key);
    uint32_t *grown;

    if (slot) {
        *out = slot->first;
        return STATUS_OK;
    }
    if (trie->n_node >= trie->capacity) {
        const uint32_t capacity = 2 * trie->capacity + 64;

        grown = realloc(trie->leaf, capacity * sizeof(*grown));
        if (!grown)
            return no_memory("added tokens");
        grown[0] = 0; /* the root is no token */
        trie->leaf = grown;
        trie->capacity = capacity;
    }
    trie->leaf[trie->n_node] = 0;
    *out = trie->n_node;
    return pair_map_put(&trie->edge, key, trie->n_node++, 0);
}

enum status trie_add(struct trie *trie, const char *text, size_t n,
                     uint32_t leaf)
{
    uint32_t node = 0;
    enum status st;

    if (!trie->n_node)
        trie->n_node = 1; /* the root */
    for (size_t i = 0; i < n; i++) {
        st = trie_step(trie, node, (uint8_t)text[i], &node);
        if (st)
            return st;
    }
    trie->leaf[node] = leaf;
    trie->starts[(uint8_t)text[0]] = true;
    return STATUS_OK;
}
