#ifndef KERNELS_LINEAR_F8_H
#define KERNELS_LINEAR_F8_H
/*
 * Weights in eight bits for a GPU: e4m3, four bits of exponent and three of
 * mantissa, 448 the largest (Micikevicius et al. 2022, arXiv:2209.05433). A
 * block of 128 outputs by 128 inputs shares a scale:
 *     scale = largest |w| of the block / 448, or 0 where that is not normal
 *     q = w * (1 / scale), to the nearest e4m3, ties to even
 * A block with a weight that is not finite gets a scale of NaN.
 *
 * They lie as q [n_out][n_in], both padded with zeros to 128, then
 * scale [n_out / 128][n_in / 128] as floats. A bf16 holds every q exactly, so a
 * product is, per 128 inputs, ascending:
 *     g = the arithmetic's sum over the block, of q, from zero
 *     acc = fma(g, scale, acc)
 * The whole is padded to 256 bytes, so that many can lie one behind the other.
 * The 128 q of an output lie in the order in which the lanes of a warp want
 * them, linear_f8_place().
 */
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LINEAR_F8_BLOCK 128u
#define LINEAR_F8_ALIGN 256u

struct linear_f8_shape {
    uint32_t n_in, n_out;
};

/* Blocks along n. */
static inline size_t linear_f8_n_block(uint32_t n)
{
    return ((size_t)n + LINEAR_F8_BLOCK - 1) / LINEAR_F8_BLOCK;
}

/* From the first weight to the first scale. */
static inline size_t linear_f8_scales_at(struct linear_f8_shape shape)
{
    return linear_f8_n_block(shape.n_out) * linear_f8_n_block(shape.n_in) *
           LINEAR_F8_BLOCK * LINEAR_F8_BLOCK;
}

size_t linear_f8_bytes(struct linear_f8_shape shape);

/*
 * Where among its block's 128 q the one of input `i` of the block lies. Lane t
 * of four multiplies 2t, 2t + 1, 2t + 8 and 2t + 9 of each 16 inputs (PTX ISA,
 * mma.m16n8k16, A): those are a word, whose odd bytes are the first two, and
 * the words of four 16s are 16 bytes that a lane loads at once.
 */
static inline size_t linear_f8_place(size_t i)
{
    const size_t step = i / 16, lane = i % 8 / 2;

    return step / 4 * 64 + lane * 16 + step % 4 * 4 + i % 2 * 2 +
           (i % 16 < 8 ? 1 : 0);
}

/*
 * Quantise rows [first_out, first_out + n_row) of n_in floats, whole blocks but
 * for the last one. `to` holds linear_f8_bytes(), zero at first.
 */
void linear_f8_pack(void *to, struct linear_f8_shape shape, uint32_t first_out,
                    uint32_t n_row, const float *weight);

/* The nearest e4m3, ties to even; beyond 448 that. x is a number. */
uint8_t linear_f8_round(float x);
float linear_f8_float(uint8_t q);

#ifdef __cplusplus
}
#endif
#endif
