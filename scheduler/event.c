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

const char *reuse_name(enum restore_reason_code reuse)
{
    static const char *const names[REUSE_REASON_COUNT] = {
        [REUSE_NOT_NEEDED] = "NOT_NEEDED",
        [REUSE_RESIDENT] = "RESIDENT",
        [REUSE_RESTORED] = "RESTORED",
        [REUSE_PREFIX] = "PREFIX",
        [REUSE_NONE] = "NONE",
        [REUSE_TOO_SHORT] = "TOO_SHORT",
        [REUSE_SLOWER] = "SLOWER",
        [REUSE_EVICTED] = "EVICTED",
        [REUSE_NUMERICS_CHANGED] = "NUMERICS_CHANGED",
        [REUSE_WEIGHTS_CHANGED] = "WEIGHTS_CHANGED",
        [REUSE_POLICY_CHANGED] = "POLICY_CHANGED",
        [REUSE_SNAPSHOT_DAMAGED] = "SNAPSHOT_DAMAGED",
        [REUSE_SNAPSHOT_MISMATCH] = "SNAPSHOT_MISMATCH"};

    return names[reuse];
}
