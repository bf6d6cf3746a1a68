/*
 * What goes ahead of attention of many rows: keys rotated and tiled by steps.
 *
 * Bound: 4 bytes a key dim over the bandwidth of a copy.
 */
#include "kernels/cuda/attend_many.cuh"

#define N_THREAD 256u

/* A block of keys of all KV heads a CTA, so that angles are made once. */
template <int D>
static __global__ void __launch_bounds__(N_THREAD)
    rotate_keys(const __grid_constant__ struct many_call c)
{
    constexpr uint32_t STEP = step_keys(D);
    const struct attend_frame &f = c.frame;
    const struct many_span &s = c.span[blockIdx.y];
    uint64_t n_key = s.span.position + s.span.n_row, b = blockIdx.x;
    uint64_t n_step = (n_key + STEP - 1) / STEP;
    if (b * KV_BLOCK >= n_step * STEP)
        return;
    bool has = b * KV_BLOCK < n_key; /* or it only fills up a step */
    const void *block = has ? s.span.block[b] : NULL;
    unsigned char *to =
        c.scratch + s.k_at + b * KV_BLOCK / STEP * (STEP * D * 2);
    uint32_t first = b * KV_BLOCK % STEP;

    uint32_t n_x = f.n_pair / 8, n_task = D / 8 - n_x; /* units of a key */

    for (uint32_t i = threadIdx.x; i < 64 * n_task; i += N_THREAD) {
        uint32_t j = i / n_task, task = i % n_task;
        bool is_rotated = task < n_x; /* with its partner, else alone */
        uint32_t e = (is_rotated ? task : task + n_x) * 8, e2 = e + f.n_pair;
        struct angle angle[8];
#pragma unroll
        for (uint32_t k = 0; k < 8; k++)
            if (is_rotated)
                angle[k] = angle_of(f, b, e + k, j);
        for (uint32_t h = 0; h < f.n_kv_head; h++) {
            unsigned char *tile = to + h * n_step * (STEP * D * 2);
            uint4 x = {0, 0, 0, 0}, y = x;
            if (has)
                x = *(const uint4 *)(keys_of<D>(block, h) + tile_at(j, e, 64));
            if (has && is_rotated)
                y = *(const uint4 *)(keys_of<D>(block, h) + tile_at(j, e2, 64));
            if (is_rotated) {
                rotate_unit(&x, &y, angle);
                *(uint4 *)(tile + tile_at(first + j, e2, STEP)) = y;
            }
            *(uint4 *)(tile + tile_at(first + j, e, STEP)) = x;
        }
    }
}

template <int D>
static void rotate_of(cudaStream_t stream, const struct many_call *c)
{
    uint32_t n_block = (uint32_t)((c->n_key_max + 127) / 128 * 2);

    rotate_keys<D><<<dim3(n_block, c->n_span), N_THREAD, 0, stream>>>(*c);
}

void many_rotate(cudaStream_t stream, const struct many_call *call)
{
    switch (attend_padded(call->frame.d_head)) {
    case 64:
        rotate_of<64>(stream, call);
        break;
    case 128:
        rotate_of<128>(stream, call);
        break;
    default:
        rotate_of<256>(stream, call);
        break;
    }
}
