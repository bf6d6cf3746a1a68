/*
 * linear, linear_add, ffn and ffn_add: rows that do not come rounded to bf16
 * are rounded in scratch memory, then multiplied (linear_product.cuh). ffn
 * keeps its hidden rows there too, as bf16, which is what the second product
 * would round them to.
 * Products of many rows of ARITHMETIC_FAST are linear_fast.h's, but for those
 * of ffn's first half: nothing of it is quicker in two products and a silu.
 */
#include "kernels/cuda/linear_fast.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"

#include <assert.h>

static size_t matrix_bytes(size_t n_row, size_t n)
{
    n = (n + LINEAR_F8_BLOCK - 1) / LINEAR_F8_BLOCK * LINEAR_F8_BLOCK;
    return (n_row * n * sizeof(uint16_t) + 1023) / 1024 * 1024;
}

/* Elements of a row of n as the job's product wants it. */
static size_t stride_of(const struct product_job *job, uint32_t n)
{
    return job->is_placed ? linear_f8_n_block(n) * LINEAR_F8_BLOCK
                          : linear_padded(n);
}

/* x as the product of a job whose weights are set reads it: as it came, or
 * rounded or placed now. */
static struct product_matrix rounded(struct gpu *gpu,
                                     const struct product_job *to_do,
                                     const struct linear_args *a, void *to)
{
    struct round_job job = {};
    struct product_matrix m = {};

    m.at = a->x_rounded;
    m.n_row = a->n_row;
    m.stride = stride_of(to_do, a->w->n_in);
    m.n_matrix = 1;
    if (m.at && !to_do->is_placed) {
        assert(a->w->n_in % LINEAR_TILE == 0);
        return m;
    }
    job.to = to;
    job.x = a->x;
    job.x_stride = a->x_stride;
    job.n_row = a->n_row;
    job.n_in = a->w->n_in;
    if (to_do->is_placed)
        f8_place_launch(gpu, &job, a->x_rounded);
    else
        round_launch(gpu, &job);
    m.at = to;
    return m;
}

static void run(struct gpu *gpu, const struct product_job *job)
{
    product_run(gpu, job, product_shape_of(gpu, job));
}

/* By cuBLASLt where fast_room() gave room to it. */
static void run_in(struct gpu *gpu, const struct product_job *job, void *room,
                   size_t room_bytes)
{
    if (!room_bytes || !fast_run(gpu, job, room))
        run(gpu, job);
}

static void run_linear(struct gpu *gpu, const struct linear_args *a,
                       enum product_end end)
{
    const size_t x_bytes = matrix_bytes(a->n_row, a->w->n_in);
    const size_t room = fast_room(a->w, a->n_row);
    unsigned char *x = (unsigned char *)gpu_scratch(gpu, x_bytes + room);
    struct product_job job = {};

    if (gpu_is_replaying(gpu) || !a->n_row)
        return;
    job.end = end;
    job.y = a->y;
    job.y_stride = a->y_stride;
    job.n_row = a->n_row;
    job.n_out = a->w->n_out;
    job.n_in = a->w->n_in;
    product_set_weights(&job, 0, a->w);
    job.is_placed = f8_few_fits(&job);
    job.x = rounded(gpu, &job, a, x);
    run_in(gpu, &job, x + x_bytes, room);
}

void cuda_linear(struct gpu *gpu, const struct linear_args *args)
{
    run_linear(gpu, args, PRODUCT_STORE);
}

void cuda_linear_add(struct gpu *gpu, const struct linear_args *args)
{
    run_linear(gpu, args, PRODUCT_ADD);
}

/* Into hidden rows of bf16, all of their padding with them: the weights'
 * padding makes it zero. */
static struct product_matrix hidden(struct gpu *gpu, const struct ffn_args *a,
                                    bool is_placed, void *x, void *to)
{
    struct linear_args in = {};
    struct product_job job = {};
    struct product_matrix m = {};

    in.x = a->x;
    in.x_stride = a->x_stride;
    in.n_row = a->n_row;
    in.w = a->gate;
    in.x_rounded = a->x_rounded;
    job.end = PRODUCT_SWIGLU;
    job.y = to;
    job.n_row = a->n_row;
    job.n_in = a->gate->n_in;
    product_set_weights(&job, 0, a->gate);
    product_set_weights(&job, 1, a->up);
    job.is_placed = is_placed;
    m.at = to;
    m.n_row = a->n_row;
    m.stride = stride_of(&job, a->gate->n_out);
    m.n_matrix = 1;
    job.y_stride = m.stride;
    job.n_out = (uint32_t)m.stride;
    job.x = rounded(gpu, &job, &in, x);
    run(gpu, &job);
    return m;
}

static void run_ffn(struct gpu *gpu, const struct ffn_args *a,
                    enum product_end end)
{
    const size_t x_bytes = matrix_bytes(a->n_row, a->gate->n_in);
    const size_t bytes = matrix_bytes(a->n_row, a->gate->n_out);
    const size_t room = fast_room(a->down, a->n_row);
    unsigned char *x =
        (unsigned char *)gpu_scratch(gpu, x_bytes + bytes + room);
    struct product_job job = {};

    assert(a->up->n_out == a->gate->n_out && a->up->n_in == a->gate->n_in &&
           a->up->type == a->gate->type && a->down->n_in == a->gate->n_out);
    if (gpu_is_replaying(gpu) || !a->n_row)
        return;
    job.end = end;
    job.y = a->y;
    job.y_stride = a->y_stride;
    job.n_row = a->n_row;
    job.n_out = a->down->n_out;
    job.n_in = a->down->n_in;
    product_set_weights(&job, 0, a->down);
    job.is_placed = f8_few_fits(&job) && a->gate->n_in <= F8_FEW_INPUTS;
    job.x = hidden(gpu, a, job.is_placed, x, x + x_bytes);
    run_in(gpu, &job, x + x_bytes + bytes, room);
}

void cuda_ffn(struct gpu *gpu, const struct ffn_args *args)
{
    run_ffn(gpu, args, PRODUCT_STORE);
}

void cuda_ffn_add(struct gpu *gpu, const struct ffn_args *args)
{
    run_ffn(gpu, args, PRODUCT_ADD);
}
