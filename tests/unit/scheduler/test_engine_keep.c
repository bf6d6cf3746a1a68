/*
 * What stays in the store, and how much of it a tenant may have. What is stored
 * is counted row by row; the judge of what sessions say afterwards is a node
 * that has never lost anything.
 */
#include "base/log.h"
#include "tests/unit/scheduler/bundle_fixture.h"

#include <criterion/criterion.h>

#define N_LOG 150u

static struct reply *make_of(struct node *node, const char *name,
                             const char *tenant, uint32_t salt)
{
    struct command *command = generate(node, name, "", N_LOG - 20, salt);
    struct reply *reply;

    snprintf(command->tenant, TENANT_SIZE, "%s", tenant);
    command->generate.sampling.max_tokens = 20;
    command->generate.sampling.ignore_eos = true;
    reply = node_call(node, command);
    fork_settle(node);
    return reply;
}

static void make(struct node *node, const char *name, uint32_t salt)
{
    clock_simulated_advance(&node->clock, 1000000); /* by last use */
    cr_assert(reply_completed(make_of(node, name, "", salt), FINISH_LENGTH));
}

/* Bytes of all values, heads included. */
static size_t stored_rows(struct node *node)
{
    struct store_scan *scan;
    const void *key, *value;
    size_t key_bytes, value_bytes, n = 0;

    must(store_scan_open(node->bulk_store,
                         &(struct store_range){"a", 1, "v", 1}, false, &scan));
    while (store_scan_next(scan, &key, &key_bytes, &value, &value_bytes))
        n += value_bytes;
    store_scan_close(scan);
    return n;
}

/* The ledger's total is the rows without their heads, of 128 bytes. */
static bool ledger_is_right(struct node *node)
{
    size_t rows = stored_rows(node), total = node->engine->stored.total;
    size_t n = count_rows(node->bulk_store, 's') +
               count_rows(node->bulk_store, 'o') +
               count_rows(node->bulk_store, 'b');

    if (rows > total && rows - total <= 256 * n)
        return true;
    if (rows == 0 && total == 0)
        return true;
    fprintf(stderr, "%zu bytes in %zu rows, ledger says %zu\n", rows, n, total);
    return false;
}

static bool has_stored(struct node *node, const char *name)
{
    return ledger_get(&node->engine->stored, log_of(node, name)) > 0;
}

Test(engine_keep, the_ledger_follows_the_store)
{
    struct node *node = fork_node();
    size_t before;

    log_set_level(LOG_ERROR);
    make(node, "a", 1);
    cr_assert(ledger_is_right(node));
    make(node, "b", 2);
    fork_at(node, "a", "f", 100);
    go_on(node, "f", 70, 2, 3);
    fork_settle(node);
    cr_assert(ledger_is_right(node));
    before = node->engine->stored.total;
    restart(node, true);
    fork_settle(node);
    cr_assert_eq(node->engine->stored.total, before);
    erase(node, "b");
    fork_settle(node);
    cr_assert(ledger_is_right(node));
    rewind_to(node, "a", 120);
    erase(node, "a");
    erase(node, "f");
    fork_settle(node);
    cr_assert_eq(node->engine->stored.total, 0);
    cr_assert(ledger_is_right(node));
    node_destroy(node);
}

/* Room for about three of six. */
static struct node *small_node(void)
{
    struct node *node = node_create(NULL);

    node->options.store_bytes = 3 * snapshot_bytes(node->model, NULL, N_LOG);
    node->options.prefix_bytes = 0;
    node_start(node);
    log_set_level(LOG_ERROR);
    return node;
}

static void settle(struct node *node)
{
    for (uint32_t i = 0; i < 50; i++) {
        fork_settle(node);
        node_step(node);
    }
    cr_assert_null(node->engine->eviction.session);
}

Test(engine_keep, the_least_recently_used_lose_theirs_and_are_computed_again,
     .timeout = 240)
{
    struct node *node = small_node(), *judge = judge_create();
    char name[8];

    for (uint32_t i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        make(node, name, i);
        settle(node);
        cr_assert_leq(node->engine->stored.total, node->options.store_bytes);
        cr_assert(ledger_is_right(node));
        cr_assert(has_stored(node, name), "the newest stays");
    }
    cr_assert(!has_stored(node, "s0"));
    cr_assert(!has_stored(node, "s1"));
    restart(node, true);
    for (uint32_t i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        go_on(node, name, 3, 2, i);
        cr_assert(judge_agrees(judge, node, name, 2, i));
        settle(node);
    }
    node_destroy(judge);
    node_destroy(node);
}

/* What it says in memory is stored again when it comes to that. */
Test(engine_keep, one_that_lost_its_blocks_in_memory_stores_them_again,
     .timeout = 240)
{
    struct node *node = small_node(), *judge = judge_create();
    char name[8];

    for (uint32_t i = 0; i < 5; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        make(node, name, i);
        settle(node);
    }
    cr_assert(!has_stored(node, "s0"));
    cr_assert_not_null(table_find(node->engine, "s0")->resident);
    clock_simulated_advance(&node->clock, 1000000);
    go_on(node, "s0", 64, 4, 9);
    settle(node);
    cr_assert(has_stored(node, "s0"));
    restart(node, true);
    cr_assert_gt(go_on(node, "s0", 3, 2, 9)->end->complete.n_restored, N_LOG);
    cr_assert(judge_agrees(judge, node, "s0", 2, 9));
    node_destroy(judge);
    node_destroy(node);
}

static void set_pinned(struct node *node, const char *name, bool is_pinned)
{
    struct command *command =
        command_make(COMMAND_UPDATE_SESSION, node_reply(node));

    snprintf(command->update.session, SESSION_NAME_SIZE, "%s", name);
    command->update.sets_pinned = true;
    command->update.is_pinned = is_pinned;
    cr_assert_eq(node_call(node, command)->end->session.meta.is_pinned,
                 is_pinned);
}

Test(engine_keep, pinned_ones_and_what_others_read_stay, .timeout = 240)
{
    struct node *node = small_node(), *judge = judge_create();
    char name[8];

    make(node, "pinned", 20);
    set_pinned(node, "pinned", true);
    make(node, "parent", 21);
    fork_at(node, "parent", "fork", N_LOG);
    restart(node, true);
    for (uint32_t i = 0; i < 4; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        make(node, name, i);
        settle(node);
        cr_assert(has_stored(node, "pinned"));
        cr_assert(has_stored(node, "parent"));
    }
    cr_assert(!has_stored(node, "s0"));
    cr_assert_gt(go_on(node, "fork", 3, 2, 5)->end->complete.n_restored, 0);
    cr_assert(judge_agrees(judge, node, "fork", 2, 5));
    set_pinned(node, "pinned", false);
    erase(node, "fork");
    for (uint32_t i = 4; i < 8; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        make(node, name, i);
        settle(node);
    }
    cr_assert(!has_stored(node, "pinned"));
    cr_assert(!has_stored(node, "parent"));
    node_destroy(judge);
    node_destroy(node);
}

/* More than the limit is pinned: said, and nothing hangs or is lost. */
Test(engine_keep, a_limit_that_cannot_be_kept_is_no_harm)
{
    struct node *node = small_node();
    char name[8];

    for (uint32_t i = 0; i < 5; i++) {
        struct command *command =
            command_make(COMMAND_CREATE_SESSION, node_reply(node));

        snprintf(name, sizeof(name), "s%u", i);
        strcpy(command->create.name, name);
        command->create.durability = DURABILITY_LOCAL;
        command->create.is_pinned = true;
        node_call(node, command);
        make(node, name, i);
        settle(node);
    }
    cr_assert_gt(node->engine->stored.total, node->options.store_bytes);
    for (uint32_t i = 0; i < 5; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        cr_assert(has_stored(node, name));
    }
    node_destroy(node);
}

/* --- tenants --- */

static struct node *quota_node(uint64_t n_session, uint64_t n_token,
                               size_t store)
{
    struct node *node = node_create(NULL);

    node->options.tenant_sessions = n_session;
    node->options.tenant_tokens = n_token;
    node->options.tenant_store = store;
    node_start(node);
    log_set_level(LOG_ERROR);
    return node;
}

static bool is_over_quota(const struct reply *reply, const char *field)
{
    return reply_failed(reply, STATUS_RESOURCE_EXHAUSTED, "TENANT_QUOTA") &&
           strcmp(reply->end->cause.field, field) == 0;
}

Test(engine_keep, a_tenant_has_so_many_sessions)
{
    struct node *node = quota_node(2, 0, 0);
    struct command *command;

    node->tenant = "ann";
    make_of(node, "a", "ann", 1);
    make_of(node, "b", "ann", 2);
    cr_assert(is_over_quota(make_of(node, "c", "ann", 3), "tenant.sessions"));
    command = command_make(COMMAND_CREATE_SESSION, node_reply(node));
    strcpy(command->create.name, "c");
    strcpy(command->tenant, "ann");
    cr_assert(is_over_quota(node_call(node, command), "tenant.sessions"));
    cr_assert(is_over_quota(fork_at(node, "a", "c", 10), "tenant.sessions"));
    cr_assert_null(table_find(node->engine, "c"));
    cr_assert(reply_completed(make_of(node, "c", "bob", 3), FINISH_LENGTH),
              "another tenant's are not counted");
    cr_assert(reply_completed(make_of(node, "", "ann", 3), FINISH_LENGTH),
              "nor what is not kept");
    erase(node, "a");
    cr_assert(reply_completed(make_of(node, "d", "ann", 4), FINISH_LENGTH));
    node_destroy(node);
}

Test(engine_keep, a_tenant_has_so_many_tokens)
{
    struct node *node = quota_node(0, 2 * N_LOG + 10, 0);

    node->tenant = "ann";
    make_of(node, "a", "ann", 1);
    cr_assert(reply_completed(make_of(node, "b", "ann", 2), FINISH_LENGTH));
    cr_assert(is_over_quota(make_of(node, "c", "ann", 3), "tenant.tokens"));
    cr_assert(is_over_quota(make_of(node, "a", "ann", 3), "tenant.tokens"));
    cr_assert_eq(node_read(node, "a")->n_token, N_LOG);
    restart(node, true);
    cr_assert(is_over_quota(make_of(node, "a", "ann", 3), "tenant.tokens"));
    erase(node, "b");
    cr_assert(reply_completed(make_of(node, "c", "ann", 3), FINISH_LENGTH));
    node_destroy(node);
}

Test(engine_keep, a_tenant_has_so_much_of_the_store)
{
    struct node *node = quota_node(0, 0, 1);

    cr_assert(reply_completed(make_of(node, "a", "ann", 1), FINISH_LENGTH));
    cr_assert(
        is_over_quota(make_of(node, "a", "ann", 2), "tenant.store_bytes"));
    cr_assert(reply_completed(make_of(node, "b", "bob", 1), FINISH_LENGTH));
    node_destroy(node);
}

/* Nothing that one has sent is found by another: neither is a prefix read, nor
 * does anything count as reused. */
Test(engine_keep, two_tenants_never_share_a_hit)
{
    struct node *node = fork_node(), *judge = judge_create();
    const struct reply *reply;

    log_set_level(LOG_ERROR);
    make_of(node, "a", "ann", 1);
    make_of(node, "b", "ann", 1); /* leaves a snapshot where they part */
    reply = make_of(node, "c", "bob", 1);
    cr_assert_eq(reply->end->complete.n_cached, 0);
    reply = make_of(node, "d", "", 1);
    cr_assert_eq(reply->end->complete.n_cached, 0);
    reply = make_of(node, "e", "ann", 1);
    cr_assert_gt(reply->end->complete.n_cached, 0, "its own it finds");
    node->tenant = "ann";
    reply = node_read(node, "a");
    node->tenant = "bob";
    cr_assert(same_tokens(reply, node_read(node, "c")));
    node_destroy(judge);
    node_destroy(node);
}

/* --- time --- */

Test(engine_keep, an_expired_session_goes_with_all_that_is_stored)
{
    struct node *node = fork_node();
    struct command *command;

    log_set_level(LOG_ERROR);
    make(node, "a", 1);
    make(node, "b", 2);
    command = command_make(COMMAND_UPDATE_SESSION, node_reply(node));
    strcpy(command->update.session, "a");
    command->update.sets_expire = true;
    command->update.expire_ms =
        node->clock.base.wall_ms(&node->clock.base) + 5000;
    node_call(node, command);
    restart(node, true);
    clock_simulated_advance(&node->clock, 4000000);
    node_step(node);
    cr_assert_not_null(table_find(node->engine, "a"));
    clock_simulated_advance(&node->clock, 2000000);
    node_step(node);
    cr_assert_null(table_find(node->engine, "a"));
    fork_settle(node);
    cr_assert_not_null(table_find(node->engine, "b"));
    cr_assert_eq(count_rows(node->journal_store, 'm'), 1);
    restart(node, true);
    cr_assert_null(table_find(node->engine, "a"));
    fork_settle(node);
    cr_assert(ledger_is_right(node));
    node_destroy(node);
}
