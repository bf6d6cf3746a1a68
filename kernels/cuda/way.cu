/* Which way this process's GPU takes: asked once, since it has but one. */
#include "kernels/cuda/capability.h"
#include "kernels/cuda/way.h"

#include <cuda_runtime_api.h>

static enum way find(void)
{
    int major = 0, minor = 0;

    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
#ifdef WAY_SM80_ALONE
    return capability_way(major, minor) == WAY_NONE ? WAY_NONE : WAY_SM80;
#else
    return capability_way(major, minor);
#endif
}

static uint32_t shared_bytes(void)
{
    int bytes = 0;

    (void)cudaDeviceGetAttribute(&bytes,
                                 cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    return (uint32_t)bytes;
}

uint32_t way_shared_bytes(void)
{
    static const uint32_t bytes = shared_bytes();

    return bytes;
}

bool way_is_sm80(void)
{
    static const enum way way = find();

    return way == WAY_SM80;
}
