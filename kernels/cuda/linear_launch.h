#ifndef KERNELS_CUDA_LINEAR_LAUNCH_H
#define KERNELS_CUDA_LINEAR_LAUNCH_H
/*
 * Products of weights on the host's side: which tile shape, the tensor maps of
 * the copy engine, the launch. The kernels are in linear_product.cuh and
 * linear_f8.cuh.
 *
 * Weights lie as bf16 [n_out][n_in] with both padded with zeros to LINEAR_PAD;
 * x as bf16 [n_row][n_in], n_in padded in the same way.
 */
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_product.cuh"
#include "kernels/linear.h"
#include "kernels/linear_f8.h"

#define LINEAR_PAD 64u
#define SHARED_BYTES 232448u /* that a CTA of sm_90 may have */

static inline size_t linear_padded(size_t n)
{
    return (n + LINEAR_PAD - 1) / LINEAR_PAD * LINEAR_PAD;
}

/* Tile of 64 n_group rows and n outputs; stages of n_box times 64 inputs (of
 * 128 with weights of eight bits). */
struct product_shape {
    uint32_t n_group, n, n_box;
    uint32_t by; /* CTAs of a cluster, which share weights (of eight bits:
                    rows) */
};

/*
 * Rows of bf16, or of bytes, with their stride in elements, padded. There may
 * be several such matrices, alike, in one map for the copy engine: number i
 * lies MATRIX_STEP i bytes behind `at`, so that each may lie anywhere.
 */
struct product_matrix {
    const void *at;
    size_t n_row, stride;
    uint32_t n_matrix; /* numbers are below */
};

struct product_job {
    enum product_end end;
    bool is_f8;       /* w is of kernels/linear_f8.h */
    size_t scales_at; /* in it */
    void *y;
    size_t y_stride;
    uint32_t n_row, n_out; /* of y that are written */
    uint32_t n_in;
    struct product_matrix x, w[2]; /* w[1] for PRODUCT_SWIGLU alone */
    bool is_placed; /* x, and y of PRODUCT_SWIGLU: f8_x_place() */
    /* Of experts: how many, and what struct product has of them; n_row counts
     * the places of all. Or 0. */
    uint32_t n_expert;
    const struct product_rows *rows;
    const uint32_t *n_rows, *matrix;
    struct product_places places; /* instead of a list, with ... */
    uint32_t n_each;              /* rows that an expert has at most */
};

/* Rows of a tile. */
static inline uint32_t product_height(struct product_shape shape)
{
    return shape.n_group ? shape.n_group * GROUP_ROWS : 16;
}

/* Rows of x that a tile copies: whole groups of 8, as the swizzle has them. */
uint32_t product_x_rows(const struct product_job *job, uint32_t n_group);
/* The job of a kernel but for its stages, without and with the maps of its
 * matrices. */
struct product product_fields(const struct product_job *job,
                              struct product_shape shape);
struct product product_parameters(const struct product_job *job,
                                  struct product_shape shape);
/* All shapes, for tests and measurements, and whether one can do a job. */
const struct product_shape *product_shapes(size_t *out_n);
bool product_fits(const struct product_job *job, struct product_shape shape);
/* The shape that a model of its cost says is fastest. */
struct product_shape product_choose(const struct product_job *job,
                                    uint32_t n_sm);
/* No list of tiles of rows is longer. */
uint32_t product_rows_max(const struct product_job *job,
                          struct product_shape shape);
/* Launched so that it may begin before the kernel ahead of it is done. */
void product_launch(struct gpu *gpu, const struct product_job *job,
                    struct product_shape shape);

/* The same for weights of eight bits. */
const struct product_shape *f8_shapes(size_t *out_n);
bool f8_fits(const struct product_job *job, struct product_shape shape);
struct product_shape f8_choose(const struct product_job *job, uint32_t n_sm);
void f8_launch(struct gpu *gpu, const struct product_job *job,
               struct product_shape shape);

/*
 * For few rows a kernel of its own: linear_f8_few.cu. Its shapes are those of
 * f8_shapes() without groups: n outputs, n_box rounds ahead, x_by CTAs on an
 * SM. Its x is placed: inputs are padded to 128, and of each 128 those of a
 * lane lie together, so that it loads them 16 bytes at a time.
 */
#define F8_FEW_ROWS 16u
#define F8_FEW_INPUTS (1u << 14) /* whose scales have room beside the sums */
#define F8_FEW_SHAPES(X)                                                       \
    X(1, 2, 2)                                                                 \
    X(1, 2, 3)                                                                 \
    X(2, 1, 3)
bool f8_few_fits(const struct product_job *job);
/* As measured on an H100. */
struct product_shape f8_few_choose(const struct product_job *job);
void f8_few_launch(struct gpu *gpu, const struct product_job *job,
                   struct product_shape shape);

/* Both on GPUs without wgmma: linear_sm80.cu. A list of tiles, if there is one,
 * is of product_height() rows each. */
struct product_shape sm80_shape_of(const struct product_job *job,
                                   uint32_t n_sm);
const struct product_shape *sm80_shapes(bool is_f8, size_t *out_n);
bool sm80_fits(const struct product_job *job, struct product_shape shape);
void sm80_launch(struct gpu *gpu, const struct product_job *job,
                 struct product_shape shape);

/* Where input i of a row of x lies in it. */
static inline __host__ __device__ uint32_t f8_x_place(uint32_t i)
{
    const uint32_t step = i / 16 % 8, lane = i % 8 / 2;

    return i / 128 * 128 + step / 2 * 32 + lane * 8 + step % 2 * 4 +
           i % 16 / 8 * 2 + i % 2;
}

/* w[part] and of what kind it is; n_matrix is 1. */
void product_set_weights(struct product_job *job, uint32_t part,
                         const struct linear *w);
/* By the job's kind of weights. */
struct product_shape product_shape_of(struct gpu *gpu,
                                      const struct product_job *job);
void product_run(struct gpu *gpu, const struct product_job *job,
                 struct product_shape shape);

/* bf16 rows of n_in inputs, padded with +0; row i is x[row[i]], or x[i] when
 * row is NULL. */
struct round_job {
    void *to;
    const float *x;
    size_t x_stride;
    const uint32_t *row;
    uint32_t n_row, n_in;
};
/* The same, placed; without `row`. Rows that are rounded already, [n_row][n_in]
 * with n_in padded to LINEAR_PAD, are only placed: x is not read then. */
void f8_place_launch(struct gpu *gpu, const struct round_job *job,
                     const uint16_t *rounded);
void round_launch(struct gpu *gpu, const struct round_job *job);
#endif
