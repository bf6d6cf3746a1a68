#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/tile.h"
#include "kernels/ref/ref.h"

/* Rows that pass by a group of panels before the next group is taken: 48 rows
 * of 256 floats are 48 KiB, which the second-level cache holds beside it. */
#define BLOCK_ROWS 48u

static struct product_shape shape(uint32_t n_row, uint32_t n_step)
{
    (void)n_step;
    return (struct product_shape){.n_row = BLOCK_ROWS,
                                  .n_panel = LANES_NAME(tile_width)(n_row)};
}

static struct tile tile_of(const struct product_tile *p)
{
    return (struct tile){.c = p->c,
                         .c_stride = p->c_stride,
                         .a = p->a,
                         .a_stride = p->a_stride,
                         .b = p->b,
                         .b_stride = LANES,
                         .b_group = p->b_stride / sizeof(float),
                         .n_row = p->n_row,
                         .n_col = p->n_col,
                         .n_k = p->n_in};
}

static void fp32_f32(const struct product_tile *product)
{
    const struct tile tile = tile_of(product);

    if (product->is_add)
        LANES_NAME(tile_add)(&tile);
    else
        LANES_NAME(tile_set)(&tile);
}

static void fp32_bf16(const struct product_tile *product)
{
    const struct tile tile = tile_of(product);

    if (product->is_add)
        LANES_NAME(tile_bf16_add)(&tile);
    else
        LANES_NAME(tile_bf16_set)(&tile);
}

const struct product_kernels LANES_NAME(product_kernels) = {
    .of = {[ARITHMETIC_FP32] = {[LINEAR_F32] = {fp32_f32, NULL, 0, shape},
                                [LINEAR_BF16] = {fp32_bf16, NULL, 0, shape}}},
};

void LANES_NAME(linear)(struct pool *pool, const struct linear_args *args)
{
    if (args->w->arithmetic || args->w->type == LINEAR_W8)
        ref_linear(pool, args);
    else
        product_linear(pool, args, false, &LANES_NAME(product_kernels));
}

void LANES_NAME(linear_add)(struct pool *pool, const struct linear_args *args)
{
    if (args->w->arithmetic || args->w->type == LINEAR_W8)
        ref_linear_add(pool, args);
    else
        product_linear(pool, args, true, &LANES_NAME(product_kernels));
}
