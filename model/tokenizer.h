#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H
/*
 * tokenizer.json: byte-level BPE with NFC, the split patterns of GPT-2,
 * Qwen2 / Qwen3.5 and Llama 3 (any Split regex that pcre2 takes), added and
 * special tokens. Immutable after loading, so any thread may use it at once.
 *
 * Order as in Hugging Face tokenizers: added tokens are cut out of the text
 * first (those with "normalized": false before NFC, the others after), the
 * pieces between are normalised, split by the pattern, mapped byte by byte to
 * GPT-2's visible alphabet and merged by rank, leftmost first among equals.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_TOKEN_MAX 1048576u    /* vocabulary */
#define TOKENIZER_OPENING_MAX 4u        /* tokens before a text: BOS */
#define TOKENIZER_PIECE_BYTES_MAX 4096u /* longest one token */
#define TOKENIZER_TEXT_MAX (1u << 30)   /* bytes of one text */

struct tokenizer;

/*
 * Read DIR/tokenizer.json (and tokenizer_config.json's chat tokens if there).
 *   NOT_FOUND         no tokenizer.json
 *   PERMISSION_DENIED a file may not be read
 *   INVALID_ARGUMENT  not JSON, merges of unknown tokens, ids twice, a byte
 *                     without a token, a token or list above its limit, a
 *                     regex that does not compile: names the file and the place
 *   UNIMPLEMENTED     another model than BPE, another normaliser than NFC or
 *                     none, another pre-tokeniser than Split / ByteLevel,
 *                     another decoder than ByteLevel, a regex that Oniguruma
 *                     (for which it was written) reads otherwise than pcre2
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status tokenizer_load(const char *dir, struct tokenizer **out);
void tokenizer_destroy(struct tokenizer *tokenizer);

/* One more than the highest id. */
uint32_t tokenizer_n_token(const struct tokenizer *tokenizer);

/* A growing list of ids; zero-initialised, ids_release() frees it. */
struct ids {
    uint32_t *id;
    size_t n, capacity;
};
void ids_release(struct ids *ids);

/* RESOURCE_EXHAUSTED  more than max_token ids in the list, or no memory */
MUST_CHECK enum status ids_append(struct ids *ids, const uint32_t *id, size_t n,
                                  size_t max_token);

/*
 * Append the ids of n_bytes of UTF-8 to *out. With parse_special false the
 * text of special tokens ("<|im_start|>") is plain text: what untrusted text
 * needs. Time is O(n log n) also for hostile text (one piece of 10 MB).
 * The post-processor's opening (BOS) is not added: a text may stand anywhere
 * in a session, and only its start has one: tokenizer_opening().
 *   INVALID_ARGUMENT    not UTF-8: names the byte offset; or the file's split
 *                       pattern exceeds its bounds on this text
 *   RESOURCE_EXHAUSTED  more than max_token ids in *out (it then holds what it
 *                       held), more than TOKENIZER_TEXT_MAX bytes, no memory
 */
MUST_CHECK enum status tokenizer_encode(const struct tokenizer *tokenizer,
                                        const char *text, size_t n_bytes,
                                        bool parse_special, size_t max_token,
                                        struct ids *out);

/*
 * The tokens that the post-processor puts before a text: what a session of
 * this model begins with, Llama 3's <|begin_of_text|> say. *out_n may be 0.
 */
const uint32_t *tokenizer_opening(const struct tokenizer *tokenizer,
                                  uint32_t *out_n);

/* Id of a special or added token by its exact text; false if there is none. */
bool tokenizer_special(const struct tokenizer *tokenizer, const char *text,
                       uint32_t *out);
bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id);

/*
 * Bytes of one token, not NUL-terminated, borrowed; NULL for an id that no
 * token has. A token's bytes need not be whole UTF-8 characters.
 */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t id,
                            size_t *out_n_bytes);

/*
 * Incremental detokenisation: never emits half a character. A byte that can
 * no longer become valid UTF-8 is emitted as U+FFFD, as Hugging Face's decoder
 * does (one U+FFFD per maximal invalid part, as in Rust's from_utf8_lossy).
 * Zero-initialised; one per reply, not thread-safe.
 */
struct detokenizer {
    uint8_t held[4]; /* first bytes of a character that is not yet whole */
    uint8_t n_held;
};
#define DETOKENIZER_OUT_MAX (3u * TOKENIZER_PIECE_BYTES_MAX + 16u)

/*
 * Bytes of text that token `id` completes, written to out (at least
 * DETOKENIZER_OUT_MAX bytes), not NUL-terminated; 0 when it ends inside a
 * character. Special tokens give nothing when skip_special. Unknown ids give
 * nothing.
 */
size_t detokenizer_push(struct detokenizer *detokenizer,
                        const struct tokenizer *tokenizer, uint32_t id,
                        bool skip_special, char *out);

/* What is still held, as U+FFFD: the text's end. out as above. */
size_t detokenizer_finish(struct detokenizer *detokenizer, char *out);
#endif
