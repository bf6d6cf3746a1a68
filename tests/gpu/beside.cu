/*
 * Kernels as a library for another program's memory and stream, so that
 * time_torch.py times them and PyTorch's by the same clock, in the same graphs,
 * on the same numbers. Made like the checks: libgodwit_beside.so.
 */
extern "C" {
#include "kernels/backend.h"
}
#include "kernels/cuda/ops.h"
#include "tests/gpu/recorded_device.h"

#include <math.h>

#define ENTRY extern "C" __attribute__((visibility("default")))

static struct gpu gpu;

/* What follows is launched on it. */
ENTRY void beside_stream(cudaStream_t stream)
{
    if (!gpu.stage)
        gpu_init(&gpu);
    gpu.stream = stream;
}

/* One prompt: rows of float, blocks as the node has them, a table of the angles
 * of all its positions. time_torch.py lays out the same. */
struct prompt {
    uint32_t n_head, n_kv_head, d_head, n_token;
    float *q, *k, *v, *out;
    uint16_t *rounded; /* NULL: results come to out */
    const float *gate; /* or NULL */
    void **block;
    struct rope_table rope;
};

static struct attend_shape shape_of(const struct prompt *p)
{
    struct attend_shape shape = {};

    shape.n_head = p->n_head;
    shape.n_kv_head = p->n_kv_head;
    shape.d_head = p->d_head;
    return shape;
}

ENTRY void beside_append(const struct prompt *p)
{
    const struct attend_span span = {0, p->n_token, 0, p->block};
    const size_t n_k = (size_t)p->n_kv_head * p->d_head;
    const struct kv_append_args args = {shape_of(p), p->k,  p->v, n_k,
                                        n_k,         &span, 1};

    cuda_kv_append(&gpu, &args);
}

ENTRY void beside_attend(const struct prompt *p)
{
    const struct attend_span span = {0, p->n_token, 0, p->block};
    struct attend_args args = {};

    args.shape = shape_of(p);
    args.out = p->out;
    args.out_rounded = p->rounded;
    args.gate = p->gate;
    args.gate_stride = (size_t)p->n_head * p->d_head;
    args.q = p->q;
    args.out_stride = args.q_stride = (size_t)p->n_head * p->d_head;
    args.table = &p->rope;
    args.scale = 1.0f / sqrtf((float)p->d_head);
    args.span = &span;
    args.n_span = 1;
    cuda_attend(&gpu, &args);
}

/* y = x w^T: x and w are rows of bf16, y is float; widths are multiples of 64.
 */
ENTRY void beside_linear(float *y, const uint16_t *x, void *panel,
                         uint32_t n_row, uint32_t n_in, uint32_t n_out)
{
    struct linear w = {};
    struct linear_args args = {};

    w.n_in = n_in;
    w.n_out = n_out;
    w.type = LINEAR_BF16;
    w.arithmetic = ARITHMETIC_MMA;
    w.panel = panel;
    args.y = y;
    args.y_stride = n_out;
    args.x_rounded = x;
    args.x_stride = n_in;
    args.n_row = n_row;
    args.w = &w;
    cuda_linear(&gpu, &args);
}
