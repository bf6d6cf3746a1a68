#ifndef KERNELS_CUDA_DELTA_CUH
#define KERNELS_CUDA_DELTA_CUH
/*
 * The gated delta rule (kernels/backend.h) on the GPU, in bf16-mma. P(c; ..) is
 * a chain of tensor core steps of 16 that starts from c, P(..) from zero:
 *   w_ij = beta_i * (exp(G_i - G_j) * P(k_i, k_j));  x_ij likewise, of q_i and
 *   without beta;  b = i - i % DELTA_BLOCK
 *   t_ij = for l = b .. i - 1 ascending t = fma(-w_il, T_lj, t) from zero;
 *   T_ij = ~t_ij for b <= j < i, T_ii = 1: rows of (1 + w of the block)^-1
 *   r_i[e] = ~P(beta_i * fma(-exp(G_i), P(k_i, ~S0[e]), v[e]);
 *               j < b: ~-w_ij u_j[e])
 *   u_i[e] = ~P(b <= j <= i: T_ij r_j[e])
 *   o_i[e] = P(exp(G_i) * P(q_i, ~S0[e]); j <= i: ~x_ij u_j[e])
 *   S0[d][e] = P(exp(G_63) * S0[d][e]; j: k_j[d] ~(exp(G_63 - G_j) * u_j[e]))
 * A block is so one step with T instead of 16 steps one behind the other, and a
 * row needs of the rows before it their keys, G, r and T: that is the ring.
 *
 * A chunk is the tokens of one session between two multiples of GRID; a call
 * has rows `first` .. `end` - 1 of it, others are in the ring or not yet
 * there. Rows come in blocks of DELTA_BLOCK: an operand step of 16 is a block,
 * so a row multiplies whole blocks before its own and nothing behind it but
 * zeros within its block.
 *
 * Many rows take two kernels. prepare: what does not need the state, for all
 * chunks at once. recur: chunk after chunk, the state in registers. Few rows
 * (decode, verification) take one kernel, few. All three round at the same
 * places and add in the same order, so who brings a row shows in no bit.
 */
#include "kernels/backend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/fragment.cuh"
#include "kernels/cuda/scalar.cuh"

#include <cuda.h>

#define DELTA_FEW 16u /* rows of a span that take the one kernel */
#define N_BLOCK (GRID / DELTA_BLOCK)
#define DELTA_SLICE 32u    /* outputs e of one CTA of recur, one warp of few */
#define SPAN_GROUP_MAX 32u /* spans of one launch of prepare and recur */

/* Of one chunk and v-head, made by prepare. */
struct chunk_head {
    uint4 far[N_BLOCK * (N_BLOCK - 1) / 2][32];  /* ~-w, as B operands */
    uint4 seen[N_BLOCK * (N_BLOCK + 1) / 2][32]; /* ~x, as B operands */
    uint4 near[N_BLOCK][32];                     /* T, as B operands */
    float since[GRID];                           /* exp(G_i) */
    float until[GRID];                           /* exp(G_63 - G_j) */
    float beta[GRID];
    float whole[4]; /* exp(G_63), three unused */
    double g[GRID]; /* of a chunk that the call does not end, for the ring */
};

/* Block (i, j), j < i or j <= i, of far and seen. */
static __device__ __forceinline__ uint32_t far_at(uint32_t i, uint32_t j)
{
    return i * (i - 1) / 2 + j;
}

static __device__ __forceinline__ uint32_t seen_at(uint32_t i, uint32_t j)
{
    return i * (i + 1) / 2 + j;
}

/* A tile of GRID rows of keys or queries (delta_tile.cuh). */
static __host__ __device__ __forceinline__ uint32_t tile_stride(uint32_t d_k)
{
    return d_k <= 64 ? 64 : 128;
}

static __host__ __device__ __forceinline__ uint32_t tile_bytes(uint32_t d_k)
{
    return GRID * tile_stride(d_k) * 2;
}

/* A call of the kernels for many rows: chunks [chunk, chunk + n_chunk) of each
 * span, counted from the span's first, and where prepare leaves them. */
struct delta_many {
    CUtensorMap unit;       /* the unit rows, in boxes of a chunk's half tile */
    CUtensorMap v;          /* values, in boxes of a chunk's slice */
    struct delta_args args; /* span: on the device */
    uint32_t chunk, n_chunk;
    uint32_t n_tile; /* of a span: of its first and another chunk, or of all */
    char *tile;      /* [n_span][n_tile][n_k_head][2] tiles: keys, queries */
    struct chunk_head *head; /* [n_span][n_chunk][n_v_head] */
};

/* Chunk c of a span: its first row in the batch, less the ring's; the rows. */
struct delta_chunk {
    size_t row; /* of index 0, may lie before the span: modular */
    uint32_t first,
        end; /* indices of the call's rows; first >= end: no chunk */
};

static __host__ __device__ __forceinline__ struct delta_chunk
delta_chunk(const struct delta_span *span, uint32_t c)
{
    const uint32_t lead = (uint32_t)(span->position % GRID);
    const uint64_t total = (uint64_t)lead + span->n_row;
    const uint64_t begin = (uint64_t)c * GRID;
    struct delta_chunk it;

    it.row = (size_t)span->first_row + begin - lead;
    it.first = c ? 0 : lead;
    it.end = total <= begin         ? 0
             : total - begin < GRID ? (uint32_t)(total - begin)
                                    : GRID;
    return it;
}

/*
 * A token of ring_u: r of all outputs, then its DELTA_BLOCK of T. The outputs e
 * of a slice come in the order in which a warp of few meets them: entry 16p + r
 * is output 16 (r / 8) + 2 (r % 8) + p, so that a lane reads two neighbouring
 * outputs of the state at once.
 */
static __host__ __device__ __forceinline__ uint32_t ring_stride(uint32_t d_v)
{
    return d_v + DELTA_BLOCK;
}

static __device__ __forceinline__ uint32_t slice_entry(uint32_t output)
{
    return output % 2 * 16 + output / 16 * 8 + output / 2 % 8;
}

/* Of a unit row: its queries, then as many keys. */
static __host__ __device__ __forceinline__ size_t
unit_stride(struct delta_shape shape)
{
    return 2 * (size_t)shape.n_k_head * shape.d_k;
}

/* exp(G_i - G_j), j <= i: scalar_exp() of what is not above zero, where the
 * power of two can be added to the exponent at once. Of j > i it is anything.
 */
static __device__ __forceinline__ float decay(double later, double earlier)
{
    const float x = (float)(later - earlier);
    const float n = __fmaf_rn(x, 0x1.715476p+0f, 0x1.8p+23f);
    const float p = scalar_exp_rest(x, n - 0x1.8p+23f);
    const float y =
        __uint_as_float(__float_as_uint(p) + (__float_as_uint(n) << 23));

    return x < -87.33f ? 0.0f : y;
}

/* How the kernels of these rows come to keys and queries: unit, n_tile. args
 * and n_chunk are set; the batch has n_row rows. */
void delta_many_tiles(struct delta_many *many, size_t n_row);
void delta_prepare(struct gpu *gpu, const struct delta_many *many);
void delta_recur(struct gpu *gpu, const struct delta_many *many);
/* Spans of at most DELTA_FEW rows; leaves the others alone. */
void delta_few(struct gpu *gpu, const struct delta_args *args, uint32_t n_row);
/* Whether the GPU's CTAs have the shared memory for it. */
bool delta_recur_fits(struct delta_shape shape);
/* Spans of at most n_max rows, on GPUs without clusters. */
void delta_pieces(struct gpu *gpu, const struct delta_args *args,
                  uint32_t n_max);
#endif
