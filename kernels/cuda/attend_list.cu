/*
 * Attention of prompts under a memory policy: hundreds of spans of few rows,
 * each with a list of blocks of its own. The bits are those of attend_many.cu.
 *
 * Rotated keys are of use to one span alone, since places differ from list to
 * list; in a scratch they would be written and read back for a few rows. So
 * keys come as they lie in their blocks, and a warpgroup rotates them in shared
 * memory while another one, with 64 packed rows of a span and a KV head,
 * multiplies the step before (attend_rows.cuh). A warp brings keys and values
 * by bulk copies. Spans are many, so a CTA has all chains of a tile; it stays
 * on its SM and takes tile after tile, and the next one's keys come while this
 * one ends.
 *
 * Bound: the bytes of keys and values of all lists over what the L2 cache
 * gives, or 4 n_key d operations a row and head over 790 TFLOP/s.
 */
#include "kernels/cuda/attend_list.cuh"
#include "kernels/cuda/attend_rows.cuh"
#include "kernels/cuda/launch.cuh"

#define N_GROUP 1
#define N_THREAD (3 * N_GROUP_THREAD)
#define ROTATORS 5 /* named barrier; those of attend_rows.cuh are below */

template <int D> struct list {
    using plan = struct plan<D, N_GROUP>;
    static constexpr uint32_t N_BLOCK = plan::STEP / KV_BLOCK; /* of a step */
    /* Pairs of a key whose angles within a block stay in registers, half of
     * them with each half of a warp. */
    static constexpr uint32_t N_HELD = D == 128 ? 64 : 32;
    static constexpr uint32_t N_RAW = plan::N_STAGE;
    static constexpr uint32_t BYTES = plan::BYTES;
};

/* What rotation needs of a step: of each of its blocks the angles of its first
 * key, and whether they are those of all its keys. */
template <int D> struct turn {
    struct angle angle[list<D>::N_BLOCK][D / 2];
    uint32_t is_flat[4];
};

/* Behind what attend_rows.cuh knows: keys have come, but are not rotated; two
 * steps' turns. */
template <int D> struct list_room {
    struct room<D, N_GROUP> rows;
    uint64_t *k_raw;
    struct turn<D> *turn;
};

template <int D>
static __device__ __forceinline__ struct list_room<D>
list_room_of(unsigned char *shared) {
    struct list_room<D> m;

    m.rows = room_of<D, N_GROUP>(shared);
    m.k_raw = m.rows.v_empty + list<D>::N_RAW;
    m.turn = (struct turn<D> *)(m.k_raw + list<D>::N_RAW);
    return m;
}

/* Tile `round` of this CTA; false behind the last. Heads of a tile side by
 * side, and tiles of a span, which see the same blocks. */
template <int D>
static __device__ bool tile_take(struct tile *tile, const struct list_call &c,
                                 uint32_t round)
{
    uint32_t n_kv_head = c.frame.n_kv_head;
    uint32_t i = round * c.n_cta + blockIdx.x;

    if (i >= c.n_tile * c.n_span * n_kv_head)
        return false;
    tile->head = i % n_kv_head;
    tile->span = c.span[i / n_kv_head / c.n_tile];
    tile->first = i / n_kv_head % c.n_tile * LIST_ROWS;
    tile->n_packed = tile->span.n_row * c.frame.group;
    tile->n_step = 0;
    if (tile->first < tile->n_packed) {
        uint32_t last = min(tile->first + LIST_ROWS, tile->n_packed) - 1;
        uint64_t n_key = tile->span.position + last / c.frame.group + 1;

        tile->n_step =
            (uint32_t)((n_key + list<D>::plan::STEP - 1) / list<D>::plan::STEP);
    }
    return true;
}

static __device__ __forceinline__ uint64_t last_block(const struct tile &tile)
{
    return (tile.span.position + tile.span.n_row - 1) / KV_BLOCK;
}

/* ------------------------------------------------------- the warp that brings
 */

/* A block's keys of a head to part j of a stage, whose tiles have STEP rows. */
template <int D>
static __device__ __forceinline__ void bring_keys(unsigned char *to,
                                                  const unsigned char *from,
                                                  uint32_t j, uint64_t *raw)
{
    constexpr uint32_t N_BLOCK = list<D>::N_BLOCK;

    if (N_BLOCK == 1)
        bulk_copy(to, from, D * KV_BLOCK * 2, raw);
    else
#pragma unroll
        for (uint32_t i = 0; i < D / 64; i++)
            bulk_copy(to + (i * N_BLOCK + j) * TILE_BYTES,
                      from + i * TILE_BYTES, TILE_BYTES, raw);
}

/* A tile's keys and values; n_past steps went before. */
template <int D>
static __device__ void bring(const struct list_call &c, const struct tile &tile,
                             struct list_room<D> m, uint32_t n_past)
{
    using plan = typename list<D>::plan;
    constexpr uint32_t N_BLOCK = list<D>::N_BLOCK;
    constexpr uint32_t BLOCK = D * KV_BLOCK * 2; /* bytes of a head in one */
    uint32_t lane = threadIdx.x % 32, n_kv_head = c.frame.n_kv_head;
    uint64_t last = last_block(tile);
    const void *some = NULL; /* 32 blocks, one with each lane */

    for (uint32_t i = 0; i < tile.n_step; i++) {
        uint32_t stage = stage_of<D, N_GROUP>(n_past + i);
        uint32_t parity = phase_of<D, N_GROUP>(n_past + i) ^ 1;
        uint32_t first = i * N_BLOCK;
        unsigned char *k = m.rows.k + stage * plan::KV_BYTES;
        unsigned char *v = m.rows.v + stage * plan::KV_BYTES;
        const void *block[N_BLOCK];

        /* Behind the last block any finite values will do. */
        if (first % 32 == 0)
            some = tile.span.block[min((uint64_t)first + lane, last)];
#pragma unroll
        for (uint32_t j = 0; j < N_BLOCK; j++)
            block[j] = (const void *)__shfl_sync(~0u, (unsigned long long)some,
                                                 (int)((first + j) % 32));
        if (lane)
            continue;
        mbarrier_wait(m.rows.k_empty + stage, parity);
        mbarrier_expect(m.k_raw + stage, plan::KV_BYTES);
#pragma unroll
        for (uint32_t j = 0; j < N_BLOCK; j++)
            bring_keys<D>(k, keys_of<D>(block[j], tile.head), j,
                          m.k_raw + stage);
        mbarrier_wait(m.rows.v_empty + stage, parity);
        mbarrier_expect(m.rows.v_full + stage, plan::KV_BYTES);
#pragma unroll
        for (uint32_t j = 0; j < N_BLOCK; j++)
            bulk_copy(v + j * BLOCK,
                      values_of<D>(block[j], n_kv_head, tile.head), BLOCK,
                      m.rows.v_full + stage);
    }
    __syncwarp();
}

template <int D>
static __device__ void produce(const struct list_call &c, struct list_room<D> m)
{
    uint32_t n_past = 0;
    struct tile tile;

    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        if (threadIdx.x % 32 == 0)
            announce<END_ANY>(c.frame, tile, LIST_ROWS);
        bring<D>(c, tile, m, n_past);
        n_past += tile.n_step;
    }
}

/* ---------------------------------------------- the warpgroup that rotates
 * keys
 */

/* This thread's part of a turn: a pair of a block, whose table entries are
 * loaded one step ahead, and the block's place two. */
struct ahead {
    uint32_t part, pair; /* which block of a step; n_pair and more: none */
    struct key_place place;
    struct angle block, within;
};

static __device__ __forceinline__ void load_place(struct ahead *x,
                                                  const struct tile &tile,
                                                  uint32_t n_part,
                                                  uint32_t step)
{
    uint64_t b = min((uint64_t)step * n_part + x->part, last_block(tile));

    x->place = tile.span.place[b];
}

/* As angle_first() has it. */
template <int D>
static __device__ __forceinline__ void
put_angle(const struct ahead &x, bool is_flat, struct turn<D> *turn,
          uint32_t n_pair)
{
    if (x.part >= list<D>::N_BLOCK || x.pair >= n_pair)
        return;
    turn->angle[x.part][x.pair] =
        is_flat ? angle_sum(x.block, x.within) : x.block;
    if (x.pair == 0)
        turn->is_flat[x.part] = is_flat;
}

template <int D>
static __device__ __forceinline__ void load_angles(struct ahead *x,
                                                   const struct attend_frame &f)
{
    if (x->part >= list<D>::N_BLOCK)
        return;
    x->block = angle_block(f, x->place.position / KV_BLOCK, x->pair);
    x->within = angle_within(f, x->pair, x->place.position % KV_BLOCK);
}

/* The keys of a block, which lie from row `row` of a stage on, 16 of them a
 * warp. */
template <int D>
static __device__ __forceinline__ void
rotate_block(unsigned char *k, uint32_t row, const struct attend_frame &f,
             const struct angle *first, const struct angle *held, bool is_flat)
{
    constexpr uint32_t STEP = list<D>::plan::STEP, N_HELD = list<D>::N_HELD;
    uint32_t lane = threadIdx.x % 32, e0 = lane / 16 * 8;
    uint32_t j = threadIdx.x % N_GROUP_THREAD / 32 * 16 + lane % 16;

    row += j;
#pragma unroll
    for (uint32_t e = 0; e < N_HELD; e += 16)
        if (e0 + e < f.n_pair)
            turn_unit((uint4 *)(k + tile_at(row, e0 + e, STEP)),
                      (uint4 *)(k + tile_at(row, e0 + e + f.n_pair, STEP)),
                      first + e0 + e, held + e / 2, is_flat);
    for (uint32_t e = N_HELD + e0; e < f.n_pair; e += 16) {
        struct angle within[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            within[i] = angle_within(f, e + i, j);
        turn_unit((uint4 *)(k + tile_at(row, e, STEP)),
                  (uint4 *)(k + tile_at(row, e + f.n_pair, STEP)), first + e,
                  within, is_flat);
    }
}

/* A tile's keys, step by step; n_past steps went before. */
template <int D>
static __device__ __forceinline__ void
rotate_tile(const struct attend_frame &f, const struct tile &tile,
            struct list_room<D> m, struct ahead x, const struct angle *held,
            uint32_t n_past)
{
    constexpr uint32_t N_BLOCK = list<D>::N_BLOCK;

    load_place(&x, tile, N_BLOCK, 0);
    load_angles<D>(&x, f);
    put_angle<D>(x, x.place.is_flat, m.turn + n_past % 2, f.n_pair);
    load_place(&x, tile, N_BLOCK, 1);
    named_sync(ROTATORS, N_GROUP_THREAD);
    for (uint32_t i = n_past; i < n_past + tile.n_step; i++) {
        const struct turn<D> *now = m.turn + i % 2;
        uint32_t stage = stage_of<D, N_GROUP>(i);
        unsigned char *k = m.rows.k + stage * list<D>::plan::KV_BYTES;
        bool is_flat = x.place.is_flat; /* of the next step */

        load_angles<D>(&x, f);
        load_place(&x, tile, N_BLOCK, i - n_past + 2);
        mbarrier_wait(m.k_raw + stage, phase_of<D, N_GROUP>(i));
#pragma unroll
        for (uint32_t j = 0; j < N_BLOCK; j++)
            rotate_block<D>(k, j * KV_BLOCK, f, now->angle[j], held,
                            now->is_flat[j]);
        bulk_fence();
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            mbarrier_arrive(m.rows.k_full + stage);
        put_angle<D>(x, is_flat, m.turn + (i + 1) % 2, f.n_pair);
        named_sync(ROTATORS, N_GROUP_THREAD);
    }
}

template <int D>
static __device__ void rotate_all(const struct list_call &c,
                                  struct list_room<D> m)
{
    constexpr uint32_t N_HELD = list<D>::N_HELD;
    const struct attend_frame &f = c.frame;
    uint32_t t = threadIdx.x % N_GROUP_THREAD, lane = t % 32, n_past = 0;
    struct angle held[N_HELD / 2];
    struct ahead x = {.part = t / (D / 2), .pair = t % (D / 2)};
    struct tile tile;

    if (x.pair >= f.n_pair) /* whose entries nobody wants */
        x.part = list<D>::N_BLOCK;
#pragma unroll
    for (uint32_t i = 0; i < N_HELD / 2; i++) {
        uint32_t e = i / 8 * 16 + lane / 16 * 8 + i % 8;

        if (e < f.n_pair)
            held[i] = angle_within(f, e, t / 32 * 16 + lane % 16);
    }
    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        if (!tile.n_step)
            continue;
        rotate_tile<D>(f, tile, m, x, held, n_past);
        n_past += tile.n_step;
    }
}

/* ------------------------------------------------- the warpgroup that
 * multiplies
 */

template <int D>
static __device__ void work(const struct list_call &c, struct list_room<D> m)
{
    using plan = typename list<D>::plan;
    constexpr uint32_t N_FAR = plan::N_UNIT - plan::N_NEAR;
    uint32_t t = threadIdx.x % N_GROUP_THREAD;
    struct worker w = {.group = 0};
    struct tile tile;

    w.past.near = m.rows.sum + t;
    w.past.far = (float4 *)c.scratch + blockIdx.x * N_FAR * N_GROUP_THREAD + t;
    for (uint32_t round = 0; tile_take<D>(&tile, c, round); round++) {
        if (!tile.n_step)
            continue;
        consume<D, N_GROUP, END_ANY>(c.frame, tile, m.rows, w);
        w.n_past += tile.n_step;
    }
}

template <int D>
static __global__ void __launch_bounds__(N_THREAD, 1)
    attend_list(const __grid_constant__ struct list_call c)
{
    extern __shared__ unsigned char shared[];
    struct list_room<D> m = list_room_of<D>(shared);

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < list<D>::N_RAW; i++) {
            mbarrier_init(m.k_raw + i, 1);
            mbarrier_init(m.rows.k_full + i, N_GROUP_THREAD / 32);
            mbarrier_init(m.rows.v_full + i, 1);
            mbarrier_init(m.rows.k_empty + i, 1);
            mbarrier_init(m.rows.v_empty + i, 1);
        }
        mbarrier_init_fence();
    }
    launch_begin();
    __syncthreads();
    if (threadIdx.x < N_GROUP_THREAD) {
        registers_give<56>();
        if (threadIdx.x < 32)
            produce<D>(c, m);
    } else if (threadIdx.x < 2 * N_GROUP_THREAD) {
        registers_take<224>();
        rotate_all<D>(c, m);
    } else {
        registers_take<224>();
        work<D>(c, m);
    }
}

size_t list_bytes(const struct attend_frame *f, uint32_t n_cta)
{
    using plan = struct plan<256, N_GROUP>;
    constexpr uint32_t N_FAR = plan::N_UNIT - plan::N_NEAR;

    return attend_padded(f->d_head) > 128
               ? n_cta * N_FAR * N_GROUP_THREAD * sizeof(float4)
               : 0;
}

template <int D>
static void attend_list_of(cudaStream_t stream, const struct list_call *c)
{
    constexpr uint32_t bytes = list<D>::BYTES +
                               list<D>::N_RAW * sizeof(uint64_t) +
                               2 * sizeof(struct turn<D>);

    launch_allow(attend_list<D>, bytes);
    launch_early_with(stream, attend_list<D>, dim3(c->n_cta), N_THREAD, bytes,
                      *c);
}

void attend_list(cudaStream_t stream, const struct list_call *call)
{
    switch (attend_padded(call->frame.d_head)) {
    case 64:
        attend_list_of<64>(stream, call);
        break;
    case 128:
        attend_list_of<128>(stream, call);
        break;
    default:
        attend_list_of<256>(stream, call);
        break;
    }
}
