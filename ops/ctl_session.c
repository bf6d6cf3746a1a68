/* session create, list, get, update, tokens, fork, rewind, delete, checkpoint,
 * policy.
 */
#include "ops/ctl.h"

#include "godwit/v1/admin.pb-c.h"
#include "godwit/v1/session.pb-c.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERVICE "/godwit.v1.SessionService/"
#define PAGE 1000 /* sessions per call, the node's maximum */
#define LABELS_MAX 16u

typedef Godwit__V1__Session session_message;

static int64_t seconds_of(const Google__Protobuf__Timestamp *time)
{
    return time ? time->seconds : 0;
}

static const char *enum_name(const ProtobufCEnumDescriptor *kind, int value)
{
    const ProtobufCEnumValue *found =
        protobuf_c_enum_descriptor_get_value(kind, value);

    return found ? found->name : "UNKNOWN";
}

const char *ctl_short_name(const char *name)
{
    return strncmp(name, "sessions/", 9) == 0 ? name + 9 : name;
}

/* What a list shows of a session. */
static void put_brief(struct output *output, const session_message *session)
{
    output_row(output);
    output_text(output, "id", ctl_short_name(session->name));
    output_text(output, "state",
                enum_name(&godwit__v1__session__state__descriptor,
                          (int)session->state));
    output_number(output, "position", session->position);
    output_number(output, "committed", session->committed_position);
    output_time(output, "active", seconds_of(session->last_active_time));
    output_text(output, "parent", ctl_short_name(session->parent_session));
    output_number(output, "forked_at", session->fork_position);
}

static void put_whole(struct output *output, const session_message *session)
{
    const Google__Protobuf__Timestamp *expire =
        session->expiration_case == GODWIT__V1__SESSION__EXPIRATION_EXPIRE_TIME
            ? session->expire_time
            : NULL;

    put_brief(output, session);
    output_text(output, "uid", session->uid);
    output_text(output, "etag", session->etag);
    output_text(output, "model", session->model);
    output_text(output, "chain_hash", session->chain_hash);
    output_text(output, "durability",
                enum_name(&godwit__v1__durability__descriptor,
                          (int)session->durability));
    output_text(output, "policy", session->policy);
    output_text(output, "tenant", session->tenant);
    output_flag(output, "pinned", session->pinned);
    output_number(output, "stored_bytes", session->stored_bytes);
    output_number(output, "state_bytes", session->state_bytes);
    output_number(output, "kv_bytes", session->kv_bytes);
    output_map(output, "labels");
    for (size_t i = 0; i < session->n_labels; i++)
        output_entry(output, "labels", session->labels[i]->key,
                     session->labels[i]->value);
    output_time(output, "created", seconds_of(session->create_time));
    output_time(output, "updated", seconds_of(session->update_time));
    output_time(output, "expires", seconds_of(expire));
}

enum status ctl_print_session(struct ctl *ctl, const session_message *session)
{
    struct output *output;
    enum status st = output_create(ctl_format(ctl), "Session", false, &output);

    if (st)
        return st;
    put_whole(output, session);
    st = output_write(output);
    output_destroy(output);
    return st;
}

enum status ctl_show_session(struct ctl *ctl, const char *method,
                             const ProtobufCMessage *request)
{
    ProtobufCMessage *message;
    enum status st = ctl_unary(ctl, method, request,
                               &godwit__v1__session__descriptor, &message);

    if (st)
        return st;
    st = ctl_print_session(ctl, (session_message *)message);
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}

/* What create and update set; it points into itself and into `text`. */
struct wanted {
    session_message session;
    Google__Protobuf__Duration ttl;
    Godwit__V1__Label label[LABELS_MAX], *label_list[LABELS_MAX];
    char *text; /* of the labels, cut into pieces; owned */
};

static enum status fill_labels(const char *labels, struct wanted *wanted)
{
    char *rest = wanted->text = strdup(labels), *piece, *equals;
    size_t n = 0;

    if (!rest)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for labels");
    while (*rest && (piece = strsep(&rest, ",")) != NULL) {
        equals = strchr(piece, '=');
        if (!equals || equals == piece || n == LABELS_MAX)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "--labels is '%s', expected up to %u of K=V "
                               "with commas between",
                               labels, LABELS_MAX);
        *equals = 0;
        godwit__v1__label__init(&wanted->label[n]);
        wanted->label[n].key = piece;
        wanted->label[n].value = equals + 1;
        wanted->label_list[n] = &wanted->label[n];
        n++;
        if (!rest)
            break;
    }
    wanted->session.labels = wanted->label_list;
    wanted->session.n_labels = n;
    return STATUS_OK;
}

static enum status fill_wanted(const struct ctl *ctl, struct wanted *wanted)
{
    const struct ctl_options *options = &ctl->options;
    session_message *session = &wanted->session;

    *wanted = (struct wanted){0};
    godwit__v1__session__init(session);
    google__protobuf__duration__init(&wanted->ttl);
    if (options->ttl > 0) {
        session->expiration_case = GODWIT__V1__SESSION__EXPIRATION_TTL;
        session->ttl = &wanted->ttl;
        wanted->ttl.seconds = (int64_t)options->ttl;
    }
    if (strcmp(options->durability, "none") == 0)
        session->durability = GODWIT__V1__DURABILITY__DURABILITY_NONE;
    else if (strcmp(options->durability, "local") == 0)
        session->durability = GODWIT__V1__DURABILITY__DURABILITY_LOCAL;
    session->policy = (char *)options->policy;
    return fill_labels(options->labels, wanted);
}

enum status ctl_session_create(struct ctl *ctl)
{
    Godwit__V1__CreateSessionRequest request;
    struct wanted wanted;
    enum status st = fill_wanted(ctl, &wanted);

    if (!st) {
        godwit__v1__create_session_request__init(&request);
        if (ctl->n_word > 0)
            request.session_id = (char *)ctl_short_name(ctl->word[0]);
        request.session = &wanted.session;
        st = ctl_show_session(ctl, SERVICE "CreateSession", &request.base);
    }
    free(wanted.text);
    return st;
}

enum status ctl_session_update(struct ctl *ctl)
{
    Godwit__V1__UpdateSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    struct wanted wanted = {0};
    enum status st =
        name ? fill_wanted(ctl, &wanted) : STATUS_RESOURCE_EXHAUSTED;

    if (!st) {
        godwit__v1__update_session_request__init(&request);
        wanted.session.name = name;
        wanted.session.etag = (char *)ctl->options.etag;
        request.session = &wanted.session; /* no mask: what is set */
        st = ctl_show_session(ctl, SERVICE "UpdateSession", &request.base);
    }
    free(wanted.text);
    free(name);
    return st;
}

enum status ctl_session_get(struct ctl *ctl)
{
    Godwit__V1__GetSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__get_session_request__init(&request);
    request.name = name;
    st = ctl_show_session(ctl, SERVICE "GetSession", &request.base);
    free(name);
    return st;
}

/* One page; *token is replaced by the next page's, "" at the end. */
static enum status list_page(struct ctl *ctl, char *filter, char **token,
                             uint64_t *left, struct output *output)
{
    Godwit__V1__ListSessionsRequest request;
    Godwit__V1__ListSessionsResponse *page;
    ProtobufCMessage *message;
    enum status st;

    godwit__v1__list_sessions_request__init(&request);
    request.page_size = *left < PAGE ? (int32_t)*left : PAGE;
    request.page_token = *token;
    request.filter = filter;
    st = ctl_unary(ctl, SERVICE "ListSessions", &request.base,
                   &godwit__v1__list_sessions_response__descriptor, &message);
    if (st)
        return st;
    page = (Godwit__V1__ListSessionsResponse *)message;
    for (size_t i = 0; i<page->n_sessions && * left> 0; i++, (*left)--)
        put_brief(output, page->sessions[i]);
    free(*token);
    *token = strdup(page->next_page_token);
    protobuf_c_message_free_unpacked(message, NULL);
    if (!*token)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a page");
    return STATUS_OK;
}

enum status ctl_session_list(struct ctl *ctl)
{
    const char *prefix = ctl->options.prefix;
    uint64_t left = ctl->options.limit ? ctl->options.limit : UINT64_MAX;
    char *filter = NULL, *token = strdup("");
    struct output *output = NULL;
    enum status st;

    if (asprintf(&filter, *prefix ? "name = \"sessions/%s*\"" : "%s", prefix) <
        0)
        filter = NULL;
    if (!filter || !token)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a list");
    else
        st = output_create(ctl_format(ctl), "SessionList", true, &output);
    if (!st)
        do
            st = list_page(ctl, filter, &token, &left, output);
        while (!st && *token && left > 0);
    if (!st)
        st = output_write(output);
    output_destroy(output);
    free(filter);
    free(token);
    return st;
}

/* Ids are printed as they come: a log may have millions. */
struct printing {
    enum output_format format;
    uint64_t position; /* of the next token */
    uint64_t n;
};

static enum status print_piece(void *context, const void *bytes, size_t n_bytes)
{
    struct printing *printing = context;
    Godwit__V1__ReadTokensResponse *piece =
        godwit__v1__read_tokens_response__unpack(NULL, n_bytes, bytes);
    enum status st = STATUS_OK;

    if (!piece)
        return status_fail(STATUS_INTERNAL,
                           "the node's answer is no ReadTokensResponse");
    if (piece->n_token_ids > 0 && piece->position != printing->position)
        st = status_fail(STATUS_INTERNAL,
                         "the log's pieces do not join: expected position "
                         "%" PRIu64 ", got %" PRIu64,
                         printing->position, piece->position);
    for (size_t i = 0; !st && i < piece->n_token_ids; i++, printing->n++) {
        if (printing->format == OUTPUT_JSON)
            (void)printf("%s%u", printing->n ? ", " : "", piece->token_ids[i]);
        else if (printing->format == OUTPUT_TSV)
            (void)printf("%" PRIu64 "\t%u\n", piece->position + i,
                         piece->token_ids[i]);
        else
            (void)printf("%u\n", piece->token_ids[i]);
    }
    printing->position += piece->n_token_ids;
    godwit__v1__read_tokens_response__free_unpacked(piece, NULL);
    return st;
}

enum status ctl_session_tokens(struct ctl *ctl)
{
    struct printing printing = {.format = ctl_format(ctl),
                                .position = ctl->options.from};
    Godwit__V1__ReadTokensRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__read_tokens_request__init(&request);
    request.session = name;
    request.from_position = ctl->options.from;
    request.max_tokens = ctl->options.limit;
    if (printing.format == OUTPUT_JSON)
        (void)printf("{\"apiVersion\": \"godwit.v1\", \"kind\": \"Tokens\", "
                     "\"ids\": [");
    else if (printing.format == OUTPUT_TSV)
        (void)printf("position\tid\n");
    st = ctl_stream(ctl, SERVICE "ReadTokens", &request.base, print_piece,
                    &printing);
    if (printing.format == OUTPUT_JSON && !st)
        (void)printf("]}\n");
    free(name);
    return st;
}

enum status ctl_session_fork(struct ctl *ctl)
{
    const struct ctl_options *options = &ctl->options;
    Godwit__V1__ForkSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st = STATUS_OK;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__fork_session_request__init(&request);
    request.session = name;
    request.session_id = (char *)ctl_short_name(options->fork_name);
    if (*options->fork_at) {
        request.has_position_case =
            GODWIT__V1__FORK_SESSION_REQUEST__HAS_POSITION_POSITION;
        st = ctl_parse_u64("at", options->fork_at, &request.position);
    }
    if (!st)
        st = ctl_show_session(ctl, SERVICE "ForkSession", &request.base);
    free(name);
    return st;
}

enum status ctl_session_rewind(struct ctl *ctl)
{
    Godwit__V1__TruncateSessionRequest request;
    char *name;
    enum status st;

    if (!*ctl->options.rewind_to)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--to says how many tokens stay, and is missing");
    godwit__v1__truncate_session_request__init(&request);
    st = ctl_parse_u64("to", ctl->options.rewind_to, &request.position);
    if (st)
        return st;
    name = ctl_session_name(ctl->word[0]);
    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    request.session = name;
    request.etag = (char *)ctl->options.etag;
    st = ctl_show_session(ctl, SERVICE "TruncateSession", &request.base);
    free(name);
    return st;
}

enum status ctl_session_delete(struct ctl *ctl)
{
    Godwit__V1__DeleteSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__delete_session_request__init(&request);
    request.name = name;
    request.etag = (char *)ctl->options.etag;
    request.allow_missing = ctl->options.allows_missing;
    st = ctl_stream(ctl, SERVICE "DeleteSession", &request.base, NULL, NULL);
    free(name);
    return st;
}

/* Under another policy, unless that is "". */
static enum status checkpoint_under(struct ctl *ctl, const char *policy,
                                    ProtobufCMessage **out)
{
    Godwit__V1__CheckpointSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__checkpoint_session_request__init(&request);
    request.session = name;
    request.policy = (char *)policy;
    st = ctl_unary(ctl, "/godwit.v1.AdminService/CheckpointSession",
                   &request.base, &godwit__v1__checkpoint__descriptor, out);
    free(name);
    return st;
}

enum status ctl_session_policy(struct ctl *ctl)
{
    ProtobufCMessage *message;
    enum status st;

    if (ctl->n_word > 1) {
        st = checkpoint_under(ctl, ctl->word[1], &message);
        if (st)
            return st;
        protobuf_c_message_free_unpacked(message, NULL);
    }
    return ctl_session_get(ctl);
}

enum status ctl_session_checkpoint(struct ctl *ctl)
{
    Godwit__V1__Checkpoint *checkpoint;
    ProtobufCMessage *message;
    struct output *output;
    enum status st = checkpoint_under(ctl, "", &message);

    if (st)
        return st;
    checkpoint = (Godwit__V1__Checkpoint *)message;
    st = output_create(ctl_format(ctl), "Checkpoint", false, &output);
    if (!st) {
        output_row(output);
        output_text(output, "session", ctl_short_name(checkpoint->session));
        output_number(output, "position", checkpoint->position);
        output_number(output, "size_bytes", checkpoint->size_bytes);
        output_text(output, "chain_hash", checkpoint->chain_hash);
        if (checkpoint->create_time) /* a node need not know it */
            output_time(output, "created", seconds_of(checkpoint->create_time));
        st = output_write(output);
        output_destroy(output);
    }
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}
