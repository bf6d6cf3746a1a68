/*
 * Everything at once, from a seed: sessions in a memory too small for them,
 * readers that pause and vanish, a journal and a store that fail for a while,
 * kills in mid-step, damaged snapshots, sessions that are rewound by a turn,
 * some that change their memory policy with each turn, and forks of the others
 * and of forks that are rewound and deleted; operators meddle. Clients send a
 * request again until it is complete. The oracle: each session's log is that of
 * the same turns alone on an undisturbed node, whatever the seed did (E1, E2,
 * E3, E5 together); a fork's is the beginning of one, and goes on as alone.
 */
#include "base/log.h"
#include "kernels/apart/apart.h"
#include "state/lineage.h"
#include "tests/unit/scheduler/fork_fixture.h"

#include <criterion/criterion.h>

#define N_SESSION 6u
#define N_TURN 4u
#define N_FORK 4u

struct client {
    uint32_t turn;          /* to be done next */
    uint64_t reply;         /* 0: none is open */
    bool is_begun;          /* that turn was sent before */
    uint64_t begin[N_TURN]; /* positions of turns that were completed */
};

/* On a device its sessions go aside, and then to the store. */
static struct node *make_node(bool has_device)
{
    struct node *node = node_create(NULL);

    if (has_device)
        node_load(node, &(struct model_options){.backend = &backend_apart});
    node->options.host_bytes = (size_t)1 << 20;
    return node;
}

static uint64_t draw(uint64_t *seed, uint64_t n)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (*seed >> 33) % n;
}

/* Those are not forked: a fork's judge sees everything. */
static bool has_policies(uint32_t s)
{
    return s % 3 == 2;
}

static struct command *turn_of(struct node *node, uint32_t s, uint32_t t)
{
    static const char *const policy[] = {
        "window:sink=64:window=64", "full",
        "infllm:sink=0:window=0:pick=64:step=16",
        "quest:sink=64:window=0:pick=64:step=8"};
    char name[16], id[16];
    struct command *command;

    snprintf(name, sizeof(name), "s%u", s);
    snprintf(id, sizeof(id), "turn-%u", t);
    command = generate(node, name, id, 1 + (s * 37 + t * 53) % 180, 10 * s + t);
    command->generate.sampling.max_tokens = 4 + (s * 5 + t * 9) % 25;
    command->generate.sampling.top_p = s % 2 ? 0.9f : 1;
    command->generate.sampling.presence_penalty = s % 3 ? 0 : 0.5f;
    command->generate.is_append = (s + t) % 5 == 4;
    command->generate.priority = (int32_t)(s + 2 * t) % 3 - 1;
    return under(command, has_policies(s) ? policy[(s / 3 + t) % 4] : NULL);
}

static void damage(struct store *store, uint64_t *seed)
{
    struct store_batch *batch = store_batch_create(store);
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes;

    must(store_scan_open(store, &(struct store_range){"\1", 1, "\377", 1},
                         false, &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes)) {
        if (value_bytes == 0 || draw(seed, 4) != 0)
            continue;
        char *copy = malloc(value_bytes);
        memcpy(copy, value, value_bytes);
        copy[draw(seed, value_bytes)] ^= (char)(1 << draw(seed, 8));
        store_batch_put(batch, key, key_bytes, copy, value_bytes);
        free(copy);
    }
    store_scan_close(scan);
    must(store_write(store, batch, true));
    store_batch_destroy(batch);
}

/* No snapshot may be ahead of the journal, or at its very end. */
static enum status check_snapshots(void *context,
                                   const struct session_meta *meta,
                                   uint64_t n_token)
{
    struct node *node = context;
    struct snapshot_entry entry[16];
    uint32_t n = 0;

    if (snapshot_list(node->snapshots, log_path_own(&meta->path), entry, 16,
                      &n))
        return STATUS_OK; /* damaged by an earlier restart */
    for (uint32_t i = 0; i < n; i++)
        cr_assert_lt(entry[i].position, n_token);
    return STATUS_OK;
}

static void set_faults(struct node *node, bool is_journal, bool is_bulk)
{
    store_memory_faults(node->journal_store)->is_read_only = is_journal;
    store_memory_faults(node->bulk_store)->is_read_only = is_bulk;
}

static void disturb(struct node *node, struct client *client, uint64_t *seed)
{
    uint64_t n_bad;

    if (draw(seed, 3) == 0)
        node_stop(node);
    else
        node_kill(node);
    set_faults(node, false, false);
    if (draw(seed, 2) == 0)
        damage(node->bulk_store, seed);
    for (uint32_t s = 0; s < N_SESSION; s++)
        client[s].reply = 0;
    for (uint32_t i = 0; i < REPLY_MAX; i++)
        reply_release(&node->reply[i]);
    node->last_reply = 0;
    node_start(node);
    must(journal_each_session(node->journal, check_snapshots, node, &n_bad));
}

/* Should the rewind fail, the turn is there and is replayed. */
static void step_back(struct node *node, struct client *one, uint32_t s)
{
    char name[16];
    struct command *command;

    snprintf(name, sizeof(name), "s%u", s);
    command = about(node, COMMAND_TRUNCATE_SESSION, name);
    command->target.from = one->begin[--one->turn];
    one->is_begun = true;
    node_send(node, command);
}

/* Whatever comes of it: the end only asks what is there. */
static void branch(struct node *node, uint64_t *seed)
{
    char from[16], name[16];
    uint32_t s = (uint32_t)draw(seed, N_SESSION);
    struct command *command;

    snprintf(name, sizeof(name), "f%lu", draw(seed, N_FORK));
    if (draw(seed, 4) == 0)
        snprintf(from, sizeof(from), "f%lu", draw(seed, N_FORK));
    else
        snprintf(from, sizeof(from), "s%u", has_policies(s) ? s - 1 : s);
    switch (draw(seed, 4)) {
    case 0:
        command = about(node, COMMAND_DELETE_SESSION, name);
        break;
    case 1:
        command = about(node, COMMAND_TRUNCATE_SESSION, name);
        command->target.from = draw(seed, 300);
        break;
    default:
        command = fork_of(node, from, name);
        command->fork.has_position = draw(seed, 2) == 0;
        command->fork.position = draw(seed, 300);
        break;
    }
    node_send(node, command);
}

/* What operators do beside clients; whatever comes of it. */
static void meddle(struct node *node, uint64_t *seed)
{
    static const enum command_kind kind[] = {
        COMMAND_CHECKPOINT_SESSION, COMMAND_VERIFY_SESSION,
        COMMAND_INSPECT_SESSION, COMMAND_PARK_SESSION, COMMAND_READ_TOKENS};
    const uint64_t k = draw(seed, 7);
    struct command *command;
    char name[16];

    snprintf(name, sizeof(name), "s%lu", draw(seed, N_SESSION));
    if (k < 5) {
        command = about(node, kind[k], name);
        if (kind[k] == COMMAND_VERIFY_SESSION)
            command->target.replays = draw(seed, 2) == 0;
    } else if (k == 5) {
        command = command_make(COMMAND_UPDATE_SESSION, node_reply(node));
        snprintf(command->update.session, SESSION_NAME_SIZE, "%s", name);
        command->update.sets_pinned = true;
        command->update.is_pinned = draw(seed, 2) == 0;
    } else { /* and of somebody without a session */
        command = generate(node, "", "", 1 + (uint32_t)draw(seed, 200), 0);
    }
    node_send(node, command);
}

static void send_turn(struct node *node, struct client *one, uint32_t s)
{
    struct command *command = turn_of(node, s, one->turn);

    one->reply = command->reply;
    one->is_begun = true;
    node_send(node, command);
}

static void act(struct node *node, struct client *client, uint64_t *seed)
{
    struct client *one = &client[draw(seed, N_SESSION)];
    uint32_t s = (uint32_t)(one - client);

    if (one->reply && node->reply[one->reply].is_over) {
        const struct reply *reply = &node->reply[one->reply];
        if (reply->last == EVENT_COMPLETE) {
            one->begin[one->turn++] = reply->accepted_position;
            one->is_begun = false;
        }
        one->reply = 0;
    }
    if (!one->reply && one->turn > 0 && !one->is_begun && draw(seed, 12) == 0) {
        step_back(node, one, s);
        if (draw(seed, 2) == 0)
            return;
        set_faults(node, true, false); /* it is lost, and what is behind it */
        send_turn(node, one, s);
        return;
    }
    if (!one->reply && one->turn < N_TURN) {
        send_turn(node, one, s);
        return;
    }
    if (!one->reply)
        return;
    switch (draw(seed, 12)) {
    case 0:
        node_subject(node, COMMAND_PAUSE, one->reply);
        break;
    case 1:
    case 2:
    case 3:
        node_subject(node, COMMAND_RESUME, one->reply);
        break;
    case 4:
        node_subject(node, COMMAND_DETACH, one->reply);
        one->reply = 0;
        break;
    case 5: /* the same once more while it runs */
        send_turn(node, one, s);
        break;
    default:
        break;
    }
}

/* A session's log on a node of its own, which a test makes once. */
static const struct reply *alone(uint32_t s, bool has_device)
{
    static struct reply log[N_SESSION];
    struct node *node;
    char name[16];

    if (log[s].token)
        return &log[s];
    node = make_node(has_device);
    node_start(node);
    for (uint32_t t = 0; t < N_TURN; t++)
        need(node_call(node, turn_of(node, s, t))->last == EVENT_COMPLETE);
    snprintf(name, sizeof(name), "s%u", s);
    log[s] = reply_log(node_read(node, name));
    node_destroy(node);
    return &log[s];
}

static void expect_alone(struct node *node, uint32_t s, uint64_t seed)
{
    const struct reply *want = alone(s, model_device(node->model) != NULL);
    const struct reply *got;
    char name[16];

    snprintf(name, sizeof(name), "s%u", s);
    got = node_read(node, name);
    cr_assert_eq(got->n_token, want->n_token, "seed %lu: s%u has %u not %u",
                 seed, s, got->n_token, want->n_token);
    cr_assert(same_tokens(got, want), "seed %lu: s%u differs", seed, s);
}

static bool begins_with(const struct reply *log, const struct reply *start)
{
    return log->n_token >= start->n_token &&
           (start->n_token == 0 ||
            memcmp(log->token, start->token, start->n_token * 4) == 0);
}

/* True if there is such a fork. */
static bool expect_fork(struct node *node, struct node *judge, uint32_t f,
                        uint64_t seed)
{
    char name[16], source[16];
    const struct reply *log;
    bool is_found = false;

    snprintf(name, sizeof(name), "f%u", f);
    log = node_read(node, name);
    if (log->last == EVENT_ERROR)
        return false;
    for (uint32_t s = 0; s < N_SESSION; s++) {
        snprintf(source, sizeof(source), "s%u", s);
        is_found |= begins_with(node_read(node, source), log);
    }
    cr_assert(is_found, "seed %lu: %s is nobody's beginning", seed, name);
    go_on(node, name, 3, 4, 99);
    cr_assert(judge_agrees(judge, node, name, 4, 99), "seed %lu: %s", seed,
              name);
    return true;
}

static bool is_done(const struct client *client)
{
    for (uint32_t s = 0; s < N_SESSION; s++)
        if (client[s].turn < N_TURN)
            return false;
    return true;
}

static bool is_awaited(const struct engine *engine)
{
    for (uint64_t i = 0; i < engine->n_session; i++)
        if (engine->table[i]->resident &&
            engine->table[i]->resident->n_checkpoint > 0)
            return true;
    return engine->errands || engine->n_request > 0;
}

/* Replies are numbered anew then: none may be under way. */
static void end_replies(struct node *node)
{
    set_faults(node, false, false);
    fork_settle(node);
    for (uint32_t i = 0; i < STEP_LIMIT && is_awaited(node->engine); i++) {
        ring_wait(node->inbox, 1);
        fork_settle(node);
    }
    cr_assert(!is_awaited(node->engine));
    forget_replies(node);
}

/* What is left at its end: how many forks there were. */
static uint32_t expect_all(struct node *node, uint64_t number)
{
    struct node *judge = make_node(model_device(node->model) != NULL);
    uint32_t n_fork = 0;

    judge->options.prefix_bytes = 0;
    node_start(judge);
    end_replies(node);
    for (uint32_t s = 0; s < N_SESSION; s++)
        expect_alone(node, s, number);
    for (uint32_t f = 0; f < N_FORK; f++)
        n_fork += expect_fork(node, judge, f, number);
    node_destroy(judge);
    return n_fork;
}

/* How many forks there were at its end. */
static uint32_t run(uint64_t number, bool has_device)
{
    struct node *node = make_node(has_device);
    struct client client[N_SESSION] = {0};
    uint64_t seed = number * 7919 + 1;
    uint32_t i, n_fork;

    node->has_pager = !has_device && number % 2 == 1;
    node->options.session_bytes =
        (2 + draw(&seed, 3)) * memory_bytes_for(node->model, NULL, 900);
    node->options.max_running = 1 + (uint32_t)draw(&seed, 6);
    node->options.max_queue = 3;
    node_tick(node, draw(&seed, 3) * 3000);
    node_start(node);
    for (i = 0; i < 20000 && !is_done(client); i++) {
        uint64_t dice = draw(&seed, 300);
        if (dice == 0 || node->last_reply + 20 > REPLY_MAX)
            disturb(node, client, &seed);
        else if (dice == 1)
            set_faults(node, true, draw(&seed, 2));
        else if (dice == 2)
            set_faults(node, false, true);
        else if (dice < 20)
            set_faults(node, false, false);
        else if (dice < 110)
            act(node, client, &seed);
        else if (dice < 120)
            branch(node, &seed);
        else if (dice < 126)
            meddle(node, &seed);
        else if (!node_step(node))
            ring_wait(node->inbox, 1);
    }
    cr_assert(is_done(client), "seed %lu hangs", number);
    n_fork = expect_all(node, number);
    node_destroy(node);
    return n_fork;
}

Test(engine_chaos, every_log_is_that_of_an_undisturbed_node)
{
    log_set_level(LOG_ERROR + 1); /* faults are planned here */
    uint32_t n_fork = 0;

    for (uint64_t number = 1; number <= 8; number++)
        n_fork += run(number, false);
    cr_assert_gt(n_fork, 8, "forks are not what was tried");
}

Test(engine_chaos, and_on_a_device)
{
    log_set_level(LOG_ERROR + 1);
    for (uint64_t number = 9; number <= 14; number++)
        (void)run(number, true);
}
