#ifndef BASE_RING_H
#define BASE_RING_H
/*
 * A bounded queue of plain structs from any number of producers to one
 * consumer: the only way threads meet. Lock-free (D. Vyukov's bounded queue:
 * one sequence number per cell); the consumer sleeps in ring_wait() and costs
 * nothing while idle, and a producer makes a system call only when it sleeps.
 * Items are copied in and out. Per producer, order is kept.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

#define RING_CAPACITY_MAX (1u << 20)

struct ring;

/*
 * capacity is rounded up to a power of two.
 *   INVALID_ARGUMENT    capacity 0 or above RING_CAPACITY_MAX, or no item size
 *   RESOURCE_EXHAUSTED  no memory, or no file descriptor for the wake-up
 */
MUST_CHECK enum status ring_create(uint32_t capacity, size_t item_bytes,
                                   struct ring **out);
void ring_destroy(struct ring *ring);

/* False when full; the item is then not taken. Any thread. */
bool ring_push(struct ring *ring, const void *item);

/* False when empty. The consumer's thread only. */
bool ring_pop(struct ring *ring, void *out_item);

/* Items now queued, approximate while others push. */
uint32_t ring_count(const struct ring *ring);

/*
 * Sleep until an item is there, ring_kick() is called, or timeout_ms is over
 * (negative: no limit). May return early. The consumer's thread only.
 */
void ring_wait(struct ring *ring, int timeout_ms);

/* Wake the consumer without an item. Any thread. */
void ring_kick(struct ring *ring);
#endif
