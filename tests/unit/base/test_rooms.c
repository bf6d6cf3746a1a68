/*
 * Rooms are held to a model that knows nothing of chunks: every byte of every
 * room is its owner's, whatever is taken and given in between. How much address
 * space that takes is held to the sum of what is in use.
 */
#include "base/rooms.h"

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
#define CHUNK (64 * MIB)

static struct rooms *make(void)
{
    struct rooms *rooms;

    cr_assert_eq(rooms_create(&rooms), STATUS_OK);
    return rooms;
}

static char *take(struct rooms *rooms, size_t bytes)
{
    void *room;

    cr_assert_eq(rooms_take(rooms, bytes, &room), STATUS_OK);
    cr_assert_eq((uintptr_t)room % 64, 0);
    return room;
}

static bool is_all(const char *room, size_t bytes, char value)
{
    for (size_t i = 0; i < bytes; i++)
        if (room[i] != value)
            return false;
    return true;
}

Test(rooms, every_byte_is_its_owners)
{
    static const size_t size[] = {1,       63,        4096,     32767,
                                  32768,   65537,     1400001,  2 * MIB,
                                  5 * MIB, 700 * 100, 17 * MIB, 66000};
    enum { N_ROOM = 24, N_TURN = 2000 };
    struct rooms *rooms = make();
    char *room[N_ROOM] = {0};
    size_t bytes[N_ROOM] = {0};
    uint64_t x = 1;

    for (int turn = 0; turn < N_TURN; turn++) {
        size_t i;

        x = x * 6364136223846793005u + 1442695040888963407u;
        i = (x >> 33) % N_ROOM;
        if (room[i]) {
            cr_assert(is_all(room[i], bytes[i], (char)i), "turn %d", turn);
            rooms_give(rooms, room[i]);
            room[i] = NULL;
        } else {
            bytes[i] = size[(x >> 40) % (sizeof(size) / sizeof(size[0]))];
            room[i] = take(rooms, bytes[i]);
            memset(room[i], (int)i, bytes[i]);
        }
    }
    for (size_t i = 0; i < N_ROOM; i++) {
        if (room[i])
            cr_assert(is_all(room[i], bytes[i], (char)i));
        rooms_give(rooms, room[i]);
    }
    cr_assert_leq(rooms_bytes(rooms), CHUNK);
    rooms_destroy(rooms);
}

Test(rooms, neighbours_that_are_free_are_one_room_again)
{
    struct rooms *rooms = make();
    char *room[64];

    for (int order = 0; order < 4; order++) {
        for (int i = 0; i < 64; i++)
            room[i] = take(rooms, MIB);
        cr_assert_eq(rooms_bytes(rooms), CHUNK);
        for (int i = 0; i < 64; i++) /* up, down, odd ones first, scattered */
            rooms_give(rooms,
                       room[order == 0   ? i
                            : order == 1 ? 63 - i
                            : order == 2 ? i < 32 ? 2 * i + 1 : 2 * i - 64
                                         : i * 37 % 64]);
        room[0] = take(rooms, CHUNK);
        cr_assert_eq(rooms_bytes(rooms), CHUNK, "order %d", order);
        rooms_give(rooms, room[0]);
    }
    rooms_destroy(rooms);
}

Test(rooms, the_lowest_room_that_is_free_is_taken)
{
    struct rooms *rooms = make();
    char *a = take(rooms, MIB), *b = take(rooms, MIB), *c = take(rooms, MIB);

    rooms_give(rooms, a);
    cr_assert_eq(take(rooms, MIB / 2), a);
    rooms_give(rooms, b);
    cr_assert_eq(take(rooms, MIB + MIB / 2), a + MIB / 2);
    rooms_give(rooms, a);
    rooms_give(rooms, a + MIB / 2);
    rooms_give(rooms, c);
    rooms_destroy(rooms);
}

Test(rooms, chunks_that_are_free_are_given_back_but_for_one)
{
    struct rooms *rooms = make();
    char *room[3], *large;

    for (int i = 0; i < 3; i++)
        room[i] = take(rooms, CHUNK);
    large = take(rooms, CHUNK + MIB);
    cr_assert_eq(rooms_bytes(rooms), 4 * CHUNK + MIB);
    for (int i = 0; i < 3; i++)
        rooms_give(rooms, room[i]);
    cr_assert_eq(rooms_bytes(rooms), 2 * CHUNK + MIB);
    rooms_give(rooms, large);
    cr_assert_eq(rooms_bytes(rooms), CHUNK);
    rooms_destroy(rooms);
}

Test(rooms, a_large_chunk_is_not_kept)
{
    struct rooms *rooms = make();

    rooms_give(rooms, take(rooms, CHUNK + 1));
    cr_assert_eq(rooms_bytes(rooms), 0);
    rooms_destroy(rooms);
}

Test(rooms, what_was_warmed_serves_first_and_stays)
{
    struct rooms *rooms = make();
    char *room[2];

    rooms_warm(rooms, 0);
    cr_assert_eq(rooms_bytes(rooms), 0);
    rooms_warm(rooms, 2 * CHUNK);
    cr_assert_eq(rooms_bytes(rooms), 2 * CHUNK);
    room[0] = take(rooms, CHUNK);
    room[1] = take(rooms, CHUNK);
    cr_assert_eq(rooms_bytes(rooms), 2 * CHUNK);
    rooms_give(rooms, room[0]);
    rooms_give(rooms, room[1]);
    cr_assert_eq(rooms_bytes(rooms), 2 * CHUNK);
    rooms_destroy(rooms);
}

Test(rooms, more_than_there_are_addresses_for_is_refused)
{
    struct rooms *rooms = make();
    char *small = take(rooms, 100000);
    void *room = NULL;

    memset(small, 7, 100000);
    cr_assert_eq(rooms_take(rooms, SIZE_MAX, &room), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(rooms_take(rooms, SIZE_MAX / 2, &room),
                 STATUS_RESOURCE_EXHAUSTED);
    cr_assert_null(room);
    cr_assert(is_all(small, 100000, 7));
    rooms_give(rooms, small);
    rooms_give(rooms, NULL);
    rooms_destroy(rooms);
    rooms_destroy(NULL);
}

Test(rooms, of_given_bytes_there_are_never_more)
{
    char *memory = malloc(MIB);
    struct rooms *rooms;
    void *room[4], *more;

    cr_assert_eq(rooms_create_in(memory, MIB, &rooms), STATUS_OK);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(rooms_take(rooms, MIB / 4, &room[i]), STATUS_OK);
        cr_assert((char *)room[i] >= memory &&
                  (char *)room[i] + MIB / 4 <= memory + MIB);
    }
    cr_assert_lt(rooms_left(rooms), MIB / 4 + 1);
    cr_assert_eq(rooms_take(rooms, MIB / 2, &more), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(rooms_take(rooms, 1, &room[3]), STATUS_OK);
    rooms_give(rooms, room[1]);
    cr_assert_eq(rooms_take(rooms, MIB / 4, &more), STATUS_OK);
    cr_assert_eq(more, room[1]);
    rooms_give(rooms, more);
    rooms_give(rooms, room[0]);
    rooms_give(rooms, room[2]);
    rooms_give(rooms, room[3]);
    rooms_destroy(rooms);
    free(memory);
}
