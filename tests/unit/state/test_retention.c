/*
 * The ladder, against its definition: what must stay is worked out from the set
 * of positions alone, cell by cell, and every snapshot that a long session ever
 * takes is let go by retention_victim() one at a time.
 */
#include "state/retention.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

struct list {
    struct snapshot_entry entry[SNAPSHOT_KEEP_MAX + 1];
    uint32_t n;
};

static void add(struct list *list, struct snapshot_entry entry)
{
    uint32_t i = 0;

    while (i < list->n && list->entry[i].position > entry.position)
        i++;
    memmove(&list->entry[i + 1], &list->entry[i],
            (list->n - i) * sizeof(entry));
    list->entry[i] = entry;
    list->n++;
    while ((i = retention_victim(list->entry, list->n)) < list->n) {
        list->n--;
        memmove(&list->entry[i], &list->entry[i + 1],
                (list->n - i) * sizeof(entry));
    }
}

static bool has(const struct list *list, uint64_t position)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (list->entry[i].position == position)
            return true;
    return false;
}

/* A million tokens, a snapshot at each grid point and at ends of turns. */
Test(retention, a_long_session_keeps_a_ladder)
{
    struct list list = {.n = 0};
    uint64_t newest = 0;

    for (uint64_t turn = 0; turn < 1100; turn++) {
        uint64_t end = (turn + 1) * 950 + turn % 7;

        for (uint64_t p = newest / 4096 * 4096 + 4096; p <= end; p += 4096)
            add(&list, (struct snapshot_entry){.position = p});
        newest = end;
        if (!has(&list, end))
            add(&list, (struct snapshot_entry){.position = end});
        cr_assert_eq(list.entry[0].position, end);
        cr_assert_leq(list.n, SNAPSHOT_KEEP_MAX - 1);
        for (uint64_t p = 4096; p <= newest; p += 4096) {
            const bool is_near = newest - p <= 32768;

            if (is_near || p % 32768 == 0)
                cr_assert(has(&list, p), "%lu of %lu", p, newest);
            else if (list.entry[1].position != p)
                cr_assert(!has(&list, p), "%lu of %lu", p, newest);
        }
    }
    cr_assert_leq(list.n, 2 + 9 + 33);
}

/* So a fork or a rewind replays 4,096 tokens near the end, 32,768 before. */
Test(retention, no_position_is_far_from_one)
{
    struct list list = {.n = 0};

    for (uint64_t p = 4096; p <= 400000; p += 4096)
        add(&list, (struct snapshot_entry){.position = p});
    for (uint64_t at = 4096; at < list.entry[0].position; at += 100) {
        uint64_t below = 0;

        for (uint32_t i = list.n; i-- > 0;)
            if (list.entry[i].position <= at)
                below = list.entry[i].position;
        cr_assert_lt(at - below,
                     list.entry[0].position - at < 28000 ? 4096 : 32768);
    }
}

Test(retention, what_a_client_asked_for_stays)
{
    struct list list = {.n = 0};

    for (uint64_t p = 1; p <= 40; p++)
        add(&list, (struct snapshot_entry){.position = 100 * p,
                                           .is_pinned = p % 3 == 0});
    for (uint64_t p = 3; p <= 39; p += 3)
        cr_assert_eq(has(&list, 100 * p), p > 39 - 3 * SNAPSHOT_PINNED_MAX,
                     "%lu", p);
    cr_assert_eq(list.n, 2 + SNAPSHOT_PINNED_MAX + 1 - 1);
}

/* However long: there is always room for the next one. */
Test(retention, a_list_never_fills)
{
    struct list list = {.n = 0};

    for (uint64_t p = 32768; p <= 32768ull * 300; p += 32768) {
        add(&list, (struct snapshot_entry){.position = p,
                                           .is_shared = p % 5 == 0,
                                           .is_pinned = p % 7 == 0});
        cr_assert_lt(list.n, SNAPSHOT_KEEP_MAX);
        cr_assert_eq(list.entry[0].position, p);
    }
    cr_assert_gt(list.n, SNAPSHOT_KEEP_MAX - 2);
}
