/* What the elements of a tensor are as floats. */
#include "kernels/linear_f8.h"
#include "model/safetensors.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static_assert(TENSOR_F8_BLOCK == LINEAR_F8_BLOCK, "one kind of blocks");

bool tensor_is_float(const struct tensor *tensor)
{
    return tensor->type == TENSOR_F32 || tensor->type == TENSOR_F16 ||
           tensor->type == TENSOR_BF16 ||
           (tensor->type == TENSOR_F8 && tensor->scale);
}

static float from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* IEEE 754 binary16 to binary32; every value is exact. */
static float from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    const uint32_t mantissa = half & 0x3ffu;
    const float tiny = (float)mantissa * 0x1p-24f;

    if (exponent == 0)
        return sign ? -tiny : tiny;
    if (exponent == 0x1f)
        return from_bits(sign | 0x7f800000u | mantissa << 13);
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* Its scale is that of its block, and its outer dimensions are whole ones. */
static void read_f8(const struct tensor *tensor, uint64_t first, uint64_t n,
                    float *out)
{
    const uint64_t n_column = tensor->dim[tensor->n_dim - 1];
    const uint64_t n_row = tensor->dim[tensor->n_dim - 2];
    const uint64_t high = tensor->scale->dim[tensor->n_dim - 2];
    const uint64_t wide = tensor->scale->dim[tensor->n_dim - 1];
    const uint8_t *q = tensor->data;
    float scale = 0.0f;

    for (uint64_t i = first; i < first + n; i++) {
        const uint64_t row = i / n_column, column = i % n_column;

        if (i == first || column % TENSOR_F8_BLOCK == 0)
            tensor_read_f32(
                tensor->scale,
                (row / n_row * high + row % n_row / TENSOR_F8_BLOCK) * wide +
                    column / TENSOR_F8_BLOCK,
                1, &scale);
        out[i - first] =
            (q[i] & 0x7f) == 0x7f ? NAN : linear_f8_float(q[i]) * scale;
    }
}

void tensor_read_f32(const struct tensor *tensor, uint64_t first, uint64_t n,
                     float *out)
{
    const uint8_t *data = tensor->data;
    const uint32_t width = tensor->type == TENSOR_F32  ? 4
                           : tensor->type == TENSOR_F8 ? 1
                                                       : 2;
    uint16_t half;

    assert(tensor_is_float(tensor));
    assert(first <= tensor->n_bytes / width &&
           n <= tensor->n_bytes / width - first);
    data += first * width;
    switch (tensor->type) {
    case TENSOR_F32:
        if (n)
            memcpy(out, data, n * sizeof(*out));
        return;
    case TENSOR_F16:
        for (uint64_t i = 0; i < n; i++) {
            memcpy(&half, data + 2 * i, sizeof(half));
            out[i] = from_f16(half);
        }
        return;
    case TENSOR_BF16:
        for (uint64_t i = 0; i < n; i++) {
            memcpy(&half, data + 2 * i, sizeof(half));
            out[i] = from_bits((uint32_t)half << 16);
        }
        return;
    case TENSOR_F8:
        read_f8(tensor, first, n, out);
        return;
    case TENSOR_I32:
    case TENSOR_I64:
    case TENSOR_OTHER:
        return; /* asserted above */
    }
}
