/* What is stored of a session: inspect, verify, park, pin, export, import. */
#include "ops/ctl.h"

#include "godwit/v1/admin.pb-c.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVICE "/godwit.v1.SessionService/"
#define PIECE_BYTES (256u << 10) /* of a bundle in one message */

/* --- inspect --- */

static void put_layers(struct output *output,
                       const Godwit__V1__SessionInspection *found)
{
    for (size_t i = 0; i < found->n_layers; i++) {
        const Godwit__V1__SessionInspection__Layer *layer = found->layers[i];

        output_row(output);
        output_number(output, "layer", layer->layer);
        output_text(output, "kind", layer->kind);
        output_number(output, "memory_state", layer->memory_state_bytes);
        output_number(output, "memory_kv", layer->memory_kv_bytes);
        output_number(output, "stored_state", layer->stored_state_bytes);
        output_number(output, "stored_kv", layer->stored_kv_bytes);
        output_real(output, "state_rms", (double)layer->state_rms, 4);
        output_real(output, "state_head_rms", (double)layer->state_head_rms, 4);
        output_number(output, "state_head", layer->state_head);
        output_real(output, "state_max", (double)layer->state_max, 4);
        output_text(output, "tier", found->tier);
    }
}

static uint64_t per_step(uint64_t n,
                         const Godwit__V1__SessionInspection__Layer *layer)
{
    return layer->policy_steps ? n / layer->policy_steps : 0;
}

/* Of softmax layers, which policies are about. Steps are counted where the node
 * pages blocks (--kv-memory); elsewhere all blocks are in RAM, and none is. */
static void put_policy(struct output *output,
                       const Godwit__V1__SessionInspection *found)
{
    for (size_t i = 0; i < found->n_layers; i++) {
        const Godwit__V1__SessionInspection__Layer *layer = found->layers[i];

        if (strcmp(layer->kind, "softmax") != 0)
            continue;
        output_row(output);
        output_number(output, "layer", layer->layer);
        output_text(output, "policy", found->session->policy);
        output_flag(output, "paged", layer->policy_steps > 0);
        output_number(output, "steps", layer->policy_steps);
        output_number(output, "hits", layer->policy_hits);
        output_number(output, "fetched", layer->policy_fetched);
        output_number(output, "hits_per_step",
                      per_step(layer->policy_hits, layer));
        output_number(output, "bytes_per_step",
                      per_step(layer->policy_fetched_bytes, layer));
    }
}

static void put_snapshots(struct output *output,
                          const Godwit__V1__SessionInspection *found)
{
    for (size_t i = 0; i < found->n_checkpoints; i++) {
        const Godwit__V1__Checkpoint *at = found->checkpoints[i];

        output_row(output);
        output_number(output, "position", at->position);
        output_number(output, "bytes", at->size_bytes);
        output_text(output, "chain_hash", at->chain_hash);
        output_time(output, "created",
                    at->create_time ? at->create_time->seconds : 0);
    }
}

static void put_lineage(struct output *output,
                        const Godwit__V1__SessionInspection *found)
{
    for (size_t i = 0; i < found->n_lineage; i++) {
        const Godwit__V1__SessionInspection__Log *log = found->lineage[i];

        output_row(output);
        output_text(output, "log", log->uid);
        output_number(output, "begin", log->begin);
        output_number(output, "end",
                      log->end ? log->end : found->session->position);
        output_number(output, "snapshots", log->snapshots);
        output_number(output, "stored", log->stored_bytes);
    }
}

static enum status show_inspection(const struct ctl *ctl,
                                   const Godwit__V1__SessionInspection *found)
{
    const char *show = ctl->options.show;
    struct output *output;
    enum status st;

    if (!found->session)
        return status_fail(STATUS_INTERNAL, "the node's answer has no session");
    st = output_create(ctl_format(ctl), "SessionInspection", true, &output);
    if (st)
        return st;
    if (strcmp(show, "policy") == 0)
        put_policy(output, found);
    else if (strcmp(show, "snapshots") == 0)
        put_snapshots(output, found);
    else if (strcmp(show, "lineage") == 0)
        put_lineage(output, found);
    else
        put_layers(output, found);
    st = output_write(output);
    output_destroy(output);
    return st;
}

enum status ctl_session_inspect(struct ctl *ctl)
{
    Godwit__V1__InspectSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    ProtobufCMessage *message;
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__inspect_session_request__init(&request);
    request.session = name;
    st = ctl_unary(ctl, "/godwit.v1.AdminService/InspectSession", &request.base,
                   &godwit__v1__session_inspection__descriptor, &message);
    free(name);
    if (st)
        return st;
    st = show_inspection(ctl, (Godwit__V1__SessionInspection *)message);
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}

/* --- verify --- */

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

enum status ctl_session_park(struct ctl *ctl)
{
    Godwit__V1__ParkSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__park_session_request__init(&request);
    request.session = name;
    st = ctl_show_session(ctl, SERVICE "ParkSession", &request.base);
    free(name);
    return st;
}

static enum status set_pinned(struct ctl *ctl, bool pinned)
{
    static char path[] = "pinned";
    char *paths[] = {path}, *name = ctl_session_name(ctl->word[0]);
    Godwit__V1__UpdateSessionRequest request;
    Google__Protobuf__FieldMask mask;
    Godwit__V1__Session session;
    enum status st;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__update_session_request__init(&request);
    google__protobuf__field_mask__init(&mask);
    godwit__v1__session__init(&session);
    session.name = name;
    session.pinned = pinned;
    mask.paths = paths;
    mask.n_paths = 1;
    request.session = &session;
    request.update_mask = &mask;
    st = ctl_show_session(ctl, SERVICE "UpdateSession", &request.base);
    free(name);
    return st;
}

enum status ctl_session_pin(struct ctl *ctl)
{
    return set_pinned(ctl, true);
}

enum status ctl_session_unpin(struct ctl *ctl)
{
    return set_pinned(ctl, false);
}

/* --- bundles --- */

static enum status write_piece(void *context, const void *bytes, size_t n_bytes)
{
    FILE *file = context;
    Godwit__V1__SessionChunk *chunk =
        godwit__v1__session_chunk__unpack(NULL, n_bytes, bytes);
    enum status st = STATUS_OK;

    if (!chunk)
        return status_fail(STATUS_INTERNAL,
                           "the node's answer is no SessionChunk");
    if (fwrite(chunk->data.data, 1, chunk->data.len, file) != chunk->data.len)
        st = status_fail(STATUS_INTERNAL, "cannot write the bundle: %s",
                         strerror(errno));
    godwit__v1__session_chunk__free_unpacked(chunk, NULL);
    return st;
}

static enum status call_export(struct ctl *ctl, FILE *file)
{
    const struct ctl_options *options = &ctl->options;
    Godwit__V1__ExportSessionRequest request;
    char *name = ctl_session_name(ctl->word[0]);
    enum status st = STATUS_OK;

    if (!name)
        return STATUS_RESOURCE_EXHAUSTED;
    godwit__v1__export_session_request__init(&request);
    request.session = name;
    request.with_state = options->has_state;
    request.seal = options->is_sealed;
    request.tenant = (char *)options->seal_for;
    if (*options->fork_at)
        st = ctl_parse_u64("at", options->fork_at, &request.position);
    if (!st)
        st = ctl_stream(ctl, SERVICE "ExportSession", &request.base,
                        write_piece, file);
    free(name);
    return st;
}

/* On disk when this returns. */
static enum status close_file(FILE *file, const char *path)
{
    int error = fflush(file) || fsync(fileno(file)) ? errno : 0;

    if (fclose(file) && !error)
        error = errno;
    if (error)
        return status_fail(STATUS_INTERNAL, "cannot write %s: %s", path,
                           strerror(error));
    return STATUS_OK;
}

/* Nobody else may read it; a bundle that is not whole does not stay. */
static enum status export_to(struct ctl *ctl, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "wb");
    enum status st, closed;

    if (!file) {
        st = status_fail(STATUS_INTERNAL, "cannot make %s: %s", path,
                         strerror(errno));
        if (fd >= 0)
            (void)close(fd);
        return st;
    }
    st = call_export(ctl, file);
    if (st) {
        (void)fclose(file);
        (void)unlink(path);
        return st;
    }
    closed = close_file(file, path);
    if (closed)
        (void)unlink(path);
    return closed;
}

enum status ctl_session_export(struct ctl *ctl)
{
    const char *path = ctl->options.file;

    if (!*path)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--file says where to, and is missing");
    return strcmp(path, "-") == 0 ? call_export(ctl, stdout)
                                  : export_to(ctl, path);
}

/* A bundle on its way to the node, and the session that comes back. */
struct upload {
    FILE *file;
    Godwit__V1__ImportOptions options;
    bool has_begun;
    unsigned char *bytes, *message; /* owned */
    Godwit__V1__Session *session;   /* owned */
};

static enum status next_piece(void *context, const void **out_bytes,
                              size_t *out_n_bytes)
{
    struct upload *upload = context;
    size_t n = fread(upload->bytes, 1, PIECE_BYTES, upload->file);
    Godwit__V1__SessionChunk chunk;

    if (ferror(upload->file))
        return status_fail(STATUS_INTERNAL, "cannot read the bundle: %s",
                           strerror(errno));
    *out_bytes = NULL;
    if (n == 0 && upload->has_begun)
        return STATUS_OK;
    godwit__v1__session_chunk__init(&chunk);
    chunk.data.data = upload->bytes;
    chunk.data.len = n;
    if (!upload->has_begun)
        chunk.options = &upload->options;
    upload->has_begun = true;
    *out_n_bytes = godwit__v1__session_chunk__pack(&chunk, upload->message);
    *out_bytes = upload->message;
    return STATUS_OK;
}

static enum status take_session(void *context, const void *bytes,
                                size_t n_bytes)
{
    struct upload *upload = context;

    if (!upload->session)
        upload->session = godwit__v1__session__unpack(NULL, n_bytes, bytes);
    return upload->session ? STATUS_OK
                           : status_fail(STATUS_INTERNAL,
                                         "the node's answer is no Session");
}

static enum status call_import(struct ctl *ctl, struct upload *upload)
{
    const struct ctl_options *options = &ctl->options;
    enum status st;

    godwit__v1__import_options__init(&upload->options);
    upload->options.session_id = (char *)ctl_short_name(options->fork_name);
    upload->options.log_only = options->is_log_only;
    upload->bytes = malloc(PIECE_BYTES);
    upload->message = malloc(PIECE_BYTES + 4096u); /* and the options */
    if (!upload->bytes || !upload->message)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a bundle");
    st = client_upload(ctl->client, SERVICE "ImportSession", next_piece,
                       take_session, upload);
    if (!st && !upload->session)
        st = status_fail(STATUS_INTERNAL, "the node sent no answer");
    return st ? st : ctl_print_session(ctl, upload->session);
}

enum status ctl_session_import(struct ctl *ctl)
{
    const char *path = ctl->word[0];
    const bool is_stdin = strcmp(path, "-") == 0;
    struct upload upload = {.file = is_stdin ? stdin : fopen(path, "rbe")};
    enum status st;

    if (strlen(ctl->options.fork_name) > 2048)
        st = status_fail(STATUS_INVALID_ARGUMENT, "name is too long");
    else if (!upload.file)
        st = status_fail(STATUS_INTERNAL, "cannot read %s: %s", path,
                         strerror(errno));
    else
        st = call_import(ctl, &upload);
    if (upload.session)
        godwit__v1__session__free_unpacked(upload.session, NULL);
    if (upload.file && !is_stdin)
        (void)fclose(upload.file);
    free(upload.bytes);
    free(upload.message);
    return st;
}
