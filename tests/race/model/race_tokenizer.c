/*
 * One tokenizer, many threads at once: each must get the ids that one thread
 * alone gets, and TSan must see no race (PCRE2's compiled code is shared).
 */
#include "model/tokenizer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_THREAD = 4, N_ROUND = 300 };

static const char TEXT[] =
    "It's 2026: the cafe\u0301 costs 12 \u20ac!\n\tdef f(x):\r\n"
    "<|im_start|>user\n\U0001f600 \u65e5\u672c\u8a9e<|im_end|> aaaaaaaaaaaaaaaa"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    "a";

static struct tokenizer *tokenizer;
static struct ids expected;

static void *encode_often(void *unused)
{
    static char wrong[] = "wrong";
    char out[DETOKENIZER_OUT_MAX];

    (void)unused;
    for (int round = 0; round < N_ROUND; round++) {
        struct detokenizer detokenizer = {0};
        struct ids ids = {0};
        bool is_same;

        if (tokenizer_encode(tokenizer, TEXT, sizeof(TEXT) - 1, true, 4096,
                             &ids))
            return wrong;
        is_same = ids.n == expected.n &&
                  memcmp(ids.id, expected.id, ids.n * sizeof(*ids.id)) == 0;
        for (size_t i = 0; i < ids.n; i++)
            (void)detokenizer_push(&detokenizer, tokenizer, ids.id[i], true,
                                   out);
        ids_release(&ids);
        if (!is_same)
            return wrong;
    }
    return NULL;
}

int main(void)
{
    pthread_t thread[N_THREAD];
    int failed = 0;
    void *result;

    if (tokenizer_load("assets/models/godwit-tiny", &tokenizer) ||
        tokenizer_encode(tokenizer, TEXT, sizeof(TEXT) - 1, true, 4096,
                         &expected)) {
        fprintf(stderr, "%s\n", status_reason());
        return 1;
    }
    for (int i = 0; i < N_THREAD; i++)
        if (pthread_create(&thread[i], NULL, encode_often, NULL))
            return 1;
    for (int i = 0; i < N_THREAD; i++) {
        (void)pthread_join(thread[i], &result);
        failed |= result != NULL;
    }
    ids_release(&expected);
    tokenizer_destroy(tokenizer);
    printf("%d threads, %d rounds: %s\n", N_THREAD, N_ROUND,
           failed ? "ids differ" : "same ids");
    return failed;
}
