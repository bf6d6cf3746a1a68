#include "base/ring.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define LINE_BYTES 64u /* what one core's write takes from another's cache */

/*
 * A cell's turn says whose it is. Position p belongs to round p / capacity;
 * turn 2*round: free for the producer of that round; 2*round + 1: holds its
 * item. Counting halves of rounds and not positions lets a capacity of 1 work.
 */
struct cell {
    _Atomic uint64_t turn;
    unsigned char item[];
};

struct ring {
    _Alignas(LINE_BYTES) _Atomic uint64_t tail; /* next position to fill */
    _Alignas(LINE_BYTES) _Atomic uint64_t head; /* next position to empty */
    /* The consumer is about to poll; whoever clears it must write wake_fd. */
    _Alignas(LINE_BYTES) _Atomic bool is_asleep;
    int wake_fd;
    unsigned shift; /* capacity is 1 << shift */
    size_t item_bytes;
    size_t stride; /* bytes from cell to cell */
    unsigned char *cells;
};

static struct cell *cell_at(const struct ring *ring, uint64_t position)
{
    uint64_t mask = ((uint64_t)1 << ring->shift) - 1;

    return (struct cell *)(void *)(ring->cells +
                                   (position & mask) * ring->stride);
}

enum status ring_create(uint32_t capacity, size_t item_bytes, struct ring **out)
{
    struct ring *ring;
    size_t n_cell = 1;
    unsigned shift = 0;

    if (capacity == 0 || capacity > RING_CAPACITY_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "ring capacity is %u, expected 1 to %u", capacity,
                           RING_CAPACITY_MAX);
    if (item_bytes == 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "ring items have 0 bytes, expected 1 or more");
    for (; n_cell < capacity; n_cell *= 2)
        shift++;
    ring = aligned_alloc(LINE_BYTES, sizeof(*ring));
    if (!ring)
        goto no_memory;
    memset(ring, 0, sizeof(*ring));
    ring->wake_fd = -1;
    ring->shift = shift;
    ring->item_bytes = item_bytes;
    if (item_bytes > SIZE_MAX / RING_CAPACITY_MAX - LINE_BYTES)
        goto no_memory;
    ring->stride = (sizeof(struct cell) + item_bytes + 7) / 8 * 8;
    ring->cells = calloc(n_cell, ring->stride); /* zero: free in round 0 */
    if (!ring->cells)
        goto no_memory;
    ring->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ring->wake_fd < 0) {
        enum status st =
            status_fail(STATUS_RESOURCE_EXHAUSTED,
                        "no file descriptor for a ring: %s", strerror(errno));

        ring_destroy(ring);
        return st;
    }
    *out = ring;
    return STATUS_OK;

no_memory:
    ring_destroy(ring);
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "no memory for a ring of %zu items of %zu bytes", n_cell,
                       item_bytes);
}

void ring_destroy(struct ring *ring)
{
    if (!ring)
        return;
    if (ring->wake_fd >= 0)
        (void)close(ring->wake_fd);
    free(ring->cells);
    free(ring);
}

bool ring_push(struct ring *ring, const void *item)
{
    uint64_t position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    struct cell *cell;
    uint64_t want;

    for (;;) {
        uint64_t turn;

        cell = cell_at(ring, position);
        want = 2 * (position >> ring->shift);
        turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        if (turn < want)
            return false; /* still holds the item of a round ago */
        if (turn > want)
            position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
        else if (atomic_compare_exchange_weak_explicit(
                     &ring->tail, &position, position + 1, memory_order_relaxed,
                     memory_order_relaxed))
            break;
    }
    memcpy(cell->item, item, ring->item_bytes);
    /*
     * Sequentially consistent, as are the flag here and both in ring_wait():
     * either we see that the consumer sleeps, or it sees our item.
     */
    atomic_store(&cell->turn, want + 1);
    if (atomic_load(&ring->is_asleep) &&
        atomic_exchange(&ring->is_asleep, false))
        ring_kick(ring);
    return true;
}

static bool is_filled(const struct ring *ring, uint64_t position)
{
    uint64_t turn = atomic_load(&cell_at(ring, position)->turn);

    return turn == 2 * (position >> ring->shift) + 1;
}

bool ring_pop(struct ring *ring, void *out_item)
{
    uint64_t position = atomic_load_explicit(&ring->head, memory_order_relaxed);
    struct cell *cell = cell_at(ring, position);

    if (!is_filled(ring, position))
        return false;
    memcpy(out_item, cell->item, ring->item_bytes);
    atomic_store_explicit(&cell->turn, 2 * (position >> ring->shift) + 2,
                          memory_order_release);
    atomic_store_explicit(&ring->head, position + 1, memory_order_relaxed);
    return true;
}

uint32_t ring_count(const struct ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    uint64_t capacity = (uint64_t)1 << ring->shift;

    if (tail <= head)
        return 0;
    return (uint32_t)(tail - head < capacity ? tail - head : capacity);
}

void ring_wait(struct ring *ring, int timeout_ms)
{
    struct pollfd wake = {.fd = ring->wake_fd, .events = POLLIN};
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);

    atomic_store(&ring->is_asleep, true);
    if (!is_filled(ring, head) && poll(&wake, 1, timeout_ms) > 0) {
        uint64_t n_wake;

        /* A wake-up written after this read is kept for the next wait. */
        if (read(ring->wake_fd, &n_wake, sizeof(n_wake)) < 0)
            n_wake = 0;
    }
    atomic_store(&ring->is_asleep, false);
}

void ring_kick(struct ring *ring)
{
    const uint64_t one = 1;
    ssize_t n;

    /* Refused only when the count is full, and then the consumer wakes. */
    do
        n = write(ring->wake_fd, &one, sizeof(one));
    while (n < 0 && errno == EINTR);
}
