#ifndef RPC_REPLY_PARTS_H
#define RPC_REPLY_PARTS_H
/*
 * What reply.c shares with reply_stored.c, which says what is stored of a
 * session. Nobody else includes this.
 */
#include "base/arena.h"
#include "godwit/v1/admin.pb-c.h"
#include "godwit/v1/session.pb-c.h"
#include "rpc/reply.h"

#define FULL_NAME_SIZE (SESSION_NAME_SIZE + 16u)

/* "x" -> "sessions/x"; "" stays. */
void full_name(const char *id, char out[FULL_NAME_SIZE]);
/* NULL: no memory. */
Google__Protobuf__Timestamp *time_of(struct arena *arena, uint64_t wall_ms);
/* INTERNAL: the engine answered something else than was asked. */
enum status wrong_event(const struct event *event);
/* Texts are `info`'s own or in the arena. NULL: no memory. */
Godwit__V1__Session *session_of(struct arena *arena,
                                const struct session_info *info,
                                const char *model_name);

/* reply_stored.c: as reply_pack() */
MUST_CHECK enum status pack_bytes(const struct event *event,
                                  struct packed *out);
MUST_CHECK enum status pack_inspected(const struct reply_to *to,
                                      const struct event *event,
                                      struct arena *arena, struct packed *out);
MUST_CHECK enum status pack_verified(const struct reply_to *to,
                                     const struct event *event,
                                     struct arena *arena, struct packed *out);
#endif
