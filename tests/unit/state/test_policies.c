/*
 * Sessions under memory policies, judged by bits on a small model, and in part
 * on godwit-tiny: E1 batch, E2 cut, E3 phase, E7 threads, forks at every
 * residue of the grid, equality between backends, and the identities that turn
 * a policy into `full`. That look-ups are right is judged in kernels and model;
 * here, that they are the same.
 */
#include "state/memory.h"

#include "model/pass.h"
#include "model/view.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIR "tests/golden/qwen3_5_text"
#define TINY "assets/models/godwit-tiny"
#define N_TOKEN 460u /* eight grid chunks */
#define N_ROW_MAX 512u

/* Small enough that each leaves something out: sinks, windows and picks of one
 * or two blocks, look-ups at different paces, each rule for positions. */
static const char *const POLICY[] = {
    "window:sink=64:window=64",
    "infllm:sink=64:window=64:pick=128:step=16",
    "infllm:sink=0:window=0:pick=64:step=1:keys=rank:index=keys",
    "quest:sink=64:window=64:pick=128:step=16",
    "quest:sink=0:window=128:pick=64:step=64:keys=far",
    "recycle:sink=64:window=64:pick=64:step=8:reuse=4",
    "recycle:base=infllm:sink=0:window=0:pick=64:step=16:reuse=8:index=keys",
    "sirllm:sink=64:window=64:pick=128:decay=50:turn=419",
    "sirllm:sink=0:window=0:pick=64:keys=true:turn=none",
    "snapkv:window=64:pick=64:end=270",
    "snapkv:sink=64:window=0:pick=64:keys=rank:end=320",
};
#define N_POLICY (sizeof(POLICY) / sizeof(POLICY[0]))
#define N_BOUNDED 9u /* of them, whose blocks may leave RAM */

struct bench {
    struct model *model;
    struct workspace *workspace;
    uint32_t n_vocab;
    uint32_t token[N_TOKEN];
};

static struct bench open_bench(const char *dir)
{
    struct model_options options = {.n_context = 4096};
    struct bench bench = {0};

    cr_assert_eq(backend_find("auto", &options.backend), STATUS_OK);
    options.arithmetic = options.backend->arithmetic;
    cr_assert_eq(model_load(dir, &options, &bench.model), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(workspace_create(bench.model, 1024, 3, 1024, &bench.workspace),
                 STATUS_OK);
    bench.n_vocab = model_config(bench.model)->n_vocab;
    for (uint32_t i = 0; i < N_TOKEN; i++) /* some come again */
        bench.token[i] =
            (i * i * 7 % 1009 + 300 * (i % 3)) % (bench.n_vocab - 3);
    return bench;
}

static void close_bench(struct bench *bench)
{
    workspace_destroy(bench->workspace);
    model_destroy(bench->model);
}

static struct memory *new_memory(const struct bench *bench, const char *text)
{
    struct memory *memory;
    struct policy policy;

    cr_assert_eq(policy_parse(text, &policy), STATUS_OK, "%s", status_reason());
    cr_assert_eq(memory_create(bench->model, &memory), STATUS_OK);
    cr_assert_eq(memory_set_policy(memory, &policy), STATUS_OK);
    return memory;
}

/* Rows of one session in a step; their logits go to out unless NULL. */
struct part {
    struct memory *memory;
    const uint32_t *token;
    uint32_t n;
    float *out;
};

static void step(struct bench *bench, struct pool *pool,
                 const struct part *part, uint32_t n_part)
{
    uint32_t token[1024], row[1024], n_row = 0;
    struct span span[3];
    const float *logit;

    for (uint32_t i = 0; i < n_part; i++) {
        struct memory *memory = part[i].memory;
        const uint64_t position = memory_position(memory);

        cr_assert_eq(memory_reserve(memory, position + part[i].n), STATUS_OK);
        span[i] = (struct span){.first_row = n_row,
                                .n_row = part[i].n,
                                .position = position,
                                .layer = memory_layers(memory),
                                .policy = memory_policy(memory)};
        for (uint32_t r = 0; r < part[i].n; r++, n_row++) {
            token[n_row] = part[i].token[r];
            row[n_row] = n_row;
        }
    }
    logit = model_forward(bench->model, pool, bench->workspace,
                          &(struct batch){.token = token,
                                          .n_row = n_row,
                                          .span = span,
                                          .n_span = n_part,
                                          .logit_row = row,
                                          .n_logit = n_row});
    for (uint32_t i = 0; i < n_part; i++) {
        memory_advance(part[i].memory, part[i].n);
        if (part[i].out)
            memcpy(part[i].out, logit,
                   (size_t)part[i].n * bench->n_vocab * sizeof(float));
        logit += (size_t)part[i].n * bench->n_vocab;
    }
}

static float *room(const struct bench *bench)
{
    return malloc((size_t)N_TOKEN * bench->n_vocab * sizeof(float));
}

/* As many of n as its policy has in one pass. */
static uint32_t rows(const struct memory *memory, uint32_t n)
{
    const uint64_t position = memory_position(memory);
    const uint64_t most =
        policy_pass_end(memory_policy(memory), position) - position;

    return n < most ? n : (uint32_t)most;
}

/* Tokens from the memory's position on to `end`, n at a time. */
static void feed(struct bench *bench, struct pool *pool, struct memory *memory,
                 uint32_t end, uint32_t n, float *out)
{
    for (uint32_t at; (at = (uint32_t)memory_position(memory)) < end;) {
        const struct part part = {memory, bench->token + at,
                                  rows(memory, n < end - at ? n : end - at),
                                  out + (size_t)at * bench->n_vocab};

        step(bench, pool, &part, 1);
    }
}

/* All tokens in one step. */
static float *whole(struct bench *bench, const char *text)
{
    struct memory *memory = new_memory(bench, text);
    float *out = room(bench);

    feed(bench, NULL, memory, N_TOKEN, N_TOKEN, out);
    memory_destroy(memory);
    return out;
}

/* The first row that differs, N_TOKEN if none does. */
static uint32_t difference(const struct bench *bench, const float *a,
                           const float *b)
{
    uint32_t t = 0;

    while (t < N_TOKEN && memcmp(a + (size_t)t * bench->n_vocab,
                                 b + (size_t)t * bench->n_vocab,
                                 bench->n_vocab * sizeof(float)) == 0)
        t++;
    return t;
}

static void assert_same(const struct bench *bench, const float *a,
                        const float *b, const char *text, const char *what)
{
    const uint32_t t = difference(bench, a, b);

    cr_assert_eq(t, N_TOKEN, "%s: %s changes row %u", text, what, t);
}

static void check_cuts(const char *dir, const uint32_t *cut, size_t n_cut)
{
    struct bench bench = open_bench(dir);

    for (size_t p = 0; p < N_POLICY; p++) {
        float *want = whole(&bench, POLICY[p]), *got = room(&bench);

        for (size_t c = 0; c < n_cut; c++) {
            struct memory *memory = new_memory(&bench, POLICY[p]);

            feed(&bench, NULL, memory, N_TOKEN, cut[c], got);
            assert_same(&bench, want, got, POLICY[p], "a cut");
            memory_destroy(memory);
        }
        free(want);
        free(got);
    }
    close_bench(&bench);
}

Test(policies, e2_e3_cuts_and_decode_change_nothing)
{
    check_cuts(DIR, (uint32_t[]){1, 7, 16, 65}, 4);
}

Test(policies, e2_cuts_change_nothing_in_the_shipped_model)
{
    check_cuts(TINY, (uint32_t[]){65}, 1);
}

/* A pass in slices takes rows in rounds and blocks in ranges. */
Test(policies, e2_slices_of_a_pass_change_nothing)
{
    struct bench bench = open_bench(DIR);

    for (size_t p = 0; p < N_POLICY; p++) {
        float *want = whole(&bench, POLICY[p]), *got = room(&bench);
        struct memory *memory = new_memory(&bench, POLICY[p]);

        pass_set_piece(bench.workspace, 1);
        feed(&bench, NULL, memory, N_TOKEN, N_TOKEN, got);
        assert_same(&bench, want, got, POLICY[p], "a slice");
        pass_set_piece(bench.workspace, PASS_PIECE_FMA);
        memory_destroy(memory);
        free(want);
        free(got);
    }
    close_bench(&bench);
}

Test(policies, e7_threads_change_nothing)
{
    struct bench bench = open_bench(DIR);

    for (size_t p = 0; p < N_POLICY; p++) {
        float *want = whole(&bench, POLICY[p]), *got = room(&bench);

        for (uint32_t n_thread = 1; n_thread <= 3; n_thread++) {
            struct memory *memory = new_memory(&bench, POLICY[p]);
            struct pool *pool;

            cr_assert_eq(pool_create(n_thread, &pool), STATUS_OK);
            feed(&bench, pool, memory, N_TOKEN, 150, got);
            assert_same(&bench, want, got, POLICY[p], "a thread");
            pool_destroy(pool);
            memory_destroy(memory);
        }
        free(want);
        free(got);
    }
    close_bench(&bench);
}

/* Beside a session under another policy, and one that sees all. */
Test(policies, e1_others_in_the_batch_change_nothing)
{
    struct bench bench = open_bench(DIR);
    float *full = whole(&bench, "full");

    for (size_t p = 0; p < N_POLICY; p++) {
        const char *text[3] = {"full", POLICY[p], POLICY[(p + 1) % N_POLICY]};
        float *want = whole(&bench, text[1]), *other = whole(&bench, text[2]);
        float *got[3];
        struct part part[3];
        uint32_t at = 0;

        for (uint32_t i = 0; i < 3; i++) {
            got[i] = room(&bench);
            part[i].memory = new_memory(&bench, text[i]);
        }
        for (uint32_t n = 1; at < N_TOKEN; at += n) { /* grows: 1, 4, 7, ... */
            n = at ? n + 3 : n;
            n = n < N_TOKEN - at ? n : N_TOKEN - at;
            for (uint32_t i = 0; i < 3; i++)
                n = rows(part[i].memory, n);
            for (uint32_t i = 0; i < 3; i++) {
                part[i].token = bench.token + at;
                part[i].n = n;
                part[i].out = got[i] + (size_t)at * bench.n_vocab;
            }
            step(&bench, NULL, part, 3);
        }
        assert_same(&bench, full, got[0], text[0], "a batch");
        assert_same(&bench, want, got[1], text[1], "a batch");
        assert_same(&bench, other, got[2], text[2], "a batch");
        for (uint32_t i = 0; i < 3; i++) {
            memory_destroy(part[i].memory);
            free(got[i]);
        }
        free(want);
        free(other);
    }
    free(full);
    close_bench(&bench);
}

/* Rows [at, at + 70) of a fork that is made at `at`, up to which the memory
 * goes on by itself. */
static void fork_at(struct bench *bench, struct memory *memory, uint32_t at,
                    size_t *shared, float *got)
{
    struct memory *fork;

    feed(bench, NULL, memory, at, N_TOKEN, got);
    cr_assert_eq(memory_fork(memory, shared, &fork), STATUS_OK);
    feed(bench, NULL, fork, at + 70, N_TOKEN, got);
    memory_destroy(fork);
}

/* A fork is what a snapshot keeps: states, the open block, sealed blocks. Made
 * beside each place where something may be decided: the grid, steps of 16, 32
 * and 128 positions, the ends of prompts; and in between. */
Test(policies, a_fork_at_any_phase_goes_on_with_the_same_bits, .timeout = 900)
{
    static const uint32_t PHASE[] = {255, 256, 257, 269, 270, 271, 287, 288,
                                     289, 301, 319, 320, 321, 383, 384, 385};
    struct bench bench = open_bench(DIR);

    for (size_t p = 0; p < N_POLICY; p++) {
        float *want = whole(&bench, POLICY[p]), *got = room(&bench);
        struct memory *memory = new_memory(&bench, POLICY[p]);
        size_t shared = 0;

        memcpy(got, want, (size_t)N_TOKEN * bench.n_vocab * sizeof(float));
        for (size_t i = 0; i < sizeof(PHASE) / sizeof(PHASE[0]); i++) {
            fork_at(&bench, memory, PHASE[i], &shared, got);
            assert_same(&bench, want, got, POLICY[p], "a fork");
        }
        feed(&bench, NULL, memory, N_TOKEN, N_TOKEN, got);
        assert_same(&bench, want, got, POLICY[p], "having forks");
        memory_destroy(memory);
        cr_assert_eq(shared, 0);
        free(want);
        free(got);
    }
    close_bench(&bench);
}

/* Until its prompt ends it does not matter where that will be. */
Test(policies, snapkv_learns_of_its_end_when_that_is_near)
{
    struct bench bench = open_bench(DIR);
    float *want = whole(&bench, "snapkv:window=64:pick=64:end=270");
    float *got = room(&bench);
    struct memory *memory = new_memory(&bench, "snapkv:window=64:pick=64");

    feed(&bench, NULL, memory, 269, 100, got);
    memory_end_prompt(memory, 270);
    feed(&bench, NULL, memory, N_TOKEN, 100, got);
    assert_same(&bench, want, got, "snapkv", "a late end");
    memory_destroy(memory);
    free(want);
    free(got);
    close_bench(&bench);
}

/* ------------------------------------------------------------- identities */

Test(policies, one_that_leaves_nothing_out_is_full)
{
    static const char *const WIDE[] = {
        "window:window=448",
        "window:sink=448:window=0",
        "window:sink=256:window=192:keys=true",
        "infllm:window=448",
        "infllm:sink=0:window=0:pick=448:step=1:keys=true",
        "infllm:sink=64:window=64:pick=384:keys=rank",
        "quest:sink=0:window=0:pick=512:step=64",
        "quest:sink=64:window=128:pick=512:step=8:keys=rank",
        "recycle:sink=0:window=0:pick=512:step=8:reuse=16",
        "snapkv:window=0:pick=256:end=300", /* all blocks below its end */
        "snapkv:window=448:pick=0:end=300",
        "snapkv:window=64:pick=64:end=460",
        "snapkv:window=64:pick=64",
        "sirllm:window=448:turn=none",
        "sirllm:sink=0:window=0:pick=448:decay=50:turn=419",
        "sirllm:sink=64:window=64:pick=384:keys=true:turn=none",
    };
    struct bench bench = open_bench(DIR);
    float *full = whole(&bench, "full");

    for (size_t i = 0; i < sizeof(WIDE) / sizeof(WIDE[0]); i++) {
        float *got = whole(&bench, WIDE[i]);

        assert_same(&bench, full, got, WIDE[i], "not being full");
        free(got);
    }
    free(full);
    close_bench(&bench);
}

/* As a base whose choice is made for every step; with more steps to a choice,
 * as one whose steps are longer, where both add up the same queries. */
Test(policies, a_recycled_choice_is_that_of_its_base)
{
    static const char *const PAIR[][2] = {
        {"recycle:sink=64:window=64:pick=64:step=16:reuse=1",
         "quest:sink=64:window=64:pick=64:step=16"},
        {"recycle:base=infllm:sink=0:window=64:pick=64:step=4:reuse=1",
         "infllm:sink=0:window=64:pick=64:step=4"},
        {"recycle:sink=0:window=0:pick=64:step=1:reuse=16",
         "quest:sink=0:window=0:pick=64:step=16"},
        {"recycle:sink=0:window=0:pick=64:step=2:reuse=8:keys=far",
         "recycle:sink=0:window=0:pick=64:step=4:reuse=4:keys=far"},
    };
    struct bench bench = open_bench(DIR);

    for (size_t i = 0; i < sizeof(PAIR) / sizeof(PAIR[0]); i++) {
        float *want = whole(&bench, PAIR[i][1]);
        float *got = whole(&bench, PAIR[i][0]);

        assert_same(&bench, want, got, PAIR[i][0], "not being its base");
        free(want);
        free(got);
    }
    close_bench(&bench);
}

/* Without turns nothing shrinks; nothing that leaves the window is kept if
 * nothing is to be. */
Test(policies, sirllm_without_turns_or_picks_is_simpler)
{
    static const char *const PAIR[][2] = {
        {"sirllm:sink=0:window=64:pick=64:decay=100:turn=419",
         "sirllm:sink=0:window=64:pick=64:decay=0:turn=none"},
        {"sirllm:sink=0:window=64:pick=64:decay=50:turn=4000", /* no token is */
         "sirllm:sink=0:window=64:pick=64:decay=100:turn=none"},
        {"sirllm:sink=64:window=128:pick=0:decay=50:turn=419",
         "window:sink=64:window=128"},
    };
    struct bench bench = open_bench(DIR);

    for (size_t i = 0; i < sizeof(PAIR) / sizeof(PAIR[0]); i++) {
        float *want = whole(&bench, PAIR[i][1]);
        float *got = whole(&bench, PAIR[i][0]);

        assert_same(&bench, want, got, PAIR[i][0], PAIR[i][1]);
        free(want);
        free(got);
    }
    close_bench(&bench);
}

/* ------------------------------------------------- what sirllm has measured */

/* -log P of each token, by the logits of the row before it. */
static void measure(const struct bench *bench, const float *logit,
                    double surprise[N_TOKEN])
{
    surprise[0] = 0.0;
    for (uint32_t t = 1; t < N_TOKEN; t++) {
        const float *x = logit + (size_t)(t - 1) * bench->n_vocab;
        double sum = 0.0;

        for (uint32_t i = 0; i < bench->n_vocab; i++)
            sum += exp((double)x[i] - (double)x[bench->token[t]]);
        surprise[t] = log(sum);
    }
}

/* Of a block, when the tokens below `end` are over and the turns that have
 * ended among them have left half. */
static double weight_of(const struct bench *bench, const double *surprise,
                        uint32_t block, uint32_t end)
{
    double sum = 0.0;

    for (uint32_t t = block * GRID; t < end; t++) {
        sum += t / GRID == block ? surprise[t] : 0.0;
        sum *= bench->token[t] == 928 ? 0.5 : 1.0;
    }
    return sum;
}

/* The two heaviest of blocks [1, n), by trying all pairs. */
static void heaviest(const double *weight, uint32_t n, uint32_t out[2])
{
    double most = -1.0, second = -1.0;

    for (uint32_t a = 1; a < n; a++)
        for (uint32_t b = a + 1; b < n; b++) {
            const double sum = weight[a] + weight[b];

            second = sum > most ? most : fmax(second, sum);
            if (sum > most) {
                out[0] = a;
                out[1] = b;
            }
            most = fmax(most, sum);
        }
    cr_assert_gt(most, second + 1e-3, "a draw: this would judge nothing");
}

static const float *field_of(const struct memory *memory, uint32_t layer,
                             const char *name)
{
    const struct mixer_plan *plan = memory_plan(memory, layer);
    const char *state = memory_layers(memory)[layer].state;
    uint32_t i = 0;

    while (i < plan->n_field && strcmp(plan->field[i].name, name) != 0)
        i++;
    cr_assert_lt(i, plan->n_field, "layer %u has no %s", layer, name);
    return (const float *)(const void *)(state + plan->field[i].offset);
}

/* Policy sink=64:window=64:pick=128, of which nothing is dropped at first. */
static void assert_kept(const struct bench *bench, const struct memory *memory,
                        const double *surprise)
{
    const uint32_t chunk = (uint32_t)memory_position(memory) / GRID;
    const uint32_t n = chunk > 1 ? chunk - 1 : 0; /* have left the window */
    const uint32_t n_kept = n < 1 ? 0 : n < 3 ? n - 1 : 2;
    double weight[N_TOKEN / GRID + 1];
    uint32_t want[2] = {1, 2};

    for (uint32_t b = 0; b < n; b++)
        weight[b] = weight_of(bench, surprise, b, n * GRID);
    if (n > 3)
        heaviest(weight, n, want);
    for (uint32_t layer = 3; layer < 8; layer += 4) {
        const uint32_t *kept = view_pick(memory_plan(memory, layer),
                                         memory_layers(memory)[layer].state);
        const float *got = field_of(memory, layer, "weight");

        cr_assert_eq(kept[0], n_kept, "chunk %u: %u", chunk, kept[0]);
        for (uint32_t i = 0; i < n_kept; i++) {
            cr_assert_eq(kept[1 + i], want[i], "chunk %u: %u, not %u", chunk,
                         kept[1 + i], want[i]);
            cr_assert_float_eq((double)got[i], weight[want[i]],
                               1e-4 * weight[want[i]]);
        }
    }
}

/* By the logits that the session itself gave, in passes that end anywhere. */
Test(policies, sirllm_keeps_what_its_own_logits_find_surprising)
{
    struct bench bench = open_bench(TINY);
    const char *text = "sirllm:sink=64:window=64:pick=128:decay=50:turn=928";
    float *out = whole(&bench, text);
    double surprise[N_TOKEN];

    measure(&bench, out, surprise);
    for (uint32_t cut = 17; cut < 140; cut += 37) {
        struct memory *memory = new_memory(&bench, text);

        for (uint32_t at = cut; at < N_TOKEN; at += cut) {
            feed(&bench, NULL, memory, at, cut, out);
            assert_kept(&bench, memory, surprise);
        }
        memory_destroy(memory);
    }
    free(out);
    close_bench(&bench);
}

/* Nobody asked for logits: the head runs all the same. */
Test(policies, sirllm_measures_where_no_logits_are_wanted)
{
    struct bench bench = open_bench(TINY);
    const char *text = "sirllm:sink=0:window=64:pick=64:decay=50:turn=928";
    float *want = whole(&bench, text), *got = room(&bench);
    struct memory *memory = new_memory(&bench, text);

    memcpy(got, want, (size_t)N_TOKEN * bench.n_vocab * sizeof(float));
    for (uint32_t at; (at = (uint32_t)memory_position(memory)) < 400;) {
        const uint32_t n = rows(memory, at == 0 ? 1 : 400 - at);
        const struct span span = {.n_row = n,
                                  .position = at,
                                  .layer = memory_layers(memory),
                                  .policy = memory_policy(memory)};

        cr_assert_eq(memory_reserve(memory, at + n), STATUS_OK);
        (void)model_forward(bench.model, NULL, bench.workspace,
                            &(struct batch){.token = bench.token + at,
                                            .n_row = n,
                                            .span = &span,
                                            .n_span = 1});
        memory_advance(memory, n);
    }
    feed(&bench, NULL, memory, N_TOKEN, 100, got);
    assert_same(&bench, want, got, text, "no logits");
    memory_destroy(memory);
    free(want);
    free(got);
    close_bench(&bench);
}

/* What would make the tests above pass for nothing: each leaves something out,
 * but only where there is something, and no two leave out the same. */
Test(policies, each_sees_less_than_full_and_its_own)
{
    struct bench bench = open_bench(DIR);
    float *out[N_POLICY + 1];

    out[N_POLICY] = whole(&bench, "full");
    for (size_t p = 0; p < N_POLICY; p++) {
        uint32_t t;

        out[p] = whole(&bench, POLICY[p]);
        t = difference(&bench, out[N_POLICY], out[p]);
        cr_assert(t >= 64 && t < 402, "%s: differs from row %u", POLICY[p], t);
        for (size_t q = 0; q < p; q++)
            cr_assert_lt(difference(&bench, out[q], out[p]), N_TOKEN);
    }
    for (size_t p = 0; p <= N_POLICY; p++)
        free(out[p]);
    close_bench(&bench);
}
