#include "kernels/room.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define LINE_BYTES ((size_t)64)

void *room_take(size_t bytes)
{
    const size_t align = bytes < ROOM_HUGE_BYTES ? LINE_BYTES : ROOM_HUGE_BYTES;
    void *room;

    if (bytes > SIZE_MAX / 2)
        return NULL;
    room = aligned_alloc(align, (bytes + align) / align * align);
    /* Not the last, started page: an expert of W8 would take twice its size. */
    if (room && align == ROOM_HUGE_BYTES)
        (void)madvise(room, bytes / align * align, MADV_HUGEPAGE);
    return room;
}
