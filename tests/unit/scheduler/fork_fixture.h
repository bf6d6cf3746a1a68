#ifndef TESTS_UNIT_SCHEDULER_FORK_FIXTURE_H
#define TESTS_UNIT_SCHEDULER_FORK_FIXTURE_H
/*
 * Forks, rewinds, and the judge of them: another node, undisturbed and without
 * shared prefixes, that gets a branch's tokens as one prompt of a new session.
 */
#include "scheduler/engine_calls.h"
#include "state/store_key.h"
#include "tests/unit/scheduler/fixture.h"

static inline struct node *fork_node(void)
{
    struct node *node = node_create(NULL);

    node_start(node);
    return node;
}

static inline struct node *judge_create(void)
{
    struct node *node = node_create(NULL);

    node->options.prefix_bytes = 0;
    node_start(node);
    return node;
}

static inline struct command *fork_of(struct node *node, const char *session,
                                      const char *name)
{
    struct command *command =
        command_make(COMMAND_FORK_SESSION, node_reply(node));

    snprintf(command->fork.session, SESSION_NAME_SIZE, "%s", session);
    snprintf(command->fork.name, SESSION_NAME_SIZE, "%s", name);
    return command;
}

static inline struct reply *fork_at(struct node *node, const char *session,
                                    const char *name, uint64_t position)
{
    struct command *command = fork_of(node, session, name);

    command->fork.has_position = true;
    command->fork.position = position;
    return node_call(node, command);
}

static inline struct reply *rewind_to(struct node *node, const char *session,
                                      uint64_t position)
{
    struct command *command = about(node, COMMAND_TRUNCATE_SESSION, session);

    command->target.from = position;
    return node_call(node, command);
}

static inline struct reply *erase(struct node *node, const char *session)
{
    return node_call(node, about(node, COMMAND_DELETE_SESSION, session));
}

/* n_input tokens more, and n_output sampled ones. */
static inline struct reply *go_on(struct node *node, const char *session,
                                  uint32_t n_input, uint32_t n_output,
                                  uint32_t salt)
{
    struct command *command = generate(node, session, "", n_input, salt);
    struct reply *reply;

    command->generate.creates = false;
    command->generate.sampling.max_tokens = n_output;
    command->generate.sampling.ignore_eos = true;
    reply = node_call(node, command);
    need(reply_completed(reply, FINISH_LENGTH));
    return reply;
}

/* Numbers of replies are few, so that a long test gives them back. */
static inline void forget_replies(struct node *node)
{
    for (uint32_t i = 0; i < REPLY_MAX; i++)
        reply_release(&node->reply[i]);
    node->last_reply = 0;
}

/* Is the last turn of the session, of n_output tokens made with go_on(salt),
 * what the judge says to all that is before? */
static inline bool judge_agrees(struct node *judge, struct node *node,
                                const char *session, uint32_t n_output,
                                uint32_t salt)
{
    const struct reply *log = node_read(node, session);
    uint32_t n = log->n_token - n_output;
    struct command *command = generate(judge, "", "", n, salt);
    const struct reply *reply;
    bool is_same;

    memcpy((uint32_t *)command->generate.token, log->token, n * 4);
    command->generate.sampling.max_tokens = n_output;
    command->generate.sampling.ignore_eos = true;
    reply = node_call(judge, command);
    is_same = reply->n_token == n_output &&
              memcmp(reply->token, log->token + n, n_output * 4) == 0;
    forget_replies(judge);
    return is_same;
}

/* Rows of a store whose key begins with this letter. */
static inline uint32_t count_rows(struct store *store, char letter)
{
    char to = (char)(letter + 1);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;
    uint32_t n = 0;

    must(store_scan_open(store, &(struct store_range){&letter, 1, &to, 1},
                         false, &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        n++;
    store_scan_close(scan);
    return n;
}

static inline void restart(struct node *node, bool is_kill)
{
    if (is_kill)
        node_kill(node);
    else
        node_stop(node);
    forget_replies(node);
    node_start(node);
}

/* Until nothing is under way: commits, saves and deletions are done. */
static inline void fork_settle(struct node *node)
{
    const struct engine *engine = node->engine;

    for (uint32_t i = 0; i < STEP_LIMIT; i++) {
        node_until(node, 0);
        if (engine->n_job == 0 && engine->n_image == 0 &&
            engine->n_deleted == 0 && !engine->oldest_flight)
            return;
        ring_wait(node->inbox, 20);
    }
    need(!"all is done");
}
#endif
