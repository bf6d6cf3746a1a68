/*
 * Two tenants and one without a name against every command that names a
 * session: another's is answered exactly as one that does not exist, whatever
 * state it is in, and stays as it is. The oracle of "exactly" is the same
 * command for a name that nobody has.
 */
#include "base/log.h"
#include "tests/unit/scheduler/fork_fixture.h"

#include <criterion/criterion.h>

static struct command *target(struct node *node, enum command_kind kind,
                              const char *session)
{
    struct command *command = about(node, kind, session);

    if (kind == COMMAND_FORK_SESSION) {
        memset(&command->fork, 0, sizeof(command->fork));
        strcpy(command->fork.session, session);
        strcpy(command->fork.name, "taken-from-another");
    } else if (kind == COMMAND_UPDATE_SESSION) {
        memset(&command->update, 0, sizeof(command->update));
        strcpy(command->update.session, session);
        command->update.sets_pinned = command->update.is_pinned = true;
    } else if (kind == COMMAND_EXPORT_SESSION) {
        memset(&command->export, 0, sizeof(command->export));
        strcpy(command->export.session, session);
    } else if (kind == COMMAND_GENERATE) {
        uint64_t reply = command->reply;
        arena_destroy(command->arena);
        command = generate(node, session, "1", 40, 1);
        command->reply = reply;
        command->generate.creates = false;
    }
    return command;
}

static const enum command_kind KIND[] = {COMMAND_GENERATE,
                                         COMMAND_READ_TOKENS,
                                         COMMAND_GET_SESSION,
                                         COMMAND_UPDATE_SESSION,
                                         COMMAND_DELETE_SESSION,
                                         COMMAND_FORK_SESSION,
                                         COMMAND_TRUNCATE_SESSION,
                                         COMMAND_CHECKPOINT_SESSION,
                                         COMMAND_VERIFY_SESSION,
                                         COMMAND_INSPECT_SESSION,
                                         COMMAND_PARK_SESSION,
                                         COMMAND_EXPORT_SESSION,
                                         COMMAND_CANCEL};
#define N_KIND (sizeof(KIND) / sizeof(KIND[0]))

/* "s" is not this tenant's, "n" nobody's. */
static void expect_none(struct node *node, const char *tenant)
{
    for (size_t i = 0; i < N_KIND; i++) {
        const struct reply *its =
            node_call(node, of(target(node, KIND[i], "s"), tenant));
        const struct reply *none =
            node_call(node, of(target(node, KIND[i], "n"), tenant));
        const struct cause *a = &its->end->cause, *b = &none->end->cause;
        char text[STATUS_TEXT_SIZE];
        char *name;

        cr_assert(its->last == EVENT_ERROR && none->last == EVENT_ERROR,
                  "kind %d", (int)KIND[i]);
        cr_assert_eq(its->n_event, none->n_event);
        cr_assert_eq(a->code, STATUS_NOT_FOUND, "kind %d: %s", (int)KIND[i],
                     a->text);
        cr_assert_eq(b->code, a->code);
        cr_assert_str_eq(a->reason, b->reason);
        cr_assert_str_eq(a->field, b->field);
        cr_assert_eq(a->retry_ms, b->retry_ms);
        strcpy(text, a->text);
        name = strstr(text, " s ");
        if (name)
            name[1] = 'n';
        cr_assert_str_eq(text, b->text, "kind %d", (int)KIND[i]);
    }
}

/* Where a name is asked for: that it is taken is all that is said. */
static void expect_taken(struct node *node, const char *tenant)
{
    struct command *command = of(generate(node, "s", "1", 40, 1), tenant);

    cr_assert(reply_failed(node_call(node, command), STATUS_ALREADY_EXISTS,
                           "SESSION_EXISTS"));
    command = command_make(COMMAND_CREATE_SESSION, node_reply(node));
    strcpy(command->create.name, "s");
    cr_assert(reply_failed(node_call(node, of(command, tenant)),
                           STATUS_ALREADY_EXISTS, "SESSION_EXISTS"));
}

static void expect_strangers(struct node *node, const char *owner)
{
    static const char *const tenant[] = {"ann", "bob", ""};

    for (size_t i = 0; i < 3; i++) {
        if (strcmp(tenant[i], owner) == 0)
            continue;
        expect_none(node, tenant[i]);
        expect_taken(node, tenant[i]);
    }
}

static struct digest log_digest(struct node *node, const char *owner)
{
    const struct reply *log =
        node_call(node, of(about(node, COMMAND_READ_TOKENS, "s"), owner));

    cr_assert_eq(log->last, EVENT_LOG);
    return digest_bytes(log->token, log->n_token * sizeof(*log->token));
}

static void try_owner(const char *owner)
{
    struct node *node = fork_node();
    struct command *command;
    struct reply *log;
    struct digest before;
    char etag[24];

    log_set_level(LOG_ERROR);
    command = of(generate(node, "s", "1", 200, 1), owner);
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    fork_settle(node);
    command = of(about(node, COMMAND_GET_SESSION, "s"), owner);
    strcpy(etag, node_call(node, command)->end->session.etag);
    before = log_digest(node, owner);
    expect_strangers(node, owner); /* it is in memory */
    restart(node, true);
    expect_strangers(node, owner); /* and parked */
    command = of(about(node, COMMAND_GET_SESSION, "s"), owner);
    cr_assert_str_eq(node_call(node, command)->end->session.etag, etag);
    cr_assert(digest_equal(log_digest(node, owner), before));
    command = of(generate(node, "s", "2", 30, 2), owner);
    command->generate.sampling.max_tokens = 200;
    node_send(node, command); /* now it runs */
    while (node->reply[node->last_reply].n_token == 0)
        (void)node_step(node);
    log = &node->reply[node->last_reply];
    expect_strangers(node, owner);
    node_until(node, (uint64_t)(log - node->reply));
    cr_assert(reply_completed(log, FINISH_LENGTH), "nobody has stopped it");
    node_destroy(node);
}

Test(engine_tenants, anothers_session_is_as_if_it_were_not_there)
{
    try_owner("ann");
}

Test(engine_tenants, nobodys_sessions_are_a_tenants_too)
{
    try_owner("");
}

/* By its request's id alone, too. */
Test(engine_tenants, a_call_without_a_session_is_cancelled_by_its_tenant)
{
    struct node *node = fork_node();
    struct command *command = of(generate(node, "", "id", 40, 1), "ann");
    const uint64_t reply = command->reply;

    command->generate.creates = false;
    command->generate.sampling.max_tokens = 200;
    node_send(node, command);
    while (node->reply[reply].n_token == 0)
        (void)node_step(node);
    command = of(about(node, COMMAND_CANCEL, ""), "bob");
    strcpy(command->target.request_id, "id");
    cr_assert(reply_failed(node_call(node, command), STATUS_NOT_FOUND,
                           "REQUEST_UNKNOWN"));
    command = of(about(node, COMMAND_CANCEL, ""), "ann");
    strcpy(command->target.request_id, "id");
    cr_assert_eq(node_call(node, command)->last, EVENT_DONE);
    node_until(node, reply);
    cr_assert(reply_completed(&node->reply[reply], FINISH_CANCELLED));
    node_destroy(node);
}

static struct command *list_of(struct node *node, const char *tenant,
                               uint32_t page_size, const char *after)
{
    struct command *command =
        command_make(COMMAND_LIST_SESSIONS, node_reply(node));

    command->list.page_size = page_size;
    strcpy(command->list.after, after);
    return of(command, tenant);
}

/* a, b: ann's; c: bob's; and so on. All pages, of one or two. */
Test(engine_tenants, a_list_has_the_own_ones)
{
    static const char *const owner[] = {"ann", "ann", "bob", "ann", "", "bob"};
    struct node *node = fork_node();

    for (uint32_t i = 0; i < 6; i++) {
        struct command *command =
            command_make(COMMAND_CREATE_SESSION, node_reply(node));
        command->create.name[0] = (char)('a' + i);
        command->create.durability = DURABILITY_LOCAL;
        cr_assert_eq(node_call(node, of(command, owner[i]))->last,
                     EVENT_SESSION);
    }
    for (uint32_t who = 0; who < 7; who++) { /* 6: an operator */
        for (uint32_t page = 1; page <= 2; page++) {
            const char *const tenant = who < 6 ? owner[who] : "bob";
            char after[SESSION_NAME_SIZE] = "";
            uint32_t i = 0, n = 0, n_owned = 0;
            bool has_more = true;

            for (uint32_t k = 0; k < 6; k++)
                n_owned += who == 6 || strcmp(owner[k], tenant) == 0;
            while (has_more) {
                struct command *command = list_of(node, tenant, page, after);
                const struct reply *reply;
                command->is_operator = who == 6;
                reply = node_call(node, command);
                cr_assert_eq(reply->end->sessions.n_total, n_owned);
                has_more = reply->end->sessions.has_more;
                for (uint32_t k = 0; k < reply->end->sessions.n_session; k++) {
                    const struct session_info *info =
                        &reply->end->sessions.session[k];
                    while (who < 6 && strcmp(owner[i], tenant) != 0)
                        i++;
                    cr_assert_eq(info->meta.name[0], (char)('a' + i));
                    cr_assert_str_eq(info->meta.tenant, owner[i++]);
                    strcpy(after, info->meta.name);
                    n++;
                }
            }
            cr_assert_eq(n, n_owned);
        }
    }
    node_destroy(node);
}

Test(engine_tenants, an_operator_sees_all_and_a_fork_stays_its_tenants)
{
    struct node *node = fork_node();
    struct command *command;

    log_set_level(LOG_ERROR);
    command = of(generate(node, "s", "1", 200, 1), "ann");
    cr_assert(reply_completed(node_call(node, command), FINISH_LENGTH));
    fork_settle(node);
    command = target(node, COMMAND_FORK_SESSION, "s");
    command->is_operator = true;
    cr_assert_str_eq(node_call(node, command)->end->session.meta.tenant, "ann");
    command = target(node, COMMAND_READ_TOKENS, "s");
    command->is_operator = true;
    cr_assert_eq(node_call(node, command)->last, EVENT_LOG);
    command = target(node, COMMAND_DELETE_SESSION, "s");
    command->is_operator = true;
    cr_assert_eq(node_call(node, command)->last, EVENT_DONE);
    command = of(about(node, COMMAND_READ_TOKENS, "taken-from-another"), "bob");
    cr_assert(reply_failed(node_call(node, command), STATUS_NOT_FOUND,
                           "SESSION_NOT_FOUND"));
    command = of(about(node, COMMAND_READ_TOKENS, "taken-from-another"), "ann");
    cr_assert_eq(node_call(node, command)->last, EVENT_LOG);
    node_destroy(node);
}
