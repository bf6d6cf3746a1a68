#ifndef KERNELS_CUDA_CAPABILITY_H
#define KERNELS_CUDA_CAPABILITY_H
/*
 * Which GPUs the library is for, which of its two ways a GPU takes, and what
 * the numbers it makes are called. Nothing else looks at a GPU's capability.
 *
 * WAY_SM90: products by wgmma, bulk copies, clusters, launches that overlap;
 * machine code of sm_90a, which 9.0 alone runs. WAY_SM80: products by mma.sync
 * and cp.async, in code of sm_80, which 8.x runs as it is, and in PTX, which
 * the driver compiles for whatever is newer. The kernels that both ways share
 * are compiled for both.
 *
 * On one GPU both ways make the same bits. But how a tensor core adds up its 16
 * products is the generation's own secret, and nobody has shown us that two
 * generations agree: so each has an id of its own, but for Hopper, whose id
 * came first.
 */
#include "kernels/device.h"

#include <stdio.h>
#include <string.h>

enum way { WAY_NONE, WAY_SM80, WAY_SM90 };

static inline enum way capability_way(int major, int minor)
{
    if (major == 9 && minor == 0)
        return WAY_SM90;
    return major < 8 ? WAY_NONE : WAY_SM80;
}

/* As probe() of struct device_calls. */
static inline enum status capability_check(const char *name, int major,
                                           int minor,
                                           char out_why[DEVICE_WHY_SIZE])
{
    if (capability_way(major, minor) != WAY_NONE)
        return STATUS_OK;
    (void)snprintf(out_why, DEVICE_WHY_SIZE,
                   "%.128s has compute capability %d.%d, needed is 8.0 or more "
                   "(A100, H100 and later)",
                   name, major, minor);
    return STATUS_FAILED_PRECONDITION;
}

/* As generation() of struct device_calls. */
static inline void capability_generation(int major, int minor,
                                         char out[DEVICE_GENERATION_SIZE])
{
    if (major == 9 && minor == 0)
        memset(out, 0, DEVICE_GENERATION_SIZE);
    else
        (void)snprintf(out, DEVICE_GENERATION_SIZE, "-sm%d%d", major, minor);
}
#endif
