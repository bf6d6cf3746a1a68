/* Prompts side by side in a pass, against what must hold of any order of their
 * rows: each prompt's tokens at each prompt's positions, in its own order, one
 * strip of it in a group, and logits in the order in which they were asked for.
 * Bits: unit.state.pass. */
#include "model/batch.h"
#include "model/policy.h"

#include <criterion/criterion.h>
#include <string.h>

#define ROW_MAX 1100u
#define SPAN_MAX 6u

static uint32_t token[ROW_MAX], logit_row[SPAN_MAX];
static struct span span[SPAN_MAX];
static struct strips strips;

/* Token i of a prompt names both. */
static uint32_t token_of(uint32_t prompt, uint64_t position)
{
    return prompt * 100000u + (uint32_t)position;
}

/* Prompts of so many rows from so many positions on; all but those of `mute`
 * end with a row whose logits are wanted. */
static struct batch ask(uint32_t n_span, const uint32_t *n_row,
                        const uint64_t *position, uint32_t mute)
{
    struct batch batch = {
        .token = token, .span = span, .n_span = n_span, .logit_row = logit_row};

    for (uint32_t i = 0; i < n_span; i++) {
        span[i] = (struct span){.first_row = batch.n_row,
                                .n_row = n_row[i],
                                .position = position[i],
                                .layer = (const struct layer_memory *)&span[i]};
        for (uint32_t r = 0; r < n_row[i]; r++)
            token[batch.n_row++] = token_of(i, position[i] + r);
        if (i != mute)
            logit_row[batch.n_logit++] = batch.n_row - 1;
    }
    return batch;
}

static uint32_t prompt_of(const struct span *strip)
{
    return (uint32_t)((const struct span *)strip->layer - span);
}

/* Each strip is the next one of its prompt, and the only one in its group. */
static void check_strips(const struct batch *got, const struct batch *asked)
{
    uint64_t next[SPAN_MAX];
    uint32_t row = 0, group_end = 0, seen = 0;

    for (uint32_t i = 0; i < asked->n_span; i++)
        next[i] = span[i].position;
    for (uint32_t s = 0; s < got->n_span; s++) {
        const struct span *strip = &got->span[s];
        const uint32_t i = prompt_of(strip);

        cr_assert_eq(strip->first_row, row);
        cr_assert_gt(strip->n_row, 0);
        cr_assert_eq(strip->position, next[i]);
        for (uint32_t r = 0; r < strip->n_row; r++)
            cr_assert_eq(got->token[row + r], token_of(i, strip->position + r));
        if (row >= group_end) {
            group_end = strips_end(&strips, row, asked->n_row);
            seen = 0;
        }
        cr_assert_not(seen & 1u << i, "prompt %u twice in a group", i);
        seen |= 1u << i;
        row += strip->n_row;
        next[i] += strip->n_row;
        cr_assert_leq(row, group_end);
        if (next[i] < span[i].position + span[i].n_row)
            cr_assert_eq(next[i] % GRID, 0, "a strip off the grid");
    }
    cr_assert_eq(row, asked->n_row);
    for (uint32_t i = 0; i < asked->n_span; i++)
        cr_assert_eq(next[i], span[i].position + span[i].n_row);
}

static void check_logits(const struct batch *got, const struct batch *asked)
{
    cr_assert_eq(got->n_logit, asked->n_logit);
    for (uint32_t l = 0; l < got->n_logit; l++) {
        cr_assert_eq(got->token[got->logit_row[l]], token[logit_row[l]]);
        cr_assert(l == 0 || got->logit_row[l - 1] < got->logit_row[l]);
    }
}

static void open_strips(void)
{
    cr_assert_eq(strips_init(&strips, ROW_MAX, SPAN_MAX), STATUS_OK);
}

static void close_strips(void)
{
    strips_release(&strips);
}

TestSuite(batch, .init = open_strips, .fini = close_strips);

Test(batch, prompts_lie_side_by_side)
{
    static const struct {
        uint32_t n_span, n_row[SPAN_MAX];
        uint64_t position[SPAN_MAX];
        uint32_t piece, mute, n_group; /* 0: stays as it is */
    } CASE[] = {
        {2, {512, 512}, {0, 0}, 192, 9, 4},
        {2, {512, 512}, {0, 0}, 1024, 9, 0}, /* one piece */
        {2, {512, 512}, {0, 0}, 0, 9, 0},    /* rows by the few */
        {2, {300, 500}, {70, 1}, 192, 0, 4}, /* nobody asks for one's */
        {3, {1, 640, 100}, {63, 64, 7}, 192, 9, 4},
        {6, {64, 64, 64, 64, 64, 64}, {0}, 192, 9, 0}, /* too many for it */
        {4, {256, 256, 256, 256}, {0}, 192, 2, 4},
        {1, {1024}, {0}, 192, 9, 0},
        {2, {1000, 100}, {128, 0}, 96, 9, 9},
    };

    for (size_t c = 0; c < sizeof(CASE) / sizeof(CASE[0]); c++) {
        const struct batch asked =
            ask(CASE[c].n_span, CASE[c].n_row, CASE[c].position, CASE[c].mute);
        struct batch got = asked;

        cr_assert_eq(strips_arrange(&strips, CASE[c].piece, &got),
                     CASE[c].n_group > 0, "case %zu", c);
        cr_assert_eq(strips.n_group, CASE[c].n_group, "case %zu: %u", c,
                     strips.n_group);
        if (CASE[c].n_group) {
            check_strips(&got, &asked);
            check_logits(&got, &asked);
        } else {
            cr_assert_arr_eq(&got, &asked, sizeof(got));
            cr_assert_eq(strips_end(&strips, 5, asked.n_row), asked.n_row);
        }
    }
}

/* What a thread has of a group of equal prompts are whole prompts. */
Test(batch, equal_prompts_have_equal_strips)
{
    static const uint32_t N_ROW[2] = {512, 512};
    static const uint64_t POSITION[2] = {64, 640};
    struct batch batch = ask(2, N_ROW, POSITION, 9);

    cr_assert(strips_arrange(&strips, 192, &batch));
    for (uint32_t s = 0; s < batch.n_span; s += 2) {
        cr_assert_eq(prompt_of(&batch.span[s]), 0);
        cr_assert_eq(batch.span[s].n_row, batch.span[s + 1].n_row);
    }
}

/* Policies look at a span as a whole, and other logits would change order. */
Test(batch, some_batches_stay)
{
    static const uint32_t N_ROW[2] = {512, 512};
    static const uint64_t POSITION[2] = {0, 0};
    const struct policy policy = {.kind = POLICY_WINDOW};
    struct batch batch = ask(2, N_ROW, POSITION, 9);

    span[1].policy = &policy;
    cr_assert_not(strips_arrange(&strips, 192, &batch));
    span[1].policy = NULL;
    logit_row[0] = 200;
    cr_assert_not(strips_arrange(&strips, 192, &batch));
    cr_assert_eq(batch.token, token);
    logit_row[0] = 511;
    cr_assert(strips_arrange(&strips, 192, &batch));
}
