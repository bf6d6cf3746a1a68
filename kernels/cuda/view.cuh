#ifndef KERNELS_CUDA_VIEW_CUH
#define KERNELS_CUDA_VIEW_CUH
/*
 * What the kernels of kv_view share. A call is carried out in parts of at most
 * VIEW_MAX views, each by three kernels:
 *
 *   prepare  indices of full blocks, queries of look-ups, and the lists of
 *            views that see what was chosen before this part
 *   score    blocks against queries (view_mass.cuh: of INDEX_MASS)
 *   choose   the best blocks, the lists of views that see them, and what the
 *            sessions keep: sums of queries and the last choice
 *
 * The host says from positions alone what is to be done (struct view_part); the
 * numbers in it, not the grids, bound the work, so a recorded step repeats it
 * with other contents. Whatever sessions kept before the part is read by
 * `prepare` and written by `choose` alone.
 */
extern "C" {
#include "kernels/backend.h"
}

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#define VIEW_MAX 512u       /* of a part */
#define VIEW_GROUP_MAX 16u  /* look-ups that are scored together */
#define VIEW_PICK_MAX 1024u /* blocks that a look-up chooses */
#define VIEW_DIM_MAX 256u
#define VIEW_WARPS 8u /* of a CTA that scores */

/* A view, and where the rows of its session begin in this part: the others are
 * behind that one, in the batch and in the session. */
struct viewed {
    struct kv_view view;
    uint64_t start;
    uint32_t start_row;
};

/* A look-up. Views [first_served, end_served) see what it chooses. */
struct view_look {
    uint32_t view;
    uint32_t first_served, end_served;
    bool is_scored; /* else it takes all there are */
    bool is_last;   /* of its session */
    size_t score;   /* the first candidate's among all scores */
};

/* One that is scored: its query is row `row` of all, with INDEX_MASS its sums
 * from there on. */
struct view_query {
    uint32_t view, row;
    size_t score;
};

/* Queries [query, query + n) of one session; blocks [first, end) hold all that
 * they may choose. A tile is `width` of those blocks. */
struct view_group {
    uint32_t query, n, width, first_tile;
    uint64_t first, end;
};

/* The i-th of each kind of work; unrelated to each other. */
struct view_record {
    struct viewed viewed;
    struct view_look look;
    struct view_query query;
    struct view_group group;
    uint32_t seal; /* view whose chunk is full */
    uint32_t list; /* view that sees what was chosen before */
    uint32_t run;  /* last view of a session whose queries are added up */
};

struct view_part {
    uint32_t n_view, n_look, n_query, n_group, n_seal, n_list, n_run;
    uint32_t n_tile; /* of all groups */
    struct view_record record[VIEW_MAX];
};

/* What all kernels of a part know. */
struct view_frame {
    const struct view_part *part;
    const float *q;
    size_t q_stride;
    const float *cosine, *sine; /* of the rope table */
    uint32_t n_pair;            /* of rotated dims */
    uint32_t n_head, n_kv_head, d_head, d_padded;
    size_t block_bytes; /* a block's index begins behind them */
    void **block;
    struct key_place *place;
    float *query, *score; /* scratch */
};

static inline __host__ __device__ uint32_t view_key_words(uint32_t d_head)
{
    return (d_head + 31) / 32 * 16;
}

/* Bytes of a KV head's part of an index. */
static inline __host__ __device__ size_t view_head_bytes(uint32_t d_head,
                                                         enum index_kind kind)
{
    return kind == INDEX_KEYS ? INDEX_CHOSEN * view_key_words(d_head) * 4
                              : 2 * (size_t)d_head * 4;
}

/*
 * Element e of sum number `slot` of a session when its rows before `end` have
 * been added: what was kept, as far as the step began before this part, and a
 * chain of additions over the rows.
 */
static __device__ __forceinline__ float view_sum(const struct view_frame &f,
                                                 const struct viewed &of,
                                                 uint64_t end, uint32_t slot,
                                                 uint32_t e)
{
    const size_t n_q = (size_t)f.n_head * f.d_head;
    const uint32_t step = of.view.step, n_sum = of.view.n_sum;
    const uint64_t last = (end - 1) / step;
    const uint32_t behind = ((uint32_t)(last % n_sum) + n_sum - slot) % n_sum;
    const uint64_t from = (last - behind) * step;
    const uint64_t to = from + step < end ? from + step : end;
    float sum = 0.0f;

    if (behind > last || from < of.start)
        sum = of.view.queries[slot * n_q + e];
    if (behind > last || to <= of.start)
        return sum;
    const uint64_t begin = from < of.start ? of.start : from;
    const float *q = f.q + (of.start_row + (begin - of.start)) * f.q_stride + e;
#pragma unroll 8
    for (uint32_t n = (uint32_t)(to - begin); n; n--, q += f.q_stride)
        sum += *q;
    return sum;
}

/* The list of a view, by all threads of a CTA, given the blocks chosen. */
static __device__ __forceinline__ void view_list(const struct view_frame &f,
                                                 const struct kv_view &v,
                                                 const uint32_t *chosen)
{
    const uint32_t n_far = v.n_sink + v.n_pick;
    const uint32_t n = n_far + (uint32_t)(v.chunk - v.window) + 1;

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        const uint64_t b = i < v.n_sink ? i
                           : i < n_far  ? chosen[i - v.n_sink]
                                        : v.window + (i - n_far);
        struct key_place place = {b * KV_BLOCK, false};

        if (v.keys == KEYS_RANK)
            place.position = (v.chunk - (n - 1 - i)) * KV_BLOCK;
        if (v.keys == KEYS_FAR && b < v.window)
            place = {v.window * KV_BLOCK, true};
        f.block[v.first_seen + i] = v.block[b];
        f.place[v.first_seen + i] = place;
    }
}

/* n_cta CTAs take the work in turn: any number is right. */
void view_prepare(cudaStream_t stream, const struct view_frame *frame,
                  uint32_t n_cta);
void view_choose(cudaStream_t stream, const struct view_frame *frame,
                 uint32_t n_cta);

/*
 * Two ways of `score`: for groups of which a KV head has n_row rows at most,
 * and as many look-ups, and for few rows. Blocks of a tile: their width. Each
 * CTA takes an equal share of all tiles.
 */
#define VIEW_FEW_ROWS_MAX 8u
#define VIEW_FEW_KV_MAX 32u
uint32_t view_width(enum index_kind kind);
void view_score(cudaStream_t stream, const struct view_frame *frame,
                uint32_t n_sm);
uint32_t view_few_width(uint32_t n_kv_head, bool is_wide);
void view_score_few(cudaStream_t stream, const struct view_frame *frame,
                    uint32_t n_row, uint32_t n_sm);

/* Of which group a tile is; by all threads of a CTA. */
static __device__ __forceinline__ uint32_t
view_group_of(const struct view_part *part, uint32_t tile)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < part->n_group; i += blockDim.x) {
        const uint32_t at = i + threadIdx.x;

        n += __syncthreads_count(at < part->n_group &&
                                 part->record[at].group.first_tile <= tile);
    }
    return n - 1;
}

/* CTAs of `choose` for the sums of a session. */
#define VIEW_CHOOSE_THREADS 512u
static inline __host__ __device__ uint32_t view_sum_ctas(uint32_t n_q)
{
    return (n_q + VIEW_CHOOSE_THREADS - 1) / VIEW_CHOOSE_THREADS;
}
#endif
