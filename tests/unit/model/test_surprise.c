/*
 * What policy sirllm keeps, judged by the rule written down token by token in
 * double: for each chunk anew, from all tokens that have left the window.
 */
#include "model/surprise.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN 24u

/* A session: its state, and all that it was told. */
struct told {
    struct policy policy;
    struct mixer_plan plan;
    void *state;
    uint64_t n, n_room;
    uint32_t *token;
    float *surprise;
};

static struct told told_open(const char *text, uint64_t n_room)
{
    struct told it = {.n_room = n_room};

    cr_assert_eq(policy_parse(text, &it.policy), STATUS_OK, "%s",
                 status_reason());
    surprise_plan(HIDDEN, &it.plan);
    it.state = calloc(1, it.plan.state_bytes);
    it.token = calloc(n_room, sizeof(*it.token));
    it.surprise = calloc(n_room, sizeof(*it.surprise));
    return it;
}

static void told_close(struct told *it)
{
    free(it->state);
    free(it->token);
    free(it->surprise);
}

static void tell(struct told *it, uint32_t token, float surprise)
{
    cr_assert_lt(it->n, it->n_room);
    it->token[it->n] = token;
    it->surprise[it->n] = surprise;
    surprise_tell(&it->policy, it->state,
                  (struct surprised){it->n++, token, surprise});
}

/* Surprise of the tokens of a block, as it is when all below `end` are over. */
static double weight_of(const struct told *it, uint64_t block, uint64_t end)
{
    double sum = 0.0;

    for (uint64_t i = block * GRID; i < end; i++) {
        if (i < (block + 1) * GRID)
            sum += (double)it->surprise[i];
        if (it->token[i] == it->policy.turn)
            sum *= it->policy.decay / 100.0;
    }
    return sum;
}

/* Of the blocks that have left the window of a chunk the n_pick heaviest, by
 * looking for one after the other. */
static void assert_kept(const struct told *it, uint64_t chunk,
                        const uint32_t *kept)
{
    const uint64_t first = it->policy.n_sink, n_window = it->policy.n_window;
    const uint64_t end = chunk > n_window ? chunk - n_window : 0;
    const uint64_t n = end > first ? end - first : 0;
    double *weight = calloc(n + 1, sizeof(*weight));
    bool *is_kept = calloc(n + 1, sizeof(*is_kept));
    uint32_t at = 1;

    for (uint64_t b = 0; b < n; b++)
        weight[b] = weight_of(it, first + b, end * GRID);
    for (uint32_t k = 0; k < it->policy.n_pick && k < n; k++) {
        uint64_t best = n;

        for (uint64_t b = 0; b < n; b++)
            if (!is_kept[b] && (best == n || weight[b] > weight[best]))
                best = b;
        is_kept[best] = true;
    }
    cr_assert_eq(kept[0], n < it->policy.n_pick ? n : it->policy.n_pick);
    for (uint64_t b = 0; b < n; b++)
        if (is_kept[b])
            cr_assert_eq(kept[at++], first + b, "chunk %lu", chunk);
    free(weight);
    free(is_kept);
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    return (x ^ (x >> 27)) * 0x94d049bb133111ebu >> 20;
}

/* Whole tenths, so that sums are exact enough to differ or be equal in both;
 * blocks of equal sums come, too. */
static float draw(uint64_t i)
{
    return (float)(mix(i / 64 * 77 + 5) % 9) + (float)(mix(i + 1) % 2);
}

Test(surprise, keeps_the_blocks_that_a_rule_by_tokens_keeps)
{
    static const char *const TEXT[] = {
        "sirllm:sink=64:window=128:pick=192:decay=50:turn=3",
        "sirllm:sink=0:window=0:pick=64:decay=75:turn=3",
        "sirllm:sink=0:window=64:pick=256:decay=100:turn=3",
        "sirllm:sink=128:window=64:pick=128:decay=10:turn=9",
        "sirllm:sink=0:window=64:pick=0:turn=3",
        "sirllm:sink=64:window=0:pick=320:turn=none",
    };

    for (size_t c = 0; c < sizeof(TEXT) / sizeof(TEXT[0]); c++) {
        struct told it = told_open(TEXT[c], 40 * GRID);

        while (it.n < it.n_room) {
            tell(&it, mix(it.n * 3 + c) % 90, draw(it.n));
            if (it.n % GRID == 0)
                assert_kept(&it, it.n / GRID,
                            surprise_kept(&it.policy, it.state, it.n / GRID));
        }
        told_close(&it);
    }
}

/* A pass asks for its chunks before it tells what it found. */
Test(surprise, says_what_is_kept_for_all_chunks_of_a_pass_beforehand)
{
    struct told it = told_open(
        "sirllm:sink=64:window=192:pick=128:decay=50:turn=3", 50 * GRID);
    uint32_t n_pass = 0;

    while (it.n < it.n_room - 5 * GRID) {
        const uint64_t end = policy_pass_end(&it.policy, it.n);
        uint64_t to = it.n + 1 + mix(n_pass++) % (end - it.n);

        for (uint64_t chunk = it.n / GRID; chunk <= (to - 1) / GRID; chunk++)
            assert_kept(&it, chunk, surprise_kept(&it.policy, it.state, chunk));
        while (it.n < to)
            tell(&it, mix(it.n * 3) % 90, draw(it.n));
        assert_kept(&it, it.n / GRID,
                    surprise_kept(&it.policy, it.state, it.n / GRID));
    }
    cr_assert_gt(n_pass, 10);
    told_close(&it);
}

/* When a turn leaves nothing, any surprise behind it is more. */
Test(surprise, of_what_weighs_nothing_the_later_goes_first)
{
    static const uint32_t WANT[][2] = {{0, 1}, {0, 2}, {2, 3}, {2, 3}};
    struct told it =
        told_open("sirllm:sink=0:window=0:pick=128:decay=0:turn=3", 5 * GRID);

    for (uint64_t b = 0; b < 5; b++) {
        for (uint32_t i = 0; i < GRID; i++) /* block 2 ends no turn */
            tell(&it, i == 63 && b < 2 ? 3 : 4, b == 4 ? 1.0f : 2.0f);
        if (b > 0)
            cr_assert_arr_eq(surprise_kept(&it.policy, it.state, b + 1) + 1,
                             WANT[b - 1], sizeof(WANT[0]));
    }
    told_close(&it);
}

/* With the largest window, the ring that holds it goes round. */
Test(surprise, remembers_the_whole_of_the_largest_window)
{
    const uint64_t n_window = POLICY_BLOCK_MAX;
    struct told it =
        told_open("sirllm:sink=0:window=65536:pick=128:decay=50:turn=3",
                  (2 * n_window + 60) * GRID);

    while (it.n < it.n_room) {
        tell(&it, it.n % 7001 == 0 ? 3 : 4, draw(it.n));
        if (it.n % (20 * GRID) == 0 && it.n / GRID > 2 * n_window)
            assert_kept(&it, it.n / GRID,
                        surprise_kept(&it.policy, it.state, it.n / GRID));
    }
    told_close(&it);
}

/* A plan names all of its bytes, so they are stored; and no two fields lie one
 * upon the other. */
Test(surprise, has_a_plan_of_its_state)
{
    struct told it = told_open("sirllm", 1);
    size_t end = 0;

    for (uint32_t i = 0; i < it.plan.n_field; i++) {
        const struct mixer_field *field = &it.plan.field[i];

        cr_assert(field->offset % 64 == 0 && field->offset >= end &&
                  field->offset < end + 64);
        end = field->offset +
              (size_t)field->dim[0] * field_element_bytes(field->type);
    }
    cr_assert_eq(end, it.plan.state_bytes);
    cr_assert_eq((char *)surprise_last(it.state) + HIDDEN * sizeof(float),
                 (char *)it.state + it.plan.state_bytes);
    told_close(&it);
}
