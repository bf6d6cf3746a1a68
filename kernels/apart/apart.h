#ifndef KERNELS_APART_APART_H
#define KERNELS_APART_APART_H
/*
 * A device without hardware: its memory is the host's under other addresses,
 * which fault when the host reads or writes there, and its operators are those
 * of the best CPU backend, or of ref where that has them alone. So all code
 * around a device (loading, sessions, snapshots, errors, recorded steps) is
 * held to the bits of a CPU backend on machines without a GPU. It is as late as
 * a device may be: what was read is there after a wait and not before, and a
 * step that repeats is recorded, then run from the record with new contents of
 * its host arrays; what must not change between the two is asserted. Its
 * shuttle carries nothing before it is asked how far it has come, and then one
 * piece: what is freed or changed too early shows. It goes wrong when it is
 * told to, by the functions below or, in a whole node, as fault.h says.
 */
#include "kernels/device.h"

extern const struct backend backend_apart;

/* Of this device and its other queues, from now on: no memory beyond so many
 * bytes. */
void apart_limit(struct device *device, size_t bytes);

/* From now on its steps take no more than so many bytes in between. */
void apart_squeeze(struct device *device, size_t bytes);

/* It is lost: every wait, end and take says UNAVAILABLE. */
void apart_lose(struct device *device);

/* Its shuttle stands still, or goes on. */
void apart_hold(struct device *device, bool holds);

/* Steps that were run from a record so far. */
uint64_t apart_n_replay(const struct device *device);
#endif
