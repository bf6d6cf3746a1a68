#ifndef KERNELS_LINEAR_H
#define KERNELS_LINEAR_H
/*
 * Weights of y = x W^T, packed once at load so that the vector lanes are
 * outputs and the loop over the inner dimension is one fma chain per output,
 * ascending, starting from zero:
 *     y[o] = fma(x[n-1], w[o][n-1], ... fma(x[0], w[o][0], 0))
 * One micro-kernel serves one row (decode) and many (prefill) with the same
 * bits; threads and tiles split outputs and rows, never the inner dimension.
 *
 * Panels of 16 outputs. BF16: [n_out/16][ceil(n_in/2)][16][2], two inner
 * steps side by side (one 32-bit word holds k in its low and k+1 in its high
 * half), which AVX-512-BF16 and AMX also read. F32: [n_out/16][n_in][16].
 * Outputs are padded with zero weights to 16, an odd n_in with a zero step,
 * which the chain skips.
 */
#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

#define LINEAR_PANEL 16u

enum linear_type { LINEAR_F32, LINEAR_BF16 };

struct linear {
    uint32_t n_in, n_out;
    enum linear_type type;
    void *panel; /* 64-byte aligned; owned */
};

/*
 * Room for [n_out, n_in] weights, all zero.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status linear_init(uint32_t n_in, uint32_t n_out,
                                   enum linear_type type, struct linear *out);
void linear_release(struct linear *linear);
size_t linear_bytes(const struct linear *linear);

/*
 * Put n_row rows of n_in floats (or bf16 bits, when type is BF16) into outputs
 * [first_out, first_out + n_row). Sources may be unaligned.
 */
void linear_pack_f32(struct linear *linear, uint32_t first_out, uint32_t n_row,
                     const void *weight);
void linear_pack_bf16(struct linear *linear, uint32_t first_out, uint32_t n_row,
                      const void *weight);
#endif
