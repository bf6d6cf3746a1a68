/*
 * generate: the reply's text on stdout as it comes. Every turn of a session
 * gets a request id, drawn if not given, so that a turn that broke off can be
 * asked for again. A seed is sent only when one is given: the node draws and
 * keeps one otherwise, and the same command line stays the same request.
 */
#include "ops/ctl.h"

#include "base/clock.h"
#include "godwit/v1/generation.pb-c.h"
#include "ops/progress.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define METHOD "/godwit.v1.GenerationService/Generate"
#define ID_SIZE 65u
#define FLAG(name) GODWIT__V1__SAMPLING_PARAMS__HAS_##name

typedef Godwit__V1__GenerateRequest request_message;
typedef Godwit__V1__GenerateResponse response_message;

/* What is known of the reply so far. */
struct reply {
    struct ctl *ctl;
    struct progress progress;
    uint64_t position; /* behind the last token that came */
    uint64_t n_token;
    uint64_t seed; /* in use, the node's or ours */
    bool is_accepted, is_complete;
    Godwit__V1__FinishReason finish;
    Godwit__V1__GenerateComplete *complete; /* within `last`; NULL before */
    response_message *last;                 /* owned: the completion */
    char *text;                             /* for JSON only; owned */
    size_t n_text;
    FILE *text_file;
    char session[160];
};

/* Everything the request's message points into. */
struct asked {
    request_message request;
    Godwit__V1__SamplingParams sampling;
    Godwit__V1__Reread reread;
    Godwit__V1__Messages messages;
    Godwit__V1__Message message[2], *message_list[2];
    struct ctl_text prompt;
    char *session, *stop[1];
    char request_id[ID_SIZE];
};

static enum status fill_reals(const struct ctl_options *options,
                              Godwit__V1__SamplingParams *sampling)
{
    enum status st = STATUS_OK;

    if (*options->temperature) {
        sampling->has_temperature_case = FLAG(TEMPERATURE_TEMPERATURE);
        st = ctl_parse_float("temperature", options->temperature,
                             &sampling->temperature);
    }
    if (!st && *options->top_p) {
        sampling->has_top_p_case = FLAG(TOP_P_TOP_P);
        st = ctl_parse_float("top-p", options->top_p, &sampling->top_p);
    }
    if (!st && *options->min_p) {
        sampling->has_min_p_case = FLAG(MIN_P_MIN_P);
        st = ctl_parse_float("min-p", options->min_p, &sampling->min_p);
    }
    return st;
}

static enum status fill_sampling(const struct ctl_options *options,
                                 struct asked *asked)
{
    Godwit__V1__SamplingParams *sampling = &asked->sampling;
    enum status st = fill_reals(options, sampling);
    uint64_t top_k;
    size_t bad;

    if (!st && *options->top_k) {
        st = ctl_parse_u64("top-k", options->top_k, &top_k);
        if (!st && top_k > INT32_MAX)
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "--top-k is '%s', expected 0 to %d",
                             options->top_k, INT32_MAX);
        sampling->has_top_k_case = FLAG(TOP_K_TOP_K);
        sampling->top_k = st ? 0 : (int32_t)top_k;
    }
    if (!st && *options->seed) {
        sampling->has_seed_case = FLAG(SEED_SEED);
        st = ctl_parse_u64("seed", options->seed, &sampling->seed);
    }
    if (st)
        return st;
    if (options->max_tokens > 0) {
        sampling->has_max_tokens_case = FLAG(MAX_TOKENS_MAX_TOKENS);
        sampling->max_tokens = (uint32_t)options->max_tokens;
    }
    sampling->ignore_eos = options->ignores_eos;
    if (*options->stop) {
        if (!ctl_is_utf8(options->stop, strlen(options->stop), &bad))
            return status_fail(STATUS_INVALID_ARGUMENT, "--stop is not UTF-8");
        asked->stop[0] = (char *)options->stop;
        sampling->n_stop = 1;
        sampling->stop = asked->stop;
    }
    return STATUS_OK;
}

static void add_message(struct asked *asked, const char *role,
                        const char *content, size_t n_bytes)
{
    size_t i = asked->messages.n_messages++;

    godwit__v1__message__init(&asked->message[i]);
    asked->message[i].role = (char *)role;
    asked->message[i].content.data = (uint8_t *)content;
    asked->message[i].content.len = n_bytes;
    asked->message_list[i] = &asked->message[i];
}

static enum status fill_input(struct ctl *ctl, struct asked *asked)
{
    const struct ctl_options *options = &ctl->options;
    request_message *request = &asked->request;
    bool has_prompt = *options->prompt || *options->prompt_file;
    enum status st;
    size_t bad;

    if (!has_prompt && *options->resume_from)
        return STATUS_OK; /* the node knows the input */
    st = ctl_read_prompt(ctl, NULL, &asked->prompt);
    if (st)
        return st;
    if (!options->is_chat && !*options->system) {
        request->input_case = GODWIT__V1__GENERATE_REQUEST__INPUT_TEXT;
        request->text.data = (uint8_t *)asked->prompt.bytes;
        request->text.len = asked->prompt.n_bytes;
        return STATUS_OK;
    }
    if (!ctl_is_utf8(options->system, strlen(options->system), &bad))
        return status_fail(STATUS_INVALID_ARGUMENT, "--system is not UTF-8");
    godwit__v1__messages__init(&asked->messages);
    asked->messages.messages = asked->message_list;
    if (*options->system)
        add_message(asked, "system", options->system, strlen(options->system));
    add_message(asked, "user", asked->prompt.bytes, asked->prompt.n_bytes);
    request->input_case = GODWIT__V1__GENERATE_REQUEST__INPUT_MESSAGES;
    request->messages = &asked->messages;
    return STATUS_OK;
}

/* An ephemeral turn needs no id: it cannot be asked for again. */
static enum status fill_request_id(const struct ctl_options *options,
                                   struct asked *asked)
{
    uint64_t random[2];

    if (strlen(options->request_id) >= ID_SIZE)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "--request-id has %zu bytes, limit %u",
                           strlen(options->request_id), ID_SIZE - 1);
    (void)snprintf(asked->request_id, ID_SIZE, "%s", options->request_id);
    if (!*options->request_id && *options->session) {
        if (getrandom(random, sizeof(random), 0) != sizeof(random))
            return status_fail(STATUS_INTERNAL, "no random numbers");
        (void)snprintf(asked->request_id, ID_SIZE,
                       "ctl-%016" PRIx64 "%016" PRIx64, random[0], random[1]);
    }
    asked->request.request_id = asked->request_id;
    return STATUS_OK;
}

static enum status fill_reread(const struct ctl_options *options,
                               struct asked *asked)
{
    enum status st;

    if (!*options->reread)
        return STATUS_OK;
    godwit__v1__reread__init(&asked->reread);
    asked->request.reread = &asked->reread;
    if (strcmp(options->reread, "all") == 0)
        return STATUS_OK;
    st = ctl_parse_u64("reread", options->reread, &asked->reread.max_tokens);
    if (!st && asked->reread.max_tokens == 0)
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "--reread is 0, expected all or at least 1");
    return st;
}

static enum status fill_request(struct ctl *ctl, struct asked *asked)
{
    const struct ctl_options *options = &ctl->options;
    request_message *request = &asked->request;
    enum status st;

    godwit__v1__generate_request__init(request);
    godwit__v1__sampling_params__init(&asked->sampling);
    request->sampling_params = &asked->sampling;
    request->parse_special_tokens = options->has_special;
    request->policy = (char *)options->policy;
    request->gemfilter = (char *)options->gemfilter;
    request->create_session = *options->session && options->creates;
    if (*options->session) {
        asked->session = ctl_session_name(options->session);
        if (!asked->session)
            return STATUS_RESOURCE_EXHAUSTED;
        request->session = asked->session;
    }
    st = fill_sampling(options, asked);
    if (!st)
        st = fill_request_id(options, asked);
    if (!st && *options->resume_from) {
        request->has_resume_from_position_case =
            GODWIT__V1__GENERATE_REQUEST__HAS_RESUME_FROM_POSITION_RESUME_FROM_POSITION;
        st = ctl_parse_u64("resume-from", options->resume_from,
                           &request->resume_from_position);
    }
    if (!st)
        st = fill_reread(options, asked);
    return st ? st : fill_input(ctl, asked);
}

static void release_asked(struct asked *asked)
{
    free(asked->prompt.bytes);
    free(asked->session);
}

static double seconds(const Google__Protobuf__Duration *duration)
{
    return duration ? (double)duration->seconds + duration->nanos / 1e9 : 0;
}

static void on_progress(struct reply *reply,
                        const Godwit__V1__PrefillProgress *progress)
{
    int64_t left = progress->estimated_remaining
                       ? (int64_t)(seconds(progress->estimated_remaining) + 0.5)
                       : -1;

    progress_show(&reply->progress, progress->processed_tokens,
                  progress->total_tokens, left,
                  clock_real()->now_us(clock_real()));
}

static enum status on_chunk(struct reply *reply, uint64_t position,
                            const Godwit__V1__TokenChunk *chunk)
{
    FILE *to = reply->text_file ? reply->text_file : stdout;

    progress_clear(&reply->progress);
    reply->position = position + chunk->n_token_ids;
    reply->n_token += chunk->n_token_ids;
    if (fwrite(chunk->text.data, 1, chunk->text.len, to) != chunk->text.len ||
        fflush(to))
        return status_fail(STATUS_INTERNAL, "cannot write to stdout: %s",
                           strerror(errno));
    return STATUS_OK;
}

static enum status on_response(void *context, const void *bytes, size_t n_bytes)
{
    struct reply *reply = context;
    response_message *message =
        godwit__v1__generate_response__unpack(NULL, n_bytes, bytes);
    enum status st = STATUS_OK;

    if (!message)
        return status_fail(STATUS_INTERNAL,
                           "the node's answer is no GenerateResponse");
    switch ((int)message->event_case) {
    case GODWIT__V1__GENERATE_RESPONSE__EVENT_ACCEPTED:
        reply->is_accepted = true;
        reply->position = message->position;
        reply->seed = message->accepted->seed;
        break;
    case GODWIT__V1__GENERATE_RESPONSE__EVENT_PROGRESS:
        on_progress(reply, message->progress);
        break;
    case GODWIT__V1__GENERATE_RESPONSE__EVENT_CHUNK:
        st = on_chunk(reply, message->position, message->chunk);
        break;
    case GODWIT__V1__GENERATE_RESPONSE__EVENT_COMPLETE:
        if (reply->last)
            break; /* a second one means nothing */
        reply->last = message;
        reply->complete = message->complete;
        return STATUS_OK;
    default: /* of a later version */
        break;
    }
    godwit__v1__generate_response__free_unpacked(message, NULL);
    return st;
}

/* The call failed. With a session the turn can be asked for again: say how. */
static enum status explain_break(const struct reply *reply,
                                 const struct asked *asked, enum status st)
{
    bool is_lost = strcmp(status_cause()->reason, "CONNECTION_LOST") == 0;
    struct cause cause = *status_cause();

    if (st == STATUS_CANCELLED) {
        if (*reply->ctl->options.session)
            status_fail(st,
                        "interrupted at position %" PRIu64 "; session %s "
                        "keeps its tokens up to there",
                        reply->position, reply->ctl->options.session);
        else
            status_fail(st, "interrupted");
        return status_because("INTERRUPTED");
    }
    if (!is_lost || !reply->is_accepted || !*asked->request_id ||
        !*reply->ctl->options.session)
        return st;
    status_fail(st,
                "connection to %s lost; go on with the same command and "
                "--request-id %s --resume-from %" PRIu64,
                reply->ctl->options.endpoint, asked->request_id,
                reply->position);
    return status_because(cause.reason);
}

static enum status judge_finish(const struct reply *reply)
{
    if (!reply->complete)
        return status_fail(STATUS_INTERNAL,
                           "the reply ended without its completion");
    switch ((int)reply->complete->finish_reason) {
    case GODWIT__V1__FINISH_REASON__FINISH_REASON_CANCELLED:
        return status_fail(STATUS_ABORTED,
                           "the reply was cancelled by another client");
    case GODWIT__V1__FINISH_REASON__FINISH_REASON_DRAINED:
        status_fail(STATUS_UNAVAILABLE,
                    "the node is shutting down; the session goes on from "
                    "position %" PRIu64,
                    reply->complete->committed_position);
        return status_because("NODE_DRAINING");
    case GODWIT__V1__FINISH_REASON__FINISH_REASON_ERROR:
        return status_fail(STATUS_INTERNAL, "the node failed in the reply");
    default:
        return STATUS_OK;
    }
}

static void print_stats(const struct reply *reply)
{
    const Godwit__V1__Usage *usage = reply->complete->usage;
    const Godwit__V1__Timing *timing = reply->complete->timing;

    if (!usage || !timing)
        return;
    (void)fprintf(stderr,
                  "prompt %" PRIu64 " tokens in %.3f s (%" PRIu64
                  " reused), reply %" PRIu64 " tokens in %.3f s, first one "
                  "after %.3f s\n",
                  usage->prompt_tokens, seconds(timing->prefill),
                  usage->cached_tokens, usage->completion_tokens,
                  seconds(timing->decode),
                  seconds(timing->time_to_first_token));
    if (usage->gemfilter_tokens)
        (void)fprintf(stderr, "made from %" PRIu64 " chosen tokens\n",
                      usage->gemfilter_tokens);
}

static const char *finish_name(const struct reply *reply)
{
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(
        &godwit__v1__finish_reason__descriptor,
        (int)reply->complete->finish_reason);

    return value ? value->name : "FINISH_REASON_UNSPECIFIED";
}

static enum status print_json(struct reply *reply, const struct asked *asked)
{
    const Godwit__V1__Usage *usage = reply->complete->usage;
    const Godwit__V1__Reuse *reuse = reply->complete->reuse;
    char seed[21];
    struct output *output;
    enum status st = output_create(OUTPUT_JSON, "Reply", false, &output);

    if (st)
        return st;
    output_row(output);
    output_text(output, "session", asked->session);
    output_text(output, "request_id", asked->request_id);
    output_text(output, "text", reply->text);
    output_text(output, "finish_reason", finish_name(reply));
    output_number(output, "position", reply->complete->committed_position);
    /* As text, as protobuf's JSON has 64 bits: many readers hold only 53. */
    (void)snprintf(seed, sizeof(seed), "%" PRIu64, reply->seed);
    output_text(output, "seed", seed);
    output_number(output, "prompt_tokens", usage ? usage->prompt_tokens : 0);
    output_number(output, "completion_tokens",
                  usage ? usage->completion_tokens : reply->n_token);
    output_number(output, "cached_tokens", usage ? usage->cached_tokens : 0);
    output_number(output, "replayed_tokens",
                  reuse ? reuse->replayed_tokens : 0);
    output_text(output, "reuse", reuse ? reuse->reason : "");
    output_number(output, "gemfilter_tokens",
                  usage ? usage->gemfilter_tokens : 0);
    st = output_write(output);
    output_destroy(output);
    return st;
}

static enum progress_kind progress_kind(const char *word)
{
    static const char *const NAME[] = {[PROGRESS_AUTO] = "auto",
                                       [PROGRESS_BAR] = "bar",
                                       [PROGRESS_LINES] = "lines",
                                       [PROGRESS_NONE] = "none"};
    enum progress_kind kind = PROGRESS_AUTO;

    while (kind < PROGRESS_NONE && strcmp(NAME[kind], word) != 0)
        kind++;
    return kind;
}

/* The reply is over without an error: close the text, then the extras. */
static enum status finish_reply(struct reply *reply, const struct asked *asked)
{
    enum status st = judge_finish(reply);

    if (reply->text_file) {
        (void)fclose(reply->text_file);
        reply->text_file = NULL;
        if (reply->complete && !st)
            st = print_json(reply, asked);
    } else if (isatty(STDOUT_FILENO)) {
        (void)putchar('\n');
    }
    if (!st && reply->ctl->options.wants_stats)
        print_stats(reply);
    return st;
}

enum status ctl_generate(struct ctl *ctl)
{
    struct reply reply = {.ctl = ctl};
    struct asked asked = {0};
    enum status st;

    if (ctl_format(ctl) == OUTPUT_TSV)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "generate has no --output tsv, expected table (the "
                           "bare text) or json");
    st = fill_request(ctl, &asked);
    if (st)
        goto out;
    progress_init(&reply.progress, progress_kind(ctl->options.progress),
                  clock_real()->now_us(clock_real()));
    if (ctl_format(ctl) == OUTPUT_JSON) {
        reply.text_file = open_memstream(&reply.text, &reply.n_text);
        if (!reply.text_file) {
            st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory");
            goto out;
        }
    }
    st = ctl_stream(ctl, METHOD, &asked.request.base, on_response, &reply);
    progress_clear(&reply.progress);
    st = st ? explain_break(&reply, &asked, st) : finish_reply(&reply, &asked);
out:
    if (reply.text_file)
        (void)fclose(reply.text_file);
    free(reply.text);
    if (reply.last)
        godwit__v1__generate_response__free_unpacked(reply.last, NULL);
    release_asked(&asked);
    return st;
}
