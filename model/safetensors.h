#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H
/*
 * Tensors of a Hugging Face directory: model.safetensors, or the shards that
 * model.safetensors.index.json names; memory-mapped read-only. Every size and
 * offset is checked against the file at open, so a tensor that was found can
 * be read without further checks. A file that shrinks while mapped kills any
 * process that maps it; weights are therefore to be replaced by rename.
 */
#include "base/digest.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_RANK_MAX 8u
#define TENSOR_F8_BLOCK 128u
#define SAFETENSORS_HEADER_MAX (100u << 20) /* bytes, as the format's own */
#define SAFETENSORS_SHARD_MAX 1024u
#define SAFETENSORS_TENSOR_MAX 1000000u

enum tensor_type {
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_F8, /* e4m3, with scales: kernels/linear_f8.h */
    TENSOR_I32,
    TENSOR_I64,
    TENSOR_OTHER
};

struct tensor {
    const char *name; /* borrowed from the file */
    enum tensor_type type;
    uint32_t n_dim;
    uint64_t dim[SAFETENSORS_RANK_MAX];
    const void *data; /* [dim...] row-major, little-endian; may be unaligned */
    size_t n_bytes;
    /* Of TENSOR_F8: one float for each TENSOR_F8_BLOCK rows by as many columns,
     * the tensor whose name is this one's and "_scale_inv"; NULL: there is
     * none. (As DeepSeek-V3 and others publish weights.) */
    const struct tensor *scale;
};

struct safetensors;

/*
 * Open DIR's weights, or one file when `path` ends in .safetensors.
 *   NOT_FOUND         no such file, or a shard that the index names is missing
 *   PERMISSION_DENIED a file may not be read
 *   INVALID_ARGUMENT  truncated; header too large or not JSON; offsets outside
 *                     the file, overlapping, leaving holes (the format forbids
 *                     them), or not matching shape x type; sizes that
 *                     overflow; an unknown type; a name twice (also across
 *                     shards); more tensors or shards than the limits; index
 *                     naming a tensor its shard lacks or a file outside DIR.
 *                     The message names the file, the tensor, what was found
 *                     and what was expected.
 *   RESOURCE_EXHAUSTED  mmap or memory
 */
MUST_CHECK enum status safetensors_open(const char *path,
                                        struct safetensors **out);

/*
 * No files: every tensor that safetensors_need() asks for is made then, in the
 * shape that it asks for (model/synthetic.h). What was not asked for does not
 * exist for the other calls.
 *   as synthetic_create()
 */
MUST_CHECK enum status safetensors_synthesise(uint64_t seed,
                                              bool has_unit_offset,
                                              struct safetensors **out);
void safetensors_close(struct safetensors *file);

/*
 * The caller is done with the bytes of all tensors that it found so far. Made
 * tensors give their memory back; packing calls this after each product.
 */
void safetensors_forget(const struct safetensors *file);

/* NULL when there is no such tensor. Borrowed until close or forget. */
const struct tensor *safetensors_find(const struct safetensors *file,
                                      const char *name);
uint32_t safetensors_count(const struct safetensors *file);
const struct tensor *safetensors_at(const struct safetensors *file, uint32_t i);

/*
 * Find a float tensor (F32, F16, BF16, or FP8 with scales) of exactly this
 * shape.
 *   NOT_FOUND         "model.safetensors: no tensor 'x', expected [4, 4]"
 *   INVALID_ARGUMENT  other type or shape: names both
 */
MUST_CHECK enum status safetensors_need(const struct safetensors *file,
                                        const char *name, uint32_t n_dim,
                                        const uint64_t *dim,
                                        const struct tensor **out);

/* F32, F16, BF16, or FP8 with scales. */
bool tensor_is_float(const struct tensor *tensor);

/* Is this the name of scales? */
bool tensor_is_scale(const char *name);

/* Elements [first, first + n) as float, whatever the float type is. */
void tensor_read_f32(const struct tensor *tensor, uint64_t first, uint64_t n,
                     float *out);

/*
 * Digest over all names, types, shapes and bytes in order of name: the model's
 * weights fingerprint, the same for one file or many shards.
 */
struct digest safetensors_digest(const struct safetensors *file);
#endif
