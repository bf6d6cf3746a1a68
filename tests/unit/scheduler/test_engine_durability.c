/*
 * What raises a session's durability, and what a raise that the journal loses
 * leaves behind: the oracle is the session that was never raised.
 */
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>

static struct node *started(void)
{
    struct node *node = node_create(NULL);

    node_start(node);
    return node;
}

static struct command *creation(struct node *node, const char *name)
{
    struct command *command =
        command_make(COMMAND_CREATE_SESSION, node_reply(node));

    snprintf(command->create.name, SESSION_NAME_SIZE, "%s", name);
    command->create.durability = DURABILITY_LOCAL;
    command->create.n_label = 1;
    snprintf(command->create.label[0].key, LABEL_KEY_SIZE, "team");
    snprintf(command->create.label[0].value, LABEL_VALUE_SIZE, "birds");
    return command;
}

static struct command *labelling(struct node *node, const char *key)
{
    struct command *command =
        command_make(COMMAND_UPDATE_SESSION, node_reply(node));

    snprintf(command->update.session, SESSION_NAME_SIZE, "s");
    command->update.sets_labels = true;
    command->update.n_label = 1;
    snprintf(command->update.label[0].key, LABEL_KEY_SIZE, "%s", key);
    return command;
}

static struct command *turn_with(struct node *node, const char *id,
                                 uint32_t salt, enum durability durability)
{
    struct command *command = generate(node, "s", id, 20, salt);

    command->generate.has_durability = true;
    command->generate.durability = durability;
    return command;
}

Test(engine_durability, a_turn_may_raise_durability_and_never_lowers_it)
{
    struct node *node = started();

    node_call(node, turn_with(node, "a", 1, DURABILITY_NONE));
    cr_assert(reply_completed(
        node_call(node, turn_with(node, "b", 2, DURABILITY_LOCAL)),
        FINISH_LENGTH));
    cr_assert(
        reply_failed(node_call(node, turn_with(node, "c", 3, DURABILITY_NONE)),
                     STATUS_FAILED_PRECONDITION, "DURABILITY_LOWERED"));
    node_kill(node);
    node_start(node);
    cr_assert_eq(node_read(node, "s")->n_token, 64);
    node_destroy(node);
}

/* The session is as it was before: its tokens, labels, turn and next ones. */
static void lose_upgrade(bool is_turn, bool is_empty)
{
    struct node *node = started(), *other = started();
    struct command *command;
    struct reply *reply, *want;
    uint32_t n = is_empty ? 0 : 32;

    command = creation(node, "s");
    command->create.durability = DURABILITY_NONE;
    node_call(node, command);
    if (!is_empty)
        node_call(node, turn_with(node, "a", 1, DURABILITY_NONE));
    store_memory_faults(node->journal_store)->is_read_only = true;
    if (is_turn) {
        command = turn_with(node, "b", 2, DURABILITY_LOCAL);
    } else {
        command = labelling(node, "new");
        command->update.sets_expire = true;
        command->update.expire_ms = 1u << 30;
        command->update.sets_durability = true;
        command->update.durability = DURABILITY_LOCAL;
    }
    cr_assert(reply_failed(node_call(node, command), STATUS_FAILED_PRECONDITION,
                           "STORE_READ_ONLY"));
    node_until(node, 0);
    store_memory_faults(node->journal_store)->is_read_only = false;
    reply = node_call(node, about(node, COMMAND_GET_SESSION, "s"));
    cr_assert_eq(reply->last, EVENT_SESSION);
    cr_assert_eq(reply->end->session.position, n);
    cr_assert_eq(reply->end->session.meta.durability, DURABILITY_NONE);
    cr_assert_eq(reply->end->session.meta.expire_ms, 0);
    cr_assert_str_eq(reply->end->session.meta.label[0].key, "team");
    if (!is_empty) { /* its turn is known */
        reply = node_call(node, turn_with(node, "a", 1, DURABILITY_NONE));
        cr_assert(reply_completed(reply, FINISH_LENGTH));
        cr_assert_eq(node_read(node, "s")->n_token, n);
        node_call(other, turn_with(other, "a", 1, DURABILITY_NONE));
    }
    reply = node_call(node, turn_with(node, "b", 2, DURABILITY_LOCAL));
    want = node_call(other, turn_with(other, "b", 2, DURABILITY_LOCAL));
    cr_assert(same_tokens(reply, want));
    node_kill(node);
    node_start(node);
    cr_assert_eq(node_read(node, "s")->n_token, n + 32);
    node_destroy(node);
    node_destroy(other);
}

Test(engine_durability, a_lost_upgrade_leaves_the_session_as_it_was)
{
    for (int i = 0; i < 4; i++)
        lose_upgrade(i & 1, i & 2);
}
