#include "kernels/linear_f8.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define E4M3_MAX 448.0f
#define E4M3_MAX_BITS 0x7eu
#define E4M3_TINY 0x1p-6f /* the smallest normal one; below, steps of 2^-9 */
#define BIAS_LESS (127u - 7u)

size_t linear_f8_bytes(struct linear_f8_shape shape)
{
    return linear_f8_scales_at(shape) + linear_f8_n_block(shape.n_out) *
                                            linear_f8_n_block(shape.n_in) *
                                            sizeof(float);
}

uint8_t linear_f8_round(float x)
{
    const float size = fabsf(x);
    const unsigned sign = signbit(x) ? 0x80u : 0u;
    uint32_t bits;

    if (size >= E4M3_MAX)
        return (uint8_t)(sign | E4M3_MAX_BITS);
    if (size < E4M3_TINY)
        return (uint8_t)(sign | (unsigned)lrintf(size * 0x1p9f));
    memcpy(&bits, &size, sizeof(bits));
    bits += 0x7ffffu + (bits >> 20 & 1);
    return (uint8_t)(sign | ((bits >> 20) - (BIAS_LESS << 3)));
}

float linear_f8_float(uint8_t q)
{
    const float sign = q & 0x80 ? -1.0f : 1.0f;
    const int exponent = q >> 3 & 15;
    const float mantissa = (float)(q & 7);

    return exponent ? sign * ldexpf(1.0f + mantissa / 8.0f, exponent - 7)
                    : sign * mantissa * 0x1p-9f;
}

/* Rows and columns of a block that are there. */
struct block {
    const float *weight;
    size_t stride, n_row, n_column;
};

static float block_scale(const struct block *b)
{
    float largest = 0.0f, zero = 0.0f;

    for (size_t r = 0; r < b->n_row; r++)
        for (size_t c = 0; c < b->n_column; c++) {
            const float w = b->weight[r * b->stride + c];

            largest = fabsf(w) > largest ? fabsf(w) : largest;
            zero += w * 0.0f; /* NaN as soon as one is not finite */
        }
    if (zero != 0.0f)
        return NAN;
    /* The inverse is finite only for a normal scale. */
    return largest / E4M3_MAX < FLT_MIN ? 0.0f : largest / E4M3_MAX;
}

static void put_block(const struct block *b, uint8_t *to, size_t to_stride,
                      float scale)
{
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;

    for (size_t r = 0; r < b->n_row; r++)
        for (size_t c = 0; c < b->n_column; c++)
            to[r * to_stride + c] =
                isnan(scale)
                    ? 0
                    : linear_f8_round(b->weight[r * b->stride + c] * inverse);
}

void linear_f8_pack(void *to, struct linear_f8_shape shape, uint32_t first_out,
                    uint32_t n_row, const float *weight)
{
    const size_t wide = linear_f8_n_block(shape.n_in),
                 stride = wide * LINEAR_F8_BLOCK;
    uint8_t *q = to;
    float *scale = (float *)(void *)(q + linear_f8_scales_at(shape));

    assert(first_out % LINEAR_F8_BLOCK == 0 &&
           (uint64_t)first_out + n_row <= shape.n_out &&
           (n_row % LINEAR_F8_BLOCK == 0 || first_out + n_row == shape.n_out));
    for (size_t r = 0; r < n_row; r += LINEAR_F8_BLOCK)
        for (size_t c = 0; c < shape.n_in; c += LINEAR_F8_BLOCK) {
            const size_t out = first_out + r;
            const struct block b = {
                .weight = weight + r * shape.n_in + c,
                .stride = shape.n_in,
                .n_row =
                    n_row - r < LINEAR_F8_BLOCK ? n_row - r : LINEAR_F8_BLOCK,
                .n_column = shape.n_in - c < LINEAR_F8_BLOCK ? shape.n_in - c
                                                             : LINEAR_F8_BLOCK,
            };
            float *s =
                &scale[out / LINEAR_F8_BLOCK * wide + c / LINEAR_F8_BLOCK];

            *s = block_scale(&b);
            put_block(&b, q + out * stride + c, stride, *s);
        }
}
