/*
 * godwitd tokenize: one JSON object {"text":...} per line on stdin, one
 * {"ids":[...],"decoded":...} per line on stdout. Special tokens in the text
 * are parsed, as Hugging Face's encode() does: this is a tool for whoever owns
 * the text. It stops at the first bad line.
 */
#include "base/json.h"
#include "model/tokenizer.h"
#include "node/commands.h"
#include "node/subcommand.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LINE_TOKEN_MAX (1u << 26)
#define LINE_BYTES_MAX (256u << 20)

struct tokenize {
    const char *model;
};

static const struct setting ROW[] = {
    {.name = "model",
     .kind = SETTING_TEXT,
     .unit = "DIR",
     .help = "Hugging Face directory with tokenizer.json",
     .offset = offsetof(struct tokenize, model)},
};

static const struct settings SETTINGS = {
    .program = "godwitd tokenize",
    .about = "Read JSON lines {\"text\":...} from stdin and print "
             "{\"ids\":[...],\"decoded\":...} for each.",
    .row = ROW,
    .n_row = sizeof(ROW) / sizeof(ROW[0]),
};

/* Text of the ids; free() it. NULL and the cause when memory is out. */
static char *decode(const struct tokenizer *tokenizer, const struct ids *ids,
                    size_t *out_n)
{
    struct detokenizer detokenizer = {0};
    size_t n = 0, capacity = 0;
    char *text = NULL;

    for (size_t i = 0; i <= ids->n; i++) {
        if (capacity - n < DETOKENIZER_OUT_MAX) {
            char *more =
                realloc(text, capacity = 2 * capacity + DETOKENIZER_OUT_MAX);

            if (!more) {
                free(text);
                (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                                  "no memory for %zu bytes of text", capacity);
                return NULL;
            }
            text = more;
        }
        n += i < ids->n ? detokenizer_push(&detokenizer, tokenizer, ids->id[i],
                                           false, text + n)
                        : detokenizer_finish(&detokenizer, text + n);
    }
    *out_n = n;
    return text;
}

static enum status print_line(const struct tokenizer *tokenizer,
                              const struct ids *ids)
{
    json_t *list = json_array(), *line = json_object();
    size_t n_text;
    char *text = decode(tokenizer, ids, &n_text);
    enum status st = STATUS_RESOURCE_EXHAUSTED;
    int failed = !list || !line;

    if (!text)
        goto out;
    for (size_t i = 0; i < ids->n && !failed; i++)
        failed = json_array_append_new(list, json_integer(ids->id[i]));
    failed = failed || json_object_set(line, "ids", list) ||
             json_object_set_new(line, "decoded", json_stringn(text, n_text));
    if (failed || json_dumpf(line, stdout, JSON_COMPACT) || putchar('\n') < 0)
        st = status_fail(STATUS_INTERNAL, "cannot write the line");
    else
        st = STATUS_OK;
out:
    free(text);
    json_decref(list);
    json_decref(line);
    return st;
}

static enum status tokenize_line(const struct tokenizer *tokenizer,
                                 const char *line, size_t n_bytes)
{
    struct ids ids = {0};
    json_t *object = NULL;
    const json_t *text;
    json_error_t error;
    enum status st;

    if (n_bytes > LINE_BYTES_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT, "%zu bytes, limit %u",
                           n_bytes, LINE_BYTES_MAX);
    /* Text may hold NUL, which names and settings may not: so not json_parse.
     */
    object = json_loadb(line, n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL,
                        &error);
    if (!object)
        return status_fail(STATUS_INVALID_ARGUMENT, "not JSON: %s", error.text);
    text = json_object_get(object, "text");
    if (!json_is_string(text))
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "no string \"text\", expected {\"text\":...}");
    else
        st = tokenizer_encode(tokenizer, json_string_value(text),
                              json_string_length(text), true, LINE_TOKEN_MAX,
                              &ids);
    if (!st)
        st = print_line(tokenizer, &ids);
    ids_release(&ids);
    json_decref(object);
    return st;
}

static int tokenize_all(const struct tokenizer *tokenizer)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    uint64_t n_line = 0;
    int code = SUBCOMMAND_DONE;

    while (code == SUBCOMMAND_DONE &&
           (n = getline(&line, &capacity, stdin)) >= 0) {
        n_line++;
        if (tokenize_line(tokenizer, line, (size_t)n)) {
            (void)fflush(stdout);
            fprintf(stderr, "%s: line %lu: %s\n", SETTINGS.program, n_line,
                    status_reason());
            code = SUBCOMMAND_BAD_INPUT;
        }
    }
    free(line);
    return code;
}

int cmd_tokenize(int argc, char **argv)
{
    struct tokenize tokenize;
    struct settings_store *store = NULL;
    struct tokenizer *tokenizer = NULL;
    int code;

    if (!subcommand_read(&SETTINGS, argc, argv, &tokenize, &store, &code))
        return code;
    if (tokenizer_load(tokenize.model, &tokenizer))
        code = subcommand_fail(&SETTINGS, SUBCOMMAND_BAD_INPUT);
    else
        code = tokenize_all(tokenizer);
    tokenizer_destroy(tokenizer);
    settings_release(store);
    return code;
}
