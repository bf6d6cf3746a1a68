#ifndef NODE_BENCH_NODE_H
#define NODE_BENCH_NODE_H
/*
 * Tokens per second of a whole node but for the network: commands in through
 * the inbox ring, events out of the outbox ring, scheduler, sampler and journal
 * on. What a client can get at most; beside `bench`'s bare rows it shows what
 * durability and scheduling cost.
 */
#include "base/status.h"
#include "model/model.h"
#include "node/thread_times.h"

#include <stdint.h>

struct bench_node_options {
    const char *model;     /* directory, or */
    const char *synthetic; /* a config's file; else NULL */
    struct model_choice choice;
    uint64_t n_thread;
    const char *data; /* parent of the scratch directory; "" for /tmp */
};

struct bench_node;

/*
 * Start a node on an empty scratch directory.  as node_start()
 *   PERMISSION_DENIED  the scratch directory cannot be made
 */
MUST_CHECK enum status
bench_node_start(const struct bench_node_options *options,
                 struct bench_node **out);
/* Stop it and remove the directory; accepts NULL. */
void bench_node_stop(struct bench_node *bench);
const struct model *bench_node_model(const struct bench_node *bench);

#define BENCH_NODE_SESSION_MAX 64u

struct bench_node_result {
    double prefill; /* tokens per second up to the last session's first token */
    double decode;  /* of all sessions at once; committed and sent tokens */
    double *ttft_us;  /* [n_session], ascending; owned, as is: */
    double *token_us; /* [n_token] between tokens of a session, ascending */
    size_t n_session, n_token;
    struct thread_times prefill_times, decode_times; /* of the two turns */
};
void bench_node_result_release(struct bench_node_result *result);

/*
 * n_session new sessions at once, each with n_prompt input tokens, unlike those
 * of any session before, and one sampled token; then a second turn of all of
 * them, with one input token, of which the n_output tokens behind the first
 * are the decode.
 *   RESOURCE_EXHAUSTED  no memory; as the engine's errors
 */
MUST_CHECK enum status bench_node_run(struct bench_node *bench,
                                      uint32_t n_session, uint64_t n_prompt,
                                      uint32_t n_output,
                                      struct bench_node_result *out);
#endif
