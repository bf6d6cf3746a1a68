#ifndef STATE_STATES_H
#define STATE_STATES_H
/*
 * The states of all layers of one session, one behind the other in one room.
 * Whoever is their only holder may write them; images hold them while they are
 * stored, so that nothing is copied unless the session goes on first. One
 * thread holds and lets go.
 *
 * Rooms are where the session's memory is: on a device, or among rooms of the
 * host.
 */
#include "kernels/device.h"
#include "model/model.h"

/* One of the two is NULL. */
struct home {
    struct device *device; /* a queue of it */
    struct rooms *rooms;
};

struct states {
    uint32_t n_holder; /* their memory, if it still has them, and images */
    void *room;
    struct rooms *rooms; /* NULL: it is a device's */
};

/*
 * Zeroed on a device only: who copies into a host's room need not clear it.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status home_take(struct home home, size_t bytes, void **out);
/* Zeroed on the host as well. */
void home_clear(struct home home, void *room, size_t bytes);
void home_give(struct home home, void *room);

/* Held once, of one such room.
 *   RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status states_take(struct home home, size_t bytes,
                                   struct states **out);
/* The device is not asked for those of the host. Accepts no states. */
void states_let_go(struct device *device, struct states *states);
#endif
