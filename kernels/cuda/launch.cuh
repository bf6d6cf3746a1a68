#ifndef KERNELS_CUDA_LAUNCH_CUH
#define KERNELS_CUDA_LAUNCH_CUH
/*
 * Launches whose beginning overlaps the end of the kernel before: a decode step
 * is hundreds of kernels of a few microseconds, and a plain launch starts only
 * when the one before has drained. A kernel that is launched so calls
 * launch_begin() first, in every thread: it lets the next one come, and waits
 * until all before it is done and seen. (Programmatic dependent launch.) Where
 * the GPU has no such launches (way.h) they are plain ones.
 */
#include "kernels/cuda/device.h"
#include "kernels/cuda/way.h"

#include <cuda_runtime.h>

static __device__ __forceinline__ void launch_next(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void launch_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void launch_begin(void)
{
    launch_next();
    launch_wait();
}

/* Weights that will be read behind launch_wait(), a line of 128 bytes for each
 * thread that calls: they come meanwhile. */
static __device__ __forceinline__ void launch_fetch(const void *weight)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(weight));
}

/* Groups of `by` that n make, of which the last one may not be full. */
static inline uint32_t div_up(size_t n, size_t by)
{
    return (uint32_t)((n + by - 1) / by);
}

struct launch_config {
    cudaStream_t stream;
    dim3 grid;
    uint32_t n_thread;
    uint32_t shared_bytes; /* dynamic; launch_allow() above 48 KiB */
    uint32_t n_cluster;    /* CTAs, neighbours in x; 0: no clusters */
    bool is_late;          /* begins when all before it has drained */
};

/* Launches of the kernel may have so much dynamic shared memory from now on.
 * Errors, of this and of launches, are found where the step ends. */
template <class... PARAMETERS>
static inline void launch_allow(void (*kernel)(PARAMETERS...), uint32_t bytes)
{
    (void)cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

template <class... PARAMETERS, class... ARGUMENTS>
static inline void launch_kernel(const struct launch_config &how,
                                 void (*kernel)(PARAMETERS...),
                                 ARGUMENTS... arguments)
{
    cudaLaunchAttribute attribute[2] = {};
    cudaLaunchConfig_t config = {};

    config.gridDim = how.grid;
    config.blockDim = dim3(how.n_thread);
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = how.stream;
    config.attrs = attribute;
    if (!how.is_late && !way_is_sm80()) {
        cudaLaunchAttribute *early = &attribute[config.numAttrs++];

        early->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early->val.programmaticStreamSerializationAllowed = 1;
    }
    if (how.n_cluster && !way_is_sm80()) {
        cudaLaunchAttribute *cluster = &attribute[config.numAttrs++];

        cluster->id = cudaLaunchAttributeClusterDimension;
        cluster->val.clusterDim.x = how.n_cluster;
        cluster->val.clusterDim.y = cluster->val.clusterDim.z = 1;
    }
    (void)cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class... PARAMETERS, class... ARGUMENTS>
static inline void launch_early_with(cudaStream_t stream,
                                     void (*kernel)(PARAMETERS...), dim3 grid,
                                     uint32_t n_thread, uint32_t shared_bytes,
                                     ARGUMENTS... arguments)
{
    struct launch_config how = {};

    how.stream = stream;
    how.grid = grid;
    how.n_thread = n_thread;
    how.shared_bytes = shared_bytes;
    launch_kernel(how, kernel, arguments...);
}

template <class... PARAMETERS, class... ARGUMENTS>
static inline void launch_early_on(cudaStream_t stream,
                                   void (*kernel)(PARAMETERS...), dim3 grid,
                                   uint32_t n_thread, ARGUMENTS... arguments)
{
    launch_early_with(stream, kernel, grid, n_thread, 0, arguments...);
}

template <class... PARAMETERS, class... ARGUMENTS>
static inline void launch_early(struct gpu *gpu, void (*kernel)(PARAMETERS...),
                                dim3 grid, uint32_t n_thread,
                                ARGUMENTS... arguments)
{
    launch_early_on(gpu_stream(gpu), kernel, grid, n_thread, arguments...);
}
#endif
