/*
 * Any bytes as any request: the first byte says of which method, the rest is
 * the message. Nothing may crash, leak, or yield a command whose texts are not
 * terminated or whose tokens are not of the vocabulary.
 */
#include "rpc/convert.h"
#include "rpc/reflection.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB 4096u
#define CONTEXT 2048u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_command(const struct command *command)
{
    const struct generate_command *g = &command->generate;

    if (command->kind != COMMAND_GENERATE)
        return;
    assert(memchr(g->session, 0, sizeof(g->session)));
    assert(memchr(g->request_id, 0, sizeof(g->request_id)));
    assert(g->n_token <= CONTEXT);
    for (uint64_t i = 0; i < g->n_token; i++)
        assert(g->token[i] < VOCAB);
    assert(g->sampling.n_stop <= STOP_MAX && g->sampling.n_bias <= 300);
}

static void answer_reflection(const uint8_t *data, size_t size)
{
    static struct reflection *reflection;
    struct packed out = {0};

    if (!reflection && reflection_create(&reflection))
        abort();
    if (!reflection_answer(reflection, data, size, &out))
        free(out.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizer;
    struct convert_node node = {.model_name = "godwit-tiny",
                                .n_vocab = VOCAB,
                                .n_context = CONTEXT,
                                .clock = clock_real()};
    enum method_kind kind;

    if (!tokenizer && tokenizer_load("assets/models/godwit-tiny", &tokenizer))
        abort();
    node.tokenizer = tokenizer;
    if (size == 0)
        return 0;
    kind = (enum method_kind)(data[0] % METHOD_KIND_COUNT);
    if (method_is_engine(kind)) {
        struct command *command = NULL;
        struct note note;
        if (!convert_command(&node, kind, data + 1, size - 1, &command,
                             &note)) {
            check_command(command);
            arena_destroy(command->arena);
        }
    } else if (kind == METHOD_COUNT_TOKENS || kind == METHOD_TOKENIZE ||
               kind == METHOD_DETOKENIZE) {
        struct packed out = {0};
        if (!convert_local(&node, kind, data + 1, size - 1, &out))
            free(out.bytes);
    } else {
        answer_reflection(data + 1, size - 1);
    }
    return 0;
}
