/*
 * Attention for rotations that the fast kernels do not have (small tests do):
 * the steps of kernels/backend.h in plain loops, over the blocks that
 * kv_append() fills. A block has a query head of a row and goes through its
 * past block by block, so nothing depends on the call. Threads are keys, then
 * dims; sums are fma chains.
 */
#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scalar.cuh"

#include <assert.h>
#include <cuda_bf16.h>
#include <string.h>

#define THREADS 64u /* one for each key of a block */
#define DIM_MAX 256u
#define SPAN_MAX 64u /* of a launch */

/* Where kv_append() puts dim d of token j in the tiles of a head. */
static __device__ uint32_t place_of(uint32_t j, uint32_t d)
{
    return d / 64 * TILE_BYTES + j * 128 + ((d % 64 / 8) ^ (j % 8)) * 16 +
           d % 8 * 2;
}

struct plain_frame {
    struct attend_args args;
    const float *cosine, *sine;
    uint32_t n_pair, n_tile; /* of 64 dims in a padded head */
};

static __device__ struct ending ending_in(const struct attend_args &a,
                                          size_t row, uint32_t head)
{
    struct attend_frame f = {};

    f.out = a.out;
    f.out_stride = a.out_stride;
    f.rounded = a.out_rounded;
    f.gate = a.gate;
    f.gate_stride = a.gate_stride;
    f.n_kv_head = a.shape.n_kv_head;
    f.group = a.shape.n_head / a.shape.n_kv_head;
    f.d_head = a.shape.d_head;
    return ending_of(f, row, head);
}

static __device__ float at(const unsigned char *head, uint32_t j, uint32_t d)
{
    return __bfloat162float(*(const __nv_bfloat16 *)(head + place_of(j, d)));
}

static __device__ float to_bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

static __device__ uint64_t position_of(const struct attend_span &span,
                                       uint64_t b, uint32_t j)
{
    if (!span.place)
        return b * KV_BLOCK + j;
    return span.place[b].position + (span.place[b].is_flat ? 0 : j);
}

/* Dim d of key j, rotated by its position. */
static __device__ float rotated(const struct plain_frame &f,
                                const unsigned char *keys, uint64_t position,
                                uint32_t j, uint32_t d)
{
    const uint32_t i = d < f.n_pair ? d : d - f.n_pair;
    const size_t angle =
        (position / KV_BLOCK * f.n_pair + i) * KV_BLOCK + position % KV_BLOCK;

    if (d >= 2 * f.n_pair)
        return at(keys, j, d);
    const float x = at(keys, j, i), y = at(keys, j, i + f.n_pair);
    return to_bf16(d < f.n_pair
                       ? __fmaf_rn(x, f.cosine[angle], -(y * f.sine[angle]))
                       : __fmaf_rn(y, f.cosine[angle], x * f.sine[angle]));
}

static __device__ float most_of(const float *score)
{
    float most = score[0];

    for (uint32_t j = 1; j < KV_BLOCK; j++)
        most = score[j] > most ? score[j] : most;
    return most;
}

/* What is kept from block to block; O lies with the threads. */
struct running {
    float most, sum;
};

static __global__ void
attend_plain(const __grid_constant__ struct plain_frame f,
             const struct attend_span *spans)
{
    launch_begin();
    __shared__ float q[DIM_MAX], score[KV_BLOCK], p[KV_BLOCK];
    const struct attend_args &a = f.args;
    const struct attend_span &span = spans[blockIdx.z];
    const uint32_t d_head = a.shape.d_head, head = blockIdx.y, me = threadIdx.x;
    const uint32_t kv = head / (a.shape.n_head / a.shape.n_kv_head);
    const size_t head_bytes = (size_t)f.n_tile * TILE_BYTES;
    const float none = __int_as_float(0xff800000);

    for (uint32_t t = blockIdx.x; t < span.n_row; t += gridDim.x) {
        const size_t row = span.first_row + t;
        const uint64_t position = span.position + t;
        const struct ending to = ending_in(a, row, head);
        float o[DIM_MAX / THREADS] = {};
        struct running all = {none, 0.0f};

        for (uint32_t d = me; d < d_head; d += THREADS)
            q[d] = to_bf16(a.q[row * a.q_stride + (size_t)head * d_head + d] *
                           a.scale);
        for (uint64_t b = 0; b <= position / KV_BLOCK; b++) {
            const unsigned char *keys =
                (const unsigned char *)span.block[b] + kv * head_bytes;
            const unsigned char *values = keys + a.shape.n_kv_head * head_bytes;
            const uint64_t left = position + 1 - b * KV_BLOCK;
            const uint32_t n_key = left < KV_BLOCK ? (uint32_t)left : KV_BLOCK;
            const bool is_seen = me < n_key;
            const uint64_t at_position = position_of(span, b, me);
            float s = 0.0f, sum = 0.0f;

            __syncthreads();
            for (uint32_t d = 0; d < d_head && is_seen; d++)
                s = __fmaf_rn(q[d], rotated(f, keys, at_position, me, d), s);
            score[me] = is_seen ? s : none;
            __syncthreads();
            const float most = fmaxf(all.most, most_of(score));
            const float by = scalar_exp(all.most - most);

            p[me] = is_seen ? scalar_exp(s - most) : 0.0f;
            __syncthreads();
            for (uint32_t j = 0; j < n_key; j++)
                sum += p[j];
            all.sum = __fmaf_rn(all.sum, by, sum);
            all.most = most;
            for (uint32_t i = 0; me + i * THREADS < d_head; i++) {
                o[i] *= by;
                for (uint32_t j = 0; j < n_key; j++)
                    o[i] = __fmaf_rn(to_bf16(p[j]),
                                     at(values, j, me + i * THREADS), o[i]);
            }
        }
        for (uint32_t i = 0; me + i * THREADS < d_head; i++)
            end_dim(to, me + i * THREADS, o[i] / all.sum);
        __syncthreads();
    }
}

static void launch(struct gpu *gpu, const struct plain_frame *f,
                   struct attend_span *span, uint32_t n_span)
{
    const struct attend_shape *shape = &f->args.shape;
    uint32_t n_row = 1;
    uint64_t n_key = 1;

    for (uint32_t i = 0; i < n_span; i++) {
        n_row = span[i].n_row > n_row ? span[i].n_row : n_row;
        if (span[i].position + span[i].n_row > n_key)
            n_key = span[i].position + span[i].n_row;
    }
    const uint64_t n_block = wide_n_block(gpu, n_key);
    const size_t bytes = wide_bytes(shape, n_span, n_block);
    if (bytes)
        attend_widen(gpu, shape, span, n_span, n_block,
                     (unsigned char *)gpu_scratch(gpu, bytes));
    const struct attend_span *staged = (const struct attend_span *)gpu_stage(
        gpu, span, n_span * sizeof(*span));
    if (!gpu_is_replaying(gpu))
        launch_early(gpu, attend_plain, dim3(n_row, shape->n_head, n_span),
                     THREADS, *f, staged);
}

void cuda_attend_plain(struct gpu *gpu, const struct attend_args *args)
{
    struct attend_span list[SPAN_MAX];
    struct plain_frame f;

    assert(args->shape.d_head <= DIM_MAX);
    f.args = *args;
    f.cosine = args->table->cos;
    f.sine = args->table->sin;
    f.n_pair = args->table->n_rot / 2;
    f.n_tile = attend_padded(args->shape.d_head) / 64;
    for (uint32_t first = 0; first < args->n_span; first += SPAN_MAX) {
        const uint32_t left = args->n_span - first;
        const uint32_t n = left < SPAN_MAX ? left : SPAN_MAX;

        memcpy(list, args->span + first, n * sizeof(*list));
        launch(gpu, &f, list, n);
    }
}
