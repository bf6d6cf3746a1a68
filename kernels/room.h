#ifndef KERNELS_ROOM_H
#define KERNELS_ROOM_H
/*
 * Memory that kernels pass through by the megabyte: weights, scratch, rows of
 * activations. From 2 MiB on it asks for huge pages, because from small ones
 * such passes are bound by address translation; refused, it is slower, not
 * wrong.
 */
#include <stddef.h>

/* From so many bytes on a room has huge pages of its own. */
#define ROOM_HUGE_BYTES ((size_t)2 << 20)

/* 64-byte aligned, for free(); contents undefined. NULL: no memory. */
void *room_take(size_t bytes);
#endif
