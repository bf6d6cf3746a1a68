/*
 * Slots in a file: each keeps its bytes whether it is in RAM or not, comes
 * zeroed, and there are as many as was said.
 */
#include "state/spill.h"

#include <criterion/criterion.h>
#include <string.h>

enum { N = 5, BYTES = 5000 };

static bool holds(const unsigned char *slot, size_t n, int value)
{
    for (size_t i = 0; i < n; i++)
        if (slot[i] != value)
            return false;
    return true;
}

Test(spill, slots_keep_their_bytes_out_of_ram_and_come_back_zeroed)
{
    struct spill *spill;
    void *slot[N], *more = NULL;

    cr_assert_eq(spill_create("/var/tmp", BYTES, N, &spill), STATUS_OK, "%s",
                 status_reason());
    cr_assert_eq(spill_slot_bytes(spill), 8192);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            cr_assert_eq(spill_take(spill, &slot[i]), STATUS_OK);
            cr_assert(holds(slot[i], BYTES, 0), "round %d slot %d", round, i);
            memset(slot[i], 1 + i, BYTES);
        }
        cr_assert_eq(spill_take(spill, &more), STATUS_RESOURCE_EXHAUSTED);
        cr_assert_null(more);
        spill_release(spill, slot, N);
        for (int i = 0; i < N; i++)
            cr_assert(holds(slot[i], BYTES, 1 + i));
        for (int i = round; i < N + round; i++) /* in another order */
            spill_put(spill, slot[i * 2 % N]);
    }
    spill_destroy(spill);
}

Test(spill, says_why_there_is_none)
{
    struct spill *spill = NULL;

    cr_assert_eq(spill_create("/nowhere", BYTES, N, &spill),
                 STATUS_INVALID_ARGUMENT);
    cr_assert(strstr(status_reason(), "/nowhere"));
    cr_assert_eq(spill_create("/var/tmp", (size_t)1 << 40, 1u << 20, &spill),
                 STATUS_RESOURCE_EXHAUSTED);
    cr_assert_null(spill);
    spill_destroy(NULL);
}
