#include "kernels/cpu/ops.h"
#include "kernels/cpu/panel.h"
#include "kernels/cpu/quads.h"
#include "kernels/cpu/tile.h"

static struct product_shape plain_shape(uint32_t n_row, uint32_t n_step)
{
    struct product_shape shape = LANES_NAME(panel_shape)(n_row, n_step);

    shape.n_panel = LANES_NAME(tile_width)(n_row);
    return shape;
}

/* x rounded to bf16, as floats, zeros behind. */
static void take_rounded(void *to, const float *x, uint32_t n, uint32_t n_step)
{
    float *out = to;

    for (uint32_t i = 0; i < n; i += LANES)
        v16_store(out + i, v16_round_bf16(v16_load_part(x, i, n)));
    for (uint32_t i = (n + LANES - 1) / LANES * LANES; i < n_step; i += LANES)
        v16_store(out + i, v16_zero());
}

static void fp32_f32(const struct product_tile *p)
{
    const struct tile tile = {.c = p->c,
                              .c_stride = p->c_stride,
                              .a = p->a,
                              .a_stride = p->a_stride,
                              .b = p->b,
                              .b_stride = LANES,
                              .b_group = p->b_stride / sizeof(float),
                              .n_row = p->n_row,
                              .n_col = p->n_col,
                              .n_k = p->n_in};

    if (p->is_add)
        LANES_NAME(tile_add)(&tile);
    else
        LANES_NAME(tile_set)(&tile);
}

/* Of a task: nobody measured it with AVX-512. */
#if defined(LANES_AVX512)
#define TASK_BYTES 0
#else
#define TASK_BYTES (256u << 10)
#endif
#define FLOATS                                                                 \
    NULL, LANES_NAME(swiglu_floats), 0, LANES_NAME(panel_shape), 0, TASK_BYTES
#define ROUNDED(shape)                                                         \
    take_rounded, LANES_NAME(swiglu_rounded), sizeof(float), LANES_NAME(shape)

const struct product_kernels
    LANES_NAME(product_kernels) = {
        .of = {
            [ARITHMETIC_FP32] =
                {
                    [LINEAR_F32] = {fp32_f32, NULL, LANES_NAME(swiglu_floats),
                                    0, plain_shape},
                    [LINEAR_BF16] = {LANES_NAME(panel_fp32_bf16), FLOATS},
                    [LINEAR_W8] = {LANES_NAME(panel_fp32_w8), FLOATS},
                    [LINEAR_W8A8] = {LANES_NAME(quads_work),
                                     LANES_NAME(quads_take),
                                     LANES_NAME(quads_swiglu), 1,
                                     LANES_NAME(quads_shape), 0, TASK_BYTES,
                                     sizeof(struct quads_scale)},
                },
            [ARITHMETIC_PAIR] =
                {
                    [LINEAR_BF16] = {LANES_NAME(panel_pair_bf16),
                                     ROUNDED(panel_shape)},
                    [LINEAR_W8] = {LANES_NAME(panel_pair_w8),
                                   ROUNDED(panel_shape)},
                },
            [ARITHMETIC_TILE] =
                {
                    [LINEAR_BF16] = {LANES_NAME(panel_tile_bf16),
                                     ROUNDED(panel_shape_tile)},
                    [LINEAR_W8] = {LANES_NAME(panel_tile_w8),
                                   ROUNDED(panel_shape_tile)},
                },
        }};

void LANES_NAME(linear)(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, false, &LANES_NAME(product_kernels));
}

void LANES_NAME(linear_add)(struct pool *pool, const struct linear_args *args)
{
    product_linear(pool, args, true, &LANES_NAME(product_kernels));
}

void LANES_NAME(ffn)(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, false, &LANES_NAME(product_kernels));
}

void LANES_NAME(ffn_add)(struct pool *pool, const struct ffn_args *args)
{
    product_ffn(pool, args, true, &LANES_NAME(product_kernels));
}
