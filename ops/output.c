#include "ops/output.h"

#include "base/clock.h"
#include "base/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API_VERSION "godwit.v1"
#define CELL_SIZE 32 /* bytes of a number as text */
#define TIME_SIZE 25
#define SECONDS_AT_END 19 /* where a time's fraction begins */

struct output {
    enum output_format format;
    const char *kind;
    bool is_list;
    bool is_short; /* of memory: something is missing */
    json_t *rows;  /* array of objects; owned */
    json_t *row;   /* the last one; borrowed from rows */
};

enum status output_create(enum output_format format, const char *kind,
                          bool is_list, struct output **out)
{
    struct output *output = calloc(1, sizeof(*output));

    if (output)
        output->rows = json_array();
    if (!output || !output->rows) {
        free(output);
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for output");
    }
    output->format = format;
    output->kind = kind;
    output->is_list = is_list;
    *out = output;
    return STATUS_OK;
}

void output_destroy(struct output *output)
{
    if (!output)
        return;
    json_decref(output->rows);
    free(output);
}

void output_row(struct output *output)
{
    output->row = json_object();
    if (json_array_append_new(output->rows, output->row))
        output->is_short = true;
}

/* A NULL value, which a failed constructor gives, is refused by jansson. */
static void put(struct output *output, const char *name, json_t *value)
{
    if (json_object_set_new(output->row, name, value))
        output->is_short = true;
}

void output_text(struct output *output, const char *name, const char *value)
{
    json_t *text = json_string(value ? value : "");

    put(output, name, text ? text : json_string(""));
}

void output_number(struct output *output, const char *name, uint64_t value)
{
    char text[CELL_SIZE];

    if (value <= INT64_MAX) {
        put(output, name, json_integer((json_int_t)value));
        return;
    }
    /* jansson's integers are signed: a larger one goes as text, whole. */
    (void)snprintf(text, sizeof(text), "%lu", value);
    put(output, name, json_string(text));
}

void output_real(struct output *output, const char *name, double value,
                 unsigned n_digit)
{
    double unit = pow(10, n_digit);

    put(output, name, json_real(round(value * unit) / unit));
}

void output_flag(struct output *output, const char *name, bool value)
{
    put(output, name, json_boolean(value));
}

void output_time(struct output *output, const char *name, int64_t seconds)
{
    char text[TIME_SIZE];

    if (seconds <= 0) {
        put(output, name, json_null());
        return;
    }
    clock_format((uint64_t)seconds * 1000, text);
    memcpy(text + SECONDS_AT_END, "Z", 2);
    output_text(output, name, text);
}

void output_map(struct output *output, const char *name)
{
    put(output, name,
        output->format == OUTPUT_JSON ? json_object() : json_string(""));
}

void output_entry(struct output *output, const char *name, const char *key,
                  const char *value)
{
    json_t *map = json_object_get(output->row, name), *text;
    const char *before;
    char *joined;

    if (json_is_object(map)) {
        text = json_string(value);
        if (json_object_set_new(map, key, text ? text : json_string("")))
            output->is_short = true;
        return;
    }
    before = json_string_value(map);
    if (!before || asprintf(&joined, "%s%s%s=%s", before, *before ? "," : "",
                            key, value) < 0) {
        output->is_short = true;
        return;
    }
    output_text(output, name, joined);
    free(joined);
}

/* The value as people read it; `buffer` holds a number. */
static const char *cell(const json_t *value, char buffer[CELL_SIZE])
{
    if (json_is_integer(value)) {
        (void)snprintf(buffer, CELL_SIZE, "%lld",
                       (long long)json_integer_value(value));
        return buffer;
    }
    if (json_is_real(value)) {
        (void)snprintf(buffer, CELL_SIZE, "%.10g", json_real_value(value));
        return buffer;
    }
    if (json_is_boolean(value))
        return json_is_true(value) ? "true" : "false";
    return json_is_null(value) ? "" : json_string_value(value);
}

/* A tab or a new line within a value would break the line's structure. */
static void write_tsv_cell(const char *text)
{
    for (; *text; text++)
        (void)putchar((unsigned char)*text < ' ' ? ' ' : *text);
}

static void write_tsv(const struct output *output)
{
    char buffer[CELL_SIZE];
    const char *name;
    json_t *row, *value;
    size_t i;

    json_array_foreach(output->rows, i, row)
    {
        const char *before = "";

        if (i == 0) {
            json_object_foreach(row, name, value)
            {
                (void)printf("%s%s", before, name);
                before = "\t";
            }
            (void)putchar('\n');
            before = "";
        }
        json_object_foreach(row, name, value)
        {
            (void)fputs(before, stdout);
            write_tsv_cell(cell(value, buffer));
            before = "\t";
        }
        (void)putchar('\n');
    }
}

static void write_upper(const char *text, int width)
{
    int n = 0;

    for (; *text; text++, n++)
        (void)putchar(*text >= 'a' && *text <= 'z' ? *text - 'a' + 'A' : *text);
    (void)printf("%*s", width > n ? width - n : 0, "");
}

static int column_width(const struct output *output, const char *name)
{
    char buffer[CELL_SIZE];
    size_t width = strlen(name);
    json_t *row;
    size_t i;

    json_array_foreach(output->rows, i, row)
    {
        size_t n = strlen(cell(json_object_get(row, name), buffer));

        if (n > width)
            width = n;
    }
    return (int)width;
}

/* One line per row, columns as wide as their widest cell. */
static void write_wide_table(const struct output *output)
{
    json_t *head = json_array_get(output->rows, 0), *row, *value;
    char buffer[CELL_SIZE];
    const char *name;
    size_t i;

    json_object_foreach(head, name, value)
    {
        write_upper(name, column_width(output, name) + 2);
    }
    (void)putchar('\n');
    json_array_foreach(output->rows, i, row)
    {
        json_object_foreach(row, name, value)
        {
            (void)printf("%-*s", column_width(output, name) + 2,
                         cell(value, buffer));
        }
        (void)putchar('\n');
    }
}

/* One line per value, one column per row. */
static void write_tall_table(const struct output *output)
{
    json_t *head = json_array_get(output->rows, 0), *row, *value;
    char buffer[CELL_SIZE];
    const char *name;
    size_t width = 0, i;

    json_object_foreach(head, name, value)
    {
        if (strlen(name) > width)
            width = strlen(name);
    }
    json_object_foreach(head, name, value)
    {
        write_upper(name, (int)width + 2);
        json_array_foreach(output->rows, i, row)
        {
            (void)printf(i + 1 < json_array_size(output->rows) ? "%-12s" : "%s",
                         cell(json_object_get(row, name), buffer));
        }
        (void)putchar('\n');
    }
}

static void write_json(struct output *output)
{
    json_t *root = json_object();

    if (json_object_set_new(root, "apiVersion", json_string(API_VERSION)) ||
        json_object_set_new(root, "kind", json_string(output->kind)))
        output->is_short = true;
    if (output->is_list && json_object_set(root, "items", output->rows))
        output->is_short = true;
    if (!output->is_list &&
        json_object_update(root, json_array_get(output->rows, 0)))
        output->is_short = true;
    if (!output->is_short &&
        json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) == 0)
        (void)putchar('\n');
    json_decref(root);
}

enum status output_write(struct output *output)
{
    if (output->format == OUTPUT_JSON)
        write_json(output);
    else if (output->format == OUTPUT_TSV)
        write_tsv(output);
    else if (!output->is_list || json_object_size(json_array_get(
                                     output->rows, 0)) > OUTPUT_WIDE_MAX)
        write_tall_table(output);
    else if (json_array_size(output->rows) > 0)
        write_wide_table(output);
    if (output->is_short)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for output");
    if (fflush(stdout) || ferror(stdout))
        return status_fail(STATUS_INTERNAL, "cannot write to stdout: %s",
                           strerror(errno));
    return STATUS_OK;
}
