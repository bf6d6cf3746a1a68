#include "rpc/caller.h"

#include <string.h>

static enum status check_text(const char *text, size_t n_bytes)
{
    bool ok = n_bytes < TENANT_SIZE;

    for (size_t i = 0; ok && i < n_bytes; i++)
        ok = text[i] >= ' ' && text[i] <= '~';
    if (ok)
        return STATUS_OK;
    status_fail(STATUS_INVALID_ARGUMENT,
                "metadata %s has %zu bytes, expected up to %u of visible ASCII",
                CALLER_KEY, n_bytes, TENANT_SIZE - 1);
    return status_field(CALLER_KEY);
}

static bool makes_session(const struct command *command)
{
    return command->kind == COMMAND_GENERATE ||
           command->kind == COMMAND_CREATE_SESSION ||
           command->kind == COMMAND_IMPORT_SESSION;
}

static enum status apply_operator(bool has_operators, struct command *command)
{
    if (!has_operators) {
        status_fail(STATUS_PERMISSION_DENIED,
                    "no call sees all tenants' sessions on this node: it runs "
                    "without --operators");
        return status_because("OPERATOR_REFUSED");
    }
    if (makes_session(command)) {
        status_fail(STATUS_INVALID_ARGUMENT,
                    "%s is \"%s\", expected the tenant whose session it is",
                    CALLER_KEY, CALLER_ALL);
        return status_field(CALLER_KEY);
    }
    command->is_operator = true;
    return STATUS_OK;
}

enum status caller_apply(const char *text, size_t n_bytes, bool has_operators,
                         struct command *command)
{
    enum status st = check_text(text, n_bytes);

    if (st || n_bytes == 0)
        return st;
    if (n_bytes == strlen(CALLER_ALL) && memcmp(text, CALLER_ALL, n_bytes) == 0)
        return apply_operator(has_operators, command);
    if (command->tenant[0] && (strlen(command->tenant) != n_bytes ||
                               memcmp(command->tenant, text, n_bytes) != 0)) {
        status_fail(STATUS_INVALID_ARGUMENT,
                    "tenant is \"%s\", the call's metadata says another one",
                    command->tenant);
        status_because("TENANT_CONFLICT");
        return status_field("tenant");
    }
    memcpy(command->tenant, text, n_bytes);
    command->tenant[n_bytes] = '\0';
    return STATUS_OK;
}
