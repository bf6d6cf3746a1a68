/* Each kind of bad JSON is refused with its place; each reader by its type. */
#include "base/json.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

static json_t *parse(const char *text)
{
    json_t *root = NULL;

    must(json_parse("test.json", text, strlen(text), &root));
    return root;
}

Test(json, good_text_is_parsed)
{
    json_t *root = parse("{\"a\": [1, 2.5, true, null, \"\\u00e9\"]}");

    cr_assert(eq(sz, json_array_size(json_object_get(root, "a")), 5));
    json_decref(root);
}

Test(json, bad_text_is_refused_with_its_line)
{
    static const struct {
        const char *text;
        size_t n_bytes;
        const char *cause; /* how the message starts */
    } CASE[] = {
        {"", 0, "test.json line 1: "},
        {"{", 1, "test.json line 1: "},
        {"{\n\n \"a\": tru}", 13, "test.json line 3: "},
        {"{\"a\": 1, \"a\": 2}", 16, "test.json line 1: duplicate object key"},
        {"{} x", 4, "test.json line 1: end of file expected"},
        {"{}\0", 3, "test.json line 1: "},
        {"[\"\xc3\x28\"]", 6, "test.json line 1: unable to decode byte"},
        {"[\"\xff\"]", 5, "test.json line 1: unable to decode byte"},
        {"[1e999]", 7, "test.json line 1: real number overflow"},
        {"[9223372036854775808]", 21, "test.json line 1: too big integer"},
        {"['a']", 5, "test.json line 1: "},
        {"[1,]", 4, "test.json line 1: "},
        {"[01]", 4, "test.json line 1: "},
        {"[NaN]", 5, "test.json line 1: "},
        {"[\"\n\"]", 5, "test.json line 1: "},
    };

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        json_t *root = NULL;

        cr_assert(
            eq(int,
               json_parse("test.json", CASE[i].text, CASE[i].n_bytes, &root),
               STATUS_INVALID_ARGUMENT),
            "case %zu", i);
        cr_assert(
            eq(int,
               strncmp(status_reason(), CASE[i].cause, strlen(CASE[i].cause)),
               0),
            "%s", status_reason());
        cr_assert(eq(ptr, root, NULL));
    }
}

Test(json, deep_nesting_is_refused)
{
    const size_t n_deep = 200000;
    char *text = malloc(n_deep);
    json_t *root = NULL;

    memset(text, '[', n_deep);
    cr_assert(eq(int, json_parse("deep.json", text, n_deep, &root),
                 STATUS_INVALID_ARGUMENT));
    free(text);
}

/* A file of its own for each test; its name goes to `path`. */
static void write_file(char path[32], const char *text)
{
    int fd;

    strcpy(path, "/tmp/godwit_json_XXXXXX");
    fd = mkstemp(path);
    cr_assert(ge(int, fd, 0));
    cr_assert(eq(long, write(fd, text, strlen(text)), (long)strlen(text)));
    close(fd);
}

Test(json, a_file_is_loaded)
{
    json_t *root = NULL;
    char path[32];
    uint64_t n = 0;

    write_file(path, "{\"n\": 7}");
    must(json_load(path, &root));
    must(json_get_u64(path, root, "n", 0, 9, &n));
    cr_assert(eq(u64, n, 7));
    json_decref(root);
    unlink(path);
}

Test(json, a_bad_file_is_refused_by_name)
{
    char path[32], want[64];
    json_t *root = NULL;

    cr_assert(
        eq(int, json_load("/nonexistent/a.json", &root), STATUS_NOT_FOUND));
    cr_assert_str_eq(status_reason(), "no file /nonexistent/a.json");
    cr_assert(eq(int, json_load("/dev/null/a.json", &root), STATUS_NOT_FOUND));
    cr_assert(eq(int, json_load("/tmp", &root), STATUS_INVALID_ARGUMENT));
    cr_assert_str_eq(status_reason(), "/tmp is not a file");
    cr_assert(eq(int, json_load("/dev/null", &root), STATUS_INVALID_ARGUMENT));
    write_file(path, "{\n]");
    cr_assert(eq(int, json_load(path, &root), STATUS_INVALID_ARGUMENT));
    snprintf(want, sizeof(want), "%s line 2: ", path);
    cr_assert(eq(int, strncmp(status_reason(), want, strlen(want)), 0));
    unlink(path);
    cr_assert(eq(ptr, root, NULL));
}

Test(json, a_file_that_cannot_be_read_is_refused)
{
    json_t *root = NULL;
    char path[32];

    write_file(path, "{}");
    chmod(path, 0);
    /* Root may read everything; as another user it is permission_denied. */
    if (geteuid() == 0)
        cr_assert(eq(int, seteuid(65534), 0));
    cr_assert(eq(int, json_load(path, &root), STATUS_PERMISSION_DENIED));
    if (getuid() == 0)
        cr_assert(eq(int, seteuid(0), 0));
    unlink(path);
}

Test(json, a_file_above_the_limit_is_refused)
{
    json_t *root = NULL;
    char path[32];

    write_file(path, "{}");
    cr_assert(eq(int, truncate(path, (off_t)JSON_FILE_MAX + 1), 0));
    cr_assert(eq(int, json_load(path, &root), STATUS_INVALID_ARGUMENT));
    cr_assert(
        ne(ptr, strstr(status_reason(), "has 268435457 bytes, limit 268435456"),
           NULL));
    unlink(path);
}

Test(json, readers_give_values_of_their_type)
{
    json_t *root = parse("{\"u\": 65536, \"d\": 1.5, \"i\": 3, \"t\": true,"
                         " \"f\": false, \"s\": \"text\"}");
    const char *text = NULL;
    uint64_t n = 0;
    double x = 0;
    bool is_on = false;

    must(json_get_u64("c", root, "u", 1, 65536, &n));
    cr_assert(eq(u64, n, 65536));
    must(json_get_double("c", root, "d", &x));
    cr_assert(eq(dbl, x, 1.5));
    must(json_get_double("c", root, "i", &x));
    cr_assert(eq(dbl, x, 3.0));
    must(json_get_bool("c", root, "t", &is_on));
    cr_assert(is_on);
    must(json_get_bool("c", root, "f", &is_on));
    cr_assert(not(is_on));
    must(json_get_string("c", root, "s", &text));
    cr_assert_str_eq(text, "text");
    json_decref(root);
}

Test(json, absent_and_null_leave_the_default)
{
    json_t *root = parse("{\"k\": null}");
    static const char *const KEY[] = {"k", "absent"};
    const char *text = "default";
    uint64_t n = 5;
    double x = 0.5;
    bool is_on = true;

    for (int i = 0; i < 2; i++) {
        must(json_get_u64("c", root, KEY[i], 0, 9, &n));
        must(json_get_double("c", root, KEY[i], &x));
        must(json_get_bool("c", root, KEY[i], &is_on));
        must(json_get_string("c", root, KEY[i], &text));
    }
    cr_assert(eq(u64, n, 5));
    cr_assert(eq(dbl, x, 0.5));
    cr_assert(is_on);
    cr_assert_str_eq(text, "default");
    json_decref(root);
}

Test(json, another_type_or_range_is_refused_by_name)
{
    json_t *root =
        parse("{\"s\": \"a\", \"r\": 1.0, \"n\": -1, \"big\": 65537, \"z\": 0,"
              " \"o\": {}, \"a\": [], \"t\": true, \"i\": 1}");
    static const struct {
        const char *key, *cause;
    } NUMBER[] = {
        {"s", "config.json: s is a string, expected an integer 1 to 65536"},
        {"r",
         "config.json: r is a real number, expected an integer 1 to 65536"},
        {"n", "config.json: n is -1, expected an integer 1 to 65536"},
        {"big", "config.json: big is 65537, expected an integer 1 to 65536"},
        {"z", "config.json: z is 0, expected an integer 1 to 65536"},
        {"o", "config.json: o is an object, expected an integer 1 to 65536"},
        {"a", "config.json: a is an array, expected an integer 1 to 65536"},
        {"t", "config.json: t is a boolean, expected an integer 1 to 65536"},
    };
    const char *text = "default";
    uint64_t n = 5;
    double x = 0.5;
    bool is_on = true;

    for (size_t i = 0; i < sizeof(NUMBER) / sizeof(NUMBER[0]); i++) {
        cr_assert(eq(
            int, json_get_u64("config.json", root, NUMBER[i].key, 1, 65536, &n),
            STATUS_INVALID_ARGUMENT));
        cr_assert_str_eq(status_reason(), NUMBER[i].cause);
    }
    cr_assert(eq(int, json_get_u64("c", root, "n", 0, UINT64_MAX, &n),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(
        eq(int, json_get_double("c", root, "s", &x), STATUS_INVALID_ARGUMENT));
    cr_assert_str_eq(status_reason(), "c: s is a string, expected a number");
    cr_assert(eq(int, json_get_bool("c", root, "i", &is_on),
                 STATUS_INVALID_ARGUMENT));
    cr_assert_str_eq(status_reason(),
                     "c: i is an integer, expected true or false");
    cr_assert(eq(int, json_get_string("c", root, "t", &text),
                 STATUS_INVALID_ARGUMENT));
    cr_assert_str_eq(status_reason(), "c: t is a boolean, expected a string");
    cr_assert(eq(u64, n, 5));
    cr_assert(eq(dbl, x, 0.5));
    cr_assert(is_on);
    cr_assert_str_eq(text, "default");
    json_decref(root);
}
