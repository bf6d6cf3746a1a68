#include "ops/bench_reply.h"

#include "base/clock.h"
#include "godwit/v1/generation.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define METHOD "/godwit.v1.GenerationService/Generate"
#define HAS(name) GODWIT__V1__SAMPLING_PARAMS__HAS_##name

static uint64_t now_us(void)
{
    return clock_real()->now_us(clock_real());
}

static void on_chunk(struct bench_reply *reply,
                     const Godwit__V1__TokenChunk *chunk)
{
    uint64_t us = now_us();

    if (chunk->n_token_ids == 0)
        return;
    if (!reply->first_us)
        reply->first_us = us;
    else
        samples_add(&reply->gaps, us - reply->last_us);
    reply->last_us = us;
    reply->n_token += (uint32_t)chunk->n_token_ids;
    reply->tokens =
        digest_tokens(reply->tokens, chunk->token_ids, chunk->n_token_ids);
}

static void on_complete(struct bench_reply *reply,
                        const Godwit__V1__GenerateComplete *complete)
{
    reply->outcome =
        complete->finish_reason ==
                    GODWIT__V1__FINISH_REASON__FINISH_REASON_LENGTH ||
                complete->finish_reason ==
                    GODWIT__V1__FINISH_REASON__FINISH_REASON_STOP
            ? BENCH_OK
            : BENCH_FAILED;
    if (complete->usage) {
        reply->n_prompt = (uint32_t)complete->usage->prompt_tokens;
        reply->n_cached = (uint32_t)complete->usage->cached_tokens;
    }
    (void)snprintf(reply->reason, sizeof(reply->reason), "%s",
                   complete->reuse ? complete->reuse->reason : "");
}

static enum status on_message(void *context, const void *bytes, size_t n_bytes)
{
    struct bench_reply *reply = context;
    Godwit__V1__GenerateResponse *message =
        godwit__v1__generate_response__unpack(NULL, n_bytes, bytes);

    if (!message)
        return status_fail(STATUS_INTERNAL,
                           "the node's answer is no GenerateResponse");
    if (message->event_case == GODWIT__V1__GENERATE_RESPONSE__EVENT_ACCEPTED)
        reply->is_accepted = true;
    else if (message->event_case == GODWIT__V1__GENERATE_RESPONSE__EVENT_CHUNK)
        on_chunk(reply, message->chunk);
    else if (message->event_case ==
             GODWIT__V1__GENERATE_RESPONSE__EVENT_COMPLETE)
        on_complete(reply, message->complete);
    godwit__v1__generate_response__free_unpacked(message, NULL);
    return STATUS_OK;
}

static enum bench_outcome outcome_of(const struct bench_reply *reply,
                                     enum status st)
{
    if (reply->outcome == BENCH_STOPPED)
        return BENCH_STOPPED;
    switch ((int)st) {
    case STATUS_OK:
        return reply->outcome == BENCH_OK ? BENCH_OK : BENCH_FAILED;
    case STATUS_CANCELLED:
        return BENCH_STOPPED;
    case STATUS_RESOURCE_EXHAUSTED:
        return reply->n_token ? BENCH_FAILED : BENCH_REFUSED;
    case STATUS_DEADLINE_EXCEEDED:
        return reply->is_accepted ? BENCH_LATE : BENCH_FAILED;
    default:
        return BENCH_FAILED;
    }
}

static void on_end(void *context, enum status st)
{
    struct bench_reply *reply = context;
    const struct cause *cause = status_cause();

    reply->outcome = outcome_of(reply, st);
    reply->exchange = NULL;
    if (reply->flight) {
        reply->flight->n--;
        reply->flight->has_lost |= st == STATUS_UNAVAILABLE;
    }
    reply->end_us = now_us();
    reply->status = st;
    if (!st)
        return;
    (void)snprintf(reply->reason, sizeof(reply->reason), "%s",
                   *cause->reason ? cause->reason : status_name(st));
    reply->retry_ms = cause->retry_ms;
}

static void fill(const struct bench_ask *ask,
                 Godwit__V1__GenerateRequest *request,
                 Godwit__V1__TokenizedInput *input,
                 Godwit__V1__SamplingParams *sampling)
{
    godwit__v1__generate_request__init(request);
    godwit__v1__tokenized_input__init(input);
    godwit__v1__sampling_params__init(sampling);
    request->input_case = GODWIT__V1__GENERATE_REQUEST__INPUT_TOKENIZED;
    request->tokenized = input;
    input->n_input_ids = ask->n_id;
    input->input_ids = (uint32_t *)ask->id;
    if (!ask->id) {
        request->input_case = GODWIT__V1__GENERATE_REQUEST__INPUT_TEXT;
        request->text.data = (uint8_t *)ask->text;
        request->text.len = strlen(ask->text);
    }
    request->tenant = (char *)ask->tenant;
    request->priority = ask->priority;
    request->sampling_params = sampling;
    sampling->ignore_eos = true;
    sampling->has_max_tokens_case = HAS(MAX_TOKENS_MAX_TOKENS);
    sampling->max_tokens = ask->n_reply;
    sampling->has_seed_case = HAS(SEED_SEED);
    sampling->seed = ask->seed;
    if (ask->temperature) {
        sampling->has_temperature_case = HAS(TEMPERATURE_TEMPERATURE);
        sampling->temperature = *ask->temperature;
    }
}

enum status bench_reply_begin(struct client *client,
                              const struct bench_ask *ask,
                              struct bench_reply *reply)
{
    Godwit__V1__GenerateRequest request;
    Godwit__V1__TokenizedInput input;
    Godwit__V1__SamplingParams sampling;
    struct client_request call = {.method = METHOD,
                                  .timeout_ms = ask->timeout_ms,
                                  .each = on_message,
                                  .end = on_end,
                                  .context = reply};
    uint8_t *bytes;
    enum status st;

    fill(ask, &request, &input, &sampling);
    call.n_bytes = protobuf_c_message_get_packed_size(&request.base);
    bytes = malloc(call.n_bytes + 1);
    if (!bytes)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a request of %zu bytes",
                           call.n_bytes);
    (void)protobuf_c_message_pack(&request.base, bytes);
    call.bytes = bytes;
    reply->outcome = BENCH_RUNNING;
    st = exchange_begin(client, &call, &reply->exchange);
    free(bytes);
    if (!st && reply->flight)
        reply->flight->n++;
    return st;
}

void bench_reply_stop(struct bench_reply *reply)
{
    if (!reply->exchange)
        return;
    reply->outcome = BENCH_STOPPED;
    exchange_cancel(reply->exchange);
}

void bench_reply_await(struct client *client, const struct bench_reply *reply)
{
    while (reply->exchange)
        (void)client_poll(client, UINT64_MAX);
}

enum status bench_reply_judge(const struct bench_reply *reply)
{
    if (reply->outcome == BENCH_OK)
        return STATUS_OK;
    status_fail(reply->status ? reply->status : STATUS_INTERNAL,
                "a request %s: %s", bench_outcome_name(reply->outcome),
                reply->reason);
    return status_because(reply->reason);
}

const char *bench_outcome_name(enum bench_outcome outcome)
{
    static const char *const NAME[] = {
        [BENCH_UNSENT] = "unsent",   [BENCH_SKIPPED] = "skipped",
        [BENCH_RUNNING] = "running", [BENCH_OK] = "ok",
        [BENCH_REFUSED] = "refused", [BENCH_LATE] = "late",
        [BENCH_STOPPED] = "stopped", [BENCH_FAILED] = "failed"};

    return NAME[outcome];
}
