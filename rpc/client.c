#include "rpc/client.h"

#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "rpc/caller.h"

#include <errno.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT_MAX 65535

struct client {
    char *endpoint;       /* as given, for messages; owned */
    grpc_metadata tenant; /* of every call, if has_tenant */
    bool has_tenant;
    uint32_t timeout_ms;
    grpc_channel *channel;
    grpc_completion_queue *queue;
    pthread_mutex_t lock; /* of the two fields below */
    struct exchange *running;
    bool is_cancelled;
};

/* What gRPC gives back when a batch is done. */
struct tag {
    struct exchange *exchange;
    enum tag_kind { TAG_OTHER, TAG_MESSAGE, TAG_SENT } kind;
};

/* One call: what gRPC writes into, and what is still on its way. */
struct exchange {
    struct client *client;
    struct exchange *before, *after; /* in client->running */
    grpc_call *call;
    uint32_t timeout_ms;
    client_each *each;
    client_next *next; /* NULL: all is sent, or is on its way */
    client_end *end;
    void *context;
    enum status each_status; /* non-zero: `each` or `next` wanted to stop */
    unsigned n_pending;      /* batches whose tag has not come back */
    uint64_t n_message;
    struct tag other_tag, message_tag, sent_tag;

    grpc_byte_buffer *message;
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice text;
};

static bool has_text(const char *text)
{
    return text && text[0];
}

static enum status check_endpoint(const char *endpoint)
{
    const char *colon;
    char *end = NULL;
    unsigned long port;

    if (has_text(endpoint) && strncmp(endpoint, "unix:", 5) == 0 && endpoint[5])
        return STATUS_OK;
    colon = has_text(endpoint) ? strrchr(endpoint, ':') : NULL;
    errno = 0;
    port = colon ? strtoul(colon + 1, &end, 10) : 0;
    if (!colon || colon == endpoint || !end || *end || errno || port == 0 ||
        port > PORT_MAX || strchr("+- ", colon[1]) || strpbrk(endpoint, "/ \t"))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "endpoint '%s' is no HOST:PORT (port 1 to %d) and "
                           "no unix:/path",
                           endpoint ? endpoint : "", PORT_MAX);
    return STATUS_OK;
}

static enum status read_open_pem(const char *path, FILE *file, char **out)
{
    char *text = malloc(CLIENT_PEM_MAX + 1);
    size_t n;

    if (!text)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %s", path);
    n = fread(text, 1, CLIENT_PEM_MAX, file);
    text[n] = 0;
    if (ferror(file) || strlen(text) != n || !strstr(text, "-----BEGIN ")) {
        free(text);
        return status_fail(STATUS_INVALID_ARGUMENT, "%s holds no PEM block",
                           path);
    }
    *out = text;
    return STATUS_OK;
}

/* *out stays NULL when no path is given. */
static enum status read_pem(const char *path, char **out)
{
    enum status st;
    FILE *file;

    if (!has_text(path))
        return STATUS_OK;
    file = fopen(path, "rbe");
    if (!file)
        return status_fail(
            errno == ENOENT ? STATUS_NOT_FOUND : STATUS_INVALID_ARGUMENT,
            "cannot read PEM file %s: %s", path, strerror(errno));
    st = read_open_pem(path, file, out);
    fclose(file);
    return st;
}

static enum status make_credentials(const struct client_options *options,
                                    grpc_channel_credentials **out)
{
    bool has_cert = has_text(options->tls_cert);
    bool has_key = has_text(options->tls_key);
    grpc_ssl_pem_key_cert_pair pair;
    char *ca = NULL, *cert = NULL, *key = NULL;
    enum status st;

    if (!has_text(options->tls_ca) && !has_cert && !has_key) {
        *out = grpc_insecure_credentials_create();
        return STATUS_OK;
    }
    if (has_cert != has_key)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "a TLS certificate and its key go together, only "
                           "the %s is given",
                           has_cert ? "certificate" : "key");
    st = read_pem(options->tls_ca, &ca);
    if (!st)
        st = read_pem(options->tls_cert, &cert);
    if (!st)
        st = read_pem(options->tls_key, &key);
    if (!st) {
        pair.private_key = key;
        pair.cert_chain = cert;
        *out = grpc_ssl_credentials_create_ex(ca, has_cert ? &pair : NULL, NULL,
                                              NULL);
    }
    free(ca);
    free(cert);
    free(key);
    return st;
}

static grpc_channel *make_channel(const char *endpoint,
                                  grpc_channel_credentials *credentials)
{
    grpc_arg arg[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_ENABLE_HTTP_PROXY,
         .value.integer = 0},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION,
         .value.integer = 1},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)CLIENT_MESSAGE_MAX},
    };
    grpc_channel_args args = {sizeof(arg) / sizeof(arg[0]), arg};

    return grpc_channel_create(endpoint, credentials, &args);
}

static enum status take_tenant(struct client *client, const char *tenant)
{
    if (!has_text(tenant))
        return STATUS_OK;
    client->has_tenant = true;
    client->tenant.key = grpc_slice_from_static_string(CALLER_KEY);
    client->tenant.value = grpc_slice_from_copied_string(tenant);
    if (grpc_header_nonbin_value_is_legal(client->tenant.value))
        return STATUS_OK;
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "tenant '%s' is not visible ASCII", tenant);
}

enum status client_create(const struct client_options *options,
                          struct client **out)
{
    grpc_channel_credentials *credentials = NULL;
    struct client *client;
    enum status st = check_endpoint(options->endpoint);

    if (st)
        return st;
    client = calloc(1, sizeof(*client));
    if (client)
        client->endpoint = strdup(options->endpoint);
    if (!client || !client->endpoint) {
        free(client);
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a client");
    }
    pthread_mutex_init(&client->lock, NULL);
    client->timeout_ms = options->timeout_ms;
    grpc_init();
    client->queue = grpc_completion_queue_create_for_next(NULL);
    st = take_tenant(client, options->tenant);
    if (!st)
        st = make_credentials(options, &credentials);
    if (st) {
        client_destroy(client);
        return st;
    }
    client->channel = make_channel(client->endpoint, credentials);
    grpc_channel_credentials_release(credentials);
    *out = client;
    return STATUS_OK;
}

void client_destroy(struct client *client)
{
    grpc_event event;

    if (!client)
        return;
    if (client->channel)
        grpc_channel_destroy(client->channel);
    grpc_completion_queue_shutdown(client->queue);
    do {
        event = grpc_completion_queue_next(
            client->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    } while (event.type != GRPC_QUEUE_SHUTDOWN);
    grpc_completion_queue_destroy(client->queue);
    grpc_shutdown_blocking();
    pthread_mutex_destroy(&client->lock);
    if (client->has_tenant)
        grpc_slice_unref(client->tenant.value);
    free(client->endpoint);
    free(client);
}

static void start_batch(struct exchange *exchange, const grpc_op *op, size_t n,
                        struct tag *tag)
{
    grpc_call_error error =
        grpc_call_start_batch(exchange->call, op, n, tag, NULL);

    /* Only a wrong use of the API is refused: our own mistake. */
    GPR_ASSERT(error == GRPC_CALL_OK);
    exchange->n_pending++;
}

static void start_receive(struct exchange *exchange)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};

    op.data.recv_message.recv_message = &exchange->message;
    start_batch(exchange, &op, 1, &exchange->message_tag);
}

/* A message, in the same batch with what comes before or behind it. */
static void send_message(struct exchange *exchange, const void *bytes,
                         size_t n_bytes, struct tag *tag)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(bytes, n_bytes);
    grpc_byte_buffer *body = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_op send[2] = {{.op = GRPC_OP_SEND_MESSAGE},
                       {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}};

    send[0].data.send_message.send_message = body;
    start_batch(exchange, send, exchange->next ? 1 : 2, tag);
    grpc_byte_buffer_destroy(body); /* the batch holds its own reference */
    grpc_slice_unref(slice);
}

/* The next of several messages, or their end. */
static void send_next(struct exchange *exchange)
{
    grpc_op close = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    const void *bytes = NULL;
    size_t n_bytes = 0;
    enum status st = exchange->next(exchange->context, &bytes, &n_bytes);

    if (st) {
        exchange->each_status = st;
        grpc_call_cancel(exchange->call, NULL);
    } else if (bytes) {
        send_message(exchange, bytes, n_bytes, &exchange->sent_tag);
    } else {
        exchange->next = NULL;
        start_batch(exchange, &close, 1, &exchange->other_tag);
    }
}

/*
 * Three batches besides the messages: sending may fail on its own, the initial
 * metadata comes before the first message, the status comes at the very end.
 */
static void start(struct exchange *exchange, const void *request,
                  size_t n_bytes)
{
    grpc_op send = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    grpc_op initial = {.op = GRPC_OP_RECV_INITIAL_METADATA};
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};

    if (exchange->client->has_tenant) {
        send.data.send_initial_metadata.count = 1;
        send.data.send_initial_metadata.metadata = &exchange->client->tenant;
    }
    start_batch(exchange, &send, 1, &exchange->other_tag);
    initial.data.recv_initial_metadata.recv_initial_metadata =
        &exchange->initial;
    start_batch(exchange, &initial, 1, &exchange->other_tag);
    status.data.recv_status_on_client.trailing_metadata = &exchange->trailing;
    status.data.recv_status_on_client.status = &exchange->code;
    status.data.recv_status_on_client.status_details = &exchange->text;
    start_batch(exchange, &status, 1, &exchange->other_tag);
    start_receive(exchange);
    if (exchange->next)
        send_next(exchange);
    else
        send_message(exchange, request, n_bytes, &exchange->other_tag);
}

static enum status deliver(struct exchange *exchange)
{
    grpc_byte_buffer_reader reader;
    grpc_slice bytes;
    enum status st = STATUS_OK;

    if (!grpc_byte_buffer_reader_init(&reader, exchange->message))
        return status_fail(STATUS_INTERNAL,
                           "a message of %s cannot be decompressed",
                           exchange->client->endpoint);
    bytes = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    if (exchange->each)
        st = exchange->each(exchange->context, GRPC_SLICE_START_PTR(bytes),
                            GRPC_SLICE_LENGTH(bytes));
    grpc_slice_unref(bytes);
    return st;
}

/* A message came, or NULL at the end of them. After a stop they are dropped. */
static void on_message(struct exchange *exchange)
{
    if (!exchange->message)
        return;
    exchange->n_message++;
    if (!exchange->each_status) {
        exchange->each_status = deliver(exchange);
        if (exchange->each_status)
            grpc_call_cancel(exchange->call, NULL);
    }
    grpc_byte_buffer_destroy(exchange->message);
    exchange->message = NULL;
    start_receive(exchange);
}

static bool is_type(const Google__Protobuf__Any *any, const char *name)
{
    const char *slash = strrchr(any->type_url, '/');

    return strcmp(slash ? slash + 1 : any->type_url, name) == 0;
}

static void adopt_error_info(const Google__Protobuf__Any *any)
{
    Google__Rpc__ErrorInfo *info =
        google__rpc__error_info__unpack(NULL, any->value.len, any->value.data);

    if (info)
        status_because(info->reason);
    google__rpc__error_info__free_unpacked(info, NULL);
}

static void adopt_retry_info(const Google__Protobuf__Any *any)
{
    Google__Rpc__RetryInfo *info =
        google__rpc__retry_info__unpack(NULL, any->value.len, any->value.data);

    if (info && info->retry_delay) {
        double ms = (double)info->retry_delay->seconds * 1e3 +
                    (double)info->retry_delay->nanos / 1e6;

        if (ms > 0)
            status_retry(ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX);
    }
    google__rpc__retry_info__free_unpacked(info, NULL);
}

static void adopt_bad_request(const Google__Protobuf__Any *any)
{
    Google__Rpc__BadRequest *bad =
        google__rpc__bad_request__unpack(NULL, any->value.len, any->value.data);

    if (bad && bad->n_field_violations > 0)
        status_field(bad->field_violations[0]->field);
    google__rpc__bad_request__free_unpacked(bad, NULL);
}

/* Details that do not parse are left out: code and text stand without them. */
static void adopt_details(grpc_slice bytes)
{
    Google__Rpc__Status *status = google__rpc__status__unpack(
        NULL, GRPC_SLICE_LENGTH(bytes), GRPC_SLICE_START_PTR(bytes));

    for (size_t i = 0; status && i < status->n_details; i++) {
        const Google__Protobuf__Any *any = status->details[i];

        if (is_type(any, "google.rpc.ErrorInfo"))
            adopt_error_info(any);
        else if (is_type(any, "google.rpc.RetryInfo"))
            adopt_retry_info(any);
        else if (is_type(any, "google.rpc.BadRequest"))
            adopt_bad_request(any);
    }
    google__rpc__status__free_unpacked(status, NULL);
}

static bool find_details(const grpc_metadata_array *metadata, grpc_slice *out)
{
    for (size_t i = 0; i < metadata->count; i++) {
        if (grpc_slice_str_cmp(metadata->metadata[i].key,
                               "grpc-status-details-bin") != 0)
            continue;
        *out = metadata->metadata[i].value;
        return true;
    }
    return false;
}

/* gRPC itself failed the call: say it in our words, its own behind them. */
static enum status own_cause(const struct exchange *exchange, enum status code,
                             const char *text)
{
    const struct client *client = exchange->client;

    if (code == STATUS_DEADLINE_EXCEEDED && exchange->timeout_ms > 0)
        return status_fail(code, "no answer from %s within %u ms",
                           client->endpoint, exchange->timeout_ms);
    if (code != STATUS_UNAVAILABLE)
        return status_fail(code, "%s",
                           text[0] ? text : "the server gives no cause");
    /* A server that answered sent initial metadata, or at least a message. */
    if (exchange->n_message > 0 || exchange->initial.count > 0) {
        status_fail(code, "connection to %s lost: %s", client->endpoint, text);
        return status_because("CONNECTION_LOST");
    }
    status_fail(code, "no server at %s: %s", client->endpoint, text);
    return status_because("NO_SERVER");
}

static enum status judge(const struct exchange *exchange)
{
    enum status code = (enum status)exchange->code;
    char *text = grpc_slice_to_c_string(exchange->text);
    grpc_slice details;

    if (exchange->code < 0 || exchange->code > (int)STATUS_UNAUTHENTICATED)
        code = STATUS_UNKNOWN;
    if (code && find_details(&exchange->trailing, &details)) {
        code = status_fail(code, "%s", text);
        adopt_details(details);
    } else if (code) {
        code = own_cause(exchange, code, text);
    }
    gpr_free(text);
    return code;
}

static gpr_timespec deadline(uint32_t timeout_ms)
{
    if (timeout_ms == 0)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
}

/* Publish the call for client_cancel(). False: that was called before. */
static bool add_running(struct client *client, struct exchange *exchange)
{
    bool is_wanted;

    pthread_mutex_lock(&client->lock);
    exchange->after = client->running;
    if (client->running)
        client->running->before = exchange;
    client->running = exchange;
    is_wanted = !client->is_cancelled;
    pthread_mutex_unlock(&client->lock);
    return is_wanted;
}

/* Withdraw it. False: client_cancel() was called. */
static bool remove_running(struct client *client, struct exchange *exchange)
{
    bool is_wanted;

    pthread_mutex_lock(&client->lock);
    if (exchange->before)
        exchange->before->after = exchange->after;
    else
        client->running = exchange->after;
    if (exchange->after)
        exchange->after->before = exchange->before;
    is_wanted = !client->is_cancelled;
    pthread_mutex_unlock(&client->lock);
    return is_wanted;
}

enum status exchange_begin(struct client *client,
                           const struct client_request *request,
                           struct exchange **out)
{
    struct exchange *exchange = calloc(1, sizeof(*exchange));
    grpc_slice path;

    if (!exchange)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a call");
    exchange->client = client;
    exchange->timeout_ms =
        request->timeout_ms ? request->timeout_ms : client->timeout_ms;
    exchange->each = request->each;
    exchange->next = request->next;
    exchange->end = request->end;
    exchange->context = request->context;
    exchange->other_tag = (struct tag){exchange, TAG_OTHER};
    exchange->message_tag = (struct tag){exchange, TAG_MESSAGE};
    exchange->sent_tag = (struct tag){exchange, TAG_SENT};
    exchange->text = grpc_empty_slice();
    grpc_metadata_array_init(&exchange->initial);
    grpc_metadata_array_init(&exchange->trailing);
    path = grpc_slice_from_copied_string(request->method);
    exchange->call = grpc_channel_create_call(
        client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->queue, path,
        NULL, deadline(exchange->timeout_ms), NULL);
    grpc_slice_unref(path);
    if (!add_running(client, exchange))
        grpc_call_cancel(exchange->call, NULL);
    start(exchange, request->bytes, request->n_bytes);
    *out = exchange;
    return STATUS_OK;
}

void exchange_cancel(struct exchange *exchange)
{
    grpc_call_cancel(exchange->call, NULL);
}

/* All its batches are back. */
static void finish(struct exchange *exchange)
{
    bool is_wanted = remove_running(exchange->client, exchange);
    enum status st =
        exchange->each_status ? exchange->each_status : judge(exchange);

    if (st == STATUS_CANCELLED && !is_wanted)
        st = status_fail(STATUS_CANCELLED, "the call was cancelled here");
    exchange->end(exchange->context, st);
    grpc_metadata_array_destroy(&exchange->initial);
    grpc_metadata_array_destroy(&exchange->trailing);
    grpc_slice_unref(exchange->text);
    grpc_call_unref(exchange->call);
    free(exchange);
}

static gpr_timespec wait_until(uint64_t wait_us)
{
    if (wait_us == UINT64_MAX)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_micros((int64_t)wait_us, GPR_TIMESPAN));
}

bool client_poll(struct client *client, uint64_t wait_us)
{
    grpc_event event =
        grpc_completion_queue_next(client->queue, wait_until(wait_us), NULL);
    const struct tag *tag = event.tag;

    if (event.type == GRPC_QUEUE_TIMEOUT)
        return false;
    GPR_ASSERT(event.type == GRPC_OP_COMPLETE);
    tag->exchange->n_pending--;
    if (tag->kind == TAG_MESSAGE)
        on_message(tag->exchange);
    else if (tag->kind == TAG_SENT && event.success &&
             !tag->exchange->each_status)
        send_next(tag->exchange);
    if (tag->exchange->n_pending == 0)
        finish(tag->exchange);
    return true;
}

/* A call whose caller waits for its end. */
struct waiting {
    client_each *each;
    client_next *next;
    void *context;
    enum status status;
    bool is_over;
};

static void note_end(void *context, enum status st)
{
    struct waiting *waiting = context;

    waiting->status = st;
    waiting->is_over = true;
}

static enum status pass_on(void *context, const void *message, size_t n_bytes)
{
    const struct waiting *waiting = context;

    return waiting->each ? waiting->each(waiting->context, message, n_bytes)
                         : STATUS_OK;
}

static enum status pull(void *context, const void **out_bytes,
                        size_t *out_n_bytes)
{
    const struct waiting *waiting = context;

    return waiting->next(waiting->context, out_bytes, out_n_bytes);
}

enum status client_upload(struct client *client, const char *method,
                          client_next *next, client_each *each, void *context)
{
    struct waiting waiting = {.each = each, .next = next, .context = context};
    struct client_request asked = {.method = method,
                                   .next = pull,
                                   .each = pass_on,
                                   .end = note_end,
                                   .context = &waiting};
    struct exchange *exchange;
    enum status st = exchange_begin(client, &asked, &exchange);

    while (!st && !waiting.is_over)
        (void)client_poll(client, UINT64_MAX);
    return st ? st : waiting.status;
}

enum status client_call(struct client *client, const char *method,
                        const void *request, size_t n_bytes, client_each *each,
                        void *context)
{
    struct waiting waiting = {.each = each, .context = context};
    struct client_request asked = {.method = method,
                                   .bytes = request,
                                   .n_bytes = n_bytes,
                                   .each = pass_on,
                                   .end = note_end,
                                   .context = &waiting};
    struct exchange *exchange;
    enum status st = exchange_begin(client, &asked, &exchange);

    while (!st && !waiting.is_over)
        (void)client_poll(client, UINT64_MAX);
    return st ? st : waiting.status;
}

void client_cancel(struct client *client)
{
    pthread_mutex_lock(&client->lock);
    client->is_cancelled = true;
    for (struct exchange *e = client->running; e; e = e->after)
        grpc_call_cancel(e->call, NULL);
    pthread_mutex_unlock(&client->lock);
}

bool client_is_cancelled(struct client *client)
{
    bool is_cancelled;

    pthread_mutex_lock(&client->lock);
    is_cancelled = client->is_cancelled;
    pthread_mutex_unlock(&client->lock);
    return is_cancelled;
}

static void drop_line(gpr_log_func_args *args)
{
    (void)args;
}

void client_silence(void)
{
    gpr_set_log_function(drop_line);
}
