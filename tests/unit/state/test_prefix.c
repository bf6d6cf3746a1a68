/*
 * The index against a model of itself: a list of what was put, searched by
 * comparing tokens. Chains are those of real logs, so a prefix that two logs
 * share is one that the index must find, and no other.
 */
#include "state/prefix.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKEN 2048u

static const struct digest empty = {1, 2};
static uint32_t token[N_TOKEN];
static struct prefix_index *known;

static void begin_with(uint32_t n_entry, size_t loose_bytes)
{
    struct prefix_limits limits = {n_entry, 4096, loose_bytes};

    prefix_destroy(known);
    known = NULL;
    cr_assert_eq(prefix_create(&limits, &known), STATUS_OK);
}

static void begin(void)
{
    for (uint32_t i = 0; i < N_TOKEN; i++)
        token[i] = i * 7919 % 512;
    begin_with(64, 1000);
}

static void end(void)
{
    prefix_destroy(known);
    prefix_destroy(NULL);
}

TestSuite(prefix, .init = begin, .fini = end, .timeout = 240);

static struct digest chain_at(uint64_t position)
{
    return digest_tokens(empty, token, position);
}

static struct uid uid_of(uint64_t n)
{
    return (struct uid){0x20, n};
}

static struct snapshot_entry entry_at(uint64_t position, uint64_t scope)
{
    return (struct snapshot_entry){
        .position = position, .chain = chain_at(position), .scope = scope};
}

static void put_live(uint64_t uid, uint64_t position, uint64_t scope)
{
    struct prefix_owner owner = {uid_of(uid), uid_of(uid), true, 100};
    struct snapshot_entry entry = entry_at(position, scope);

    prefix_put(known, &owner, &entry, 1);
}

static void put_loose(uint64_t uid, uint64_t session, uint64_t position,
                      size_t bytes)
{
    struct prefix_owner owner = {uid_of(uid), uid_of(session), true, bytes};
    struct snapshot_entry entry = entry_at(position, 0);

    prefix_put(known, &owner, &entry, 1);
}

static struct prefix_answer ask_from(uint64_t from, uint64_t limit,
                                     uint64_t scope)
{
    struct prefix_query query = {token, from, chain_at(from), limit, scope};
    struct prefix_answer answer;

    memset(&answer, 0xee, sizeof(answer));
    prefix_find(known, &query, &answer);
    return answer;
}

static uint64_t best(uint64_t limit, uint64_t scope)
{
    struct prefix_answer answer = ask_from(0, limit, scope);

    return answer.n_hit ? answer.hit[0].position : 0;
}

Test(prefix, nothing_is_found_in_nothing)
{
    struct prefix_answer answer = ask_from(0, N_TOKEN, 0);

    cr_assert_eq(answer.n_hit, 0);
    cr_assert_eq(answer.gone, 0);
    cr_assert_eq(answer.other, 0);
    cr_assert_eq(answer.seen, 0);
    cr_assert_eq(ask_from(0, 0, 0).n_hit, 0);
}

Test(prefix, the_best_is_at_or_before_what_is_shared)
{
    struct prefix_answer answer;

    put_live(1, 100, 0);
    put_live(2, 64, 0);
    put_live(3, 777, 0);
    cr_assert_eq(best(N_TOKEN, 0), 777);
    cr_assert_eq(best(777, 0), 777, "the limit counts");
    cr_assert_eq(best(776, 0), 100);
    cr_assert_eq(best(63, 0), 0);
    answer = ask_from(0, N_TOKEN, 0);
    cr_assert_eq(answer.n_hit, 3);
    cr_assert_eq(answer.hit[1].position, 100);
    cr_assert_eq(answer.hit[2].position, 64);
    cr_assert(uid_equal(answer.hit[0].uid, uid_of(3)));
    cr_assert(digest_equal(answer.hit[0].chain, chain_at(777)));
    token[700] ^= 1;
    cr_assert_eq(best(N_TOKEN, 0), 100, "other tokens before it");
    token[700] ^= 1;
    token[777] ^= 1;
    cr_assert_eq(best(N_TOKEN, 0), 777, "other tokens behind it");
    cr_assert_eq(ask_from(100, N_TOKEN, 0).n_hit, 1, "behind `from` only");
    cr_assert_eq(ask_from(777, N_TOKEN, 0).n_hit, 0);
}

Test(prefix, alternatives_are_the_best_few)
{
    struct prefix_answer answer;

    for (uint64_t i = 1; i <= 6; i++)
        put_live(i, 50 * i, 0);
    put_live(7, 300, 0); /* the same tokens, another owner */
    answer = ask_from(0, N_TOKEN, 0);
    cr_assert_eq(answer.n_hit, SNAPSHOT_SOURCE_MAX);
    cr_assert_eq(answer.hit[0].position, 300);
    cr_assert_eq(answer.hit[1].position, 300);
    cr_assert_not(uid_equal(answer.hit[0].uid, answer.hit[1].uid));
    cr_assert_eq(answer.hit[3].position, 200);
    prefix_remove(known, uid_of(7));
    prefix_remove(known, uid_of(7));
    cr_assert_eq(best(N_TOKEN, 0), 300, "the other one still has it");
    prefix_remove(known, uid_of(6));
    cr_assert_eq(best(N_TOKEN, 0), 250);
}

Test(prefix, an_owners_list_is_replaced_as_a_whole)
{
    struct prefix_owner owner = {uid_of(1), uid_of(1), true, 0};
    struct snapshot_entry entry[3] = {entry_at(300, 0), entry_at(200, 0),
                                      entry_at(100, 0)};

    prefix_put(known, &owner, entry, 3);
    cr_assert_eq(prefix_stats(known).n_entry, 3);
    entry[2] = entry_at(400, 0);
    prefix_put(known, &owner, entry + 1, 2);
    cr_assert_eq(prefix_stats(known).n_entry, 2);
    cr_assert_eq(best(399, 0), 200);
    cr_assert_eq(best(199, 0), 0);
    prefix_refuse(known, uid_of(1), 123);
    prefix_refuse(known, uid_of(2), 400);
    cr_assert_eq(prefix_stats(known).n_entry, 2);
    prefix_refuse(known, uid_of(1), 400);
    cr_assert_eq(best(N_TOKEN, 0), 200);
    prefix_refuse(known, uid_of(1), 200);
    cr_assert_eq(prefix_stats(known).n_owner, 0);
    prefix_put(known, &owner, entry, 1);
    prefix_put(known, &owner, entry, 0);
    cr_assert_eq(prefix_stats(known).n_owner, 0);
    cr_assert_eq(prefix_stats(known).n_entry, 0);
}

Test(prefix, a_scope_finds_only_its_own)
{
    put_live(1, 100, 7);
    put_live(2, 200, 8);
    cr_assert_eq(best(N_TOKEN, 7), 100);
    cr_assert_eq(best(N_TOKEN, 8), 200);
    cr_assert_eq(best(N_TOKEN, 0), 0);
    cr_assert_eq(ask_from(0, N_TOKEN, 8).seen, 1984 + 64);
    cr_assert_eq(ask_from(0, N_TOKEN, 9).seen, 0, "not what others asked");
}

Test(prefix, what_cannot_be_used_is_told_apart)
{
    struct prefix_owner owner = {uid_of(1), uid_of(1), false, 0};
    struct snapshot_entry entry = entry_at(500, 0);
    struct prefix_answer answer;

    prefix_put(known, &owner, &entry, 1);
    put_live(2, 100, 0);
    answer = ask_from(0, N_TOKEN, 0);
    cr_assert_eq(answer.n_hit, 1);
    cr_assert_eq(answer.hit[0].position, 100);
    cr_assert_eq(answer.other, 500);
    cr_assert_eq(answer.gone, 0);
    cr_assert(prefix_expect(known, chain_at(500), 0), "it can be made again");
}

Test(prefix, loose_ones_leave_by_age_and_are_remembered)
{
    struct prefix_answer answer;
    struct uid uid;

    put_loose(1, 0, 100, 400);
    put_loose(2, 0, 200, 400);
    cr_assert_not(prefix_take_excess(known, &uid));
    prefix_touch(known, uid_of(1));
    prefix_touch(known, uid_of(99));
    put_loose(3, 0, 300, 400);
    put_live(4, 150, 0);
    cr_assert_eq(prefix_stats(known).loose_bytes, 1200);
    cr_assert(prefix_take_excess(known, &uid));
    cr_assert(uid_equal(uid, uid_of(2)), "1 was of use since");
    cr_assert_not(prefix_take_excess(known, &uid));
    cr_assert_eq(prefix_stats(known).loose_bytes, 800);
    cr_assert_eq(prefix_stats(known).n_loose, 2);
    cr_assert_eq(best(299, 0), 150);
    answer = ask_from(0, 299, 0);
    cr_assert_eq(answer.gone, 200);
    prefix_remove(known, uid_of(2));
    cr_assert_eq(ask_from(0, 299, 0).gone, 200, "deleting it is no news");
    cr_assert(prefix_expect(known, chain_at(200), 0));
    put_loose(5, 0, 500, 5000); /* more than all of it */
    cr_assert(prefix_take_excess(known, &uid));
    cr_assert(prefix_take_excess(known, &uid));
    cr_assert(prefix_take_excess(known, &uid));
    cr_assert(uid_equal(uid, uid_of(5)));
    cr_assert_eq(prefix_stats(known).loose_bytes, 0);
    cr_assert_eq(best(N_TOKEN, 0), 150);
}

Test(prefix, a_deleted_session_takes_its_loose_ones_along)
{
    struct uid uid;

    put_loose(1, 70, 100, 600);
    put_loose(2, 71, 200, 300);
    put_loose(3, 70, 300, 300);
    cr_assert(prefix_take_excess(known, &uid), "1 is gone");
    cr_assert(prefix_take_loose(known, uid_of(70), &uid));
    cr_assert(uid_equal(uid, uid_of(3)));
    cr_assert(prefix_take_loose(known, uid_of(70), &uid));
    cr_assert(uid_equal(uid, uid_of(1)));
    cr_assert_not(prefix_take_loose(known, uid_of(70), &uid));
    cr_assert_eq(ask_from(0, 150, 0).gone, 0, "not even that is known");
    cr_assert_eq(best(N_TOKEN, 0), 200);
}

Test(prefix, the_number_of_snapshots_is_bounded)
{
    struct uid uid;
    uint32_t n_gone = 0;

    begin_with(PREFIX_ENTRY_MIN, 1 << 20);
    for (uint64_t i = 1; i <= 1000; i++)
        put_live(i, i, 0);
    cr_assert_eq(prefix_stats(known).n_entry, PREFIX_ENTRY_MIN);
    cr_assert_eq(best(N_TOKEN, 0), 1000);
    cr_assert_eq(best(1000 - PREFIX_ENTRY_MIN, 0), 0, "the oldest are gone");
    for (uint64_t i = 1; i <= 1000; i++) {
        put_loose(2000 + i, 0, i, 1);
        while (prefix_take_excess(known, &uid))
            n_gone++;
        cr_assert_leq(prefix_stats(known).n_entry, PREFIX_ENTRY_MIN);
        cr_assert_leq(prefix_stats(known).n_loose, PREFIX_ENTRY_MIN / 2);
    }
    cr_assert_eq(n_gone, 1000 - PREFIX_ENTRY_MIN / 2);
    cr_assert_eq(best(N_TOKEN, 0), 1000);
}

Test(prefix, one_snapshot_of_a_chain_is_under_way_at_a_time)
{
    struct digest chain = chain_at(100);

    cr_assert(prefix_expect(known, chain, 0));
    cr_assert_not(prefix_expect(known, chain, 0));
    cr_assert(prefix_expect(known, chain, 1), "of another tenant");
    prefix_expect_over(known, chain, 0);
    prefix_expect_over(known, chain, 0);
    cr_assert(prefix_expect(known, chain, 0));
    prefix_expect_over(known, chain, 0);
    put_live(1, 100, 0);
    cr_assert_not(prefix_expect(known, chain, 0), "it is stored");
    for (uint64_t i = 0; i < PREFIX_EXPECT_MAX - 1; i++)
        cr_assert(prefix_expect(known, chain_at(200 + i), 0));
    cr_assert_not(prefix_expect(known, chain_at(900), 0), "too many");
}

Test(prefix, how_far_an_earlier_prompt_goes_is_known_on_the_grid)
{
    cr_assert_eq(ask_from(0, 1000, 0).seen, 0);
    token[500] ^= 1;
    cr_assert_eq(ask_from(0, 1000, 0).seen, 448, "shares 500 tokens");
    cr_assert_eq(ask_from(0, 1000, 0).seen, 960, "shares all");
    token[500] ^= 1;
    cr_assert_eq(ask_from(0, N_TOKEN, 0).seen, 960, "and goes on");
    cr_assert_eq(ask_from(960, N_TOKEN, 0).seen, 2048);
    cr_assert_eq(ask_from(0, 63, 0).seen, 0);
    token[0] ^= 1;
    cr_assert_eq(ask_from(0, N_TOKEN, 0).seen, 0);
}

/* Random puts and removals; the oracle compares tokens. */
Test(prefix, agrees_with_a_list)
{
    enum { N = 40, LOGS = 4, LENGTH = 640 };
    struct {
        bool is_there;
        uint32_t log;
        uint64_t position, scope;
    } list[N] = {0};
    uint32_t log[LOGS][LENGTH];
    uint64_t random = 11;

    for (uint32_t l = 0; l < LOGS; l++) /* each leaves the one before */
        for (uint32_t i = 0; i < LENGTH; i++)
            log[l][i] = l > 0 && i < 100 * l ? log[l - 1][i] : 1000 * l + i;
    for (uint32_t round = 0; round < 3000; round++) {
        uint32_t i, l;
        uint64_t scope, want = 0, limit;

        random = random * 6364136223846793005u + 1442695040888963407u;
        i = (uint32_t)(random >> 33) % N;
        l = (uint32_t)(random >> 40) % LOGS;
        scope = (random >> 45) % 2;
        limit = (random >> 46) % LENGTH + 1;
        memcpy(token, log[l], sizeof(log[l]));
        if (list[i].is_there && random >> 63) {
            prefix_remove(known, uid_of(i));
            list[i].is_there = false;
        } else {
            put_live(i, limit, scope);
            list[i].is_there = true;
            list[i].log = l;
            list[i].position = limit;
            list[i].scope = scope;
        }
        l = (l + round) % LOGS;
        limit = (random >> 20) % LENGTH;
        memcpy(token, log[l], sizeof(log[l]));
        for (i = 0; i < N; i++)
            if (list[i].is_there && list[i].scope == scope &&
                list[i].position <= limit && list[i].position > want &&
                memcmp(log[l], log[list[i].log], list[i].position * 4) == 0)
                want = list[i].position;
        cr_assert_eq(best(limit, scope), want, "round %u", round);
    }
}
