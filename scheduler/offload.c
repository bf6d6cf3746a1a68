#include "scheduler/offload.h"

struct sum {
    size_t now, later; /* room that there will be */
};

static void choose_of(struct offload_session *session, uint64_t n, size_t bytes,
                      bool is_pinned, struct sum *sum)
{
    for (uint64_t i = 0; i < n && sum->later < bytes; i++) {
        struct offload_session *s = &session[i];

        if (s->is_busy || s->is_pinned != is_pinned)
            continue;
        s->goes = true;
        sum->later += s->bytes;
        sum->now += s->is_stored ? s->bytes : 0;
    }
}

bool offload_choose(size_t bytes, struct offload_room room,
                    struct offload_session *session, uint64_t n)
{
    struct sum sum = {room.left, room.left};
    bool fits;

    for (uint64_t i = 0; i < n; i++)
        session[i].goes = false;
    if (bytes > room.all)
        return false;
    choose_of(session, n, bytes, false, &sum);
    choose_of(session, n, bytes, true, &sum);
    fits = sum.now >= bytes;
    /* What is stored may as well stay until its room is of use, and what is not
     * need not be saved for room that is not enough. */
    for (uint64_t i = 0; i < n; i++)
        session[i].goes &=
            sum.later >= bytes && (fits || !session[i].is_stored);
    return fits;
}
