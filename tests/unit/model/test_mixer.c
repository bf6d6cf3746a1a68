/*
 * The mixers' plans, judged by what they promise to whoever stores a session:
 * fields tile the state without overlap, in cache lines, and nothing is written
 * outside the bytes that the plan names. What the mixers compute is judged by
 * the golden.* tests and bit for bit by exact (tests/unit/state).
 */
#include "model/mixer.h"
#include "model/safetensors.h"
#include "model/weights.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_ROW 130u /* two grid points, three blocks */
#define GUARD 64u  /* bytes in front of and behind each memory */

static struct config config_of(const char *dir)
{
    struct config config;

    cr_assert_eq(config_load(dir, &config), STATUS_OK, "%s", status_reason());
    return config;
}

static size_t field_bytes(const struct mixer_field *field)
{
    size_t n = field_element_bytes(field->type);

    for (uint32_t d = 0; d < field->n_dim; d++)
        n *= field->dim[d];
    return n;
}

static const struct mixer_numerics FP32 = {ARITHMETIC_FP32, KV_WIDE};

static void assert_plan(const struct mixer *mixer, const struct config *config)
{
    struct mixer_plan plan;
    size_t end = 0;

    mixer->plan(config, FP32, INDEX_NONE, &plan);
    for (uint32_t f = 0; f < plan.n_field; f++) {
        cr_assert_eq(plan.field[f].offset % 64, 0);
        cr_assert_geq(plan.field[f].offset, end, "%s", plan.field[f].name);
        cr_assert_lt(plan.field[f].offset, end + 64);
        end = plan.field[f].offset + field_bytes(&plan.field[f]);
    }
    cr_assert_leq(end, plan.state_bytes);
    cr_assert_lt(plan.state_bytes, end + 64);
    cr_assert_eq(plan.row_floats % 16, 0);
    cr_assert_gt(plan.row_flops, 0);
}

/* Judged by mixer_clear_moot(), which knows a ring's tokens one by one. */
Test(mixer, what_is_live_on_the_grid_is_all_but_the_rings)
{
    struct config config = config_of("tests/golden/qwen3_5_text");
    struct mixer_plan plan;
    struct mixer_part part[MIXER_FIELD_MAX];
    size_t n_live = 0, n_ring = 0;
    uint32_t n_part;
    char *state;

    mixer_delta.plan(&config, (struct mixer_numerics){ARITHMETIC_PAIR, KV_WIDE},
                     INDEX_NONE, &plan);
    for (uint64_t position = 1; position < 3 * GRID; position++) {
        if (position % GRID == 0)
            continue;
        cr_assert_eq(mixer_live(&plan, position, part), 1);
        cr_assert_eq(part[0].offset, 0);
        cr_assert_eq(part[0].bytes, plan.state_bytes);
        cr_assert_eq(mixer_live_bytes(&plan, position), plan.state_bytes);
    }
    state = malloc(plan.state_bytes);
    memset(state, 1, plan.state_bytes);
    mixer_clear_moot(&plan, 5 * GRID, state);
    n_part = mixer_live(&plan, 5 * GRID, part);
    for (uint32_t i = 0; i < n_part; i++) {
        for (size_t b = 0; b < part[i].bytes; b++)
            cr_assert_eq(state[part[i].offset + b], 1);
        memset(state + part[i].offset, 0, part[i].bytes);
        n_live += part[i].bytes;
    }
    cr_assert_eq(mixer_live_bytes(&plan, 5 * GRID), n_live);
    for (uint32_t f = 0; f < plan.n_field; f++)
        if (strncmp(plan.field[f].name, "ring_", 5) == 0)
            n_ring += (field_bytes(&plan.field[f]) + 63) / 64 * 64;
    cr_assert_gt(n_ring, 0);
    cr_assert_eq(n_live, plan.state_bytes - n_ring);
    for (size_t b = 0; b < plan.state_bytes; b++) /* but for what pads them */
        cr_assert(state[b] == 0 || b % 64 > 0);
    free(state);
}

/* Which number of a ring is dimension d of token t, as kernels/backend.h says;
 * n is how many dimensions a token has. */
static size_t ring_at(enum arithmetic arithmetic, bool is_k, uint32_t n,
                      const uint32_t htd[3])
{
    const size_t h = htd[0], t = htd[1], d = htd[2];

    if (arithmetic == ARITHMETIC_MMA)
        return (h * GRID + t) * n + d;
    if (arithmetic == ARITHMETIC_FP32)
        return is_k ? (h * n + d) * GRID + t : (h * GRID + t) * n + d;
    return is_k ? ((h * ((n + 1) / 2) + d / 2) * GRID + t) * 2 + d % 2
                : ((h * (GRID / 2) + t / 2) * n + d) * 2 + t % 2;
}

/* The tokens behind n_live are zeros now, the others not. */
static void assert_cleared(const struct mixer_field *field, const char *state,
                           enum arithmetic arithmetic, uint32_t n,
                           uint32_t n_live)
{
    const bool is_k = strcmp(field->name, "ring_k") == 0;
    const size_t bytes = field_element_bytes(field->type);

    for (uint32_t h = 0; h < field->dim[0]; h++)
        for (uint32_t t = 0; t < GRID; t++)
            for (uint32_t d = 0; d < n; d++) {
                const size_t at =
                    ring_at(arithmetic, is_k, n, (uint32_t[3]){h, t, d});

                cr_assert_eq(state[field->offset + at * bytes] == 0,
                             t >= n_live, "%s of %d: head %u token %u dim %u",
                             field->name, (int)arithmetic, h, t, d);
            }
}

Test(mixer, what_is_moot_of_a_ring_are_tokens_behind_the_position)
{
    static const enum arithmetic ALL[] = {ARITHMETIC_FP32, ARITHMETIC_PAIR,
                                          ARITHMETIC_TILE, ARITHMETIC_MMA};
    struct config config = config_of("tests/golden/qwen3_5_text");

    config.d_k = 48; /* another number than d_v and GRID */
    for (uint32_t a = 0; a < sizeof(ALL) / sizeof(ALL[0]); a++) {
        const uint32_t n_more = ALL[a] == ARITHMETIC_MMA ? DELTA_BLOCK : 0;
        struct mixer_plan plan;
        char *state;

        mixer_delta.plan(&config, (struct mixer_numerics){ALL[a], KV_WIDE},
                         INDEX_NONE, &plan);
        state = malloc(plan.state_bytes);
        for (uint32_t n_live = 0; n_live < GRID; n_live += 21) {
            memset(state, 1, plan.state_bytes);
            mixer_clear_moot(&plan, 3 * GRID + n_live, state);
            assert_cleared(&plan.field[1], state, ALL[a], config.d_k, n_live);
            assert_cleared(&plan.field[2], state, ALL[a],
                           (uint32_t)config.d_v + n_more, n_live);
            for (size_t b = 0; b < plan.field[1].offset; b++)
                cr_assert_eq(state[b], 1, "S0 was cleared");
        }
        free(state);
    }
}

Test(mixer, fields_tile_the_state_in_cache_lines)
{
    struct config config = config_of("tests/golden/qwen3_5_text");

    assert_plan(&mixer_softmax, &config);
    assert_plan(&mixer_delta, &config);
    config.n_k_head = 3; /* odd shapes: nothing is a multiple of 16 */
    config.n_v_head = 9;
    config.d_k = 96;
    config.d_v = 65;
    config.conv_width = 1; /* no tail at all */
    assert_plan(&mixer_delta, &config);
}

Test(mixer, the_delta_plan_has_the_shapes_of_its_kernel)
{
    const struct config config = config_of("tests/golden/qwen3_5_text");
    static const uint32_t DIM[5][3] = {
        {4, 16, 16}, {2, 16, GRID}, {4, GRID, 16}, {4, GRID, 0}, {3, 128, 0}};
    static const char *const NAME[5] = {"s", "ring_k", "ring_u", "ring_g",
                                        "conv"};
    struct mixer_plan plan;

    mixer_delta.plan(&config, FP32, INDEX_NONE, &plan);
    cr_assert_eq(plan.n_field, 5);
    cr_assert_eq(plan.block_bytes, 0);
    cr_assert_eq(plan.past_flops, 0);
    for (uint32_t f = 0; f < 5; f++) {
        cr_assert_str_eq(plan.field[f].name, NAME[f]);
        cr_assert_eq(plan.field[f].type, f == 3 ? FIELD_F64 : FIELD_F32);
        for (uint32_t d = 0; d < plan.field[f].n_dim; d++)
            cr_assert_eq(plan.field[f].dim[d], DIM[f][d], "%s", NAME[f]);
    }
}

Test(mixer, the_softmax_plan_has_blocks_and_no_state)
{
    const struct config config = config_of("tests/golden/qwen3");
    struct mixer_plan plan;

    mixer_softmax.plan(&config, FP32, INDEX_NONE, &plan);
    cr_assert_eq(plan.state_bytes, 0);
    cr_assert_eq(plan.n_field, 0);
    cr_assert_eq(plan.block_bytes, 2u * 2 * 16 * KV_BLOCK * sizeof(float));
    cr_assert_float_eq(plan.past_flops, 4.0 * 4 * 16, 0.1);
    /* q, k, v and out: (64 + 32 + 32 + 64) x 64 weights */
    cr_assert_float_eq(plan.row_flops, 2.0 * 192 * 64, 0.1);
}

/* Memory between two guards that nobody may touch. */
static char *guarded(size_t n)
{
    char *room = aligned_alloc(64, (n + 2 * GUARD + 63) / 64 * 64);

    memset(room, 0x5a, n + 2 * GUARD);
    memset(room + GUARD, 0, n);
    return room + GUARD;
}

static void assert_guarded(const char *room, size_t n, const char *what)
{
    for (size_t i = 0; i < GUARD; i++)
        cr_assert(room[-(long)GUARD + (long)i] == 0x5a && room[n + i] == 0x5a,
                  "%s was left", what);
}

static void run_layer(const struct mixer *mixer, const struct config *config,
                      uint32_t i, const struct backend *backend)
{
    char prefix[32];
    struct safetensors *weights;
    struct mixer_layer *layer = NULL;
    struct mixer_plan plan;
    struct rope_table rope = {0};
    double freq[CONFIG_HEAD_DIM_MAX] = {0};
    struct layer_memory memory[CONFIG_LAYER_MAX] = {0};
    struct span span = {.n_row = N_ROW, .layer = memory};
    char span_work[MIXER_SPAN_WORK_BYTES];
    uint64_t position[N_ROW];
    const size_t row_bytes = N_ROW * config->hidden * sizeof(float);
    char *state, *work, *x, *residual, *block[3];
    void *blocks[3];
    uint32_t n_changed = 0;
    struct mixer_cursor cursor = {0};

    (void)snprintf(prefix, sizeof(prefix), "model.layers.%u.", i);
    cr_assert_eq(safetensors_open("tests/golden/qwen3_5_text", &weights),
                 STATUS_OK);
    cr_assert_eq(mixer->bind(config, &(struct weight_source){.file = weights},
                             prefix, &layer),
                 STATUS_OK, "%s", status_reason());
    safetensors_close(weights);
    cr_assert_gt(mixer->bytes(layer), 1000);
    cr_assert_eq(rope_table_init(config->rope.n_rot, 192, freq, &rope),
                 STATUS_OK);
    mixer->plan(config, FP32, INDEX_NONE, &plan);
    state = guarded(plan.state_bytes);
    work = guarded(N_ROW * plan.row_floats * sizeof(float));
    x = guarded(row_bytes);
    residual = guarded(row_bytes);
    for (int b = 0; b < 3; b++) {
        block[b] = guarded(plan.block_bytes);
        blocks[b] = block[b];
    }
    memory[i] =
        (struct layer_memory){.state = plan.state_bytes ? state : NULL,
                              .block = plan.block_bytes ? blocks : NULL};
    for (uint32_t r = 0; r < N_ROW; r++)
        position[r] = r;
    for (uint32_t e = 0; e < N_ROW * config->hidden; e++)
        ((float *)x)[e] = sinf((float)e);
    const struct mixer_batch batch = {.backend = backend,
                                      .rope = &rope,
                                      .layer = i,
                                      .n_row = N_ROW,
                                      .position = position,
                                      .span = &span,
                                      .n_span = 1,
                                      .x = (float *)x,
                                      .residual = (float *)residual,
                                      .work = (float *)work,
                                      .span_work = span_work,
                                      .max_fma = 1};
    while (!mixer->rows(layer, &batch, &cursor))
        ;
    assert_guarded(state, plan.state_bytes, "state");
    assert_guarded(work, N_ROW * plan.row_floats * sizeof(float), "workspace");
    assert_guarded(x, row_bytes, "input");
    assert_guarded(residual, row_bytes, "residual");
    for (int b = 0; b < 3; b++)
        assert_guarded(block[b], plan.block_bytes, "block");
    for (uint32_t e = 0; e < N_ROW * config->hidden; e++)
        n_changed += ((float *)residual)[e] != 0;
    cr_assert_gt(n_changed, N_ROW * config->hidden * 9 / 10);
    mixer->release(layer);
    mixer->release(NULL);
    rope_table_release(&rope);
    free(state - GUARD);
    free(work - GUARD);
    free(x - GUARD);
    free(residual - GUARD);
    for (int b = 0; b < 3; b++)
        free(block[b] - GUARD);
}

Test(mixer, rows_write_inside_what_the_plan_names)
{
    const struct config config = config_of("tests/golden/qwen3_5_text");

    for (const struct backend *const *b = backend_all(); *b; b++)
        for (uint32_t i = 0; i < config.n_layer && (*b)->is_supported(); i++)
            run_layer(config.layer[i] == LAYER_DELTA ? &mixer_delta
                                                     : &mixer_softmax,
                      &config, i, *b);
}

/* Of a state of ones, what is left after `position` tokens, field by field. */
Test(mixer, moot_bytes_are_those_of_ring_places_behind_the_position)
{
    static const enum arithmetic kinds[] = {ARITHMETIC_FP32, ARITHMETIC_PAIR};
    static const uint64_t positions[] = {0, 1, 63, 64, 70, 127};
    const struct config config = config_of("tests/golden/qwen3_5_text");

    for (size_t k = 0; k < 2; k++)
        for (size_t p = 0; p < 6; p++) {
            const uint64_t live = positions[p] % GRID;
            struct mixer_plan plan;
            unsigned char *state;

            mixer_delta.plan(&config,
                             (struct mixer_numerics){kinds[k], KV_WIDE},
                             INDEX_NONE, &plan);
            state = malloc(plan.state_bytes);
            memset(state, 1, plan.state_bytes);
            mixer_clear_moot(&plan, positions[p], state);
            for (uint32_t f = 0; f < plan.n_field; f++) {
                const struct mixer_field *field = &plan.field[f];
                const size_t n = field_bytes(field);
                size_t n_one = 0;

                for (size_t i = 0; i < n; i++)
                    n_one += state[field->offset + i];
                cr_assert_eq(
                    n_one,
                    strncmp(field->name, "ring_", 5) == 0 ? n / GRID * live : n,
                    "%s at %lu", field->name, positions[p]);
            }
            free(state);
        }
}
