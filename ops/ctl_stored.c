/* What is stored of a session: verify. */
#include "ops/ctl.h"

#include "godwit/v1/session.pb-c.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define SERVICE "/godwit.v1.SessionService/"

static enum status show_kinds(const struct ctl *ctl,
                              const Godwit__V1__SessionVerification *found)
{
    struct output *output;
    enum status st =
        output_create(ctl_format(ctl), "SessionVerification", true, &output);

    if (st)
        return st;
    for (size_t i = 0; i < found->n_kinds; i++) {
        const Godwit__V1__SessionVerification__Kind *kind = found->kinds[i];

        output_row(output);
        output_text(output, "kind", kind->kind);
        output_number(output, "count", kind->count);
        output_number(output, "bytes", kind->size_bytes);
        output_number(output, "bad", kind->bad);
        output_number(output, "missing", kind->missing);
    }
    st = output_write(output);
    output_destroy(output);
    return st;
}

/* People read the rest on stderr; it is an error if there is any. */
static enum status judge(const Godwit__V1__SessionVerification *found)
{
    uint64_t n_bad = 0;

    for (size_t i = 0; i < found->n_kinds; i++)
        n_bad += found->kinds[i]->bad + found->kinds[i]->missing;
    for (size_t i = 0; i < found->n_findings; i++)
        (void)fprintf(stderr, "%s\n", found->findings[i]);
    if (found->replayed)
        (void)fprintf(stderr,
                      "%" PRIu64 " values compared with a replay, %" PRIu64
                      " differ\n",
                      found->compared_values, found->different_values);
    if (n_bad == 0)
        return STATUS_OK;
    return status_fail(STATUS_DATA_LOSS,
                       "%" PRIu64 " records or values are bad or missing, "
                       "%" PRIu64 " snapshots were dropped",
                       n_bad, found->dropped_snapshots);
}

enum status ctl_session_verify(struct ctl *ctl)
{
    Godwit__V1__VerifySessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    ProtobufCMessage *message;
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__verify_session_request__init(&request);
    request.session = name;
    request.replay = ctl->options.replays;
    st = ctl_unary(ctl, SERVICE "VerifySession", &request.base,
                   &godwit__v1__session_verification__descriptor, &message);
    free(name);
    if (st)
        return st;
    st = show_kinds(ctl, (Godwit__V1__SessionVerification *)message);
    if (!st)
        st = judge((Godwit__V1__SessionVerification *)message);
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}
