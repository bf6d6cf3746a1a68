#ifndef BASE_ROOMS_H
#define BASE_ROOMS_H
/*
 * Large rooms of memory that come and go all the time, on huge pages. A fresh
 * page of 4 KiB costs 1.3 to 2 us on a virtual machine, fifteen times what it
 * takes to clear it, and whoever waits for the room waits for all its pages; as
 * a part of a huge page it costs 0.2. malloc() cannot have them: it grows by
 * little, and a huge page has to be there as a whole.
 *
 * Rooms are cut from chunks of addresses, lowest first, and become one again
 * with free neighbours. A chunk that is wholly free is given back, but for one.
 * Small rooms are malloc()'s. Any thread may call: like malloc() it has a lock.
 */
#include "base/status.h"

#include <stddef.h>

struct rooms;

/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status rooms_create(struct rooms **out);
/*
 * Of these bytes alone, which belong to the caller: all rooms are cut from
 * them, small ones too, and there are never more.
 *   RESOURCE_EXHAUSTED  no memory for what names the rooms
 */
MUST_CHECK enum status rooms_create_in(void *memory, size_t bytes,
                                       struct rooms **out);
/*
 * Have so many bytes at hand before they are wanted: a huge page that even the
 * machine's host has to find first takes 5 ms. A hint: without it, or with more
 * rooms than that, it is slower, not wrong.
 */
void rooms_warm(struct rooms *rooms, size_t bytes);
/* No room is in use any more. Accepts NULL. */
void rooms_destroy(struct rooms *rooms);

/* Aligned to 64 bytes, not cleared.  RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status rooms_take(struct rooms *rooms, size_t bytes,
                                  void **out);
void rooms_give(struct rooms *rooms, void *room); /* accepts NULL */

/* Bytes of addresses in chunks, and of them those of free runs; no run needs to
 * be as long. */
size_t rooms_bytes(struct rooms *rooms);
size_t rooms_left(struct rooms *rooms);
#endif
