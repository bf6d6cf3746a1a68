/*
 * Text for the default model's tokenizer. The law: what is decoded encodes and
 * decodes to itself (NFC of NFC is NFC), and a refusal says why.
 */
#include "model/tokenizer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *tokenizer;

static void drop_tokenizer(void)
{
    tokenizer_destroy(tokenizer);
}

/* Bytes of the text that the ids stand for; *out is freed by the caller. */
static size_t decode(const struct ids *ids, char **out)
{
    struct detokenizer detokenizer = {0};
    size_t n = 0, n_room = DETOKENIZER_OUT_MAX, n_bytes;

    for (size_t i = 0; i < ids->n; i++) {
        assert(tokenizer_bytes(tokenizer, ids->id[i], &n_bytes));
        n_room += 3 * n_bytes;
    }
    *out = malloc(n_room);
    assert(*out);
    for (size_t i = 0; i < ids->n; i++)
        n += detokenizer_push(&detokenizer, tokenizer, ids->id[i], false,
                              *out + n);
    assert(detokenizer_finish(&detokenizer, *out + n) == 0);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ids first = {0}, second = {0};
    char *once, *twice;
    size_t n;

    if (!tokenizer) {
        if (tokenizer_load("assets/models/godwit-tiny", &tokenizer)) {
            fprintf(stderr, "%s\n", status_reason());
            exit(2);
        }
        (void)atexit(drop_tokenizer);
    }
    for (int parse_special = 0; parse_special < 2; parse_special++) {
        first.n = second.n = 0;
        if (tokenizer_encode(tokenizer, (const char *)data, size, parse_special,
                             SIZE_MAX, &first) != STATUS_OK) {
            assert(first.n == 0 && strstr(status_reason(), "not UTF-8"));
            break;
        }
        n = decode(&first, &once);
        assert(tokenizer_encode(tokenizer, once, n, parse_special, SIZE_MAX,
                                &second) == STATUS_OK);
        assert(decode(&second, &twice) == n && memcmp(once, twice, n) == 0);
        free(once);
        free(twice);
    }
    ids_release(&first);
    ids_release(&second);
    return 0;
}
