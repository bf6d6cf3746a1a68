#include "ops/bench_prompt.h"

#include "godwit/v1/generation.pb-c.h"
#include "ops/bench_plan.h"

#include <stdlib.h>
#include <string.h>

static const char *const WORD[] = {
    " the",   " ship",  " and",    " water", " was",   " long",  " night",
    " of",    " wind",  " over",   " white", " bird",  " that",  " flew",
    " with",  " north", " for",    " many",  " days",  " house", " where",
    " old",   " man",   " said",   " had",   " come",  " from",  " hills",
    " great", " river", " under",  " stars", " but",   " no",    " light",
    " could", " be",    " seen",   " until", " their", " hands", " were",
    " cold",  " again", " before", " they",  " knew",  " it"};
enum { N_WORD = sizeof(WORD) / sizeof(WORD[0]) };

enum status bench_words_fetch(struct ctl *ctl, struct bench_words *out)
{
    Godwit__V1__TokenizeRequest request;
    Godwit__V1__TokenizeResponse *answer;
    ProtobufCMessage *message;
    struct bench_words words = {0};
    char text[16 * N_WORD];
    size_t n = 0;
    enum status st;

    for (size_t i = 0; i < N_WORD; i++) {
        memcpy(text + n, WORD[i], strlen(WORD[i]));
        n += strlen(WORD[i]);
    }
    godwit__v1__tokenize_request__init(&request);
    request.input_case = GODWIT__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    request.text.data = (uint8_t *)text;
    request.text.len = n;
    st = ctl_unary(ctl, "/godwit.v1.GenerationService/Tokenize", &request.base,
                   &godwit__v1__tokenize_response__descriptor, &message);
    if (st)
        return st;
    answer = (Godwit__V1__TokenizeResponse *)message;
    words.n_id = answer->n_token_ids;
    words.id = calloc(words.n_id ? words.n_id : 1, sizeof(*words.id));
    if (words.n_id == 0)
        st = status_fail(STATUS_INTERNAL, "the node gives no ids for a text");
    else if (!words.id)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for words");
    else
        memcpy(words.id, answer->token_ids, words.n_id * sizeof(*words.id));
    protobuf_c_message_free_unpacked(message, NULL);
    if (st) {
        free(words.id);
        return st;
    }
    *out = words;
    return STATUS_OK;
}

void bench_words_release(struct bench_words *words)
{
    free(words->id);
    memset(words, 0, sizeof(*words));
}

/* Where the draws of the shared part, or of a prompt's own, begin. */
static uint64_t first_state(const struct bench_prompt *prompt, bool is_shared)
{
    uint64_t state = prompt->seed;

    state = bench_random(&state);
    return is_shared ? state : state + prompt->number + 1;
}

uint32_t *bench_prompt_ids(const struct bench_words *words,
                           const struct bench_prompt *prompt)
{
    uint64_t shared = first_state(prompt, true);
    uint64_t own = first_state(prompt, false);
    uint32_t *id = calloc(prompt->n_token, sizeof(*id));

    own = bench_random(&own); /* neighbours' numbers are no neighbours */
    for (uint32_t i = 0; id && i < prompt->n_token; i++)
        id[i] = words->id[bench_random_below(
            i < prompt->n_shared ? &shared : &own, (uint32_t)words->n_id)];
    return id;
}

char *bench_prompt_text(const struct bench_words *words,
                        const struct bench_prompt *prompt)
{
    uint64_t shared = first_state(prompt, true);
    uint64_t own = first_state(prompt, false);
    double per_token = (double)N_WORD / (double)words->n_id;
    size_t n_word = (size_t)(prompt->n_token * per_token) + 1, n = 0;
    size_t n_shared = (size_t)(prompt->n_shared * per_token);
    char *text = malloc(n_word * 16);

    own = bench_random(&own);
    for (size_t i = 0; text && i < n_word; i++) {
        const char *word =
            WORD[bench_random_below(i < n_shared ? &shared : &own, N_WORD)];

        memcpy(text + n, word, strlen(word) + 1);
        n += strlen(word);
    }
    return text;
}
