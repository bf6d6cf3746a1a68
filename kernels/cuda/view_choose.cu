/*
 * The choices of kv_view (view.cuh): a CTA finds the best of a look-up's
 * candidates and writes the lists of all views that see them. Other CTAs write
 * what the sessions keep of their queries.
 *
 * Scores become integers of the same order. Four passes over their bytes find
 * the least that is chosen and how many of its equals are; one more takes them
 * in order. The candidates' scores are read five times, from caches but for the
 * first: bound by latency.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/view.cuh"

#define THREADS VIEW_CHOOSE_THREADS
#define WARPS (THREADS / 32)
#define BINS 256u

struct choosing {
    uint32_t bin[BINS];
    uint32_t n_more[WARPS], n_equal[WARPS];
    uint32_t digit, rest;
    uint32_t chosen[VIEW_PICK_MAX];
};

/* Both zeros are one. */
static __device__ __forceinline__ uint32_t order_of(float x)
{
    const uint32_t bits = __float_as_uint(x + 0.0f);

    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The bin in which the n-th largest lies and which it is there, by one warp,
 * which has eight bins a lane, largest first. */
static __device__ void find_bin(struct choosing *s, uint32_t n)
{
    const uint32_t lane = threadIdx.x, top = BINS - 1 - 8 * lane;
    uint32_t sum = 0, before;

    for (uint32_t i = 0; i < 8; i++)
        sum += s->bin[top - i];
    before = sum;
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, before, step);

        before += lane >= step ? other : 0;
    }
    before -= sum;
    if (before >= n || before + sum < n)
        return;
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t in = s->bin[top - i];

        if (before + in >= n) {
            s->digit = top - i;
            s->rest = n - before;
            return;
        }
        before += in;
    }
}

/* The order of the n-th largest of n_score; s->rest: how many equals of it are
 * among the n largest. */
static __device__ uint32_t find_least(const float *score, uint32_t n_score,
                                      uint32_t n, struct choosing *s)
{
    uint32_t least = 0, known = 0;

    for (uint32_t shift = 32; shift;) {
        shift -= 8;
        for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
            s->bin[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_score; i += THREADS) {
            const uint32_t order = order_of(score[i]);

            if ((order & known) == least)
                atomicAdd(&s->bin[order >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        if (threadIdx.x < 32)
            find_bin(s, n);
        __syncthreads();
        n = s->rest;
        least |= s->digit << shift;
        known |= (BINS - 1) << shift;
    }
    return least;
}

/* Numbers of those that are more and equal in the warps before this one; of all
 * in *out. */
static __device__ uint2 count_before(const struct choosing *s, uint2 *out)
{
    uint2 before = {0, 0}, all = {0, 0};

    for (uint32_t w = 0; w < WARPS; w++) {
        if (w == threadIdx.x / 32)
            before = all;
        all.x += s->n_more[w];
        all.y += s->n_equal[w];
    }
    *out = all;
    return before;
}

static __device__ void take_largest(const float *score, const struct kv_view &v,
                                    struct choosing *s)
{
    const uint32_t n_score = (uint32_t)(v.end - v.first);
    const uint32_t least = find_least(score, n_score, v.n_choose, s);
    const uint32_t n_rest = s->rest, lane = threadIdx.x % 32;
    const uint32_t below = (1u << lane) - 1;
    uint32_t n_more = 0, n_equal = 0; /* so far */

    for (uint32_t from = 0; from < n_score; from += THREADS) {
        const uint32_t i = from + threadIdx.x;
        const uint32_t order = i < n_score ? order_of(score[i]) : 0;
        const bool is_more = i < n_score && order > least;
        const bool is_equal = i < n_score && order == least;
        const uint32_t more = __ballot_sync(0xffffffffu, is_more);
        const uint32_t equal = __ballot_sync(0xffffffffu, is_equal);
        uint2 all;

        if (lane == 0) {
            s->n_more[threadIdx.x / 32] = __popc(more);
            s->n_equal[threadIdx.x / 32] = __popc(equal);
        }
        __syncthreads();
        const uint2 before = count_before(s, &all);
        const uint32_t n_equal_here =
            n_equal + before.y + __popc(equal & below);
        const uint32_t at = n_more + before.x + __popc(more & below) +
                            (n_equal_here < n_rest ? n_equal_here : n_rest);

        if (is_more || (is_equal && n_equal_here < n_rest))
            s->chosen[at] = (uint32_t)v.first + i;
        n_more += all.x;
        n_equal += all.y;
        __syncthreads();
    }
}

static __device__ void look_up(const struct view_frame &f,
                               const struct view_look &look, struct choosing *s)
{
    const struct kv_view &v = f.part->record[look.view].viewed.view;

    if (look.is_scored)
        take_largest(f.score + look.score, v, s);
    else
        for (uint32_t i = threadIdx.x; i < v.n_choose; i += THREADS)
            s->chosen[i] = (uint32_t)v.first + i;
    __syncthreads();
    if (look.is_last) {
        for (uint32_t i = threadIdx.x; i < v.n_choose; i += THREADS)
            v.pick[1 + i] = s->chosen[i];
        if (threadIdx.x == 0)
            v.pick[0] = v.n_choose;
    }
    for (uint32_t i = look.first_served; i < look.end_served; i++) {
        const struct kv_view &served = f.part->record[i].viewed.view;

        if (served.is_seen)
            view_list(f, served, s->chosen);
    }
}

/* Elements of the sums of a session, as its last row leaves them. */
static __device__ void keep_sums(const struct view_frame &f,
                                 const struct viewed &last, uint32_t cta)
{
    const uint32_t n_q = f.n_head * f.d_head, e = cta * THREADS + threadIdx.x;
    const uint64_t end = last.view.position + last.view.n_row;

    if (e < n_q)
        for (uint32_t s = 0; s < last.view.n_sum; s++)
            last.view.queries[(size_t)s * n_q + e] =
                view_sum(f, last, end, s, e);
}

static __global__ void __launch_bounds__(THREADS)
    choose(const __grid_constant__ struct view_frame f)
{
    __shared__ struct choosing shared;

    launch_begin();
    const struct view_part *part = f.part;
    const uint32_t n_cta = view_sum_ctas(f.n_head * f.d_head);
    const uint32_t n = part->n_look + part->n_run * n_cta;

    for (uint32_t at = blockIdx.x; at < n; at += gridDim.x) {
        if (at < part->n_look) {
            look_up(f, part->record[at].look, &shared);
        } else {
            const uint32_t i = at - part->n_look;
            const uint32_t view = part->record[i / n_cta].run;

            keep_sums(f, part->record[view].viewed, i % n_cta);
        }
        __syncthreads();
    }
}

void view_choose(cudaStream_t stream, const struct view_frame *frame,
                 uint32_t n_cta)
{
    launch_early_on(stream, choose, n_cta, THREADS, *frame);
}
