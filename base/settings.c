#include "base/settings.h"

#include "base/arena.h"
#include "base/json.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SIZE 80u /* bytes of "GODWIT_..." or of "--..." */

struct settings_store {
    struct arena *arena; /* all texts */
};

/* One row's value before it is known that all rows are good. */
struct value {
    bool is_set;
    uint64_t number;
    double real;
    bool is_on;
    const char *text;
};

/* What one settings_read() works on. */
struct reading {
    const struct settings *settings;
    struct arena *arena; /* of the texts; goes to the store */
    struct value *value; /* [n_row], as are the following */
    const char **flag;   /* text given on the command line, or NULL */
    const char **word;   /* [argc], those that are no option */
    int n_word;
};

static void make_env_name(const char *name, char out[NAME_SIZE])
{
    size_t n = (size_t)snprintf(out, NAME_SIZE, "GODWIT_%s", name);

    assert(n < NAME_SIZE);
    for (size_t i = 0; i < n; i++) {
        if (out[i] == '-')
            out[i] = '_';
        else if (out[i] >= 'a' && out[i] <= 'z')
            out[i] -= 'a' - 'A';
    }
}

static const struct setting *find(const struct settings *settings,
                                  const char *name, size_t n_name)
{
    for (size_t i = 0; i < settings->n_row; i++)
        if (strlen(settings->row[i].name) == n_name &&
            memcmp(settings->row[i].name, name, n_name) == 0)
            return &settings->row[i];
    return NULL;
}

/* "0 to 4096", "none|local", "true or false" or "". */
static void make_range(const struct setting *row, char *out, size_t n_bytes)
{
    switch (row->kind) {
    case SETTING_NUMBER:
        (void)snprintf(out, n_bytes, "%.0f to %.0f", row->min, row->max);
        return;
    case SETTING_REAL:
        (void)snprintf(out, n_bytes, "%g to %g", row->min, row->max);
        return;
    case SETTING_SWITCH:
        (void)snprintf(out, n_bytes, "true or false");
        return;
    case SETTING_CHOICE:
        (void)snprintf(out, n_bytes, "%s", row->choices);
        return;
    case SETTING_TEXT:
        break;
    }
    out[0] = 0;
}

static bool parse_number(const struct setting *row, const char *text,
                         uint64_t *out)
{
    unsigned long n;
    char *end;

    errno = 0;
    n = strtoul(text, &end, 10);
    /* strtoul accepts a sign and leading blanks; a setting does not. */
    if (!isdigit((unsigned char)*text) || *end || errno)
        return false;
    *out = n;
    return (double)n >= row->min && (double)n <= row->max;
}

static bool parse_real(const struct setting *row, const char *text, double *out)
{
    char *end;

    /* strtod accepts blanks, hexadecimal, "inf" and "nan" as well. */
    if (!*text || text[strspn(text, "0123456789.eE+-")] != 0)
        return false;
    *out = strtod(text, &end);
    return !*end && isfinite(*out) && *out >= row->min && *out <= row->max;
}

static bool parse_switch(const char *text, bool *out)
{
    static const char *const SPELLING[] = {"false", "true", "off",
                                           "on",    "0",    "1"};

    for (size_t i = 0; i < sizeof(SPELLING) / sizeof(SPELLING[0]); i++)
        if (strcmp(text, SPELLING[i]) == 0) {
            *out = i % 2;
            return true;
        }
    return false;
}

static bool is_choice(const struct setting *row, const char *text)
{
    size_t n_text = strlen(text);
    const char *at = row->choices;

    for (;;) {
        size_t n = strcspn(at, "|");

        if (n == n_text && memcmp(at, text, n) == 0)
            return true;
        if (!at[n])
            return false;
        at += n + 1;
    }
}

/* `source` names the setting as its giver wrote it: "--rows", "GODWIT_ROWS". */
static enum status set_text(struct reading *reading, const struct setting *row,
                            const char *source, const char *text)
{
    struct value *value = &reading->value[row - reading->settings->row];
    bool is_good = true;
    char range[160];

    switch (row->kind) {
    case SETTING_NUMBER:
        is_good = parse_number(row, text, &value->number);
        break;
    case SETTING_REAL:
        is_good = parse_real(row, text, &value->real);
        break;
    case SETTING_SWITCH:
        is_good = parse_switch(text, &value->is_on);
        break;
    case SETTING_CHOICE:
        is_good = is_choice(row, text);
        break;
    case SETTING_TEXT:
        break;
    }
    if (!is_good) {
        make_range(row, range, sizeof(range));
        return status_fail(STATUS_INVALID_ARGUMENT, "%s is '%s', expected %s",
                           source, text, range);
    }
    value->text = arena_copy(reading->arena, text, strlen(text));
    if (!value->text)
        return STATUS_RESOURCE_EXHAUSTED;
    value->is_set = true;
    return STATUS_OK;
}

/* Read the option at argv[*arg]; move *arg to its last word. */
static enum status read_option(struct reading *reading, int argc, char **argv,
                               int *arg)
{
    const char *name = argv[*arg] + 2;
    size_t n_name = strcspn(name, "=");
    const struct setting *row = find(reading->settings, name, n_name);
    const char *text = NULL;

    if (!row)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "unknown option '%s', see --help", argv[*arg]);
    if (name[n_name])
        text = name + n_name + 1;
    else if (row->kind == SETTING_SWITCH)
        text = "true";
    else if (*arg + 1 < argc)
        text = argv[++*arg];
    else
        return status_fail(STATUS_INVALID_ARGUMENT, "%s needs a value",
                           argv[*arg]);
    reading->flag[row - reading->settings->row] = text;
    return STATUS_OK;
}

static enum status read_words(struct reading *reading, int argc, char **argv,
                              int max_word)
{
    bool is_word_only = false;

    for (int arg = 1; arg < argc; arg++) {
        enum status st;

        if (!is_word_only && strcmp(argv[arg], "--") == 0) {
            is_word_only = true;
        } else if (!is_word_only && strncmp(argv[arg], "--", 2) == 0) {
            st = read_option(reading, argc, argv, &arg);
            if (st)
                return st;
        } else if (!is_word_only && argv[arg][0] == '-' && argv[arg][1]) {
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "unknown option '%s', see --help", argv[arg]);
        } else if (reading->n_word == max_word) {
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "unexpected word '%s', expected at most %d",
                               argv[arg], max_word);
        } else {
            reading->word[reading->n_word++] = argv[arg];
        }
    }
    return STATUS_OK;
}

/* Set a row from its flag or, behind that, from the environment, if given. */
static enum status set_given(struct reading *reading, const struct setting *row)
{
    const char *flag = reading->flag[row - reading->settings->row];
    char source[NAME_SIZE];
    const char *env;

    if (flag) {
        (void)snprintf(source, sizeof(source), "--%s", row->name);
        return set_text(reading, row, source, flag);
    }
    if (reading->settings->flags & SETTING_NO_ENV)
        return STATUS_OK;
    make_env_name(row->name, source);
    env = getenv(source);
    return env && *env ? set_text(reading, row, source, env) : STATUS_OK;
}

static enum status set_json(struct reading *reading, const struct setting *row,
                            const char *path, const json_t *json)
{
    bool is_number = row->kind == SETTING_NUMBER && json_is_integer(json);
    bool is_real = row->kind == SETTING_REAL && json_is_number(json);
    bool is_switch = row->kind == SETTING_SWITCH && json_is_boolean(json);
    bool is_text = (row->kind == SETTING_TEXT || row->kind == SETTING_CHOICE) &&
                   json_is_string(json);
    char text[32], source[256];

    (void)snprintf(source, sizeof(source), "%s: %s", path, row->name);
    if (is_text)
        return set_text(reading, row, source, json_string_value(json));
    if (is_number)
        (void)snprintf(text, sizeof(text), "%lld", json_integer_value(json));
    else if (is_real)
        (void)snprintf(text, sizeof(text), "%.17g", json_number_value(json));
    else if (is_switch)
        (void)snprintf(text, sizeof(text), "%s",
                       json_is_true(json) ? "true" : "false");
    else {
        static const char *const KIND[] = {
            "an integer", "a number", "true or false", "a string", "a string"};

        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s is of another type, expected %s", source,
                           KIND[row->kind]);
    }
    return set_text(reading, row, source, text);
}

/* Set what neither flag nor environment has given. */
static enum status read_file(struct reading *reading, const char *path)
{
    json_t *root = NULL;
    const char *key;
    json_t *json;
    enum status st;

    st = json_load(path, &root);
    if (st)
        return st;
    if (!json_is_object(root)) {
        st = status_fail(STATUS_INVALID_ARGUMENT, "%s is no JSON object", path);
        goto out;
    }
    json_object_foreach(root, key, json)
    {
        const struct setting *row = find(reading->settings, key, strlen(key));

        if (!row || strcmp(key, "config") == 0) {
            st = status_fail(STATUS_INVALID_ARGUMENT, "%s: unknown setting %s",
                             path, key);
            goto out;
        }
        if (reading->value[row - reading->settings->row].is_set)
            continue;
        st = set_json(reading, row, path, json);
        if (st)
            goto out;
    }
out:
    json_decref(root);
    return st;
}

static enum status read_all(struct reading *reading, int argc, char **argv,
                            int max_word)
{
    const struct settings *settings = reading->settings;
    const struct setting *config = find(settings, "config", 6);
    enum status st;

    st = read_words(reading, argc, argv, max_word);
    for (size_t i = 0; !st && i < settings->n_row; i++)
        st = set_given(reading, &settings->row[i]);
    if (!st && config) {
        const struct value *path = &reading->value[config - settings->row];
        const char *name = path->is_set ? path->text : config->preset;

        assert(config->kind == SETTING_TEXT);
        if (name && *name)
            st = read_file(reading, name);
    }
    for (size_t i = 0; !st && i < settings->n_row; i++) {
        const struct setting *row = &settings->row[i];
        char source[NAME_SIZE];

        if (reading->value[i].is_set)
            continue;
        (void)snprintf(source, sizeof(source), "--%s", row->name);
        if (row->preset)
            st = set_text(reading, row, source, row->preset);
        else
            st = status_fail(STATUS_INVALID_ARGUMENT, "%s must be given",
                             source);
    }
    return st;
}

static void put_value(const struct setting *row, const struct value *value,
                      void *values)
{
    void *field = (char *)values + row->offset;

    switch (row->kind) {
    case SETTING_NUMBER:
        *(uint64_t *)field = value->number;
        return;
    case SETTING_REAL:
        *(double *)field = value->real;
        return;
    case SETTING_SWITCH:
        *(bool *)field = value->is_on;
        return;
    case SETTING_TEXT:
    case SETTING_CHOICE:
        *(const char **)field = value->text;
        return;
    }
}

/* The words and the values are two results with their places: 8 parameters. */
/* NOLINTNEXTLINE(readability-function-size) */
enum status settings_read(const struct settings *settings, int argc,
                          char **argv, const char **out_word, int max_word,
                          int *out_n_word, void *values,
                          struct settings_store **out_store)
{
    struct reading reading = {.settings = settings};
    size_t n_word = argc > 0 ? (size_t)argc : 1;
    struct settings_store *store;
    enum status st;

    store = calloc(1, sizeof(*store));
    reading.value = calloc(settings->n_row + 1, sizeof(*reading.value));
    reading.flag = calloc(settings->n_row + 1, sizeof(*reading.flag));
    reading.word = calloc(n_word, sizeof(*reading.word));
    if (!store || !reading.value || !reading.flag || !reading.word) {
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for settings");
        goto out;
    }
    st = arena_create(SETTINGS_TEXT_MAX, &store->arena);
    if (st)
        goto out;
    reading.arena = store->arena;
    st = read_all(&reading, argc, argv, max_word);
    if (st)
        goto out;
    for (size_t i = 0; i < settings->n_row; i++)
        put_value(&settings->row[i], &reading.value[i], values);
    for (int i = 0; i < reading.n_word; i++)
        out_word[i] = reading.word[i];
    if (out_n_word)
        *out_n_word = reading.n_word;
    *out_store = store;
    store = NULL;
out:
    settings_release(store);
    free(reading.word);
    free(reading.flag);
    free(reading.value);
    return st;
}

void settings_release(struct settings_store *store)
{
    if (!store)
        return;
    arena_destroy(store->arena);
    free(store);
}

bool settings_wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0)
            return true;
    return false;
}

enum { N_COLUMN = 4, COLUMN_SIZE = 160 };

/* The cells of a row's line, up to the help text. */
static void make_cells(const struct settings *settings,
                       const struct setting *row,
                       char cell[N_COLUMN][COLUMN_SIZE])
{
    const char *preset = row->preset ? row->preset : "(required)";
    char env[NAME_SIZE];

    (void)snprintf(cell[0], COLUMN_SIZE, "--%s%s%s", row->name,
                   *row->unit ? " " : "", row->unit);
    (void)snprintf(cell[1], COLUMN_SIZE, "%s", *preset ? preset : "-");
    make_range(row, cell[2], COLUMN_SIZE);
    if (!*cell[2])
        (void)snprintf(cell[2], COLUMN_SIZE, "-");
    make_env_name(row->name, env);
    (void)snprintf(cell[3], COLUMN_SIZE, "%s",
                   settings->flags & SETTING_NO_ENV ? "-" : env);
}

void settings_help(const struct settings *settings, FILE *to)
{
    static const char *const HEAD[N_COLUMN] = {"option", "default", "range",
                                               "environment"};
    char cell[N_COLUMN][COLUMN_SIZE];
    int width[N_COLUMN];

    for (int c = 0; c < N_COLUMN; c++)
        width[c] = (int)strlen(HEAD[c]);
    for (size_t i = 0; i < settings->n_row; i++) {
        make_cells(settings, &settings->row[i], cell);
        for (int c = 0; c < N_COLUMN; c++)
            if ((int)strlen(cell[c]) > width[c])
                width[c] = (int)strlen(cell[c]);
    }
    (void)fprintf(to, "%s: %s\n\n", settings->program, settings->about);
    for (int c = 0; c < N_COLUMN; c++)
        (void)fprintf(to, "  %-*s", width[c], HEAD[c]);
    (void)fprintf(to, "  help\n");
    for (size_t i = 0; i < settings->n_row; i++) {
        make_cells(settings, &settings->row[i], cell);
        for (int c = 0; c < N_COLUMN; c++)
            (void)fprintf(to, "  %-*s", width[c], cell[c]);
        (void)fprintf(to, "  %s\n", settings->row[i].help);
    }
}
