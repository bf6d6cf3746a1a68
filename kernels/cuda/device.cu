/*
 * The GPU as a struct device: streams, memory and errors. Nothing else makes
 * any of them. Memory is CUDA's stream-ordered pool, from which taking and
 * giving cost microseconds and wait for nothing.
 */
#include "kernels/cuda/capability.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/ops.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RING_BYTES ((size_t)16 << 20)
#define SHUTTLE_RING_BYTES ((size_t)64 << 10) /* it stages next to nothing */
#define MIB ((size_t)1 << 20)

/* -------------------------------------------------------------------- errors
 */

void gpu_check(struct gpu *gpu, cudaError_t error, const char *what)
{
    struct gpu_fault *fault = gpu->fault;
    int none = 0;

    if (error == cudaSuccess)
        return;
    (void)cudaGetLastError();
    if (gpu->mode == GPU_SHORT) /* nothing of it runs */
        return;
    /* 0 nobody, 1 someone writes why, 2 it is written */
    if (!__atomic_compare_exchange_n(&fault->is_set, &none, 1, false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    (void)snprintf(fault->why, sizeof(fault->why), "the GPU failed: %s: %s",
                   what, cudaGetErrorString(error));
    __atomic_store_n(&fault->is_set, 2, __ATOMIC_RELEASE);
}

static bool has_failed(const struct gpu *gpu)
{
    return __atomic_load_n(&gpu->fault->is_set, __ATOMIC_ACQUIRE) != 0;
}

static void why(struct device *device, char out[DEVICE_WHY_SIZE])
{
    struct gpu *gpu = gpu_of(device);
    const bool is_written =
        __atomic_load_n(&gpu->fault->is_set, __ATOMIC_ACQUIRE) == 2;

    (void)snprintf(out, DEVICE_WHY_SIZE, "%s",
                   is_written        ? gpu->fault->why
                   : has_failed(gpu) ? "the GPU failed"
                                     : gpu->why);
}

enum status gpu_wait(struct gpu *gpu)
{
    gpu_check(gpu, cudaGetLastError(), "launching an operator");
    gpu_check(gpu, cudaStreamSynchronize(gpu->stream), "waiting for it");
    gpu->ring.at = 0;
    return has_failed(gpu) ? STATUS_UNAVAILABLE : STATUS_OK;
}

static enum status refuse(char out_why[DEVICE_WHY_SIZE], cudaError_t error)
{
    int driver = 0;

    (void)cudaDriverGetVersion(&driver);
    if (driver == 0)
        (void)snprintf(out_why, DEVICE_WHY_SIZE, "no NVIDIA driver");
    else if (error == cudaErrorNoDevice)
        (void)snprintf(out_why, DEVICE_WHY_SIZE, "no GPU");
    else
        (void)snprintf(out_why, DEVICE_WHY_SIZE,
                       "%s (driver for CUDA %d.%d, library of CUDA %d.%d)",
                       cudaGetErrorString(error), driver / 1000,
                       driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    (void)cudaGetLastError();
    return STATUS_FAILED_PRECONDITION;
}

static enum status probe(char out_why[DEVICE_WHY_SIZE])
{
    struct cudaDeviceProp prop;
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);

    if (!error && n == 0)
        error = cudaErrorNoDevice;
    if (!error)
        error = cudaGetDeviceProperties(&prop, 0);
    if (error)
        return refuse(out_why, error);
    return capability_check(prop.name, prop.major, prop.minor, out_why);
}

static void generation(char out[DEVICE_GENERATION_SIZE])
{
    int major = 0, minor = 0;

    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    capability_generation(major, minor, out);
}

/* ---------------------------------------------------------------------- life
 */

static void destroy_queue(struct gpu *gpu)
{
    if (!gpu)
        return;
    gpu_forget(gpu);
    gpu_ring_destroy(&gpu->ring);
    gpu_ring_destroy(&gpu->graphs);
    if (gpu->scratch)
        (void)cudaFreeAsync(gpu->scratch, gpu->stream);
    if (gpu->stream) {
        (void)cudaStreamSynchronize(gpu->stream);
        (void)cudaStreamDestroy(gpu->stream);
    }
    if (gpu->event)
        (void)cudaEventDestroy(gpu->event);
    for (cudaEvent_t mark : gpu->mark)
        if (mark)
            (void)cudaEventDestroy(mark);
    free(gpu);
}

static void destroy(struct device *device)
{
    struct gpu *gpu = gpu_of(device);
    struct gpu_fault *fault = gpu->fault;

    if (device->side)
        destroy_queue(gpu_of(device->side));
    if (device->shuttle)
        destroy_queue(gpu_of(device->shuttle));
    destroy_queue(gpu);
    free(fault);
}

static enum status create(struct device **out, char out_why[DEVICE_WHY_SIZE]);
extern const struct device_calls cuda_calls;

static struct gpu *create_queue(struct gpu_fault *fault, size_t ring_bytes)
{
    struct gpu *gpu = (struct gpu *)calloc(1, sizeof(*gpu));

    if (!gpu)
        return NULL;
    gpu->device.calls = &cuda_calls;
    gpu->fault = fault;
    if (cudaStreamCreateWithFlags(&gpu->stream, cudaStreamNonBlocking) ||
        cudaEventCreateWithFlags(&gpu->event, cudaEventDisableTiming) ||
        cudaDeviceGetAttribute(&gpu->n_sm, cudaDevAttrMultiProcessorCount, 0) ||
        gpu_ring_create(&gpu->ring, ring_bytes)) {
        destroy_queue(gpu);
        return NULL;
    }
    return gpu;
}

/* What was given stays with us: asking the driver again would wait. */
static cudaError_t keep_memory(void)
{
    uint64_t all = UINT64_MAX;
    cudaMemPool_t pool;
    cudaError_t error = cudaDeviceGetDefaultMemPool(&pool, 0);

    return error ? error
                 : cudaMemPoolSetAttribute(
                       pool, cudaMemPoolAttrReleaseThreshold, &all);
}

static enum status create(struct device **out, char out_why[DEVICE_WHY_SIZE])
{
    enum status st = probe(out_why);
    struct gpu_fault *fault;
    struct gpu *gpu, *side, *shuttle;

    if (st)
        return st;
    fault = (struct gpu_fault *)calloc(1, sizeof(*fault));
    gpu = fault && !keep_memory() ? create_queue(fault, RING_BYTES) : NULL;
    side = gpu ? create_queue(fault, RING_BYTES) : NULL;
    shuttle = side ? create_queue(fault, SHUTTLE_RING_BYTES) : NULL;
    if (!shuttle) {
        (void)snprintf(out_why, DEVICE_WHY_SIZE, "no memory for its queues: %s",
                       cudaGetErrorString(cudaGetLastError()));
        destroy_queue(side);
        destroy_queue(gpu);
        free(fault);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    gpu->device.side = &side->device;
    gpu->device.shuttle = &shuttle->device;
    *out = &gpu->device;
    return STATUS_OK;
}

/* -------------------------------------------------------------------- memory
 */

cudaError_t gpu_allocate(struct gpu *gpu, size_t bytes, void **out)
{
    cudaError_t error = cudaMallocAsync(out, bytes ? bytes : 1, gpu->stream);

    if (error != cudaErrorMemoryAllocation)
        return error;
    (void)cudaGetLastError();
    gpu_check(gpu, cudaStreamSynchronize(gpu->stream), "waiting for it");
    if (has_failed(gpu))
        return error;
    return cudaMallocAsync(out, bytes ? bytes : 1, gpu->stream);
}

static enum status take(struct device *device, size_t bytes, void **out)
{
    struct gpu *gpu = gpu_of(device);
    size_t n_free = 0, n_all = 0;
    cudaError_t error;
    void *memory;

    assert(gpu->mode == GPU_DIRECT);
    if (has_failed(gpu))
        return STATUS_UNAVAILABLE;
    error = gpu_allocate(gpu, bytes, &memory);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&n_free, &n_all);
        (void)snprintf(gpu->why, sizeof(gpu->why),
                       "no memory on the GPU for %zu bytes: %zu MiB of %zu MiB "
                       "are not ours yet",
                       bytes, n_free / MIB, n_all / MIB);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    gpu_check(gpu, error, "taking memory");
    if (error)
        return STATUS_UNAVAILABLE;
    if (bytes)
        gpu_check(gpu, cudaMemsetAsync(memory, 0, bytes, gpu->stream),
                  "clearing memory");
    *out = memory;
    return STATUS_OK;
}

static void give(struct device *device, void *memory)
{
    struct gpu *gpu = gpu_of(device);

    assert(gpu->mode == GPU_DIRECT);
    gpu_check(gpu, cudaFreeAsync(memory, gpu->stream), "giving memory");
}

static enum status take_host(struct device *device, size_t bytes, void **out)
{
    struct gpu *gpu = gpu_of(device);

    if (has_failed(gpu))
        return STATUS_UNAVAILABLE;
    if (cudaMallocHost(out, bytes ? bytes : 1) == cudaSuccess)
        return STATUS_OK;
    (void)cudaGetLastError();
    (void)snprintf(gpu->why, sizeof(gpu->why),
                   "no host memory that the GPU reaches for %zu bytes", bytes);
    return STATUS_RESOURCE_EXHAUSTED;
}

static void give_host(struct device *device, void *memory)
{
    gpu_check(gpu_of(device), cudaFreeHost(memory), "giving host memory");
}

static size_t available(struct device *device)
{
    size_t n_free = 0, n_all = 0;

    gpu_check(gpu_of(device), cudaMemGetInfo(&n_free, &n_all),
              "asking for its memory");
    return n_free;
}

/* -------------------------------------------------------------------- copies
 */

static void write_bytes(struct device *device, void *to, const void *from,
                        size_t bytes)
{
    struct gpu *gpu = gpu_of(device);
    const size_t most = gpu->ring.bytes / 4;

    assert(gpu->mode == GPU_DIRECT);
    for (size_t at = 0; at < bytes; at += most) {
        const size_t n = bytes - at < most ? bytes - at : most;
        unsigned char *host = gpu->ring.host + gpu_ring_take(gpu, n);

        memcpy(host, (const char *)from + at, n);
        gpu_check(gpu,
                  cudaMemcpyAsync((char *)to + at, host, n,
                                  cudaMemcpyHostToDevice, gpu->stream),
                  "writing to it");
    }
}

/* Part of a recorded step, if there is one. */
static void read_bytes(struct device *device, void *to, const void *from,
                       size_t bytes)
{
    struct gpu *gpu = gpu_of(device);

    if (gpu->mode != GPU_REPLAYING && gpu->mode != GPU_SHORT)
        gpu_check(gpu,
                  cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost,
                                  gpu->stream),
                  "reading from it");
}

static void load_bytes(struct device *device, void *to, const void *from,
                       size_t bytes)
{
    struct gpu *gpu = gpu_of(device);

    assert(gpu->mode == GPU_DIRECT);
    gpu_check(
        gpu,
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, gpu->stream),
        "loading");
}

static void copy_bytes(struct device *device, void *to, const void *from,
                       size_t bytes)
{
    struct gpu *gpu = gpu_of(device);

    assert(gpu->mode == GPU_DIRECT);
    gpu_check(
        gpu,
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gpu->stream),
        "copying");
}

static void zero_bytes(struct device *device, void *to, size_t bytes)
{
    struct gpu *gpu = gpu_of(device);

    assert(gpu->mode == GPU_DIRECT);
    gpu_check(gpu, cudaMemsetAsync(to, 0, bytes, gpu->stream), "clearing");
}

static uint64_t mark(struct device *device)
{
    struct gpu *gpu = gpu_of(device);
    cudaEvent_t *event = &gpu->mark[gpu->n_mark % DEVICE_MARK_MAX];

    assert(gpu->n_mark - gpu->n_reached < DEVICE_MARK_MAX);
    if (!*event)
        gpu_check(gpu, cudaEventCreateWithFlags(event, cudaEventDisableTiming),
                  "making an event");
    gpu_check(gpu, cudaEventRecord(*event, gpu->stream), "an event");
    return ++gpu->n_mark;
}

static enum status reached(struct device *device, uint64_t mark, bool *out)
{
    struct gpu *gpu = gpu_of(device);

    while (gpu->n_reached < mark && !has_failed(gpu)) {
        const cudaError_t error =
            cudaEventQuery(gpu->mark[gpu->n_reached % DEVICE_MARK_MAX]);

        if (error == cudaErrorNotReady)
            break;
        gpu_check(gpu, error, "carrying sessions");
        gpu->n_reached++;
    }
    *out = gpu->n_reached >= mark;
    return has_failed(gpu) ? STATUS_UNAVAILABLE : STATUS_OK;
}

static enum status wait_for(struct device *device)
{
    return gpu_wait(gpu_of(device));
}

static void follow(struct device *device, struct device *other)
{
    struct gpu *gpu = gpu_of(device), *first = gpu_of(other);

    assert(first->mode == GPU_DIRECT);
    gpu_check(gpu, cudaEventRecord(first->event, first->stream), "an event");
    gpu_check(gpu, cudaStreamWaitEvent(gpu->stream, first->event, 0),
              "following the other queue");
}

/* ----------------------------------------------------------------- operators
 */

#define DEVICE_OPERATOR(name, type)                                            \
    static void run_##name(struct device *device, const struct type *args)     \
    {                                                                          \
        cuda_##name(gpu_of(device), args);                                     \
    }
DEVICE_OTHER_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR

/* Weights in panels have the fp32 chain, whatever the others have. */
static void run_linear(struct device *device, const struct linear_args *args)
{
    if (arithmetic_is_mma(args->w->arithmetic))
        cuda_linear(gpu_of(device), args);
    else
        cuda_linear_plain(gpu_of(device), args);
}

/* Small rotations have a kernel of their own ... */
static void run_attend(struct device *device, const struct attend_args *args)
{
    if (args->table->n_rot % 16 == 0)
        cuda_attend(gpu_of(device), args);
    else
        cuda_attend_plain(gpu_of(device), args);
}

/* ... and small head dims of the delta rule. */
static void run_delta(struct device *device, const struct delta_args *args)
{
    if (cuda_delta_has(args->shape))
        cuda_delta(gpu_of(device), args);
    else
        cuda_delta_plain(gpu_of(device), args);
}

static enum status prepare(enum arithmetic arithmetic,
                           char out_why[DEVICE_WHY_SIZE])
{
    return arithmetic == ARITHMETIC_FAST ? cuda_fast_prepare(out_why)
                                         : STATUS_OK;
}

const struct device_calls cuda_calls = {.probe = probe,
                                        .prepare = prepare,
                                        .generation = generation,
                                        .create = create,
                                        .destroy = destroy,
                                        .why = why,
                                        .take = take,
                                        .give = give,
                                        .take_host = take_host,
                                        .give_host = give_host,
                                        .available = available,
                                        .write = write_bytes,
                                        .read = read_bytes,
                                        .load = load_bytes,
                                        .copy = copy_bytes,
                                        .zero = zero_bytes,
                                        .mark = mark,
                                        .reached = reached,
                                        .wait = wait_for,
                                        .follow = follow,
                                        .begin = gpu_begin,
                                        .end = gpu_end,
#define DEVICE_OPERATOR(name, type) .name = run_##name,
                                        DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
};

/* The library's one symbol. */
extern "C" __attribute__((visibility("default"))) const struct device_calls *
godwit_device(uint32_t abi)
{
    return abi == DEVICE_ABI ? &cuda_calls : NULL;
}
