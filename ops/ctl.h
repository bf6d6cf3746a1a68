#ifndef OPS_CTL_H
#define OPS_CTL_H
/*
 * godwitctl: one command line, one call of a node (or a few), one exit code.
 * Stdout is data, stderr is talk. A command is a function that returns a status
 * whose cause becomes the one line on stderr; only main() prints errors and
 * only it decides the exit code.
 */
#include "base/settings.h"
#include "godwit/v1/session.pb-c.h"
#include "ops/output.h"
#include "rpc/client.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CTL_MESSAGE_MAX (16u << 20) /* bytes of a request: the node's limit */
/* Bytes of a prompt: leaves room for the rest of its request. */
#define CTL_PROMPT_MAX (CTL_MESSAGE_MAX - 65536u)

enum ctl_exit {
    CTL_DONE = 0,
    CTL_FAILED = 1,
    CTL_USAGE = 2,
    CTL_NOT_FOUND = 3,
    CTL_NO_CONNECTION = 4,
    CTL_TIMEOUT = 6,
    CTL_REFUSED = 7,
    CTL_INTERRUPTED = 130,
};

/* Every option of every command; a command fills those that it knows. */
struct ctl_options {
    const char *endpoint, *tls_ca, *tls_cert, *tls_key;
    const char *output; /* table, tsv or json */
    double timeout;     /* seconds; 0: none */
    bool wants_help;

    const char *session, *prompt, *prompt_file, *system, *request_id, *stop;
    const char *temperature, *top_p, *top_k, *min_p, *seed, *resume_from;
    const char *reread, *gemfilter;
    uint64_t max_tokens; /* 0: the node's default */
    const char *progress;
    bool is_chat, has_special, creates, ignores_eos, wants_stats;

    const char *labels, *durability, *policy, *prefix, *etag;
    const char *fork_name, *fork_at, *rewind_to;
    bool replays;
    const char *file, *tenant, *seal_for, *show;
    bool has_state, is_sealed, is_log_only;
    uint64_t ttl; /* seconds; 0: never */
    uint64_t from, limit;
    bool allows_missing;

    /* bench */
    double rate, seconds, drain, sheddable, window;
    uint64_t requests, at_once, max_flight, shared_tokens, tenants;
    const char *prompt_tokens, *reply_tokens, *deadline_ms;
    const char *arrivals, *input, *trace, *replies;
    bool verifies;
    uint64_t streams, stream_tokens, long_tokens;
    const char *prefixes;
    uint64_t repeats, tail_tokens, answer_tokens;
};

struct ctl {
    struct ctl_options options;
    struct client *client; /* NULL for a command that calls nobody */
    const char **word;     /* what follows the command's own words; borrowed */
    int n_word;
};

struct ctl_command {
    const char *name;  /* "session get" */
    const char *words; /* of the usage line: "ID" */
    int min_word, max_word;
    const char *about;
    unsigned groups; /* CTL_ROWS_*: whose options it takes */
    bool calls;      /* needs a client */
    enum status (*run)(struct ctl *ctl);
};

/* Groups of options, each a bit. */
#define CTL_ROWS_CALL 1u
#define CTL_ROWS_OUTPUT 2u
#define CTL_ROWS_PROMPT 4u
#define CTL_ROWS_GENERATE 8u
#define CTL_ROWS_SETTINGS 16u /* of a session */
#define CTL_ROWS_LIST 32u
#define CTL_ROWS_RANGE 64u
#define CTL_ROWS_DELETE 128u
#define CTL_ROWS_SPECIAL 256u
#define CTL_ROWS_LOAD 512u /* of the three benches */
#define CTL_ROWS_STREAMS 1024u
#define CTL_ROWS_REUSE 2048u
#define CTL_ROWS_FORK 4096u
#define CTL_ROWS_REWIND 8192u
#define CTL_ROWS_VERIFY 16384u
#define CTL_ROWS_EXPORT 32768u
#define CTL_ROWS_IMPORT 65536u
#define CTL_ROWS_INSPECT 131072u
#define CTL_ROWS_POLICY 262144u
#define CTL_ROWS_BENCH (CTL_ROWS_LOAD | CTL_ROWS_STREAMS | CTL_ROWS_REUSE)

/*
 * The rows of these groups, `help` included, in an array of at least
 * CTL_ROW_MAX; returns how many.
 */
#define CTL_ROW_MAX 80u
size_t ctl_rows(unsigned groups, struct setting out[CTL_ROW_MAX]);

/* Commands, one file per noun. */
enum status ctl_generate(struct ctl *ctl);
enum status ctl_tokenize(struct ctl *ctl);
enum status ctl_detokenize(struct ctl *ctl);
enum status ctl_session_create(struct ctl *ctl);
enum status ctl_session_list(struct ctl *ctl);
enum status ctl_session_get(struct ctl *ctl);
enum status ctl_session_update(struct ctl *ctl);
enum status ctl_session_tokens(struct ctl *ctl);
enum status ctl_session_delete(struct ctl *ctl);
enum status ctl_session_fork(struct ctl *ctl);
enum status ctl_session_rewind(struct ctl *ctl);
enum status ctl_session_checkpoint(struct ctl *ctl);
enum status ctl_session_policy(struct ctl *ctl);
enum status ctl_session_inspect(struct ctl *ctl);
enum status ctl_session_verify(struct ctl *ctl);
enum status ctl_session_export(struct ctl *ctl);
enum status ctl_session_import(struct ctl *ctl);
enum status ctl_session_park(struct ctl *ctl);
enum status ctl_session_pin(struct ctl *ctl);
enum status ctl_session_unpin(struct ctl *ctl);
enum status ctl_node_get(struct ctl *ctl);
enum status ctl_bench(struct ctl *ctl);
enum status ctl_bench_streams(struct ctl *ctl);
enum status ctl_bench_reuse(struct ctl *ctl);
enum status ctl_version(struct ctl *ctl);

/*
 * Pack the request and call; `each` as in client_call(). Errors as there, and
 *   INVALID_ARGUMENT    the request is above CTL_MESSAGE_MAX
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status ctl_stream(struct ctl *ctl, const char *method,
                                  const ProtobufCMessage *request,
                                  client_each *each, void *context);

/*
 * A unary call; *out is of type `answer`, protobuf_c_message_free_unpacked()
 * it. INTERNAL  the answer does not parse, or there is none
 */
MUST_CHECK enum status ctl_unary(struct ctl *ctl, const char *method,
                                 const ProtobufCMessage *request,
                                 const ProtobufCMessageDescriptor *answer,
                                 ProtobufCMessage **out);

/*
 * The value of an option that is text because it may be absent.
 *   INVALID_ARGUMENT  no such number
 */
MUST_CHECK enum status ctl_parse_u64(const char *name, const char *text,
                                     uint64_t *out);
MUST_CHECK enum status ctl_parse_float(const char *name, const char *text,
                                       float *out);

/* As --output says. */
enum output_format ctl_format(const struct ctl *ctl);

/* Outside bytes that a command sends. */
struct ctl_text {
    char *bytes; /* NUL behind them; owned, free() */
    size_t n_bytes;
};

/*
 * The text of --prompt, of --prompt-file ("-": stdin) or of `word` (may be
 * NULL); exactly one must be given.
 *   INVALID_ARGUMENT  none or two of them, not UTF-8 (names the byte), or more
 *                     than CTL_PROMPT_MAX bytes
 *   INTERNAL          there is no such file, or it cannot be read: NOT_FOUND
 *                     is kept for what the node does not have
 */
MUST_CHECK enum status ctl_read_prompt(const struct ctl *ctl, const char *word,
                                       struct ctl_text *out);

/* True when they are UTF-8; else *out_bad is the offset of the first that is
   not (overlong forms and surrogates are not). */
bool ctl_is_utf8(const char *bytes, size_t n_bytes, size_t *out_bad);

/* "sessions/chat-7" is shown as "chat-7". */
const char *ctl_short_name(const char *name);

/* What the answer to a call is, a Session, shown. */
MUST_CHECK enum status ctl_show_session(struct ctl *ctl, const char *method,
                                        const ProtobufCMessage *request);
/* A session that came by another way. */
MUST_CHECK enum status ctl_print_session(struct ctl *ctl,
                                         const Godwit__V1__Session *session);

/* "chat-7" and "sessions/chat-7" both give "sessions/chat-7"; free() it. NULL:
   no memory, recorded as the cause. */
char *ctl_session_name(const char *word);
#endif
