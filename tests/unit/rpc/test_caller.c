/* Whose call it is, by a table of what is said where. */
#include "rpc/caller.h"

#include <criterion/criterion.h>
#include <string.h>

struct saying {
    const char *field, *text; /* of the request, of the metadata */
    enum command_kind kind;
    bool has_operators;
    enum status code;
    const char *reason, *tenant; /* "" reason: the code's own */
    bool is_operator;
};

static const struct saying SAYING[] = {
    {"", "", COMMAND_GET_SESSION, false, STATUS_OK, "", "", false},
    {"", "ann", COMMAND_GET_SESSION, false, STATUS_OK, "", "ann", false},
    {"", "ann of x", COMMAND_LIST_SESSIONS, false, STATUS_OK, "", "ann of x",
     false},
    {"ann", "", COMMAND_GENERATE, false, STATUS_OK, "", "ann", false},
    {"ann", "ann", COMMAND_GENERATE, false, STATUS_OK, "", "ann", false},
    {"ann", "bob", COMMAND_GENERATE, true, STATUS_INVALID_ARGUMENT,
     "TENANT_CONFLICT", "ann", false},
    {"ann", "an", COMMAND_GENERATE, true, STATUS_INVALID_ARGUMENT,
     "TENANT_CONFLICT", "ann", false},
    {"an", "ann", COMMAND_GENERATE, true, STATUS_INVALID_ARGUMENT,
     "TENANT_CONFLICT", "an", false},
    {"", "*", COMMAND_GET_SESSION, false, STATUS_PERMISSION_DENIED,
     "OPERATOR_REFUSED", "", false},
    {"", "*", COMMAND_GENERATE, false, STATUS_PERMISSION_DENIED,
     "OPERATOR_REFUSED", "", false},
    {"", "*", COMMAND_GET_SESSION, true, STATUS_OK, "", "", true},
    {"", "**", COMMAND_GET_SESSION, true, STATUS_OK, "", "**", false},
    {"", "*", COMMAND_GENERATE, true, STATUS_INVALID_ARGUMENT, "", "", false},
    {"", "*", COMMAND_CREATE_SESSION, true, STATUS_INVALID_ARGUMENT, "", "",
     false},
    {"", "*", COMMAND_IMPORT_SESSION, true, STATUS_INVALID_ARGUMENT, "", "",
     false},
    {"", "a\tb", COMMAND_GET_SESSION, true, STATUS_INVALID_ARGUMENT, "", "",
     false},
    {"", "f\xc3\xbcnf", COMMAND_GET_SESSION, true, STATUS_INVALID_ARGUMENT, "",
     "", false},
};

Test(caller, what_is_said_where_makes_whose_call_it_is)
{
    for (size_t i = 0; i < sizeof(SAYING) / sizeof(SAYING[0]); i++) {
        const struct saying *s = &SAYING[i];
        struct command command = {.kind = s->kind};
        enum status st;

        strcpy(command.tenant, s->field);
        st = caller_apply(s->text, strlen(s->text), s->has_operators, &command);
        cr_expect_eq(st, s->code, "row %zu: %s", i, status_reason());
        cr_expect_str_eq(command.tenant, s->tenant, "row %zu", i);
        cr_expect_eq(command.is_operator, s->is_operator, "row %zu", i);
        if (s->reason[0])
            cr_expect_str_eq(status_cause()->reason, s->reason, "row %zu", i);
    }
}

Test(caller, a_tenant_has_so_many_bytes_and_no_nul)
{
    struct command command = {.kind = COMMAND_GET_SESSION};
    char text[TENANT_SIZE];

    memset(text, 'a', sizeof(text));
    cr_expect_eq(caller_apply(text, TENANT_SIZE, false, &command),
                 STATUS_INVALID_ARGUMENT);
    cr_expect_str_eq(command.tenant, "");
    cr_expect_eq(caller_apply(text, TENANT_SIZE - 1, false, &command),
                 STATUS_OK);
    cr_expect_eq(strlen(command.tenant), TENANT_SIZE - 1);
    text[3] = '\0';
    cr_expect_eq(caller_apply(text, 5, false, &command),
                 STATUS_INVALID_ARGUMENT);
}
