/*
 * The one arithmetic (docs/NUMERICS.md), judged by bits: logits of every row
 * and all that the layers remember, over six architectures and every backend
 * that this machine has, and through a device ("apart"). E1 batch, E2 cut, E3
 * phase, E7 threads, and equality between backends. These are laws; that the
 * numbers are also right is judged by the golden.* tests.
 */
#include "state/memory.h"

#include "kernels/apart/apart.h"
#include "model/safetensors.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 203u     /* of each golden's prompt: three grid points */
#define N_TOKEN_REF 141u /* for the slow backend and rounded kinds: two */
#define N_SESSION 9u
#define N_STEP 3u /* decode steps behind a prompt in E1 */

static const char *const DIR[] = {
    "tests/golden/qwen3_5_text", "tests/golden/qwen3",
    "tests/golden/llama",        "tests/golden/qwen3_5_moe_text",
    "tests/golden/qwen3_next",   "tests/golden/qwen3_moe",
};
#define N_DIR (sizeof(DIR) / sizeof(DIR[0]))

struct bench {
    struct model *model;
    struct workspace *workspace;
    uint32_t n_vocab, n_token;
    uint32_t token[N_TOKEN];
};

static void read_prompt(const char *dir, uint32_t *token)
{
    char path[256];
    struct safetensors *file;
    const struct tensor *ids;

    (void)snprintf(path, sizeof(path), "%s/golden.safetensors", dir);
    cr_assert_eq(safetensors_open(path, &file), STATUS_OK);
    ids = safetensors_find(file, "input_ids");
    cr_assert(ids && ids->dim[0] == N_TOKEN);
    memcpy(token, ids->data, N_TOKEN * sizeof(*token));
    safetensors_close(file);
}

/* What products may be, as the file has them first. */
static const struct kind {
    enum weight_format format;
    enum arithmetic arithmetic;
} KIND[] = {
    {WEIGHT_AUTO, ARITHMETIC_FP32}, {WEIGHT_BF16, ARITHMETIC_FP32},
    {WEIGHT_BF16, ARITHMETIC_PAIR}, {WEIGHT_BF16, ARITHMETIC_TILE},
    {WEIGHT_W8, ARITHMETIC_FP32},   {WEIGHT_W8, ARITHMETIC_PAIR},
    {WEIGHT_W8, ARITHMETIC_TILE},   {WEIGHT_W8A8, ARITHMETIC_FP32},
    {WEIGHT_W8A8, ARITHMETIC_PAIR},
};
#define N_KIND (sizeof(KIND) / sizeof(KIND[0]))

/* Other kinds than the first pass through one dense model and one of experts,
 * which have every product that there is. */
static bool is_visited(size_t kind, size_t dir)
{
    return kind == 0 || dir == 0 || dir == 3;
}

static struct bench open_bench(const char *dir, const struct backend *backend,
                               struct kind kind)
{
    const struct model_options options = {.backend = backend,
                                          .arithmetic = kind.arithmetic,
                                          .weight_format = kind.format};
    struct bench bench = {0};

    cr_assert_eq(model_load(dir, &options, &bench.model), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(
        workspace_create(bench.model, 1024, N_SESSION, 1024, &bench.workspace),
        STATUS_OK);
    bench.n_vocab = model_config(bench.model)->n_vocab;
    bench.n_token = strcmp(backend->name, "ref") == 0 || kind.format
                        ? N_TOKEN_REF
                        : N_TOKEN;
    read_prompt(dir, bench.token);
    return bench;
}

static void close_bench(struct bench *bench)
{
    workspace_destroy(bench->workspace);
    model_destroy(bench->model);
}

/*
 * Visit every architecture with every backend that can run here. ref meets
 * other kinds of products where backends are compared, below.
 */
typedef void visit(struct bench *bench);
static void visit_all(visit *visit)
{
    uint32_t n = 0;

    for (const struct backend *const *b = backend_all(); *b; b++) {
        const bool is_ref = strcmp((*b)->name, "ref") == 0;

        for (size_t i = 0; i < N_DIR * N_KIND && (*b)->is_supported(); i++) {
            struct bench bench;

            if (!is_visited(i / N_DIR, i % N_DIR) || (is_ref && i >= N_DIR))
                continue;
            bench = open_bench(DIR[i % N_DIR], *b, KIND[i / N_DIR]);
            visit(&bench);
            close_bench(&bench);
            n++;
        }
    }
    cr_assert_geq(n, N_DIR);
    for (size_t i = 0; i < N_DIR; i++) {
        struct bench bench = open_bench(DIR[i], &backend_apart, KIND[0]);

        visit(&bench);
        close_bench(&bench);
    }
}

/* ------------------------------------------------------------- one session */

static struct memory *new_memory(const struct bench *bench)
{
    struct memory *memory;

    cr_assert_eq(memory_create(bench->model, &memory), STATUS_OK);
    return memory;
}

/* Advance one session by n rows; their logits go to out unless NULL. */
static void feed(struct bench *bench, struct pool *pool, struct memory *memory,
                 const uint32_t *token, uint32_t n, float *out)
{
    const uint64_t position = memory_position(memory);
    uint32_t row[N_TOKEN];
    const float *logit;
    struct span span;

    for (uint32_t i = 0; i < n; i++)
        row[i] = i;
    cr_assert_eq(memory_reserve(memory, position + n), STATUS_OK);
    span = (struct span){
        .n_row = n, .position = position, .layer = memory_layers(memory)};
    logit = model_forward(bench->model, pool, bench->workspace,
                          &(struct batch){.token = token,
                                          .n_row = n,
                                          .span = &span,
                                          .n_span = 1,
                                          .logit_row = row,
                                          .n_logit = n});
    memory_advance(memory, n);
    if (out)
        memcpy(out, logit, (size_t)n * bench->n_vocab * sizeof(float));
}

/*
 * Records of a ring behind the position are left over: their bytes are moot.
 * Two tokens of a rounded ring_u lie side by side.
 */
static void clear_stale(const struct mixer_field *field, uint64_t position,
                        char *bytes)
{
    const bool is_k = strcmp(field->name, "ring_k") == 0;
    const bool is_paired = field->type == FIELD_BF16 && !is_k;
    const uint32_t axis = is_k ? 2 : 1, n_side = is_paired ? 2 : 1;
    size_t outer = 1, inner = field_element_bytes(field->type);
    const size_t element = inner;

    if (strncmp(field->name, "ring_", 5) != 0)
        return;
    cr_assert_eq(field->dim[axis] * n_side, GRID);
    for (uint32_t d = 0; d < field->n_dim; d++) {
        if (d < axis)
            outer *= field->dim[d];
        if (d > axis)
            inner *= field->dim[d];
    }
    for (size_t o = 0; o < outer; o++)
        for (size_t t = position % GRID; t < GRID; t++) {
            char *from = bytes + (o * GRID / n_side + t / n_side) * inner;

            if (!is_paired)
                memset(from, 0, inner);
            else
                for (size_t i = t % 2 * element; i < inner; i += 2 * element)
                    memset(from + i, 0, element);
        }
}

/* The memory's bytes, wherever they lie. */
static void read_bytes(const struct bench *bench, void *to, const void *from,
                       size_t n)
{
    device_read(model_device(bench->model), to, from, n);
    cr_assert_eq(device_wait(model_device(bench->model)), STATUS_OK);
}

/* Digest of everything that the layers remember. */
static struct digest digest_memory(const struct bench *bench,
                                   const struct memory *memory)
{
    const uint64_t position = memory_position(memory);
    struct digest all = {0};

    for (uint32_t i = 0; i < model_config(bench->model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(bench->model, i);
        const struct layer_memory *layer = &memory_layers(memory)[i];
        char *copy = malloc(plan->state_bytes + plan->block_bytes + 1);

        read_bytes(bench, copy, layer->state, plan->state_bytes);
        for (uint32_t f = 0; f < plan->n_field; f++)
            clear_stale(&plan->field[f], position,
                        copy + plan->field[f].offset);
        all = digest_chain(all, copy, plan->state_bytes);
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position;
             b++) {
            read_bytes(bench, copy, memory_block(memory, i, b),
                       plan->block_bytes);
            all = digest_chain(all, copy, plan->block_bytes);
        }
        free(copy);
    }
    return all;
}

/* Logits of all rows and the memory after them. */
struct outcome {
    float *logit; /* [n_token, n_vocab]; owned */
    struct digest memory;
};

/* The prompt in pieces that end at each cut, ascending, then at n_token. */
static struct outcome play(struct bench *bench, struct pool *pool,
                           const uint32_t *cut, uint32_t n_cut)
{
    struct memory *memory = new_memory(bench);
    struct outcome outcome;
    uint32_t done = 0;

    outcome.logit =
        malloc((size_t)bench->n_token * bench->n_vocab * sizeof(float));
    for (uint32_t i = 0; i <= n_cut; i++) {
        const uint32_t end = i < n_cut ? cut[i] : bench->n_token;

        cr_assert(end > done && end <= bench->n_token);
        feed(bench, pool, memory, bench->token + done, end - done,
             outcome.logit + (size_t)done * bench->n_vocab);
        done = end;
    }
    outcome.memory = digest_memory(bench, memory);
    memory_destroy(memory);
    return outcome;
}

static void assert_same(const struct bench *bench, struct outcome a,
                        struct outcome b, const char *what, uint32_t which)
{
    const size_t row_bytes = bench->n_vocab * sizeof(float);

    for (uint32_t t = 0; t < bench->n_token; t++)
        cr_assert(memcmp(a.logit + (size_t)t * bench->n_vocab,
                         b.logit + (size_t)t * bench->n_vocab, row_bytes) == 0,
                  "%s %s: %s %u changes row %u",
                  model_config(bench->model)->model_type,
                  model_backend(bench->model)->name, what, which, t);
    cr_assert(digest_equal(a.memory, b.memory), "%s %s: %s %u: memory differs",
              model_config(bench->model)->model_type,
              model_backend(bench->model)->name, what, which);
}

/* ---------------------------------------------------------------- E2, E3 */

/* Sixteen runs of cuts at four residues each: every position mod 64. */
static void visit_cuts(struct bench *bench)
{
    const struct outcome whole = play(bench, NULL, NULL, 0);
    const bool is_slow = bench->n_token == N_TOKEN_REF;
    bool seen[GRID] = {false};

    for (uint32_t r = 0; r < 16; r += is_slow ? 5 : 1) {
        /* r + 64 is behind the first grid point, and 48 before the second */
        const uint32_t cut[4] = {r + 16, r + 48, r + 64, r + 96};
        const struct outcome parts = play(bench, NULL, cut, 4);

        for (uint32_t i = 0; i < 4; i++)
            seen[cut[i] % GRID] = true;
        assert_same(bench, whole, parts, "cut", r);
        free(parts.logit);
    }
    for (uint32_t i = 0; i < GRID; i++)
        cr_assert(seen[i] || is_slow, "no cut at residue %u", i);
    free(whole.logit);
}

Test(exact, e2_cuts_at_every_position_of_the_grid_change_nothing)
{
    visit_all(visit_cuts);
}

/* One cut at a time too, where the backend is fast enough for it. */
static void visit_single_cuts(struct bench *bench)
{
    const bool is_slow = bench->n_token == N_TOKEN_REF;
    const struct outcome whole = play(bench, NULL, NULL, 0);

    for (uint32_t c = 1; c < bench->n_token; c += is_slow ? 47 : 7) {
        const struct outcome parts = play(bench, NULL, &c, 1);

        assert_same(bench, whole, parts, "single cut", c);
        free(parts.logit);
    }
    free(whole.logit);
}

Test(exact, e2_one_cut_anywhere_changes_nothing)
{
    visit_all(visit_single_cuts);
}

static void visit_phases(struct bench *bench)
{
    const struct outcome whole = play(bench, NULL, NULL, 0);
    struct outcome steps;
    uint32_t cut[N_TOKEN];

    for (uint32_t i = 0; i + 1 < bench->n_token; i++)
        cut[i] = i + 1;
    steps = play(bench, NULL, cut, bench->n_token - 1);
    assert_same(bench, whole, steps, "decode", 0);
    free(steps.logit);
    free(whole.logit);
}

Test(exact, e3_decode_one_by_one_equals_replay_by_prefill)
{
    visit_all(visit_phases);
}

/* --------------------------------------------------------------------- E7 */

static void visit_threads(struct bench *bench)
{
    const struct outcome whole = play(bench, NULL, NULL, 0);
    const uint32_t cut[2] = {1, 70};

    for (uint32_t n_thread = 1; n_thread <= 3; n_thread++) {
        struct pool *pool;
        struct outcome pooled;

        cr_assert_eq(pool_create(n_thread, &pool), STATUS_OK);
        pooled = play(bench, pool, cut, 2);
        assert_same(bench, whole, pooled, "threads", n_thread);
        free(pooled.logit);
        pool_destroy(pool);
    }
    free(whole.logit);
}

Test(exact, e7_the_number_of_threads_changes_nothing)
{
    visit_all(visit_threads);
}

/* --------------------------------------------------------------------- E1 */

/* Session s of E1: its own tokens and its own length. */
static uint32_t length_of(uint32_t s)
{
    return 1 + 13 * s;
}

static uint32_t token_of(const struct bench *bench, uint32_t s, uint32_t i)
{
    return bench->token[(7 * i + 31 * s) % N_TOKEN];
}

struct session {
    struct memory *memory;
    float *logit; /* [length + N_STEP, n_vocab] */
    uint32_t n;
};

static struct session new_session(const struct bench *bench, uint32_t s)
{
    const size_t n_row = length_of(s) + N_STEP;

    return (struct session){.memory = new_memory(bench),
                            .logit =
                                malloc(n_row * bench->n_vocab * sizeof(float))};
}

/* Rows that session s brings to a step: it joins at s % 3, with its prompt. */
static uint32_t wanted_rows(const struct session *session, uint32_t s,
                            uint32_t step)
{
    if (step < s % 3 || session->n == length_of(s) + N_STEP)
        return 0;
    return session->n ? 1 : length_of(s);
}

/* One step for n sessions: prompts beside single tokens. */
static void batch_step(struct bench *bench, struct session *session, uint32_t n,
                       uint32_t first, uint32_t step)
{
    uint32_t token[1024], row[1024], n_row = 0, n_span = 0;
    struct span span[N_SESSION];
    struct session *member[N_SESSION];
    const float *logit;

    for (uint32_t s = 0; s < n; s++) {
        const uint32_t want = wanted_rows(&session[s], first + s, step);

        if (!want)
            continue;
        cr_assert_eq(memory_reserve(session[s].memory, session[s].n + want),
                     STATUS_OK);
        member[n_span] = &session[s];
        span[n_span++] =
            (struct span){.first_row = n_row,
                          .n_row = want,
                          .position = session[s].n,
                          .layer = memory_layers(session[s].memory)};
        for (uint32_t i = 0; i < want; i++, n_row++) {
            token[n_row] = token_of(bench, first + s, session[s].n + i);
            row[n_row] = n_row;
        }
    }
    if (!n_span)
        return;
    logit = model_forward(bench->model, NULL, bench->workspace,
                          &(struct batch){.token = token,
                                          .n_row = n_row,
                                          .span = span,
                                          .n_span = n_span,
                                          .logit_row = row,
                                          .n_logit = n_row});
    for (uint32_t i = 0; i < n_span; i++) {
        memcpy(member[i]->logit + (size_t)member[i]->n * bench->n_vocab,
               logit + (size_t)span[i].first_row * bench->n_vocab,
               (size_t)span[i].n_row * bench->n_vocab * sizeof(float));
        member[i]->n += span[i].n_row;
        memory_advance(member[i]->memory, span[i].n_row);
    }
}

static void play_batch(struct bench *bench, struct session *session, uint32_t n,
                       uint32_t first)
{
    for (uint32_t s = 0; s < n; s++)
        session[s] = new_session(bench, first + s);
    for (uint32_t i = 0; i < 3 + N_STEP; i++)
        batch_step(bench, session, n, first, i);
}

static void drop_sessions(struct session *session, uint32_t n)
{
    for (uint32_t s = 0; s < n; s++) {
        memory_destroy(session[s].memory);
        free(session[s].logit);
    }
}

static void visit_batches(struct bench *bench)
{
    const bool is_slow = bench->n_token == N_TOKEN_REF;
    struct session alone[N_SESSION], batch[N_SESSION];

    for (uint32_t s = 0; s < N_SESSION; s++)
        play_batch(bench, &alone[s], 1, s);
    for (uint32_t n = is_slow ? N_SESSION : 1; n <= N_SESSION; n++) {
        play_batch(bench, batch, n, 0);
        for (uint32_t s = 0; s < n; s++) {
            const char *type = model_config(bench->model)->model_type;

            cr_assert_eq(batch[s].n, length_of(s) + N_STEP);
            cr_assert_eq(alone[s].n, batch[s].n);
            cr_assert(memcmp(batch[s].logit, alone[s].logit,
                             (size_t)batch[s].n * bench->n_vocab *
                                 sizeof(float)) == 0,
                      "%s: session %u differs in a batch of %u", type, s, n);
            cr_assert(digest_equal(digest_memory(bench, batch[s].memory),
                                   digest_memory(bench, alone[s].memory)),
                      "%s: memory of session %u differs in a batch of %u", type,
                      s, n);
        }
        drop_sessions(batch, n);
    }
    drop_sessions(alone, N_SESSION);
}

Test(exact, e1_a_session_is_the_same_alone_and_in_batches_up_to_9)
{
    visit_all(visit_batches);
}

/* ------------------------------------------------------------- backends */

/* The prompt by another backend, with what `first` made of it. */
static void compare(const struct bench *first, struct outcome expected,
                    const char *dir, const struct backend *backend)
{
    const struct kind kind = {model_weight_format(first->model),
                              model_arithmetic(first->model)};
    struct bench other = open_bench(dir, backend, kind);
    struct outcome found;

    other.n_token = first->n_token;
    found = play(&other, NULL, NULL, 0);
    assert_same(&other, expected, found, "backend", 0);
    cr_assert_str_eq(model_numerics(other.model), model_numerics(first->model));
    cr_assert(digest_equal(model_fingerprint(other.model),
                           model_fingerprint(first->model)));
    free(found.logit);
    close_bench(&other);
}

Test(exact, all_backends_give_the_same_bits)
{
    for (size_t i = 0; i < N_DIR * N_KIND; i++) {
        const struct kind kind = KIND[i / N_DIR];
        const char *dir = DIR[i % N_DIR];
        const struct backend *ref;
        struct bench first;
        struct outcome expected;

        if (!is_visited(i / N_DIR, i % N_DIR))
            continue;
        cr_assert_eq(backend_find("ref", &ref), STATUS_OK);
        first = open_bench(dir, ref, kind);
        first.n_token = kind.format ? N_TOKEN_REF : N_TOKEN;
        expected = play(&first, NULL, NULL, 0);
        for (const struct backend *const *b = backend_all(); *b; b++)
            if (*b != ref && (*b)->is_supported())
                compare(&first, expected, dir, *b);
        compare(&first, expected, dir, &backend_apart);
        free(expected.logit);
        close_bench(&first);
    }
}

/* Each kind of products has a numerics id and bits of its own. */
Test(exact, no_two_kinds_of_products_are_the_same)
{
    struct outcome outcome[N_KIND];
    struct bench bench[N_KIND];
    const struct backend *backend;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    for (size_t i = 0; i < N_KIND; i++) {
        bench[i] = open_bench(DIR[0], backend, KIND[i]);
        outcome[i] = play(&bench[i], NULL, NULL, 0);
        for (size_t j = 0; j < i; j++) {
            cr_assert_str_neq(model_numerics(bench[i].model),
                              model_numerics(bench[j].model));
            cr_assert_not(digest_equal(outcome[i].memory, outcome[j].memory));
        }
    }
    for (size_t i = 0; i < N_KIND; i++) {
        free(outcome[i].logit);
        close_bench(&bench[i]);
    }
}

/* What would make the tests above pass for nothing. */
Test(exact, the_judge_sees_one_changed_token)
{
    const struct backend *backend;
    struct bench bench;
    struct outcome a, b;

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    bench = open_bench(DIR[0], backend, KIND[0]);
    a = play(&bench, NULL, NULL, 0);
    bench.token[100] ^= 1;
    b = play(&bench, NULL, NULL, 0);
    cr_assert(memcmp(a.logit + 99 * (size_t)bench.n_vocab,
                     b.logit + 99 * (size_t)bench.n_vocab,
                     bench.n_vocab * sizeof(float)) == 0);
    for (uint32_t t = 100; t < bench.n_token; t++)
        cr_assert(memcmp(a.logit + (size_t)t * bench.n_vocab,
                         b.logit + (size_t)t * bench.n_vocab,
                         bench.n_vocab * sizeof(float)) != 0,
                  "row %u does not depend on token 100", t);
    cr_assert_not(digest_equal(a.memory, b.memory));
    free(a.logit);
    free(b.logit);
    close_bench(&bench);
}
