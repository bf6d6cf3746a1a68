/*
 * Memory policies on a device, judged by the bits that the same sessions have
 * on a CPU: what its rows see, the host knows without waiting for it. The
 * device is kernels/apart/apart.h, whose look-ups are written once more, by the
 * words of struct kv_view.
 */
#include "kernels/apart/apart.h"
#include "model/pass.h"
#include "state/lineage.h"
#include "state/snapshot.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define DIR "tests/golden/qwen3_5_text" /* small: what is judged are views */
#define N_TOKEN 460u                    /* eight grid chunks */
#define N_PROMPT 300u
#define MAX_ROW 512u

/* Each leaves something out and differs from the others in how its look-ups lie
 * to chunks, prompt ends and passes; and one that picks nothing. */
static const char *const POLICY[] = {
    "window:sink=64:window=64",
    "infllm:sink=64:window=64:pick=128:step=16",
    "infllm:sink=0:window=0:pick=64:step=1:keys=rank:index=keys",
    "infllm:sink=64:window=64:pick=0:step=8",
    "quest:sink=64:window=64:pick=128:step=8",
    "quest:sink=0:window=128:pick=64:step=64:keys=far",
    "recycle:sink=64:window=64:pick=64:step=8:reuse=4",
    "recycle:base=infllm:sink=0:window=0:pick=64:step=16:reuse=8:index=keys",
    "snapkv:window=64:pick=64:end=270",
    "snapkv:sink=64:window=0:pick=64:keys=rank:end=301",
};
#define N_POLICY (sizeof(POLICY) / sizeof(POLICY[0]))

static const struct uid alice = {0x10, 1};

struct node {
    struct model *model;
    struct workspace *workspace;
    uint32_t n_vocab;
    uint32_t token[N_TOKEN];
};

static struct node open_as(const struct backend *backend,
                           enum arithmetic arithmetic)
{
    const struct model_options options = {
        .backend = backend,
        .arithmetic = arithmetic,
        .weight_format =
            arithmetic == ARITHMETIC_FP32 ? WEIGHT_AUTO : WEIGHT_BF16,
        .n_context = 4096};
    struct node node = {0};

    cr_assert_eq(model_load(DIR, &options, &node.model), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(workspace_create(node.model, MAX_ROW, 4, 4, &node.workspace),
                 STATUS_OK);
    node.n_vocab = model_config(node.model)->n_vocab;
    for (uint32_t i = 0; i < N_TOKEN; i++) /* some come again */
        node.token[i] = i * i * 7 % 509;
    return node;
}

static struct node open_device(enum arithmetic arithmetic)
{
    return open_as(&backend_apart, arithmetic);
}

static struct node open_host(enum arithmetic arithmetic)
{
    const struct backend *backend;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    return open_as(backend, arithmetic);
}

static void close_node(struct node *node)
{
    workspace_destroy(node->workspace);
    model_destroy(node->model);
}

static struct memory *new_memory(const struct node *node, const char *text)
{
    struct memory *memory;
    struct policy policy;

    cr_assert_eq(policy_parse(text, &policy), STATUS_OK, "%s", status_reason());
    cr_assert_eq(memory_create(node->model, &memory), STATUS_OK);
    cr_assert_eq(memory_set_policy(memory, &policy), STATUS_OK, "%s",
                 status_reason());
    return memory;
}

/* n more tokens of each session in one pass; the logits of their last rows go
 * to out[i], if that is not NULL. */
static void step(struct node *node, struct memory *const *memory,
                 uint32_t n_memory, uint32_t n, float *const *out)
{
    uint32_t token[MAX_ROW], row[4], n_row = 0;
    struct span span[4];
    const float *logit;

    for (uint32_t i = 0; i < n_memory; i++) {
        const uint64_t position = memory_position(memory[i]);

        cr_assert_eq(memory_reserve(memory[i], position + n), STATUS_OK);
        span[i] = (struct span){.first_row = n_row,
                                .n_row = n,
                                .position = position,
                                .layer = memory_layers(memory[i]),
                                .policy = memory_policy(memory[i])};
        memcpy(token + n_row, node->token + position, n * sizeof(*token));
        n_row += n;
        row[i] = n_row - 1;
    }
    logit = model_forward(node->model, NULL, node->workspace,
                          &(struct batch){.token = token,
                                          .n_row = n_row,
                                          .span = span,
                                          .n_span = n_memory,
                                          .logit_row = row,
                                          .n_logit = n_memory});
    cr_assert(logit, "%s", status_reason());
    for (uint32_t i = 0; i < n_memory; i++) {
        memory_advance(memory[i], n);
        if (out && out[i])
            memcpy(out[i], logit + (size_t)i * node->n_vocab,
                   node->n_vocab * sizeof(float));
    }
}

/* To token `end`, `cut` at a time. */
static void feed(struct node *node, struct memory *memory, uint32_t end,
                 uint32_t cut)
{
    for (uint32_t at; (at = (uint32_t)memory_position(memory)) < end;)
        step(node, &memory, 1, cut < end - at ? cut : end - at, NULL);
}

/* Token by token to the last; logits of all rows. */
static void decode(struct node *node, struct memory *memory, float *out)
{
    for (uint64_t at; (at = memory_position(memory)) < N_TOKEN;)
        step(node, &memory, 1, 1, &(float *){out + at * node->n_vocab});
}

static float *room(const struct node *node)
{
    return calloc((size_t)N_TOKEN * node->n_vocab, sizeof(float));
}

static void assert_same(const struct node *node, const float *a, const float *b,
                        const char *text)
{
    for (size_t t = 0; t < N_TOKEN; t++)
        cr_assert(memcmp(a + t * node->n_vocab, b + t * node->n_vocab,
                         node->n_vocab * sizeof(float)) == 0,
                  "%s: row %zu differs", text, t);
}

/* What the last rows of a session say that was never interrupted on a CPU. */
static float *expected(struct node *host, const char *text)
{
    struct memory *memory = new_memory(host, text);
    float *out = room(host);

    feed(host, memory, N_PROMPT, N_PROMPT);
    decode(host, memory, out);
    memory_destroy(memory);
    return out;
}

/* ------------------------------------------------------------ states, too */

/* A state as a snapshot would have it. */
static void *state_of(const struct node *node, const struct memory *memory,
                      uint32_t layer)
{
    const struct mixer_plan *plan = memory_plan(memory, layer);
    struct device *device = model_device(node->model);
    void *bytes = NULL;

    cr_assert_eq(device_take_host(device, plan->state_bytes + 1, &bytes),
                 STATUS_OK);
    device_read(device, bytes, memory_layers(memory)[layer].state,
                plan->state_bytes);
    cr_assert_eq(device_wait(device), STATUS_OK);
    mixer_clear_moot(plan, memory_position(memory), bytes);
    return bytes;
}

static void assert_same_states(const struct node *node,
                               const struct memory *memory,
                               const struct node *host,
                               const struct memory *plain, const char *text)
{
    for (uint32_t i = 0; i < model_config(host->model)->n_layer; i++) {
        void *got = state_of(node, memory, i), *want = state_of(host, plain, i);

        cr_assert(memcmp(got, want, memory_plan(plain, i)->state_bytes) == 0,
                  "%s: the state of layer %u at %lu", text, i,
                  memory_position(memory));
        device_give_host(model_device(node->model), got);
        device_give_host(model_device(host->model), want);
    }
}

/* Cut anywhere, then token by token, most of them from a record. Of the cuts
 * the first, and every second other one from c = `turn` on. */
static void check_cuts(struct node *node, struct node *host, const char *text,
                       size_t turn)
{
    static const uint32_t CUT[] = {1, 7, 65, 150, 299, 300};
    struct device *device = model_device(node->model);
    float *want = expected(host, text), *got = room(node);
    struct memory *plain = new_memory(host, text), *memory;

    feed(host, plain, N_PROMPT, N_PROMPT);
    for (size_t c = 0; c < sizeof(CUT) / sizeof(CUT[0]); c++) {
        const uint64_t n_replay = apart_n_replay(device);

        if (c && (c + turn) % 2)
            continue;

        memory = new_memory(node, text);
        feed(node, memory, N_PROMPT, CUT[c]);
        assert_same_states(node, memory, host, plain, text);
        decode(node, memory, got);
        assert_same(node, want, got, text);
        cr_assert_geq(apart_n_replay(device) - n_replay,
                      N_TOKEN - N_PROMPT - 4);
        if (c == 0) {
            feed(host, plain, N_TOKEN, N_TOKEN);
            assert_same_states(node, memory, host, plain, text);
            memory_destroy(plain);
            plain = new_memory(host, text);
            feed(host, plain, N_PROMPT, N_PROMPT);
        }
        memory_destroy(memory);
    }
    memory_destroy(plain);
    free(want);
    free(got);
}

/* What one arithmetic leaves out of policies' cuts, the other has. */
static void check_all_cuts(enum arithmetic arithmetic)
{
    struct node node = open_device(arithmetic), host = open_host(arithmetic);

    for (size_t p = 0; p < N_POLICY; p++)
        check_cuts(&node, &host, POLICY[p],
                   p + (arithmetic == ARITHMETIC_FP32));
    close_node(&node);
    close_node(&host);
}

Test(device_policies, e2_e3_have_the_bits_of_a_cpu, .timeout = 900)
{
    check_all_cuts(ARITHMETIC_PAIR);
}

Test(device_policies, e2_e3_have_the_bits_of_a_cpu_in_fp32, .timeout = 900)
{
    check_all_cuts(ARITHMETIC_FP32);
}

/* The one that a CPU of this machine takes: where products of PAIR are made by
 * hand, they would be most of the time. The tests above have both. */
static enum arithmetic quick(void)
{
    const struct backend *const *all = backend_all();

    while (!(*all)->is_supported())
        all++;
    return (*all)->arithmetic;
}

/* The policies at `of`, of which N_POLICY is `full`: first in passes of many
 * rows, then row by row. */
static void check_batch(struct node *node, const size_t of[4],
                        float *const *want)
{
    struct device *device = model_device(node->model);
    const uint64_t n_replay = apart_n_replay(device);
    struct memory *memory[4];
    float *got[4], *row[4];

    for (uint32_t i = 0; i < 4; i++) {
        got[i] = room(node);
        memory[i] = new_memory(node, of[i] < N_POLICY ? POLICY[of[i]] : "full");
    }
    for (uint32_t at = 0; at < N_TOKEN; at = memory_position(memory[0])) {
        const uint32_t n = at < N_PROMPT ? 1 + at % 100 : 1;

        for (uint32_t i = 0; i < 4; i++)
            row[i] = got[i] + (size_t)at * node->n_vocab;
        step(node, memory, 4, n < N_PROMPT - at ? n : 1,
             at < N_PROMPT ? NULL : row);
    }
    cr_assert_gt(apart_n_replay(device) - n_replay, 100);
    for (uint32_t i = 0; i < 4; i++) {
        assert_same(node, want[of[i]], got[i],
                    of[i] < N_POLICY ? POLICY[of[i]] : "full");
        memory_destroy(memory[i]);
        free(got[i]);
    }
}

/* Beside one that sees all and two under other policies. */
Test(device_policies, e1_others_in_the_batch_change_nothing, .timeout = 900)
{
    struct node node = open_device(quick()), host = open_host(quick());
    float *want[N_POLICY + 1];

    for (size_t p = 0; p <= N_POLICY; p++)
        want[p] = expected(&host, p < N_POLICY ? POLICY[p] : "full");
    for (size_t p = 0; p < N_POLICY; p++)
        check_batch(
            &node,
            (size_t[]){p, N_POLICY, (p + 1) % N_POLICY, (p + 5) % N_POLICY},
            want);
    for (size_t p = 0; p <= N_POLICY; p++)
        free(want[p]);
    close_node(&node);
    close_node(&host);
}

/* ---------------------------------------------------- where memories may go
 */

/* Its last rows, wherever it has been since token `at`. */
static void go_on(struct node *node, struct memory *memory, const float *want,
                  const char *text)
{
    const size_t n = memory_position(memory) * node->n_vocab;
    float *got = room(node);

    memcpy(got, want, n * sizeof(float));
    decode(node, memory, got);
    assert_same(node, want, got, text);
    memory_destroy(memory);
    free(got);
}

static struct memory *forked(struct memory *memory)
{
    static size_t shared; /* counts as long as the fork lives */
    struct memory *fork;

    cr_assert_eq(shared, 0);
    cr_assert_eq(memory_fork(memory, &shared, &fork), STATUS_OK);
    memory_destroy(memory); /* whose blocks the other one keeps */
    cr_assert_gt(shared, 0);
    return fork;
}

/* By way of a snapshot. */
static struct memory *stored(struct node *node, struct memory *memory)
{
    const struct log_path path = log_path_alone(alice);
    const struct ids ids = {.id = node->token, .n = N_TOKEN};
    struct memory *second;
    struct snapshots *snapshots;
    struct restore restore;
    struct store *store;
    struct image *image;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, node->model, &snapshots), STATUS_OK);
    cr_assert_eq(image_create(node->model,
                              &(struct image_source){
                                  .log = alice,
                                  .memory = memory,
                                  .token = node->token,
                                  .chain = model_fingerprint(node->model)},
                              &image),
                 STATUS_OK);
    cr_assert_eq(snapshot_save(snapshots, image), STATUS_OK);
    image_destroy(image);
    cr_assert_eq(memory_create(node->model, &second), STATUS_OK);
    cr_assert_eq(memory_set_policy(second, memory_policy(memory)), STATUS_OK);
    cr_assert_eq(
        snapshot_load(snapshots, &path, &ids, N_TOKEN, second, &restore),
        STATUS_OK);
    cr_assert_eq(restore.reason, RESTORE_HIT);
    cr_assert_eq(memory_position(second), memory_position(memory));
    memory_destroy(memory);
    snapshots_close(snapshots);
    store_close(store);
    return second;
}

/* Saved at places beside what steps, chunks and prompt ends decide, each policy
 * at every second of them. */
Test(device_policies, a_fork_or_a_snapshot_goes_on_with_the_same_bits,
     .timeout = 900)
{
    static const uint32_t AT[] = {300, 301, 319, 320, 321, 385};
    struct node node = open_device(quick()), host = open_host(quick());

    for (size_t p = 0; p < N_POLICY; p++) {
        float *want = expected(&host, POLICY[p]);

        for (size_t i = p % 2; i < sizeof(AT) / sizeof(AT[0]); i += 2) {
            struct memory *first = new_memory(&node, POLICY[p]);
            struct memory *second = new_memory(&node, POLICY[p]);

            feed(&node, first, AT[i], 100);
            feed(&node, second, AT[i], 100);
            go_on(&node, forked(first), want, POLICY[p]);
            go_on(&node, stored(&node, second), want, POLICY[p]);
        }
        free(want);
    }
    close_node(&node);
    close_node(&host);
}

/* Rows that see more than a round has room for come in several. */
Test(device_policies, rounds_change_nothing)
{
    struct node node = open_device(quick()), host = open_host(quick());
    static const char *const WIDE[] = {
        "infllm:sink=64:window=64:pick=1024:step=1",
        "quest:sink=64:window=64:pick=1024:step=1:keys=rank"};
    static uint32_t token[4000];
    struct memory *memory[2];
    const float *logit[2];

    for (uint32_t i = 0; i < 4000; i++)
        token[i] = i * i * 7 % 509;
    for (size_t p = 0; p < 2; p++) {
        struct node *const both[2] = {&node, &host};

        for (uint32_t i = 0; i < 2; i++) {
            memory[i] = new_memory(both[i], WIDE[p]);
            cr_assert_eq(memory_reserve(memory[i], 4000), STATUS_OK);
        }
        for (uint32_t at = 0; at < 4000; at += 500) {
            for (uint32_t i = 0; i < 2; i++) {
                logit[i] = model_forward(
                    both[i]->model, NULL, both[i]->workspace,
                    &(struct batch){
                        .token = token + at,
                        .n_row = 500,
                        .span =
                            &(struct span){.n_row = 500,
                                           .position = at,
                                           .layer = memory_layers(memory[i]),
                                           .policy = memory_policy(memory[i])},
                        .n_span = 1,
                        .logit_row = &(uint32_t){499},
                        .n_logit = 1});
                memory_advance(memory[i], 500);
            }
            cr_assert(
                memcmp(logit[0], logit[1], node.n_vocab * sizeof(float)) == 0,
                "%s: tokens from %u on", WIDE[p], at);
        }
        memory_destroy(memory[0]);
        memory_destroy(memory[1]);
    }
    close_node(&node);
    close_node(&host);
}
