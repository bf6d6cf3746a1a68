#ifndef TESTS_GPU_SMALL_DEVICE_H
#define TESTS_GPU_SMALL_DEVICE_H
/*
 * kernels/cuda/device.h in few lines, so that a kernel's check needs the CUDA
 * toolkit and nothing else. Staged bytes go to the device at once, in a buffer
 * that wraps; nothing is ever recorded.
 */
#include "kernels/cuda/device.h"

#include <stdio.h>
#include <stdlib.h>

#define STAGE_BYTES ((size_t)4 << 20)

struct gpu {
    cudaStream_t stream;
    char *scratch, *stage;
    size_t scratch_bytes, staged;
    int n_sm;
    bool is_repeating; /* one thing is staged again and again */
};

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
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
        must(cudaStreamSynchronize(gpu->stream), "scratch");
        must(cudaFree(gpu->scratch), "scratch");
        must(cudaMalloc((void **)&gpu->scratch, bytes), "scratch");
        gpu->scratch_bytes = bytes;
    }
    return gpu->scratch;
}

const void *gpu_stage(struct gpu *gpu, const void *host, size_t bytes)
{
    char *at;

    if (gpu->is_repeating)
        return gpu->stage;
    if (gpu->staged + bytes > STAGE_BYTES)
        gpu->staged = 0;
    at = gpu->stage + gpu->staged;
    gpu->staged += (bytes + 255) / 256 * 256;
    must(cudaMemcpyAsync(at, host, bytes, cudaMemcpyHostToDevice, gpu->stream),
         "stage");
    return at;
}

bool gpu_is_replaying(const struct gpu *gpu)
{
    (void)gpu;
    return false;
}

bool gpu_is_recording(const struct gpu *gpu)
{
    (void)gpu;
    return false;
}

uint64_t gpu_block_bound(const struct gpu *gpu)
{
    (void)gpu;
    return UINT64_MAX;
}

bool gpu_has_views(const struct gpu *gpu)
{
    (void)gpu;
    return false;
}

static void small_device_init(struct gpu *gpu)
{
    must(cudaStreamCreate(&gpu->stream), "stream");
    must(cudaMalloc((void **)&gpu->stage, STAGE_BYTES), "stage");
    must(cudaDeviceGetAttribute(&gpu->n_sm, cudaDevAttrMultiProcessorCount, 0),
         "device");
}
#endif
