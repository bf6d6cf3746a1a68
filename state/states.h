#ifndef STATE_STATES_H
#define STATE_STATES_H
/*
 * The states of all layers of one session, one behind the other in one room.
 * Whoever is their only holder may write them; images hold them while they are
 * stored, so that nothing is copied unless the session goes on first. One
 * thread holds and lets go.
 *
 * Rooms are where the model's memory is: on its device, else among its rooms.
 */
#include "kernels/device.h"
#include "model/model.h"

struct states {
    uint32_t n_holder; /* their memory, if it still has them, and images */
    void *room;
};

/*
 * By `device`, a queue of the model's device, or NULL if it has none. Zeroed
 * with a device only: who copies into a host's room need not clear it.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status home_take(const struct model *model,
                                 struct device *device, size_t bytes,
                                 void **out);
/* Zeroed without a device as well. */
void home_clear(struct device *device, void *room, size_t bytes);
void home_give(const struct model *model, struct device *device, void *room);

/* Held once, of one such room.
 *   RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status states_take(const struct model *model,
                                   struct device *device, size_t bytes,
                                   struct states **out);
void states_let_go(const struct model *model, struct device *device,
                   struct states *states); /* accepts NULL */
#endif
