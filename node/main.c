/*
 * godwitd: serves by default; `check`, `bench`, `eval` and `tokenize` look at
 * a model without a network. Each subcommand is node/cmd_<name>.c and one row
 * here.
 */
#include "node/commands.h"

#include <stdio.h>
#include <string.h>

static const struct command_row {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *purpose;
} COMMANDS[] = {
    {"serve", cmd_serve, "serve a model over gRPC (the default)"},
    {"check", cmd_check, "load a model and compare it with golden vectors"},
    {"bench", cmd_bench, "measure prefill and decode beside their bounds"},
    {"eval", cmd_eval, "ask a model for what its context holds"},
    {"tokenize", cmd_tokenize, "JSON lines of text to JSON lines of ids"},
};

enum { N_COMMAND = sizeof(COMMANDS) / sizeof(COMMANDS[0]) };

static void usage(FILE *to)
{
    fprintf(to, "usage: godwitd [COMMAND] [--help] [OPTION...]\n\n");
    for (int i = 0; i < N_COMMAND; i++)
        fprintf(to, "  %-9s %s\n", COMMANDS[i].name, COMMANDS[i].purpose);
    fprintf(to, "\nOptions of each command: godwitd COMMAND --help\n");
}

int main(int argc, char **argv)
{
    if (argc < 2 || strncmp(argv[1], "--", 2) == 0) {
        if (argc == 2 && strcmp(argv[1], "--version") == 0) {
            printf("godwitd %s\n", GODWIT_VERSION);
            return 0;
        }
        if (argc < 2 || strcmp(argv[1], "--help") == 0) {
            usage(argc < 2 ? stderr : stdout);
            return argc < 2 ? 2 : 0;
        }
        return cmd_serve(argc, argv);
    }
    for (int i = 0; i < N_COMMAND; i++)
        if (strcmp(argv[1], COMMANDS[i].name) == 0)
            return COMMANDS[i].run(argc - 1, argv + 1);
    fprintf(stderr, "godwitd: no command '%s'\n\n", argv[1]);
    usage(stderr);
    return 2;
}
