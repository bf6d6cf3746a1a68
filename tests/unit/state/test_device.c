/*
 * Sessions in the memory of a device, judged by the bits that a CPU backend
 * gives and by what must be said when the device has no memory left, or is
 * lost. The device is kernels/apart/apart.h.
 */
#include "kernels/apart/apart.h"
#include "state/lineage.h"
#include "state/snapshot.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIR "tests/golden/qwen3_5_text"
#define N_TOKEN 180u
#define N_PREFIX 150u /* tokens of the snapshots: an open block and a ring */

static const struct uid alice = {0x10, 1};
static uint32_t token[N_TOKEN];
static const struct ids tokens = {.id = token, .n = N_TOKEN};

struct node {
    struct model *model;
    struct device *device;
    struct workspace *workspace;
    uint32_t n_vocab;
};

static struct node open_as(const struct model_options *options)
{
    struct node node;

    cr_assert_eq(model_load(DIR, options, &node.model), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(workspace_create(node.model, N_TOKEN, 1, 1, &node.workspace),
                 STATUS_OK);
    node.device = model_device(node.model);
    node.n_vocab = model_config(node.model)->n_vocab;
    for (uint32_t i = 0; i < N_TOKEN; i++)
        token[i] = i * 2654435761u % node.n_vocab;
    return node;
}

static struct node open_node(const struct backend *backend,
                             enum arithmetic arithmetic)
{
    return open_as(&(struct model_options){.backend = backend,
                                           .arithmetic = arithmetic,
                                           .weight_format = WEIGHT_BF16});
}

static void close_node(struct node *node)
{
    workspace_destroy(node->workspace);
    model_destroy(node->model);
}

static const struct backend *cpu(void)
{
    const struct backend *backend;

    cr_assert_eq(backend_find("ref", &backend), STATUS_OK);
    return backend;
}

/* Rows up to token `end`; logits of the last, or NULL. */
static const float *feed(struct node *node, struct memory *memory, uint32_t end)
{
    const uint64_t position = memory_position(memory);
    const uint32_t n = end - (uint32_t)position;
    const float *logit;

    if (memory_reserve(memory, end))
        return NULL;
    logit = model_forward(
        node->model, NULL, node->workspace,
        &(struct batch){.token = token + position,
                        .n_row = n,
                        .span = &(struct span){.n_row = n,
                                               .position = position,
                                               .layer = memory_layers(memory)},
                        .n_span = 1,
                        .logit_row = &(uint32_t){n - 1},
                        .n_logit = 1});
    if (logit)
        memory_advance(memory, n);
    return logit;
}

/* A session at the prefix. */
static struct memory *at_prefix(struct node *node)
{
    struct memory *memory;

    cr_assert_eq(memory_create(node->model, &memory), STATUS_OK);
    cr_assert(feed(node, memory, N_PREFIX));
    return memory;
}

/* The tokens behind the prefix, one by one. */
static void go_on(struct node *node, struct memory *memory, float *out)
{
    for (uint32_t i = N_PREFIX; i < N_TOKEN; i++) {
        const float *logit = feed(node, memory, i + 1);

        cr_assert(logit, "%s", status_reason());
        memcpy(out + (size_t)(i - N_PREFIX) * node->n_vocab, logit,
               node->n_vocab * sizeof(float));
    }
}

static float *room(const struct node *node)
{
    return calloc((N_TOKEN - N_PREFIX) * (size_t)node->n_vocab, sizeof(float));
}

static void assert_same(const struct node *node, const float *a, const float *b)
{
    cr_assert(memcmp(a, b,
                     (N_TOKEN - N_PREFIX) * (size_t)node->n_vocab *
                         sizeof(float)) == 0);
}

static enum status image_of(const struct node *node,
                            const struct memory *memory, struct image **out)
{
    return image_create(
        node->model,
        &(struct image_source){.log = alice,
                               .memory = memory,
                               .token = token,
                               .chain = model_fingerprint(node->model)},
        out);
}

static void check_stored(enum kv_format kv)
{
    struct model_options options = {.backend = &backend_apart,
                                    .arithmetic = ARITHMETIC_PAIR,
                                    .weight_format = WEIGHT_BF16,
                                    .kv_format = kv};
    struct node node = open_as(&options);
    options.backend = cpu();
    struct node host = open_as(&options);
    struct memory *first = at_prefix(&node), *plain = at_prefix(&host), *second;
    float *wanted = room(&node), *found = room(&node);
    const struct log_path path = log_path_alone(alice);
    struct snapshots *snapshots;
    struct restore restore;
    struct store *store;
    struct image *image;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, node.model, &snapshots), STATUS_OK);
    cr_assert_eq(image_of(&node, first, &image), STATUS_OK);
    go_on(&host, plain, wanted);
    go_on(&node, first, found); /* the image is of before */
    assert_same(&node, wanted, found);
    cr_assert_gt(apart_n_replay(node.device), N_TOKEN - N_PREFIX - 4);
    cr_assert_eq(snapshot_save(snapshots, image), STATUS_OK);
    image_destroy(image);
    memory_destroy(first);
    cr_assert_eq(memory_create(node.model, &second), STATUS_OK);
    cr_assert_eq(
        snapshot_load(snapshots, &path, &tokens, N_TOKEN, second, &restore),
        STATUS_OK);
    cr_assert_eq(restore.reason, RESTORE_HIT);
    cr_assert_eq(memory_position(second), N_PREFIX);
    memset(found, 0, node.n_vocab * sizeof(float));
    go_on(&node, second, found);
    assert_same(&node, wanted, found);
    memory_destroy(second);
    memory_destroy(plain);
    snapshots_close(snapshots);
    store_close(store);
    close_node(&node);
    close_node(&host);
    free(wanted);
    free(found);
}

Test(device, a_session_that_was_stored_goes_on_with_the_bits_of_a_cpu)
{
    check_stored(KV_WIDE);
    check_stored(KV_INT8);
}

Test(device, formats_of_eight_bits_give_the_bits_of_the_reference)
{
    struct model_options options[2] = {
        {.arithmetic = ARITHMETIC_PAIR, .weight_format = WEIGHT_F8},
        {.arithmetic = ARITHMETIC_PAIR,
         .weight_format = WEIGHT_BF16,
         .kv_format = KV_INT8}};
    static const char *const NAME[2] = {"/f8-128/kv-bf16/",
                                        "/bf16/kv-int8-64/"};

    for (int i = 0; i < 2; i++) {
        options[i].backend = &backend_apart;
        struct node node = open_as(&options[i]);
        options[i].backend = cpu();
        struct node host = open_as(&options[i]);
        struct memory *first = at_prefix(&node), *plain = at_prefix(&host);
        float *wanted = room(&node), *found = room(&node);

        cr_assert_str_eq(model_numerics(node.model),
                         model_numerics(host.model));
        cr_assert(strstr(model_numerics(node.model), NAME[i]));
        go_on(&host, plain, wanted);
        go_on(&node, first, found);
        assert_same(&node, wanted, found);
        memory_destroy(first);
        memory_destroy(plain);
        close_node(&node);
        close_node(&host);
        free(wanted);
        free(found);
    }
}

Test(device, formats_of_eight_bits_are_refused_where_nothing_takes_them)
{
    struct backend without = *cpu();
    struct model_options options = {.backend = &without,
                                    .weight_format = WEIGHT_F8};
    struct model *model = NULL;

    without.name = "fast";
    without.has_f8 = without.has_kv_int8 = false;
    cr_assert_eq(model_load(DIR, &options, &model), STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(status_reason(),
                     "backend 'fast' has no products of weights in f8: cuda "
                     "has, and ref, the slow one; w8 is for CPUs");
    options.weight_format = WEIGHT_AUTO;
    options.kv_format = KV_INT8;
    cr_assert_eq(model_load(DIR, &options, &model), STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(status_reason(),
                     "backend 'fast' keeps no keys and values in int8: cuda "
                     "does, and ref, the slow one");
    cr_assert_null(model);
}

/* No look-up reads them: said before a session has any. */
Test(device, keys_in_int8_have_no_memory_policies)
{
    struct node node = open_as(&(struct model_options){
        .backend = cpu(), .weight_format = WEIGHT_BF16, .kv_format = KV_INT8});
    struct policy policy;

    cr_assert_eq(policy_parse("window", &policy), STATUS_OK);
    cr_assert_eq(model_check_policy(node.model, &policy),
                 STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(status_cause()->reason, "POLICY_UNSUPPORTED");
    cr_assert_eq(policy_parse("full", &policy), STATUS_OK);
    cr_assert_eq(model_check_policy(node.model, &policy), STATUS_OK);
    close_node(&node);
}

Test(device, a_fork_and_its_parent_go_on_with_the_same_bits)
{
    struct node node = open_node(&backend_apart, ARITHMETIC_FP32);
    struct memory *parent = at_prefix(&node), *fork;
    float *wanted = room(&node), *found = room(&node);
    size_t shared = 0;

    cr_assert_eq(memory_fork(parent, &shared, &fork), STATUS_OK);
    go_on(&node, parent, wanted);
    memory_destroy(parent);
    go_on(&node, fork, found);
    assert_same(&node, wanted, found);
    memory_destroy(fork);
    close_node(&node);
    free(wanted);
    free(found);
}

/* Stored by a CPU in bf16-pair, read by a device that differs in `other_by`. */
static void check_refused(const struct model_options *other_by)
{
    struct node first = open_node(cpu(), ARITHMETIC_PAIR);
    struct node second = open_as(other_by);
    struct memory *memory = at_prefix(&first), *other;
    const struct log_path path = log_path_alone(alice);
    struct snapshots *snapshots;
    struct restore restore;
    struct store *store;
    struct image *image;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, first.model, &snapshots), STATUS_OK);
    cr_assert_eq(image_of(&first, memory, &image), STATUS_OK);
    cr_assert_eq(snapshot_save(snapshots, image), STATUS_OK);
    image_destroy(image);
    memory_destroy(memory);
    snapshots_close(snapshots);
    cr_assert_eq(snapshots_open(store, second.model, &snapshots), STATUS_OK);
    cr_assert_eq(memory_create(second.model, &other), STATUS_OK);
    cr_assert_eq(
        snapshot_load(snapshots, &path, &tokens, N_TOKEN, other, &restore),
        STATUS_OK);
    cr_assert_eq(restore.reason, RESTORE_NUMERICS);
    cr_assert_eq(memory_position(other), 0);
    cr_assert(feed(&second, other, N_TOKEN)); /* by its tokens */
    memory_destroy(other);
    snapshots_close(snapshots);
    store_close(store);
    close_node(&first);
    close_node(&second);
}

Test(device, a_snapshot_of_other_numerics_is_refused_and_replayed)
{
    struct model_options other = {.backend = &backend_apart,
                                  .arithmetic = ARITHMETIC_FP32,
                                  .weight_format = WEIGHT_BF16};

    check_refused(&other);
    other.arithmetic = ARITHMETIC_PAIR;
    other.kv_format = KV_INT8;
    check_refused(&other);
    other.kv_format = KV_WIDE;
    other.weight_format = WEIGHT_F8;
    check_refused(&other);
}

Test(device, without_memory_a_call_fails_and_can_be_tried_again)
{
    struct node node = open_node(&backend_apart, ARITHMETIC_FP32);
    struct memory *memory = at_prefix(&node), *other = at_prefix(&node);
    struct image *image = NULL;
    size_t shared = 0;

    cr_assert(feed(&node, other, N_TOKEN)); /* scratch for longer ones, too */
    memory_destroy(other);
    other = NULL;
    apart_limit(node.device, 0);
    cr_assert_eq(memory_create(node.model, &other), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(memory_reserve(memory, 4 * KV_BLOCK),
                 STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(memory_fork(memory, &shared, &other),
                 STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(image_of(&node, memory, &image), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_null(other);
    cr_assert_null(image);
    cr_assert(feed(&node, memory, N_PREFIX + 1)); /* it has room for that */
    apart_limit(node.device, SIZE_MAX);
    cr_assert_eq(memory_reserve(memory, 4 * KV_BLOCK), STATUS_OK);
    cr_assert_eq(memory_fork(memory, &shared, &other), STATUS_OK);
    memory_destroy(other);
    memory_destroy(memory);
    close_node(&node);
}

Test(device, one_that_is_lost_says_so_everywhere_and_stores_nothing)
{
    struct node node = open_node(&backend_apart, ARITHMETIC_FP32);
    struct memory *memory = at_prefix(&node), *other = NULL;
    const struct log_path path = log_path_alone(alice);
    struct snapshot_entry entry;
    struct snapshots *snapshots;
    struct restore restore;
    struct store *store;
    struct image *image;
    uint32_t n = 9;

    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, node.model, &snapshots), STATUS_OK);
    cr_assert_eq(image_of(&node, memory, &image), STATUS_OK);
    cr_assert_eq(memory_create(node.model, &other), STATUS_OK);
    apart_lose(node.device);
    cr_assert_null(feed(&node, memory, N_PREFIX + 1));
    cr_assert_eq(status_cause()->code, STATUS_UNAVAILABLE);
    cr_assert(strstr(status_reason(), "lost"), "%s", status_reason());
    cr_assert_eq(memory_position(memory), N_PREFIX);
    cr_assert_eq(snapshot_save(snapshots, image), STATUS_UNAVAILABLE);
    cr_assert_eq(snapshot_list(snapshots, alice, &entry, 1, &n), STATUS_OK);
    cr_assert_eq(n, 0);
    cr_assert_eq(
        snapshot_load(snapshots, &path, &tokens, N_TOKEN, other, &restore),
        STATUS_OK); /* there is none: nothing was asked of the device */
    image_destroy(image);
    memory_destroy(other);
    memory_destroy(memory);
    snapshots_close(snapshots);
    store_close(store);
    close_node(&node);
}

/* What a device is told of steps, while it goes on as it would. */
static struct device_calls told;
static const struct device_calls *teller;
static uint64_t owner;

static void tell(struct device *device, const struct device_step *step)
{
    owner = step->owner;
    teller->begin(device, step);
}

/* Engines one after the other, whose workspaces the allocator may put into the
 * same place: what was recorded of one must not be run for the next. */
Test(device, a_second_engine_records_its_own_steps)
{
    struct node node = open_node(&backend_apart, ARITHMETIC_FP32);
    struct memory *memory = at_prefix(&node);
    float *wanted = room(&node), *found = room(&node);
    uint64_t before = 0;
    size_t shared = 0;

    teller = node.device->calls;
    told = *teller;
    told.begin = tell;
    node.device->calls = &told;
    for (uint32_t i = 0; i < 4; i++) {
        const uint64_t n_replay = apart_n_replay(node.device);
        struct memory *fork;

        cr_assert_eq(memory_fork(memory, &shared, &fork), STATUS_OK);
        go_on(&node, fork, i ? found : wanted);
        memory_destroy(fork);
        cr_assert_gt(apart_n_replay(node.device), n_replay);
        cr_assert(owner && owner != before);
        before = owner;
        if (i)
            assert_same(&node, wanted, found);
        workspace_destroy(node.workspace);
        cr_assert_eq(
            workspace_create(node.model, N_TOKEN, 1, 1, &node.workspace),
            STATUS_OK);
    }
    node.device->calls = teller;
    memory_destroy(memory);
    close_node(&node);
    free(wanted);
    free(found);
}

static void another(char out[DEVICE_GENERATION_SIZE])
{
    memcpy(out, "-other", sizeof("-other"));
}

static enum status create_told(struct device **out, char why[DEVICE_WHY_SIZE])
{
    const enum status st = teller->create(out, why);

    if (!st)
        (*out)->calls = &told;
    return st;
}

static enum status find_told(const struct device_calls **out)
{
    const enum status st = backend_apart.find_device(&teller);

    told = *teller;
    told.generation = another;
    told.create = create_told;
    *out = &told;
    return st;
}

/* So that no state of one is ever taken for the other's. */
Test(device, another_generation_of_devices_has_another_numerics_id)
{
    struct backend backend = backend_apart;

    backend.find_device = find_told;
    struct node node = open_node(&backend_apart, ARITHMETIC_PAIR);
    struct node other = open_node(&backend, ARITHMETIC_PAIR);
    const char *id = model_numerics(node.model), *end = strchr(id, '/');
    char wanted[128];

    (void)snprintf(wanted, sizeof(wanted), "%.*s-other%s", (int)(end - id), id,
                   end);
    cr_assert_str_eq(model_numerics(other.model), wanted);
    other.device->calls = teller;
    close_node(&node);
    close_node(&other);
}

Test(device, an_arithmetic_that_a_backend_lacks_is_refused_by_name)
{
    const struct model_options options = {.backend = &backend_apart,
                                          .arithmetic = ARITHMETIC_MMA};
    const struct model_choice choice = {.backend = "ref",
                                        .numerics = "bf16-mma",
                                        .weight_format = "auto",
                                        .kv_format = "auto"};
    struct model_options found = {.n_context = 5};
    struct model *model = NULL;

    cr_assert_eq(model_load(DIR, &options, &model), STATUS_FAILED_PRECONDITION);
    cr_assert_null(model);
    cr_assert(strstr(status_reason(), "bf16-mma"));
    cr_assert(strstr(status_reason(), "fp32, bf16-pair, bf16-tile"));
    cr_assert_eq(model_options_find(&choice, &found),
                 STATUS_FAILED_PRECONDITION);
    cr_assert_null(found.backend);
}

/* Nothing is computed here, so any device will do. What numerics ids differ in
 * is refused: a_snapshot_of_other_numerics_is_refused_and_replayed. */
Test(device, fast_products_are_chosen_by_name_and_have_an_id_of_their_own)
{
    const char *const name[2] = {"bf16-mma", "bf16-mma-fast"};
    const char *const id[2] = {"bf16-mma-2/bf16/kv-bf16/",
                               "bf16-mma-fast-1/bf16/kv-bf16/"};
    struct model_choice choice = {
        .backend = "apart", .weight_format = "auto", .kv_format = "auto"};
    struct backend backend = backend_apart;
    size_t bytes[2];

    backend.arithmetics =
        ARITHMETIC_BIT(ARITHMETIC_MMA) | ARITHMETIC_BIT(ARITHMETIC_FAST);
    for (int i = 0; i < 2; i++) {
        struct model_options options = {.backend = &backend};
        struct model *model;

        choice.numerics = name[i];
        cr_assert_eq(model_options_find(&choice, &(struct model_options){0}),
                     STATUS_FAILED_PRECONDITION);
        cr_assert(strstr(status_reason(), name[i]));
        options.arithmetic = i ? ARITHMETIC_FAST : ARITHMETIC_MMA;
        cr_assert_str_eq(arithmetic_name(options.arithmetic), name[i]);
        cr_assert_eq(model_load(DIR, &options, &model), STATUS_OK);
        cr_assert_eq(strncmp(model_numerics(model), id[i], strlen(id[i])), 0,
                     "%s", model_numerics(model));
        bytes[i] = model_weight_bytes(model);
        model_destroy(model);
        options.weight_format = WEIGHT_W8;
        cr_assert_eq(model_load(DIR, &options, &model),
                     STATUS_FAILED_PRECONDITION);
        cr_assert(strstr(status_reason(), name[i]));
        options.weight_format = WEIGHT_W8A8;
        cr_assert_eq(model_load(DIR, &options, &model),
                     STATUS_FAILED_PRECONDITION);
        cr_assert(strstr(status_reason(), "in w8a8, only"));
    }
    cr_assert_eq(bytes[0], bytes[1]); /* weights lie alike */
}

/* Which others there are: tests/unit/state/test_device_policies.c. */
Test(device, the_policy_that_looks_at_logits_is_refused_by_name)
{
    struct node node = open_node(&backend_apart, ARITHMETIC_PAIR);
    struct memory *memory;
    struct policy policy;

    cr_assert_eq(memory_create(node.model, &memory), STATUS_OK);
    cr_assert_eq(policy_parse("sirllm", &policy), STATUS_OK);
    cr_assert_eq(memory_set_policy(memory, &policy),
                 STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(status_reason(),
                     "backend 'apart' has no memory policy sirllm, which looks "
                     "at logits that stay on the device: a CPU's backends have "
                     "it (--backend)");
    cr_assert_str_eq(status_cause()->reason, "POLICY_UNSUPPORTED");
    cr_assert_null(memory_policy(memory));
    cr_assert(feed(&node, memory, N_PREFIX));
    memory_destroy(memory);
    close_node(&node);
}
