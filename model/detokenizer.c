#include "model/tokenizer_parts.h"

#include <assert.h>
#include <string.h>

static const char REPLACEMENT[3] = {'\xef', '\xbf', '\xbd'}; /* U+FFFD */

size_t detokenizer_push(struct detokenizer *detokenizer,
                        const struct tokenizer *tokenizer, uint32_t id,
                        bool skip_special, char *out)
{
    uint8_t bytes[sizeof(detokenizer->held) + TOKENIZER_PIECE_BYTES_MAX];
    size_t n_out = 0, n_token = 0, n, length;
    const char *token = tokenizer_bytes(tokenizer, id, &n_token);

    if (!token || (skip_special && tokenizer_is_special(tokenizer, id)))
        return 0;
    assert(n_token <= TOKENIZER_PIECE_BYTES_MAX);
    n = detokenizer->n_held;
    memcpy(bytes, detokenizer->held, n);
    memcpy(bytes + n, token, n_token);
    n += n_token;
    detokenizer->n_held = 0;

    for (size_t at = 0; at < n; at += length) {
        switch (utf8_next(bytes + at, n - at, &length)) {
        case UTF8_WHOLE:
            memcpy(out + n_out, bytes + at, length);
            n_out += length;
            break;
        case UTF8_INVALID:
            memcpy(out + n_out, REPLACEMENT, sizeof(REPLACEMENT));
            n_out += sizeof(REPLACEMENT);
            break;
        case UTF8_PARTIAL:
            memcpy(detokenizer->held, bytes + at, length);
            detokenizer->n_held = (uint8_t)length;
            break;
        }
    }
    return n_out;
}

size_t detokenizer_finish(struct detokenizer *detokenizer, char *out)
{
    if (!detokenizer->n_held)
        return 0;
    detokenizer->n_held = 0;
    memcpy(out, REPLACEMENT, sizeof(REPLACEMENT));
    return sizeof(REPLACEMENT);
}
