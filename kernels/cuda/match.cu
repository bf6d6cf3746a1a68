/*
 * How well keys match one query: see struct kv_match_args in
 * kernels/backend.h. A CTA has a block, a thread a key and one of four KV heads
 * at a time, whose chain over the dims it makes alone; a key's row comes in
 * lines of 128 bytes that its thread reads eight times.
 *
 * Bound: 2 bytes a key dim over the bandwidth of a copy; once in a request.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rotated.cuh"

#include <assert.h>

#define HEADS 4u /* under way */
#define THREADS (HEADS * KV_BLOCK)

struct match {
    const float *cosine, *sine, *q;
    void *const *block;
    uint64_t n_key;
    float *match;
    uint32_t n_pair, n_kv_head, group, d_head;
    uint32_t head_bytes; /* of a KV head's keys */
};

/* Of one KV head: its query heads' queries added up. */
static __device__ __forceinline__ float added(const struct match &a,
                                              uint32_t kv, uint32_t e)
{
    const float *q = a.q + (size_t)kv * a.group * a.d_head + e;
    float u = q[0];

    for (uint32_t h = 1; h < a.group; h++)
        u += q[(size_t)h * a.d_head];
    return u;
}

static __global__ void __launch_bounds__(THREADS)
    match_keys(const __grid_constant__ struct match a)
{
    launch_begin();
    __shared__ float u[HEADS][ATTEND_DIM_MAX], part[HEADS][KV_BLOCK];
    const uint32_t j = threadIdx.x % KV_BLOCK, mine = threadIdx.x / KV_BLOCK;
    const uint64_t key = (uint64_t)blockIdx.x * KV_BLOCK + j;
    const struct rotation r =
        rotation_of(a.cosine, a.sine, a.n_pair, blockIdx.x);
    float match = 0.0f;

    for (uint32_t first = 0; first < a.n_kv_head; first += HEADS) {
        const uint32_t left = a.n_kv_head - first;
        const uint32_t n_head = left < HEADS ? left : HEADS;
        const unsigned char *keys = (const unsigned char *)a.block[blockIdx.x] +
                                    (size_t)(first + mine) * a.head_bytes;
        float sum = 0.0f, k[8];

        for (uint32_t i = threadIdx.x; i < n_head * a.d_head; i += THREADS)
            u[i / a.d_head][i % a.d_head] =
                added(a, first + i / a.d_head, i % a.d_head);
        __syncthreads();
        for (uint32_t e = 0; e < a.d_head && mine < n_head; e += 8) {
            rotated_unit(r, keys, j, e, k);
#pragma unroll
            for (uint32_t i = 0; i < 8; i++)
                sum = __fmaf_rn(u[mine][e + i], k[i], sum);
        }
        part[mine][j] = sum;
        __syncthreads();
        for (uint32_t h = 0; h < n_head && mine == 0; h++)
            match += part[h][j];
    }
    if (mine == 0 && key < a.n_key)
        a.match[key] = match;
}

void cuda_kv_match(struct gpu *gpu, const struct kv_match_args *args)
{
    const struct attend_shape shape = args->shape;
    struct match a;

    assert(shape.kv == KV_WIDE);
    assert(shape.d_head % 8 == 0 && shape.d_head <= ATTEND_DIM_MAX);
    assert(!gpu_is_recording(gpu) && !gpu_is_replaying(gpu));
    a.cosine = args->table->cos;
    a.sine = args->table->sin;
    a.q = args->q;
    a.block = args->block;
    a.n_key = args->n_key;
    a.match = args->match;
    a.n_pair = args->table->n_rot / 2;
    a.n_kv_head = shape.n_kv_head;
    a.group = shape.n_head / shape.n_kv_head;
    a.d_head = shape.d_head;
    a.head_bytes = attend_padded(shape.d_head) / 64 * TILE_BYTES;
    launch_early(gpu, match_keys,
                 dim3((uint32_t)((a.n_key + KV_BLOCK - 1) / KV_BLOCK)), THREADS,
                 a);
}
