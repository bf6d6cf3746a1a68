/*
 * Judges: requests written byte by byte (wire_writer.h) against a table of what
 * must be refused, with code, reason and field; commands compared with what the
 * .proto files say; token ids with assets/models/godwit-tiny's own tokenizer.
 */
#include "model/chat.h"
#include "rpc/convert.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/rpc/wire_writer.h"

#define CONTEXT 512u
#define VOCAB 4096u
#define WALL_MS 1700000000000ull

/* One test is one process: these are its own. */
static struct writer w, sub, subsub;
static struct clock_simulated simulated;
static struct tokenizer *tokenizer;

static struct convert_node node_of(void)
{
    if (!tokenizer)
        cr_assert_eq(tokenizer_load("assets/models/godwit-tiny", &tokenizer),
                     STATUS_OK);
    clock_simulated_init(&simulated);
    clock_simulated_advance(&simulated, WALL_MS * 1000);
    return (struct convert_node){.tokenizer = tokenizer,
                                 .model_name = "godwit-tiny",
                                 .n_vocab = VOCAB,
                                 .n_context = CONTEXT,
                                 .has_sampling = true,
                                 .temperature = 0.5f,
                                 .top_p = 0.75f,
                                 .top_k = 20,
                                 .durability = DURABILITY_LOCAL,
                                 .clock = &simulated.base};
}

static struct command *converts(enum method_kind kind, struct note *out_note)
{
    const struct convert_node node = node_of();
    struct command *command = NULL;
    struct note note;
    enum status st = convert_command(&node, kind, w.byte, w.n, &command,
                                     out_note ? out_note : &note);

    cr_assert_eq(st, STATUS_OK, "%s", status_reason());
    return command;
}

/* Refused with this code and field; out parameters stay as they were. */
static void refused(int line, enum method_kind kind, enum status code,
                    const char *reason, const char *field)
{
    const struct convert_node node = node_of();
    struct command *command = (struct command *)0x1;
    struct note note, before;
    struct packed packed = {(uint8_t *)0x1, 7};
    enum status st;

    memset(&note, 0x5A, sizeof(note));
    memset(&before, 0x5A, sizeof(before));
    st = method_is_engine(kind)
             ? convert_command(&node, kind, w.byte, w.n, &command, &note)
             : convert_local(&node, kind, w.byte, w.n, &packed);
    cr_expect_eq(st, code, "line %d: %s: %s", line, status_name(st),
                 st ? status_reason() : "");
    cr_expect_str_eq(status_cause()->field, field, "line %d: %s", line,
                     status_reason());
    if (reason)
        cr_expect_str_eq(status_cause()->reason, reason, "line %d: %s", line,
                         status_reason());
    cr_expect(status_reason()[0] != '\0', "line %d", line);
    cr_expect_eq((uintptr_t)command, 0x1, "line %d", line);
    cr_expect_eq((uintptr_t)packed.bytes, 0x1, "line %d", line);
    cr_expect_eq(memcmp(&note, &before, sizeof(note)), 0, "line %d", line);
    w.n = sub.n = subsub.n = 0;
}

#define REFUSED(kind, code, reason, field)                                     \
    refused(__LINE__, METHOD_##kind, STATUS_##code, reason, field)
#define INVALID(kind, field) REFUSED(kind, INVALID_ARGUMENT, NULL, field)

/* A Generate request that is fine but for what follows. */
static void begin(void)
{
    w.n = sub.n = subsub.n = 0;
    write_text(&w, 5, "hello");
}

static void bad_number(uint32_t field, uint64_t value, const char *name)
{
    char path[64];

    begin();
    write_number(&sub, field, value);
    write_message(&w, 6, &sub);
    (void)snprintf(path, sizeof(path), "sampling_params.%s", name);
    INVALID(GENERATE, path);
}

static void bad_float(uint32_t field, float value, const char *name)
{
    char path[64];

    begin();
    write_float(&sub, field, value);
    write_message(&w, 6, &sub);
    (void)snprintf(path, sizeof(path), "sampling_params.%s", name);
    INVALID(GENERATE, path);
}

Test(convert, sampling_out_of_range_is_refused_by_name)
{
    bad_float(1, -0.1f, "temperature");
    bad_float(1, NAN, "temperature");
    bad_float(1, INFINITY, "temperature");
    bad_float(2, 0, "top_p");
    bad_float(2, 1.01f, "top_p");
    bad_number(3, (uint64_t)-2, "top_k");
    bad_float(4, -1, "min_p");
    bad_float(5, 2.1f, "frequency_penalty");
    bad_float(6, -2.1f, "presence_penalty");
    bad_float(7, 0, "repetition_penalty");
    bad_number(8, 0, "max_tokens");
    bad_number(14, 21, "logprobs");
    bad_number(14, (uint64_t)-1, "logprobs");
    bad_number(11, VOCAB, "stop_token_ids");

    begin();
    write_number(&sub, 8, 3);
    write_number(&sub, 9, 4);
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.min_tokens");

    begin();
    for (unsigned i = 0; i <= STOP_MAX; i++)
        write_text(&sub, 10, "stop");
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.stop");

    begin();
    write_text(&sub, 10, "");
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.stop");

    begin();
    char longest[STOP_BYTES_MAX + 1];
    memset(longest, 's', STOP_BYTES_MAX);
    write_bytes(&sub, 10, longest, STOP_BYTES_MAX);
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.stop");

    begin();
    for (unsigned i = 0; i <= STOP_ID_MAX; i++)
        write_number(&sub, 11, i);
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.stop_token_ids");

    begin();
    for (unsigned i = 0; i <= LOGIT_BIAS_MAX; i++)
        write_bytes(&sub, 16, "", 0);
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.logit_bias");

    begin();
    write_number(&subsub, 1, VOCAB);
    write_message(&sub, 16, &subsub);
    write_message(&w, 6, &sub);
    INVALID(GENERATE, "sampling_params.logit_bias");
}

static void with_text(uint32_t field, const char *text)
{
    begin();
    write_text(&w, field, text);
}

static void bad_text(uint32_t field, const char *text, const char *name)
{
    with_text(field, text);
    INVALID(GENERATE, name);
}

Test(convert, a_bad_generate_request_is_refused_by_field)
{
    char longest[256];

    memset(longest, 'a', 255);
    longest[255] = '\0';
    bad_text(1, "a", "session");
    bad_text(1, "sessions/", "session");
    bad_text(1, "sessions/a b", "session");
    bad_text(1, "sessions/a/b", "session");
    bad_text(1, "sessions/\xC3\xA4", "session");
    memcpy(longest, "sessions/", 9);
    bad_text(1, longest, "session");
    bad_text(2, longest, "request_id");
    bad_text(2, "with space", "request_id");
    bad_text(2, "tab\t", "request_id");
    bad_text(11, longest, "tenant");
    bad_text(18, "qest", "policy");
    bad_text(18, "quest:step=3", "policy");
    with_text(3, "another");
    REFUSED(GENERATE, NOT_FOUND, "MODEL_NOT_FOUND", "model");

    begin();
    write_number(&w, 9, 5);
    INVALID(GENERATE, "durability");
    begin();
    write_number(&w, 9, 3);
    REFUSED(GENERATE, UNIMPLEMENTED, NULL, "durability");
    begin();
    write_number(&w, 7, 0);
    INVALID(GENERATE, "expected_position");
    begin();
    write_number(&w, 8, 0);
    INVALID(GENERATE, "resume_from_position");
    begin();
    write_number(&w, 16, 1);
    INVALID(GENERATE, "create_session");
    begin();
    write_message(&w, 19, &sub);
    INVALID(GENERATE, "reread");
    bad_text(20, "0", "gemfilter");
    bad_text(20, "64,pool=2", "gemfilter");

    begin();
    write_number(&sub, 2, 9);
    write_message(&w, 13, &sub);
    INVALID(GENERATE, "prefill.mode");
    begin();
    write_number(&subsub, 1, (uint64_t)-1);
    write_message(&sub, 3, &subsub);
    write_message(&w, 13, &sub);
    INVALID(GENERATE, "prefill.progress_interval");
    begin();
    write_number(&subsub, 2, 1000000000);
    write_message(&sub, 3, &subsub);
    write_message(&w, 13, &sub);
    INVALID(GENERATE, "prefill.progress_interval");
}

Test(convert, a_bad_input_is_refused_by_field)
{
    char text[4 * CONTEXT + 64];

    w.n = 0;
    REFUSED(GENERATE, INVALID_ARGUMENT, "EMPTY_INPUT", "input");
    write_text(&w, 5, "");
    REFUSED(GENERATE, INVALID_ARGUMENT, "EMPTY_INPUT", "input");
    write_message(&w, 4, &sub);
    REFUSED(GENERATE, INVALID_ARGUMENT, "EMPTY_INPUT", "input");
    write_text(&w, 5, "ab\xFF");
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "text");
    write_text(&w, 5, "\xED\xA0\x80"); /* a surrogate */
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "text");
    write_text(&w, 5, "\xC0\x80"); /* NUL, overlong */
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "text");
    write_text(&w, 5, "\xF4\x90\x80\x80"); /* above U+10FFFF */
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "text");

    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = "q7#Z"[i % 4];
    write_bytes(&w, 5, text, sizeof(text));
    REFUSED(GENERATE, INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED", "text");

    write_number(&sub, 2, VOCAB);
    write_message(&w, 4, &sub);
    INVALID(GENERATE, "tokenized.input_ids");
    for (unsigned i = 0; i <= CONTEXT; i++)
        write_number(&sub, 2, 1);
    write_message(&w, 4, &sub);
    REFUSED(GENERATE, INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED",
            "tokenized.input_ids");

    write_message(&w, 15, &sub);
    INVALID(GENERATE, "messages.messages");
    write_text(&subsub, 1, "emperor");
    write_text(&subsub, 2, "hi");
    write_message(&sub, 1, &subsub);
    write_message(&w, 15, &sub);
    INVALID(GENERATE, "messages.messages");
    write_text(&subsub, 1, "user");
    write_text(&subsub, 2, "\x80");
    write_message(&sub, 1, &subsub);
    write_message(&w, 15, &sub);
    INVALID(GENERATE, "messages.messages.content");
    for (unsigned i = 0; i <= MESSAGE_COUNT_MAX; i++)
        write_bytes(&sub, 1, "", 0);
    write_message(&w, 15, &sub);
    INVALID(GENERATE, "messages.messages");
}

Test(convert, bytes_that_are_no_message_are_refused)
{
    static const struct {
        const char *bytes;
        size_t n;
    } bad[] = {
        {"\x0A", 1},                                          /* no length */
        {"\x0A\x05xy", 4},                                    /* cut off */
        {"\x0B\x0C", 2},                                      /* a group */
        {"\x00\x00", 2},                                      /* field 0 */
        {"\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11}, /* 2^64 - 1 */
        {"\x38\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 12}, /* varint */
        {"\x0D\x01\x02\x03\x04", 5}, /* session as fixed32 */
        {"\x32\x02\x0A\x10", 4},     /* a bad message inside */
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        w.n = 0;
        write_raw(&w, bad[i].bytes, bad[i].n);
        refused((int)i, METHOD_GENERATE, STATUS_INVALID_ARGUMENT,
                "MALFORMED_MESSAGE", "");
    }
}

Test(convert, strings_are_checked_before_c_cuts_them)
{
    begin();
    write_bytes(&w, 1, "sessions/a\0b", 12);
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "session");
    begin();
    write_bytes(&w, 2, "r\xFE", 2);
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "request_id");
    begin();
    write_bytes(&sub, 10, "a\0", 2);
    write_message(&w, 6, &sub);
    REFUSED(GENERATE, INVALID_ARGUMENT, "INVALID_TEXT", "sampling_params.stop");
    write_bytes(&subsub, 1, "k\0", 2);
    write_message(&sub, 22, &subsub);
    write_message(&w, 2, &sub);
    REFUSED(CREATE_SESSION, INVALID_ARGUMENT, "INVALID_TEXT",
            "session.labels.key");
}

/* 30 bytes of struct and pointer for each 2 bytes of message. */
Test(convert, a_message_that_swells_is_stopped)
{
    w.n = sub.n = 0;
    while (sub.n + 2 <= WRITER_MAX - 16)
        write_bytes(&sub, 1, "", 0);
    write_message(&w, 15, &sub);
    REFUSED(GENERATE, RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", "");
}

Test(convert, a_bad_session_request_is_refused_by_field)
{
    char long_value[LABEL_VALUE_SIZE + 1];

    memset(long_value, 'v', LABEL_VALUE_SIZE);
    long_value[LABEL_VALUE_SIZE] = '\0';
    INVALID(GET_SESSION, "name");
    write_text(&w, 1, "sessions/..%2f");
    INVALID(GET_SESSION, "name");
    INVALID(DELETE_SESSION, "name");
    write_text(&w, 1, "sessions/a");
    write_text(&w, 2, "an etag that is no etag of ours");
    INVALID(DELETE_SESSION, "etag");
    INVALID(READ_TOKENS, "session");
    INVALID(CHECKPOINT_SESSION, "session");
    INVALID(CANCEL_GENERATION, "session");
    write_text(&w, 2, "not visible \x01");
    INVALID(CANCEL_GENERATION, "request_id");
    INVALID(APPEND_TOKENS, "session");
    write_text(&w, 1, "sessions/a");
    REFUSED(APPEND_TOKENS, INVALID_ARGUMENT, "EMPTY_INPUT", "input");
    write_text(&w, 1, "node");
    INVALID(GET_NODE, "name");

    write_text(&w, 1, "sessions/full");
    INVALID(CREATE_SESSION, "session_id");
    for (unsigned i = 0; i <= LABEL_MAX; i++)
        write_bytes(&sub, 22, "\x0A\x01k", 3);
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.labels");
    write_bytes(&sub, 22, "\x0A\x01k", 3);
    write_bytes(&sub, 22, "\x0A\x01k", 3);
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.labels");
    write_bytes(&sub, 22, "", 0);
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.labels");
    write_text(&subsub, 1, "k");
    write_text(&subsub, 2, long_value);
    write_message(&sub, 22, &subsub);
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.labels");
    write_bytes(&sub, 20, "\x08\x01", 2); /* 1970 */
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.expire_time");
    write_number(&subsub, 1, 253402300800); /* the year 10000 */
    write_message(&sub, 20, &subsub);
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.expire_time");
    write_bytes(&sub, 21, "", 0);
    write_message(&w, 2, &sub);
    INVALID(CREATE_SESSION, "session.ttl");

    INVALID(UPDATE_SESSION, "session");
    write_message(&w, 1, &sub);
    INVALID(UPDATE_SESSION, "session.name");
    write_text(&sub, 1, "sessions/a");
    write_message(&w, 1, &sub);
    write_text(&subsub, 1, "position");
    write_message(&w, 2, &subsub);
    INVALID(UPDATE_SESSION, "update_mask");
}

Test(convert, a_bad_list_request_is_refused_by_field)
{
    static const char *const filters[] = {
        "labels.a = 1", "name = \"sessions/a\"", "name = \"sessions/a*b*\"",
        "name = \"sessions/a b*\"", "name = \"sessions/a*\" "};
    char token[PAGE_TOKEN_SIZE];

    write_number(&w, 1, (uint64_t)-1);
    INVALID(LIST_SESSIONS, "page_size");
    write_text(&w, 4, "create_time");
    INVALID(LIST_SESSIONS, "order_by");
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
        write_text(&w, 3, filters[i]);
        INVALID(LIST_SESSIONS, "filter");
    }
    write_text(&w, 2, "0123");
    INVALID(LIST_SESSIONS, "page_token");
    page_token_make("", "chat-7", token);
    for (size_t i = 0; token[i]; i++) { /* each digit guards the token */
        char changed[PAGE_TOKEN_SIZE];
        memcpy(changed, token, sizeof(changed));
        changed[i] = changed[i] == '0' ? '1' : '0';
        write_text(&w, 2, changed);
        INVALID(LIST_SESSIONS, "page_token");
    }
    write_text(&w, 2, token);
    write_text(&w, 3, "name = \"sessions/ch*\"");
    INVALID(LIST_SESSIONS, "page_token");
}

Test(convert, generate_carries_every_field)
{
    struct note note;
    struct command *command;
    struct generate_command *g;
    float bias = -3;

    w.n = sub.n = subsub.n = 0;
    write_text(&w, 1, "sessions/A.b_c-1");
    write_text(&w, 2, "req-1");
    write_text(&w, 3, "godwit-tiny");
    write_number(&sub, 2, 0);
    write_number(&sub, 2, VOCAB - 1);
    write_message(&w, 4, &sub);
    sub.n = 0;
    write_float(&sub, 1, 0);
    write_float(&sub, 4, 0.25f);
    write_float(&sub, 5, 1);
    write_float(&sub, 6, -1);
    write_float(&sub, 7, 1.5f);
    write_number(&sub, 8, 77);
    write_number(&sub, 9, 5);
    write_text(&sub, 10, "\n\n");
    write_number(&sub, 11, 3);
    write_number(&sub, 12, 1);
    write_number(&sub, 13, UINT64_MAX);
    write_number(&sub, 14, 0);
    write_number(&sub, 15, 0);
    write_number(&subsub, 1, 9);
    write_base128(&subsub, 2 << 3 | 5);
    write_raw(&subsub, &bias, 4);
    write_message(&sub, 16, &subsub);
    write_message(&w, 6, &sub);
    write_number(&w, 7, 10);
    write_number(&w, 8, 4);
    write_number(&w, 9, 1);
    write_number(&w, 10, (uint64_t)-5);
    write_text(&w, 11, "acme");
    write_number(&w, 16, 1);
    write_text(&w, 18, "quest:pick=64");
    command = converts(METHOD_GENERATE, &note);
    g = &command->generate;
    cr_expect_eq(command->kind, COMMAND_GENERATE);
    cr_expect_str_eq(g->session, "A.b_c-1");
    cr_expect_str_eq(g->request_id, "req-1");
    cr_expect_eq(g->n_token, 2);
    cr_expect(g->token[0] == 0 && g->token[1] == VOCAB - 1);
    cr_expect(g->sampling.temperature == 0 && g->sampling.min_p == 0.25f);
    cr_expect(g->sampling.top_p == 0.75f && g->sampling.top_k == 20,
              "absent: the checkpoint's own");
    cr_expect(g->sampling.frequency_penalty == 1 &&
              g->sampling.presence_penalty == -1 &&
              g->sampling.repetition_penalty == 1.5f);
    cr_expect(g->sampling.max_tokens == 77 && g->sampling.min_tokens == 5);
    cr_expect_eq(g->sampling.n_stop, 1);
    cr_expect_str_eq(g->sampling.stop[0], "\n\n");
    cr_expect(g->sampling.n_stop_id == 1 && g->sampling.stop_id[0] == 3);
    cr_expect(g->sampling.ignore_eos && !g->sampling.skip_special);
    cr_expect(g->has_seed && g->sampling.seed == UINT64_MAX);
    cr_expect_eq(g->sampling.n_logprob, 0);
    cr_expect(g->sampling.n_bias == 1 && g->sampling.bias[0].token == 9 &&
              g->sampling.bias[0].bias == -3);
    cr_expect(g->has_expected && g->expected_position == 10);
    cr_expect(g->has_resume && g->resume_position == 4);
    cr_expect(g->has_durability && g->durability == DURABILITY_NONE);
    cr_expect(g->has_policy && g->policy.kind == POLICY_QUEST &&
              g->policy.n_pick == 1);
    cr_expect_eq(g->priority, -5);
    cr_expect_str_eq(command->tenant, "acme");
    cr_expect(g->creates && g->wants_progress && !g->is_append);
    cr_expect_str_eq(note.session, "A.b_c-1");
    cr_expect_str_eq(note.request_id, "req-1");
    arena_destroy(command->arena);
}

Test(convert, absent_fields_take_their_defaults)
{
    struct command *command;
    struct generate_command *g;

    w.n = 0;
    write_text(&w, 5, "hello");
    command = converts(METHOD_GENERATE, NULL);
    g = &command->generate;
    cr_expect_str_eq(g->session, "");
    cr_expect(g->sampling.temperature == 0.5f && g->sampling.top_p == 0.75f);
    cr_expect(g->sampling.min_p == 0 && g->sampling.repetition_penalty == 1);
    cr_expect(g->sampling.max_tokens == 0 && g->sampling.n_logprob == -1);
    cr_expect(g->sampling.skip_special && !g->sampling.ignore_eos);
    cr_expect(!g->has_seed && !g->has_expected && !g->has_resume &&
              !g->has_durability && !g->has_policy && !g->creates);
    arena_destroy(command->arena);

    write_number(&sub, 3, (uint64_t)-1); /* top_k: off, as vLLM has it */
    write_message(&w, 6, &sub);
    command = converts(METHOD_GENERATE, NULL);
    cr_expect_eq(command->generate.sampling.top_k, 0);
    arena_destroy(command->arena);

    w.n = 0;
    command = converts(METHOD_CREATE_SESSION, NULL);
    cr_expect_eq(command->kind, COMMAND_CREATE_SESSION);
    cr_expect_str_eq(command->create.name, "");
    cr_expect_eq(command->create.durability, DURABILITY_LOCAL);
    arena_destroy(command->arena);

    command = converts(METHOD_LIST_SESSIONS, NULL);
    cr_expect_eq(command->list.page_size, LIST_PAGE_DEFAULT);
    arena_destroy(command->arena);
    write_number(&w, 1, 2000000000);
    command = converts(METHOD_LIST_SESSIONS, NULL);
    cr_expect_eq(command->list.page_size, LIST_PAGE_MAX);
    arena_destroy(command->arena);
}

static void same_tokens(const struct command *command, const struct ids *ids)
{
    cr_assert_eq(command->generate.n_token, ids->n);
    cr_expect_eq(
        memcmp(command->generate.token, ids->id, ids->n * sizeof(*ids->id)), 0);
}

Test(convert, text_and_messages_are_the_tokenizers_ids)
{
    static const char text[] = "one\0two <|im_end|> \xE2\x82\xAC";
    const struct chat_message message = {"user", "hi <|im_end|>", 13};
    struct command *command;
    struct ids ids = {0};

    w.n = sub.n = subsub.n = 0;
    (void)node_of();
    write_bytes(&w, 5, text, sizeof(text) - 1);
    command = converts(METHOD_GENERATE, NULL);
    cr_assert_eq(tokenizer_encode(tokenizer, text, sizeof(text) - 1, false,
                                  CONTEXT, &ids),
                 STATUS_OK);
    same_tokens(command, &ids);
    arena_destroy(command->arena);

    ids.n = 0;
    write_number(&w, 17, 1);
    command = converts(METHOD_GENERATE, NULL);
    cr_assert_eq(tokenizer_encode(tokenizer, text, sizeof(text) - 1, true,
                                  CONTEXT, &ids),
                 STATUS_OK);
    same_tokens(command, &ids);
    arena_destroy(command->arena);

    for (int opens = 0; opens <= 1; opens++) {
        w.n = sub.n = subsub.n = 0;
        ids.n = 0;
        write_text(&subsub, 1, "user");
        write_text(&subsub, 2, message.content);
        write_message(&sub, 1, &subsub);
        if (!opens)
            write_number(&sub, 2, 0); /* add_generation_prompt */
        write_message(&w, 15, &sub);
        command = converts(METHOD_GENERATE, NULL);
        cr_assert_eq(chat_encode(tokenizer, &message, 1, opens, CONTEXT, &ids),
                     STATUS_OK);
        same_tokens(command, &ids);
        arena_destroy(command->arena);
    }
    ids_release(&ids);
}

/* At the limit exactly: the arena must hold it, too. */
Test(convert, a_prompt_of_the_whole_context_is_taken)
{
    struct command *command;

    w.n = sub.n = 0;
    for (unsigned i = 0; i < CONTEXT; i++)
        write_number(&sub, 2, i);
    write_message(&w, 4, &sub);
    command = converts(METHOD_GENERATE, NULL);
    cr_assert_eq(command->generate.n_token, CONTEXT);
    for (unsigned i = 0; i < CONTEXT; i++)
        cr_assert_eq(command->generate.token[i], i);
    arena_destroy(command->arena);
}

Test(convert, session_requests_carry_every_field)
{
    struct note note;
    struct command *command;
    char token[PAGE_TOKEN_SIZE];

    w.n = sub.n = subsub.n = 0;
    write_text(&w, 1, "new");
    write_bytes(&sub, 22, "\x0A\x01k\x12\x01v", 6);
    write_number(&subsub, 1, 60);
    write_message(&sub, 21, &subsub);
    write_number(&sub, 25, 1);
    write_text(&sub, 29, "window");
    write_message(&w, 2, &sub);
    command = converts(METHOD_CREATE_SESSION, NULL);
    cr_expect_str_eq(command->create.name, "new");
    cr_expect(command->create.n_label == 1);
    cr_expect_str_eq(command->create.label[0].key, "k");
    cr_expect_str_eq(command->create.label[0].value, "v");
    cr_expect_eq(command->create.expire_ms, WALL_MS + 60000);
    cr_expect_eq(command->create.durability, DURABILITY_NONE);
    cr_expect_eq(command->create.policy.kind, POLICY_WINDOW);
    arena_destroy(command->arena);

    w.n = sub.n = subsub.n = 0;
    write_text(&sub, 1, "sessions/u");
    write_text(&sub, 3, "etag");
    write_message(&w, 1, &sub);
    write_text(&subsub, 1, "labels");
    write_text(&subsub, 1, "expire_time");
    write_message(&w, 2, &subsub);
    command = converts(METHOD_UPDATE_SESSION, NULL);
    cr_expect_str_eq(command->update.session, "u");
    cr_expect_str_eq(command->update.etag, "etag");
    cr_expect(command->update.sets_labels && command->update.n_label == 0);
    cr_expect(command->update.sets_expire && command->update.expire_ms == 0);
    cr_expect(!command->update.sets_durability);
    arena_destroy(command->arena);

    w.n = 0;
    write_text(&w, 1, "sessions/d");
    write_text(&w, 2, "etag");
    write_number(&w, 3, 1);
    command = converts(METHOD_DELETE_SESSION, NULL);
    cr_expect_eq(command->kind, COMMAND_DELETE_SESSION);
    cr_expect_str_eq(command->target.session, "d");
    cr_expect_str_eq(command->target.etag, "etag");
    cr_expect(command->target.allows_missing);
    arena_destroy(command->arena);

    w.n = 0;
    write_text(&w, 1, "sessions/r");
    write_number(&w, 2, 5);
    write_number(&w, 3, 6);
    command = converts(METHOD_READ_TOKENS, NULL);
    cr_expect_eq(command->kind, COMMAND_READ_TOKENS);
    cr_expect(command->target.from == 5 && command->target.limit == 6);
    arena_destroy(command->arena);

    w.n = 0;
    write_text(&w, 2, "req");
    command = converts(METHOD_CANCEL_GENERATION, NULL);
    cr_expect_eq(command->kind, COMMAND_CANCEL);
    cr_expect_str_eq(command->target.request_id, "req");
    cr_expect_str_eq(command->target.session, "");
    arena_destroy(command->arena);

    w.n = 0;
    page_token_make("ch", "chat-7", token);
    write_text(&w, 2, token);
    write_text(&w, 3, "name = \"sessions/ch*\"");
    command = converts(METHOD_LIST_SESSIONS, &note);
    cr_expect_str_eq(command->list.after, "chat-7");
    cr_expect_str_eq(command->list.prefix, "ch");
    cr_expect_str_eq(note.prefix, "ch");
    arena_destroy(command->arena);

    w.n = 0;
    write_text(&w, 1, "nodes/n0");
    command = converts(METHOD_GET_NODE, &note);
    cr_expect_str_eq(note.node, "n0");
    arena_destroy(command->arena);
}

Test(convert, local_methods_refuse_bad_input)
{
    w.n = sub.n = 0;
    INVALID(COUNT_TOKENS, "input");
    INVALID(TOKENIZE, "input");
    write_text(&w, 2, "\xFF");
    INVALID(TOKENIZE, "text");
    write_number(&w, 2, VOCAB);
    INVALID(DETOKENIZE, "token_ids");
    for (unsigned i = 0; i <= CONTEXT; i++)
        write_number(&w, 2, 1);
    REFUSED(DETOKENIZE, INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED",
            "token_ids");
    write_text(&w, 1, "another");
    REFUSED(DETOKENIZE, NOT_FOUND, "MODEL_NOT_FOUND", "model");
}

Test(convert, a_node_without_tokenizer_takes_ids_alone)
{
    struct convert_node node = node_of();
    struct command *command = NULL;
    struct note note;

    node.tokenizer = NULL;
    w.n = sub.n = 0;
    write_text(&w, 5, "hello");
    cr_expect_eq(
        convert_command(&node, METHOD_GENERATE, w.byte, w.n, &command, &note),
        STATUS_FAILED_PRECONDITION);
    cr_expect_str_eq(status_cause()->reason, "NO_TOKENIZER");
    w.n = 0;
    write_number(&sub, 2, 1);
    write_message(&w, 4, &sub);
    cr_expect_eq(
        convert_command(&node, METHOD_GENERATE, w.byte, w.n, &command, &note),
        STATUS_OK);
    arena_destroy(command->arena);
}

Test(convert, a_fork_tells_the_start_from_no_position)
{
    struct command *command;

    write_text(&w, 1, "sessions/old");
    write_text(&w, 3, "new");
    command = converts(METHOD_FORK_SESSION, NULL);
    cr_expect_eq(command->kind, COMMAND_FORK_SESSION);
    cr_expect_str_eq(command->fork.session, "old");
    cr_expect_str_eq(command->fork.name, "new");
    cr_expect_not(command->fork.has_position);
    arena_destroy(command->arena);
    w.n = 0;
    write_text(&w, 1, "sessions/old");
    write_number(&w, 2, 0);
    command = converts(METHOD_FORK_SESSION, NULL);
    cr_expect(command->fork.has_position && command->fork.position == 0);
    cr_expect_str_eq(command->fork.name, "", "the engine makes one");
    arena_destroy(command->arena);
    w.n = 0;
    write_text(&w, 1, "old");
    INVALID(FORK_SESSION, "session");
    write_text(&w, 1, "sessions/old");
    write_text(&w, 3, "no/name");
    INVALID(FORK_SESSION, "session_id");
}

Test(convert, a_rewind_says_what_stays)
{
    struct command *command;

    write_text(&w, 1, "sessions/s");
    write_number(&w, 2, 77);
    write_text(&w, 3, "0123456789abcdef");
    command = converts(METHOD_TRUNCATE_SESSION, NULL);
    cr_expect_eq(command->kind, COMMAND_TRUNCATE_SESSION);
    cr_expect_str_eq(command->target.session, "s");
    cr_expect_eq(command->target.from, 77);
    cr_expect_str_eq(command->target.etag, "0123456789abcdef");
    arena_destroy(command->arena);
    w.n = 0;
    INVALID(TRUNCATE_SESSION, "session");
    write_text(&w, 1, "sessions/s");
    write_text(&w, 3, "0123456789abcdef01234567");
    INVALID(TRUNCATE_SESSION, "etag");
}
