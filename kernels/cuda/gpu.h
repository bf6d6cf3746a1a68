#ifndef KERNELS_CUDA_GPU_H
#define KERNELS_CUDA_GPU_H
/* What struct gpu holds: for device.cu and step.cu. */
#include "kernels/cuda/device.h"
#include "kernels/device.h"

#define GPU_GRAPH_MAX 128u
#define GPU_GRAPH_ROWS_MAX 256u /* a step of more rows gains nothing by it */

/* Host memory and device memory in step: what is written at an offset of one is
 * copied to the same offset of the other. */
struct gpu_ring {
    unsigned char *host, *far;
    size_t bytes, at;
};

/* A decode step of n_row rows of one owner. */
struct gpu_graph {
    uint64_t owner; /* 0: free */
    uint32_t n_row;
    uint64_t bound; /* on KV blocks, a power of two */
    bool has_views;
    uint32_t n_seen;  /* steps of this kind so far */
    bool is_refused;  /* it cannot be recorded */
    size_t at, bytes; /* its arrays in the ring for graphs */
    cudaGraphExec_t exec;
};

/* GPU_SHORT: there was no scratch memory for an operator of this step; what
 * else is asked for is taken down and thrown away. */
enum gpu_mode { GPU_DIRECT, GPU_RECORDING, GPU_REPLAYING, GPU_SHORT };

/* What a device and its side share. */
struct gpu_fault {
    int is_set; /* by atomic operations; `why` is written before */
    char why[DEVICE_WHY_SIZE];
};

struct gpu {
    struct device device; /* first: callers hold pointers to it */
    struct gpu_fault *fault;
    cudaStream_t stream;
    cudaEvent_t event;                 /* for who follows */
    cudaEvent_t mark[DEVICE_MARK_MAX]; /* made when they are first wanted */
    uint64_t n_mark, n_reached;
    int n_sm;
    char why[DEVICE_WHY_SIZE]; /* what this queue was refused last */

    void *scratch; /* [scratch_bytes] and what aligns it */
    size_t scratch_bytes;
    size_t scratch_wanted; /* by a recording that found it too small */

    struct gpu_ring ring;   /* arrays and writes of all else */
    struct gpu_ring graphs; /* arrays of graphs, one behind the other */

    enum gpu_mode mode;
    struct gpu_graph *now; /* of the step under way, or NULL */
    uint64_t bound;
    bool has_views;
    bool is_spoilt; /* what is recorded must not run */
    struct gpu_graph graph[GPU_GRAPH_MAX];
};

static inline struct gpu *gpu_of(struct device *device)
{
    return (struct gpu *)device;
}

/* Remember the first error; the device stays failed. */
void gpu_check(struct gpu *gpu, cudaError_t error, const char *what);

/* Wait for the stream.  UNAVAILABLE  the device failed */
enum status gpu_wait(struct gpu *gpu);

/* cudaMallocAsync(), and once more when everything before has happened: what
 * was given by another queue may be free by then. */
cudaError_t gpu_allocate(struct gpu *gpu, size_t bytes, void **out);

/* Room in the ring, after a wait if it is full: at most half of it. */
size_t gpu_ring_take(struct gpu *gpu, size_t bytes);
enum status gpu_ring_create(struct gpu_ring *ring, size_t bytes);
void gpu_ring_destroy(struct gpu_ring *ring);

/* All recorded steps. */
void gpu_forget(struct gpu *gpu);

/* As struct device_calls. */
void gpu_begin(struct device *device, const struct device_step *step);
enum status gpu_end(struct device *device, bool *out_again);
#endif
