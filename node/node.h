#ifndef NODE_NODE_H
#define NODE_NODE_H
/*
 * A node without its network: model, stores, rings, engine and their threads,
 * wired in one place and taken down in the opposite order. `godwitd serve` puts
 * the gRPC server in front of the rings; `godwitd bench` talks to them itself,
 * so that what it measures is what serves.
 */
#include "base/clock.h"
#include "base/metrics.h"
#include "base/ring.h"
#include "base/status.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "scheduler/engine.h"

#include <stdint.h>

struct node_options {
    const char *model;     /* directory in the Hugging Face layout, or */
    const char *synthetic; /* a config's file: random weights; or NULL */
    const char *data;      /* directory of the two databases; made if absent */
    struct model_choice choice;
    uint64_t n_thread;    /* 0: one per processor this process may use */
    uint64_t n_context;   /* tokens; 0: the model's own */
    uint64_t session_mib; /* memory of resident sessions; 0: half of what the
                             machine has available after loading */
    uint64_t host_mib;    /* of the host's, with a device */
    uint64_t kv_mib;      /* the same, and sessions that do not see all of
                             their past have a part of it in RAM; 0: all */
    uint64_t state_mib;   /* of either, for states of fixed size; 0: any */
    uint64_t prefix_mib;  /* of the store: snapshots of prompts whose session
                             is not kept; 0: no prefix is shared */
    uint64_t store_mib;   /* of what the store keeps; 0: no limit */
    uint64_t tenant_sessions, tenant_tokens, tenant_mib; /* 0: no limit */
    uint64_t max_running, max_queue, max_sessions;
    uint64_t default_max_tokens;
    uint64_t first_token_ms, inter_token_ms, max_wait_s; /* engine_options */
    const char *durability;                              /* "local", "none" */
    const char *name;                                    /* "": the host's */
    const char *tenant_keys; /* file for bundles; "" or NULL: none */
};

struct node; /* opaque: owns the threads */

/*
 * Load the model, open the databases, read the sessions, start the threads.
 *   as model_load(), tokenizer_load(), store_open_rocksdb(), engine_create()
 */
MUST_CHECK enum status node_start(const struct node_options *options,
                                  struct node **out);

struct ring *node_inbox(struct node *node);  /* of struct command * */
struct ring *node_outbox(struct node *node); /* of struct event * */
const struct model *node_model(const struct node *node);
const struct tokenizer *node_tokenizer(const struct node *node);
struct metrics *node_metrics(struct node *node);
const char *node_name(const struct node *node);

/*
 * Drain the engine: running turns get up to grace_ms to finish, the rest stays
 * open in the journal. Returns when the engine's thread has ended; events are
 * still in the outbox. Somebody must go on emptying the outbox meanwhile.
 */
void node_drain(struct node *node, uint32_t grace_ms);

/* After node_drain(); accepts NULL and a half-started node. */
void node_destroy(struct node *node);

#endif
