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

/* With so many bytes of dynamic shared memory, early or not. Errors are found
 * where the step ends. */
template <class... PARAMETERS, class... ARGUMENTS>
static inline void launch_with(bool is_early, cudaStream_t stream,
                               void (*kernel)(PARAMETERS...), dim3 grid,
                               uint32_t n_thread, uint32_t shared_bytes,
                               ARGUMENTS... arguments)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(n_thread);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = is_early && !way_is_sm80() ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class... PARAMETERS, class... ARGUMENTS>
static inline void launch_early_with(cudaStream_t stream,
                                     void (*kernel)(PARAMETERS...), dim3 grid,
                                     uint32_t n_thread, uint32_t shared_bytes,
                                     ARGUMENTS... arguments)
{
    launch_with(true, stream, kernel, grid, n_thread, shared_bytes,
                arguments...);
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
