#ifndef KERNELS_LINEAR_H
#define KERNELS_LINEAR_H
/*
 * Weights of y = x W^T, packed once at load so that the vector lanes are
 * outputs. The order of every sum over the inner dimension is fixed by the
 * arithmetic that the weights were made for, so that one row (decode) and many
 * (prefill), any thread and any tile give the same bits; what is split is
 * outputs and rows, never the inner dimension.
 *
 * FP32, one chain from zero over the n_in inputs:
 *     acc = fma(x[k], w[k], acc)
 * All of it under flush modes: a subnormal operand counts as zero, a subnormal
 * result becomes zero, both keep their sign (kernels/flush.h).
 * PAIR and TILE multiply x rounded by scalar_to_bf16().
 * PAIR is what VDPBF16PS computes; for k = 0, 2, 4, ...
 *     acc = fma(x[k + 1], w[k + 1], acc); acc = fma(x[k], w[k], acc)
 * TILE is what TDPBF16PS computes; for each block of 32 steps, ascending:
 *     even = chain over its even steps from 0; odd = over its odd ones
 *     acc = acc + (even + odd)
 * Their inputs are padded with +0 to LINEAR_STEP, and the padding takes part.
 * MMA is what the matrix units of a GPU compute (docs/NUMERICS.md), of BF16
 * weights alone. FAST is MMA, but products of many rows may be summed in any
 * order: it alone does not keep the promise that one row and many have the same
 * bits.
 * linear_add adds the finished sum to y, rounded once.
 *
 * Panels of 16 outputs, outputs padded with zero weights to 16:
 *   F32   [n_out/16][n_in][16]; always FP32
 *   BF16  [n_out/16][n_in/2][16][2], n_in padded to 32: two inner steps side by
 *         side (one 32-bit word holds k in its low and k+1 in its high half),
 *         which AVX-512-BF16 and AMX read as it is
 *   W8    [n_out/16][n_in/128] struct linear_group, n_in padded to 128. A
 *         weight is q * scale. Per group of 128 inputs, ascending:
 *             g = the arithmetic's sum over the group, of q, from zero
 *             acc = fma(g, scale, acc)
 *   W8A8  [n_out/16][n_in/128] struct linear_quads, n_in padded to 128; always
 *         FP32. Weights are those of W8, and x is quantised by the same rule:
 *         128 inputs of a row, from a multiple of 128 on, share a scale. Per
 *         group, ascending:
 *             d = sum of q_x * q_w, a whole number below 2^24, so that no order
 *                 of it shows
 *             acc = fma(d, scale_x * scale_w, acc)
 * MMA has no panels but plain rows, [n_out][n_in], both padded with zeros to
 * LINEAR_TILE. F8 has none in any arithmetic: it lies as kernels/linear_f8.h
 * says, where its sums are, too.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LINEAR_PANEL 16u
#define LINEAR_STEP 32u   /* inputs of BF16 weights are padded to this */
#define LINEAR_GROUP 128u /* inputs that share a scale in W8 and W8A8 */
#define LINEAR_TILE 64u   /* to which MMA pads inputs and outputs */

enum linear_type {
    LINEAR_F32,
    LINEAR_BF16,
    LINEAR_W8,
    LINEAR_W8A8,
    N_LINEAR_TYPE,            /* those that every CPU backend has */
    LINEAR_F8 = N_LINEAR_TYPE /* of those with has_f8: kernels/linear_f8.h */
};

enum arithmetic {
    ARITHMETIC_FP32,
    ARITHMETIC_PAIR,
    ARITHMETIC_TILE,
    N_CPU_ARITHMETIC, /* those that every CPU backend has */
    ARITHMETIC_MMA = N_CPU_ARITHMETIC,
    ARITHMETIC_FAST, /* MMA whose products need not be alike: see there */
    N_ARITHMETIC
};

/* What FAST and MMA share: how weights and states lie, and all but products. */
static inline bool arithmetic_is_mma(enum arithmetic arithmetic)
{
    return arithmetic >= ARITHMETIC_MMA;
}

/* As a flag names it ("fp32", "bf16-pair", "bf16-tile", "bf16-mma",
 * "bf16-mma-fast"), and with the version of its order of operations, which
 * begins a numerics id ("bf16-pair-2"). */
const char *arithmetic_name(enum arithmetic arithmetic);
const char *arithmetic_id(enum arithmetic arithmetic);

/* 128 inputs of 16 outputs. */
struct linear_group {
    float scale[LINEAR_PANEL]; /* largest |w| / 127; 0 when all are 0 */
    int8_t q[LINEAR_GROUP][LINEAR_PANEL]; /* -127 .. 127 */
};

/* The same, four inputs of an output side by side in a 32-bit word, as dot
 * products of bytes read them. */
struct linear_quads {
    float scale[LINEAR_PANEL];
    int8_t q[LINEAR_GROUP / 4][LINEAR_PANEL][4]; /* -127 .. 127 */
};

/*
 * n <= LINEAR_GROUP floats: q is x * (1 / scale) rounded to even, and zeros
 * behind n. Returns the scale: the largest |x| / 127; 0 where that is not
 * normal; NaN, and all q 0, where an x is not finite.
 */
float linear_quantise(const float *x, size_t n, int8_t q[LINEAR_GROUP]);

struct rooms;
struct device;
struct linear {
    uint32_t n_in, n_out;
    enum linear_type type;
    enum arithmetic arithmetic;
    void *panel;           /* 64-byte aligned; owned */
    struct device *device; /* in whose memory it lies; NULL: the host's */
    struct rooms *rooms;   /* of which it has one; NULL: room_take()'s */
};

/* Its products round x to bf16: those of FP32 alone do not. */
static inline bool linear_rounds(const struct linear *linear)
{
    return linear->arithmetic != ARITHMETIC_FP32;
}

/*
 * Room for [n_out, n_in] weights, all zero. F32 and W8A8 weights get FP32
 * whatever `arithmetic` says.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status linear_init(uint32_t n_in, uint32_t n_out,
                                   enum linear_type type,
                                   enum arithmetic arithmetic,
                                   struct linear *out);
void linear_release(struct linear *linear);

/*
 * Into one of the rooms, which stay: small weights then share huge pages, where
 * all of a model's would be thousands of small ones. Not for a device; nothing
 * happens where rooms is NULL, or the weights have huge pages of their own.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status linear_settle(struct linear *linear,
                                     struct rooms *rooms);

/*
 * Once they are packed: to the memory of a device (kernels/device.h), which
 * must outlive them; NULL: they stay.
 *   RESOURCE_EXHAUSTED, UNAVAILABLE  as device_take(); they stay
 */
MUST_CHECK enum status linear_move(struct linear *linear,
                                   struct device *device);
size_t linear_bytes(const struct linear *linear);
size_t linear_panel_bytes(const struct linear *linear);
/* n_in as a panel pads it. */
size_t linear_n_step(const struct linear *linear);

/*
 * Put n_row rows of n_in floats, or of bf16 bits, into outputs [first_out,
 * first_out + n_row). Sources may be unaligned. BF16 rounds floats by
 * scalar_to_bf16(); W8 and W8A8 quantise by linear_quantise(). F8 is packed by
 * linear_f8_pack().
 */
void linear_pack_f32(struct linear *linear, uint32_t first_out, uint32_t n_row,
                     const void *weight);
void linear_pack_bf16(struct linear *linear, uint32_t first_out, uint32_t n_row,
                      const void *weight);
#endif
