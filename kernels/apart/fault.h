#ifndef KERNELS_APART_FAULT_H
#define KERNELS_APART_FAULT_H
/*
 * A device that goes wrong at a given step, so that a whole node can be seen to
 * report it and lose nothing: any other device with its calls in between. What
 * shall happen says the environment:
 *
 *   GODWIT_FAULT=lost@N      step N never comes to its end, nor anything later
 *   GODWIT_FAULT=full@N:MIB  from step N on there is no memory but so much
 *   GODWIT_FAULT=scratch@N:MIB  so much at most for what a step needs in
 * between GODWIT_FAULT=wild@N      before step N an operator writes where
 * nothing is
 *
 * Steps are counted from 1 (device_begin()). A device of which one of these
 * cannot be asked says so.
 */
#include "kernels/device.h"

#define FAULT_VARIABLE "GODWIT_FAULT"

/* What only the device itself can do. */
struct fault_ways {
    /* From now on no memory but so many bytes. */
    void (*fill)(const struct device_calls *real, struct device *device,
                 size_t leave);
    /* From now on steps take no more in between; NULL: not possible. */
    void (*squeeze)(struct device *device, size_t leave);
    /* An operator on an address that is nobody's; NULL: not possible. */
    void (*stray)(const struct device_calls *real, struct device *device);
};

/*
 * The calls to use in place of `real`: the same ones where the variable is not
 * set. Of one kind of device in a process, and one device at a time.
 *   INVALID_ARGUMENT  the variable says something else, or what is not possible
 */
MUST_CHECK enum status fault_around(const struct device_calls *real,
                                    const struct fault_ways *ways,
                                    const struct device_calls **out);
#endif
