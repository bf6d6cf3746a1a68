/*
 * One thread holds the ring to a plain queue: what goes in comes out, in order,
 * and full and empty are where they should be. Threads meet in race_ring.c.
 */
#include "base/ring.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>
#include <sys/resource.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

Test(ring, holds_its_capacity_rounded_up)
{
    const uint32_t capacity[] = {1, 2, 3, 4, 5, 63, 64, 65};
    const uint32_t rounded[] = {1, 2, 4, 4, 8, 64, 64, 128};

    for (size_t i = 0; i < sizeof(capacity) / sizeof(capacity[0]); i++) {
        struct ring *ring = NULL;
        uint32_t item = 0, n = 0;

        must(ring_create(capacity[i], sizeof(item), &ring));
        cr_assert(not(ring_pop(ring, &item)));
        while (n < 1000 && ring_push(ring, &n))
            cr_assert(eq(u32, ring_count(ring), ++n));
        cr_assert(eq(u32, n, rounded[i]));
        for (uint32_t k = 0; k < n; k++) {
            cr_assert(ring_pop(ring, &item));
            cr_assert(eq(u32, item, k));
            cr_assert(eq(u32, ring_count(ring), n - k - 1));
        }
        cr_assert(not(ring_pop(ring, &item)));
        ring_destroy(ring);
    }
}

Test(ring, behaves_as_a_queue_over_many_rounds)
{
    for (uint32_t capacity = 1; capacity <= 8; capacity *= 2) {
        uint64_t pushed = 0, popped = 0, item = 0, seed = capacity;
        struct ring *ring = NULL;

        must(ring_create(capacity, sizeof(item), &ring));
        for (int i = 0; i < 10000; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            if (seed >> 63) {
                bool is_taken = ring_push(ring, &pushed);

                cr_assert(eq(int, is_taken, pushed - popped < capacity));
                pushed += is_taken;
            } else {
                bool is_given = ring_pop(ring, &item);

                cr_assert(eq(int, is_given, pushed > popped));
                if (is_given)
                    cr_assert(eq(u64, item, popped++));
            }
            cr_assert(eq(u32, ring_count(ring), (uint32_t)(pushed - popped)));
        }
        cr_assert(gt(u64, popped, 1000));
        ring_destroy(ring);
    }
}

Test(ring, items_of_any_size_are_copied_whole)
{
    const size_t size[] = {1, 3, 7, 8, 9, 63, 64, 65, 4001};
    unsigned char in[4001], out[4002];

    for (size_t i = 0; i < sizeof(size) / sizeof(size[0]); i++) {
        struct ring *ring = NULL;

        must(ring_create(3, size[i], &ring));
        for (int round = 0; round < 9; round++) {
            for (int k = 0; k < 3; k++) {
                memset(in, 1 + round * 3 + k, sizeof(in));
                cr_assert(ring_push(ring, in));
            }
            for (int k = 0; k < 3; k++) {
                memset(out, 0, sizeof(out));
                memset(in, 1 + round * 3 + k, sizeof(in));
                cr_assert(ring_pop(ring, out));
                cr_assert(eq(int, memcmp(in, out, size[i]), 0));
                cr_assert(eq(u8, out[size[i]], 0));
            }
        }
        ring_destroy(ring);
    }
}

/* Each wait below would outlast the test's time limit if it did not end. */
Test(ring, wait_ends_at_an_item_a_kick_or_its_time, .timeout = 10)
{
    struct ring *ring = NULL;
    int item = 1;

    must(ring_create(4, sizeof(item), &ring));
    ring_wait(ring, 0);
    ring_wait(ring, 1);
    cr_assert(ring_push(ring, &item));
    ring_wait(ring, -1);
    ring_wait(ring, -1); /* still there */
    cr_assert(ring_pop(ring, &item));
    ring_kick(ring);
    ring_wait(ring, -1);
    ring_kick(ring); /* many kicks are one */
    ring_kick(ring);
    ring_wait(ring, -1);
    ring_wait(ring, 1);
    ring_destroy(ring);
}

Test(ring, impossible_shapes_are_refused)
{
    struct ring *ring = NULL;

    cr_assert(eq(int, ring_create(0, 4, &ring), STATUS_INVALID_ARGUMENT));
    cr_assert_str_eq(status_reason(),
                     "ring capacity is 0, expected 1 to 1048576");
    cr_assert(eq(int, ring_create(RING_CAPACITY_MAX + 1, 4, &ring),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(eq(int, ring_create(4, 0, &ring), STATUS_INVALID_ARGUMENT));
    cr_assert(
        eq(int, ring_create(4, SIZE_MAX, &ring), STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(int, ring_create(RING_CAPACITY_MAX, (size_t)1 << 42, &ring),
                 STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(ptr, ring, NULL));
    must(ring_create(RING_CAPACITY_MAX, 1, &ring));
    ring_destroy(ring);
    ring_destroy(NULL);
}

Test(ring, without_a_file_descriptor_there_is_no_ring)
{
    struct rlimit limit, none;
    struct ring *ring = NULL;
    enum status st;

    cr_assert(eq(int, getrlimit(RLIMIT_NOFILE, &limit), 0));
    none = limit;
    none.rlim_cur = 0;
    cr_assert(eq(int, setrlimit(RLIMIT_NOFILE, &none), 0));
    st = ring_create(4, 4, &ring);
    cr_assert(eq(int, setrlimit(RLIMIT_NOFILE, &limit), 0));
    cr_assert(eq(int, st, STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(ptr, ring, NULL));
}
