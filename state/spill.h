#ifndef STATE_SPILL_H
#define STATE_SPILL_H
/*
 * KV blocks that need not stay in RAM: slots of one size in a file that has no
 * name, mapped as memory. A slot that was released from RAM is read again by
 * whoever touches it, so no result depends on where it lies (E5), and nobody
 * has to know. It is no store: the file is gone with the process, as RAM is.
 * One thread.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spill;

/*
 * Room for n_slot slots of slot_bytes in a file in `dir`; it takes disk only as
 * slots are written.
 *   INVALID_ARGUMENT    no such directory, or it takes no unnamed files
 *   RESOURCE_EXHAUSTED  no memory, or no addresses for so much
 */
MUST_CHECK enum status spill_create(const char *dir, size_t slot_bytes,
                                    uint64_t n_slot, struct spill **out);
void spill_destroy(struct spill *spill); /* accepts NULL */
size_t spill_slot_bytes(const struct spill *spill);

/* A zeroed slot.  RESOURCE_EXHAUSTED  all are taken */
MUST_CHECK enum status spill_take(struct spill *spill, void **out);
void spill_put(struct spill *spill, void *slot);

/* These leave RAM until they are touched; neighbours in one go. */
void spill_release(struct spill *spill, void *const *slot, uint64_t n);
#endif
