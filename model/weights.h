#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H
/*
 * From tensors of a file to what kernels read: several projections of the same
 * input packed as one product (one pass over the row, one start of the worker
 * pool), vectors as aligned floats. With WEIGHT_AUTO BF16 stays BF16; F16
 * becomes F32, which holds it exactly; a product of BF16 and F32 parts becomes
 * F32. FP8 of a file, q * scale rounded to float, does, too. Used while loading
 * only, by one thread.
 */
#include "base/rooms.h"
#include "base/status.h"
#include "kernels/device.h"
#include "model/safetensors.h"

#include <stdbool.h>
#include <stddef.h>

#define WEIGHTS_NAME_SIZE 256u /* of a tensor's whole name, with NUL */

/* What products are packed as; "auto", "bf16", "w8", "w8a8", "f8". */
enum weight_format {
    WEIGHT_AUTO, /* as the file has them */
    WEIGHT_BF16, /* floats are rounded */
    WEIGHT_W8,   /* quantised: kernels/linear.h */
    WEIGHT_W8A8, /* so are inputs: there, too */
    WEIGHT_F8,   /* quantised: kernels/linear_f8.h */
    N_WEIGHT_FORMAT
};

/* Where weights come from, what becomes of those of products, and where they
 * go. */
struct weight_source {
    const struct safetensors *file; /* borrowed */
    struct device *device;          /* in whose memory they end; NULL: host's */
    struct rooms *rooms; /* where products settle; NULL with a device */
    enum weight_format format;
    enum arithmetic arithmetic;
    enum kv_format kv; /* of the blocks that layers will read */
};

/*
 * Rows of one [n_row, n_in] tensor that become the next outputs of a fused
 * product: n_group groups of n_each rows, the first at row `first`, each
 * `stride` rows behind the one before. That takes apart what a checkpoint
 * interleaves per head.
 */
struct weight_part {
    const char *name; /* behind the prefix: "self_attn.q_proj.weight" */
    uint32_t n_row;   /* of the whole tensor */
    uint32_t n_outer; /* not 0: it is [n_outer, n_row / n_outer, n_in] */
    uint32_t first, n_each, stride, n_group;
};

/* The whole tensor in its own order. */
struct weight_part weight_whole(const char *name, uint32_t n_row);

/* Outputs that n_part parts have together. */
uint32_t weight_part_rows(const struct weight_part *part, size_t n_part);

/*
 * One product of all parts, in their order. linear_release() it.
 *   NOT_FOUND, INVALID_ARGUMENT  as safetensors_need(), for [n_row, n_in]
 *   RESOURCE_EXHAUSTED           no memory
 */
MUST_CHECK enum status weights_linear(const struct weight_source *source,
                                      const char *prefix,
                                      const struct weight_part *part,
                                      size_t n_part, uint32_t n_in,
                                      struct linear *out);

/*
 * A tensor of exactly the shape dim[n_dim] as floats in host memory, 64-byte
 * aligned; free() it, or weights_move() it.
 *   NOT_FOUND, INVALID_ARGUMENT  as safetensors_need()
 *   RESOURCE_EXHAUSTED           no memory
 */
MUST_CHECK enum status weights_floats(const struct weight_source *source,
                                      const char *prefix, const char *name,
                                      uint32_t n_dim, const uint64_t *dim,
                                      float **out);

/*
 * To where the source's weights go: from then on device_give() it. On failure
 * it is NULL, and freed.
 *   RESOURCE_EXHAUSTED, UNAVAILABLE  as device_take()
 */
MUST_CHECK enum status weights_move(const struct weight_source *source,
                                    size_t n, float **floats);

/*
 * The weight [n] of a norm, moved; with `has_unit_offset` the file holds w of
 * (1 + w) and the 1 is added here.  Errors as weights_floats() and
 * weights_move()
 */
MUST_CHECK enum status weights_norm(const struct weight_source *source,
                                    const char *prefix, const char *name,
                                    uint32_t n, bool has_unit_offset,
                                    float **out);

/* Zeroed bytes, 64-byte aligned, free() them; NULL and the cause when none. */
void *weights_room(size_t bytes);
#endif
