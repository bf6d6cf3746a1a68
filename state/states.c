#include "state/states.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN_BYTES 64u

_Static_assert(sizeof(struct states) <= ALIGN_BYTES, "");

enum status home_take(struct home home, size_t bytes, void **out)
{
    return home.device ? device_take(home.device, bytes, out)
                       : rooms_take(home.rooms, bytes, out);
}

void home_clear(struct home home, void *room, size_t bytes)
{
    if (!home.device)
        memset(room, 0, bytes);
}

void home_give(struct home home, void *room)
{
    if (home.device)
        device_give(home.device, room);
    else
        rooms_give(home.rooms, room);
}

enum status states_take(struct home home, size_t bytes, struct states **out)
{
    /* From where all heads of a session come. */
    struct states *states = aligned_alloc(ALIGN_BYTES, ALIGN_BYTES);
    enum status st;

    if (!states)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a session's states");
    states->n_holder = 1;
    states->rooms = home.rooms;
    st = home_take(home, bytes, &states->room);
    if (st) {
        free(states);
        return st;
    }
    *out = states;
    return STATUS_OK;
}

void states_let_go(struct device *device, struct states *states)
{
    if (!states || --states->n_holder > 0)
        return;
    home_give((struct home){states->rooms ? NULL : device, states->rooms},
              states->room);
    free(states);
}
