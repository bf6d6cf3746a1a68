#ifndef KERNELS_CUDA_ATTEND_MANY_CUH
#define KERNELS_CUDA_ATTEND_MANY_CUH
/*
 * Attention of many rows, 128 packed rows at a time, by wgmma.
 */
#include "kernels/cuda/attend.cuh"

#define MANY_ROWS 128u /* of a tile: two warpgroups of 64 */
#define MANY_CTA 2u    /* of a cluster at most, with a tile each */

/* Neighbouring tiles, one for each CTA of a cluster, are a set; sets of a call
 * are numbers, (set * MANY_HEADS + head) * MANY_SPANS + span. */
#define MANY_SPANS 64u /* of a call */
#define MANY_HEADS 256u
#define MANY_NONE UINT32_MAX
#define MANY_SETS 16384u /* of a launch */
#define MANY_CLUSTERS 256u
#define MANY_TURNS (MANY_SETS + 2 * MANY_CLUSTERS)

struct many_span {
    struct attend_span span;
    size_t k_at; /* bytes into the scratch: its keys */
};

struct many_call {
    struct attend_frame frame;
    const struct many_span *span; /* on the device */
    uint32_t n_span;
    uint32_t n_row_max; /* of a span */
    uint64_t n_key_max;
    uint32_t n_cta;         /* that share the tiles; a multiple of MANY_CTA */
    unsigned char *scratch; /* as the spans say, at sum_at O of past chains */
    size_t sum_at;
    const uint32_t *turn; /* many_share() */
};

/* Tiles of a span and KV head: a multiple of MANY_CTA. */
static __host__ __device__ inline uint32_t
many_tiles(const struct attend_frame &frame, uint32_t n_row)
{
    uint32_t n = MANY_CTA * MANY_ROWS;
    return (n_row * frame.group + n - 1) / n * MANY_CTA;
}

/* Bytes of scratch for a span's keys, and for O of past chains. */
size_t many_k_bytes(const struct attend_frame *frame, uint64_t n_key);
size_t many_sum_bytes(const struct attend_frame *frame, uint32_t n_cta);

/*
 * Share out the sets: at turn[turn[k]] begins the list of cluster k, MANY_NONE
 * its end; how many words they are. Few heads go at once. Of them the longest
 * sets are first, those of a span's heads side by side, and each goes to the
 * cluster that will be done first, so that all are done at about the same time.
 * In one launch go at most many_heads() KV heads.
 */
struct many_range {
    uint32_t first, end;
};
uint32_t many_heads(const struct many_call *call);
size_t many_share(uint32_t *turn, const struct many_call *call,
                  const struct many_span *span, struct many_range heads);

/* Fill the scratch with rotated keys (attend_rotate.cu), then multiply. */
void many_rotate(cudaStream_t stream, const struct many_call *call);
void attend_many(cudaStream_t stream, const struct many_call *call);
#endif
