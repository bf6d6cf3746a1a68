#ifndef NODE_COMMANDS_H
#define NODE_COMMANDS_H
/*
 * What `godwitd WORD ...` can do. Each gets the arguments behind its word
 * (argv[0] is the word itself), writes data to stdout and talk to stderr, and
 * returns the process's exit code: 0 done, 1 failed, 2 bad command line or bad
 * input.
 */

/* Serve over gRPC until SIGTERM. */
int cmd_serve(int argc, char **argv);

/* Load a model; compare it with an oracle's numbers: golden.h. */
int cmd_check(int argc, char **argv);

/* Tokens per second beside the machine's bounds, as TSV. */
int cmd_bench(int argc, char **argv);

/* What a model finds again in its context, as TSV by task, length, depth. */
int cmd_eval(int argc, char **argv);

/* JSON lines {"text":...} to {"ids":[...],"decoded":...}. */
int cmd_tokenize(int argc, char **argv);
#endif
