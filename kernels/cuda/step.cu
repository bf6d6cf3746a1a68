/*
 * A step's beginning and end, and what its operators take along. Most decode
 * steps are like one before: the same number of rows of the same owner,
 * every span below the same power of two of KV blocks, with a memory policy
 * among them or without. The first of a kind runs directly, which also makes
 * scratch memory large enough; the second is recorded as a graph; from then on
 * the operators only put their arrays in their places, which is one copy to the
 * device, and the graph is launched.
 *
 * Where scratch memory cannot be had in the middle of a step, the stream goes
 * over to recording: what is still asked for never runs, nor need any operator
 * know of it. The step's end drops that record and says so.
 */
#include "kernels/cuda/gpu.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define STAGE_ALIGN 256u
#define SCRATCH_ALIGN 1024u
#define GRAPHS_BYTES ((size_t)64 << 20) /* arrays of all graphs */
#define GRAPH_BYTES_MAX ((size_t)4 << 20)
#define BOUND_MIN 16u /* KV blocks */

/* --------------------------------------------------------------------- rings
 */

enum status gpu_ring_create(struct gpu_ring *ring, size_t bytes)
{
    if (cudaMallocHost((void **)&ring->host, bytes) ||
        cudaMalloc((void **)&ring->far, bytes)) {
        gpu_ring_destroy(ring);
        (void)cudaGetLastError();
        return STATUS_RESOURCE_EXHAUSTED;
    }
    ring->bytes = bytes;
    return STATUS_OK;
}

void gpu_ring_destroy(struct gpu_ring *ring)
{
    (void)cudaFreeHost(ring->host);
    (void)cudaFree(ring->far);
    memset(ring, 0, sizeof(*ring));
}

static size_t aligned(size_t bytes)
{
    return (bytes + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
}

size_t gpu_ring_take(struct gpu *gpu, size_t bytes)
{
    struct gpu_ring *ring = &gpu->ring;
    size_t at;

    assert(bytes <= ring->bytes / 2);
    if (bytes > ring->bytes - ring->at)
        (void)gpu_wait(gpu); /* of a failure the step's end tells */
    at = ring->at;
    ring->at += aligned(bytes);
    if (ring->at > ring->bytes)
        ring->at = ring->bytes;
    return at;
}

/* -------------------------------------------------------------------- graphs
 */

static void forget(struct gpu_graph *graph)
{
    if (graph->exec)
        (void)cudaGraphExecDestroy(graph->exec);
    memset(graph, 0, sizeof(*graph));
}

void gpu_forget(struct gpu *gpu)
{
    for (uint32_t i = 0; i < GPU_GRAPH_MAX; i++)
        forget(&gpu->graph[i]);
    gpu->graphs.at = 0;
}

/* Of a full table all go: a new load makes its own. */
static struct gpu_graph *find(struct gpu *gpu, const struct device_step *step,
                              uint64_t bound)
{
    struct gpu_graph *free_one = NULL;

    for (uint32_t i = 0; i < GPU_GRAPH_MAX; i++) {
        struct gpu_graph *graph = &gpu->graph[i];

        if (graph->owner == step->owner && graph->n_row == step->n_row &&
            graph->bound == bound && graph->has_views == step->has_views)
            return graph;
        if (!graph->owner && !free_one)
            free_one = graph;
    }
    if (!free_one) {
        gpu_forget(gpu);
        free_one = &gpu->graph[0];
    }
    free_one->owner = step->owner;
    free_one->n_row = step->n_row;
    free_one->bound = bound;
    free_one->has_views = step->has_views;
    return free_one;
}

/* Its arrays get their place; false where there is none. */
static bool place(struct gpu *gpu, struct gpu_graph *graph)
{
    struct gpu_ring *ring = &gpu->graphs;

    if (!ring->host && gpu_ring_create(ring, GRAPHS_BYTES))
        return false;
    if (ring->bytes - ring->at < GRAPH_BYTES_MAX) {
        const struct gpu_graph kept = *graph;

        gpu_forget(gpu);
        *graph = kept;
    }
    graph->at = ring->at;
    graph->bytes = 0;
    return true;
}

static void record(struct gpu *gpu, struct gpu_graph *graph)
{
    if (!place(gpu, graph)) {
        graph->is_refused = true;
        return;
    }
    gpu->is_spoilt = false;
    gpu->scratch_wanted = 0;
    gpu_check(
        gpu,
        cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal),
        "recording a step");
    gpu->mode = GPU_RECORDING;
    gpu->now = graph;
}

void gpu_begin(struct device *device, const struct device_step *step)
{
    struct gpu *gpu = gpu_of(device);
    struct gpu_graph *graph;
    uint64_t bound = BOUND_MIN;

    assert(gpu->mode == GPU_DIRECT);
    gpu->bound = step->n_block;
    gpu->has_views = step->has_views;
    gpu->now = NULL;
    if (!step->is_repeatable || step->n_row > GPU_GRAPH_ROWS_MAX)
        return;
    while (bound < step->n_block)
        bound *= 2;
    graph = find(gpu, step, bound);
    if (graph->is_refused || graph->n_seen++ == 0)
        return;
    gpu->bound = bound;
    if (!graph->exec) {
        record(gpu, graph);
        return;
    }
    gpu->mode = GPU_REPLAYING;
    gpu->now = graph;
    graph->bytes = 0;
}

/* What was recorded becomes a graph; false: it cannot be used. */
static bool finish(struct gpu *gpu, struct gpu_graph *graph)
{
    cudaGraph_t recorded = NULL;
    cudaError_t error = cudaStreamEndCapture(gpu->stream, &recorded);

    if (!error && !gpu->is_spoilt)
        error = cudaGraphInstantiate(&graph->exec, recorded, 0);
    if (recorded)
        (void)cudaGraphDestroy(recorded);
    (void)cudaGetLastError();
    if (error || gpu->is_spoilt) {
        graph->exec = NULL;
        return false;
    }
    gpu->graphs.at = graph->at + graph->bytes;
    return true;
}

static void launch(struct gpu *gpu, const struct gpu_graph *graph)
{
    if (graph->bytes)
        gpu_check(gpu,
                  cudaMemcpyAsync(gpu->graphs.far + graph->at,
                                  gpu->graphs.host + graph->at, graph->bytes,
                                  cudaMemcpyHostToDevice, gpu->stream),
                  "writing a step's arrays");
    gpu_check(gpu, cudaGraphLaunch(graph->exec, gpu->stream),
              "launching a step");
}

static bool take_scratch(struct gpu *gpu, size_t bytes)
{
    cudaError_t error;

    /* Before it is taken for one of ours. */
    gpu_check(gpu, cudaGetLastError(), "launching an operator");
    error = gpu_allocate(gpu, bytes + SCRATCH_ALIGN, &gpu->scratch);
    gpu->scratch = error ? NULL : gpu->scratch;
    gpu->scratch_bytes = error ? 0 : bytes;
    if (error == cudaErrorMemoryAllocation)
        (void)cudaGetLastError();
    else
        gpu_check(gpu, error, "taking scratch memory");
    return !error;
}

/* False: there is no room for so much, and it is as large as before, if
 * nobody else has taken that meanwhile. */
static bool grow_scratch(struct gpu *gpu, size_t bytes)
{
    const size_t before = gpu->scratch_bytes;

    /* Recorded steps know the old place. */
    gpu_forget(gpu);
    if (gpu->scratch)
        gpu_check(gpu, cudaFreeAsync(gpu->scratch, gpu->stream),
                  "giving scratch memory");
    if (take_scratch(gpu, bytes + bytes / 4) || take_scratch(gpu, bytes))
        return true;
    (void)snprintf(gpu->why, sizeof(gpu->why),
                   "no memory on the GPU for %zu bytes that a step needs in "
                   "between",
                   bytes);
    if (before)
        (void)take_scratch(gpu, before);
    return false;
}

/* What operators ask for from here on goes into a record that is dropped. */
static void cut_short(struct gpu *gpu)
{
    gpu_check(
        gpu,
        cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal),
        "cutting a step short");
    gpu->mode = GPU_SHORT;
}

static void drop_rest(struct gpu *gpu)
{
    cudaGraph_t recorded = NULL;

    (void)cudaStreamEndCapture(gpu->stream, &recorded);
    if (recorded)
        (void)cudaGraphDestroy(recorded);
    (void)cudaGetLastError();
}

enum status gpu_end(struct device *device, bool *out_again)
{
    struct gpu *gpu = gpu_of(device);
    struct gpu_graph *graph = gpu->now;
    const enum gpu_mode mode = gpu->mode;

    gpu->mode = GPU_DIRECT;
    gpu->now = NULL;
    *out_again = false;
    if (mode == GPU_SHORT) {
        drop_rest(gpu);
        return gpu_wait(gpu) ? STATUS_UNAVAILABLE : STATUS_RESOURCE_EXHAUSTED;
    }
    if (mode == GPU_RECORDING && !finish(gpu, graph)) {
        *out_again = true;
        if (gpu->scratch_wanted > gpu->scratch_bytes) {
            struct gpu_graph kept = *graph;

            /* Without a record it may need less. */
            kept.is_refused = !grow_scratch(gpu, gpu->scratch_wanted);
            *graph = kept;
        } else {
            graph->is_refused = true;
        }
    } else if (mode != GPU_DIRECT) {
        launch(gpu, graph);
    }
    return gpu_wait(gpu);
}

/* -------------------------------------------------------------- an operator's
 */

cudaStream_t gpu_stream(struct gpu *gpu)
{
    return gpu->stream;
}

int gpu_n_sm(const struct gpu *gpu)
{
    return gpu->n_sm;
}

bool gpu_is_replaying(const struct gpu *gpu)
{
    return gpu->mode == GPU_REPLAYING;
}

bool gpu_is_recording(const struct gpu *gpu)
{
    return gpu->mode == GPU_RECORDING;
}

uint64_t gpu_block_bound(const struct gpu *gpu)
{
    return gpu->bound;
}

bool gpu_has_views(const struct gpu *gpu)
{
    return gpu->has_views;
}

void *gpu_scratch(struct gpu *gpu, size_t bytes)
{
    uintptr_t at;

    if (gpu->mode == GPU_DIRECT && bytes > gpu->scratch_bytes &&
        !grow_scratch(gpu, bytes))
        cut_short(gpu);
    if (gpu->mode == GPU_SHORT)
        return gpu->ring.far; /* somewhere: nobody goes there */
    if (bytes > gpu->scratch_bytes) {
        gpu->is_spoilt = true;
        if (bytes > gpu->scratch_wanted)
            gpu->scratch_wanted = bytes;
    }
    at = (uintptr_t)gpu->scratch;
    return (void *)((at + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN);
}

/* In the graph's place, at the same offset each time. */
static const void *stage_recorded(struct gpu *gpu, const void *host,
                                  size_t bytes)
{
    struct gpu_graph *graph = gpu->now;
    const size_t at = graph->at + graph->bytes;

    if (bytes > GRAPH_BYTES_MAX - graph->bytes) {
        gpu->is_spoilt = true;
        return gpu->graphs.far;
    }
    memcpy(gpu->graphs.host + at, host, bytes);
    graph->bytes += aligned(bytes);
    return gpu->graphs.far + at;
}

const void *gpu_stage(struct gpu *gpu, const void *host, size_t bytes)
{
    size_t at;

    if (gpu->mode == GPU_SHORT)
        return gpu->ring.far;
    if (gpu->mode != GPU_DIRECT)
        return stage_recorded(gpu, host, bytes);
    at = gpu_ring_take(gpu, bytes);
    memcpy(gpu->ring.host + at, host, bytes);
    gpu_check(gpu,
              cudaMemcpyAsync(gpu->ring.far + at, gpu->ring.host + at, bytes,
                              cudaMemcpyHostToDevice, gpu->stream),
              "writing an operator's arrays");
    return gpu->ring.far + at;
}
