#include "kernels/linear_f8.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define E4M3_MAX 448.0f
#define E4M3_TINY 0x1p-6f /* the smallest normal one; below, steps of 2^-9 */
#define INFINITE_BITS 0x7f800000u /* and of NaN above */
#define TINY_ONE 0x1.8p14f
#define BIAS_LESS (127u - 7u)

size_t linear_f8_bytes(struct linear_f8_shape shape)
{
    const size_t bytes = linear_f8_scales_at(shape) +
                         linear_f8_n_block(shape.n_out) *
                             linear_f8_n_block(shape.n_in) * sizeof(float);

    return (bytes + LINEAR_F8_ALIGN - 1) / LINEAR_F8_ALIGN * LINEAR_F8_ALIGN;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

/* Without a branch, for billions of them are made at a load. A sum with
 * TINY_ONE rounds to whole steps of 2^-9, which then are its last bits. */
static inline uint8_t rounded(float x)
{
    const float size = fabsf(x) < E4M3_MAX ? fabsf(x) : E4M3_MAX;
    const uint32_t bits = bits_of(size);
    const uint32_t normal =
        ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (BIAS_LESS << 3);
    const uint32_t tiny = bits_of(size + TINY_ONE) & 0xffu;

    return (uint8_t)((bits_of(x) >> 24 & 0x80u) |
                     (size < E4M3_TINY ? tiny : normal));
}

uint8_t linear_f8_round(float x)
{
    return rounded(x);
}

float linear_f8_float(uint8_t q)
{
    /* What the last bit of the mantissa is worth, by exponent. */
    static const float UNIT[16] = {
        0x1p-9f, 0x1p-9f, 0x1p-8f, 0x1p-7f, 0x1p-6f, 0x1p-5f, 0x1p-4f, 0x1p-3f,
        0x1p-2f, 0x1p-1f, 0x1p+0f, 0x1p+1f, 0x1p+2f, 0x1p+3f, 0x1p+4f, 0x1p+5f,
    };
    const unsigned exponent = q >> 3 & 15;
    const float mantissa = (float)((exponent ? 8 : 0) + (q & 7));

    return (q & 0x80 ? -mantissa : mantissa) * UNIT[exponent];
}

/* Rows and columns of a block that are there. */
struct block {
    const float *weight;
    size_t stride, n_row, n_column;
};

static float block_scale(const struct block *b)
{
    uint32_t bits = 0; /* sizes are ordered as their bits are */
    float largest;

    for (size_t r = 0; r < b->n_row; r++)
        for (size_t c = 0; c < b->n_column; c++) {
            const uint32_t size =
                bits_of(b->weight[r * b->stride + c]) & 0x7fffffffu;

            bits = size > bits ? size : bits;
        }
    if (bits >= INFINITE_BITS)
        return NAN;
    memcpy(&largest, &bits, sizeof(largest));
    /* The inverse is finite only for a normal scale. */
    return largest / E4M3_MAX < FLT_MIN ? 0.0f : largest / E4M3_MAX;
}

static void put_block(const struct block *b, uint8_t *to, size_t to_stride,
                      float scale)
{
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;

    if (isnan(scale)) /* q stay 0 */
        return;
    for (size_t r = 0; r < b->n_row; r++) {
        uint8_t q[LINEAR_F8_BLOCK];

        for (size_t c = 0; c < b->n_column; c++)
            q[c] = rounded(b->weight[r * b->stride + c] * inverse);
        for (size_t c = 0; c < b->n_column; c++)
            to[r * to_stride + linear_f8_place(c)] = q[c];
    }
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
