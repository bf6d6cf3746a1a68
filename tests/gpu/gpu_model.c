#include "tests/gpu/gpu_model.h"

#include "node/commands.h"

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

    if (strcmp(what, "check") == 0)
        return cmd_check(argc - 1, argv + 1);
    if (strcmp(what, "eval") == 0)
        return cmd_eval(argc - 1, argv + 1);
    if (strcmp(what, "ops") == 0 && argc == 3)
        return gpu_ops(argv[2]);
    if (strcmp(what, "exact") == 0 && argc == 6)
        return gpu_exact(argv[2], argv[3], (uint32_t)strtoul(argv[4], NULL, 10),
                         strtoull(argv[5], NULL, 10));
    if (strcmp(what, "time") == 0 && (argc == 4 || argc == 5))
        return gpu_time(argv[2], argv[3], argc == 5 ? argv[4] : "");
    if (strcmp(what, "prefill") == 0 && argc > 4)
        return gpu_prefill(argv[2], argv[3], argv + 4, (uint32_t)argc - 4);
    (void)fprintf(stderr, "usage: gpu_model check OPTIONS...\n"
                          "       gpu_model eval OPTIONS...\n"
                          "       gpu_model ops BACKEND\n"
                          "       gpu_model exact BACKEND DIR N SEED\n"
                          "       gpu_model time BACKEND CONFIG "
                          "[decode|prefill]\n"
                          "       gpu_model prefill BACKEND CONFIG N...\n");
    return 2;
}
