/*
 * tokenizer.json, a NUL, and a text that it encodes when it loads. The law:
 * text comes back as valid UTF-8 and never more ids than were allowed.
 */
#include "model/tokenizer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOKEN_LIMIT 4096u

static char dir[] = "/tmp/godwit-fuzz-XXXXXX";
static char path[64];

static void drop_dir(void)
{
    (void)unlink(path);
    (void)rmdir(dir);
}

static void write_input(const uint8_t *data, size_t size)
{
    FILE *file;

    if (!path[0]) {
        if (!mkdtemp(dir))
            abort();
        (void)snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
        (void)atexit(drop_dir);
    }
    (void)unlink(path); /* truncating would wait for the disk */
    file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file))
        abort();
}

static void encode(const struct tokenizer *tokenizer, const char *text,
                   size_t n, bool parse_special)
{
    static char out[DETOKENIZER_OUT_MAX];
    struct detokenizer detokenizer = {0};
    struct ids ids = {0};

    if (tokenizer_encode(tokenizer, text, n, parse_special, TOKEN_LIMIT,
                         &ids) != STATUS_OK)
        assert(ids.n == 0);
    assert(ids.n <= TOKEN_LIMIT);
    for (size_t i = 0; i < ids.n; i++) {
        assert(ids.id[i] < tokenizer_n_token(tokenizer));
        assert(detokenizer_push(&detokenizer, tokenizer, ids.id[i], false,
                                out) <= sizeof(out));
    }
    (void)detokenizer_finish(&detokenizer, out);
    ids_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    const size_t n = end ? (size_t)(end - data) : size;
    struct tokenizer *tokenizer = NULL;

    write_input(data, n);
    if (tokenizer_load(dir, &tokenizer) != STATUS_OK) {
        assert(!tokenizer && status_reason()[0]);
        return 0;
    }
    if (end) {
        encode(tokenizer, (const char *)end + 1, size - n - 1, true);
        encode(tokenizer, (const char *)end + 1, size - n - 1, false);
    }
    tokenizer_destroy(tokenizer);
    return 0;
}
