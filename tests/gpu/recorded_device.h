#ifndef TESTS_GPU_RECORDED_DEVICE_H
#define TESTS_GPU_RECORDED_DEVICE_H
/*
 * kernels/cuda/device.h in few lines, so that a kernel's check needs the CUDA
 * toolkit and nothing else. It can pretend that a step is being recorded, and
 * freeze what was staged, so that the step can be captured without copies.
 */
#include "kernels/cuda/device.h"

#include <stdio.h>
#include <stdlib.h>

#define STAGE_BYTES ((size_t)16 << 20)

struct gpu {
    cudaStream_t stream;
    unsigned char *scratch, *stage;
    size_t scratch_bytes, staged; /* staged wraps */
    int n_sm;
    bool is_recording, is_frozen, has_views;
    uint64_t block_bound;
};

static void must(cudaError_t e, const char *call, int line)
{
    if (e == cudaSuccess)
        return;
    fprintf(stderr, "line %d: %s: %s\n", line, call, cudaGetErrorString(e));
    exit(2);
}
#define CUDA(call) must(call, #call, __LINE__)

static void gpu_init(struct gpu *gpu)
{
    CUDA(cudaStreamCreate(&gpu->stream));
    CUDA(cudaMalloc((void **)&gpu->stage, STAGE_BYTES));
    CUDA(cudaDeviceGetAttribute(&gpu->n_sm, cudaDevAttrMultiProcessorCount, 0));
}

cudaStream_t gpu_stream(struct gpu *gpu)
{
    return gpu->stream;
}

int gpu_n_sm(const struct gpu *gpu)
{
    return gpu->n_sm;
}

void *gpu_scratch(struct gpu *gpu, size_t bytes)
{
    if (bytes > gpu->scratch_bytes) {
        CUDA(cudaStreamSynchronize(gpu->stream));
        CUDA(cudaFree(gpu->scratch));
        CUDA(cudaMalloc((void **)&gpu->scratch, bytes));
        gpu->scratch_bytes = bytes;
    }
    return gpu->scratch;
}

const void *gpu_stage(struct gpu *gpu, const void *host, size_t bytes)
{
    unsigned char *at;

    if (gpu->staged + bytes > STAGE_BYTES)
        gpu->staged = 0;
    at = gpu->stage + gpu->staged;
    gpu->staged += (bytes + 255) / 256 * 256;
    if (!gpu->is_frozen)
        CUDA(cudaMemcpyAsync(at, host, bytes, cudaMemcpyHostToDevice,
                             gpu->stream));
    return at;
}

bool gpu_is_replaying(const struct gpu *gpu)
{
    (void)gpu;
    return false;
}

bool gpu_is_recording(const struct gpu *gpu)
{
    return gpu->is_recording;
}

uint64_t gpu_block_bound(const struct gpu *gpu)
{
    return gpu->block_bound;
}

bool gpu_has_views(const struct gpu *gpu)
{
    return gpu->has_views;
}
#endif
