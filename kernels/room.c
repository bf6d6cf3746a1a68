#include "kernels/room.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define LINE_BYTES ((size_t)64)
#define HUGE_PAGE ((size_t)2 << 20)

void *room_take(size_t bytes)
{
    const size_t align = bytes < HUGE_PAGE ? LINE_BYTES : HUGE_PAGE;
    void *room;

    if (bytes > SIZE_MAX / 2)
        return NULL;
    room = aligned_alloc(align, (bytes + align) / align * align);
    /* Not the last, started page: an expert of W8 would take twice its size. */
    if (room && align == HUGE_PAGE)
        (void)madvise(room, bytes / align * align, MADV_HUGEPAGE);
    return room;
}
