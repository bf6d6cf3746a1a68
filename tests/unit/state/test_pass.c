/*
 * Sliced passes, judged by bits against one call of model_forward(): a prompt
 * in slices that end wherever the clock runs out, in parts of any size, while
 * another session decodes in between; and several prompts of one pass, which
 * threads take apart or side by side. And that a slice is bounded:
 * multiply-adds are counted by a backend that only counts and passes on.
 */
#include "model/pass.h"
#include "model/safetensors.h"
#include "state/memory.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 203u
#define N_CUT 2u /* passes of the prompt: their ends */
#define N_OTHER 40u
#define N_STEP 400u /* decode steps of the other session at most */
static const uint32_t CUT[N_CUT] = {70, N_TOKEN};

static const char *const DIR[] = {
    "tests/golden/qwen3_5_text", "tests/golden/qwen3",
    "tests/golden/llama",        "tests/golden/qwen3_5_moe_text",
    "tests/golden/qwen3_moe",    "tests/golden/qwen3_next",
};
#define N_DIR (sizeof(DIR) / sizeof(DIR[0]))

static uint64_t random_next(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *state >> 33;
}

/* A clock on which a look takes a microsecond. */
struct ticking {
    struct clock base;
    _Atomic uint64_t *us;
};

static uint64_t tick(const struct clock *clock)
{
    return ++*((const struct ticking *)clock)->us;
}

/* ------------------------------------------------------------ one session */

struct bench {
    struct model *model;
    uint32_t n_vocab;
    uint32_t token[N_TOKEN];
};

struct seat {
    struct memory *memory;
    struct workspace *workspace;
};

static struct bench open_bench(const char *dir, const struct backend *backend)
{
    const struct model_options options = {.backend = backend};
    struct bench bench = {0};
    struct safetensors *file;
    const struct tensor *ids;
    char path[256];

    cr_assert_eq(model_load(dir, &options, &bench.model), STATUS_OK, "%s",
                 status_reason());
    bench.n_vocab = model_config(bench.model)->n_vocab;
    (void)snprintf(path, sizeof(path), "%s/golden.safetensors", dir);
    cr_assert_eq(safetensors_open(path, &file), STATUS_OK);
    ids = safetensors_find(file, "input_ids");
    cr_assert(ids && ids->dim[0] == N_TOKEN);
    memcpy(bench.token, ids->data, sizeof(bench.token));
    safetensors_close(file);
    return bench;
}

static struct seat take_seat(const struct bench *bench)
{
    struct seat seat;

    cr_assert_eq(memory_create(bench->model, &seat.memory), STATUS_OK);
    cr_assert_eq(
        workspace_create(bench->model, N_TOKEN, 1, N_TOKEN, &seat.workspace),
        STATUS_OK);
    return seat;
}

static void leave_seat(struct seat *seat)
{
    memory_destroy(seat->memory);
    workspace_destroy(seat->workspace);
}

/* A batch of the seat's next rows; it borrows what must outlive the pass. */
struct ask {
    struct span span;
    uint32_t row[N_TOKEN];
    struct batch batch;
};

/* The logits of all rows but the first `skip` are wanted. */
static void ask_for(struct seat *seat, const uint32_t *token, uint32_t n,
                    uint32_t skip, struct ask *ask)
{
    uint64_t position = memory_position(seat->memory);

    cr_assert_eq(memory_reserve(seat->memory, position + n), STATUS_OK);
    for (uint32_t i = 0; i + skip < n; i++)
        ask->row[i] = i + skip;
    ask->span = (struct span){
        .n_row = n, .position = position, .layer = memory_layers(seat->memory)};
    ask->batch = (struct batch){.token = token,
                                .n_row = n,
                                .span = &ask->span,
                                .n_span = 1,
                                .logit_row = ask->row,
                                .n_logit = n - skip};
}

/* n rows in one call; their logits go to out unless NULL. */
static void feed(const struct bench *bench, struct seat *seat,
                 const uint32_t *token, uint32_t n, float *out)
{
    struct ask ask;
    const float *logit;

    ask_for(seat, token, n, 0, &ask);
    logit = model_forward(bench->model, NULL, seat->workspace, &ask.batch);
    memory_advance(seat->memory, n);
    if (out)
        memcpy(out, logit, (size_t)n * bench->n_vocab * sizeof(float));
}

/* The other session: token i of its endless text. */
static uint32_t other_token(const struct bench *bench, uint32_t i)
{
    return bench->token[(i * 7 + 3) % N_TOKEN];
}

static void open_other(const struct bench *bench, struct seat *seat)
{
    uint32_t token[N_OTHER];

    *seat = take_seat(bench);
    for (uint32_t i = 0; i < N_OTHER; i++)
        token[i] = other_token(bench, i);
    feed(bench, seat, token, N_OTHER, NULL);
}

/* ------------------------------------------------------------------- tests */

/* What both sessions have to give: [N_TOKEN] and [n_step] rows of logits. */
struct want {
    float *prompt, *other;
    uint32_t n_step;
};

static void step_other(const struct bench *bench, struct seat *seat,
                       uint32_t step, float *out)
{
    const uint32_t token = other_token(bench, N_OTHER + step);

    feed(bench, seat, &token, 1, out);
}

static struct want expect(const struct bench *bench)
{
    size_t row = bench->n_vocab * sizeof(float);
    struct want want = {.prompt = malloc(N_TOKEN * row),
                        .other = malloc(N_STEP * row)};
    struct seat seat = take_seat(bench), other;

    feed(bench, &seat, bench->token, N_TOKEN, want.prompt);
    leave_seat(&seat);
    open_other(bench, &other);
    for (want.n_step = 0; want.n_step < N_STEP; want.n_step++)
        step_other(bench, &other, want.n_step,
                   want.other + (size_t)want.n_step * bench->n_vocab);
    leave_seat(&other);
    return want;
}

/* The prompt in slices, the other session stepping between them. */
static void run_sliced(const struct bench *bench, struct pool *pool,
                       const struct want *want, uint64_t seed)
{
    const size_t row = bench->n_vocab * sizeof(float);
    struct seat seat = take_seat(bench), other;
    float *logit = malloc(row);
    _Atomic uint64_t us = 0;
    const struct ticking clock = {.base = {.now_us = tick}, .us = &us};
    uint32_t n_slice = 0, first = 0;

    open_other(bench, &other);
    for (uint32_t c = 0; c < N_CUT; first = CUT[c++]) {
        struct ask ask;
        double before = 0.0;
        bool is_done = false;

        ask_for(&seat, bench->token + first, CUT[c] - first, 1, &ask);
        pass_begin(seat.workspace, &ask.batch);
        while (!is_done) {
            struct pass_slice slice = {.clock = &clock.base,
                                       .until_us = us + random_next(&seed) % 6};
            bool is_whole;

            cr_assert(pass_is_under_way(seat.workspace));
            pass_set_piece(seat.workspace, UINT64_C(1)
                                               << random_next(&seed) % 24);
            is_whole = random_next(&seed) % 128 == 0;
            is_done = pass_run(seat.workspace, pool, is_whole ? NULL : &slice);
            cr_assert_geq(pass_progress(seat.workspace), before);
            before = pass_progress(seat.workspace);
            cr_assert_leq(before, 1.0);
            if (n_slice < want->n_step && random_next(&seed) % 2) {
                step_other(bench, &other, n_slice, logit);
                cr_assert_arr_eq(
                    logit, want->other + (size_t)n_slice * bench->n_vocab, row);
                n_slice++;
            }
        }
        cr_assert(!pass_is_under_way(seat.workspace));
        cr_assert_eq(before, 1.0);
        memory_advance(seat.memory, CUT[c] - first);
        cr_assert_arr_eq(pass_logits(seat.workspace),
                         want->prompt + (size_t)(first + 1) * bench->n_vocab,
                         (CUT[c] - first - 1) * row);
    }
    cr_assert_geq(n_slice, 4);
    free(logit);
    leave_seat(&seat);
    leave_seat(&other);
}

Test(pass, slices_give_the_bits_of_one_forward)
{
    const struct backend *backend;
    struct pool *pool;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    cr_assert_eq(pool_create(2, &pool), STATUS_OK);
    for (size_t i = 0; i < N_DIR; i++) {
        struct bench bench = open_bench(DIR[i], backend);
        struct want want = expect(&bench);

        for (uint64_t seed = 0; seed < 6; seed++)
            run_sliced(&bench, seed % 2 ? pool : NULL, &want, 10 * i + seed);
        free(want.prompt);
        free(want.other);
        model_destroy(bench.model);
    }
    pool_destroy(pool);
}

/* ------------------------------------------------------- how long it lasts */

static bool calls(const void *caller)
{
    return *(const bool *)caller;
}

/* A look at the clock takes a microsecond, and there is one behind each part.
 */
Test(pass, a_slice_lingers_while_nobody_calls)
{
    const struct backend *backend;
    _Atomic uint64_t us = 0;
    const struct ticking clock = {.base = {.now_us = tick}, .us = &us};
    bool is_calling = false;
    struct pass_slice slice = {.clock = &clock.base,
                               .until_us = 3,
                               .linger_us = 4,
                               .is_called = calls,
                               .caller = &is_calling};
    struct bench bench;
    struct seat seat;
    struct ask ask;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    bench = open_bench(DIR[0], backend);
    seat = take_seat(&bench);
    ask_for(&seat, bench.token, N_TOKEN, N_TOKEN - 1, &ask);
    pass_set_piece(seat.workspace, 1);
    pass_begin(seat.workspace, &ask.batch);
    cr_assert_not(pass_run(seat.workspace, NULL, &slice));
    cr_assert_eq(us, 7);
    is_calling = true;
    slice.until_us = 9;
    cr_assert_not(pass_run(seat.workspace, NULL, &slice));
    cr_assert_eq(us, 9);
    cr_assert_not(pass_run(seat.workspace, NULL, &slice)); /* one part */
    cr_assert_eq(us, 10);
    slice.is_called = NULL;
    slice.until_us = 12;
    cr_assert_not(pass_run(seat.workspace, NULL, &slice));
    cr_assert_eq(us, 12);
    cr_assert(pass_run(seat.workspace, NULL, NULL));
    leave_seat(&seat);
    model_destroy(bench.model);
}

/* ------------------------------------------------------------ side by side */

#define N_PROMPT 3u
/* Of each prompt: what was there before, and what the pass brings. */
static const uint32_t BEFORE[N_PROMPT] = {0, 70, 0};
static const uint32_t BROUGHT[N_PROMPT] = {N_TOKEN, N_TOKEN - 70, 130};

static void take_seats(const struct bench *bench, struct seat seat[N_PROMPT])
{
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        cr_assert_eq(memory_create(bench->model, &seat[i].memory), STATUS_OK);
        cr_assert_eq(workspace_create(bench->model, N_PROMPT * N_TOKEN,
                                      N_PROMPT, N_TOKEN, &seat[i].workspace),
                     STATUS_OK);
        if (BEFORE[i])
            feed(bench, &seat[i], bench->token, BEFORE[i], NULL);
    }
}

/* The prompts as one batch; logits of the last row of each from `first` on. */
struct together {
    uint32_t token[N_PROMPT * N_TOKEN], row[N_PROMPT];
    struct span span[N_PROMPT];
    struct batch batch;
};

static void put_together(const struct bench *bench, struct seat *seat,
                         uint32_t first, struct together *it)
{
    uint32_t n_row = 0;

    for (uint32_t i = 0; i < N_PROMPT; i++) {
        const uint64_t position = memory_position(seat[i].memory);

        cr_assert_eq(memory_reserve(seat[i].memory, position + BROUGHT[i]),
                     STATUS_OK);
        it->span[i] = (struct span){.first_row = n_row,
                                    .n_row = BROUGHT[i],
                                    .position = position,
                                    .layer = memory_layers(seat[i].memory)};
        memcpy(it->token + n_row, bench->token + BEFORE[i],
               BROUGHT[i] * sizeof(*it->token));
        n_row += BROUGHT[i];
        it->row[i] = n_row - 1;
    }
    it->batch = (struct batch){.token = it->token,
                               .n_row = n_row,
                               .span = it->span,
                               .n_span = N_PROMPT,
                               .logit_row = it->row + first,
                               .n_logit = N_PROMPT - first};
}

static const struct backend *counted;
static _Atomic uint32_t n_embed;

/* Who takes prompts apart is alone: it has no pool. */
static void count_embed(struct pool *pool, const struct embed_args *a)
{
    n_embed += pool == NULL;
    counted->embed(pool, a);
}

/* A slice that may linger goes on until somebody calls: here at once. */
static bool is_called(const void *caller)
{
    (void)caller;
    return true;
}

/* Who computes, in pieces of n_fma, and whose logits are wanted. */
struct way {
    struct pool *pool;
    uint64_t n_fma;
    uint32_t first;
    bool is_apart; /* what came of it */
};

static bool run_slice(const struct seat *seat, struct way *way,
                      const struct pass_slice *slice)
{
    const uint32_t before = n_embed;
    const bool is_done = pass_run(seat->workspace, way->pool, slice);

    way->is_apart |= n_embed > before;
    return is_done;
}

/* The prompts in one pass of the first seat's workspace, in slices between
 * which another session decodes; then one row more of each, which reads what
 * the pass has left. */
static void run_together(const struct bench *bench, struct way *way,
                         const struct want *want, float *out)
{
    const size_t n_vocab = bench->n_vocab;
    struct seat seat[N_PROMPT], other;
    struct together it;
    float *logit = malloc(n_vocab * sizeof(*logit));
    _Atomic uint64_t us = 0;
    const struct ticking clock = {.base = {.now_us = tick}, .us = &us};
    struct pass_slice slice = {.clock = &clock.base,
                               .until_us = 2,
                               .linger_us = UINT64_MAX,
                               .is_called = is_called};
    uint32_t n_slice = 0;

    take_seats(bench, seat);
    open_other(bench, &other);
    put_together(bench, seat, way->first, &it);
    pass_set_piece(seat[0].workspace, way->n_fma);
    pass_begin(seat[0].workspace, &it.batch);
    while (!run_slice(&seat[0], way, &slice)) {
        cr_assert_lt(pass_progress(seat[0].workspace), 1.0);
        slice.until_us = us + 2;
        if (n_slice == want->n_step)
            continue;
        step_other(bench, &other, n_slice, logit);
        cr_assert_arr_eq(logit, want->other + n_slice++ * n_vocab,
                         n_vocab * sizeof(*logit));
    }
    memcpy(out + way->first * n_vocab, pass_logits(seat[0].workspace),
           it.batch.n_logit * n_vocab * sizeof(*out));
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        memory_advance(seat[i].memory, BROUGHT[i]);
        feed(bench, &seat[i], bench->token, 1, out + (N_PROMPT + i) * n_vocab);
        leave_seat(&seat[i]);
    }
    leave_seat(&other);
    free(logit);
}

/* The same, each prompt alone and whole. */
static void run_apart(const struct bench *bench, float *out)
{
    const size_t n_vocab = bench->n_vocab;
    float *all = malloc(N_TOKEN * n_vocab * sizeof(*all));
    struct seat seat[N_PROMPT];

    take_seats(bench, seat);
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        feed(bench, &seat[i], bench->token + BEFORE[i], BROUGHT[i], all);
        memcpy(out + i * n_vocab, all + (BROUGHT[i] - 1) * n_vocab,
               n_vocab * sizeof(*out));
        feed(bench, &seat[i], bench->token, 1, out + (N_PROMPT + i) * n_vocab);
        leave_seat(&seat[i]);
    }
    free(all);
}

/*
 * Pieces of all sizes. Two and three threads take the prompts apart where the
 * model has no experts; four of them have too few, and with pieces of some
 * sizes prompts lie side by side (model/batch.h).
 */
static void check_together(const struct bench *bench, uint32_t n_thread)
{
    const size_t n_vocab = bench->n_vocab, n = 2 * N_PROMPT * n_vocab;
    float *alone = malloc(n * sizeof(*alone)), *got = malloc(n * sizeof(*got));
    struct want want = expect(bench);
    struct way way;

    cr_assert_eq(pool_create(n_thread, &way.pool), STATUS_OK);
    run_apart(bench, alone);
    for (uint32_t bit = 12; bit < 26; bit++) {
        way.n_fma = UINT64_C(1) << bit;
        way.first = bit % 2;
        way.is_apart = false;
        run_together(bench, &way, &want, got);
        cr_assert_arr_eq(got + way.first * n_vocab, alone + way.first * n_vocab,
                         (n - way.first * n_vocab) * sizeof(*got),
                         "%u threads, 2^%u", n_thread, bit);
        cr_assert_eq(way.is_apart, n_thread <= N_PROMPT &&
                                       !model_config(bench->model)->n_expert);
    }
    pool_destroy(way.pool);
    free(alone);
    free(got);
    free(want.prompt);
    free(want.other);
}

Test(pass, prompts_of_one_pass_have_the_bits_of_each_alone)
{
    struct backend counting;

    cr_assert_eq(backend_find("auto", &counted), STATUS_OK);
    counting = *counted;
    counting.embed = count_embed;
    for (size_t i = 0; i < N_DIR; i++) {
        struct bench bench = open_bench(DIR[i], &counting);

        for (uint32_t n_thread = 2; n_thread <= 4; n_thread++)
            check_together(&bench, n_thread);
        model_destroy(bench.model);
    }
}

/* ------------------------------------------------------- a slice is bounded */

static double n_fma, attend_fma;

static void count_linear(struct pool *pool, const struct linear_args *a)
{
    n_fma += (double)a->n_row * a->w->n_in * a->w->n_out;
    counted->linear(pool, a);
}

static void count_linear_add(struct pool *pool, const struct linear_args *a)
{
    n_fma += (double)a->n_row * a->w->n_in * a->w->n_out;
    counted->linear_add(pool, a);
}

static void count_ffn_add(struct pool *pool, const struct ffn_args *a)
{
    n_fma += 3.0 * a->n_row * a->gate->n_in * a->gate->n_out;
    counted->ffn_add(pool, a);
}

static void count_attend(struct pool *pool, const struct attend_args *a)
{
    for (uint32_t i = 0; i < a->n_span; i++) {
        const struct attend_span *span = &a->span[i];
        uint64_t end = (span->position + span->n_row - 1) / KV_BLOCK + 1;

        if (a->end_block && a->end_block < end)
            end = a->end_block;
        if (end > a->first_block)
            attend_fma += (double)(end - a->first_block) * KV_BLOCK *
                          span->n_row * 2 * a->shape.n_head * a->shape.d_head;
    }
    counted->attend(pool, a);
}

/* Of PASS_ROWS rows: what a block of keys takes. */
static double block_fma(const struct model *model)
{
    const struct config *c = model_config(model);

    return 2.0 * c->n_head * c->d_head * KV_BLOCK * PASS_ROWS;
}

/* Of PASS_ROWS rows: what the dearest half layer or the head takes. */
static double dearest_half(const struct model *model)
{
    const struct config *c = model_config(model);
    double most = (double)c->hidden * c->n_vocab;

    for (uint32_t i = 0; i < c->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);

        if (plan->row_flops / 2 > most)
            most = plan->row_flops / 2;
    }
    if (3.0 * c->hidden * c->n_ff > most)
        most = 3.0 * c->hidden * c->n_ff;
    return most * PASS_ROWS;
}

Test(pass, a_slice_is_bounded)
{
    static const uint64_t PIECE[] = {1, 1000000, 10000000};
    struct backend counting;
    _Atomic uint64_t us = 0;
    const struct ticking clock = {.base = {.now_us = tick}, .us = &us};

    cr_assert_eq(backend_find("auto", &counted), STATUS_OK);
    counting = *counted;
    counting.linear = count_linear;
    counting.linear_add = count_linear_add;
    counting.ffn_add = count_ffn_add;
    counting.attend = count_attend;
    for (size_t i = 0; i < 3; i++) {
        struct bench bench = open_bench(DIR[i], &counting);

        for (size_t p = 0; p < 3; p++) {
            double least = dearest_half(bench.model), most = 0.0, all = 0.0;
            double block = block_fma(bench.model);
            double limit = (double)PIECE[p] > least ? (double)PIECE[p] : least;
            struct seat seat = take_seat(&bench);
            struct ask ask;
            const struct pass_slice slice = {.clock = &clock.base};
            bool is_done = false;

            ask_for(&seat, bench.token, N_TOKEN, N_TOKEN - 1, &ask);
            pass_set_piece(seat.workspace, PIECE[p]);
            pass_begin(seat.workspace, &ask.batch);
            while (!is_done) {
                n_fma = attend_fma = 0.0;
                is_done = pass_run(seat.workspace, NULL, &slice);
                most = n_fma > most ? n_fma : most;
                all += n_fma;
                cr_assert_leq(attend_fma, (double)PIECE[p] > block
                                              ? (double)PIECE[p]
                                              : block);
            }
            cr_assert_leq(most, 2.0 * limit);
            cr_assert_geq(all, 8.0 * least); /* there was something to cut */
            leave_seat(&seat);
        }
        model_destroy(bench.model);
    }
}
