/* An arena is right if its pieces are zeroed, aligned, apart, and bounded. */
#include "base/arena.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdint.h>
#include <string.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

Test(arena, pieces_are_zeroed_aligned_and_apart)
{
    enum { N = 300 };
    struct arena *arena = NULL;
    unsigned char *piece[N];

    must(arena_create(1u << 20, &arena));
    for (size_t i = 0; i < N; i++) {
        size_t n_bytes = (i * 37) % 1500;

        piece[i] = arena_take(arena, n_bytes);
        cr_assert(ne(ptr, piece[i], NULL));
        cr_assert(eq(u64, (uintptr_t)piece[i] % 16, 0));
        for (size_t b = 0; b < n_bytes; b++)
            cr_assert(eq(u8, piece[i][b], 0));
        memset(piece[i], (int)(i + 1), n_bytes);
    }
    for (size_t i = 0; i < N; i++)
        for (size_t b = 0; b < (i * 37) % 1500; b++)
            cr_assert(eq(u8, piece[i][b], (uint8_t)(i + 1)));
    arena_destroy(arena);
}

Test(arena, the_maximum_may_be_taken_and_no_more)
{
    const size_t max[] = {1, 16, 100, 4096, 5000, 100000};

    for (size_t i = 0; i < sizeof(max) / sizeof(max[0]); i++) {
        struct arena *arena = NULL;

        must(arena_create(max[i], &arena));
        cr_assert(eq(ptr, arena_take(arena, max[i] + 1), NULL));
        cr_assert(eq(int, status_cause()->code, STATUS_RESOURCE_EXHAUSTED));
        cr_assert(eq(sz, arena_bytes(arena), 0));
        cr_assert(ne(ptr, arena_take(arena, max[i]), NULL));
        cr_assert(eq(sz, arena_bytes(arena), max[i]));
        cr_assert(eq(ptr, arena_take(arena, 1), NULL));
        arena_destroy(arena);
    }
}

Test(arena, small_pieces_never_pass_the_maximum)
{
    struct arena *arena = NULL;
    size_t n_taken = 0;

    must(arena_create(50000, &arena));
    while (n_taken < 50000 && arena_take(arena, 24)) {
        n_taken++;
        cr_assert(le(sz, arena_bytes(arena), 50000));
        cr_assert(ge(sz, arena_bytes(arena), n_taken * 24));
    }
    cr_assert(gt(sz, n_taken, 1500)); /* of 24 bytes, 32 with alignment */
    cr_assert(lt(sz, n_taken, 1564));
    cr_assert_str_eq(status_reason(),
                     "arena has 50000 bytes and needs 24 more, limit 50000");
    arena_destroy(arena);
}

Test(arena, impossible_sizes_are_refused)
{
    struct arena *arena = NULL;

    must(arena_create(SIZE_MAX, &arena));
    cr_assert(eq(ptr, arena_take(arena, SIZE_MAX), NULL));
    cr_assert(eq(ptr, arena_take(arena, SIZE_MAX - 64), NULL));
    cr_assert(eq(ptr, arena_take(arena, SIZE_MAX / 2), NULL));
    cr_assert(eq(int, status_cause()->code, STATUS_RESOURCE_EXHAUSTED));
    cr_assert(ne(ptr, arena_take(arena, 10), NULL));
    arena_destroy(arena);
}

Test(arena, a_copy_ends_with_a_nul)
{
    const char bytes[] = {'a', 0, 'b'};
    struct arena *arena = NULL;
    char *copy;

    must(arena_create(1000, &arena));
    copy = arena_copy(arena, bytes, 3);
    cr_assert(eq(int, memcmp(copy, "a\0b", 4), 0));
    copy = arena_copy(arena, "0123456789abcdef", 16);
    memset(arena_take(arena, 16), 'x', 16);
    cr_assert_str_eq(copy, "0123456789abcdef");
    copy = arena_copy(arena, NULL, 0);
    cr_assert_str_eq(copy, "");
    cr_assert(eq(ptr, arena_copy(arena, bytes, 1000), NULL));
    cr_assert(eq(int, status_cause()->code, STATUS_RESOURCE_EXHAUSTED));
    arena_destroy(arena);
}

Test(arena, nothing_may_be_destroyed)
{
    arena_destroy(NULL);
}
