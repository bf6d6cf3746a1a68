/* node get. */
#include "ops/ctl.h"

#include "godwit/v1/admin.pb-c.h"

#include <stdio.h>
#include <string.h>

static void put_node(struct output *output, const Godwit__V1__Node *node)
{
    const ProtobufCEnumValue *state = protobuf_c_enum_descriptor_get_value(
        &godwit__v1__node__state__descriptor, (int)node->state);
    const char *name =
        strncmp(node->name, "nodes/", 6) == 0 ? node->name + 6 : node->name;

    output_row(output);
    output_text(output, "id", name);
    output_text(output, "state", state ? state->name : "UNKNOWN");
    output_text(output, "version", node->version);
    output_text(output, "model", node->model);
    output_text(output, "architecture", node->architecture);
    output_text(output, "model_fingerprint", node->model_fingerprint);
    output_text(output, "numerics_id", node->numerics_id);
    output_text(output, "backend", node->backend);
    output_number(output, "threads", node->threads);
    output_number(output, "context_length", node->context_length);
    output_number(output, "sessions", node->sessions);
    output_number(output, "resident_sessions", node->resident_sessions);
    output_number(output, "running_requests", node->running_requests);
    output_number(output, "waiting_requests", node->waiting_requests);
    output_number(output, "weight_bytes", node->weight_bytes);
    output_number(output, "session_bytes", node->session_bytes);
    output_number(output, "session_bytes_max", node->session_bytes_max);
    output_number(output, "state_bytes", node->state_bytes);
    output_number(output, "state_bytes_max", node->state_bytes_max);
    output_number(output, "bytes_per_session", node->bytes_per_session);
    output_number(output, "bytes_per_token", node->bytes_per_token);
    output_number(output, "prompt_tokens_total", node->prompt_tokens_total);
    output_number(output, "generated_tokens_total",
                  node->generated_tokens_total);
    output_time(output, "started",
                node->start_time ? node->start_time->seconds : 0);
}

enum status ctl_node_get(struct ctl *ctl)
{
    Godwit__V1__GetNodeRequest request;
    char name[160] = "";
    ProtobufCMessage *message;
    struct output *output;
    enum status st;

    godwit__v1__get_node_request__init(&request);
    if (ctl->n_word > 0)
        (void)snprintf(name, sizeof(name), "%s%s",
                       strncmp(ctl->word[0], "nodes/", 6) == 0 ? "" : "nodes/",
                       ctl->word[0]);
    request.name = name;
    st = ctl_unary(ctl, "/godwit.v1.AdminService/GetNode", &request.base,
                   &godwit__v1__node__descriptor, &message);
    if (st)
        return st;
    st = output_create(ctl_format(ctl), "Node", false, &output);
    if (!st) {
        put_node(output, (Godwit__V1__Node *)message);
        st = output_write(output);
        output_destroy(output);
    }
    protobuf_c_message_free_unpacked(message, NULL);
    return st;
}
