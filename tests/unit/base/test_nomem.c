/*
 * Every allocation of a call is made to fail, the n-th for n = 1, 2, ..., until
 * the call succeeds. Each failure must be RESOURCE_EXHAUSTED (or NULL), change
 * nothing and leak nothing, which the ASan build judges. The linker puts the
 * __wrap_ functions between base/ and libc; jansson takes ours by its own hook.
 */
#include "base/arena.h"
#include "base/json.h"
#include "base/metrics.h"
#include "base/ring.h"
#include "base/settings.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_MAX = 200 }; /* allocations of one call; more is a bug of the test */

/* Allocations still to succeed before all fail; negative: none fails. */
static int n_left = -1;

static bool fails(void)
{
    if (n_left < 0)
        return false;
    if (n_left == 0)
        return true;
    n_left--;
    return false;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

/*
 * The n of the first run in which nothing failed. `or_code` may be given, too:
 * jansson takes some of its own failures for bad text.
 */
static int until_success(enum status (*call)(void), enum status or_code)
{
    for (int n = 0; n < N_MAX; n++) {
        enum status st;

        n_left = n;
        st = call();
        n_left = -1;
        if (!st)
            return n;
        cr_assert(st == STATUS_RESOURCE_EXHAUSTED || st == or_code, "at %d: %s",
                  n, status_reason());
        cr_assert(eq(int, status_cause()->code, st));
    }
    cr_fatal("no run succeeded");
}

static enum status use_arena(void)
{
    struct arena *arena = NULL;
    enum status st = arena_create(1 << 20, &arena);

    for (int i = 0; !st && i < 3; i++)
        if (!arena_take(arena, 5000))
            st = STATUS_RESOURCE_EXHAUSTED;
    arena_destroy(arena);
    return st;
}

Test(nomem, arena)
{
    cr_assert(eq(int, until_success(use_arena, STATUS_RESOURCE_EXHAUSTED), 4));
}

static enum status use_ring(void)
{
    struct ring *ring = NULL;
    enum status st = ring_create(8, 24, &ring);

    cr_assert(eq(int, st != STATUS_OK, ring == NULL));
    ring_destroy(ring);
    return st;
}

Test(nomem, ring)
{
    cr_assert(eq(int, until_success(use_ring, STATUS_RESOURCE_EXHAUSTED), 2));
}

static enum status use_metrics(void)
{
    struct metrics *metrics = NULL;
    enum status st = metrics_create(&metrics);

    if (!st && (!metrics_counter(metrics, "c", "", "h") ||
                !metrics_gauge(metrics, "g", "x=\"1\"", "h") ||
                !metrics_histogram(metrics, "h", "", "h", 1, 2))) {
        char *text = metrics_format(metrics); /* what is there is whole */

        cr_assert(ne(ptr, text, NULL));
        free(text);
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no metric");
    }
    metrics_destroy(metrics);
    return st;
}

Test(nomem, metrics)
{
    cr_assert(
        eq(int, until_success(use_metrics, STATUS_RESOURCE_EXHAUSTED), 14));
}

static char path[] = "/tmp/godwit_nomem_XXXXXX";

static void make_file(void)
{
    static const char TEXT[] = "{\"name\": \"from a file\"}";
    int fd = mkstemp(path);

    cr_assert(ge(int, fd, 0));
    cr_assert(eq(long, write(fd, TEXT, strlen(TEXT)), (long)strlen(TEXT)));
    close(fd);
    json_set_alloc_funcs(__wrap_malloc, free);
}

static void remove_file(void)
{
    unlink(path);
}

static enum status use_json(void)
{
    json_t *root = NULL;
    enum status st = json_load(path, &root);

    cr_assert(eq(int, st != STATUS_OK, root == NULL));
    json_decref(root);
    return st;
}

Test(nomem, json, .init = make_file, .fini = remove_file)
{
    cr_assert(gt(int, until_success(use_json, STATUS_INVALID_ARGUMENT), 3));
}

struct values {
    const char *name, *config;
};

static enum status use_settings(void)
{
    static const struct setting ROW[] = {
        {.name = "name",
         .kind = SETTING_TEXT,
         .preset = "",
         .unit = "",
         .help = "",
         .offset = offsetof(struct values, name)},
        {.name = "config",
         .kind = SETTING_TEXT,
         .preset = path,
         .unit = "",
         .help = "",
         .offset = offsetof(struct values, config)},
    };
    static const struct settings TABLE = {.program = "p",
                                          .about = "",
                                          .row = ROW,
                                          .n_row = 2,
                                          .flags = SETTING_NO_ENV};
    struct values values = {.name = "untouched"};
    struct settings_store *store = NULL;
    char *argv[] = {(char *)"p"};
    int n_word = -1;
    enum status st =
        settings_read(&TABLE, 1, argv, NULL, 0, &n_word, &values, &store);

    cr_assert(eq(int, st != STATUS_OK, store == NULL));
    cr_assert_str_eq(values.name, st ? "untouched" : "from a file");
    cr_assert(eq(int, n_word, st ? -1 : 0));
    settings_release(store);
    return st;
}

Test(nomem, settings, .init = make_file, .fini = remove_file)
{
    cr_assert(gt(int, until_success(use_settings, STATUS_INVALID_ARGUMENT), 8));
}
