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

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    const bool is_time = strcmp(what, "time") == 0;
    const int n_before = is_time ? 5 : 6; /* FORMAT */
    const char *format = argc > n_before ? argv[n_before] : "bf16";
    const char *kv = argc > n_before + 1 ? argv[n_before + 1] : "auto";

    if (strcmp(what, "check") == 0)
        return cmd_check(argc - 1, argv + 1);
    if (strcmp(what, "eval") == 0)
        return cmd_eval(argc - 1, argv + 1);
    if (strcmp(what, "ops") == 0 && argc == 3)
        return gpu_ops(argv[2]);
    if (strcmp(what, "exact") == 0 && argc >= 6 && argc <= 8)
        return gpu_exact(argv[2], argv[3], (uint32_t)strtoul(argv[4], NULL, 10),
                         strtoull(argv[5], NULL, 10), format, kv);
    if (is_time && argc >= 4 && argc <= 7)
        return gpu_time(
            argv[2], argv[3],
            &(struct gpu_time_what){argc > 4 ? argv[4] : "", format, kv});
    if (strcmp(what, "prefill") == 0 && argc > 4)
        return gpu_prefill(argv[2], argv[3], argv + 4, (uint32_t)argc - 4);
    (void)fprintf(stderr,
                  "usage: gpu_model check OPTIONS...\n"
                  "       gpu_model eval OPTIONS...\n"
                  "       gpu_model ops BACKEND\n"
                  "       gpu_model exact BACKEND DIR N SEED [FORMAT [KV]]\n"
                  "       gpu_model time BACKEND CONFIG "
                  "[all|decode|prefill|swap [FORMAT [KV]]]\n"
                  "       gpu_model prefill BACKEND CONFIG N...\n");
    return 2;
}
