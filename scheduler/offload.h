#ifndef SCHEDULER_OFFLOAD_H
#define SCHEDULER_OFFLOAD_H
/*
 * Where a session's memory goes when it has to leave the device: to the host's
 * memory, if there is room or if idle sessions there make some, else to the
 * store. Pure: it is told what there is and says what to do.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An idle one that is in the host's memory. */
struct offload_session {
    size_t bytes;   /* that it has there */
    bool is_stored; /* its room is free at once: it has nothing to save */
    bool is_busy;   /* it cannot go now */
    bool is_pinned; /* only when no other can */
    bool goes;      /* the answer: it leaves for the store */
};

struct offload_room {
    size_t left, all; /* bytes of the host's memory for sessions */
};

/*
 * May one of `bytes` come to the host's memory? The n sessions there are in
 * order of use, least recent first. True: as soon as those that go are gone,
 * which are stored. False: now it cannot; what goes is being saved, for the
 * next one that asks.
 */
bool offload_choose(size_t bytes, struct offload_room room,
                    struct offload_session *session, uint64_t n);
#endif
