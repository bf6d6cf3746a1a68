/*
 * The products of all experts in one launch. Their rows are rounded and put in
 * order of places, so that an expert's rows lie together; a list of tiles of
 * rows, made on the device, says which expert's weights a tile meets. In a
 * decode step a launch of so little is dear: there each CTA makes the list for
 * itself, copies the rows from where they are, and the shared expert is one
 * more.
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

    launch_begin();
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
    launch_early(gpu, list_kernel, 1, EXPERT_MAX, rows, n_rows, a->first,
                 a->n_expert, product_height(shape));
    product_run(gpu, &job, shape);
}

/* ----------------------------------------------------------------- experts
 */

#define STEP_ROWS GROUP_ROWS /* an expert then has one tile of rows */

/* bf16 rows in order of places: 16 bytes a thread. */
static __global__ void gather_kernel(uint4 *to, const uint4 *x,
                                     const uint32_t *row, uint32_t n)
{
    const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;

    launch_begin();
    if (i < n)
        to[(size_t)blockIdx.x * n + i] = x[(size_t)row[blockIdx.x] * n + i];
}

static void gather_launch(struct gpu *gpu, void *to,
                          const struct experts_args *a)
{
    const uint32_t n = (uint32_t)linear_padded(a->gate_up->n_in) / 8;

    launch_early(gpu, gather_kernel, dim3(a->n_place, (n + 255) / 256), 256,
                 (uint4 *)to, (const uint4 *)a->x_rounded, a->row, n);
}

/* Where the parts of scratch memory are. */
struct expert_room {
    uint16_t *x, *hidden;
    struct product_rows *rows;
    uint32_t *n_rows;
};

static struct expert_room take_room(struct gpu *gpu,
                                    const struct experts_args *a)
{
    const size_t n = (size_t)a->n_place + a->n_row;
    const size_t x_bytes =
        up(n * linear_padded(a->gate_up->n_in) * sizeof(uint16_t));
    const size_t hidden_bytes =
        up(n * linear_padded(a->down->n_in) * sizeof(uint16_t));
    const size_t list_bytes =
        up((a->n_expert + n) * sizeof(struct product_rows));
    unsigned char *at = (unsigned char *)gpu_scratch(
        gpu, x_bytes + hidden_bytes + list_bytes + sizeof(uint32_t));
    struct expert_room room;

    room.x = (uint16_t *)at;
    room.hidden = (uint16_t *)(at + x_bytes);
    room.rows = (struct product_rows *)(at + x_bytes + hidden_bytes);
    room.n_rows = (uint32_t *)(at + x_bytes + hidden_bytes + list_bytes);
    return room;
}

/* Bytes from an expert's weights to the next one's. */
static size_t distance(const struct linear *w, uint32_t n_expert)
{
    return n_expert > 1 ? (size_t)((const unsigned char *)w[1].panel -
                                   (const unsigned char *)w[0].panel)
                        : 0;
}

/* Part `part` of the job's weights: n_row outputs of every expert, `skip` bytes
 * behind the beginning of its weights, and those of the one more, or NULL. */
static void set_part(struct product_job *job, uint32_t part,
                     const struct linear *w, size_t skip, uint32_t n_row,
                     const struct linear *one_more)
{
    const unsigned char *first = (const unsigned char *)w->panel + skip;
    const unsigned char *more =
        one_more ? (const unsigned char *)one_more->panel : first;
    const unsigned char *at = more < first ? more : first;
    struct product_places *places = &job->places;
    struct product_matrix *m = &job->w[part];
    const size_t step = distance(w, places->n_expert);

    assert((size_t)(first - at) % MATRIX_STEP == 0 && step % MATRIX_STEP == 0 &&
           (size_t)(more - at) % MATRIX_STEP == 0);
    m->at = at;
    m->stride = linear_padded(w->n_in);
    m->n_row = n_row;
    places->step = (uint32_t)(step / MATRIX_STEP);
    places->matrix[part] = (uint32_t)((size_t)(first - at) / MATRIX_STEP);
    places->shared[part] = (uint32_t)((size_t)(more - at) / MATRIX_STEP);
    m->n_matrix =
        places->matrix[part] + (places->n_expert - 1) * places->step + 1;
    if (m->n_matrix <= places->shared[part])
        m->n_matrix = places->shared[part] + 1;
}

static void set_gate_up(struct product_job *job, const struct experts_args *a,
                        const struct expert_room *room, bool has_one_more)
{
    const uint32_t n_ff = a->down->n_in;

    job->end = PRODUCT_SWIGLU;
    job->y = room->hidden;
    job->y_stride = linear_padded(n_ff);
    job->n_out = (uint32_t)job->y_stride; /* the padding becomes zeros */
    job->n_in = a->gate_up->n_in;
    job->x.stride = linear_padded(job->n_in);
    job->x.n_matrix = 1;
    set_part(job, 0, a->gate_up, 0, n_ff, has_one_more ? a->gate : NULL);
    set_part(job, 1, a->gate_up, n_ff * job->x.stride * sizeof(uint16_t), n_ff,
             has_one_more ? a->up : NULL);
}

static void set_down(struct product_job *job, const struct experts_args *a,
                     const struct expert_room *room, bool has_one_more)
{
    job->end = PRODUCT_STORE;
    job->y = a->y;
    job->y_stride = a->y_stride;
    job->n_out = a->down->n_out;
    job->n_in = a->down->n_in;
    job->x.at = room->hidden;
    job->x.n_row = job->n_row;
    job->x.stride = linear_padded(job->n_in);
    set_part(job, 0, a->down, 0, (uint32_t)linear_padded(job->n_out),
             has_one_more ? a->out : NULL);
}

/* Of n outputs, with longer stages where those are fastest. */
static struct product_shape step_shape(const struct product_job *job,
                                       uint32_t n)
{
    struct product_shape shape = {1, n, n == 64 ? 2u : 1u, 1};

    if (!product_fits(job, shape))
        shape.n_box = 1;
    return shape;
}

/* Gate and up, then down, of all the places of a step. The shapes are those
 * that were fastest for experts of 512 x 2048 on an H100. */
static void run_step(struct gpu *gpu, const struct experts_args *a,
                     const struct expert_room *room, bool has_one_more)
{
    const uint32_t n = a->n_row <= 2 ? 96 : a->n_row <= 8 ? 64 : 128;
    struct product_job job = {};

    job.places.first = a->first;
    job.places.row = a->row;
    job.places.n_expert = a->n_expert;
    job.places.n_place = a->n_place;
    job.places.n_shared = has_one_more ? a->n_row : 0;
    job.places.x_box = 1;
    job.n_each = a->n_row;
    job.n_expert = a->n_expert + has_one_more;
    job.n_row = a->n_place + job.places.n_shared;
    job.x.at = a->x_rounded;
    job.x.n_row = a->n_row;
    set_gate_up(&job, a, room, has_one_more);
    product_launch(gpu, &job, step_shape(&job, n));
    job.places.row = NULL;
    job.places.x_box = 8;
    set_down(&job, a, room, has_one_more);
    product_launch(gpu, &job, step_shape(&job, 64));
}

static void list_launch(struct gpu *gpu, const struct experts_args *a,
                        const struct expert_room *room, uint32_t height)
{
    launch_early(gpu, list_kernel, 1, EXPERT_MAX, room->rows, room->n_rows,
                 a->first, a->n_expert, height);
}

/* The same of many rows. */
static void run_many(struct gpu *gpu, const struct experts_args *a,
                     const struct expert_room *room)
{
    struct product_job job = {};
    struct product_shape shape;

    job.places.n_expert = job.n_expert = a->n_expert;
    job.n_row = job.x.n_row = a->n_place;
    job.rows = room->rows;
    job.n_rows = room->n_rows;
    job.x.at = room->x;
    set_gate_up(&job, a, room, false);
    shape = product_shape_of(gpu, &job);
    gather_launch(gpu, room->x, a);
    list_launch(gpu, a, room, product_height(shape));
    product_run(gpu, &job, shape);
    set_down(&job, a, room, false);
    shape = product_shape_of(gpu, &job);
    list_launch(gpu, a, room, product_height(shape));
    product_run(gpu, &job, shape);
}

static void run_shared(struct gpu *gpu, const struct experts_args *a)
{
    struct ffn_args ffn = {};

    ffn.y = a->y + a->n_place * a->y_stride;
    ffn.y_stride = a->y_stride;
    ffn.n_row = a->n_row;
    ffn.gate = a->gate;
    ffn.up = a->up;
    ffn.down = a->out;
    ffn.x_rounded = a->x_rounded;
    cuda_ffn(gpu, &ffn);
}

void cuda_experts(struct gpu *gpu, const struct experts_args *a)
{
    const struct expert_room room = take_room(gpu, a);
    const bool is_step = a->n_row <= STEP_ROWS && !way_is_sm80();
    const bool is_like = a->out && a->out->n_in == a->down->n_in;

    assert(a->n_expert <= EXPERT_MAX && a->down->n_in % 2 == 0 &&
           a->gate_up->n_in % LINEAR_TILE == 0);
    if (a->n_row && !gpu_is_replaying(gpu)) {
        if (is_step)
            run_step(gpu, a, &room, is_like);
        else
            run_many(gpu, a, &room);
    }
    if (a->out && !(is_step && is_like))
        run_shared(gpu, a);
}
