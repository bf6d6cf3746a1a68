#ifndef KERNELS_CUDA_ATTEND_WIDE_CUH
#define KERNELS_CUDA_ATTEND_WIDE_CUH
/*
 * Blocks of int8 (kernels/backend.h, KV_INT8): kv_append() quantises. Attention
 * of few rows reads them as they are (attend_tile8.cuh); before that of many
 * rows, and the plain one, the spans' blocks are widened into scratch memory,
 * of one layer at a time. See attend_wide.cu.
 */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/device.h"

/* Blocks that spans of at most n_key keys have; more while a step is recorded,
 * for it will be run with longer ones. */
uint64_t wide_n_block(const struct gpu *gpu, uint64_t n_key);

/* Bytes of scratch for n_span spans of n_block blocks; 0: nothing to widen. */
size_t wide_bytes(const struct attend_shape *shape, uint32_t n_span,
                  uint64_t n_block);

/* Widen them there; the spans' tables then lead to what was widened. */
void attend_widen(struct gpu *gpu, const struct attend_shape *shape,
                  struct attend_span *span, uint32_t n_span, uint64_t n_block,
                  unsigned char *scratch);

/* kv_append's rows into blocks of int8; spans on the device, of at most n_block
 * blocks that rows lie in. */
void append_int8(struct gpu *gpu, const struct kv_append_args *args,
                 const struct attend_span *span, uint32_t n_span,
                 uint32_t n_block);
#endif
