#ifndef KERNELS_CUDA_CAPABILITY_H
#define KERNELS_CUDA_CAPABILITY_H
/*
 * Which GPUs the library is for. Its products are wgmma and bulk tensor copies
 * (sm_90a), which no other generation runs, and another one's tensor cores
 * would sum in another order: a backend for one is one of its own. So any other
 * GPU is refused before anything is launched.
 */
#include "kernels/device.h"

#include <stdio.h>

#define CAPABILITY_MAJOR 9
#define CAPABILITY_MINOR 0

/* As probe() of struct device_calls. */
static inline enum status capability_check(const char *name, int major,
                                           int minor,
                                           char out_why[DEVICE_WHY_SIZE])
{
    if (major == CAPABILITY_MAJOR && minor == CAPABILITY_MINOR)
        return STATUS_OK;
    (void)snprintf(out_why, DEVICE_WHY_SIZE,
                   "%.128s has compute capability %d.%d, needed is %d.%d "
                   "(H100, H200)",
                   name, major, minor, CAPABILITY_MAJOR, CAPABILITY_MINOR);
    return STATUS_FAILED_PRECONDITION;
}
#endif
