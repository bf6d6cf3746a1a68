#include "tests/gpu/gpu_model.h"

#include "node/commands.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gpu_fail(const char *what)
{
    printf("%s: %s\n", what, status_reason());
    return 2;
}

/* False: an option that there is not, or no number where one belongs. */
static bool read_exact(int argc, char **argv, struct gpu_exact_what *out)
{
    *out = (struct gpu_exact_what){
        .choice = {argv[2], "auto", "bf16", "auto"},
        .n_schedule = 100,
        .seed = 1,
    };
    for (int i = 4; i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        char *end;
        const uint64_t number = strtoull(value, &end, 10);
        const bool is_number = end != value && *end == 0;

        if (strcmp(name, "--weights") == 0)
            out->choice.weight_format = value;
        else if (strcmp(name, "--kv") == 0)
            out->choice.kv_format = value;
        else if (strcmp(name, "--policy") == 0)
            out->policies = value;
        else if (is_number && strcmp(name, "--schedules") == 0)
            out->n_schedule = (uint32_t)number;
        else if (is_number && strcmp(name, "--seconds") == 0)
            out->seconds = number;
        else if (is_number && strcmp(name, "--seed") == 0)
            out->seed = number;
        else if (is_number && strcmp(name, "--first") == 0)
            out->first = number;
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    struct gpu_exact_what exact;

    if (strcmp(what, "check") == 0)
        return cmd_check(argc - 1, argv + 1);
    if (strcmp(what, "eval") == 0)
        return cmd_eval(argc - 1, argv + 1);
    if (strcmp(what, "exact") == 0 && argc >= 4 && argc % 2 == 0 &&
        read_exact(argc, argv, &exact))
        return gpu_exact(argv[3], &exact);
    if (strcmp(what, "time") == 0 && argc >= 4 && argc <= 8)
        return gpu_time(argv[2], argv[3],
                        &(struct gpu_time_what){argc > 4 ? argv[4] : "",
                                                argc > 5 ? argv[5] : "bf16",
                                                argc > 6 ? argv[6] : "auto",
                                                argc > 7 ? argv[7] : "auto"});
    if (strcmp(what, "prefill") == 0 && argc > 4)
        return gpu_prefill(argv[2], argv[3], argv + 4, (uint32_t)argc - 4);
    (void)fprintf(stderr, "usage: gpu_model check OPTIONS...\n"
                          "       gpu_model eval OPTIONS...\n"
                          "       gpu_model exact BACKEND DIR [--schedules N] "
                          "[--seconds S] [--seed K] [--first I]\n"
                          "                 [--weights FORMAT] [--kv KV] "
                          "[--policy POLICY|any]\n"
                          "       gpu_model time BACKEND CONFIG "
                          "[all|decode|prefill|swap [FORMAT [KV [NUMERICS]]]]\n"
                          "       gpu_model prefill BACKEND CONFIG N...\n");
    return 2;
}
