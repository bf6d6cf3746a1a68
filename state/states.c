#include "state/states.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES 64u

_Static_assert(sizeof(struct states) <= ALIGN_BYTES, "");

enum status home_take(const struct model *model, struct device *device,
                      size_t bytes, void **out)
{
    return device ? device_take(device, bytes, out)
                  : rooms_take(model_rooms(model), bytes, out);
}

void home_clear(struct device *device, void *room, size_t bytes)
{
    if (!device)
        memset(room, 0, bytes);
}

void home_give(const struct model *model, struct device *device, void *room)
{
    if (device)
        device_give(device, room);
    else
        rooms_give(model_rooms(model), room);
}

enum status states_take(const struct model *model, struct device *device,
                        size_t bytes, struct states **out)
{
    /* From where all heads of a session come. */
    struct states *states = aligned_alloc(ALIGN_BYTES, ALIGN_BYTES);
    enum status st;

    if (!states)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a session's states");
    states->n_holder = 1;
    st = home_take(model, device, bytes, &states->room);
    if (st) {
        free(states);
        return st;
    }
    *out = states;
    return STATUS_OK;
}

void states_let_go(const struct model *model, struct device *device,
                   struct states *states)
{
    if (!states || --states->n_holder > 0)
        return;
    home_give(model, device, states->room);
    free(states);
}
