#include "rpc/caller.h"
#include "rpc/convert_parts.h"
#include "scheduler/sampler.h"

#include <string.h>

#define PARAMS "sampling_params."

static enum status take_stops(const Godwit__V1__SamplingParams *params,
                              struct sampling *out)
{
    if (params->n_stop > STOP_MAX)
        return bad_field(PARAMS "stop", "%zu stop texts, limit %u",
                         params->n_stop, STOP_MAX);
    for (size_t i = 0; i < params->n_stop; i++) {
        size_t n = strlen(params->stop[i]);
        if (n == 0 || n >= STOP_BYTES_MAX)
            return bad_field(PARAMS "stop",
                             "stop text %zu has %zu bytes, expected 1 to %u", i,
                             n, STOP_BYTES_MAX - 1);
        memcpy(out->stop[i], params->stop[i], n + 1);
    }
    out->n_stop = (uint32_t)params->n_stop;
    if (params->n_stop_token_ids > STOP_ID_MAX)
        return bad_field(PARAMS "stop_token_ids", "%zu stop ids, limit %u",
                         params->n_stop_token_ids, STOP_ID_MAX);
    for (size_t i = 0; i < params->n_stop_token_ids; i++)
        out->stop_id[i] = params->stop_token_ids[i];
    out->n_stop_id = (uint32_t)params->n_stop_token_ids;
    return STATUS_OK;
}

static enum status take_biases(const Godwit__V1__SamplingParams *params,
                               struct sampling *out)
{
    if (params->n_logit_bias > LOGIT_BIAS_MAX)
        return bad_field(PARAMS "logit_bias", "%zu logit biases, limit %u",
                         params->n_logit_bias, LOGIT_BIAS_MAX);
    for (size_t i = 0; i < params->n_logit_bias; i++)
        out->bias[i] = (struct logit_bias){params->logit_bias[i]->token_id,
                                           params->logit_bias[i]->bias};
    out->n_bias = (uint32_t)params->n_logit_bias;
    return STATUS_OK;
}

/* Numbers as they are; sampling_check() judges them. */
static enum status take_numbers(const Godwit__V1__SamplingParams *params,
                                struct sampling *out)
{
    if (params->has_temperature_case)
        out->temperature = params->temperature;
    if (params->has_top_p_case)
        out->top_p = params->top_p;
    if (params->has_top_k_case)
        out->top_k = params->top_k == -1 ? 0 : params->top_k;
    if (params->has_min_p_case)
        out->min_p = params->min_p;
    if (params->has_frequency_penalty_case)
        out->frequency_penalty = params->frequency_penalty;
    if (params->has_presence_penalty_case)
        out->presence_penalty = params->presence_penalty;
    if (params->has_repetition_penalty_case)
        out->repetition_penalty = params->repetition_penalty;
    if (params->has_max_tokens_case) {
        if (params->max_tokens == 0)
            return bad_field(PARAMS "max_tokens",
                             "max_tokens is 0, expected at least 1");
        out->max_tokens = params->max_tokens;
    }
    if (params->has_min_tokens_case)
        out->min_tokens = params->min_tokens;
    if (params->has_logprobs_case) {
        if (params->logprobs < 0)
            return bad_field(PARAMS "logprobs",
                             "logprobs is %d, expected 0 to "
                             "%u",
                             params->logprobs, LOGPROBS_MAX);
        out->n_logprob = params->logprobs;
    }
    return STATUS_OK;
}

static enum status take_sampling(const struct convert_node *node,
                                 const Godwit__V1__SamplingParams *params,
                                 struct generate_command *out)
{
    struct sampling *sampling = &out->sampling;
    enum status st = STATUS_OK;

    sampling_init(sampling);
    sampling->skip_special = true;
    if (node->has_sampling) {
        sampling->temperature = node->temperature;
        sampling->top_p = node->top_p;
        sampling->top_k = node->top_k;
    }
    if (!params)
        return STATUS_OK;
    st = take_numbers(params, sampling);
    if (!st)
        st = take_stops(params, sampling);
    if (!st)
        st = take_biases(params, sampling);
    sampling->ignore_eos = params->ignore_eos;
    if (params->has_skip_special_tokens_case)
        sampling->skip_special = params->skip_special_tokens;
    if (params->has_seed_case) {
        out->has_seed = true;
        sampling->seed = params->seed;
    }
    return st ? st : sampling_check(sampling, node->n_vocab);
}

/*
 * Into the command's own arena, so that they live as long as it does, behind
 * the opening that the model's sessions begin with. Ids that a client made
 * itself are taken as they are.
 */
static enum status keep_tokens(struct job *job, const struct input *input,
                               const struct ids *ids, size_t n_shared)
{
    struct generate_command *generate = &job->command->generate;
    const uint32_t *opening = NULL;
    uint32_t n_opening = 0;
    uint32_t *token;

    if (ids->n == 0)
        return STATUS_OK;
    if (!input->tokenized && job->node->tokenizer)
        opening = tokenizer_opening(job->node->tokenizer, &n_opening);
    token = arena_take(job->arena, (n_opening + ids->n) * sizeof(*token));
    if (!token)
        return status_cause()->code;
    if (n_opening)
        memcpy(token, opening, n_opening * sizeof(*token));
    memcpy(token + n_opening, ids->id, ids->n * sizeof(*token));
    generate->token = token;
    generate->n_token = n_opening + ids->n;
    generate->n_opening = n_opening;
    generate->n_shared = n_opening + n_shared;
    return STATUS_OK;
}

static enum status take_prompt(struct job *job, const struct input *input,
                               bool may_be_empty)
{
    struct ids ids = {0};
    size_t n_shared;
    enum status st = take_input(job->node, input, &ids, &n_shared);

    if (!st && ids.n == 0 && !may_be_empty) {
        bad_field("input", "the input is empty: give at least one token");
        st = status_because("EMPTY_INPUT");
    }
    if (!st)
        st = keep_tokens(job, input, &ids, n_shared);
    ids_release(&ids);
    return st;
}

/* Who is generated for: "" is ephemeral. */
static enum status take_target(struct job *job, const char *session,
                               const char *request_id)
{
    struct generate_command *generate = &job->command->generate;
    enum status st = STATUS_OK;

    job->command->kind = COMMAND_GENERATE;
    if (session[0])
        st = take_session(session, "session", generate->session);
    if (!st)
        st = take_request_id(request_id, generate->request_id);
    memcpy(job->note->session, generate->session, sizeof(job->note->session));
    memcpy(job->note->request_id, generate->request_id,
           sizeof(job->note->request_id));
    return st;
}

enum status take_tenant(const char *tenant, const char *field,
                        char out[TENANT_SIZE])
{
    size_t n = strlen(tenant);

    if (n >= TENANT_SIZE)
        return bad_field(field, "tenant has %zu bytes, limit %u", n,
                         TENANT_SIZE - 1);
    if (strcmp(tenant, CALLER_ALL) == 0)
        return bad_field(field, "tenant is \"%s\": that names no one", tenant);
    memcpy(out, tenant, n + 1);
    return STATUS_OK;
}

static enum status take_prefill(struct job *job,
                                const Godwit__V1__PrefillOptions *prefill)
{
    struct generate_command *generate = &job->command->generate;
    enum status st;

    generate->wants_progress = true;
    if (!prefill)
        return STATUS_OK;
    if (prefill->mode < GODWIT__V1__SPLIT_MODE__SPLIT_MODE_UNSPECIFIED ||
        prefill->mode > GODWIT__V1__SPLIT_MODE__SPLIT_MODE_ALLGATHER)
        return bad_field("prefill.mode",
                         "mode is %d, no split mode has that "
                         "number",
                         (int)prefill->mode);
    if (!prefill->progress_interval)
        return STATUS_OK;
    st = take_duration(prefill->progress_interval, "prefill.progress_interval",
                       &job->note->progress_us);
    generate->wants_progress = job->note->progress_us > 0;
    return st;
}

/* What only a session that is kept can have. */
static enum status check_ephemeral(const Godwit__V1__GenerateRequest *request)
{
    if (request->session[0])
        return STATUS_OK;
    if (request->has_expected_position_case)
        return bad_field("expected_position",
                         "expected_position without a session");
    if (request->has_resume_from_position_case)
        return bad_field("resume_from_position",
                         "resume_from_position without a session");
    if (request->create_session)
        return bad_field("create_session", "create_session without a session");
    if (request->reread)
        return bad_field("reread", "reread without a session: there is "
                                   "nothing to read again");
    return STATUS_OK;
}

static enum status take_excerpt(const Godwit__V1__GenerateRequest *request,
                                struct generate_command *generate)
{
    if (!request->gemfilter[0])
        return STATUS_OK;
    if (request->reread)
        return bad_field("gemfilter", "gemfilter with reread: one leaves out "
                                      "what the other repeats");
    return excerpt_parse(request->gemfilter, &generate->excerpt)
               ? status_field("gemfilter")
               : STATUS_OK;
}

static struct input input_of(const Godwit__V1__GenerateRequest *request)
{
    struct input input = {.parses_special = request->parse_special_tokens,
                          .opens_reply = true};

    if (request->input_case == GODWIT__V1__GENERATE_REQUEST__INPUT_TOKENIZED)
        input.tokenized = request->tokenized;
    else if (request->input_case == GODWIT__V1__GENERATE_REQUEST__INPUT_TEXT)
        input.text = &request->text;
    else if (request->input_case ==
             GODWIT__V1__GENERATE_REQUEST__INPUT_MESSAGES)
        input.messages = request->messages;
    return input;
}

enum status convert_generate(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__GenerateRequest *request =
        (const Godwit__V1__GenerateRequest *)message;
    struct generate_command *generate = &job->command->generate;
    struct input input = input_of(request);
    enum status st = take_target(job, request->session, request->request_id);

    if (!st)
        st = check_model(job->node, request->model);
    if (!st)
        st = check_ephemeral(request);
    if (!st)
        st = take_durability(request->durability, "durability",
                             &generate->has_durability, &generate->durability);
    if (!st)
        st = take_policy(request->policy, "policy", &generate->has_policy,
                         &generate->policy);
    if (!st)
        st = take_excerpt(request, generate);
    if (!st)
        st = take_tenant(request->tenant, "tenant", job->command->tenant);
    if (!st)
        st = take_prefill(job, request->prefill);
    if (!st)
        st = take_sampling(job->node, request->sampling_params, generate);
    if (st)
        return st;
    generate->rereads = request->reread;
    if (request->reread)
        generate->reread_limit = request->reread->max_tokens;
    generate->creates = request->create_session;
    generate->priority = request->priority;
    generate->has_expected = request->has_expected_position_case;
    if (generate->has_expected)
        generate->expected_position = request->expected_position;
    generate->has_resume = request->has_resume_from_position_case;
    if (generate->has_resume)
        generate->resume_position = request->resume_from_position;
    /* Nothing at all means: go on from the session's last token. */
    return take_prompt(job, &input,
                       generate->has_resume ||
                           (generate->session[0] &&
                            request->input_case ==
                                GODWIT__V1__GENERATE_REQUEST__INPUT__NOT_SET));
}

enum status convert_append(struct job *job, const ProtobufCMessage *message)
{
    const Godwit__V1__AppendTokensRequest *request =
        (const Godwit__V1__AppendTokensRequest *)message;
    struct generate_command *generate = &job->command->generate;
    struct input input = {.parses_special = request->parse_special_tokens};
    enum status st;

    if (request->input_case ==
        GODWIT__V1__APPEND_TOKENS_REQUEST__INPUT_TOKENIZED)
        input.tokenized = request->tokenized;
    else if (request->input_case ==
             GODWIT__V1__APPEND_TOKENS_REQUEST__INPUT_TEXT)
        input.text = &request->text;
    else if (request->input_case ==
             GODWIT__V1__APPEND_TOKENS_REQUEST__INPUT_MESSAGES)
        input.messages = request->messages;
    if (request->session[0] == '\0')
        return bad_field("session", "session is empty, expected "
                                    "\"sessions/ID\"");
    st = take_target(job, request->session, request->request_id);
    if (!st)
        st = take_durability(request->durability, "durability",
                             &generate->has_durability, &generate->durability);
    if (!st)
        st = take_policy(request->policy, "policy", &generate->has_policy,
                         &generate->policy);
    if (!st)
        st = take_tenant(request->tenant, "tenant", job->command->tenant);
    if (st)
        return st;
    sampling_init(&generate->sampling);
    generate->is_append = true;
    generate->creates = request->create_session;
    generate->priority = request->priority;
    generate->has_expected = request->has_expected_position_case;
    if (generate->has_expected)
        generate->expected_position = request->expected_position;
    return take_prompt(job, &input, false);
}
