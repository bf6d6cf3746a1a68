/*
 * The table below has one row of each kind. Precedence is judged row by row
 * with a value that differs at each source; every refusal by its exact text.
 */
#include "base/settings.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

enum { MAX_WORD = 2 };

struct values {
    uint64_t max_tokens;
    double top_p;
    bool greedy;
    const char *listen;
    const char *durability;
    const char *config;
};

static const struct setting ROW[] = {
    {.name = "max-tokens",
     .kind = SETTING_NUMBER,
     .preset = "64",
     .min = 0,
     .max = 4096,
     .unit = "tokens",
     .help = "length of a reply",
     .offset = offsetof(struct values, max_tokens)},
    {.name = "top-p",
     .kind = SETTING_REAL,
     .preset = "0.5",
     .min = 0,
     .max = 1,
     .unit = "",
     .help = "nucleus",
     .offset = offsetof(struct values, top_p)},
    {.name = "greedy",
     .kind = SETTING_SWITCH,
     .preset = "false",
     .unit = "",
     .help = "no sampling",
     .offset = offsetof(struct values, greedy)},
    {.name = "listen",
     .kind = SETTING_TEXT,
     .preset = "127.0.0.1:50051",
     .unit = "HOST:PORT",
     .help = "where to serve",
     .offset = offsetof(struct values, listen)},
    {.name = "durability",
     .kind = SETTING_CHOICE,
     .preset = "local",
     .choices = "none|local",
     .unit = "",
     .help = "when a token counts",
     .offset = offsetof(struct values, durability)},
    {.name = "config",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "FILE",
     .help = "settings as JSON",
     .offset = offsetof(struct values, config)},
};

static const struct settings TABLE = {.program = "godwitd serve",
                                      .about = "serve a model",
                                      .row = ROW,
                                      .n_row = sizeof(ROW) / sizeof(ROW[0])};

/* What one call gave. */
struct reading {
    enum status st;
    struct values values;
    struct settings_store *store;
    const char *word[MAX_WORD];
    int n_word;
};

/* Read the options, up to the NULL at their end. */
static struct reading read_options(const struct settings *settings,
                                   const char *const *option)
{
    struct reading r = {.values = {.max_tokens = 999, .listen = "untouched"},
                        .n_word = -1};
    char *argv[16] = {(char *)"godwitd"};
    int argc = 1;

    while (option[argc - 1]) {
        argv[argc] = (char *)option[argc - 1];
        argc++;
    }
    r.st = settings_read(settings, argc, argv, r.word, MAX_WORD, &r.n_word,
                         &r.values, &r.store);
    return r;
}

#define read_with(...)                                                         \
    read_options(&TABLE, (const char *const[]){__VA_ARGS__, NULL})

static void assert_refused(const struct reading *r, enum status st,
                           const char *cause)
{
    cr_assert(eq(int, r->st, st), "%s", status_reason());
    cr_assert_str_eq(status_reason(), cause);
    cr_assert(eq(u64, r->values.max_tokens, 999));
    cr_assert_str_eq(r->values.listen, "untouched");
    cr_assert(eq(ptr, r->store, NULL));
    cr_assert(eq(int, r->n_word, -1));
}

/* A file for one test; unlink it. */
static void write_file(char path[32], const char *text)
{
    int fd;

    strcpy(path, "/tmp/godwit_set_XXXXXX");
    fd = mkstemp(path);
    cr_assert(ge(int, fd, 0));
    cr_assert(eq(long, write(fd, text, strlen(text)), (long)strlen(text)));
    close(fd);
}

Test(settings, absent_ones_have_their_defaults)
{
    struct reading r = read_options(&TABLE, (const char *const[]){NULL});

    must(r.st);
    cr_assert(eq(u64, r.values.max_tokens, 64));
    cr_assert(eq(dbl, r.values.top_p, 0.5));
    cr_assert(not(r.values.greedy));
    cr_assert_str_eq(r.values.listen, "127.0.0.1:50051");
    cr_assert_str_eq(r.values.durability, "local");
    cr_assert_str_eq(r.values.config, "");
    cr_assert(eq(int, r.n_word, 0));
    settings_release(r.store);
}

Test(settings, flags_are_read_in_both_spellings)
{
    struct reading r =
        read_with("--max-tokens", "4096", "--top-p=1e-1", "--greedy",
                  "--listen", "--odd", "--durability=none");

    must(r.st);
    cr_assert(eq(u64, r.values.max_tokens, 4096));
    cr_assert(eq(dbl, r.values.top_p, 0.1));
    cr_assert(r.values.greedy);
    cr_assert_str_eq(r.values.listen, "--odd"); /* a value may look so */
    cr_assert_str_eq(r.values.durability, "none");
    settings_release(r.store);
}

Test(settings, the_last_of_equal_flags_wins)
{
    struct reading r = read_with("--max-tokens=1", "--greedy", "--max-tokens=2",
                                 "--greedy=off", "--listen=");

    must(r.st);
    cr_assert(eq(u64, r.values.max_tokens, 2));
    cr_assert(not(r.values.greedy));
    cr_assert_str_eq(r.values.listen, "");
    settings_release(r.store);
}

Test(settings, words_are_given_in_order)
{
    struct reading r = read_with("create", "--greedy", "--", "--listen");

    must(r.st);
    cr_assert(r.values.greedy);
    cr_assert(eq(int, r.n_word, 2));
    cr_assert_str_eq(r.word[0], "create"); /* not the switch's value */
    cr_assert_str_eq(r.word[1], "--listen");
    settings_release(r.store);
    r = read_with("-"); /* by custom, standard input */
    must(r.st);
    cr_assert_str_eq(r.word[0], "-");
    settings_release(r.store);
}

Test(settings, flag_environment_file_default_in_this_order)
{
    char path[32];
    struct reading r;

    write_file(path, "{\"max-tokens\": 3, \"top-p\": 0.3, \"greedy\": true,"
                     " \"listen\": \"file\", \"durability\": \"none\"}");
    setenv("GODWIT_MAX_TOKENS", "2", 1);
    setenv("GODWIT_TOP_P", "0.2", 1);
    setenv("GODWIT_LISTEN", "env", 1);
    setenv("GODWIT_GREEDY", "", 1); /* empty: absent */
    r = read_with("--config", path, "--max-tokens=1");
    must(r.st);
    cr_assert(eq(u64, r.values.max_tokens, 1));
    cr_assert(eq(dbl, r.values.top_p, 0.2));
    cr_assert_str_eq(r.values.listen, "env");
    cr_assert(r.values.greedy);
    cr_assert_str_eq(r.values.durability, "none");
    cr_assert_str_eq(r.values.config, path);
    settings_release(r.store);

    unsetenv("GODWIT_LISTEN");
    setenv("GODWIT_CONFIG", path, 1);
    r = read_with("--durability=local");
    must(r.st);
    cr_assert(eq(u64, r.values.max_tokens, 2));
    cr_assert_str_eq(r.values.listen, "file");
    cr_assert_str_eq(r.values.durability, "local");
    settings_release(r.store);
    unlink(path);
}

Test(settings, the_environment_may_be_ignored)
{
    struct settings table = TABLE;
    struct reading r;

    table.flags = SETTING_NO_ENV;
    setenv("GODWIT_MAX_TOKENS", "2", 1);
    r = read_options(&table, (const char *const[]){NULL});
    must(r.st);
    cr_assert(eq(u64, r.values.max_tokens, 64));
    settings_release(r.store);
}

Test(settings, texts_outlive_their_sources)
{
    char listen[] = "--listen=here";
    struct reading r = read_with(listen);

    must(r.st);
    memset(listen, 'x', sizeof(listen) - 1);
    cr_assert_str_eq(r.values.listen, "here");
    settings_release(r.store);
}

Test(settings, bad_command_lines_are_refused)
{
    static const struct {
        const char *option[4];
        const char *cause;
    } CASE[] = {
        {{"--max-tokens", "-3"}, "--max-tokens is '-3', expected 0 to 4096"},
        {{"--max-tokens=4097"}, "--max-tokens is '4097', expected 0 to 4096"},
        {{"--max-tokens="}, "--max-tokens is '', expected 0 to 4096"},
        {{"--max-tokens= 1"}, "--max-tokens is ' 1', expected 0 to 4096"},
        {{"--max-tokens=1x"}, "--max-tokens is '1x', expected 0 to 4096"},
        {{"--max-tokens=+1"}, "--max-tokens is '+1', expected 0 to 4096"},
        {{"--max-tokens=99999999999999999999"},
         "--max-tokens is '99999999999999999999', expected 0 to 4096"},
        {{"--max-tokens"}, "--max-tokens needs a value"},
        {{"--top-p=1.01"}, "--top-p is '1.01', expected 0 to 1"},
        {{"--top-p=-0.1"}, "--top-p is '-0.1', expected 0 to 1"},
        {{"--top-p=nan"}, "--top-p is 'nan', expected 0 to 1"},
        {{"--top-p=0x1"}, "--top-p is '0x1', expected 0 to 1"},
        {{"--top-p= 1"}, "--top-p is ' 1', expected 0 to 1"},
        {{"--top-p=1e"}, "--top-p is '1e', expected 0 to 1"},
        {{"--top-p=."}, "--top-p is '.', expected 0 to 1"},
        {{"--top-p="}, "--top-p is '', expected 0 to 1"},
        {{"--greedy=maybe"}, "--greedy is 'maybe', expected true or false"},
        {{"--durability=loc"}, "--durability is 'loc', expected none|local"},
        {{"--durability=none|local"},
         "--durability is 'none|local', expected none|local"},
        {{"--durability="}, "--durability is '', expected none|local"},
        {{"--unknown", "1"}, "unknown option '--unknown', see --help"},
        {{"--max", "1"}, "unknown option '--max', see --help"},
        {{"--max-tokensx=1"}, "unknown option '--max-tokensx=1', see --help"},
        {{"-m", "1"}, "unknown option '-m', see --help"},
        {{"--=1"}, "unknown option '--=1', see --help"},
        {{"a", "b", "c"}, "unexpected word 'c', expected at most 2"},
    };

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        struct reading r = read_options(&TABLE, CASE[i].option);

        assert_refused(&r, STATUS_INVALID_ARGUMENT, CASE[i].cause);
    }
}

Test(settings, a_bad_environment_is_refused_by_its_name)
{
    struct reading r;

    setenv("GODWIT_MAX_TOKENS", "many", 1);
    r = read_options(&TABLE, (const char *const[]){NULL});
    assert_refused(&r, STATUS_INVALID_ARGUMENT,
                   "GODWIT_MAX_TOKENS is 'many', expected 0 to 4096");
}

Test(settings, bad_files_are_refused)
{
    static const struct {
        const char *text, *cause; /* behind the file's name */
    } CASE[] = {
        {"[]", " is no JSON object"},
        {"{\"max_tokens\": 1}", ": unknown setting max_tokens"},
        {"{\"config\": \"other\"}", ": unknown setting config"},
        {"{\"max-tokens\": \"1\"}",
         ": max-tokens is of another type, expected an integer"},
        {"{\"max-tokens\": 1.0}",
         ": max-tokens is of another type, expected an integer"},
        {"{\"max-tokens\": -3}", ": max-tokens is '-3', expected 0 to 4096"},
        {"{\"top-p\": true}", ": top-p is of another type, expected a number"},
        {"{\"top-p\": 2}", ": top-p is '2', expected 0 to 1"},
        {"{\"greedy\": 1}",
         ": greedy is of another type, expected true or false"},
        {"{\"listen\": 1}", ": listen is of another type, expected a string"},
        {"{\"durability\": \"disk\"}",
         ": durability is 'disk', expected none|local"},
        {"{\"durability\": null}",
         ": durability is of another type, expected a string"},
    };
    char path[32], cause[128];

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        struct reading r;

        write_file(path, CASE[i].text);
        r = read_with("--config", path);
        snprintf(cause, sizeof(cause), "%s%s", path, CASE[i].cause);
        assert_refused(&r, STATUS_INVALID_ARGUMENT, cause);
        unlink(path);
    }
}

Test(settings, broken_and_missing_files_are_refused)
{
    struct reading r = read_with("--config", "/nonexistent/a.json");
    char path[32];

    assert_refused(&r, STATUS_NOT_FOUND, "no file /nonexistent/a.json");
    write_file(path, "{");
    r = read_with("--config", path);
    cr_assert(eq(int, r.st, STATUS_INVALID_ARGUMENT));
    cr_assert(eq(int, strncmp(status_reason(), path, strlen(path)), 0));
    unlink(path);
}

Test(settings, a_real_of_a_file_is_read_exactly)
{
    struct reading r;
    char path[32];

    write_file(path, "{\"top-p\": 0.30000000000000004}");
    r = read_with("--config", path);
    must(r.st);
    cr_assert(eq(dbl, r.values.top_p, 0.30000000000000004));
    settings_release(r.store);
    unlink(path);
}

Test(settings, one_without_default_must_be_given)
{
    struct setting row = ROW[3];
    const struct settings table = {
        .program = "p", .about = "a", .row = &row, .n_row = 1};
    struct reading r;

    row.preset = NULL;
    r = read_options(&table, (const char *const[]){NULL});
    assert_refused(&r, STATUS_INVALID_ARGUMENT, "--listen must be given");
    r = read_options(&table, (const char *const[]){"--listen=x", NULL});
    must(r.st);
    cr_assert_str_eq(r.values.listen, "x");
    settings_release(r.store);
}

Test(settings, limits_hold_at_the_ends_of_the_types)
{
    static const struct {
        struct setting row;
        const char *option, *cause; /* NULL: accepted */
    } CASE[] = {
        {{.kind = SETTING_NUMBER, .min = 1, .max = 2},
         "--x=0",
         "--x is '0', expected 1 to 2"},
        {{.kind = SETTING_NUMBER, .min = 1, .max = 2}, "--x=1", NULL},
        {{.kind = SETTING_NUMBER, .max = 18446744073709551615.0},
         "--x=18446744073709551615",
         NULL},
        {{.kind = SETTING_NUMBER, .max = 18446744073709551615.0},
         "--x=18446744073709551616",
         "--x is '18446744073709551616', expected 0 to 18446744073709551616"},
        {{.kind = SETTING_REAL, .min = -HUGE_VAL, .max = HUGE_VAL},
         "--x=-1e300",
         NULL},
        {{.kind = SETTING_REAL, .min = -HUGE_VAL, .max = HUGE_VAL},
         "--x=1e999",
         "--x is '1e999', expected -inf to inf"},
    };

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        struct setting row = CASE[i].row;
        const struct settings table = {
            .program = "p", .about = "a", .row = &row, .n_row = 1};
        struct reading r;

        row.name = "x";
        row.offset = row.kind == SETTING_NUMBER
                         ? offsetof(struct values, max_tokens)
                         : offsetof(struct values, top_p);
        r = read_options(&table, (const char *const[]){CASE[i].option, NULL});
        if (CASE[i].cause)
            assert_refused(&r, STATUS_INVALID_ARGUMENT, CASE[i].cause);
        else
            must(r.st);
        settings_release(r.store);
    }
}

Test(settings, texts_above_the_limit_are_refused)
{
    static const char OPTION[] = "--listen=";
    char *option = malloc(sizeof(OPTION) + SETTINGS_TEXT_MAX + 1);
    struct reading r;

    memset(option, 'a', sizeof(OPTION) + SETTINGS_TEXT_MAX);
    option[sizeof(OPTION) + SETTINGS_TEXT_MAX] = 0;
    memcpy(option, OPTION, sizeof(OPTION) - 1);
    r = read_with(option);
    cr_assert(eq(int, r.st, STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(ptr, r.store, NULL));
    free(option);
    settings_release(NULL);
}

Test(settings, help_is_asked_for_in_front_of_words_only)
{
    char *yes[] = {(char *)"p", (char *)"a", (char *)"--help"};
    char *word[] = {(char *)"p", (char *)"--", (char *)"--help"};
    char *program[] = {(char *)"--help", (char *)"a"};

    cr_assert(settings_wants_help(3, yes));
    cr_assert(not(settings_wants_help(2, yes)));
    cr_assert(not(settings_wants_help(3, word)));
    cr_assert(not(settings_wants_help(2, program)));
}

Test(settings, help_shows_each_row_in_columns)
{
    static const char WANT[] =
        "godwitd serve: serve a model\n"
        "\n"
        "  option               default          range          environment"
        "        help\n"
        "  --max-tokens tokens  64               0 to 4096      "
        "GODWIT_MAX_TOKENS  length of a reply\n"
        "  --top-p              0.5              0 to 1         GODWIT_TOP_P"
        "       nucleus\n"
        "  --greedy             false            true or false  GODWIT_GREEDY"
        "      no sampling\n"
        "  --listen HOST:PORT   127.0.0.1:50051  -              GODWIT_LISTEN"
        "      where to serve\n"
        "  --durability         local            none|local     "
        "GODWIT_DURABILITY  when a token counts\n"
        "  --config FILE        -                -              GODWIT_CONFIG"
        "      settings as JSON\n";
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *to = open_memstream(&text, &n_bytes);

    settings_help(&TABLE, to);
    fclose(to);
    cr_assert_str_eq(text, WANT);
    free(text);
}
