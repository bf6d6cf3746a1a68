#ifndef KERNELS_CUDA_DEVICE_H
#define KERNELS_CUDA_DEVICE_H
/*
 * What an operator sees of the GPU: a stream to launch on, scratch memory, and
 * a way to take small host arrays along. An operator launches and returns: it
 * never waits, never allocates and never reads device memory. Errors of
 * launches are found where a step ends.
 *
 * A decode step that comes again is recorded as a graph once; later steps call
 * the same operators, which then only stage their arrays, and the graph runs
 * with them.
 */
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gpu;

cudaStream_t gpu_stream(struct gpu *gpu);
int gpu_n_sm(const struct gpu *gpu);

/* Device memory, aligned to 1024, one piece at a time; contents are undefined
 * once the operator is over. */
void *gpu_scratch(struct gpu *gpu, size_t bytes);

/*
 * Device copy of a small host array, aligned to 256, valid for what this
 * operator launches. In a recorded step the address is the same in every replay
 * and only the bytes change.
 */
const void *gpu_stage(struct gpu *gpu, const void *host, size_t bytes);

/* Stage all arrays, launch nothing: the recorded graph runs instead. */
bool gpu_is_replaying(const struct gpu *gpu);

/* A decode step is recorded: grids may depend on numbers of rows and spans and
 * on gpu_block_bound(), not on positions. */
bool gpu_is_recording(const struct gpu *gpu);

/* No span has more KV blocks than this; while recording or replaying a power of
 * two. Size grids by it and read real lengths on the device. */
uint64_t gpu_block_bound(const struct gpu *gpu);

/* Rows of this step may see a part of their past (struct device_step); of a
 * recorded one, each time. */
bool gpu_has_views(const struct gpu *gpu);

#ifdef __cplusplus
}
#endif
#endif
