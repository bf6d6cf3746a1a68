#ifndef KERNELS_CUDA_ATTEND_END_CUH
#define KERNELS_CUDA_ATTEND_END_CUH
/*
 * How the 64 rows of a warpgroup end, when O and L are there: attend.cuh's
 * O * (1 / L) + 0, gated, rounded. Tensor cores leave two dims of eight in a
 * thread. They go through the place of the warp's own queries in shared memory,
 * which nobody reads any more, so that memory sees 128 bytes of a row at once,
 * and that what is done to a gate is written once, not for each of a thread's
 * dims: instructions that run once a tile come from the L2 cache, and so many
 * took longer than the gates.
 *
 * The 16 rows of warp w have 2,048 bytes in each of the D / 64 tiles of 64
 * queries, from 2,048 w on: 128 bytes for each, 64 dims in bf16 or 32 floats.
 */
#include "kernels/cuda/attend.cuh"

/* Of all rows of a call. A kernel for one has no instruction of the others;
 * gated rows may be rounded. */
enum end { END_FLOATS, END_ROUNDED, END_GATED, END_ANY };

template <enum end END>
static __device__ __forceinline__ bool is_gated(const struct attend_frame &f)
{
    return END == END_GATED || (END == END_ANY && f.gate);
}

template <enum end END>
static __device__ __forceinline__ bool is_rounded(const struct attend_frame &f)
{
    return END == END_ROUNDED || (END != END_FLOATS && f.rounded);
}

/* Where rows go that a warp ends: eight lanes take a row, 16 bytes each, so
 * this lane has rows 4 j + lane / 8. */
struct leave {
    uint32_t row[4]; /* UINT32_MAX: none */
    uint32_t at[4];  /* dims before its query head */
};

/* first: packed row, of the warp's 16. */
static __device__ __forceinline__ struct leave
leave_of(const struct attend_frame &f, uint32_t kv_head, size_t first_row,
         uint32_t first, uint32_t n_packed)
{
    const uint32_t lane = threadIdx.x % 32, packed = first + lane % 16;
    const uint32_t token = packed / f.group;
    const uint32_t head = kv_head * f.group + packed - token * f.group;
    const uint32_t row =
        packed < n_packed ? (uint32_t)first_row + token : UINT32_MAX;
    struct leave leave;

#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const int from = (int)(4 * j + lane / 8);

        leave.row[j] = __shfl_sync(~0u, row, from);
        leave.at[j] = __shfl_sync(~0u, head * f.d_head, from);
    }
    return leave;
}

/* The gate of dim `dim` of row j of a lane's four. */
static __device__ __forceinline__ const float *
gate_at(const struct attend_frame &f, const struct leave &leave, uint32_t j,
        uint32_t dim)
{
    return f.gate + leave.row[j] * f.gate_stride + leave.at[j] + dim;
}

/* A lane's gates of four rows, from `dim` on, asked for here and now: the
 * compiler would ask when it wants them. */
static __device__ __forceinline__ void ask_gates(float4 *gate,
                                                 const struct attend_frame &f,
                                                 const struct leave &leave,
                                                 uint32_t dim)
{
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const float *at = gate_at(f, leave, j, dim);

        gate[j] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (dim < f.d_head && leave.row[j] != UINT32_MAX)
            asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(gate[j].x), "=f"(gate[j].y), "=f"(gate[j].z),
                           "=f"(gate[j].w)
                         : "l"(at));
    }
}

/* Half of O into the warp's place, as floats: unit u of row r is at
 * u ^ r % 4 * 2, so that half a warp meets no bank twice. */
template <int D>
static __device__ __forceinline__ void
lay_floats(unsigned char *place, const float *o, const float *by, uint32_t half)
{
    const uint32_t r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;

    place += r * 128 + c % 2 * 8;
#pragma unroll
    for (uint32_t i = 0; i < D / 16; i++) {
        const float *x = o + 4 * (half * (D / 16) + i);
        const uint32_t at = (i % 4 * 2 + c / 2) ^ (r % 4 * 2);
        float2 *to = (float2 *)(place + i / 4 * TILE_BYTES + at * 16);

        to[0] = {x[0] * by[0] + 0.0f, x[1] * by[0] + 0.0f};
        to[128] = {x[2] * by[1] + 0.0f, x[3] * by[1] + 0.0f}; /* row r + 8 */
    }
}

/* What a lane has of four rows there. */
static __device__ __forceinline__ void take_floats(float4 *x,
                                                   const unsigned char *at)
{
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
        x[j] = *(const float4 *)(at + j * 512);
}

/* 16 dims of a lane's four rows, gated one after the other where they lie. */
static __device__ __forceinline__ void gate_slowly(unsigned char *place,
                                                   const struct attend_frame &f,
                                                   const struct leave &leave,
                                                   uint32_t dim)
{
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const float *gate = gate_at(f, leave, j, dim);
        float *x = (float *)(place + j * 512);

        if (dim < f.d_head && leave.row[j] != UINT32_MAX)
#pragma unroll 1
            for (uint32_t i = 0; i < 4; i++)
                x[i] = x[i] * scalar_sigmoid(__ldg(gate + i));
    }
}

/* They are gated, and the gates of the next 32 dims are asked for. */
static __device__ __forceinline__ void gate_floats(float4 *x, unsigned char *at,
                                                   const struct attend_frame &f,
                                                   const struct leave &leave,
                                                   uint32_t dim, float4 *gate)
{
    float4 next[4];

    ask_gates(next, f, leave, dim + 32);
    if (!gate_usual<16>(&x[0].x, &gate[0].x)) {
        gate_slowly(at, f, leave, dim);
        take_floats(x, at);
    }
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
        gate[j] = next[j];
}

/* What a lane has of four rows, from `dim` on. */
template <bool IS_ROUNDED>
static __device__ __forceinline__ void
send(const float4 *x, const struct attend_frame &f, const struct leave &leave,
     uint32_t dim)
{
    const uint32_t width = f.n_kv_head * f.group * f.d_head;

#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const size_t row = leave.row[j], at = leave.at[j] + dim;

        if (dim >= f.d_head || leave.row[j] == UINT32_MAX)
            continue;
        if (IS_ROUNDED)
            *(uint2 *)(f.rounded + row * width + at) = {
                round_pair(x[j].x, x[j].y), round_pair(x[j].z, x[j].w)};
        else
            *(float4 *)(f.out + row * f.out_stride + at) = x[j];
    }
}

/* Rows that are gated, or not rounded. */
template <int D, bool IS_GATED>
static __device__ __forceinline__ void
end_wide(const float *o, const float *by, const struct attend_frame &f,
         const struct leave &leave, unsigned char *place)
{
    const uint32_t lane = threadIdx.x % 32;
    unsigned char *mine =
        place + lane / 8 * 128 + ((lane % 8) ^ (lane / 8 * 2)) * 16;
    float4 gate[4];

    if (IS_GATED)
        ask_gates(gate, f, leave, lane % 8 * 4);
    lay_floats<D>(place, o, by, 0);
    __syncwarp();
#pragma unroll 1
    for (uint32_t i = 0; i < D / 32; i++) {
        unsigned char *at = mine + i % (D / 64) * TILE_BYTES;
        const uint32_t dim = i * 32 + lane % 8 * 4;
        float4 x[4];

        take_floats(x, at);
        if (IS_GATED)
            gate_floats(x, at, f, leave, dim, gate);
        if (IS_GATED && f.rounded)
            send<true>(x, f, leave, dim);
        else
            send<false>(x, f, leave, dim);
        if (i + 1 != D / 64)
            continue;
        __syncwarp();
        lay_floats<D>(place, o, by, 1);
        __syncwarp();
    }
}

/* Four 8 x 8 matrices of a warp, to rows whose addresses lanes have in order.
 */
static __device__ __forceinline__ void put_matrices(uint32_t to,
                                                    const uint32_t *x)
{
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::
            "r"(to),
        "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
        : "memory");
#endif
}

/* Rows that are rounded, not gated. */
template <int D>
static __device__ __forceinline__ void
end_rounded(const float *o, const float *by, const struct attend_frame &f,
            const struct leave &leave, unsigned char *place)
{
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t width = f.n_kv_head * f.group * f.d_head;
    const uint32_t to = shared_address(place) + lane % 16 * 128;

#pragma unroll
    for (uint32_t i = 0; i < D / 8; i += 2) {
        const float *y = o + 4 * i;
        uint32_t x[4];

#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            x[j] = round_pair(y[2 * j] * by[j % 2] + 0.0f,
                              y[2 * j + 1] * by[j % 2] + 0.0f);
        put_matrices(to + i / 8 * TILE_BYTES +
                         ((i % 8 + lane / 16) ^ (lane % 8)) * 16,
                     x);
    }
    __syncwarp();
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const uint32_t r = 4 * j + lane / 8;
        uint16_t *out = f.rounded + (size_t)leave.row[j] * width + leave.at[j] +
                        lane % 8 * 8;

#pragma unroll
        for (uint32_t i = 0; i < D / 64; i++)
            if (i * 64 + lane % 8 * 8 < f.d_head && leave.row[j] != UINT32_MAX)
                *(uint4 *)(out + i * 64) =
                    *(const uint4 *)(place + i * TILE_BYTES + r * 128 +
                                     ((lane % 8) ^ (r % 8)) * 16);
    }
}
#endif
