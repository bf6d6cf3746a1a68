#include "ops/ctl.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "godwitctl"
#define SHORT_TIMEOUT_MS                                                       \
    30000u /* of calls in which nothing long can happen                        \
            */

static const struct ctl_command COMMAND[] = {
    {"generate", "", 0, 0,
     "send a prompt and print the reply as it comes; nothing else goes to "
     "stdout (--output json: one object at the end; no tsv)",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_PROMPT | CTL_ROWS_GENERATE |
         CTL_ROWS_POLICY,
     true, ctl_generate},
    {"tokenize", "[TEXT]", 0, 1, "print the ids of a text, one per line",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_PROMPT, true, ctl_tokenize},
    {"detokenize", "[ID...]", 0, 1 << 20,
     "print the text of ids; without any, they are read from stdin",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_detokenize},
    {"session create", "[ID]", 0, 1,
     "make a session; without an ID the node makes one",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_SETTINGS | CTL_ROWS_POLICY,
     true, ctl_session_create},
    {"session list", "", 0, 0, "list the sessions in the order of their names",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_LIST, true, ctl_session_list},
    {"session get", "ID", 1, 1, "show one session",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_session_get},
    {"session update", "ID", 1, 1,
     "change labels, ttl or durability; what is not given stays",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_SETTINGS, true,
     ctl_session_update},
    {"session tokens", "ID", 1, 1,
     "print the ids of its log, one per line (tsv: with positions)",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_RANGE, true,
     ctl_session_tokens},
    {"session fork", "ID", 1, 1,
     "make a session that begins with this one's tokens; nothing is copied",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_FORK, true, ctl_session_fork},
    {"session rewind", "ID", 1, 1, "cut its log; what is behind is gone",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_REWIND, true,
     ctl_session_rewind},
    {"session delete", "ID", 1, 1, "remove a session and all that is stored",
     CTL_ROWS_CALL | CTL_ROWS_DELETE, true, ctl_session_delete},
    {"session checkpoint", "ID", 1, 1, "store its state at its end now",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_session_checkpoint},
    {"session policy", "ID [POLICY]", 1, 2,
     "show what its softmax layers see; or have it go on under another policy, "
     "for which its log is computed again",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_session_policy},
    {"session inspect", "ID", 1, 1,
     "show what of it is where: by layer, or its snapshots, or its lineage",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_INSPECT, true,
     ctl_session_inspect},
    {"session verify", "ID", 1, 1,
     "check all that is stored of it; what is bad is dropped and computed "
     "again, and the exit code is 1",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_VERIFY, true,
     ctl_session_verify},
    {"session pin", "ID", 1, 1, "keep what is stored of it when others must go",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_session_pin},
    {"session unpin", "ID", 1, 1, "as the others again",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_session_unpin},
    {"session park", "ID", 1, 1,
     "store what is in memory of it, and let go of that",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_session_park},
    {"session export", "ID", 1, 1,
     "write a session into a file that any node of this model can import",
     CTL_ROWS_CALL | CTL_ROWS_EXPORT, true, ctl_session_export},
    {"session import", "FILE", 1, 1,
     "make a session of such a file; - is stdin",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_IMPORT, true,
     ctl_session_import},
    {"node get", "[NODE]", 0, 1, "show the node",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, true, ctl_node_get},
    {"bench streams", "", 0, 0,
     "hold replies open, send one long prompt, and show the time between their "
     "tokens before, during and after it",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_STREAMS, true,
     ctl_bench_streams},
    {"bench reuse", "", 0, 0,
     "time prompts that begin alike against prompts that are new",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_REUSE, true, ctl_bench_reuse},
    {"bench", "", 0, 0,
     "put a running node under load by requests that come at their own times, "
     "and show what became of them",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT | CTL_ROWS_LOAD, true, ctl_bench},
    {"version", "", 0, 0, "print this program's version",
     CTL_ROWS_CALL | CTL_ROWS_OUTPUT, false, ctl_version},
};
#define N_COMMAND (sizeof(COMMAND) / sizeof(COMMAND[0]))

static atomic_bool is_interrupted;

/* All commands, or those of one noun. */
static void print_overview(FILE *to, const char *noun)
{
    size_t n = strlen(noun);

    (void)fprintf(to,
                  "%s: talk to a Godwit node\n\n"
                  "usage: " PROGRAM " [OPTION...] %s [WORD...]\n\n",
                  PROGRAM, n ? noun : "COMMAND");
    for (size_t i = 0; i < N_COMMAND; i++) {
        int width = (int)strlen(COMMAND[i].name) + 1;

        if (strncmp(COMMAND[i].name, noun, n) != 0)
            continue;
        (void)fprintf(to, "  %s %-*s  %s\n", COMMAND[i].name,
                      width < 28 ? 28 - width : 1, COMMAND[i].words,
                      COMMAND[i].about);
    }
    (void)fprintf(
        to,
        "\n'" PROGRAM " COMMAND --help' shows its options; options may stand "
        "anywhere.\nThe node is --endpoint HOST:PORT or GODWIT_ENDPOINT, else "
        "127.0.0.1:50051.\n"
        "Exit: 0 done, 1 failed, 2 bad command line or request, 3 not found, "
        "4 no\nconnection, 6 timeout, 7 refused, 130 interrupted.\n");
}

static void print_help(const struct ctl_command *command)
{
    struct setting row[CTL_ROW_MAX];
    char program[80];
    struct settings settings = {.program = program,
                                .about = command->about,
                                .row = row,
                                .n_row = ctl_rows(command->groups, row)};

    (void)snprintf(program, sizeof(program), PROGRAM " %s%s%s", command->name,
                   *command->words ? " " : "", command->words);
    settings_help(&settings, stdout);
}

/* Is `word` the first of a command's two words? */
static bool is_noun(const char *word)
{
    size_t n = strlen(word);

    for (size_t i = 0; i < N_COMMAND; i++)
        if (strncmp(COMMAND[i].name, word, n) == 0 && COMMAND[i].name[n] == ' ')
            return true;
    return false;
}

/* Whose name the first words spell; *out_used: how many words that took. */
static const struct ctl_command *find_command(const char *const *word,
                                              int n_word, int *out_used)
{
    for (size_t i = 0; i < N_COMMAND; i++) {
        const char *name = COMMAND[i].name, *space = strchr(name, ' ');
        size_t n_first = space ? (size_t)(space - name) : strlen(name);

        if (n_word < 1 + (space != NULL) || strlen(word[0]) != n_first ||
            strncmp(word[0], name, n_first) != 0)
            continue;
        if (space && strcmp(word[1], space + 1) != 0)
            continue;
        *out_used = 1 + (space != NULL);
        return &COMMAND[i];
    }
    return NULL;
}

static enum status unknown_command(const char *const *word, int n_word)
{
    if (n_word == 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "a command is needed, see " PROGRAM " help");
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "'%s%s%s' is no command, see " PROGRAM " help", word[0],
                       n_word > 1 ? " " : "", n_word > 1 ? word[1] : "");
}

/* All signals that end the program come here, so that the call is cancelled
   and the node stops working for nobody. */
static void *await_signal(void *client)
{
    sigset_t set;
    int number;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGUSR1); /* from stop_waiting() */
    while (sigwait(&set, &number) != 0) {
    }
    if (number != SIGUSR1) {
        atomic_store(&is_interrupted, true);
        client_cancel(client);
    }
    return NULL;
}

static void block_signals(void)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGUSR1);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static enum status connect_client(struct ctl *ctl, bool is_long)
{
    const struct ctl_options *options = &ctl->options;
    struct client_options client = {
        .endpoint = options->endpoint,
        .tls_ca = options->tls_ca,
        .tls_cert = options->tls_cert,
        .tls_key = options->tls_key,
        .tenant = options->tenant,
        .timeout_ms = is_long ? 0 : SHORT_TIMEOUT_MS,
    };

    if (options->timeout > 0)
        client.timeout_ms =
            options->timeout < 0.001 ? 1 : (uint32_t)(options->timeout * 1000);
    client_silence();
    return client_create(&client, &ctl->client);
}

/* Threads are made only after the signals are blocked, so all block them. */
static enum status run_calling(const struct ctl_command *command,
                               struct ctl *ctl)
{
    bool is_long = command->run == ctl_generate ||
                   command->run == ctl_session_checkpoint ||
                   command->run == ctl_session_policy ||
                   command->run == ctl_session_verify ||
                   command->run == ctl_session_export ||
                   command->run == ctl_session_import ||
                   (command->groups & CTL_ROWS_BENCH) != 0;
    pthread_t thread;
    enum status st;

    block_signals();
    st = connect_client(ctl, is_long);
    if (st)
        return st;
    if (pthread_create(&thread, NULL, await_signal, ctl->client)) {
        client_destroy(ctl->client);
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no more threads");
    }
    st = command->run(ctl);
    (void)pthread_kill(thread, SIGUSR1);
    (void)pthread_join(thread, NULL);
    client_destroy(ctl->client);
    return st;
}

/* With the command known, only its own options are accepted. */
static enum status run_command(const struct ctl_command *command, int used,
                               int argc, char **argv)
{
    struct setting row[CTL_ROW_MAX];
    struct settings settings = {.program = PROGRAM,
                                .about = command->about,
                                .row = row,
                                .n_row = ctl_rows(command->groups, row)};
    const char **word = calloc((size_t)argc + 1, sizeof(*word));
    struct settings_store *store = NULL;
    struct ctl ctl = {0};
    enum status st;

    if (!word)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory");
    st = settings_read(&settings, argc, argv, word, argc, &ctl.n_word,
                       &ctl.options, &store);
    if (st)
        goto out;
    if (ctl.options.wants_help) {
        print_help(command);
        goto out;
    }
    ctl.word = word + used;
    ctl.n_word -= used;
    if (ctl.n_word < command->min_word || ctl.n_word > command->max_word) {
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "'%s' takes %s, %d words are given", command->name,
                         *command->words ? command->words : "no words",
                         ctl.n_word);
        goto out;
    }
    st = command->calls ? run_calling(command, &ctl) : command->run(&ctl);
out:
    settings_release(store);
    free(word);
    return st;
}

/* Read once with the options of all commands, only to find the words. */
static enum status run(int argc, char **argv)
{
    struct setting row[CTL_ROW_MAX];
    struct settings settings = {.program = PROGRAM,
                                .about = "talk to a Godwit node",
                                .row = row,
                                .n_row = ctl_rows(~0u, row)};
    const char **word = calloc((size_t)argc + 1, sizeof(*word));
    const struct ctl_command *command;
    struct settings_store *store = NULL;
    struct ctl_options ignored;
    int n_word = 0, used = 0;
    enum status st;

    if (!word)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory");
    st = settings_read(&settings, argc, argv, word, argc, &n_word, &ignored,
                       &store);
    if (st)
        goto out;
    if (n_word > 0 && strcmp(word[0], "help") == 0) {
        command = find_command(word + 1, n_word - 1, &used);
        if (command)
            print_help(command);
        else if (n_word < 2 || (n_word == 2 && is_noun(word[1])))
            print_overview(stdout, n_word < 2 ? "" : word[1]);
        else
            st = unknown_command(word + 1, n_word - 1);
        goto out;
    }
    command = find_command(word, n_word, &used);
    if (command)
        st = run_command(command, used, argc, argv);
    else if (ignored.wants_help &&
             (n_word == 0 || (n_word == 1 && is_noun(word[0]))))
        print_overview(stdout, n_word == 0 ? "" : word[0]);
    else
        st = unknown_command(word, n_word);
out:
    settings_release(store);
    free(word);
    return st;
}

static enum ctl_exit exit_code(enum status st)
{
    const struct cause *cause = status_cause();

    if (!st)
        return CTL_DONE;
    if (atomic_load(&is_interrupted))
        return CTL_INTERRUPTED;
    switch ((int)st) {
    case STATUS_INVALID_ARGUMENT:
    case STATUS_OUT_OF_RANGE:
        return CTL_USAGE;
    case STATUS_NOT_FOUND:
        return CTL_NOT_FOUND;
    case STATUS_UNAVAILABLE: /* a node that answers has a reason of its own */
        return strcmp(cause->reason, "NO_SERVER") == 0 ||
                       strcmp(cause->reason, "CONNECTION_LOST") == 0
                   ? CTL_NO_CONNECTION
                   : CTL_REFUSED;
    case STATUS_DEADLINE_EXCEEDED:
        return CTL_TIMEOUT;
    case STATUS_ALREADY_EXISTS:
    case STATUS_PERMISSION_DENIED:
    case STATUS_RESOURCE_EXHAUSTED:
    case STATUS_FAILED_PRECONDITION:
    case STATUS_ABORTED:
    case STATUS_UNIMPLEMENTED:
    case STATUS_UNAUTHENTICATED:
        return CTL_REFUSED;
    default:
        return CTL_FAILED;
    }
}

/* Has the node a name for it? Ours say all in their words. */
static bool is_named(const struct cause *cause)
{
    return *cause->reason && strcmp(cause->reason, "CONNECTION_LOST") != 0 &&
           strcmp(cause->reason, "INTERRUPTED") != 0;
}

static void print_error(void)
{
    const struct cause *cause = status_cause();
    bool is_refused_port = strstr(cause->text, "Connection refused") != NULL;

    if (atomic_load(&is_interrupted) &&
        strcmp(cause->reason, "INTERRUPTED") != 0) {
        (void)fprintf(stderr, PROGRAM ": interrupted\n");
        return;
    }
    (void)fprintf(stderr, PROGRAM ": ");
    if (strcmp(cause->reason, "NO_SERVER") == 0 &&
        (strstr(cause->text, "handshake") ||
         strstr(cause->text, "Socket closed"))) { /* someone listens there */
        (void)fprintf(stderr,
                      "%s; check --tls-ca, --tls-cert and "
                      "--tls-key\n",
                      cause->text);
        return;
    }
    if (strcmp(cause->reason, "NO_SERVER") == 0) {
        /* Core's own words help only when they say more than "refused". */
        const char *end = strstr(cause->text, ": ");
        int n = is_refused_port && end ? (int)(end - cause->text)
                                       : (int)strlen(cause->text);

        (void)fprintf(stderr,
                      "%.*s; start one with 'godwitd' or pass --endpoint "
                      "HOST:PORT\n",
                      n, cause->text);
        return;
    }
    (void)fprintf(stderr, "%s", cause->text);
    if (*cause->field && !strstr(cause->text, cause->field))
        (void)fprintf(stderr, " (field %s)", cause->field);
    if (cause->retry_ms > 0)
        (void)fprintf(stderr, "; try again in %.1f s", cause->retry_ms / 1e3);
    if (is_named(cause))
        (void)fprintf(stderr, " [%s]", cause->reason);
    (void)fputc('\n', stderr);
}

enum status ctl_version(struct ctl *ctl)
{
    struct output *output;
    enum status st;

    if (ctl_format(ctl) == OUTPUT_TABLE) {
        (void)puts(PROGRAM " " GODWIT_VERSION);
        return STATUS_OK;
    }
    st = output_create(ctl_format(ctl), "Version", false, &output);
    if (st)
        return st;
    output_row(output);
    output_text(output, "version", GODWIT_VERSION);
    st = output_write(output);
    output_destroy(output);
    return st;
}

int main(int argc, char **argv)
{
    enum status st = run(argc, argv);

    if (!st && (fflush(stdout) || ferror(stdout)))
        st = status_fail(STATUS_INTERNAL, "cannot write to stdout");
    if (st)
        print_error();
    return (int)exit_code(st);
}
