/*
 * What goes ahead of attention of many rows: keys rotated and tiled by steps.
 *
 * A warp takes 256 / D keys of all KV heads, so that angles are made once:
 * D / 8 lanes a key, each with eight dims of every head, which are either four
 * pairs or not rotated at all. Many heads are under way at a time.
 *
 * Bound: 4 bytes a key dim over the bandwidth of a copy.
 */
#include "kernels/cuda/attend_many.cuh"
#include "kernels/cuda/launch.cuh"

#define N_THREAD 256u
#define N_WARP (N_THREAD / 32)
#define N_HEAD 8u /* under way */

/* Eight dims of a key, four and four. */
struct unit {
    uint32_t from[2], to[2]; /* bytes into the tiles of a head */
    struct angle angle[4];
    bool is_rotated;
};

/* Of token j of a block, row `row` of a step. */
template <int D, bool IS_PLACED>
static __device__ __forceinline__ struct unit
unit_of(const struct attend_frame &f, const struct attend_span &span,
        uint64_t block, uint32_t j, uint32_t row)
{
    uint32_t task = threadIdx.x % 32 % (D / 8), n = f.n_pair / 4;
    struct unit u;

    u.is_rotated = task < n;
    uint32_t x = u.is_rotated ? 4 * task : 2 * f.n_pair + 8 * (task - n);
    uint32_t y = u.is_rotated ? x + f.n_pair : x + 4;
    u.from[0] = tile_at(j, x, KV_BLOCK);
    u.from[1] = tile_at(j, y, KV_BLOCK);
    u.to[0] = tile_at(row, x, step_keys(D));
    u.to[1] = tile_at(row, y, step_keys(D));
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        if (u.is_rotated)
            u.angle[i] = angle_at<IS_PLACED>(f, span, block, x + i, j);
    return u;
}

/* N_HEAD heads from `head` on. block: NULL behind the last one, for zeros; to:
 * head 0. */
template <int D>
static __device__ __forceinline__ void
rotate_heads(const struct unit &u, const void *block, unsigned char *to,
             size_t head_bytes, uint32_t head, uint32_t n_head)
{
    uint2 x[N_HEAD], y[N_HEAD];

#pragma unroll
    for (uint32_t i = 0; i < N_HEAD; i++) {
        x[i] = y[i] = {0, 0};
        if (block && head + i < n_head) {
            const unsigned char *from = keys_of<D>(block, head + i);
            x[i] = *(const uint2 *)(from + u.from[0]);
            y[i] = *(const uint2 *)(from + u.from[1]);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < N_HEAD; i++) {
        if (head + i >= n_head)
            return;
        if (u.is_rotated) {
            rotate_words(&x[i].x, &y[i].x, u.angle[0], u.angle[1]);
            rotate_words(&x[i].y, &y[i].y, u.angle[2], u.angle[3]);
        }
        unsigned char *tile = to + (head + i) * head_bytes;
        *(uint2 *)(tile + u.to[0]) = x[i];
        *(uint2 *)(tile + u.to[1]) = y[i];
    }
}

template <int D, bool IS_PLACED>
static __global__ void __launch_bounds__(N_THREAD)
    rotate_keys(const __grid_constant__ struct many_call c)
{
    constexpr uint32_t STEP = step_keys(D), STEP_BYTES = STEP * D * 2;
    const struct many_span &s = c.span[blockIdx.y];
    uint32_t warp = blockIdx.x * N_WARP + threadIdx.x / 32;
    uint64_t key = (uint64_t)warp * (256 / D) + threadIdx.x % 32 / (D / 8);
    uint64_t n_key = s.span.position + s.span.n_row, b = key / KV_BLOCK;
    uint64_t n_step = (n_key + STEP - 1) / STEP;

    launch_next();
    if (key >= n_step * STEP)
        return;
    const void *block = b * KV_BLOCK < n_key ? s.span.block[b] : NULL;
    struct unit u = unit_of<D, IS_PLACED>(c.frame, s.span, b, key % KV_BLOCK,
                                          (uint32_t)(key % STEP));
    unsigned char *to = c.scratch + s.k_at + key / STEP * STEP_BYTES;
    for (uint32_t head = 0; head < c.frame.n_kv_head; head += N_HEAD)
        rotate_heads<D>(u, block, to, n_step * STEP_BYTES, head,
                        c.frame.n_kv_head);
}

template <int D>
static void rotate_of(cudaStream_t stream, const struct many_call *c)
{
    uint64_t n_step = (c->n_key_max + step_keys(D) - 1) / step_keys(D);
    uint64_t n = n_step * step_keys(D) * D / 256 / N_WARP;

    dim3 grid((uint32_t)n, c->n_span);

    if (c->frame.is_placed)
        rotate_keys<D, true><<<grid, N_THREAD, 0, stream>>>(*c);
    else
        rotate_keys<D, false><<<grid, N_THREAD, 0, stream>>>(*c);
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
