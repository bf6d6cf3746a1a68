#include "scheduler/event.h"

#include <stdlib.h>

struct event *event_create(enum event_kind kind, uint64_t reply, size_t extra,
                           void **out_extra)
{
    /* The payload starts aligned for every type that lies behind an event. */
    size_t head = (sizeof(struct event) + 15) & ~(size_t)15;
    struct event *event;

    if (extra > SIZE_MAX - head)
        return NULL;
    event = calloc(1, head + extra);
    if (!event)
        return NULL;
    event->kind = kind;
    event->reply = reply;
    if (out_extra)
        *out_extra = (char *)event + head;
    return event;
}

void event_destroy(struct event *event)
{
    free(event);
}
