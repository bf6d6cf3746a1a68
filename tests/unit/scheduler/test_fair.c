/*
 * Counters by hand, then the bound of the paper on a made-up service.
 */
#include "scheduler/fair.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct fair *made(uint32_t n)
{
    struct fair *fair = NULL;

    cr_assert_eq(fair_create(n, &fair), STATUS_OK);
    return fair;
}

static uint32_t wanting(struct fair *fair, const char *name)
{
    uint32_t tenant = fair_enter(fair, name);

    fair_want(fair, tenant);
    return tenant;
}

static void gone(struct fair *fair, uint32_t tenant)
{
    fair_satisfy(fair, tenant);
    fair_leave(fair, tenant);
}

Test(fair, tokens_count_by_their_weights)
{
    struct fair *fair = made(4);
    uint32_t a = wanting(fair, "a"), b = wanting(fair, "");

    cr_assert_neq(a, b);
    cr_assert_lt(a, fair_places(fair));
    cr_assert_eq(wanting(fair, "a"), a);
    fair_charge(fair, a, 10, 3);
    cr_assert_eq(fair_counter(fair, a), 10 * FAIR_PROMPT + 3 * FAIR_OUTPUT);
    cr_assert_eq(fair_counter(fair, b), 0);
    fair_destroy(fair);
}

Test(fair, who_comes_back_is_lifted_to_the_least_of_those_that_want)
{
    struct fair *fair = made(4);
    uint32_t a = wanting(fair, "a"), b = wanting(fair, "b"), c;

    fair_charge(fair, a, 1000, 0);
    fair_charge(fair, b, 400, 0);
    c = fair_enter(fair, "c");
    cr_assert_eq(fair_counter(fair, c), 0);
    fair_want(fair, c);
    cr_assert_eq(fair_counter(fair, c), 400);
    cr_assert_eq(fair_enter(fair, "b"), b);
    fair_want(fair, b); /* it wants already: no lift, no second claim */
    cr_assert_eq(fair_counter(fair, b), 400);
    gone(fair, c);
    c = wanting(fair, "c");
    cr_assert_eq(fair_counter(fair, c), 400);
    fair_destroy(fair);
}

/* One that only generates does not save up a claim. */
Test(fair, who_has_no_prompt_is_lifted_when_it_has_one)
{
    struct fair *fair = made(4);
    uint32_t a = wanting(fair, "a"), b = wanting(fair, "b");

    fair_satisfy(fair, a);
    fair_charge(fair, b, 5000, 0);
    fair_want(fair, a);
    cr_assert_eq(fair_counter(fair, a), 5000);
    fair_satisfy(fair, b);
    fair_satisfy(fair, a);
    fair_charge(fair, a, 0, 50);
    fair_want(fair, b); /* nobody wants: where the last one ended */
    cr_assert_eq(fair_counter(fair, b), 5000);
    fair_destroy(fair);
}

Test(fair, a_counter_is_never_lowered)
{
    struct fair *fair = made(4);
    uint32_t a = wanting(fair, "a"), b;

    fair_charge(fair, a, 700, 0);
    gone(fair, a);
    b = wanting(fair, "b");
    cr_assert_eq(fair_counter(fair, b), 700);
    cr_assert_eq(wanting(fair, "a"), a);
    cr_assert_eq(fair_counter(fair, a), 700);
    fair_destroy(fair);
}

Test(fair, those_away_for_longest_are_forgotten_first)
{
    struct fair *fair = made(2); /* four places */
    uint32_t tenant[3];
    char name[8];

    for (uint32_t i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "t%u", i);
        tenant[i] = wanting(fair, name);
        fair_charge(fair, tenant[i], 100 * (3 - i), 0);
        gone(fair, tenant[i]);
    }
    for (uint32_t i = 10; i < 12; i++) {
        snprintf(name, sizeof(name), "t%u", i);
        fair_enter(fair, name);
    }
    cr_assert_eq(fair_enter(fair, "t2"), tenant[2]);
    cr_assert_eq(fair_enter(fair, "t1"), tenant[1]);
    fair_destroy(fair);
}

Test(fair, long_names_are_cut)
{
    struct fair *fair = made(2);
    char name[200];

    memset(name, 'x', sizeof(name));
    name[199] = 0;
    cr_assert_eq(fair_enter(fair, name), fair_enter(fair, name + 50));
    fair_destroy(fair);
}
