/*
 * Sessions of whose blocks only some are in RAM: with as few pages as a step
 * can do with, they say the same as with everything in RAM (E5), whatever else
 * runs, over restarts, forks and blocks that cannot be read. The oracle is the
 * same turns on a node that keeps all blocks.
 */
#include "scheduler/engine_calls.h"
#include "state/pager.h"
#include "state/paging.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

static const char *const POLICY[] = {
    "window:sink=64:window=64",
    "infllm:sink=64:window=64:pick=128:step=8",
    "infllm:sink=0:window=64:pick=64:step=16:index=keys",
    "quest:sink=64:window=64:pick=64:step=8",
    "recycle:sink=64:window=64:pick=64:step=16:reuse=16",
    "sirllm:sink=64:window=64:pick=128:decay=50:turn=11",
};
#define N_POLICY 6u
#define N_TURN 3u
#define LONGEST 1500u /* far more than the pages hold */

static struct node *make_of(const char *dir, bool has_pager)
{
    struct node *node = node_create(dir);

    node->has_pager = has_pager;
    node_start(node);
    return node;
}

static struct node *make(bool has_pager)
{
    return make_of(NULL, has_pager);
}

static struct command *turn_of(struct node *node, const char *name,
                               const char *policy, uint32_t t)
{
    static const uint32_t length[N_TURN] = {LONGEST, 300, 45};
    char id[16];
    struct command *command;

    snprintf(id, sizeof(id), "turn-%u", t);
    command = generate(node, name, id, length[t], 7 + t);
    command->generate.sampling.max_tokens = 40;
    command->generate.sampling.temperature = 1.0f;
    command->generate.sampling.ignore_eos = true;
    return under(command, policy);
}

static struct reply *turn(struct node *node, const char *name,
                          const char *policy, uint32_t t)
{
    return node_completed(node, turn_of(node, name, policy, t));
}

static void settle(struct node *node)
{
    node_until(node, 0);
    while (node->engine->n_image > 0 || node->engine->n_job > 0)
        if (!node_step(node))
            ring_wait(node->inbox, 1);
}

/* That its pages are fewer than its blocks, and blocks were read. */
static void is_paged(struct node *node, const char *name)
{
    const struct session *session = table_find(node->engine, name);
    const struct memory *memory = session->resident->memory;

    cr_assert(memory_paging(memory) != NULL);
    cr_assert_lt(memory_bytes(memory),
                 memory_bytes_for(node->model, &session->policy,
                                  memory_position(memory)));
    cr_assert_leq(node->engine->charged, node->options.session_bytes);
}

/* What an inspection says of its steps is what the node has read. */
static void is_counted(struct node *node, const char *name)
{
    const struct inspection *seen =
        &node_call(node, about(node, COMMAND_INSPECT_SESSION, name))
             ->end->inspected;
    uint64_t n_fetched = 0, n_hit = 0;

    for (uint32_t i = 0; i < seen->n_layer; i++) {
        const struct inspected_layer *layer = &seen->layer[i];

        cr_assert_eq(layer->n_step > 0, strcmp(layer->kind, "softmax") == 0);
        cr_assert_eq(layer->n_fetched > 0, layer->fetched_bytes > 0);
        n_fetched += layer->n_fetched;
        n_hit += layer->n_hit;
    }
    cr_assert_eq(n_fetched, pager_n_read(node->pager));
    cr_assert_eq(n_hit, pager_n_hit(node->pager));
    cr_assert_gt(n_hit, 0);
}

static void same_as_in_ram(const char *policy, bool is_restarted,
                           bool is_killed)
{
    struct node *alone = make(false), *node = make(true);

    for (uint32_t t = 0; t < N_TURN; t++) {
        struct reply *want = turn(alone, "a", t ? NULL : policy, t);
        struct reply *got = turn(node, "a", t ? NULL : policy, t);

        cr_assert(same_tokens(got, want), "%s: turn %u", policy, t);
        is_paged(node, "a");
        if (policy[0] != 'w')
            cr_assert_gt(pager_n_read(node->pager), 0);
        if (!is_restarted) {
            is_counted(node, "a");
            continue;
        }
        settle(node);
        if (is_killed)
            node_kill(node);
        else
            node_stop(node);
        node_start(node);
    }
    node_destroy(alone);
    node_destroy(node);
}

Test(engine_paged, says_the_same_as_in_ram)
{
    for (uint32_t p = 0; p < N_POLICY; p++)
        same_as_in_ram(POLICY[p], false, false);
}

Test(engine_paged, is_loaded_without_its_blocks)
{
    same_as_in_ram(POLICY[1], true, true);
    same_as_in_ram(POLICY[3], true, false);
}

/* Several at once, in slices, beside one that sees all. */
Test(engine_paged, waits_for_nobody)
{
    struct node *alone = make(false), *node = make(true);
    uint64_t reply[N_POLICY + 1];

    node_tick(node, 300);
    for (uint32_t i = 0; i <= N_POLICY; i++) {
        char name[8];
        struct command *command;

        snprintf(name, sizeof(name), "s%u", i);
        command = turn_of(node, name, i < N_POLICY ? POLICY[i] : "full", 0);
        reply[i] = command->reply;
        node_send(node, command);
    }
    for (uint32_t i = 0; i <= N_POLICY; i++) {
        char name[8];

        snprintf(name, sizeof(name), "s%u", i);
        node_until(node, reply[i]);
        cr_assert(reply_completed(&node->reply[reply[i]], FINISH_LENGTH));
        cr_assert(same_tokens(
            &node->reply[reply[i]],
            turn(alone, name, i < N_POLICY ? POLICY[i] : "full", 0)));
    }
    node_destroy(alone);
    node_destroy(node);
}

static void fork_at(struct node *node, const char *name, const char *as,
                    uint64_t at)
{
    struct command *command =
        command_make(COMMAND_FORK_SESSION, node_reply(node));

    snprintf(command->fork.session, SESSION_NAME_SIZE, "%s", name);
    snprintf(command->fork.name, SESSION_NAME_SIZE, "%s", as);
    command->fork.has_position = true;
    command->fork.position = at;
    need(node_call(node, command)->last == EVENT_SESSION);
}

/* A fork reads what its parent has stored. */
Test(engine_paged, is_forked)
{
    struct node *alone = make(false), *node = make(true);

    for (uint32_t i = 0; i < 2; i++) {
        struct node *it = i ? node : alone;

        (void)turn(it, "a", POLICY[1], 0);
        settle(it);
        fork_at(it, "a", "b", LONGEST + 20);
        (void)turn(it, "a", NULL, 1);
        settle(it);
    }
    for (uint32_t t = 1; t < N_TURN; t++)
        cr_assert(
            same_tokens(turn(node, "b", NULL, t), turn(alone, "b", NULL, t)),
            "turn %u", t);
    is_paged(node, "b");
    node_destroy(alone);
    node_destroy(node);
}

static void delete_session(struct node *node, const char *name)
{
    cr_assert_eq(
        node_call(node, about(node, COMMAND_DELETE_SESSION, name))->last,
        EVENT_DONE);
    settle(node);
}

/* Eight forks of one session that see the same have its blocks in RAM once:
 * what is there beside those of one fork is what each wrote itself. They say
 * what one says that keeps all blocks, also when the first is deleted. */
Test(engine_paged, forks_have_their_blocks_in_ram_once)
{
    enum { N_FORK = 8 };
    struct node *alone = make(false), *node = make(true);
    struct pager *pager = node->pager;
    struct policy its;
    size_t one = 0, delta;
    const struct reply *want;

    must(policy_parse(POLICY[1], &its));
    delta = paging_least(node->model, &its) / 2; /* of a fork */
    for (uint32_t i = 0; i < 2; i++) {
        (void)turn(i ? node : alone, "a", POLICY[1], 0);
        settle(i ? node : alone);
    }
    fork_at(alone, "a", "f0", LONGEST + 39);
    want = turn(alone, "f0", NULL, 2);
    for (uint32_t i = 0; i < N_FORK; i++) {
        char name[8];
        size_t own = 0;

        snprintf(name, sizeof(name), "f%u", i);
        fork_at(node, i % 2 ? "f0" : "a", name, LONGEST + 39);
        cr_assert(same_tokens(turn(node, name, NULL, 2), want));
        settle(node);
        is_paged(node, name);
        if (i == 0)
            one = pager_bytes(pager);
        cr_assert_leq(pager_bytes(pager), one + i * delta, "fork %u", i);
        cr_assert_leq(charge_total(node->engine), node->options.session_bytes);
        for (const struct session *s = node->engine->oldest; s; s = s->newer)
            own += s->charge;
        cr_assert_geq(own + pager_shared_bytes(pager), pager_bytes(pager));
    }
    cr_assert_eq(node->engine->n_resident, N_FORK + 1);
    delete_session(node, "a");
    fork_at(node, "f3", "last", LONGEST + 39);
    cr_assert(same_tokens(turn(node, "last", NULL, 2), want));
    for (uint32_t i = 0; i < N_FORK; i++) {
        char name[8];

        snprintf(name, sizeof(name), "f%u", i);
        delete_session(node, name);
    }
    cr_assert_leq(pager_bytes(pager), one);
    delete_session(node, "last");
    cr_assert_eq(pager_bytes(pager), 0);
    node_destroy(alone);
    node_destroy(node);
}

/* A fork made where its parent stands is in RAM at once, reads nothing and
 * takes its states, its tokens and tables; both go on apart, and the fork
 * without its parent, also in the next life. */
Test(engine_paged, a_fork_at_the_end_shares_pages_and_indices)
{
    struct node *alone = make(false), *node = make(true);
    const struct session *fork;
    size_t before, total;
    uint64_t n_read;

    for (uint32_t p = 1; p < N_POLICY; p++) {
        char name[2][8];

        snprintf(name[0], sizeof(name[0]), "a%u", p);
        snprintf(name[1], sizeof(name[1]), "b%u", p);
        for (uint32_t i = 0; i < 2; i++) {
            struct node *it = i ? node : alone;

            (void)turn(it, name[0], POLICY[p], 0);
            settle(it);
            before = i ? pager_bytes(node->pager) : 0;
            total = charge_total(it->engine);
            n_read = i ? pager_n_read(node->pager) : 0;
            fork_at(it, name[0], name[1], LONGEST + 40);
        }
        fork = table_find(node->engine, name[1]);
        cr_assert(fork->resident && memory_paging(fork->resident->memory));
        cr_assert_eq(pager_n_read(node->pager), n_read);
        /* The open block of each layer, and nothing else. */
        cr_assert_leq(
            pager_bytes(node->pager) - before,
            paging_held_bytes(memory_paging(fork->resident->memory)) -
                paging_shared_bytes(memory_paging(fork->resident->memory)));
        cr_assert_leq(charge_total(node->engine) - total,
                      memory_bytes(fork->resident->memory) +
                          fork->resident->tokens.n * sizeof(uint32_t) +
                          sizeof(*fork->resident));
        for (uint32_t t = 1; t < N_TURN; t++)
            for (uint32_t i = 0; i < 2; i++) {
                const struct reply *got = turn(node, name[i], NULL, t);

                cr_assert(same_tokens(got, turn(alone, name[i], NULL, t)),
                          "%s, turn %u", name[i], t);
                if (i && t == 1)
                    cr_assert_eq(got->end->complete.reuse, REUSE_RESIDENT);
            }
        delete_session(node, name[0]);
        cr_assert(same_tokens(turn(node, name[1], NULL, 1),
                              turn(alone, name[1], NULL, 1)));
        settle(node);
    }
    node_kill(node);
    node_start(node);
    cr_assert(
        same_tokens(turn(node, "b2", NULL, 2), turn(alone, "b2", NULL, 2)));
    node_destroy(alone);
    node_destroy(node);
}

/* A fork of "a" that was asked, and says what one says that has all blocks. */
static void ask_fork(struct node *node, const char *name,
                     const struct reply *want)
{
    fork_at(node, "a", name, LONGEST + 40);
    cr_assert(same_tokens(turn(node, name, NULL, 2), want), "%s", name);
    settle(node);
    cr_assert_leq(charge_total(node->engine),
                  node->engine->options.session_bytes);
}

/* Forks that were asked stay in RAM while there is room for what they cannot
 * read again: a running one takes no more pages than its turn needs from them,
 * and they give up pages, with which they come back. */
Test(engine_paged, forks_stay_without_their_pages)
{
    enum { N_FORK = 8 };
    struct node *alone = make(false), *node = make(true);
    const struct reply *want[2];
    struct session *first;
    struct policy its;
    size_t least;

    must(policy_parse(POLICY[1], &its));
    least = paging_least(node->model, &its);
    node->engine->options.page_bytes = 4 * least;
    for (uint32_t i = 0; i < 2; i++) {
        (void)turn(i ? node : alone, "a", POLICY[1], 0);
        settle(i ? node : alone);
    }
    fork_at(alone, "a", "f", LONGEST + 40);
    want[0] = turn(alone, "f", NULL, 2);
    want[1] = turn(alone, "f", NULL, 1);
    ask_fork(node, "f0", want[0]);
    first = table_find(node->engine, "f0");
    for (uint32_t i = 0; i < 2; i++) {
        struct session *it = i ? first : table_find(node->engine, "a");

        cr_assert(paged_trim(it));
        cr_assert_not(paged_trim(it)); /* there is nothing more */
        charge_settle(node->engine, it);
    }
    /* Room for all of them as small as that, and one turn. */
    node->engine->options.session_bytes =
        charge_total(node->engine) + (N_FORK - 1) * first->charge + least * 2;
    for (uint32_t i = 1; i < N_FORK; i++) {
        char name[8];

        snprintf(name, sizeof(name), "f%u", i);
        ask_fork(node, name, want[0]);
    }
    cr_assert_eq(node->engine->n_resident, N_FORK + 1);
    cr_assert_eq(resident_position(first->resident) + 1, first->n_token);
    cr_assert(same_tokens(turn(node, "f0", NULL, 1), want[1]));
    node_destroy(alone);
    node_destroy(node);
}

/* Where there is room for one fork and its turn, the last one leaves for the
 * next: all of them share with their parent, which they come from. Of a model
 * whose states are larger than a page, or there would be room for two. */
Test(engine_paged, forks_leave_before_their_parent)
{
    struct node *node = make_of("assets/models/godwit-tiny", true);
    struct session *parent;
    struct policy its;
    size_t least;

    must(policy_parse(POLICY[1], &its));
    least = paging_least(node->model, &its);
    (void)turn(node, "a", POLICY[1], 0);
    settle(node);
    parent = table_find(node->engine, "a");
    cr_assert(paged_trim(parent));
    charge_settle(node->engine, parent);
    node->engine->options.session_bytes =
        parent->charge + charge_state_bytes(node->engine, parent) +
        least * 5 / 2;
    for (uint32_t i = 0; i < 4; i++) {
        char name[8];

        snprintf(name, sizeof(name), "f%u", i);
        fork_at(node, "a", name, LONGEST + 40);
        cr_assert_eq(turn(node, name, NULL, 2)->end->complete.reuse,
                     REUSE_RESIDENT, "fork %u", i);
        settle(node);
        cr_assert_not_null(parent->resident);
        cr_assert_eq(node->engine->n_resident, 2);
    }
    node_destroy(node);
}

/* Blocks that are not there any more are computed again. */
Test(engine_paged, a_lost_block_is_computed_again)
{
    struct node *alone = make(false), *node = make(true);
    struct store_batch *batch = store_batch_create(node->bulk_store);

    cr_assert(same_tokens(turn(node, "a", POLICY[1], 0),
                          turn(alone, "a", POLICY[1], 0)));
    settle(node);
    store_batch_delete_range(batch, "b", 1, "c", 1);
    must(store_write(node->bulk_store, batch, true));
    store_batch_destroy(batch);
    for (uint32_t t = 1; t < N_TURN; t++)
        cr_assert(
            same_tokens(turn(node, "a", NULL, t), turn(alone, "a", NULL, t)),
            "turn %u", t);
    is_paged(node, "a");
    node_destroy(alone);
    node_destroy(node);
}

/* A disk that takes blocks and gives none back ends the turn, which goes on
 * when it is whole again. */
Test(engine_paged, a_disk_that_reads_nothing_ends_the_turn)
{
    struct node *alone = make(false), *node = make(true);
    struct store_faults *faults = store_memory_faults(node->bulk_store);
    struct reply *want, *got;

    cr_assert(same_tokens(turn(node, "a", POLICY[1], 0),
                          turn(alone, "a", POLICY[1], 0)));
    settle(node);
    faults->unreadable[0] = 'b';
    faults->unreadable_bytes = 1;
    got = node_call(node, turn_of(node, "a", NULL, 1));
    cr_assert(reply_failed(got, STATUS_UNAVAILABLE, "STORE_UNREADABLE"));
    settle(node);
    faults->unreadable_bytes = 0;
    got = turn(node, "a", NULL, 1);
    want = turn(alone, "a", NULL, 1);
    cr_assert(same_tokens(got, want));
    node_destroy(alone);
    node_destroy(node);
}

/* What must have all of its blocks and does not fit is refused; what need not
 * is let in. */
Test(engine_paged, a_session_that_sees_all_must_fit)
{
    struct node *node = make(true);
    const struct reply *reply;

    node_stop(node);
    node->options.session_bytes =
        memory_bytes_for(node->model, NULL, LONGEST) * 3 / 4;
    node_start(node);
    (void)turn(node, "a", POLICY[2], 0);
    reply = node_call(node, turn_of(node, "b", "full", 0));
    cr_assert(reply_failed(reply, STATUS_RESOURCE_EXHAUSTED, "KV_MEMORY"));
    node_destroy(node);
}

#define N_PREFIX 512u
#define N_OWN 900u /* more blocks than twice the pages that a step needs */

/* What every one of them begins with, then tokens of its own. */
static struct command *branch(struct node *node, const char *name,
                              const char *policy, uint32_t n_own)
{
    struct command *command = generate(node, name, "", N_PREFIX + n_own, 5);
    uint32_t *token = (uint32_t *)command->generate.token;

    for (uint32_t t = 0; t < n_own; t++)
        token[N_PREFIX + t] = (uint32_t)(name[0] + t) % 500;
    command->generate.n_shared = N_PREFIX;
    command->generate.sampling.max_tokens = 100;
    command->generate.sampling.ignore_eos = true;
    return under(command, policy);
}

/* A session with pages starts from another's prefix, in this life and in the
 * next one, and needs it no more when it has begun; but not from one that has
 * more blocks than it has pages. */
static void starts_from_anothers(const char *policy, bool is_restarted,
                                 bool fits)
{
    struct node *alone = make(false), *node = make(true);
    struct reply *want, *got;
    struct policy its;

    must(policy_parse(policy, &its));
    node->engine->options.page_bytes = node->options.page_bytes =
        fits ? 2 * paging_least(node->model, &its) : 0;
    node_completed(node, branch(node, "first", policy, 30));
    settle(node);
    if (is_restarted) {
        node_kill(node);
        node_start(node);
    }
    for (uint32_t t = 0; t < 2; t++) {
        want = t ? turn(alone, "b", NULL, 1)
                 : node_completed(alone, branch(alone, "b", policy, N_OWN));
        got = t ? turn(node, "b", NULL, 1)
                : node_completed(node, branch(node, "b", policy, N_OWN));
        cr_assert(same_tokens(got, want), "%s, turn %u", policy, t);
        is_paged(node, "b");
        if (t)
            continue;
        cr_assert_eq(got->end->complete.n_cached, fits ? N_PREFIX : 0, "%s",
                     policy);
        cr_assert_eq(got->end->complete.reuse == REUSE_PREFIX, fits);
        delete_session(node, "first");
    }
    settle(node);
    node_kill(node); /* what it stored is whole without the other's */
    node_start(node);
    want = turn(alone, "b", NULL, 2);
    got = turn(node, "b", NULL, 2);
    cr_assert(same_tokens(got, want), "%s, in the next life", policy);
    cr_assert_eq(got->end->complete.reuse, REUSE_RESTORED);
    cr_assert_gt(got->end->complete.n_cached, N_PREFIX);
    node_destroy(alone);
    node_destroy(node);
}

Test(engine_paged, starts_from_anothers_prefix_that_fits_into_its_pages,
     .timeout = 480)
{
    for (uint32_t p = 0; p < N_POLICY; p++)
        starts_from_anothers(POLICY[p], p % 2, true);
    starts_from_anothers(POLICY[1], true, true);
    starts_from_anothers(POLICY[3], false, false);
}
