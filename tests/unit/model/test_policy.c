/*
 * Policies as rules: texts round trip, every refusal has its reason, what rows
 * see is held to a rule written token by token, and look-ups to a full sort.
 */
#include "model/policy.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct policy parsed(const char *text)
{
    struct policy policy;

    cr_assert_eq(policy_parse(text, &policy), STATUS_OK, "%s: %s", text,
                 status_reason());
    return policy;
}

Test(policy, a_text_gives_a_policy_that_gives_the_text)
{
    static const char *const TEXT[] = {
        "full",
        "window:sink=64:window=1024:keys=rank",
        "infllm:sink=128:window=0:pick=65536:step=1:keys=far:index=bounds",
        "infllm:sink=64:window=64:pick=64:step=2:keys=true:index=keys",
        "quest:sink=0:window=64:pick=512:step=64:keys=true",
        "recycle:base=quest:sink=0:window=64:pick=64:step=8:reuse=64:keys=true",
        "recycle:base=infllm:sink=64:window=0:pick=64:step=1:reuse=1:keys=far"
        ":index=keys",
        "snapkv:sink=0:window=64:pick=2048:keys=true",
        "snapkv:sink=64:window=0:pick=64:keys=rank:end=1099511627776",
        "sirllm:sink=64:window=1024:pick=2048:keys=rank:decay=90",
        "sirllm:sink=0:window=0:pick=64:keys=true:decay=0:turn=none",
        "sirllm:sink=0:window=0:pick=0:keys=far:decay=100:turn=4294967295",
    };

    for (size_t i = 0; i < sizeof(TEXT) / sizeof(TEXT[0]); i++) {
        const struct policy policy = parsed(TEXT[i]);
        char text[POLICY_TEXT_SIZE];

        policy_format(&policy, text);
        cr_assert_str_eq(text, TEXT[i]);
    }
}

Test(policy, a_name_alone_has_its_own_numbers)
{
    const struct policy policy = parsed("infllm"), other = parsed("quest");
    const struct policy same = parsed(
        "infllm:sink=64:window=1024:pick=2048:step=8:keys=far:index=bounds");

    cr_assert(policy_equal(&policy, &same));
    cr_assert_not(policy_equal(&policy, &other));
    cr_assert_eq(policy.index, INDEX_BOUNDS);
    cr_assert_eq(other.index, INDEX_BOUNDS);
}

Test(policy, no_text_fits_that_is_longer_than_there_is_room)
{
    struct policy most = {.kind = POLICY_RECYCLE,
                          .keys = KEYS_RANK,
                          .n_sink = POLICY_BLOCK_MAX,
                          .n_window = POLICY_BLOCK_MAX,
                          .n_pick = POLICY_BLOCK_MAX,
                          .step = GRID,
                          .index = INDEX_BOUNDS,
                          .base = POLICY_INFLLM,
                          .reuse = POLICY_REUSE_MAX,
                          .end = POLICY_END_MAX};
    char text[POLICY_TEXT_SIZE];

    policy_format(&most, text);
    cr_assert_lt(strlen(text), POLICY_TEXT_SIZE - 1);
    most = parsed("sirllm:sink=65536:window=65536:pick=65536:keys=rank"
                  ":decay=100:turn=4294967295");
    policy_format(&most, text);
    cr_assert_lt(strlen(text), POLICY_TEXT_SIZE - 1);
}

Test(policy, what_is_wrong_is_refused_with_its_reason)
{
    static const struct {
        const char *text, *reason;
    } CASE[] = {
        {"", "no policy ''"},
        {"fulll", "no policy 'fulll'"},
        {"full:sink=64", "has no parameters"},
        {"window:sink", "no parameter 'sink'"},
        {"window:pick=64", "no parameter 'pick'"},
        {"window:step=8", "no parameter 'step'"},
        {"infllm:sink=63", "sink=63"},
        {"infllm:sink=", "sink="},
        {"infllm:window=-64", "window=-64"},
        {"infllm:window=65600", "window=65600"},
        {"infllm:pick=64x", "pick=64x"},
        {"infllm:step=0", "step=0"},
        {"infllm:step=3", "step=3"},
        {"infllm:step=128", "step=128"},
        {"infllm:keys=near", "keys=near"},
        {"infllm:index=none", "index=none"},
        {"quest:index=keys", "no parameter 'index'"},
        {"quest:reuse=2", "no parameter 'reuse'"},
        {"infllm:base=quest", "no parameter 'base'"},
        {"recycle:reuse=0", "reuse=0"},
        {"recycle:reuse=3", "allowed are powers of two up to 64"},
        {"recycle:reuse=128", "reuse=128"},
        {"recycle:base=window", "allowed are infllm, quest"},
        {"recycle:sink=64:base=infllm", "it has to be the first"},
        {"recycle:index=keys", "no parameter 'index'"},
        {"snapkv:step=8", "no parameter 'step'"},
        {"snapkv:end=0", "end=0"},
        {"snapkv:end=64k", "end=64k"},
        {"snapkv:end=1099511627777", "allowed are 1 to 1099511627776"},
        {"quest:end=64", "no parameter 'end'"},
        {"sirllm:decay=101", "allowed are 0 to 100"},
        {"sirllm:decay=-1", "decay=-1"},
        {"sirllm:decay=0.9", "decay=0.9"},
        {"sirllm:turn=", "turn="},
        {"sirllm:turn=-1", "turn=-1"},
        {"sirllm:turn=eos", "allowed are none and the id"},
        {"sirllm:turn=4294967296", "turn=4294967296"},
        {"sirllm:step=8", "there are: sink, window, keys, pick, decay, turn"},
        {"sirllm:end=64", "no parameter 'end'"},
        {"snapkv:turn=3", "no parameter 'turn'"},
    };

    for (size_t i = 0; i < sizeof(CASE) / sizeof(CASE[0]); i++) {
        struct policy policy = {.n_sink = 7};

        cr_assert_eq(policy_parse(CASE[i].text, &policy),
                     STATUS_INVALID_ARGUMENT, "%s", CASE[i].text);
        cr_assert(strstr(status_reason(), CASE[i].reason), "%s: %s",
                  CASE[i].text, status_reason());
        cr_assert_eq(policy.n_sink, 7);
    }
}

/* --------------------------------------------------------- the prompt's end */

Test(policy, an_end_is_told_once_and_only_to_who_wants_it)
{
    struct policy open = parsed("snapkv"), known = parsed("snapkv:end=70");
    struct policy other = parsed("snapkv:pick=64:end=70"), quest;

    cr_assert_eq(policy_check_end(&open), STATUS_INVALID_ARGUMENT);
    cr_assert(strstr(status_reason(), "snapkv:end=1000"));
    cr_assert_eq(policy_check_end(&known), STATUS_OK);
    cr_assert(policy_is_asked(&open, &known));
    cr_assert_not(policy_is_asked(&known, &open));
    cr_assert_not(policy_is_asked(&open, &other));
    policy_end_prompt(&open, 70);
    cr_assert(policy_equal(&open, &known));
    policy_end_prompt(&open, 71);
    cr_assert(policy_equal(&open, &known));
    quest = parsed("quest");
    policy_end_prompt(&quest, 70);
    cr_assert_eq(quest.end, 0);
    cr_assert_eq(policy_check_end(&quest), STATUS_OK);
}

Test(policy, the_end_of_turns_is_told_once_and_only_to_who_wants_it)
{
    static const uint32_t END[] = {7, 8};
    struct policy open = parsed("sirllm"), known = parsed("sirllm:turn=7");
    struct policy none = parsed("sirllm:turn=none"), other;

    cr_assert_eq(policy_check_end(&open), STATUS_OK);
    cr_assert(policy_is_asked(&open, &known) && policy_is_asked(&open, &none));
    cr_assert_not(policy_is_asked(&known, &open));
    cr_assert_not(policy_is_asked(&known, &none));
    other = parsed("sirllm:decay=80:turn=7");
    cr_assert_not(policy_is_asked(&open, &other));
    policy_end_turns(&open, END, 2);
    cr_assert(policy_equal(&open, &known));
    policy_end_turns(&open, END + 1, 1);
    cr_assert(policy_equal(&open, &known));
    policy_end_turns(&none, END, 2);
    cr_assert_eq(none.turn, POLICY_TURN_NONE);
    open = parsed("sirllm");
    policy_end_turns(&open, NULL, 0);
    cr_assert(policy_equal(&open, &none));
    other = parsed("quest");
    policy_end_turns(&other, END, 2);
    cr_assert_eq(other.turn, 0);
}

Test(policy, a_pass_of_sirllm_ends_before_its_rows_ask_for_what_it_finds)
{
    const struct policy policy = parsed("sirllm:sink=0:window=128:pick=64");
    const struct policy quest = parsed("quest");

    cr_assert_eq(policy_pass_end(NULL, 5), UINT64_MAX);
    cr_assert_eq(policy_pass_end(&quest, 5), UINT64_MAX);
    for (uint64_t at = 0; at < 1000; at++) {
        const uint64_t end = policy_pass_end(&policy, at);

        cr_assert(policy_candidates(&policy, (end - 1) / GRID).end * GRID <=
                  at);
        cr_assert(policy_candidates(&policy, end / GRID).end * GRID > at);
    }
}

/* ------------------------------------------------------------- what is seen */

Test(policy, snapkv_sees_all_before_its_end_and_less_behind)
{
    static struct policy_view view[POLICY_SEEN_MAX];
    const struct policy policy = parsed("snapkv:sink=64:window=128:end=650");
    static const uint64_t WANT[] = {0, 3, 8, 9, 10, 11, 12};
    const struct block_range among = policy_candidates(&policy, 650 / 64);
    const uint32_t pick = 3;

    cr_assert(policy_sees_all(&policy, 0) && policy_sees_all(&policy, 649));
    cr_assert_not(policy_sees_all(&policy, 650));
    cr_assert_eq(policy_view_end(&policy, 0), 650);
    cr_assert_eq(policy_view_end(&policy, 650), 704);
    for (uint64_t at = 0; at < 2000; at++)
        cr_assert_eq(policy_looks_up(&policy, at), at == 650);
    cr_assert(among.first == 1 && among.end == 8);
    cr_assert_eq(policy_see(&policy, 12, &pick, 1, view), 7);
    for (uint32_t i = 0; i < 7; i++)
        cr_assert(view[i].block == WANT[i] && !view[i].place.is_flat &&
                  view[i].place.position == WANT[i] * 64);
}

/* Is token `key` seen from chunk `chunk`, written by tokens? The window is the
 * one of the last look-up, which is made each step * reuse tokens. */
static bool is_seen(const struct policy *policy, uint64_t chunk, uint64_t block,
                    const uint32_t *pick, uint32_t n_pick)
{
    const uint64_t still = policy->step * policy->reuse;
    const uint64_t since = still > 64 ? chunk * 64 / still * still : chunk * 64;
    bool is_picked = false;

    for (uint32_t i = 0; i < n_pick; i++)
        is_picked = is_picked || pick[i] == block;
    return block <= chunk && (is_picked || block * 64 < policy->n_sink * 64 ||
                              since <= (block + policy->n_window) * 64);
}

static void check_view(const struct policy *policy, uint64_t chunk)
{
    static struct policy_view view[POLICY_SEEN_MAX];
    const struct block_range among = policy_candidates(policy, chunk);
    const uint64_t n_still = policy->step * policy->reuse / 64;
    const uint64_t since = n_still > 1 ? chunk / n_still * n_still : chunk;
    uint32_t pick[3], n_pick = 0, n, at = 0, n_seen = 0;

    /* Every other candidate, as far as they go. */
    for (uint64_t b = among.first;
         b < among.end && n_pick < 3 && policy->n_pick; b += 2)
        pick[n_pick++] = (uint32_t)b;
    n = policy_see(policy, chunk, pick, n_pick, view);
    cr_assert_eq(n, policy_see(policy, chunk, pick, n_pick, NULL));
    for (uint64_t b = 0; b <= chunk; b++)
        n_seen += is_seen(policy, chunk, b, pick, n_pick);
    cr_assert_eq(n, n_seen);
    for (uint64_t b = 0; b <= chunk; b++) {
        struct key_place place;

        if (!is_seen(policy, chunk, b, pick, n_pick))
            continue;
        place = view[at].place;
        cr_assert_eq(view[at++].block, b);
        if (b == chunk || policy->keys == KEYS_TRUE)
            cr_assert(place.position == b * 64 && !place.is_flat);
        else if (policy->keys == KEYS_RANK)
            cr_assert(place.position == (chunk - (n - at)) * 64 &&
                      !place.is_flat);
        else if (since <= b + policy->n_window)
            cr_assert(place.position == b * 64 && !place.is_flat);
        else
            cr_assert(place.position == (since - policy->n_window) * 64 &&
                      place.is_flat);
    }
    cr_assert_eq(at, n);
}

Test(policy, rows_see_sinks_picks_window_and_own_block_in_order)
{
    static const char *const KIND[] = {"window", "infllm", "quest",
                                       "recycle:step=64:reuse=4"};
    static const char *const KEYS[] = {"true", "rank", "far"};

    for (uint32_t i = 0; i < 12; i++)
        for (uint32_t n = 0; n < 16; n++) {
            char text[POLICY_TEXT_SIZE];
            struct policy policy;

            (void)snprintf(text, sizeof(text), "%s:sink=%u:window=%u:keys=%s",
                           KIND[i % 4], n % 4 * 64, n / 4 * 64, KEYS[i / 4]);
            policy = parsed(text);
            for (uint64_t chunk = 0; chunk < 12; chunk++)
                check_view(&policy, chunk);
        }
}

/* --------------------------------------------------------------- look-ups */

static const float *by_score;

static int better_first(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    if (by_score[x] != by_score[y])
        return by_score[x] > by_score[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

static int ascending(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

Test(policy, the_best_are_chosen_and_of_equals_the_first)
{
    enum { N = 200, FIRST = 5 };
    uint32_t order[N], found[N];
    float score[N];

    by_score = score;
    srand(7);
    for (uint32_t round = 0; round < 200; round++) {
        const uint32_t n = 1 + (uint32_t)rand() % (N - 1);
        struct policy policy = parsed("infllm");
        uint32_t want;

        policy.n_pick = (uint32_t)rand() % 40;
        want = policy.n_pick < n ? policy.n_pick : n;
        for (uint32_t i = 0; i < n; i++) { /* with many equals */
            score[i] = (float)(rand() % 23 - 11);
            order[i] = i;
        }
        qsort(order, n, sizeof(*order), better_first);
        qsort(order, want, sizeof(*order), ascending);
        cr_assert_eq(policy_choose(&policy,
                                   (struct block_range){FIRST, FIRST + n},
                                   score, found),
                     want);
        for (uint32_t i = 0; i < want; i++)
            cr_assert_eq(found[i], FIRST + order[i], "round %u", round);
    }
}
