#ifndef KERNELS_CUDA_ATTEND_CUH
#define KERNELS_CUDA_ATTEND_CUH
/*
 * What the kernels of attention share: where things lie, and the arithmetic.
 *
 * Heads are padded with zeros to D = 64, 128 or 256 dims. A tile is 64 rows
 * (tokens) of 64 dims, bf16, 8192 bytes: row j is 128 bytes, and its 16-byte
 * unit u lies at place u ^ j % 8, the pattern that wgmma and ldmatrix read
 * without bank conflicts. So a plain bulk copy brings a tile to where the
 * tensor cores read it. A KV block holds for each KV head D / 64 tiles of
 * keys, then for each KV head D / 64 tiles of values.
 *
 * The arithmetic, per row and query head. Absolute chains of CHAIN keys, in
 * each of them steps of STEP keys (128; 64 for D = 256), both ascending:
 *   q' = bf16(q * factor), factor = scale * log2(e), rounded to float
 *   k' = bf16(rotated k), by cos and sin of the angle of its block plus the
 *        angle in the block (attend_rotate); with places (struct key_place) the
 *        block is the one at its place, and keys of a flat one all have the
 *        angle of that block plus the angle in it of their one position. All
 *        else goes by the order in the list
 *   s  = P(q', k'): one chain of k16 tensor core steps over the padded dims;
 *        minus infinity for keys behind the row
 *   M' = the largest s of the step if that is above M + 8, else M; from minus
 *        infinity at the start of a chain
 *   a  = 2^(M - M');  p = 2^(s - M')           (ex2.approx.ftz)
 *   t  = per 64 keys, for each c < 4: the chain of additions over the keys
 *        8 j + 2 c, 8 j + 2 c + 1, j ascending
 *   L_c = fma(L_c, a, t_c of the step), t of two 64s added first
 *   O  = O * a, then k16 steps of bf16(p) and v continue the chain in O
 * A chain ends with L = (L_0 + L_1) + (L_2 + L_3), and chains merge in
 * ascending order, the first giving the start:
 *   M' = max(M, m);  a = 2^(M - M');  c = 2^(m - M')
 *   L = fma(L, a, l * c);  O = fma(O, a, o * c)
 * out = O * (1 / L) + 0; the zero hides which sign a zero has. The gate comes
 * behind it.
 * What a row does not see changes no bit: a step of keys behind it has a = 1
 * and p = 0, a chain of them c = 0; hence kv_append keeps what lies behind a
 * row finite. FlashAttention's recurrence (arXiv:2205.14135) on a fixed grid;
 * its restart every CHAIN keys lets few rows share a long past among SMs.
 */
extern "C" {
#include "kernels/backend.h"
}
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/scalar.cuh"

#include <cuda_runtime.h>
#include <stdint.h>

#define ATTEND_CHAIN 1024u /* keys of a chain */
#define ATTEND_DIM_MAX 256u
#define TILE_BYTES 8192u

/* Keys of a step, by padded dims. */
static __host__ __device__ constexpr uint32_t step_keys(uint32_t d)
{
    return d > 128 ? 64 : 128;
}

/*
 * What all kernels of one call know. Packed row r of a span and a KV head
 * stands for token r / group and query head r % group of the head's group.
 */
struct attend_frame {
    float *out;
    const float *q;
    size_t out_stride, q_stride;
    uint16_t *rounded; /* NULL: results come to out */
    const float *gate; /* or NULL */
    size_t gate_stride;
    const float *cosine, *sine; /* of the rope table */
    uint32_t n_pair;            /* of rotated dims */
    uint32_t n_kv_head, group, d_head;
    float factor;
    bool is_int8;   /* the blocks: attend_tile8.cuh */
    bool is_placed; /* spans may have places; blocks are wide then */
};

/* Where the result of a row and query head goes, and what gates it. */
struct ending {
    float *out;
    uint16_t *rounded; /* or NULL */
    const float *gate; /* or NULL */
};
static __device__ __forceinline__ struct ending
ending_of(const struct attend_frame &f, size_t row, size_t head)
{
    const size_t at = head * f.d_head;
    const size_t width = (size_t)f.n_kv_head * f.group * f.d_head;

    return {f.out + row * f.out_stride + at,
            f.rounded ? f.rounded + row * width + at : NULL,
            f.gate ? f.gate + row * f.gate_stride + at : NULL};
}

/* Dim e of it, x being O * (1 / L) + 0. */
static __device__ __forceinline__ void end_dim(const struct ending &to,
                                               uint32_t e, float x)
{
    if (to.gate)
        x = x * scalar_sigmoid(__ldg(to.gate + e));
    if (to.rounded)
        to.rounded[e] = (uint16_t)round_pair(x, 0.0f);
    else
        to.out[e] = x;
}

/*
 * x * scalar_sigmoid(gate) of N at once, if no gate is above 86 or NaN, nor
 * below -86; else false, and nothing is done. Of these e^-gate is a normal
 * number, so that its power of 2 may be added to the exponent in place of
 * scalar_exp()'s two products; and d = 1 + e^-gate is below 2^125, so that 1 /
 * d is what the compiler makes of a division before it looks for other d.
 */
template <int N>
static __device__ __forceinline__ bool gate_usual(float *x, const float *gate)
{
    bool is_usual = true;

#pragma unroll
    for (int i = 0; i < N; i++)
        is_usual &= fabsf(gate[i]) <= 86.0f;
    if (!is_usual)
        return false;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float n = __fmaf_rn(-gate[i], 0x1.715476p+0f, 0x1.8p+23f);
        const float p = scalar_exp_rest(-gate[i], n - 0x1.8p+23f);
        const float d = 1.0f + __uint_as_float(__float_as_uint(p) +
                                               (__float_as_uint(n) << 23));
        float y;

        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
        x[i] = x[i] * __fmaf_rn(y, -__fmaf_rn(d, y, -1.0f), y);
    }
    return true;
}

template <int N>
static __device__ __forceinline__ void gate_some(float *x, const float *gate)
{
    if (gate_usual<N>(x, gate))
        return;
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = x[i] * scalar_sigmoid(gate[i]);
}

/* Two dims each of N neighbours of end_dims(), `gate` at the first. */
template <int N>
static __device__ __forceinline__ void gate_dims(float2 *x, const float *gate,
                                                 uint32_t n_dim)
{
    constexpr int N_ONCE = N < 4 ? N : 4;
    float2 y[N];

#pragma unroll
    for (int i = 0; i < N; i++)
        y[i] = i * 8 < n_dim ? __ldg((const float2 *)(gate + i * 8))
                             : float2{0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < N; i += N_ONCE)
        gate_some<2 * N_ONCE>(&x[i].x, &y[i].x);
}

/*
 * What a thread of four has of it, as tensor cores leave sums: dims 8 i + 2 c
 * and the next of DIMS, in o[4 i] and o[4 i + 1], times `by`.
 */
template <int DIMS>
static __device__ __forceinline__ void
end_dims(const struct ending &to, const float *o, float by, uint32_t d_head)
{
    constexpr uint32_t N_ONCE = DIMS / 8 < 16 ? DIMS / 8 : 16; /* gates */
    const uint32_t c = threadIdx.x % 4 * 2;
    float2 x[DIMS / 8];

#pragma unroll
    for (uint32_t i = 0; i < DIMS / 8; i++)
        x[i] = {o[4 * i] * by + 0.0f, o[4 * i + 1] * by + 0.0f};
    if (to.gate)
#pragma unroll
        for (uint32_t i = 0; i < DIMS / 8; i += N_ONCE)
            if (i * 8 < d_head)
                gate_dims<N_ONCE>(x + i, to.gate + i * 8 + c, d_head - i * 8);
    if (to.rounded) {
#pragma unroll
        for (uint32_t i = 0; i < DIMS / 8; i++)
            if (i * 8 < d_head)
                *(uint32_t *)(to.rounded + i * 8 + c) =
                    round_pair(x[i].x, x[i].y);
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < DIMS / 8; i++)
        if (i * 8 < d_head)
            *(float2 *)(to.out + i * 8 + c) = x[i];
}

static inline uint32_t attend_padded(uint32_t d_head)
{
    return d_head <= 64 ? 64 : d_head <= 128 ? 128 : 256;
}

/* Byte of dim e of row j among the tiles of a head, `rows` rows to a tile. */
static __device__ __forceinline__ uint32_t tile_at(uint32_t j, uint32_t e,
                                                   uint32_t rows)
{
    return e / 64 * rows * 128 + j * 128 + ((e % 64 / 8) ^ (j % 8)) * 16 +
           e % 8 * 2;
}

/* Tiles of KV head h in a block. */
template <int D>
static __device__ __forceinline__ const unsigned char *
keys_of(const void *block, uint32_t h)
{
    return (const unsigned char *)block + (size_t)h * (D / 64) * TILE_BYTES;
}

template <int D>
static __device__ __forceinline__ const unsigned char *
values_of(const void *block, uint32_t n_kv_head, uint32_t h)
{
    return keys_of<D>(block, n_kv_head + h);
}

static __device__ __forceinline__ float exp2_of(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/*
 * M after a step whose largest score is `step`. It need not be the maximum,
 * only near enough that weights stay below 2^8; and a step that leaves it alone
 * spares the multiplication of O (FlashAttention-4).
 */
static __device__ __forceinline__ float raised(float max, float step)
{
    return step > max + 8.0f ? step : max;
}

/* The subtrahend of exponents: a row that has seen nothing has M = -inf. */
static __device__ __forceinline__ float finite_max(float max)
{
    return max == -INFINITY ? 0.0f : max;
}

/*
 * The scores of a row that a thread of four has, columns 8 i + 2 c + j in
 * s[4 i + j], to weights; returns their sum, 64 columns after 64.
 */
template <int N>
static __device__ __forceinline__ float to_weights(float *s, float base)
{
    float sum = 0.0f;
#pragma unroll
    for (int b = 0; b < N / 64; b++) {
        float t = 0.0f;
#pragma unroll
        for (int i = 8 * b; i < 8 * b + 8; i++) {
            s[4 * i] = exp2_of(s[4 * i] - base);
            s[4 * i + 1] = exp2_of(s[4 * i + 1] - base);
            t = i == 8 * b ? s[4 * i] : t + s[4 * i];
            t = t + s[4 * i + 1];
        }
        sum = b ? sum + t : t;
    }
    return sum;
}

/*
 * cos and sin of a key's angle for pair i: the table's entries for the first
 * token of its block and for token j of block 0 are added by the theorem. It
 * spares reading a table row per key, which would be as long as the key.
 */
struct angle {
    float cosine, sine;
};
static __device__ __forceinline__ struct angle angle_sum(struct angle a,
                                                         struct angle b)
{
    return {__fmaf_rn(a.cosine, b.cosine, -(a.sine * b.sine)),
            __fmaf_rn(a.sine, b.cosine, a.cosine * b.sine)};
}

/* Of the first token of a block. */
static __device__ __forceinline__ struct angle
angle_block(const struct attend_frame &f, uint64_t block, uint32_t i)
{
    size_t at = (block * f.n_pair + i) * KV_BLOCK;
    return {__ldg(f.cosine + at), __ldg(f.sine + at)};
}

/* Of token j of block 0. */
static __device__ __forceinline__ struct angle
angle_within(const struct attend_frame &f, uint32_t i, uint32_t j)
{
    return {__ldg(f.cosine + i * KV_BLOCK + j),
            __ldg(f.sine + i * KV_BLOCK + j)};
}

/*
 * Where the keys of block b of a span lie. IS_PLACED: the call has spans with
 * places (struct key_place), others beside them; a kernel for it is one of its
 * own, since the look at every block costs.
 */
template <bool IS_PLACED>
static __device__ __forceinline__ bool is_flat(const struct attend_span &span,
                                               uint64_t b)
{
    return IS_PLACED && span.place && span.place[b].is_flat;
}

/* Of its first key; of all its keys if it is flat. */
template <bool IS_PLACED>
static __device__ __forceinline__ struct angle
angle_first(const struct attend_frame &f, const struct attend_span &span,
            uint64_t b, uint32_t i)
{
    if (!IS_PLACED || !span.place)
        return angle_block(f, b, i);
    const struct key_place place = span.place[b];
    struct angle angle = angle_block(f, place.position / KV_BLOCK, i);

    if (place.is_flat)
        angle = angle_sum(angle, angle_within(f, i, place.position % KV_BLOCK));
    return angle;
}

/* Of its key j. */
template <bool IS_PLACED>
static __device__ __forceinline__ struct angle
angle_at(const struct attend_frame &f, const struct attend_span &span,
         uint64_t b, uint32_t i, uint32_t j)
{
    const struct angle first = angle_first<IS_PLACED>(f, span, b, i);

    return is_flat<IS_PLACED>(span, b)
               ? first
               : angle_sum(first, angle_within(f, i, j));
}

/* Two neighbouring pairs, a word of x and one of y. */
static __device__ __forceinline__ void
rotate_words(uint32_t *x, uint32_t *y, struct angle low, struct angle high)
{
    float x0 = bf16_low(*x), x1 = bf16_high(*x);
    float y0 = bf16_low(*y), y1 = bf16_high(*y);
    *x = bf16_pair(__fmaf_rn(x0, low.cosine, -(y0 * low.sine)),
                   __fmaf_rn(x1, high.cosine, -(y1 * high.sine)));
    *y = bf16_pair(__fmaf_rn(y0, low.cosine, x0 * low.sine),
                   __fmaf_rn(y1, high.cosine, x1 * high.sine));
}

/* Eight neighbouring pairs. */
static __device__ __forceinline__ void rotate_unit(uint4 *x, uint4 *y,
                                                   const struct angle *angle)
{
    rotate_words(&x->x, &y->x, angle[0], angle[1]);
    rotate_words(&x->y, &y->y, angle[2], angle[3]);
    rotate_words(&x->z, &y->z, angle[4], angle[5]);
    rotate_words(&x->w, &y->w, angle[6], angle[7]);
}

/*
 * Eight neighbouring pairs of a key where they lie. first: the angles of its
 * block's first key, in shared memory; within: those of the key itself in a
 * block, which count unless is_flat.
 */
static __device__ __forceinline__ void turn_unit(uint4 *x, uint4 *y,
                                                 const struct angle *first,
                                                 const struct angle *within,
                                                 bool is_flat)
{
    const float4 *block = (const float4 *)first; /* two angles */
    struct angle angle[8];
    uint4 a = *x, b = *y;

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        float4 z = block[i];

        angle[2 * i] = {z.x, z.y};
        angle[2 * i + 1] = {z.z, z.w};
        if (is_flat)
            continue;
        angle[2 * i] = angle_sum(angle[2 * i], within[2 * i]);
        angle[2 * i + 1] = angle_sum(angle[2 * i + 1], within[2 * i + 1]);
    }
    rotate_unit(&a, &b, angle);
    *x = a;
    *y = b;
}
#endif
