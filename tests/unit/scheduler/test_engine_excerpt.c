/*
 * Answers from an excerpt. The oracle for what is chosen: a reference backend
 * whose attention is overheard gives the layer's query and keys, and the scores
 * are made from them in double. The oracle for the reply: a client that sends
 * the chosen tokens itself; for the session: one that got all tokens as input.
 * On a device (kernels/apart/apart.h) they are those of the host.
 */
#include "kernels/apart/apart.h"
#include "scheduler/engine_calls.h"
#include "tests/unit/scheduler/fixture.h"

#include <criterion/criterion.h>
#include <math.h>

#define N_PROMPT 300u
#define N_KEEP 100u

static struct command *asked(struct command *command, uint32_t n_keep)
{
    command->generate.excerpt = (struct excerpt){
        .n_keep = n_keep, .layer = EXCERPT_LAYER_ANY, .n_pool = EXCERPT_POOL};
    return command;
}

/* Sampled with all that looks at what came before. */
static struct command *question(struct node *node, const char *name,
                                const char *id, uint32_t n_token)
{
    struct command *command = generate(node, name, id, n_token, 7);
    struct sampling *s = &command->generate.sampling;

    s->repetition_penalty = 1.2f;
    s->presence_penalty = 0.5f;
    s->n_logprob = 2;
    return command;
}

/* --------------------------------------------------------------- the choice */

static struct {
    uint32_t n_call, wanted; /* of attend: one per softmax layer */
    uint32_t n_token;
    double score[1024];
} heard;

/* What the last row's heads say to key j, which lies unrotated in a block of
 * floats. */
static double score_of(const struct attend_args *a, uint32_t j)
{
    const struct attend_shape s = a->shape;
    const size_t d_head = s.d_head, n_pair = a->table->n_rot / 2;
    const size_t b = j / KV_BLOCK, at = j % KV_BLOCK;
    double sum = 0.0;

    for (size_t h = 0; h < s.n_head; h++) {
        const float *q = a->q + (heard.n_token - 1) * a->q_stride + h * d_head;
        const float *k =
            (const float *)((const char *)a->span[0].block[b] +
                            kv_keys_at(s, h / (s.n_head / s.n_kv_head)));

        for (size_t d = 0; d < d_head; d++) {
            double x = k[d * KV_BLOCK + at];

            if (d < 2 * n_pair) {
                const size_t i = d % n_pair;
                const size_t angle = (b * n_pair + i) * KV_BLOCK + at;
                const double first = k[i * KV_BLOCK + at];
                const double second = k[(i + n_pair) * KV_BLOCK + at];
                const double c = a->table->cos[angle];
                const double sine = a->table->sin[angle];

                x = d < n_pair ? first * c - second * sine
                               : second * c + first * sine;
            }
            sum += q[d] * x;
        }
    }
    return sum;
}

static void overhear(struct pool *pool, const struct attend_args *args)
{
    const struct backend *ref;

    must(backend_find("ref", &ref));
    if (heard.n_call++ == heard.wanted)
        for (uint32_t j = 0; j < heard.n_token; j++)
            heard.score[j] = score_of(args, j);
    ref->attend(pool, args);
}

/* All of the tokens in one pass of a model of its own. */
static void listen(const uint32_t *token, uint32_t n, uint32_t wanted)
{
    struct model_options options = {0};
    struct backend spy;
    struct model *model;
    struct memory *memory;
    struct workspace *workspace;

    must(backend_find("ref", &options.backend));
    spy = *options.backend;
    spy.attend = overhear;
    options.backend = &spy;
    must(model_load("tests/golden/qwen3_5_text", &options, &model));
    must(memory_create(model, &memory));
    must(memory_reserve(memory, n));
    must(workspace_create(model, n, 1, 1, &workspace));
    heard.n_call = 0;
    heard.wanted = wanted;
    heard.n_token = n;
    cr_assert(model_forward(
        model, NULL, workspace,
        &(struct batch){
            .token = token,
            .n_row = n,
            .span = &(struct span){.n_row = n, .layer = memory_layers(memory)},
            .n_span = 1,
            .logit_row = &(uint32_t){n - 1},
            .n_logit = 1}));
    cr_assert_gt(heard.n_call, wanted);
    workspace_destroy(workspace);
    memory_destroy(memory);
    model_destroy(model);
}

/* The chosen tokens, by counting who is better; returns how many. */
static uint32_t choose(const uint32_t *token, uint32_t n, uint32_t n_keep,
                       uint32_t wanted, uint32_t *out)
{
    static double pooled[1024];
    uint32_t n_kept = 0;

    listen(token, n, wanted);
    for (uint32_t j = 0; j < n; j++) {
        pooled[j] = 0.0;
        for (uint32_t i = j < 2 ? 0 : j - 2; i <= j + 2 && i < n; i++)
            pooled[j] += heard.score[i];
    }
    pooled[n - 1] = INFINITY;
    for (uint32_t j = 0; j < n; j++) {
        uint32_t n_better = 0;

        for (uint32_t i = 0; i < n; i++) {
            n_better += pooled[i] > pooled[j];
            cr_assert(i == j || fabs(pooled[i] - pooled[j]) > 1e-7 ||
                          n_keep >= n,
                      "too near to tell");
        }
        if (n_better < n_keep)
            out[n_kept++] = token[j];
    }
    return n_kept;
}

/* The same request by a client that chose itself. */
static struct reply *spelt(struct node *node, const uint32_t *token, uint32_t n,
                           uint32_t n_keep, uint32_t wanted)
{
    struct command *command = question(node, "", "", 1);
    uint32_t *chosen = arena_take(command->arena, n * sizeof(*chosen));

    need(chosen != NULL);
    command->generate.n_token = choose(token, n, n_keep, wanted, chosen);
    command->generate.token = chosen;
    command->generate.creates = false;
    cr_assert_eq(command->generate.n_token, n_keep < n ? n_keep : n);
    return node_completed(node, command);
}

static bool same_reply(const struct reply *a, const struct reply *b)
{
    return same_tokens(a, b) && a->n_logprob == b->n_logprob &&
           memcmp(&a->logprob_sum, &b->logprob_sum, sizeof(double)) == 0;
}

Test(engine_excerpt, replies_as_to_the_chosen_tokens)
{
    static const uint32_t LAYER[] = {EXCERPT_LAYER_ANY, 3, 5};
    static const uint32_t CALL[] = {0, 0, 1};
    struct node *node = node_create(NULL);

    node_start(node);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t n_keep = 1; n_keep < 200; n_keep += 66) {
            struct command *c = asked(question(node, "", "", N_PROMPT), n_keep);
            uint32_t token[N_PROMPT];
            struct reply *want, *got;

            c->generate.creates = false;
            c->generate.excerpt.layer = LAYER[i];
            memcpy(token, c->generate.token, sizeof(token));
            got = node_completed(node, c);
            want = spelt(node, token, N_PROMPT, n_keep, CALL[i]);
            cr_assert(same_reply(got, want), "layer %u, %u kept", LAYER[i],
                      n_keep);
            cr_assert_eq(got->end->complete.n_excerpt, n_keep);
            cr_assert_eq(got->end->complete.n_prompt, N_PROMPT);
        }
    node_destroy(node);
}

/* ------------------------------------------------------------- the session */

Test(engine_excerpt, of_no_more_tokens_than_it_keeps_is_the_plain_reply)
{
    struct node *node = node_create(NULL);
    struct reply *want, *got;

    node_start(node);
    want = node_completed(node, question(node, "a", "q", N_PROMPT));
    got = node_completed(node,
                         asked(question(node, "b", "q", N_PROMPT), N_PROMPT));
    cr_assert(same_reply(got, want));
    cr_assert_eq(got->end->complete.n_excerpt, N_PROMPT);
    want = node_completed(node, question(node, "a", "r", 30));
    got = node_completed(node, asked(question(node, "b", "r", 30), 100000));
    cr_assert(same_reply(got, want), "and of a later turn");
    node_destroy(node);
}

/* A session whose turns were "q" and "r" goes on as one that was told all. */
static void goes_on_as_told(struct node *node, const char *name)
{
    struct reply *log = node_read(node, name), *want, *got;
    struct command *c = generate(node, "told", "t", log->n_token, 1);

    memcpy((uint32_t *)(uintptr_t)c->generate.token, log->token,
           log->n_token * sizeof(*log->token));
    c->generate.is_append = true;
    need(reply_completed(node_call(node, c), FINISH_STOP));
    want = node_completed(node, question(node, "told", "s", 20));
    got = node_completed(node, question(node, name, "s", 20));
    cr_assert(same_reply(got, want));
}

Test(engine_excerpt, leaves_the_session_as_if_it_was_told_the_reply)
{
    struct node *node = node_create(NULL);
    struct reply *one, *two, *log;
    uint32_t all[N_PROMPT + 12 + 40];

    node_start(node);
    one =
        node_completed(node, asked(question(node, "a", "q", N_PROMPT), N_KEEP));
    two = node_completed(node, asked(question(node, "a", "r", 40), N_KEEP));
    log = node_read(node, "a");
    cr_assert_eq(log->n_token, N_PROMPT + 12 + 40 + 12);
    cr_assert_arr_eq(log->token + N_PROMPT, one->token,
                     12 * sizeof(*log->token));
    cr_assert_arr_eq(log->token + N_PROMPT + 52, two->token,
                     12 * sizeof(*log->token));
    memcpy(all, log->token, sizeof(all));
    cr_assert(same_reply(two, spelt(node, all, N_PROMPT + 52, N_KEEP, 0)),
              "the second turn chose among all of the log");
    goes_on_as_told(node, "a");
    node_destroy(node);
}

Test(engine_excerpt, stores_nothing_of_what_it_read)
{
    struct node *node = node_create(NULL);
    struct reply *reply;

    node_start(node);
    node_completed(node, asked(question(node, "", "", N_PROMPT), 200));
    node_completed(node, asked(question(node, "a", "q", N_PROMPT), 200));
    node_until(node, 0);
    cr_assert_eq(node->engine->n_resident, 1, "the session alone");
    cr_assert_eq(node->engine->n_request, 0);
    reply = node_completed(node, question(node, "", "", N_PROMPT));
    cr_assert_leq(reply->end->complete.n_cached, N_PROMPT - 1);
    node_kill(node);
    node_start(node);
    goes_on_as_told(node, "a");
    node_destroy(node);
}

/* ------------------------------------------------------------------- kills */

/* The reply of one that is killed after n steps, restarted and asked again. */
static struct reply *killed_after(struct node *node, uint32_t n_step,
                                  bool *out_was_over)
{
    struct command *c = asked(question(node, "a", "q", N_PROMPT), N_KEEP);
    const uint64_t reply = c->reply;

    node_send(node, c);
    for (uint32_t i = 0; i < n_step && !node->reply[reply].is_over; i++)
        if (!node_step(node))
            ring_wait(node->inbox, 20);
    *out_was_over = node->reply[reply].is_over;
    node_kill(node);
    node_start(node);
    return node_call(node, asked(question(node, "a", "q", N_PROMPT), N_KEEP));
}

Test(engine_excerpt, goes_on_after_a_kill_at_any_step)
{
    struct node *alone = node_create(NULL), *node;
    struct reply *want, *got;
    bool was_over = false;
    uint32_t n_kill = 0;

    node_start(alone);
    want = node_completed(alone,
                          asked(question(alone, "a", "q", N_PROMPT), N_KEEP));
    for (; !was_over && n_kill < 60; n_kill++) {
        node = node_create(NULL);
        node_start(node);
        got = killed_after(node, n_kill, &was_over);
        cr_assert(reply_completed(got, FINISH_LENGTH));
        cr_assert(same_tokens(got, want), "killed after %u steps", n_kill);
        cr_assert_eq(got->end->complete.n_excerpt, N_KEEP);
        goes_on_as_told(node, "a");
        node_destroy(node);
    }
    cr_assert(was_over && n_kill > 14, "%u kills", n_kill);
    node_destroy(alone);
}

/* ------------------------------------------------------------------- others */

/* Slices that end anywhere, and a neighbour of every kind. */
Test(engine_excerpt, is_the_same_in_any_company)
{
    struct node *node = node_create(NULL);
    struct command *c[6];
    uint64_t reply[6];
    struct reply *want;

    node_start(node);
    want =
        node_completed(node, asked(question(node, "", "", N_PROMPT), N_KEEP));
    node_tick(node, 300);
    for (uint32_t round = 0; round < 3; round++) {
        char name[] = "name0";

        name[4] += (char)round;
        c[0] = asked(question(node, "", "", N_PROMPT), N_KEEP);
        c[1] = generate(node, "", "", 411, 50 + round);
        c[2] = asked(question(node, name, "q", N_PROMPT), N_KEEP);
        c[3] = asked(generate(node, "", "", 400, 60 + round), 30);
        c[4] = asked(question(node, "", "", N_PROMPT), N_KEEP);
        c[5] = generate(node, "", "", 2, 70 + round);
        for (uint32_t i = 0; i < 6; i++) {
            reply[i] = c[i]->reply;
            node_send(node, c[i]);
        }
        for (uint32_t i = 0; i < 6; i++)
            node_until(node, reply[i]);
        for (uint32_t i = 0; i < 6; i += 2)
            cr_assert(same_reply(&node->reply[reply[i]], want),
                      "round %u, request %u", round, i);
    }
    node_destroy(node);
}

/* There is room for hardly more than one of them. */
Test(engine_excerpt, is_the_same_where_room_is_short)
{
    struct node *node = node_create(NULL);
    uint64_t reply[4];
    struct reply *want;

    node->options.max_running = 2;
    node_start(node);
    want =
        node_completed(node, asked(question(node, "", "", N_PROMPT), N_KEEP));
    node->engine->options.session_bytes =
        3 * resident_bytes(node->engine, NULL, N_PROMPT + 12);
    node->engine->room_tokens = 8;
    for (uint32_t i = 0; i < 4; i++) {
        static const char *const NAME[] = {"a", "", "b", "c"};
        struct command *c = asked(
            question(node, NAME[i], NAME[i][0] ? "q" : "", N_PROMPT), N_KEEP);

        c->generate.priority = (int32_t)i;
        reply[i] = c->reply;
        node_send(node, c);
    }
    for (uint32_t i = 0; i < 4; i++) {
        node_until(node, reply[i]);
        cr_assert(same_reply(&node->reply[reply[i]], want), "request %u", i);
    }
    node_destroy(node);
}

/* What the store thread still reads of a session that is gone counts until it
 * has; then nothing does. */
static bool comes_to_nothing(struct node *node)
{
    const struct engine *engine = node->engine;

    for (uint32_t i = 0; i < 500; i++) {
        if (charge_total(engine) == 0 && engine->state_charged == 0)
            return true;
        if (!node_step(node))
            ring_wait(node->inbox, 20);
    }
    fprintf(stderr, "%zu bytes, %zu of states\n", charge_total(engine),
            engine->state_charged);
    return false;
}

Test(engine_excerpt, can_be_cancelled_and_left_at_any_step)
{
    struct node *node = node_create(NULL);

    node_start(node);
    for (uint32_t n_step = 0; n_step < 24; n_step++) {
        struct command *c = asked(question(node, "", "", N_PROMPT), N_KEEP);
        struct command *d = asked(question(node, "a", "q", N_PROMPT), N_KEEP);
        const uint64_t gone = c->reply;
        struct reply *reply;

        node_send(node, c);
        node_send(node, d);
        for (uint32_t i = 0; i < n_step; i++)
            if (!node_step(node))
                ring_wait(node->inbox, 20);
        node_subject(node, COMMAND_DETACH, gone);
        reply = node_call(node, about(node, COMMAND_CANCEL, "a"));
        cr_assert(reply->last == EVENT_DONE ||
                  reply_failed(reply, STATUS_NOT_FOUND, "REQUEST_UNKNOWN"));
        node_until(node, 0);
        cr_assert_eq(node->engine->n_request, 0, "after %u steps", n_step);
        cr_assert_leq(node->engine->n_resident, 1);
        reply = node_call(node, about(node, COMMAND_DELETE_SESSION, "a"));
        cr_assert_eq(reply->last, EVENT_DONE);
        node_until(node, 0);
        cr_assert(comes_to_nothing(node), "after %u steps", n_step);
    }
    node_destroy(node);
}

Test(engine_excerpt, of_a_deleted_session_ends)
{
    struct node *node = node_create(NULL);
    struct command *c;
    uint64_t reply;

    node_start(node);
    for (uint32_t n_step = 1; n_step < 12; n_step += 2) {
        c = asked(question(node, "a", "q", N_PROMPT), N_KEEP);
        reply = c->reply;
        node_send(node, c);
        for (uint32_t i = 0; i < n_step; i++)
            if (!node_step(node))
                ring_wait(node->inbox, 20);
        cr_assert_eq(
            node_call(node, about(node, COMMAND_DELETE_SESSION, "a"))->last,
            EVENT_DONE);
        cr_assert(node->reply[reply].is_over);
        node_until(node, 0);
        cr_assert(comes_to_nothing(node));
    }
    node_destroy(node);
}

Test(engine_excerpt, is_part_of_what_a_retry_must_say)
{
    struct node *node = node_create(NULL);

    node_start(node);
    node_completed(node, asked(question(node, "a", "q", N_PROMPT), N_KEEP));
    cr_assert(reply_failed(node_call(node, question(node, "a", "q", N_PROMPT)),
                           STATUS_INVALID_ARGUMENT, "REQUEST_ID_REUSED"));
    cr_assert(reply_failed(
        node_call(node, asked(question(node, "a", "q", N_PROMPT), 99)),
        STATUS_INVALID_ARGUMENT, "REQUEST_ID_REUSED"));
    node_destroy(node);
}

Test(engine_excerpt, is_refused_where_there_is_none)
{
    struct node *node = node_create(NULL);
    struct command *c;

    node_start(node);
    c = asked(under(question(node, "a", "q", 9), "window"), N_KEEP);
    cr_assert(reply_failed(node_call(node, c), STATUS_FAILED_PRECONDITION,
                           "GEMFILTER_UNSUPPORTED"));
    c = asked(question(node, "a", "q", 9), N_KEEP);
    c->generate.excerpt.layer = 0;
    cr_assert(reply_failed(node_call(node, c), STATUS_INVALID_ARGUMENT, ""));
    c = asked(question(node, "a", "q", 9), N_KEEP);
    c->generate.excerpt.layer = 1000;
    cr_assert(reply_failed(node_call(node, c), STATUS_INVALID_ARGUMENT, ""));
    cr_assert_eq(node->engine->n_session, 0);
    node_destroy(node);
}

/* What was computed for others may bring it to the end of a stage when no pass
 * runs, after which nobody wakes an engine that sleeps. */
Test(engine_excerpt, does_not_sleep_between_its_stages, .timeout = 240)
{
    struct node *node = node_create(NULL);
    struct reply *want;

    node_start(node);
    want = node_completed(node, asked(question(node, "a", "q", 193), N_KEEP));
    for (uint32_t i = 0; i < 20; i++) {
        char name[8];
        struct command *c;
        struct reply *reply;

        (void)snprintf(name, sizeof(name), "s%u", i);
        node_until(node, 0);
        c = asked(question(node, name, "q", 193), N_KEEP);
        reply = &node->reply[c->reply];
        node_send(node, c);
        while (!reply->is_over)
            if (!node_step(node) && !reply->is_over)
                ring_wait(node->inbox, -1);
        cr_assert(same_reply(reply, want), "request %u", i);
    }
    node_destroy(node);
}

/* ----------------------------------------------------------------- a device */

static struct node *node_on_device(void)
{
    struct node *node = node_create(NULL);

    node_load(node, &(struct model_options){.backend = &backend_apart});
    node_start(node);
    return node;
}

/* The i-th of some requests that follow each other, some of one session. */
static struct command *request_of(struct node *node, uint32_t i)
{
    static const struct {
        const char *name, *id;
        uint32_t n_token, n_keep, layer; /* n_keep 0: none */
    } ALL[] = {
        {"", "", N_PROMPT, 1, 3},
        {"", "", N_PROMPT, N_KEEP, 5},
        {"", "", 64, 63, EXCERPT_LAYER_ANY},
        {"", "", 65, 100000, EXCERPT_LAYER_ANY},
        {"a", "q", N_PROMPT, N_KEEP, EXCERPT_LAYER_ANY},
        {"a", "r", 1, 30, 5}, /* of a memory that holds all but the end */
        {"a", "s", 20, 0, 0},
        {"b", "q", N_PROMPT, N_KEEP, 3},
    };
    struct command *c;

    if (i >= sizeof(ALL) / sizeof(*ALL))
        return NULL;
    c = question(node, ALL[i].name, ALL[i].id, ALL[i].n_token);
    if (ALL[i].n_keep == 0)
        return c;
    c = asked(c, ALL[i].n_keep);
    c->generate.excerpt.layer = ALL[i].layer;
    return c;
}

Test(engine_excerpt, is_the_same_on_a_device)
{
    struct node *host = node_create(NULL), *node = node_on_device();
    struct command *c;

    node_start(host);
    for (uint32_t i = 0; (c = request_of(host, i)); i++) {
        struct reply *want = node_completed(host, c), *got;
        uint64_t beside[2];

        node_tick(node, i % 2 ? 300 : 0);
        for (uint32_t k = 0; k < 2; k++) {
            c = k ? generate(node, "", "", 200, 50 + i)
                  : asked(question(node, "", "", 200), 10);
            beside[k] = c->reply;
            node_send(node, c);
        }
        got = node_completed(node, request_of(node, i));
        cr_assert(same_reply(got, want), "request %u", i);
        for (uint32_t k = 0; k < 2; k++)
            node_until(node, beside[k]);
    }
    node_destroy(node);
    node_destroy(host);
}

Test(engine_excerpt, a_full_device_refuses_and_the_next_one_has_room)
{
    struct node *node = node_on_device();
    struct reply *want, *reply;
    uint32_t n_refused = 0, n_step = 0;

    want =
        node_completed(node, asked(question(node, "", "", N_PROMPT), N_KEEP));
    for (bool is_through = false; !is_through; n_step++) {
        struct command *c = asked(question(node, "", "", N_PROMPT), N_KEEP);

        cr_assert_lt(n_step, 1000);
        reply = &node->reply[c->reply];
        node_send(node, c);
        for (uint32_t i = 0; i < n_step && !reply->is_over; i++)
            if (!node_step(node))
                ring_wait(node->inbox, 20);
        is_through = reply->is_over;
        apart_limit(model_device(node->model), 0);
        node_until(node, (uint64_t)(reply - node->reply));
        apart_limit(model_device(node->model), SIZE_MAX);
        if (reply->last != EVENT_ERROR) {
            cr_assert(same_reply(reply, want), "after %u steps", n_step);
            continue;
        }
        cr_assert_eq(reply->end->cause.code, STATUS_RESOURCE_EXHAUSTED);
        n_refused++;
        reply = node_completed(node,
                               asked(question(node, "", "", N_PROMPT), N_KEEP));
        cr_assert(same_reply(reply, want), "again");
    }
    cr_assert_gt(n_refused, 1);
    node_until(node, 0);
    cr_assert(comes_to_nothing(node));
    node_destroy(node);
}

/* --------------------------------------------- what else ends or refuses it */

#define N_TOLD 40u

static struct command *told(struct node *node, const char *name)
{
    struct command *c = asked(question(node, name, "q", N_PROMPT), N_KEEP);

    c->generate.sampling.max_tokens = N_TOLD;
    c->generate.sampling.ignore_eos = true;
    return c;
}

/* Four bytes of ASCII in the text; where. */
static const char *words_in(const struct reply *reply, char *out)
{
    for (size_t i = 9; i + 4 <= reply->text_bytes; i++) {
        bool is_plain = true;

        for (size_t k = 0; k < 4; k++)
            is_plain &= reply->text[i + k] >= ' ' && reply->text[i + k] < 127;
        if (!is_plain)
            continue;
        memcpy(out, reply->text + i, 4);
        out[4] = 0;
        return strstr(reply->text, out);
    }
    return NULL;
}

/* The oracle is the reply that nothing stops: the other one ends in it. */
Test(engine_excerpt, stops_at_a_text_and_at_a_token)
{
    struct node *node = node_create("assets/models/godwit-tiny");
    const struct reply *whole, *cut, *log;
    struct command *c;
    const char *at;
    char stop[8];
    uint32_t n = 0;

    node_start(node);
    whole = node_call(node, told(node, "a"));
    cr_assert(reply_completed(whole, FINISH_LENGTH));
    at = words_in(whole, stop);
    cr_assert_not_null(at);
    c = told(node, "b");
    c->generate.sampling.n_stop = 1;
    memcpy(c->generate.sampling.stop[0], stop, sizeof(stop));
    cut = node_call(node, c);
    cr_assert(reply_completed(cut, FINISH_STOP_SEQUENCE));
    cr_assert_eq(cut->text_bytes, (size_t)(at - whole->text));
    cr_assert_eq(memcmp(cut->text, whole->text, cut->text_bytes), 0);
    cr_assert_lt(cut->n_token, whole->n_token);
    log = node_read(node, "b");
    cr_assert_arr_eq(log->token + N_PROMPT, whole->token,
                     (log->n_token - N_PROMPT) * sizeof(*log->token));
    goes_on_as_told(node, "b");

    while (whole->token[n] != whole->token[N_TOLD / 2])
        n++;
    c = told(node, "c");
    c->generate.sampling.n_stop_id = 1;
    c->generate.sampling.stop_id[0] = whole->token[n];
    cut = node_call(node, c);
    cr_assert(reply_completed(cut, FINISH_STOP));
    cr_assert_leq(cut->n_token, n + 1);
    cr_assert_arr_eq(cut->token, whole->token,
                     cut->n_token * sizeof(*cut->token));
    cr_assert_eq(node_read(node, "c")->n_token, N_PROMPT + n + 1);
    node_destroy(node);
}

/* Whatever it was at, reading, matching or answering, it says so and leaves
 * nothing; a retry is the reply that nobody cut short. */
Test(engine_excerpt, a_deadline_at_any_step_leaves_the_turn_to_its_retry)
{
    struct node *node = node_create(NULL);
    const struct reply *want, *retry;
    uint32_t n_passed = 0;

    node_start(node);
    want = node_completed(node, told(node, "want"));
    for (uint32_t n_step = 0; n_step < 60; n_step += 3) {
        struct command *c = told(node, "a");
        const struct reply *reply = &node->reply[c->reply];

        c->deadline_us = node->clock.base.now_us(&node->clock.base) + 1000000;
        node_send(node, c);
        for (uint32_t i = 0; i < n_step; i++)
            if (!node_step(node))
                ring_wait(node->inbox, 20);
        clock_simulated_advance(&node->clock, 1000000);
        node_until(node, reply - node->reply);
        if (reply->last == EVENT_ERROR) {
            cr_assert(reply_failed(reply, STATUS_DEADLINE_EXCEEDED,
                                   "DEADLINE_PASSED"));
            n_passed++;
        }
        node_until(node, 0);
        cr_assert_eq(node->engine->n_request, 0, "after %u steps", n_step);
        retry = node_completed(node, told(node, "a"));
        cr_assert_eq(retry->n_token, N_TOLD);
        cr_assert(same_tokens(retry, want), "after %u steps", n_step);
        cr_assert_eq(
            node_call(node, about(node, COMMAND_DELETE_SESSION, "a"))->last,
            EVENT_DONE);
    }
    cr_assert_gt(n_passed, 3);
    node_until(node, 0);
    node_call(node, about(node, COMMAND_DELETE_SESSION, "want"));
    node_until(node, 0);
    cr_assert(comes_to_nothing(node));
    node_destroy(node);
}

static bool is_over_quota(const struct reply *reply, const char *field)
{
    return reply_failed(reply, STATUS_RESOURCE_EXHAUSTED, "TENANT_QUOTA") &&
           strcmp(reply->end->cause.field, field) == 0;
}

/* Of a tenant counts what its sessions have: neither the sessions of nobody's
 * that an excerpt is read in, nor their tokens. */
Test(engine_excerpt, counts_in_a_quota_as_the_turn_that_it_is)
{
    struct node *node = node_create(NULL);

    node->tenant = "ann";
    node->options.tenant_sessions = 2;
    node->options.tenant_tokens = 2 * (N_PROMPT + N_TOLD) + 10;
    node_start(node);
    log_set_level(LOG_ERROR);
    node_completed(node, told(node, "a"));
    node_completed(node, told(node, ""));
    node_completed(node, told(node, "b"));
    cr_assert(
        is_over_quota(node_call(node, told(node, "c")), "tenant.sessions"));
    cr_assert_eq(
        node_call(node, about(node, COMMAND_DELETE_SESSION, "a"))->last,
        EVENT_DONE);
    node_completed(node, told(node, "c"));
    cr_assert(is_over_quota(
        node_call(node, asked(question(node, "c", "r", 20), N_KEEP)),
        "tenant.tokens"));
    cr_assert_eq(node_read(node, "c")->n_token, N_PROMPT + N_TOLD);
    node_destroy(node);
}
