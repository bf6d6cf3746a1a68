#ifndef MODEL_TOKENIZER_PARTS_H
#define MODEL_TOKENIZER_PARTS_H
/*
 * Inside of the tokenizer, shared by tokenizer*.c and detokenizer.c only:
 * loading fills these structs once and nothing changes them afterwards.
 */
#include "base/json.h"
#include "model/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define TOKENIZER_STAGE_MAX 16u        /* splits in one pre-tokeniser */
#define TOKENIZER_RANK_NONE UINT32_MAX /* no such pair */
#define TOKENIZER_ABSENT UINT32_MAX    /* offset of an id without a token */

/*
 * Open addressing from a 64-bit key to two numbers. Serves the merges,
 * (left id, right id) to (rank, merged id), and the tries of added tokens,
 * (node, byte) to (next node, 0).
 */
struct pair_slot {
    uint64_t key;
    uint32_t first, second;
};
struct pair_map {
    struct pair_slot *slot;
    uint32_t n, capacity; /* a power of two, at most half full */
};

/* NULL when the key is absent. */
const struct pair_slot *pair_map_find(const struct pair_map *map, uint64_t key);
/* A key that is there gets the new numbers. RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status pair_map_put(struct pair_map *map, uint64_t key,
                                    uint32_t first, uint32_t second);
void pair_map_release(struct pair_map *map);

struct token {
    uint32_t offset; /* into the pool, or TOKENIZER_ABSENT */
    uint32_t n_bytes;
    bool is_special, is_added;
    bool is_plain; /* of the vocabulary: pieces of text may be this token */
};

struct added {
    char *text;                         /* owned */
    uint32_t n_bytes, n_normalised, id; /* bytes as given, and in NFC */
    bool is_special, is_single_word, strips_left, strips_right, is_normalised;
};

/* Longest-match trie over bytes. Node 0 is the root. */
struct trie {
    struct pair_map edge;
    uint32_t *leaf; /* [n_node] 1 + index into `added`, 0: none; owned */
    uint32_t n_node, capacity;
    bool starts[256]; /* a token begins with this byte */
};

struct stage {
    pcre2_code *code;
    bool drops_matches, drops_gaps; /* behaviour "Removed", and inverted */
};

struct tokenizer {
    struct token *token; /* [n_token]; owned */
    uint32_t n_token, token_capacity;
    uint8_t *pool; /* bytes of all tokens; owned */
    size_t n_pool, pool_capacity;
    uint32_t longest; /* bytes of the longest plain token */

    uint32_t *by_bytes; /* hash of plain tokens' bytes to 1 + id; owned */
    uint32_t by_bytes_capacity;

    struct pair_map merges;
    uint32_t byte_id[256];
    bool ignores_merges; /* a piece that is a token is not merged */

    struct added *added; /* owned */
    uint32_t n_added, added_capacity;
    struct trie raw, normalised; /* before and after NFC */

    bool has_nfc;
    struct stage stage[TOKENIZER_STAGE_MAX];
    uint32_t n_stage;
    bool has_prefix_space; /* a piece gets a leading space ... */
    uint32_t prefix_stage; /* ... in front of this stage */

    uint32_t opening[TOKENIZER_OPENING_MAX]; /* what a text begins with */
    uint32_t n_opening;
};

/* --- the post-processor (tokenizer_opening.c) --- */

/* INVALID_ARGUMENT, UNIMPLEMENTED  as tokenizer_load() */
MUST_CHECK enum status opening_read(struct tokenizer *tokenizer,
                                    const json_t *processor);

/* --- UTF-8 and NFC (tokenizer_text.c) --- */

enum utf8_part {
    UTF8_WHOLE,   /* a character of *out_n bytes */
    UTF8_INVALID, /* *out_n bytes that can start no character */
    UTF8_PARTIAL, /* all *out_n bytes begin a character that goes on */
};
/* What stands at the start of n > 0 bytes, cut as Rust's from_utf8_lossy. */
enum utf8_part utf8_next(const uint8_t *bytes, size_t n, size_t *out_n);

/* INVALID_ARGUMENT  not UTF-8: names the byte offset */
MUST_CHECK enum status utf8_check(const char *text, size_t n);

/* White_Space, and \w as Rust's regex has it. */
bool codepoint_is_space(int32_t codepoint);
bool codepoint_is_word(int32_t codepoint);
/* Codepoint that begins at, or ends before, `at` of valid UTF-8. */
int32_t codepoint_at(const char *text, size_t at, size_t *out_n);
int32_t codepoint_before(const char *text, size_t at, size_t *out_n);

/*
 * NFC of valid UTF-8 in linear time. *out is NULL when the text is NFC
 * already as far as a glance tells, else a new string that the caller frees.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status text_nfc(const char *text, size_t n, char **out,
                                size_t *out_n);

/* --- Split patterns (tokenizer_pattern.c) --- */

extern const char *const PATTERN_GPT2;

/*
 * Compile a pattern written for Oniguruma. `where` is named in messages.
 *   INVALID_ARGUMENT    does not compile
 *   UNIMPLEMENTED       means something else to PCRE2
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status pattern_compile(const char *where, const char *pattern,
                                       bool is_literal, pcre2_code **out);

/* --- Merging (tokenizer_bpe.c) --- */

/* Working memory of one encode call. */
struct bpe {
    uint32_t *id, *before, *after; /* [capacity] symbols of a long piece */
    size_t capacity;
    uint64_t *heap; /* rank << 32 | position */
    size_t n_heap;
};
void bpe_release(struct bpe *bpe);

/*
 * Append the ids of one piece.
 *   RESOURCE_EXHAUSTED  more than max_token ids in *out, or no memory
 */
MUST_CHECK enum status bpe_encode(const struct tokenizer *tokenizer,
                                  struct bpe *bpe, const uint8_t *piece,
                                  size_t n, size_t max_token, struct ids *out);

/* --- Vocabulary (tokenizer_vocab.c) --- */

/*
 * Bytes that a token's text stands for in GPT-2's visible alphabet. `out` has
 * at least strlen(text) bytes. False when a letter is outside the alphabet:
 * out then holds the text as it is, as Hugging Face decodes it.
 */
bool alphabet_bytes(const char *text, uint8_t *out, size_t *out_n);

/*
 * Make room for ids up to `max_id`; give id its text. A text is the same as
 * before or new: an id has one token.
 *   INVALID_ARGUMENT    id or text too large, id given twice
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status vocab_set(struct tokenizer *tokenizer, const char *where,
                                 uint64_t id, const char *text);

/*
 * Index the tokens set so far for vocab_find() and know the 256 bytes.
 *   INVALID_ARGUMENT    a byte has no token
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status vocab_index(struct tokenizer *tokenizer,
                                   const char *where);

/* Id of the plain token of exactly these bytes; false if there is none. */
bool vocab_find(const struct tokenizer *tokenizer, const uint8_t *bytes,
                size_t n, uint32_t *out);

/*
 * Add a text to a trie; leaf is 1 + its index.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status trie_add(struct trie *trie, const char *text, size_t n,
                                uint32_t leaf);
#endif
