/*
 * Sessions whose recurrent states are capped (model/state_cap.h), judged on
 * whole models: against an uncapped model whose states a test scales by hand,
 * in double, where the grid is passed; by bits over batch, cut, phase, threads
 * and backends (E1, E2, E3, E7); and that states of another cap are refused.
 */
#include "state/lineage.h"
#include "state/memory.h"
#include "state/snapshot.h"

#include "base/log.h"
#include "kernels/apart/apart.h"
#include "model/state_cap.h"
#include "model/state_norm.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DIR "tests/golden/qwen3_5_text"
#define N_TOKEN 2100u /* two points of the grid */
#define N_CHUNK 512u  /* of rows in a call at most */
#define N_CUT_MAX 200u

static const struct uid alice = {0x10, 1};

struct bench {
    struct model *model;
    struct workspace *workspace;
    uint32_t n_vocab;
    uint32_t token[N_TOKEN];
};

static struct bench open_bench(const struct backend *backend,
                               enum arithmetic arithmetic, float cap)
{
    const struct model_options options = {
        .backend = backend, .arithmetic = arithmetic, .state_cap = cap};
    struct bench bench = {0};

    cr_assert_eq(model_load(DIR, &options, &bench.model), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(workspace_create(bench.model, N_TOKEN, 3, 3, &bench.workspace),
                 STATUS_OK);
    bench.n_vocab = model_config(bench.model)->n_vocab;
    for (uint32_t i = 0; i < N_TOKEN; i++)
        bench.token[i] = i * 2654435761u % bench.n_vocab;
    return bench;
}

static struct bench open_best(float cap)
{
    const struct backend *backend;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    return open_bench(backend, backend->arithmetic, cap);
}

static void close_bench(struct bench *bench)
{
    workspace_destroy(bench->workspace);
    model_destroy(bench->model);
}

static struct memory *new_memory(const struct bench *bench)
{
    struct memory *memory;

    cr_assert_eq(memory_create(bench->model, &memory), STATUS_OK);
    return memory;
}

/* The next n rows of some sessions in one call; the last rows' logits. */
static const float *step(const struct bench *bench, struct pool *pool,
                         struct memory *const *memory, const uint32_t *n,
                         uint32_t n_span)
{
    struct span span[3];
    uint32_t row[3], n_row = 0;
    uint32_t *token = malloc(N_TOKEN * sizeof(*token));
    const float *logit;

    for (uint32_t i = 0; i < n_span; i++) {
        const uint64_t position = memory_position(memory[i]);

        cr_assert_eq(memory_reserve(memory[i], position + n[i]), STATUS_OK);
        memcpy(token + n_row, bench->token + position, n[i] * sizeof(*token));
        span[i] = (struct span){.first_row = n_row,
                                .n_row = n[i],
                                .position = position,
                                .layer = memory_layers(memory[i])};
        n_row += n[i];
        row[i] = n_row - 1;
    }
    logit = model_forward(bench->model, pool, bench->workspace,
                          &(struct batch){.token = token,
                                          .n_row = n_row,
                                          .span = span,
                                          .n_span = n_span,
                                          .logit_row = row,
                                          .n_logit = n_span});
    for (uint32_t i = 0; i < n_span; i++)
        memory_advance(memory[i], n[i]);
    free(token);
    return logit;
}

static const float *feed(const struct bench *bench, struct pool *pool,
                         struct memory *memory, uint32_t n)
{
    return step(bench, pool, &memory, &n, 1);
}

/* The heads' matrices of a layer; n numbers each. NULL: it has none. */
static float *heads_of(const struct bench *bench, const struct memory *memory,
                       uint32_t layer, uint32_t *out_n_head, size_t *out_n)
{
    const struct mixer_plan *plan = model_plan(bench->model, layer);

    if (plan->state_bytes == 0)
        return NULL;
    *out_n_head = plan->field[0].dim[0];
    *out_n = (size_t)plan->field[0].dim[1] * plan->field[0].dim[2];
    return memory_layers(memory)[layer].state;
}

static double rms_of(const float *s, size_t n)
{
    double sum = 0;

    for (size_t k = n; k-- > 0;)
        sum += (double)s[k] * (double)s[k];
    return sqrt(sum / (double)n);
}

#define N_HEAD_MAX 64u

/* A cap that about half of the heads pass after 1,024 tokens. */
static float middle_cap(const struct backend *backend,
                        enum arithmetic arithmetic)
{
    struct bench bench = open_bench(backend, arithmetic, 0);
    struct memory *memory = new_memory(&bench);
    double rms[N_HEAD_MAX];
    uint32_t n_rms = 0;

    (void)feed(&bench, NULL, memory, 1024);
    for (uint32_t i = 0; i < model_config(bench.model)->n_layer; i++) {
        uint32_t n_head = 0;
        size_t n;
        const float *s = heads_of(&bench, memory, i, &n_head, &n);

        for (uint32_t h = 0; s && h < n_head; h++) {
            uint32_t at = n_rms++;

            cr_assert_lt(at, N_HEAD_MAX);
            for (; at > 0 && rms[at - 1] > rms_of(s + h * n, n); at--)
                rms[at] = rms[at - 1];
            rms[at] = rms_of(s + h * n, n);
        }
    }
    memory_destroy(memory);
    close_bench(&bench);
    cr_assert(n_rms > 1 && n_rms <= N_HEAD_MAX);
    return (float)(0.5 * (rms[n_rms / 2 - 1] + rms[n_rms / 2]));
}

/* From where the model is. */
static void take(const struct bench *bench, void *to, const void *from,
                 size_t bytes)
{
    struct device *device = model_device(bench->model);
    void *near;

    cr_assert_eq(device_take_host(device, bytes, &near), STATUS_OK);
    device_read(device, near, from, bytes);
    cr_assert_eq(device_wait(device), STATUS_OK);
    memcpy(to, near, bytes);
    device_give_host(device, near);
}

/* Digest of what is live of all states and blocks. */
static struct digest digest_memory(const struct bench *bench,
                                   const struct memory *memory)
{
    const uint64_t position = memory_position(memory);
    struct digest all = {0};

    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(bench->model, i);
        char *copy = malloc(plan->state_bytes + plan->block_bytes + 1);

        if (plan->state_bytes) {
            take(bench, copy, memory_layers(memory)[i].state,
                 plan->state_bytes);
            mixer_clear_moot(plan, position, copy);
            all = digest_chain(all, copy, plan->state_bytes);
        }
        for (uint64_t b = 0; plan->block_bytes && (b + 1) * KV_BLOCK < position;
             b++) {
            take(bench, copy, memory_block(memory, i, b), plan->block_bytes);
            all = digest_chain(all, copy, plan->block_bytes);
        }
        free(copy);
    }
    return all;
}

struct outcome {
    struct digest logit, memory;
};

static struct outcome outcome_of(const struct bench *bench,
                                 const struct memory *memory,
                                 const float *logit)
{
    return (struct outcome){
        .logit = digest_bytes(logit, bench->n_vocab * sizeof(*logit)),
        .memory = digest_memory(bench, memory)};
}

static void assert_same(const struct outcome *a, const struct outcome *b,
                        const char *what)
{
    cr_assert(digest_equal(a->logit, b->logit), "%s: logits", what);
    cr_assert(digest_equal(a->memory, b->memory), "%s: memory", what);
}

/* All tokens, in calls that end at each of the cuts and of N_CHUNK rows. */
static struct outcome play(const struct bench *bench, struct pool *pool,
                           const uint32_t *cut, uint32_t n_cut)
{
    struct memory *memory = new_memory(bench);
    struct outcome outcome;
    const float *logit = NULL;
    uint32_t done = 0;

    for (uint32_t i = 0; i <= n_cut; i++) {
        const uint32_t end = i < n_cut ? cut[i] : N_TOKEN;

        cr_assert(end > done);
        for (; done < end; done = (uint32_t)memory_position(memory))
            logit = feed(bench, pool, memory,
                         end - done < N_CHUNK ? end - done : N_CHUNK);
    }
    outcome = outcome_of(bench, memory, logit);
    memory_destroy(memory);
    return outcome;
}

/* ------------------------------------------------------------------ oracle */

/* What the cap does, by hand; how many heads it scaled. */
static uint32_t cap_by_hand(const struct bench *bench, struct memory *memory,
                            double cap)
{
    uint32_t n_scaled = 0;

    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++) {
        uint32_t n_head = 0;
        size_t n;
        float *s = heads_of(bench, memory, i, &n_head, &n);

        for (uint32_t h = 0; s && h < n_head; h++) {
            const double rms = rms_of(s + h * n, n);

            for (size_t k = 0; rms > cap && k < n; k++)
                s[h * n + k] = (float)((double)s[h * n + k] * cap / rms);
            n_scaled += rms > cap;
        }
    }
    return n_scaled;
}

/* Of the capped model at the grid: its heads are at most the cap. */
static double largest(const struct bench *bench, const struct memory *memory)
{
    double most = 0;

    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(bench->model, i);

        if (plan->state_bytes > 0)
            most =
                fmax(most,
                     (double)state_norm_of(plan, memory_layers(memory)[i].state)
                         .head_rms);
    }
    return most;
}

static void assert_near(const struct bench *bench, const struct memory *a,
                        const struct memory *b, double within)
{
    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++) {
        uint32_t n_head = 0;
        size_t n = 0;
        const float *x = heads_of(bench, a, i, &n_head, &n);
        const float *y = heads_of(bench, b, i, &n_head, &n);

        for (size_t k = 0; k < n_head * n; k++)
            cr_assert_lt(fabs((double)x[k] - (double)y[k]), within,
                         "layer %u, number %zu", i, k);
    }
}

static double difference(const struct bench *bench, const float *a,
                         const float *b)
{
    double most = 0;

    for (uint32_t v = 0; v < bench->n_vocab; v++)
        most = fmax(most, fabs((double)a[v] - (double)b[v]));
    return most;
}

/* The last row's logits without a cap: to know that it matters. */
static double effect(const struct bench *plain, const float *capped)
{
    struct memory *memory = new_memory(plain);
    double most;

    most = difference(plain, feed(plain, NULL, memory, N_TOKEN), capped);
    memory_destroy(memory);
    return most;
}

Test(capped, a_model_does_what_scaling_its_states_by_hand_does)
{
    const struct backend *backend;
    struct bench plain, capped;
    struct memory *by_hand, *memory;
    const float *want, *got;
    float *copy;
    uint64_t n = 0;
    float cap;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    cap = middle_cap(backend, ARITHMETIC_FP32);
    plain = open_bench(backend, ARITHMETIC_FP32, 0);
    capped = open_bench(backend, ARITHMETIC_FP32, cap);
    by_hand = new_memory(&plain);
    memory = new_memory(&capped);
    for (uint32_t end = 1024; end <= 2048; end += 1024) {
        (void)feed(&plain, NULL, by_hand, 1024);
        n += cap_by_hand(&plain, by_hand, (double)cap);
        (void)feed(&capped, NULL, memory, 1024);
        cr_assert_eq(workspace_n_capped(capped.workspace), n);
        cr_assert_leq(largest(&capped, memory), (double)cap * (1 + 1e-6));
        assert_near(&plain, by_hand, memory, 1e-5 * (double)cap);
    }
    cr_assert(n > 2 && n < 2 * 16, "%lu of 2 x 16 heads", n);
    want = feed(&plain, NULL, by_hand, N_TOKEN - 2048);
    got = feed(&capped, NULL, memory, N_TOKEN - 2048);
    cr_assert_lt(difference(&plain, want, got), 3e-6);
    copy = malloc(plain.n_vocab * sizeof(float));
    memcpy(copy, got, plain.n_vocab * sizeof(float));
    cr_assert_gt(effect(&plain, copy), 5e-5, "the cap does something");
    free(copy);
    memory_destroy(by_hand);
    memory_destroy(memory);
    close_bench(&plain);
    close_bench(&capped);
}

Test(capped, a_cap_that_is_never_reached_changes_no_bit)
{
    struct bench plain = open_best(0), capped = open_best(1e6f);
    const uint32_t cut[] = {900, 1030};
    const struct outcome want = play(&plain, NULL, cut, 2);
    const struct outcome got = play(&capped, NULL, cut, 2);

    assert_same(&want, &got, "a high cap");
    cr_assert_eq(workspace_n_capped(capped.workspace), 0);
    close_bench(&plain);
    close_bench(&capped);
}

/* -------------------------------------------------------------------- laws */

static void check_laws(const struct backend *backend,
                       enum arithmetic arithmetic, float cap,
                       struct outcome *out)
{
    struct bench bench = open_bench(backend, arithmetic, cap);
    uint32_t one_by_one[N_CUT_MAX];
    struct outcome got;
    struct memory *memory = new_memory(&bench);

    /* In one call, over both points of the grid. */
    *out = outcome_of(&bench, memory, feed(&bench, NULL, memory, N_TOKEN));
    memory_destroy(memory);
    cr_assert_gt(workspace_n_capped(bench.workspace), 0);
    if (strcmp(backend->name, "ref") == 0) { /* too slow for the rest */
        close_bench(&bench);
        return;
    }
    for (uint32_t c = 1023; c <= 1025; c++) {
        got = play(&bench, NULL, (uint32_t[]){c, 2048 + 1024 - c}, 2);
        assert_same(out, &got, "E2, cuts around the grid");
    }
    got = play(&bench, NULL, (uint32_t[]){700, 1500, 2047}, 3);
    assert_same(out, &got, "E2, cuts beside the grid");
    for (uint32_t i = 0; i < N_CUT_MAX; i++) /* up to 1034, up to 2058 */
        one_by_one[i] = (i < 100 ? 935 : 1859) + i;
    got = play(&bench, NULL, one_by_one, N_CUT_MAX);
    assert_same(out, &got, "E3, one by one over the grid");
    for (uint32_t n = 1; n <= 3; n++) {
        struct pool *pool;

        cr_assert_eq(pool_create(n, &pool), STATUS_OK);
        got = play(&bench, pool, (uint32_t[]){1000}, 1);
        assert_same(out, &got, "E7, threads");
        pool_destroy(pool);
    }
    close_bench(&bench);
}

Test(capped, e2_e3_e7_and_backends_change_nothing)
{
    static const enum arithmetic kind[] = {ARITHMETIC_FP32, ARITHMETIC_PAIR,
                                           ARITHMETIC_TILE};
    uint32_t n = 0;

    for (size_t k = 0; k < 3; k++) {
        struct outcome first;
        bool is_first = true;

        for (const struct backend *const *b = backend_all(); *b; b++) {
            struct outcome outcome;

            if (!(*b)->is_supported() || (*b)->find_device ||
                (k > 0 && strcmp((*b)->name, "ref") == 0))
                continue;
            check_laws(*b, kind[k], middle_cap(*b, kind[k]), &outcome);
            if (is_first)
                first = outcome;
            else
                assert_same(&first, &outcome, (*b)->name);
            is_first = false;
            n++;
        }
    }
    cr_assert_geq(n, 3);
}

/* Steps that are recorded, and those at the grid, which are not; counted where
 * the states are. */
Test(capped, on_a_device_they_are_those_of_a_cpu)
{
    const struct backend *backend;
    struct outcome want, got;
    float cap;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    for (enum arithmetic k = ARITHMETIC_FP32; k <= ARITHMETIC_PAIR; k++) {
        struct bench host, far;
        uint64_t n_capped;

        cap = middle_cap(backend, k);
        check_laws(&backend_apart, k, cap, &got);
        host = open_bench(backend, k, cap);
        want = play(&host, NULL, NULL, 0);
        assert_same(&want, &got, "a device");
        n_capped = workspace_n_capped(host.workspace);
        close_bench(&host);
        far = open_bench(&backend_apart, k, cap);
        (void)play(&far, NULL, (uint32_t[]){1000}, 1);
        cr_assert_eq(workspace_n_capped(far.workspace), n_capped);
        close_bench(&far);
    }
}

/* Three sessions in one batch: one comes to the grid while another is before it
 * and the third decodes; each ends as it does alone. */
Test(capped, e1_in_a_batch_as_alone)
{
    const struct backend *backend;
    struct bench bench;
    struct memory *memory[3], *alone;
    static const uint32_t first[3] = {1000, 500, 2047};
    static const uint32_t n[2][3] = {{100, 523, 1}, {1, 2, 52}};
    struct outcome got[3], want;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    bench = open_bench(backend, backend->arithmetic,
                       middle_cap(backend, backend->arithmetic));
    for (uint32_t i = 0; i < 3; i++) {
        memory[i] = new_memory(&bench);
        (void)feed(&bench, NULL, memory[i], first[i]);
    }
    for (uint32_t c = 0; c < 2; c++) {
        const float *logit = step(&bench, NULL, memory, n[c], 3);

        for (uint32_t i = 0; i < 3; i++)
            got[i] = outcome_of(&bench, memory[i],
                                logit + (size_t)i * bench.n_vocab);
    }
    for (uint32_t i = 0; i < 3; i++) {
        alone = new_memory(&bench);
        want = outcome_of(
            &bench, alone,
            feed(&bench, NULL, alone, (uint32_t)memory_position(memory[i])));
        assert_same(&want, &got[i], "alone");
        memory_destroy(alone);
        memory_destroy(memory[i]);
    }
    close_bench(&bench);
}

/* --------------------------------------------------------------- snapshots */

/* Store a session of the first model after 1,024 tokens, where the cap has just
 * been at work, and look for it with the second. */
static void reload(struct bench *first, const struct bench *second,
                   enum restore_reason wanted)
{
    const struct ids ids = {.id = first->token, .n = N_TOKEN};
    const struct log_path path = log_path_alone(alice);
    struct memory *memory = new_memory(first), *other = new_memory(second);
    struct snapshots *snapshots;
    struct restore restore;
    struct store *store;
    struct image *image;

    (void)feed(first, NULL, memory, 1024);
    cr_assert_eq(store_open_memory(&store), STATUS_OK);
    cr_assert_eq(snapshots_open(store, first->model, &snapshots), STATUS_OK);
    cr_assert_eq(image_create(first->model,
                              &(struct image_source){
                                  .log = alice,
                                  .memory = memory,
                                  .token = first->token,
                                  .chain = model_fingerprint(first->model)},
                              &image),
                 STATUS_OK);
    cr_assert_eq(snapshot_save(snapshots, image), STATUS_OK);
    image_destroy(image);
    snapshots_close(snapshots);
    cr_assert_eq(snapshots_open(store, second->model, &snapshots), STATUS_OK);
    cr_assert_eq(
        snapshot_load(snapshots, &path, &ids, N_TOKEN, other, &restore),
        STATUS_OK);
    cr_assert_eq(restore.reason, wanted);
    cr_assert_eq(memory_position(other), wanted == RESTORE_HIT ? 1024 : 0);
    if (wanted == RESTORE_HIT)
        cr_assert(digest_equal(digest_memory(first, memory),
                               digest_memory(second, other)));
    memory_destroy(memory);
    memory_destroy(other);
    snapshots_close(snapshots);
    store_close(store);
}

Test(capped, states_of_another_cap_are_refused_with_the_reason)
{
    const struct backend *backend;
    struct bench plain, capped, same, other;
    float cap;

    log_set_level(LOG_ERROR);
    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    cap = middle_cap(backend, backend->arithmetic);
    plain = open_best(0);
    capped = open_best(cap);
    same = open_best(cap);
    other = open_best(nextafterf(cap, 1e6f)); /* the next number there is */
    reload(&capped, &same, RESTORE_HIT);
    reload(&capped, &other, RESTORE_NUMERICS);
    reload(&capped, &plain, RESTORE_NUMERICS);
    reload(&plain, &capped, RESTORE_NUMERICS);
    close_bench(&plain);
    close_bench(&capped);
    close_bench(&same);
    close_bench(&other);
}

/* ---------------------------------------------------------------- refusals */

Test(capped, the_id_names_the_cap_and_only_where_there_is_one)
{
    static const float cap[] = {0.25f, 0.02f, 12};
    static const char *const name[] = {"/cap-0.25-1024", "/cap-0.02-1024",
                                       "/cap-12-1024"};
    struct bench plain = open_best(0);

    cr_assert_null(strstr(model_numerics(plain.model), "cap"));
    for (int i = 0; i < 3; i++) {
        struct bench capped = open_best(cap[i]);
        const char *id = model_numerics(capped.model);
        const size_t n = strlen(model_numerics(plain.model));

        cr_assert_eq(strncmp(id, model_numerics(plain.model), n), 0);
        cr_assert_str_eq(id + n, name[i]);
        close_bench(&capped);
    }
    close_bench(&plain);
}

Test(capped, a_model_without_states_refuses_it_by_name)
{
    const struct backend *backend;
    struct model_options options = {.state_cap = 0.5f};
    struct model *model = NULL;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    options.backend = backend;
    cr_assert_eq(model_load("tests/golden/llama", &options, &model),
                 STATUS_FAILED_PRECONDITION);
    cr_assert_null(model);
    cr_assert(strstr(status_reason(), "no layer of this model"), "%s",
              status_reason());
}

Test(capped, a_cap_out_of_range_is_refused_and_none_is_zero)
{
    struct model_choice choice = {.backend = "auto",
                                  .numerics = "auto",
                                  .weight_format = "auto",
                                  .kv_format = "auto"};
    struct model_options options = {0};
    static const double bad[] = {-1, 1e-7, 1e-60, 1e7, NAN};

    cr_assert_eq(model_options_find(&choice, &options), STATUS_OK);
    cr_assert_eq(options.state_cap, 0);
    choice.state_cap = 0.25;
    cr_assert_eq(model_options_find(&choice, &options), STATUS_OK);
    cr_assert_eq(options.state_cap, 0.25f);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        choice.state_cap = bad[i];
        cr_assert_eq(model_options_find(&choice, &options),
                     STATUS_INVALID_ARGUMENT);
    }
    cr_assert_eq(options.state_cap, 0.25f);
}
