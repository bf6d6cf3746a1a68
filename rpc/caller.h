#ifndef RPC_CALLER_H
#define RPC_CALLER_H
/*
 * Whose call it is. Its metadata says so, under one key for all methods; in
 * requests that make sessions a field may say the same. The node believes what
 * is said: whoever stands before it (a gateway, mTLS) sets the key, and strips
 * it from what clients send. Any thread.
 */
#include "scheduler/command.h"

#include <stddef.h>

#define CALLER_KEY "godwit-tenant"
#define CALLER_ALL "*" /* an operator: the sessions of all tenants */

/*
 * The command, which has the tenant of its request's field if there is one,
 * gets the one of the metadata, which is text[n_bytes]. n_bytes 0: there is
 * none.
 *   INVALID_ARGUMENT   the text is too long or has other characters than
 *                      visible ASCII and spaces; both say different things
 *                      (TENANT_CONFLICT); an operator's call would make a
 *                      session
 *   PERMISSION_DENIED  OPERATOR_REFUSED: there are none on this node
 */
MUST_CHECK enum status caller_apply(const char *text, size_t n_bytes,
                                    bool has_operators,
                                    struct command *command);
#endif
