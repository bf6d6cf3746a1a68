/*
 * The products of all experts in one launch. Their rows are rounded and put in
 * order of places, so that an expert's rows lie together; a list of tiles of
 * rows, made on the device, says which expert's weights a tile meets.
 */
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"

#include <assert.h>

#define LIST_WARPS (EXPERT_MAX / 32)

/* Of the block's values: the sum of those before this thread, and of all. */
static __device__ uint32_t sum_before(uint32_t n, uint32_t *out_all)
{
    __shared__ uint32_t of_warp[LIST_WARPS];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = n, before = 0, all = 0;

    for (uint32_t by = 1; by < 32; by *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffff, sum, by);

        sum += lane >= by ? other : 0;
    }
    if (lane == 31)
        of_warp[warp] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < LIST_WARPS; w++) {
        before += w < warp ? of_warp[w] : 0;
        all += of_warp[w];
    }
    *out_all = all;
    return before + sum - n;
}

/* One thread an expert: its tiles of `height` rows. */
static __global__ void __launch_bounds__(EXPERT_MAX)
    list_kernel(struct product_rows *rows, uint32_t *n_rows,
                const uint32_t *first, uint32_t n_expert, uint32_t height)
{
    const uint32_t e = threadIdx.x;

    next_begin();
    previous_wait();
    const uint32_t begin = e < n_expert ? first[e] : 0;
    const uint32_t end = e < n_expert ? first[e + 1] : 0;
    uint32_t n_all,
        at = sum_before((end - begin + height - 1) / height, &n_all);

    if (e == 0)
        *n_rows = n_all;
    for (uint32_t row = begin; row < end; row += height, at++) {
        rows[at].expert = e;
        rows[at].first = row;
        rows[at].end = end;
    }
}

/* All experts' weights, wherever each one's lie, and their numbers. */
static void set_weights(struct product_job *job, const struct expert_args *a,
                        uint32_t *matrix)
{
    const unsigned char *first = (const unsigned char *)a->w->panel;

    for (size_t e = 1; e < a->n_expert; e++)
        if ((const unsigned char *)a->w[e].panel < first)
            first = (const unsigned char *)a->w[e].panel;
    product_set_weights(job, 0, a->w);
    job->w[0].at = first;
    for (size_t e = 0; e < a->n_expert; e++) {
        const size_t at = (const unsigned char *)a->w[e].panel - first;

        assert(a->w[e].type == a->w->type && at % MATRIX_STEP == 0 &&
               at / MATRIX_STEP < UINT32_MAX / 2);
        matrix[e] = (uint32_t)(at / MATRIX_STEP);
        if (matrix[e] >= job->w[0].n_matrix)
            job->w[0].n_matrix = matrix[e] + 1;
    }
}

static size_t up(size_t bytes)
{
    return (bytes + 1023) / 1024 * 1024;
}

void cuda_expert(struct gpu *gpu, const struct expert_args *a)
{
    const size_t stride = linear_padded(a->w->n_in);
    const size_t x_bytes = up(a->n_place * stride * sizeof(uint16_t));
    const size_t list_bytes =
        up((a->n_expert + a->n_place) * sizeof(struct product_rows));
    unsigned char *at = (unsigned char *)gpu_scratch(gpu, x_bytes + list_bytes +
                                                              sizeof(uint32_t));
    struct product_rows *rows = (struct product_rows *)(at + x_bytes);
    uint32_t *n_rows = (uint32_t *)(at + x_bytes + list_bytes);
    struct round_job round = {};
    struct product_job job = {};
    struct product_shape shape;
    struct early_launch list;
    uint32_t matrix[EXPERT_MAX];

    assert(a->n_expert <= EXPERT_MAX);
    set_weights(&job, a, matrix);
    job.matrix =
        (const uint32_t *)gpu_stage(gpu, matrix, a->n_expert * sizeof(*matrix));
    if (gpu_is_replaying(gpu) || !a->n_place)
        return;
    job.end = PRODUCT_STORE;
    job.y = a->y;
    job.y_stride = a->y_stride;
    job.n_row = job.x.n_row = a->n_place;
    job.n_out = a->w->n_out;
    job.n_in = a->w->n_in;
    job.x.at = at;
    job.x.stride = stride;
    job.x.n_matrix = 1;
    job.n_expert = a->n_expert;
    job.rows = rows;
    job.n_rows = n_rows;
    shape = product_shape_of(gpu, &job);
    round.to = at;
    round.x = a->x;
    round.x_stride = a->x_stride;
    round.row = a->row;
    round.n_row = a->n_place;
    round.n_in = a->w->n_in;
    round_launch(gpu, &round);
    early_launch_init(&list, gpu, dim3(1), EXPERT_MAX);
    (void)cudaLaunchKernelEx(&list.config, list_kernel, rows, n_rows, a->first,
                             a->n_expert, shape.n_group * GROUP_ROWS);
    product_run(gpu, &job, shape);
}
