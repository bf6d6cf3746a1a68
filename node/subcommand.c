#include "node/subcommand.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

bool subcommand_read(const struct settings *settings, int argc, char **argv,
                     void *values, struct settings_store **out_store,
                     int *out_code)
{
    int n_word = 0;

    if (settings_wants_help(argc, argv)) {
        settings_help(settings, stdout);
        *out_code = SUBCOMMAND_DONE;
        return false;
    }
    if (settings_read(settings, argc, argv, NULL, 0, &n_word, values,
                      out_store)) {
        *out_code = subcommand_fail(settings, SUBCOMMAND_BAD_INPUT);
        return false;
    }
    return true;
}

int subcommand_fail(const struct settings *settings, int code)
{
    (void)fflush(stdout);
    fprintf(stderr, "%s: %s\n", settings->program, status_reason());
    return code;
}

uint32_t subcommand_threads(uint64_t n_thread)
{
    cpu_set_t set;

    if (n_thread)
        return (uint32_t)n_thread;
    if (sched_getaffinity(0, sizeof(set), &set) || CPU_COUNT(&set) < 1)
        return 1;
    return CPU_COUNT(&set) < (int)POOL_THREAD_MAX ? (uint32_t)CPU_COUNT(&set)
                                                  : POOL_THREAD_MAX;
}

enum status engine_parts_init(const char *dir,
                              const struct model_choice *choice,
                              uint64_t n_thread, struct engine_parts *out)
{
    struct engine_parts parts = {0};
    struct model_options options = {0};
    enum status st;

    st = model_options_find(choice, &options);
    if (!st)
        st = model_load(dir, &options, &parts.model);
    if (!st)
        st = pool_create(subcommand_threads(n_thread), &parts.pool);
    if (st)
        engine_parts_release(&parts);
    else
        *out = parts;
    return st;
}

void engine_parts_release(struct engine_parts *parts)
{
    pool_destroy(parts->pool);
    model_destroy(parts->model);
    memset(parts, 0, sizeof(*parts));
}
